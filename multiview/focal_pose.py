"""Pose and focal length of a camera from 2-D to 3-D matches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from multiview.cameras import Camera
from multiview.poses import Pose
from multiview.robust import estimate_absolute_pose

FOCAL_RANGE = (0.35, 4.0)
"""Focal lengths that are tried, in units of the longer side: fields of view from 110 to 14 degrees."""

_TRIALS = 15
_TRIAL_POINTS = 1500
_TRIAL_ROUNDS = 1000
_REFINE_POINTS = 4000
_MIN_POINTS = 6


@dataclass(frozen=True, eq=False)
class FocalPose:
    """A camera placed in the world.

    Attributes:
        pose: world_from_cam; the identity if not `success`.
        camera: Intrinsics; the longer side under 60 degrees if not `success`.
        inliers: (N,) bool.
        success: False for too few, degenerate or contradictory matches.
    """

    pose: Pose
    camera: Camera
    inliers: np.ndarray
    success: bool


def estimate_pose_and_focal(
    xy: np.ndarray,
    points: np.ndarray,
    size: tuple[int, int],
    *,
    guess: float | None = None,
    threshold_px: float = 5.0,
    seed: int = 0,
) -> FocalPose:
    """Pose and focal length of a camera with square pixels and centred principal point.

    RANSAC is tried with focal lengths over `FOCAL_RANGE`; the one with the smallest truncated error is refined
    together with the pose.

    Args:
        xy: (N, 2) pixels.
        points: (N, 3) points in the world.
        size: (width, height) of the image.
        guess: A focal length in pixels that is tried as well.
        threshold_px: Largest reprojection error of an inlier, in pixels.
        seed: Seed of the sampling.

    Raises:
        ValueError: If array shapes are wrong.
    """
    xy, points = np.asarray(xy, dtype=np.float64), np.asarray(points, dtype=np.float64)
    failed = FocalPose(
        Pose.identity(), Camera.from_focal(max(size) * 3**0.5 / 2, *size), np.zeros(len(xy), bool), False
    )
    finite = np.flatnonzero(np.isfinite(np.column_stack([xy, points])).all(axis=1))
    if len(finite) < _MIN_POINTS:
        return failed
    rng = np.random.default_rng(seed)
    few = rng.permutation(finite)[:_TRIAL_POINTS]
    focals = [*np.geomspace(*FOCAL_RANGE, _TRIALS) * max(size), *([] if guess is None else [guess])]
    trials = [_trial(xy[few], points[few], Camera.from_focal(f, *size), threshold_px, seed) for f in focals]
    error, start, camera = min(trials, key=lambda trial: trial[0])
    if not np.isfinite(error):
        return failed
    for _ in range(2):  # the first refinement brings more points within the threshold
        inliers = reprojection_errors(xy, points, start, camera) < threshold_px
        if inliers.sum() < _MIN_POINTS:
            return failed
        chosen = rng.permutation(np.flatnonzero(inliers))[:_REFINE_POINTS]
        start, camera = _refined(xy[chosen], points[chosen], start, camera, threshold_px)
    inliers = reprojection_errors(xy, points, start, camera) < threshold_px
    return FocalPose(start, camera, inliers, True)


def reprojection_errors(xy: np.ndarray, points: np.ndarray, pose: Pose, camera: Camera) -> np.ndarray:
    """(N,) distances in pixels between `xy` and where `points` are seen; infinite behind the camera."""
    error = np.linalg.norm(camera.project(pose.inverse().apply(points)) - xy, axis=1)
    return np.where(np.isfinite(error), error, np.inf)


def _trial(
    xy: np.ndarray, points: np.ndarray, camera: Camera, threshold_px: float, seed: int
) -> tuple[float, Pose, Camera]:
    """Mean truncated error of the best pose with this camera, in units of the threshold."""
    found = estimate_absolute_pose(
        xy, points, camera.K, threshold_px=threshold_px, seed=seed, max_iterations=_TRIAL_ROUNDS
    )
    if not found.success:
        return np.inf, found.pose, camera
    error = reprojection_errors(xy, points, found.pose, camera) / threshold_px
    return float(np.minimum(error, 1.0).mean()), found.pose, camera


def _refined(
    xy: np.ndarray, points: np.ndarray, pose: Pose, camera: Camera, threshold_px: float
) -> tuple[Pose, Camera]:
    """Least squares over rotation, translation and focal length, robust beyond half the threshold."""
    from scipy.optimize import least_squares  # here: importing multiview must not need scipy
    from scipy.spatial.transform import Rotation

    start, center = pose.cam_from_world, np.array(camera.principal_point)

    def moved(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        R = Rotation.from_rotvec(parameters[:3]).as_matrix() @ start[:3, :3]
        return R, start[:3, 3] + parameters[3:6]

    def residuals(parameters: np.ndarray) -> np.ndarray:
        R, t = moved(parameters)
        seen = points @ R.T + t
        depth = np.maximum(seen[:, 2:], 1e-6)
        focal = camera.focal[0] * np.exp(parameters[6])
        return (focal * seen[:, :2] / depth + center - xy).ravel()

    found = least_squares(residuals, np.zeros(7), loss="soft_l1", f_scale=threshold_px / 2, max_nfev=50)
    R, t = moved(found.x)
    focal = camera.focal[0] * float(np.exp(found.x[6]))
    return Pose.from_cam_from_world(R, t), Camera.from_focal(focal, camera.width, camera.height)
