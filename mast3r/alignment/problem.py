"""What is aligned and what comes out, whichever way it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dust3r.image_pairs import Edge
from mast3r.cloud_opt.config import PairCheck, SparseConfig
from mast3r.cloud_opt.observations import PairObservation
from mast3r.cloud_opt.verification import judge_pairs
from mast3r.pairs.geometry import SeenMap, estimate_camera
from mast3r.pairs.map_matching import MapMatches
from mast3r.pairs.two_view import ModelInput
from mast3r.scenes.pair_store import PairEntry, PairStore
from multiview.images import ImageTransform
from multiview.pointmaps import Pointmap
from multiview.poses import Pose
from multiview.views import ViewConstraints

OnShare: TypeAlias = "Callable[[float], None]"
"""Told the share that is done, 0..1."""

WORLD = "world"
"""Frame of aligned pointmaps."""

NO_PAIR = "No photo that it was compared with shows the same place."
"""Why an image without usable pairs failed."""


@dataclass(frozen=True, eq=False)
class AlignmentProblem:
    """What is to be aligned. Images are numbered 0..N-1.

    Attributes:
        inputs: The photos as the network saw them.
        constraints: What is known about each, in model pixels.
        edges: Unordered pairs (i, j), i < j, whose entries the store has.
        store: Where the entries are.
        seed: Seed of everything random.
        max_memory: Bytes to stay within, if bounded.
        device: Where to align; None takes the CPU.
        placed: Matches in model pixels, by pair, that take the place of those in the store.
    """

    inputs: tuple[ModelInput, ...]
    constraints: tuple[ViewConstraints, ...]
    edges: tuple[Edge, ...]
    store: PairStore
    seed: int = 0
    max_memory: int | None = None
    device: torch.device | None = None
    placed: Mapping[Edge, MapMatches] = field(default_factory=dict)

    def pair(self, edge: Edge) -> PairEntry:
        """The entry of a pair."""
        return self.store.pair(*(self.inputs[i].key for i in edge))

    def matches(self, edge: Edge) -> MapMatches:
        """The matches of a pair, in model pixels."""
        if edge in self.placed:
            return self.placed[edge]
        return self.store.matches(*(self.inputs[i].key for i in edge))


@dataclass(frozen=True, eq=False)
class AlignedView:
    """Where a photo was taken, or why that is unknown.

    Attributes:
        reason: Why it failed, one sentence; empty if it did not.
        K: (3, 3) intrinsics in MODEL pixels.
        pose: world_from_cam.
        component: Number of its connected component; each has its own world.
        pointmap: Points in the world.
    """

    reason: str = ""
    K: np.ndarray | None = None
    pose: Pose | None = None
    component: int = 0
    pointmap: Pointmap | None = None


@dataclass(frozen=True, eq=False)
class Alignment:
    """The outcome.

    Attributes:
        views: One per image.
        losses: What the optimisation ended with, by name.
    """

    views: tuple[AlignedView, ...]
    losses: Mapping[str, float] = field(default_factory=dict)


def pair_observation(edge: Edge, matches: MapMatches) -> PairObservation:
    """The matches of a pair as sparse alignment takes them."""
    return PairObservation(*edge, matches.xy0, matches.xy1, matches.confidence)


def verified_edges(problem: AlignmentProblem) -> list[Edge]:
    """The pairs enough of whose matches agree with one motion of the camera."""
    sizes = [image.size for image in problem.inputs]
    pairs = [pair_observation(edge, problem.matches(edge)) for edge in problem.edges]
    verdicts = judge_pairs(
        pairs,
        sizes,
        rough_intrinsics(problem),
        min_matches=SparseConfig().min_matches,
        check=PairCheck(seed=problem.seed),
    )
    return [edge for edge, verdict in zip(problem.edges, verdicts) if verdict.usable]


def rough_intrinsics(problem: AlignmentProblem) -> np.ndarray:
    """(N, 3, 3) intrinsics in model pixels: those known, else what one pair's pointmap of the image says."""
    known = {k: c.K.value for k, c in enumerate(problem.constraints) if c.K is not None}
    for edge in problem.edges:
        if all(image in known for image in edge):
            continue
        entry = problem.pair(edge)
        for image, maps in zip(edge, (entry.forward, entry.backward)):
            own = Pointmap(maps.points_first, maps.confidence_first, "camera")
            known.setdefault(image, estimate_camera(SeenMap(own, ImageTransform.identity(own.size))).K)
    return np.stack([known.get(k, np.eye(3)) for k in range(len(problem.inputs))])


def components(count: int, edges: Sequence[Edge]) -> list[tuple[int, ...]]:
    """Groups of at least two images that pairs connect, the largest first."""
    i, j = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(i), dtype=np.int8), (i, j)), shape=(count, count))
    total, label = connected_components(graph, directed=False)
    groups = [tuple(np.flatnonzero(label == k).tolist()) for k in range(total)]
    return sorted((group for group in groups if len(group) > 1), key=lambda group: (-len(group), group))
