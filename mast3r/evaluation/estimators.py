"""The estimators of the benchmarks: PoseLib's LO-RANSAC, taken at its word.

`multiview.robust` refuses solutions that chance could give, which is right for a user. Here a wrong model
costs no more than none, and a right one counts however few matches carry it: as in the published protocols.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from multiview.cameras import check_intrinsics

MAX_ITERATIONS = 10_000
_POSE_MATCHES, _HOMOGRAPHY_MATCHES, _FUNDAMENTAL_MATCHES = 5, 4, 7


def estimate_pose(
    xy0: np.ndarray, xy1: np.ndarray, K0: np.ndarray, K1: np.ndarray, *, threshold_px: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, int] | None:
    """Relative pose by essential matrix.

    Args:
        xy0: (N, 2) pixels in image 0.
        xy1: (N, 2) pixels in image 1.
        K0: (3, 3) intrinsics of image 0.
        K1: (3, 3) intrinsics of image 1.
        threshold_px: largest epipolar (Sampson) distance of an inlier.
        seed: seed of the sampling.

    Returns:
        (3, 3) rotation and (3,) translation, camera 1 from camera 0, and the number of inliers; None if there
        is no solution.
    """
    import poselib  # here: reading reports needs no estimator

    if len(xy0) < _POSE_MATCHES:
        return None
    options = _options(seed) | {"max_epipolar_error": threshold_px}
    pose, info = poselib.estimate_relative_pose(xy0, xy1, _camera(K0), _camera(K1), options, {})
    R, t = np.asarray(pose.R), np.asarray(pose.t)
    usable = info["num_inliers"] >= _POSE_MATCHES and np.isfinite(R).all() and np.linalg.norm(t) > 0
    return (R, t, int(info["num_inliers"])) if usable else None


def estimate_homography(
    xy0: np.ndarray, xy1: np.ndarray, *, threshold_px: float, seed: int = 0
) -> tuple[np.ndarray, int] | None:
    """(3, 3) homography and number of inliers; None if there is none (arguments as in `estimate_pose`)."""
    import poselib

    if len(xy0) < _HOMOGRAPHY_MATCHES:
        return None
    H, info = poselib.estimate_homography(xy0, xy1, _options(seed) | {"max_reproj_error": threshold_px}, {})
    return _found(H, info, _HOMOGRAPHY_MATCHES)


def estimate_fundamental(
    xy0: np.ndarray, xy1: np.ndarray, *, threshold_px: float, seed: int = 0
) -> tuple[np.ndarray, int] | None:
    """(3, 3) fundamental matrix and number of inliers; None if there is none (arguments: `estimate_pose`)."""
    import poselib

    if len(xy0) < _FUNDAMENTAL_MATCHES:
        return None
    F, info = poselib.estimate_fundamental(xy0, xy1, _options(seed) | {"max_epipolar_error": threshold_px}, {})
    return _found(F, info, _FUNDAMENTAL_MATCHES)


def _options(seed: int) -> dict[str, Any]:
    return {"seed": seed, "max_iterations": MAX_ITERATIONS}


def _camera(K: np.ndarray) -> dict[str, Any]:
    """PoseLib's form of a pinhole camera; it does not use the image size."""
    K = check_intrinsics(K)
    size = {"width": int(2 * K[0, 2]) + 1, "height": int(2 * K[1, 2]) + 1}
    return {"model": "PINHOLE", **size, "params": [K[0, 0], K[1, 1], K[0, 2], K[1, 2]]}


def _found(matrix: Any, info: dict[str, Any], minimum: int) -> tuple[np.ndarray, int] | None:
    """A matrix and its number of inliers, if it is a solution."""
    matrix, inliers = np.asarray(matrix, dtype=np.float64), int(info["num_inliers"])
    return (matrix, inliers) if inliers >= minimum and np.isfinite(matrix).all() and np.any(matrix) else None
