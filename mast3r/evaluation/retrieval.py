"""Does the encoder find photos of the same place: `mast3r evaluate retrieval DATA_DIR`.

The posed photos of all scenes are mixed. For each photo the most similar others are looked up: how many are of its
scene, and how many see something that it sees too, of those that could be found.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mast3r.evaluation.command import run_command, save_scores
from mast3r.evaluation.datasets import GT_FILE
from mast3r.evaluation.scenes import PosedScene, read_posed_scenes

NEIGHBOURS = 5
"""Photos looked up for each."""

MIN_SHARED = 0.15
"""Share of the known points of a photo that another must see, to count as a view of the same place."""


@dataclass(frozen=True)
class RetrievalScore:
    """How good the neighbours are.

    Attributes:
        method: How photos were compared.
        photos: Number of photos.
        same_scene: Share of the k nearest that are of the photo's scene, 0..1.
        overlap: Number of the k nearest that overlap, as a share of how many could (at most k); over photos that
            overlap with any.
        first: Share of these photos whose nearest one overlaps.
        seconds: Time for the similarities, features not included.
    """

    method: str
    photos: int
    same_scene: float
    overlap: float
    first: float
    seconds: float


def shared_points(folder: Path, scene: PosedScene) -> np.ndarray | None:
    """(n, n) share of the known points of photo i that photo j sees too; None if the scene has no points."""
    content = json.loads((folder / GT_FILE).read_text(encoding="utf-8"))
    if "points" not in content:
        return None
    with np.load(folder / content["points"]) as tracks:
        names = [str(name) for name in tracks["image_names"]]
        image, point = tracks["obs_image"], tracks["obs_point"]
        seen = np.zeros((len(names), len(tracks["xyz"])), dtype=np.float32)
    seen[image, point] = 1
    row = {Path(name).name: k for k, name in enumerate(names)}
    if any(path.name not in row for path in scene.paths):
        return None
    seen = seen[[row[path.name] for path in scene.paths]]
    return seen @ seen.T / np.maximum(seen.sum(axis=1, keepdims=True), 1)


def judge_neighbours(
    method: str,
    similarity: np.ndarray,
    scene_of: np.ndarray,
    overlapping: np.ndarray,
    *,
    k: int = NEIGHBOURS,
    seconds: float = 0.0,
) -> RetrievalScore:
    """Judge the neighbours that similarities give.

    Args:
        method: How photos were compared.
        similarity: (n, n).
        scene_of: (n,) number of each photo's scene.
        overlapping: (n, n) bool, photos that see the same place.
        k: How many neighbours are looked at.
        seconds: Time taken.
    """
    scores = np.array(similarity, dtype=np.float64)
    np.fill_diagonal(scores, -np.inf)
    nearest = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = np.take_along_axis(overlapping, nearest, axis=1)
    possible = np.minimum(overlapping.sum(axis=1), k)
    able = possible > 0
    return RetrievalScore(
        method,
        len(scores),
        float((scene_of[nearest] == scene_of[:, None]).mean()),
        float((found.sum(axis=1)[able] / possible[able]).mean()) if able.any() else 0.0,
        float(found[able, 0].mean()) if able.any() else 0.0,
        seconds,
    )


def retrieval_table(scores: Sequence[RetrievalScore]) -> str:
    """One row per method."""
    lines = [f"{'method':24s} photos  same scene  overlap  nearest overlaps    time"]
    lines += [
        f"{s.method:24s} {s.photos:6d}  {100 * s.same_scene:8.1f} %  {100 * s.overlap:5.1f} %  "
        f"{100 * s.first:14.1f} %  {s.seconds:4.1f} s"
        for s in scores
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None, prog: str = "python -m mast3r.evaluation.retrieval") -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog=prog, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of SCENE/gt.json")
    parser.add_argument("--scenes", nargs="+", help="names of scenes (default: all with poses)")
    parser.add_argument("--weights", default="small", help="small, an official name, a path")
    parser.add_argument("--k", type=int, default=NEIGHBOURS, help="neighbours looked at (default %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    args = parser.parse_args(argv)
    return run_command(lambda: _measured(args), retrieval_table, save_scores, args.json)


def _measured(args: argparse.Namespace) -> list[RetrievalScore]:
    scenes = read_posed_scenes(args.data, args.scenes)
    folders = [scene.paths[0].parents[1] for scene in scenes]
    scene_of = np.repeat(np.arange(len(scenes)), [len(scene.paths) for scene in scenes])
    overlapping = np.zeros((len(scene_of), len(scene_of)), dtype=bool)
    for number, (folder, scene) in enumerate(zip(folders, scenes)):
        shared = shared_points(folder, scene)
        rows = np.flatnonzero(scene_of == number)
        if shared is not None:
            overlapping[np.ix_(rows, rows)] = np.minimum(shared, shared.T) >= MIN_SHARED
    np.fill_diagonal(overlapping, False)
    scores = []
    for name, compare in _comparisons(args, [path for scene in scenes for path in scene.paths]).items():
        start = time.perf_counter()
        similarity = compare()
        spent = time.perf_counter() - start
        scores.append(judge_neighbours(name, similarity, scene_of, overlapping, k=args.k, seconds=spent))
    return scores


def _comparisons(args: argparse.Namespace, paths: Sequence[Path]) -> dict[str, Callable[[], np.ndarray]]:
    """Ways to compare photos; the encoder runs once."""
    from dust3r.utils.processes import resolve_device
    from mast3r.loading import load
    from mast3r.pairs.two_view import TokenCache, model_input
    from mast3r.retrieval.pooled import PooledConfig, token_similarity

    model = load(args.weights, device=resolve_device(args.device))
    inputs = [model_input(model, path) for path in paths]
    tokens = [found[0][0, :, : model.enc_embed_dim] for found in TokenCache(model).encode(inputs, batch_size=8)]
    ways = {
        "words (default)": PooledConfig(),
        "mean": PooledConfig(pooling="mean"),
        "ASMK as in MASt3R-SfM": PooledConfig(words_per_feature=1, shrinkage=1.0),
    }
    return {name: partial(token_similarity, tokens, config=config) for name, config in ways.items()}


if __name__ == "__main__":
    sys.exit(main())
