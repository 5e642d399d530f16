"""Alignment by matches and anchored depth (MASt3R-SfM)."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mast3r.alignment.problem import (
    NO_PAIR,
    WORLD,
    AlignedView,
    Alignment,
    AlignmentProblem,
    OnShare,
    pair_observation,
)
from mast3r.cloud_opt.alignment import SparseAlignment, align_sparse
from mast3r.cloud_opt.config import PairCheck, SparseConfig
from mast3r.cloud_opt.observations import ViewObservation
from multiview.pointmaps import Pointmap
from multiview.poses import Pose


def align_sparsely(
    problem: AlignmentProblem, config: SparseConfig | None = None, *, on_share: OnShare | None = None
) -> Alignment:
    """Align by matches and anchored depth (MASt3R-SfM); pointmaps are read one pair at a time.

    Args:
        problem: What is to be aligned.
        config: Settings; default `SparseConfig()`.
        on_share: Told the share that is done.
    """
    pairs = [pair_observation(edge, problem.matches(edge)) for edge in problem.edges]
    found = align_sparse(
        _view_observations(problem),
        pairs,
        [image.size for image in problem.inputs],
        constraints=problem.constraints,
        config=config or SparseConfig(check=PairCheck(seed=problem.seed)),
        on_step=None if on_share is None else lambda share, _: on_share(share),
        device=problem.device or torch.device("cpu"),
    )
    views = tuple(_sparse_view(found, i) for i in range(len(problem.inputs)))
    return Alignment(views, dict(found.losses))


def _view_observations(problem: AlignmentProblem) -> Iterator[ViewObservation]:
    """What each pair says about each of its photos, read when asked for."""
    for i, j in problem.edges:
        entry = problem.pair((i, j))
        for image, partner, maps in ((i, j, entry.forward), (j, i, entry.backward)):
            yield ViewObservation(
                image,
                partner,
                maps.points_first,
                maps.confidence_first,
                maps.points_second,
                maps.confidence_second,
            )


def _sparse_view(found: SparseAlignment, image: int) -> AlignedView:
    if found.status[image] == "failed":
        return AlignedView(found.reason[image] or NO_PAIR)
    dense = found.dense(image)
    pointmap = None if dense is None else Pointmap(dense.points, dense.confidence, WORLD)
    pose = Pose(found.world_from_cam[image])
    return AlignedView("", found.K[image], pose, int(found.component[image]), pointmap)
