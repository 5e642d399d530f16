"""Relative pose, homography, fundamental matrix and absolute pose from matches with outliers (PoseLib's LO-RANSAC).

All estimators are deterministic for a given seed. Useless matches never raise, they give `success=False`. What
counts as a solution is the caller's choice (`Acceptance`):

* "beats_chance", for users: a solution needs more inliers than RANSAC finds among unrelated points, from matches
  that determine it. A few right matches among many wrong ones are given up with the wrong ones.
* "any", for benchmarks: PoseLib is taken at its word, as in the published protocols, where a wrong model costs no
  more than none and a right one counts however few matches carry it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from multiview.cameras import check_intrinsics
from multiview.metrics import essential_matrix
from multiview.poses import Pose

MAX_ITERATIONS = 10_000
_CONFIDENCE = 0.9999
_MIN_SPREAD = 1e-3  # smaller spread across a line than this share of the spread along it counts as collinear
_SURE_SHARE = 0.8  # so many inliers among few matches cannot be chance
_MIN_PARALLAX = 0.1  # of the threshold: below it the direction of translation is noise


Acceptance = Literal["beats_chance", "any"]
"""What counts as a solution; see the module."""


@dataclass(frozen=True)
class _Chance:
    """A model fitted to N unrelated matches has fewer than `base + share * N` inliers (with margin).

    It takes `solvable` matches to solve for a model, and `minimum` to believe it: one more where the solution is
    ambiguous.
    """

    solvable: int
    minimum: int
    base: int
    share: float


# A match agrees with a random epipolar line far more often than with a random point.
_POSE_CHANCE = _Chance(solvable=5, minimum=6, base=10, share=0.02)
_FUNDAMENTAL_CHANCE = _Chance(solvable=7, minimum=8, base=12, share=0.02)
_POINT_CHANCE = _Chance(solvable=4, minimum=4, base=8, share=0.005)


@dataclass(frozen=True, eq=False)
class RelativePose:
    """Pose of camera 1 relative to camera 0: `x_cam1 = R x_cam0 + s t` with unknown scale s > 0.

    Attributes:
        R: (3, 3) float64 rotation, camera 1 from camera 0.
        t: (3,) float64 unit vector; zero if not `success`.
        inliers: (N,) bool.
        success: False for too few, degenerate or contradictory matches; R is then the identity.
    """

    R: np.ndarray
    t: np.ndarray
    inliers: np.ndarray
    success: bool

    @property
    def pose1(self) -> Pose:
        """Pose of camera 1 in camera 0's frame; the baseline has length 1."""
        return Pose.from_cam_from_world(self.R, self.t)


@dataclass(frozen=True, eq=False)
class Homography:
    """Homography between two images.

    Attributes:
        H: (3, 3) float64, homogeneous pixel of image 0 -> pixel of image 1, H[2, 2] = 1.
        inliers: (N,) bool.
        success: False for too few or degenerate matches; H is then the identity.
    """

    H: np.ndarray
    inliers: np.ndarray
    success: bool


@dataclass(frozen=True, eq=False)
class Fundamental:
    """Fundamental matrix of two images: `x1^T F x0 = 0` for homogeneous pixels of a match.

    Attributes:
        F: (3, 3) float64; zero if not `success`.
        inliers: (N,) bool.
        success: False for too few or degenerate matches.
    """

    F: np.ndarray
    inliers: np.ndarray
    success: bool


@dataclass(frozen=True, eq=False)
class AbsolutePose:
    """Pose of a camera from 2-D to 3-D matches.

    Attributes:
        pose: `world_from_cam`, in the frame of the 3-D points; the identity if not `success`.
        inliers: (N,) bool.
        success: False for too few or degenerate matches.
    """

    pose: Pose
    inliers: np.ndarray
    success: bool


