"""What placing matches between pixels gains: errors of every method of `mast3r.pairs.subpixel` on the same matches.

    python benchmarks/bench_subpixel.py
    python benchmarks/bench_subpixel.py --weights run/checkpoint-best.pth --data DATA --max_pairs 8

Rendered pairs (the scene engine, exact geometry): the distance in model pixels between a match's second end and
the place where its first end truly lies, and the distance from its epipolar line. Photos with known poses
(`--data`, a folder as in docs/evaluation.md): the distance from the epipolar line, in pixels of the network's
input. Only matches whose whole-pixel ends are right to within `--within` pixels count, and they are the same for
every method: others are wrong matches, which no refinement repairs. Perfect whole-pixel ends would be off by
0.38 px on average (0.25 px from a line), by rounding alone.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from torch import Tensor

import mast3r
from dust3r.datasets.synthetic import SceneEngine, SyntheticConfig, TextureConfig
from mast3r.evaluation.datasets import EvaluationPair, evenly, read_scenes
from mast3r.fast_nn import extract_correspondences_nonsym
from mast3r.model import AsymmetricMASt3R
from mast3r.pairs.subpixel import Method, refine_matches
from mast3r.pairs.two_view import ModelInput, Seen, decode, encode, model_input
from mast3r.validation import true_targets
from multiview.images import ImageTransform
from multiview.metrics import essential_matrix

WAYS: tuple[tuple[str, Method | None, int], ...] = (
    ("whole pixels", None, 1),
    *((f"{method}, radius {radius}", method, radius) for method in get_args(Method) for radius in (1, 2)),
)


@dataclass(frozen=True, eq=False)
class Case:
    """A decoded pair and its truth.

    Attributes:
        seen: maps of both images.
        target: (H, W, 2) true place in image 1 of each pixel of image 0, NaN where unknown; None for photos.
        F: (3, 3) fundamental matrix in model pixels.
    """

    seen: tuple[Seen, Seen]
    target: Tensor | None
    F: Tensor


def rendered_cases(model: AsymmetricMASt3R, arguments: argparse.Namespace) -> Iterator[Case]:
    """Pairs of rendered views."""
    config = SyntheticConfig(TextureConfig(procedural=24), compile=arguments.compile)
    engine = SceneEngine(config)
    for number in range(arguments.pairs):
        views = engine.pairs(
            arguments.seed + number,
            1,
            height=arguments.size,
            width=arguments.size,
            overlap=tuple(arguments.overlap),
            n_corres=1,
        )
        pixels = [((view["img"][0].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy() for view in views]
        inputs = [ModelInput(p, ImageTransform.identity((p.shape[1], p.shape[0]))) for p in pixels]
        target, visible = true_targets(*views)
        target[~visible] = torch.nan
        poses = [view["camera_pose"][0].double().numpy() for view in views]
        K0, K1 = (view["camera_intrinsics"][0].double().numpy() for view in views)
        yield Case(see(model, inputs), target[0], fundamental(K0, K1, np.linalg.inv(poses[1]) @ poses[0]))


def photo_cases(model: AsymmetricMASt3R, arguments: argparse.Namespace) -> Iterator[Case]:
    """Pairs of photos with known poses."""
    for scene in read_scenes(arguments.data, arguments.scenes):
        posed = [pair for pair in scene.pairs if pair.has_pose]
        for pair in evenly(posed, arguments.max_pairs):
            inputs = [model_input(model, path) for path in (pair.image0, pair.image1)]
            yield Case(see(model, inputs), None, photo_fundamental(pair, inputs))


def see(model: AsymmetricMASt3R, inputs: list[ModelInput]) -> tuple[Seen, Seen]:
    """Maps of both images."""
    return decode(model, encode(model, inputs), [x.shape for x in inputs], [(0, 1)])[0]


def fundamental(K0: np.ndarray, K1: np.ndarray, T_0to1: np.ndarray) -> Tensor:
    """(3, 3) such that x1^T F x0 = 0 for true matches."""
    return torch.from_numpy(np.linalg.inv(K1).T @ essential_matrix(T_0to1) @ np.linalg.inv(K0))


def photo_fundamental(pair: EvaluationPair, inputs: list[ModelInput]) -> Tensor:
    """In pixels of the network's input; photos with an EXIF turn are not expected here."""
    if pair.K0 is None or pair.K1 is None or pair.T_0to1 is None:
        raise ValueError(f"{pair.name0} and {pair.name1} have no known pose.")
    K0, K1 = (x.transform.matrix @ K for x, K in zip(inputs, (pair.K0, pair.K1)))
    return fundamental(K0, K1, pair.T_0to1)


