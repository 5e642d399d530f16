"""Which pairs to trust: matches between images of different places agree with no rigid motion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mast3r.cloud_opt.config import PairCheck
from mast3r.cloud_opt.observations import MapSize, PairObservation
from multiview.metrics import epipolar_errors, warp_points
from multiview.poses import Pose
from multiview.robust import estimate_homography, estimate_relative_pose

_MAX_SAMPLE = 300  # matches: more make the estimate no surer, only slower
_MAX_ROUNDS = 2000


@dataclass(frozen=True, eq=False)
class PairVerdict:
    """Whether a pair is used.

    Attributes:
        usable: Whether the pair links its images.
        inliers: (M,) bool, matches that agree with one rigid motion; all if none was looked for.
        reason: Why the pair is not used; "" if it is.
    """

    usable: bool
    inliers: np.ndarray
    reason: str = ""


def judge_pairs(
    pairs: Sequence[PairObservation],
    sizes: Sequence[MapSize],
    K: np.ndarray,
    *,
    min_matches: int,
    check: PairCheck | None,
) -> list[PairVerdict]:
    """Decide which pairs are used.

    Args:
        pairs: Matches in model pixels.
        sizes: (W, H) of each image.
        K: (N, 3, 3) approximate intrinsics in model pixels.
        min_matches: Fewest matches of a usable pair.
        check: When matches count as wrong; None trusts all.
    """
    verdicts = []
    for pair in pairs:
        everything = np.ones(len(pair), dtype=bool)
        if len(pair) < min_matches:
            verdicts.append(PairVerdict(False, everything, f"only {len(pair)} matches"))
        elif check is None:
            verdicts.append(PairVerdict(True, everything))
        else:
            threshold = check.threshold * max(*sizes[pair.i], *sizes[pair.j])
            verdicts.append(_judge(pair, K[pair.i], K[pair.j], threshold, check))
    return verdicts


def _judge(pair: PairObservation, K_i: np.ndarray, K_j: np.ndarray, threshold: float, check: PairCheck) -> PairVerdict:
    inliers = consistent_matches(pair.xy_i, pair.xy_j, K_i, K_j, threshold_px=threshold, seed=check.seed)
    count = int(inliers.sum())
    if count < max(check.min_inliers, check.min_share * len(pair)):
        return PairVerdict(False, inliers, f"only {count} of {len(pair)} matches agree with one camera motion")
    return PairVerdict(True, inliers)


def consistent_matches(
    xy0: np.ndarray, xy1: np.ndarray, K0: np.ndarray, K1: np.ndarray, *, threshold_px: float, seed: int = 0
) -> np.ndarray:
    """Matches that agree with one motion of the camera.

    Args:
        xy0: (M, 2) pixels of image 0.
        xy1: (M, 2) pixels of image 1.
        K0: (3, 3) approximate intrinsics of image 0.
        K1: (3, 3) approximate intrinsics of image 1.
        threshold_px: Largest distance of a good match from its epipolar line (Sampson), in pixels.
        seed: Seed of the sampling.

    Returns:
        (M,) bool.
    """
    chosen = np.random.default_rng(seed).permutation(len(xy0))[:_MAX_SAMPLE]
    sample0, sample1 = xy0[chosen], xy1[chosen]
    options = {"threshold_px": threshold_px, "seed": seed, "max_iterations": _MAX_ROUNDS}
    motion = estimate_relative_pose(sample0, sample1, K0, K1, **options)
    if motion.success:
        moved = Pose.from_rt(motion.R, motion.t).world_from_cam
        # Half the root of the two squared distances is the Sampson distance where both are alike.
        focal = np.sqrt(K0[0, 0] * K1[0, 0])
        return focal * np.sqrt(epipolar_errors(xy0, xy1, K0, K1, moved)) / 2 <= threshold_px
    # A pure rotation leaves the motion open, but still proves that the images show one thing.
    plane = estimate_homography(sample0, sample1, **options)
    if not plane.success:
        return np.zeros(len(xy0), dtype=bool)
    return np.linalg.norm(warp_points(plane.H, xy0) - xy1, axis=1) <= threshold_px
