"""Camera pose from a predicted point map: RANSAC, then object-space least squares on its inliers."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.spatial.transform import Rotation
from torch import Tensor

from multiview.poses import Pose
from multiview.robust import AbsolutePose, estimate_absolute_pose

INLIER_PX = 5.0
"""Largest reprojection error of an inlier, in pixels."""

_FOCAL_TRIALS = 21
_MIN_PIXELS = 4
_FIT_PIXELS = 2000
_MAX_ROUNDS = 50
_SKEW = np.array(
    [
        [[0, 0, 0], [0, 0, -1], [0, 1, 0]],
        [[0, 0, 1], [0, 0, 0], [-1, 0, 0]],
        [[0, -1, 0], [1, 0, 0], [0, 0, 0]],
    ]
)


def fast_pnp(
    pts3d: Tensor | np.ndarray,
    focal: float | Tensor | None,
    msk: Tensor | np.ndarray,
    device: torch.device | str,
    pp: Tensor | np.ndarray | tuple[float, float] | None = None,
    niter_PnP: int = 10,
) -> tuple[float, Tensor] | None:
    """Pose of the camera that sees a point map on its pixel grid.

    RANSAC (PoseLib) finds the inliers; on them the squared object-space error of SQPnP (Terzakis and
    Lourakis, ECCV 2020) is minimised.

    Args:
        pts3d: (H, W, 3) points in any frame.
        focal: Focal in pixels, or None to try 21 values between half and three times the longer side.
        msk: (H, W) bool, pixels to use.
        device: Device of the result.
        pp: (2,) principal point in pixels; default (W / 2, H / 2).
        niter_PnP: RANSAC rounds per focal.

    Returns:
        Focal and (4, 4) float32 pose of the camera in the frame of the points; None if there is no solution.
    """
    points, mask = _array(pts3d), _array(msk).astype(bool)
    height, width = mask.shape
    if mask.sum() < _MIN_PIXELS:
        return None
    center = np.array([width / 2, height / 2]) if pp is None else _array(pp).astype(np.float64).reshape(2)
    rows, columns = np.nonzero(mask)
    xy, xyz = np.stack([columns, rows], axis=1).astype(np.float64), points[mask].astype(np.float64)
    side = max(height, width)
    trials = np.geomspace(side / 2, side * 3, _FOCAL_TRIALS) if focal is None else [float(focal)]
    best: tuple[int, float, AbsolutePose] | None = None
    for trial in trials:
        found = _ransac(xy, xyz, float(trial), center, niter_PnP)
        count = int(found.inliers.sum())
        if found.success and (best is None or count > best[0]):
            best = count, float(trial), found
    if best is None:
        return None
    _, best_focal, found = best
    uv = (xy - center) / best_focal
    pose = refine_object_space(uv[found.inliers], xyz[found.inliers], found.pose)
    return best_focal, torch.as_tensor(pose.world_from_cam.copy(), dtype=torch.float32, device=device)


def fit_focal(
    pts3d: Tensor, msk: Tensor, start: Tensor, pp: Tensor, device: torch.device | str
) -> tuple[float, Tensor]:
    """Focal and pose that see a point map on its pixel grid with the least median error.

    RANSAC alone cannot tell focals apart whose errors all stay below its threshold.

    Args:
        pts3d: (H, W, 3) points in any frame.
        msk: (H, W) bool, pixels to use; some thousand of them are.
        start: (4, 4) pose near the solution.
        pp: (2,) principal point in pixels.
        device: Device of the result.

    Returns:
        Focal in pixels, from half to three times the longer side, and (4, 4) float32 pose.
    """
    mask, center = _array(msk).astype(bool), _array(pp).astype(np.float64)
    rows, columns = np.nonzero(mask)
    step = -(-len(rows) // _FIT_PIXELS)
    xy = np.stack([columns, rows], axis=1)[::step] - center
    xyz = _array(pts3d)[mask][::step].astype(np.float64)
    first = Pose(_array(start).astype(np.float64))

    def solve(log_focal: float) -> tuple[float, Pose]:
        focal = float(np.exp(log_focal))
        pose = refine_object_space(xy / focal, xyz, first)
        local = pose.inverse().apply(xyz)
        error = np.linalg.norm(focal * local[:, :2] / np.maximum(local[:, 2:], 1e-9) - xy, axis=1)
        return float(np.median(error)), pose

    trials = np.log(np.geomspace(max(mask.shape) / 2, 3 * max(mask.shape), _FOCAL_TRIALS))
    best = int(np.argmin([solve(trial)[0] for trial in trials]))
    bounds = trials[max(best - 1, 0)], trials[min(best + 1, len(trials) - 1)]
    log_focal = minimize_scalar(lambda x: solve(x)[0], bounds=bounds, method="bounded").x  # pyright: ignore
    pose = solve(log_focal)[1].world_from_cam.copy()
    return float(np.exp(log_focal)), torch.as_tensor(pose, dtype=torch.float32, device=device)


def refine_object_space(uv: np.ndarray, points: np.ndarray, start: Pose) -> Pose:
    """Minimise the squared distance, across the viewing direction, of points from the rays of their pixels.

    Args:
        uv: (N, 2) normalised image coordinates.
        points: (N, 3) points in the world.
        start: Pose near the minimum.

    Returns:
        The refined pose; `start` if the problem is degenerate.
    """
    quadratic, translation = _object_space_form(uv, points)
    R = start.rotation.T
    for _ in range(_MAX_ROUNDS):
        jacobian = np.stack([(R @ skew).ravel() for skew in _SKEW], axis=1)
        try:
            step = -np.linalg.solve(jacobian.T @ quadratic @ jacobian, jacobian.T @ quadratic @ R.ravel())
        except np.linalg.LinAlgError:
            return start
        R = R @ Rotation.from_rotvec(step).as_matrix()
        if np.linalg.norm(step) < 1e-10:
            break
    t = translation @ R.ravel()
    return Pose.from_cam_from_world(R, t) if np.isfinite(t).all() else start


def _object_space_form(uv: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The (9, 9) quadratic form of the cost in the row-major rotation, and the (3, 9) best translation.

    The residual of a point at q in the camera is (q_x - u q_z, q_y - v q_z), linear in R and t; t is
    eliminated.
    """
    offsets = np.zeros((len(uv), 2, 3))  # residual = offsets @ q
    offsets[:, 0, 0] = offsets[:, 1, 1] = 1
    offsets[:, :, 2] = -uv
    # offsets @ (R x) as a (2, 9) matrix acting on the entries of R.
    on_rotation = (offsets[:, :, :, None] * points[:, None, None, :]).reshape(len(uv), 2, 9)
    normal = np.einsum("nki,nkj->ij", offsets, offsets)
    translation = -np.linalg.pinv(normal) @ np.einsum("nki,nkj->ij", offsets, on_rotation)
    residual = (on_rotation + offsets @ translation).reshape(-1, 9)
    return residual.T @ residual, translation


def _ransac(xy: np.ndarray, xyz: np.ndarray, focal: float, center: np.ndarray, rounds: int) -> AbsolutePose:
    K = np.array([[focal, 0, center[0]], [0, focal, center[1]], [0, 0, 1]])
    return estimate_absolute_pose(xy, xyz, K, threshold_px=INLIER_PX, max_iterations=rounds)


def _array(value: Tensor | np.ndarray | tuple[float, float]) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