def estimate_relative_pose(
    xy0: np.ndarray,
    xy1: np.ndarray,
    K0: np.ndarray,
    K1: np.ndarray,
    *,
    threshold_px: float = 1.0,
    seed: int = 0,
    max_iterations: int = MAX_ITERATIONS,
    accept: Acceptance = "beats_chance",
) -> RelativePose:
    """Relative pose of two calibrated cameras (five-point LO-RANSAC and refinement on the inliers).

    Args:
        xy0: (N, 2) pixels in image 0.
        xy1: (N, 2) pixels in image 1.
        K0: (3, 3) intrinsics of image 0 in the same pixels.
        K1: (3, 3) intrinsics of image 1.
        threshold_px: Largest epipolar (Sampson) distance of an inlier, in pixels.
        seed: Seed of the sampling.
        max_iterations: Bound of RANSAC rounds.
        accept: What counts as a solution; see the module.

    Returns:
        The pose. `success` is False with fewer than 6 usable and distinct matches, matches on one line, no
        more inliers than by chance, or no parallax beyond a pure rotation (then t is unobservable); with
        accept="any" only with fewer than 5 matches or inliers.

    Raises:
        ValueError: If array shapes or intrinsics are wrong, or the acceptance is unknown.
    """
    xy0, xy1, usable = _correspondences(xy0, 2, xy1, 2)
    K0, K1 = check_intrinsics(K0), check_intrinsics(K1)
    failed = RelativePose(np.eye(3), np.zeros(3), np.zeros(len(usable), bool), False)
    points0, points1 = xy0[usable], xy1[usable]
    if not _solvable(points0, points1, _POSE_CHANCE, accept):
        return failed
    options = _ransac_options(seed, max_iterations) | {"max_epipolar_error": float(threshold_px)}
    pose, info = _poselib().estimate_relative_pose(points0, points1, _camera(K0), _camera(K1), options, {})
    inliers = _spread_mask(info, usable)
    R, t = np.asarray(pose.R), np.asarray(pose.t)
    norm = np.linalg.norm(t)
    if not _accepted(inliers, usable, _POSE_CHANCE, accept) or not np.isfinite(R).all() or not norm > 0:
        return failed
    parallax = np.inf if accept == "any" else _median_parallax(xy0[inliers], xy1[inliers], K0, K1, R)
    if parallax < _MIN_PARALLAX * threshold_px:
        return failed
    return RelativePose(R, t / norm, inliers, True)


def estimate_homography(
    xy0: np.ndarray,
    xy1: np.ndarray,
    *,
    threshold_px: float = 3.0,
    seed: int = 0,
    max_iterations: int = MAX_ITERATIONS,
    accept: Acceptance = "beats_chance",
) -> Homography:
    """Homography between two images (four-point LO-RANSAC and refinement on the inliers).

    Args:
        xy0: (N, 2) pixels in image 0.
        xy1: (N, 2) pixels in image 1.
        threshold_px: Largest transfer error of an inlier, in pixels.
        seed: Seed of the sampling.
        max_iterations: Bound of RANSAC rounds.
        accept: What counts as a solution; see the module.

    Returns:
        The homography; `success` is False with fewer than 4 distinct matches, matches on one line, or no
        more inliers than by chance.

    Raises:
        ValueError: If array shapes are wrong or the acceptance is unknown.
    """
    xy0, xy1, usable = _correspondences(xy0, 2, xy1, 2)
    failed = Homography(np.eye(3), np.zeros(len(usable), bool), False)
    points0, points1 = xy0[usable], xy1[usable]
    if not _solvable(points0, points1, _POINT_CHANCE, accept):
        return failed
    options = _ransac_options(seed, max_iterations) | {"max_reproj_error": float(threshold_px)}
    H, info = _poselib().estimate_homography(points0, points1, options, {})
    H, inliers = np.asarray(H), _spread_mask(info, usable)
    if not _accepted(inliers, usable, _POINT_CHANCE, accept) or not np.isfinite(H).all():
        return failed
    if abs(H[2, 2]) < 1e-12 or abs(np.linalg.det(H)) < 1e-12:
        return failed
    return Homography(H / H[2, 2], inliers, True)


def estimate_fundamental(
    xy0: np.ndarray,
    xy1: np.ndarray,
    *,
    threshold_px: float = 1.0,
    seed: int = 0,
    max_iterations: int = MAX_ITERATIONS,
    best_first: bool = False,
    accept: Acceptance = "beats_chance",
) -> Fundamental:
    """Fundamental matrix of two images (seven-point LO-RANSAC and refinement on the inliers).

    Args:
        xy0: (N, 2) pixels in image 0.
        xy1: (N, 2) pixels in image 1.
        threshold_px: Largest epipolar (Sampson) distance of an inlier, in pixels.
        seed: Seed of the sampling.
        max_iterations: Bound of RANSAC rounds.
        best_first: The matches come in the order of their quality; the first ones are sampled first (PROSAC).
        accept: What counts as a solution; see the module.

    Returns:
        The matrix; `success` is False with fewer than 8 distinct matches, matches on one line, or no more
        inliers than by chance. Matches of a plane are not noticed, though they do not determine it.

    Raises:
        ValueError: If array shapes are wrong or the acceptance is unknown.
    """
    solve = _poselib().estimate_fundamental
    options = _epipolar_options(seed, max_iterations, threshold_px, best_first)
    return _fundamental(xy0, xy1, lambda a, b: solve(a, b, options, {}), accept)


