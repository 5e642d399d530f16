"""Sparse alignment against its plain reference, in one process.

    python benchmarks/bench_sparse_alignment.py
    python benchmarks/bench_sparse_alignment.py --images 12 24 --matches 500 --steps 20 --profile

Both do the same steps of the same optimiser from the same start: the reference evaluates its objective pair by
pair, as the paper writes it, the fast one all pairs at once. The table shows seconds per step of both stages,
how many times faster the fast one is, and by how much the two objectives differ where the fast one ends. With
one thread, time is that of the processor, so that other programs do not disturb it. `--profile` prints where the
time of the fast one goes.
"""

from __future__ import annotations

import argparse
import copy
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mast3r.cloud_opt.canonical import BlockGrid
from mast3r.cloud_opt.kinematics import kinematic_tree, score_matrix
from mast3r.cloud_opt.objectives import CoarseObjective, FineObjective, Objective
from mast3r.cloud_opt.optimise import run_stage
from mast3r.cloud_opt.parameters import SceneParameters, separate_start
from mast3r.cloud_opt.problem import AnchoredPair, ImageGeometry, PixelAnchors, pack_problem
from mast3r.cloud_opt.reference import plain_coarse, plain_fine
from mast3r.cloud_opt.utils.losses import GammaLoss

WALL = 4.0
GRID = BlockGrid(512, 384, 8)
FOCAL = 450.0
Objectives = Callable[[SceneParameters], tuple[Objective, Objective]]
COARSE, FINE = GammaLoss(1.5), GammaLoss(0.5)


@dataclass(frozen=True, eq=False)
class Scene:
    """Cameras in front of a wall, matched in pairs."""

    images: ImageGeometry
    pairs: list[AnchoredPair]
    parents: np.ndarray

    def parameters(self) -> SceneParameters:
        """Parameters at their start."""
        return SceneParameters(self.images, self.parents, separate_start(self.images))


def wall_scene(images: int, matches: int, neighbours: int, seed: int = 0) -> Scene:
    """Every camera is matched with its nearest neighbours on a row; depths are off by 2 %, matches by a pixel."""
    rng = np.random.default_rng(seed)
    centers = np.stack([np.linspace(0, 0.25 * images, images), 0.1 * rng.normal(size=images)], axis=1)
    edges = [(i, j) for i in range(images) for j in range(i + 1, min(images, i + 1 + neighbours))]
    pairs = [matched(i, j, centers[j] - centers[i], matches, rng) for i, j in edges]
    depth = [torch.from_numpy(WALL * (1 + 0.02 * rng.normal(size=len(GRID)))).float() for _ in range(images)]
    size = torch.tensor([[512.0, 384.0]]).repeat(images, 1)
    geometry = ImageGeometry.of(size, torch.full((images,), FOCAL), depth)
    scores = score_matrix(images, [(pair.i, pair.j, len(pair.weight)) for pair in pairs])
    tree = kinematic_tree(scores, blocks=[len(GRID)] * images)
    return Scene(geometry, pairs, tree.parents(images))


def matched(i: int, j: int, shift: np.ndarray, matches: int, rng: np.random.Generator) -> AnchoredPair:
    first = rng.uniform((0, 0), (511, 383), size=(4 * matches, 2))
    second = first - FOCAL / WALL * shift + rng.normal(size=first.shape)
    inside = np.all((second >= 0) & (second <= (511, 383)), axis=1)
    sides = [anchors(xy[inside][:matches], rng) for xy in (first, second)]
    return AnchoredPair(i, j, *sides, torch.from_numpy(rng.uniform(1, 5, len(sides[0]))).float())


def anchors(xy: np.ndarray, rng: np.random.Generator) -> PixelAnchors:
    pixels = torch.from_numpy(xy).float()
    offset = torch.from_numpy(1 + 0.01 * rng.normal(size=len(xy))).float()
    return PixelAnchors(pixels, GRID.index(pixels.round().long()), offset)


@dataclass(frozen=True, eq=False)
class Timing:
    """Seconds per step of a stage, and where it ended."""

    seconds: float
    parameters: SceneParameters
    objective: Objective


def timed(scene: Scene, steps: int, objectives: Objectives, clock: Callable[[], float]) -> list[Timing]:
    parameters = scene.parameters()
    moving = [parameters.quaternion, parameters.translation, parameters.log_scale]
    result = []
    for objective, lr in zip(objectives(parameters), (0.07, 0.01)):
        start = clock()
        run_stage(parameters, objective, moving, lr=lr, niter=steps)
        result.append(Timing((clock() - start) / steps, copy.deepcopy(parameters), objective))
        moving = list(parameters.parameters())
    return result


def fast_objectives(scene: Scene) -> Objectives:
    problem = pack_problem(scene.images, scene.pairs)
    return lambda parameters: (CoarseObjective.at(problem, parameters(), COARSE), FineObjective(problem, FINE))


def plain_objectives(scene: Scene) -> Objectives:
    def coarse(state) -> Tensor:
        return plain_coarse(state, scene.images, scene.pairs, COARSE)

    def fine(state) -> Tensor:
        return plain_fine(state, scene.images, scene.pairs, FINE)

    return lambda _: (coarse, fine)


def compare(images: int, matches: int, neighbours: int, steps: int, clock: Callable[[], float]) -> None:
    scene = wall_scene(images, matches, neighbours)
    timed(scene, 2, fast_objectives(scene), clock)  # warm up
    fast = timed(scene, steps, fast_objectives(scene), clock)
    plain = timed(scene, steps, plain_objectives(scene), clock)
    for name, quick, slow in zip(("coarse", "fine"), fast, plain):
        with torch.no_grad():
            state = quick.parameters()
            apart = float(quick.objective(state) / slow.objective(state) - 1)
        print(
            f"{images:7d} {len(scene.pairs):6d} {matches:8d}  {name:7s} {1e3 * slow.seconds:10.1f} "
            f"{1e3 * quick.seconds:8.1f} {slow.seconds / quick.seconds:7.1f}x {abs(apart):12.1e}"
        )


def profile(images: int, matches: int, neighbours: int, steps: int) -> None:
    scene = wall_scene(images, matches, neighbours)
    with torch.profiler.profile() as record:
        timed(scene, steps, fast_objectives(scene), time.perf_counter)
    print(record.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=48))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[12, 40])
    parser.add_argument("--matches", type=int, default=400, help="per pair")
    parser.add_argument("--neighbours", type=int, default=8, help="pairs per image, to one side")
    parser.add_argument("--steps", type=int, default=10, help="per stage")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, {options.threads} thread(s)")
    columns = ("images", "pairs", "matches")
    print(" ".join(f"{name:>7s}" for name in columns), "  stage     plain ms  fast ms   ratio   loss apart")
    clock = time.process_time if options.threads == 1 else time.perf_counter
    for images in options.images:
        compare(images, options.matches, options.neighbours, options.steps, clock)
    if options.profile:
        profile(options.images[0], options.matches, options.neighbours, options.steps)


if __name__ == "__main__":
    main()
