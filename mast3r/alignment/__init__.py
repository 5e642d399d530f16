"""From the entries of pairs to cameras and points of all photos: three ways behind one form.

"sparse": MASt3R-SfM's alignment of matches and anchored depth, the default (`mast3r.cloud_opt`). "dense": DUSt3R's
alignment of whole pointmaps (`dust3r.cloud_opt`), whose memory grows with the pairs. "colmap": COLMAP's incremental
mapper on the matches (`multiview.colmap`, needs pycolmap).
"""

from __future__ import annotations

from typing import Literal, get_args

from mast3r.alignment.by_colmap import align_by_colmap
from mast3r.alignment.dense import align_densely
from mast3r.alignment.problem import AlignedView, Alignment, AlignmentProblem, OnShare
from mast3r.alignment.sparse import align_sparsely
from mast3r.cloud_opt.config import SparseConfig

__all__ = ["AlignedView", "Alignment", "AlignmentName", "AlignmentProblem", "align"]

AlignmentName = Literal["sparse", "dense", "colmap"]


def align(
    problem: AlignmentProblem,
    way: AlignmentName = "sparse",
    *,
    sparse: SparseConfig | None = None,
    on_share: OnShare | None = None,
) -> Alignment:
    """Align in one of the three ways.

    Args:
        problem: What is to be aligned.
        way: "sparse", "dense" or "colmap", see the module.
        sparse: Settings of the sparse alignment.
        on_share: Told the share that is done.

    Raises:
        ValueError: If the way is unknown or does not support the constraints.
    """
    if way == "sparse":
        return align_sparsely(problem, sparse, on_share=on_share)
    if way == "dense":
        return align_densely(problem, on_share=on_share)
    if way == "colmap":
        return align_by_colmap(problem)
    raise ValueError(f"alignment must be one of {get_args(AlignmentName)}, got {way!r}.")