def estimate_shared_focal_fundamental(
    xy0: np.ndarray,
    xy1: np.ndarray,
    principal_point: tuple[float, float],
    *,
    threshold_px: float = 1.0,
    seed: int = 0,
    max_iterations: int = MAX_ITERATIONS,
    best_first: bool = False,
    accept: Acceptance = "beats_chance",
) -> Fundamental:
    """Fundamental matrix of two images of one camera with unknown focal length (six-point LO-RANSAC).

    It has one freedom less than that of any two images, and is found among more wrong matches.

    Args:
        xy0: (N, 2) pixels in image 0.
        xy1: (N, 2) pixels in image 1.
        principal_point: Pixel (x, y) where the optical axis meets both images.
        threshold_px: Largest epipolar (Sampson) distance of an inlier, in pixels.
        seed: Seed of the sampling.
        max_iterations: Bound of RANSAC rounds.
        best_first: The matches come in the order of their quality; the first ones are sampled first (PROSAC).
        accept: What counts as a solution; see the module.

    Returns:
        The matrix; `success` is False as in `estimate_fundamental`.

    Raises:
        ValueError: If array shapes are wrong or the acceptance is unknown.
    """
    centre = np.array(principal_point, dtype=np.float64)
    options = _epipolar_options(seed, max_iterations, threshold_px, best_first)

    def solve(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        pair, info = _poselib().estimate_shared_focal_relative_pose(a, b, centre, options, {})
        focal = float(pair.camera1.focal())
        if not (np.isfinite(focal) and focal > 0):
            return np.zeros((3, 3)), info
        rays = np.array([[1 / focal, 0, -centre[0] / focal], [0, 1 / focal, -centre[1] / focal], [0, 0, 1]])
        return rays.T @ essential_matrix(pair.pose.Rt) @ rays, info

    return _fundamental(xy0, xy1, solve, accept)


def _fundamental(
    xy0: np.ndarray,
    xy1: np.ndarray,
    solve: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, dict[str, Any]]],
    accept: Acceptance,
) -> Fundamental:
    """What a RANSAC of PoseLib says of usable matches, if it counts as a solution; zeros are none."""
    xy0, xy1, usable = _correspondences(xy0, 2, xy1, 2)
    failed = Fundamental(np.zeros((3, 3)), np.zeros(len(usable), bool), False)
    points0, points1 = xy0[usable], xy1[usable]
    if not _solvable(points0, points1, _FUNDAMENTAL_CHANCE, accept):
        return failed
    F, info = solve(points0, points1)
    F, inliers = np.asarray(F, dtype=np.float64), _spread_mask(info, usable)
    if not _accepted(inliers, usable, _FUNDAMENTAL_CHANCE, accept) or not np.isfinite(F).all() or not F.any():
        return failed
    return Fundamental(F, inliers, True)


def estimate_absolute_pose(
    xy: np.ndarray,
    points: np.ndarray,
    K: np.ndarray,
    *,
    threshold_px: float = 5.0,
    seed: int = 0,
    max_iterations: int = MAX_ITERATIONS,
    accept: Acceptance = "beats_chance",
) -> AbsolutePose:
    """Camera pose from 2-D to 3-D matches (P3P LO-RANSAC and refinement on the inliers).

    Args:
        xy: (N, 2) pixels.
        points: (N, 3) points in the world.
        K: (3, 3) intrinsics in the same pixels.
        threshold_px: Largest reprojection error of an inlier, in pixels.
        seed: Seed of the sampling.
        max_iterations: Bound of RANSAC rounds.
        accept: What counts as a solution; see the module.

    Returns:
        The pose; `success` is False with fewer than 4 distinct matches, points on one line, or no more
        inliers than by chance.

    Raises:
        ValueError: If array shapes or intrinsics are wrong, or the acceptance is unknown.
    """
    xy, points, usable = _correspondences(xy, 2, points, 3)
    K = check_intrinsics(K)
    failed = AbsolutePose(Pose.identity(), np.zeros(len(usable), bool), False)
    pixels, targets = xy[usable], points[usable]
    if not _solvable(pixels, targets, _POINT_CHANCE, accept):
        return failed
    options = _ransac_options(seed, max_iterations) | {"max_reproj_error": float(threshold_px)}
    pose, info = _poselib().estimate_absolute_pose(pixels, targets, _camera(K), options, {})
    inliers = _spread_mask(info, usable)
    R, t = np.asarray(pose.R), np.asarray(pose.t)
    if not _accepted(inliers, usable, _POINT_CHANCE, accept) or not (np.isfinite(R).all() and np.isfinite(t).all()):
        return failed
    return AbsolutePose(Pose.from_cam_from_world(R, t), inliers, True)