def line_distance(F: Tensor, xy0: Tensor, xy1: Tensor) -> Tensor:
    """(N,) distance in pixels of points of image 1 from the epipolar lines of their partners."""
    a, b = (torch.cat([xy.double(), torch.ones(len(xy), 1, dtype=torch.float64)], 1) for xy in (xy0, xy1))
    line = a @ F.T
    return (b * line).sum(1).abs() / line[:, :2].norm(dim=1).clamp(min=1e-12)


def place(seen: tuple[Seen, Seen], xy0: Tensor, xy1: Tensor, method: Method | None, radius: int) -> Tensor:
    """Second ends by one of the ways."""
    if method is None:
        return xy1.double()
    return refine_matches(seen[0].desc, seen[1].desc, xy0, xy1, method=method, radius=radius).double()


@torch.inference_mode()
def measure(case: Case, arguments: argparse.Namespace) -> dict[str, list[Tensor]]:
    """Per way the distances from the line and, where known, from the true place."""
    first, second = case.seen
    xy0, xy1, _ = extract_correspondences_nonsym(
        first.desc, second.desc, first.desc_confidence, second.desc_confidence, subsample=arguments.subsample
    )
    if case.target is None:
        right = line_distance(case.F, xy0, xy1) < arguments.within
    else:
        right = (case.target[xy0[:, 1], xy0[:, 0]] - xy1).norm(dim=1) < arguments.within
    xy0, xy1 = xy0[right], xy1[right]
    found: dict[str, list[Tensor]] = {}
    for name, method, radius in WAYS:
        ends = place(case.seen, xy0, xy1, method, radius) if len(xy0) else xy1.double()
        found[name] = [line_distance(case.F, xy0, ends)]
        if case.target is not None:
            found[name].append((case.target[xy0[:, 1], xy0[:, 0]] - ends).norm(dim=1))
    return found


def report(title: str, cases: Iterator[Case], arguments: argparse.Namespace) -> None:
    """Print one table."""
    columns: dict[str, list[list[Tensor]]] = {name: [] for name, _, _ in WAYS}
    for case in cases:
        for name, distances in measure(case, arguments).items():
            columns[name].append(distances)
    merged = {name: [torch.cat(part) for part in zip(*parts)] for name, parts in columns.items()}
    count = len(next(iter(merged.values()))[0])
    print(f"\n{title}: {count} matches of {len(columns['whole pixels'])} pairs, right to within {arguments.within} px")
    print(f"{'':24} line: median    mean   place: median    mean   < 0.5 px")
    for name, parts in merged.items():
        line = f"{parts[0].median():12.3f} {parts[0].mean():7.3f}"
        spot = ""
        if len(parts) > 1:
            spot = f"{parts[1].median():16.3f} {parts[1].mean():7.3f} {100 * (parts[1] < 0.5).double().mean():8.1f} %"
        print(f"{name:24} {line} {spot}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="small", help="what mast3r.load takes")
    parser.add_argument("--pairs", type=int, default=16, help="rendered pairs; 0 for photos only")
    parser.add_argument("--size", type=int, default=224, help="side of rendered images, in pixels")
    parser.add_argument("--overlap", type=float, nargs=2, default=(0.5, 0.9))
    parser.add_argument("--seed", type=int, default=900_000)
    parser.add_argument("--subsample", type=int, default=4)
    parser.add_argument("--within", type=float, default=3.0, help="matches farther off count as wrong, in pixels")
    parser.add_argument("--data", help="folder of photos with ground truth")
    parser.add_argument("--scenes", nargs="+", help="only these scenes of it")
    parser.add_argument("--max_pairs", type=int, default=4, help="pairs per scene")
    parser.add_argument("--compile", action="store_true", help="compile the renderer")
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {arguments.weights}")
    model = mast3r.load(arguments.weights)
    if arguments.pairs:
        report("rendered pairs", rendered_cases(model, arguments), arguments)
    if arguments.data:
        report("photos", photo_cases(model, arguments), arguments)


if __name__ == "__main__":
    main()
