"""Settings of sparse alignment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from dust3r.cloud_opt.commons import ScheduleName, learning_rate
from mast3r.cloud_opt.canonical import RelativeDepth
from mast3r.cloud_opt.kinematics import KinematicMode
from mast3r.cloud_opt.utils.losses import GammaLoss

DepthMode = Literal["add", "mul"]
Initialization = Literal["best", "registration", "common_point"]


@dataclass(frozen=True)
class Stage:
    """One run of Adam.

    Attributes:
        lr: First learning rate; it falls to zero.
        niter: Number of steps; 0 leaves the stage out.
        loss: Cost of a distance.
    """

    lr: float
    niter: int
    loss: GammaLoss

    def __post_init__(self) -> None:
        if not self.lr > 0 or self.niter < 0:
            raise ValueError(f"A stage needs lr > 0 and niter >= 0, got {self.lr} and {self.niter}.")


@dataclass(frozen=True)
class PairCheck:
    """When the matches of a pair count as wrong: no rigid motion explains enough of them.

    Attributes:
        threshold: Largest epipolar distance of a good match, as a share of the longer image side.
        min_inliers: Fewest good matches of a usable pair.
        min_share: Smallest share of good matches of a usable pair, 0..1; unrelated images reach 0.1.
        drop_outliers: Leave out the other matches of a usable pair too.
        seed: Seed of the sampling.
    """

    threshold: float = 0.01
    min_inliers: int = 15
    min_share: float = 0.2
    drop_outliers: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.threshold > 0 and self.min_inliers >= 0 and 0 <= self.min_share <= 1):
            raise ValueError(
                "PairCheck needs threshold > 0, min_inliers >= 0 and min_share in 0..1, got "
                f"{self.threshold}, {self.min_inliers} and {self.min_share}."
            )


@dataclass(frozen=True)
class SparseConfig:
    """How images are aligned.

    Attributes:
        subsample: Side in pixels of the blocks that share one depth.
        relative_depth: How depth inside a block is averaged over pairs.
        fit_center: False puts principal points at (W / 2, H / 2), as the official code does. True puts them in
            the middle of the pixels, ((W - 1) / 2, (H - 1) / 2), unless the pointmap clearly tells another one.
        kinematic_mode: Spanning tree along which cameras are chained.
        initialization: `registration` places image after image onto the points of those before it; `best` also
            averages the relative motions of pairs (`motion_guess`) and takes what the matches agree with more;
            `common_point` lets all cameras look at one point, as the official code does, and leaves the rest to
            the coarse stage.
        search_focals: Start with the focal length that fits the matches of all pairs best, one for all images of
            a size (`focal_search`); False starts with those of the pointmaps.
        focal_weight: How firmly images are held to that focal length while they are refined, as `Known.weight`.
        coarse: First stage: poses and scales, distances between matched 3D points. Left out where the cameras
            come from relative motions: it would lay them by the predicted depth again.
        fine: Second stage: also intrinsics and depth, reprojection errors in pixels.
        schedule: Fall of the learning rate, `cosine` or `linear`.
        opt_focal: Refine focals that are not fixed.
        opt_pp: Refine principal points that are not fixed. Few scenes tell them apart from a rotation.
        opt_depth: Refine the depth of the anchors.
        shared_intrinsics: One focal and one relative principal point for all images that have no K.
        depth_mode: Refined depth adds to the image's scale (`add`) or multiplies it (`mul`).
        exp_depth: Refine the logarithm of the depth.
        matching_conf_thr: Pairs whose best match is not above this confidence contribute the network's points
            of one image seen from the other in place of matches.
        fallback_weight: Weight of those.
        fallback_loss: Cost of a distance there.
        check: When to leave out a pair; None trusts all pairs.
        min_matches: Fewest matches of a usable pair.
        dtype: Precision of the optimisation.

    Raises:
        ValueError: If a value is out of its range.
    """

    subsample: int = 8
    relative_depth: RelativeDepth = "avg-angle"
    fit_center: bool = True
    kinematic_mode: KinematicMode = "hclust-ward"
    initialization: Initialization = "best"
    search_focals: bool = True
    focal_weight: float = 3.0
    coarse: Stage = field(default_factory=lambda: Stage(0.02, 100, GammaLoss(1.5)))
    fine: Stage = field(default_factory=lambda: Stage(0.003, 200, GammaLoss(0.5)))
    schedule: ScheduleName = "cosine"
    opt_focal: bool = True
    opt_pp: bool = False
    opt_depth: bool = True
    shared_intrinsics: bool = False
    depth_mode: DepthMode = "add"
    exp_depth: bool = False
    matching_conf_thr: float = 0.0
    fallback_weight: float = 0.01
    fallback_loss: GammaLoss = field(default_factory=lambda: GammaLoss(1.1))
    check: PairCheck | None = field(default_factory=PairCheck)
    min_matches: int = 8
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.subsample < 1 or self.min_matches < 1:
            raise ValueError(
                f"subsample and min_matches must be at least 1, got {self.subsample} and {self.min_matches}."
            )
        if self.depth_mode not in get_args(DepthMode):
            raise ValueError(f"depth_mode must be 'add' or 'mul', got {self.depth_mode!r}.")
        if self.initialization not in get_args(Initialization):
            raise ValueError(f"initialization must be one of {get_args(Initialization)}, got {self.initialization!r}.")
        learning_rate(self.schedule, 0.0, 1.0, 0.0)