def _poselib() -> Any:
    import poselib  # here: importing multiview must stay quick

    return poselib


def _ransac_options(seed: int, max_iterations: int) -> dict[str, Any]:
    return {
        "seed": int(seed),
        "max_iterations": int(max_iterations),
        "min_iterations": min(1000, int(max_iterations)),
        "success_prob": _CONFIDENCE,
    }


def _epipolar_options(seed: int, max_iterations: int, threshold_px: float, best_first: bool) -> dict[str, Any]:
    fewer = {"min_iterations": min(200, max_iterations), "progressive_sampling": True} if best_first else {}
    return _ransac_options(seed, max_iterations) | {"max_epipolar_error": float(threshold_px)} | fewer


def _camera(K: np.ndarray) -> dict[str, Any]:
    """PoseLib's form of a pinhole camera; it does not use the image size."""
    size = {"width": int(2 * K[0, 2]) + 1, "height": int(2 * K[1, 2]) + 1}
    return {"model": "PINHOLE", **size, "params": [K[0, 0], K[1, 1], K[0, 2], K[1, 2]]}


def _correspondences(
    a: np.ndarray, width_a: int, b: np.ndarray, width_b: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Float64 copies and the (N,) mask of finite rows."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    a = a.reshape(0, width_a) if a.size == 0 else a
    b = b.reshape(0, width_b) if b.size == 0 else b
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != width_a or b.shape[1] != width_b or len(a) != len(b):
        raise ValueError(f"Expected matches (N, {width_a}) and (N, {width_b}), got {a.shape} and {b.shape}.")
    return a, b, np.asarray(np.isfinite(np.concatenate([a, b], axis=1)).all(axis=1))


def _solvable(a: np.ndarray, b: np.ndarray, chance: _Chance, accept: Acceptance) -> bool:
    """Whether there are matches enough to try."""
    if accept not in get_args(Acceptance):
        raise ValueError(f"accept must be one of {get_args(Acceptance)}, got {accept!r}.")
    if accept == "any":
        return len(a) >= chance.solvable
    return _distinct(a, b) >= chance.minimum and not _collinear(a) and not _collinear(b)


def _distinct(a: np.ndarray, b: np.ndarray) -> int:
    """Number of matches that differ in both images."""
    if not len(a):
        return 0
    return min(len(np.unique(a, axis=0)), len(np.unique(b, axis=0)))


def _collinear(points: np.ndarray) -> bool:
    """Whether all points lie on one line (or coincide)."""
    spread = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    return bool(spread[1] <= _MIN_SPREAD * spread[0])


def _spread_mask(info: dict[str, Any], usable: np.ndarray) -> np.ndarray:
    """PoseLib's inliers among the usable rows, as a mask over all rows."""
    inliers = np.zeros(len(usable), dtype=bool)
    found = np.asarray(info["inliers"], dtype=bool)
    if len(found) == usable.sum():
        inliers[usable] = found
    return inliers


def _accepted(inliers: np.ndarray, usable: np.ndarray, chance: _Chance, accept: Acceptance) -> bool:
    """Whether a solution counts: if it beats chance, has more inliers than unrelated matches would give it."""
    count, total = int(inliers.sum()), int(usable.sum())
    if accept == "any":
        return count >= chance.solvable
    if count < chance.minimum:
        return False
    return count >= _SURE_SHARE * total or count >= chance.base + chance.share * total


def _median_parallax(xy0: np.ndarray, xy1: np.ndarray, K0: np.ndarray, K1: np.ndarray, R: np.ndarray) -> float:
    """Median distance in pixels between the points of image 1 and those of image 0 after rotation alone."""
    rays = np.concatenate([xy0, np.ones((len(xy0), 1))], axis=1) @ np.linalg.inv(K0).T
    rotated = rays @ R.T @ K1.T
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = rotated[:, :2] / rotated[:, 2:]
    moved[rotated[:, 2] <= 0] = np.inf
    return float(np.median(np.linalg.norm(moved - xy1, axis=1)))
