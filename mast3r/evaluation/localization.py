"""Are new photos placed rightly: `mast3r evaluate localization DATA_DIR`.

Of each scene a few photos are left out, the others are reconstructed with their true intrinsics and poses given, and
the left-out ones are localised, with and without their intrinsics.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mast3r.evaluation.command import run_command, save_scores
from mast3r.evaluation.scenes import PosedScene, read_posed_scenes
from multiview.metrics import rotation_error_deg
from multiview.views import ViewConstraints, fixed

if TYPE_CHECKING:
    from mast3r.model import AsymmetricMASt3R
    from mast3r.scenes.localization import LocalizedImage


@dataclass(frozen=True)
class PlaceScore:
    """How well left-out photos of a scene were placed.

    Attributes:
        scene: Name of the scene.
        intrinsics: Whether their intrinsics were told.
        photos: Number of left-out photos.
        localized: Number that was placed.
        rotation_deg: Median rotation error of those.
        center: Median error of their camera centres, as a share of the cameras' extent.
        reasons: Why photos failed.
    """

    scene: str
    intrinsics: bool
    photos: int
    localized: int
    rotation_deg: float | None
    center: float | None
    reasons: tuple[str, ...] = field(default=(), repr=False)


def left_out(count: int, number: int) -> list[int]:
    """Positions of `number` photos, at most, evenly spread and none at the ends."""
    spread = np.linspace(0, count - 1, number + 2).round().astype(int).tolist()
    return sorted({k for k in spread if 0 < k < count - 1})


def judge_places(
    scene: PosedScene, queries: Sequence[int], found: Sequence[LocalizedImage], *, intrinsics: bool
) -> PlaceScore:
    """Compare places in the world of the truth with the truth.

    Args:
        scene: The truth.
        queries: Positions of the localised photos.
        found: What was found for each.
        intrinsics: Whether their intrinsics were told.
    """
    centers = np.array([pose.center for pose in scene.poses])
    extent = float(np.linalg.norm(centers - centers.mean(axis=0), axis=1).max())
    placed = [(scene.poses[k], place.pose) for k, place in zip(queries, found) if place.pose is not None]
    turned = [rotation_error_deg(truth.rotation, pose.rotation) for truth, pose in placed]
    moved = [float(np.linalg.norm(truth.center - pose.center)) / extent for truth, pose in placed]
    reasons = tuple(place.reason for place in found if place.pose is None)
    middle = (float(np.median(turned)), float(np.median(moved))) if placed else (None, None)
    return PlaceScore(scene.name, intrinsics, len(queries), len(placed), *middle, reasons)


def evaluate_localization(
    model: AsymmetricMASt3R, scene: PosedScene, *, queries: int = 5, cache: Path | None = None
) -> list[PlaceScore]:
    """Leave photos of a scene out and localise them, first with, then without their intrinsics.

    Args:
        model: What `mast3r.load` returned.
        scene: Photos with poses.
        queries: How many photos are left out.
        cache: Folder that keeps what the network says of pairs.
    """
    from mast3r.scenes.localization import localize
    from mast3r.scenes.reconstruction import ReconstructConfig, reconstruct

    out = left_out(len(scene.paths), queries)
    kept = [k for k in range(len(scene.paths)) if k not in out]
    known = [_given(scene, k) for k in kept]
    config = ReconstructConfig(tracks=False)
    world = reconstruct(model, [scene.paths[k] for k in kept], views=known, config=config, cache_dir=cache)
    scores = []
    for told in (True, False):
        places = [localize(model, world, scene.paths[k], K=scene.K[k] if told else None) for k in out]
        scores.append(judge_places(scene, out, places, intrinsics=told))
    return scores


def places_table(scores: Sequence[PlaceScore]) -> str:
    """One row per scene and choice of intrinsics."""
    lines = [f"{'scene':24s} intrinsics  placed  rotation  centre"]
    for s in scores:
        rotation = "-" if s.rotation_deg is None else f"{s.rotation_deg:.2f} deg"
        center = "-" if s.center is None else f"{100 * s.center:.1f} %"
        told = "known" if s.intrinsics else "unknown"
        lines.append(f"{s.scene:24s} {told:10s}  {s.localized}/{s.photos}  {rotation:>10s}  {center:>6s}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None, prog: str = "python -m mast3r.evaluation.localization") -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog=prog, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of SCENE/gt.json, or one such scene")
    parser.add_argument("--scenes", nargs="+", help="names of scenes (default: all with poses)")
    parser.add_argument("--weights", default="small", help="small, an official name, a path")
    parser.add_argument("--queries", type=int, default=5, help="photos left out of each scene (default %(default)s)")
    parser.add_argument("--cache", type=Path, help="folder that keeps what the network says")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    args = parser.parse_args(argv)
    return run_command(lambda: _measured(args), places_table, save_scores, args.json)


def _measured(args: argparse.Namespace) -> list[PlaceScore]:
    from dust3r.utils.processes import resolve_device
    from mast3r.loading import load

    scenes = read_posed_scenes(args.data, args.scenes)
    model = load(args.weights, device=resolve_device(args.device))
    return [
        score
        for scene in scenes
        for score in evaluate_localization(model, scene, queries=args.queries, cache=args.cache)
    ]


def _given(scene: PosedScene, number: int) -> ViewConstraints:
    K = scene.K[number]
    pose = fixed(scene.poses[number])
    return ViewConstraints(K=None if K is None else fixed(K), pose=pose)


if __name__ == "__main__":
    sys.exit(main())
