"""Error measures of two-view geometry, localisation and depth, as the published benchmarks define them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from multiview.cameras import check_intrinsics
from multiview.poses import Pose

EPIPOLAR_THRESHOLD = 5e-4
"""Squared symmetric epipolar distance (normalised coordinates) below which a match is correct (SuperGlue)."""


@dataclass(frozen=True)
class PoseError:
    """Error of a relative pose.

    Attributes:
        rotation_deg: Angle between the rotations, 0..180 degrees.
        translation_deg: Angle between the translation directions, folded to 0..90 degrees (the sign of an
            essential matrix's translation is not observable); NaN if the true translation is zero.
    """

    rotation_deg: float
    translation_deg: float

    @property
    def max_deg(self) -> float:
        """The larger of both, the error that enters `pose_auc`; NaN translation is left out."""
        return float(np.fmax(self.rotation_deg, self.translation_deg))


@dataclass(frozen=True)
class DepthError:
    """Errors of a depth map after alignment.

    Attributes:
        abs_rel: Mean of |z - z_true| / z_true.
        delta1: Share of pixels with max(z / z_true, z_true / z) < 1.25.
        delta2: The same with 1.25^2.
        delta3: The same with 1.25^3.
        scale: Factor the prediction was multiplied by.
        num_pixels: Pixels compared.
    """

    abs_rel: float
    delta1: float
    delta2: float
    delta3: float
    scale: float
    num_pixels: int


def rotation_error_deg(R_est: np.ndarray, R_gt: np.ndarray) -> float:
    """Angle of `R_est^T R_gt`, in degrees.

    Args:
        R_est: (3, 3) rotation.
        R_gt: (3, 3) rotation.
    """
    cosine = (np.trace(np.asarray(R_est).T @ np.asarray(R_gt)) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def translation_error_deg(t_est: np.ndarray, t_gt: np.ndarray) -> float:
    """Angle between two directions, folded to 0..90 degrees.

    Args:
        t_est: (3,) direction of any length; zero counts as 90 degrees off.
        t_gt: (3,) true direction; zero gives NaN, as there is nothing to compare with.
    """
    t_est, t_gt = np.asarray(t_est, dtype=np.float64).ravel(), np.asarray(t_gt, dtype=np.float64).ravel()
    length_est, length_gt = np.linalg.norm(t_est), np.linalg.norm(t_gt)
    if length_gt == 0:
        return float("nan")
    if length_est == 0:
        return 90.0
    angle = np.degrees(np.arccos(np.clip(t_est @ t_gt / (length_est * length_gt), -1, 1)))
    return float(min(angle, 180 - angle))


def relative_pose_error(R_est: np.ndarray, t_est: np.ndarray, T_0to1: np.ndarray) -> PoseError:
    """Error of an estimated relative pose.

    Args:
        R_est: (3, 3) rotation, camera 1 from camera 0.
        t_est: (3,) translation, camera 1 from camera 0, of any length.
        T_0to1: (4, 4) true pose, `x_cam1 = T_0to1 @ x_cam0`.
    """
    T = np.asarray(T_0to1, dtype=np.float64)
    return PoseError(rotation_error_deg(R_est, T[:3, :3]), translation_error_deg(t_est, T[:3, 3]))


def pose_auc(errors: Sequence[float] | np.ndarray, thresholds: Sequence[float] = (5, 10, 20)) -> tuple[float, ...]:
    """Area under the recall curve of errors up to each threshold, divided by the threshold.

    The curve is piecewise linear from (0, 0) through the sorted errors, recall i/n at the i-th of n, and
    constant from the last error below the threshold on (SuperGlue, glue-factory).

    Args:
        errors: (n,) errors, one per pair; failures are infinite or NaN.
        thresholds: Upper bounds, in the unit of the errors.

    Returns:
        One value in 0..1 per threshold.

    Raises:
        ValueError: If there are no errors.
    """
    values = np.asarray(errors, dtype=np.float64).ravel()
    if not len(values):
        raise ValueError("pose_auc() needs at least one error.")
    values = np.sort(np.where(np.isnan(values), np.inf, values))
    recall = np.concatenate([[0.0], np.arange(1, len(values) + 1) / len(values)])
    values = np.concatenate([[0.0], values])
    areas = []
    for threshold in thresholds:
        last = int(np.searchsorted(values, threshold))
        x = np.concatenate([values[:last], [threshold]])
        y = np.concatenate([recall[:last], [recall[last - 1]]])
        areas.append(float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / threshold))
    return tuple(areas)


def essential_matrix(T_0to1: np.ndarray) -> np.ndarray:
    """(3, 3) essential matrix [t]x R of a (4, 4) relative pose: x1^T E x0 = 0 in normalised coordinates."""
    T = np.asarray(T_0to1, dtype=np.float64)
    x, y, z = T[:3, 3]
    return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ T[:3, :3]


def epipolar_errors(xy0: np.ndarray, xy1: np.ndarray, K0: np.ndarray, K1: np.ndarray, T_0to1: np.ndarray) -> np.ndarray:
    """Squared symmetric epipolar distances in normalised image coordinates.

    Args:
        xy0: (N, 2) pixels in image 0.
        xy1: (N, 2) pixels in image 1.
        K0: (3, 3) intrinsics of image 0.
        K1: (3, 3) intrinsics of image 1.
        T_0to1: (4, 4) true pose, `x_cam1 = T_0to1 @ x_cam0`.

    Returns:
        (N,) float64: (x1^T E x0)^2 (1 / |l1|^2 + 1 / |l0|^2), l the first two entries of the epipolar lines.
    """
    x0, x1 = _normalised(xy0, K0), _normalised(xy1, K1)
    E = essential_matrix(T_0to1)
    line1, line0 = x0 @ E.T, x1 @ E
    product = np.sum(x1 * line1, axis=1) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return product * (1 / np.sum(line1[:, :2] ** 2, axis=1) + 1 / np.sum(line0[:, :2] ** 2, axis=1))


def epipolar_distances(F: np.ndarray, xy0: np.ndarray, xy1: np.ndarray) -> np.ndarray:
    """Mean of both images' distances between points and their partners' epipolar lines.

    Args:
        F: (3, 3) fundamental matrix, `x1^T F x0 = 0`.
        xy0: (N, 2) points in image 0.
        xy1: (N, 2) points in image 1.

    Returns:
        (N,) float64 in the unit of the points; inf where there is no line.
    """
    x0, x1 = (np.concatenate([xy, np.ones((len(xy), 1))], axis=1) for xy in (xy0, xy1))
    line1, line0 = x0 @ F.T, x1 @ F
    product = np.abs(np.sum(x1 * line1, axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        distances = [product / np.linalg.norm(line[:, :2], axis=1) for line in (line0, line1)]
    return np.nan_to_num(np.mean(distances, axis=0), nan=np.inf)


def epipolar_precision(
    xy0: np.ndarray,
    xy1: np.ndarray,
    K0: np.ndarray,
    K1: np.ndarray,
    T_0to1: np.ndarray,
    *,
    threshold: float = EPIPOLAR_THRESHOLD,
) -> float:
    """Share of matches with an error (`epipolar_errors`) below `threshold`; 0 without matches."""
    errors = epipolar_errors(xy0, xy1, K0, K1, T_0to1)
    return float(np.mean(errors < threshold)) if len(errors) else 0.0


def warp_points(H: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Apply a homography.

    Args:
        H: (3, 3) homography.
        xy: (..., 2) points.

    Returns:
        (..., 2) float64 points; infinite on the line the homography sends to infinity.
    """
    xy = np.asarray(xy, dtype=np.float64)
    out = np.concatenate([xy, np.ones_like(xy[..., :1])], axis=-1) @ np.asarray(H, dtype=np.float64).T
    with np.errstate(divide="ignore", invalid="ignore"):
        return out[..., :2] / out[..., 2:]


def homography_corner_error(
    H_est: np.ndarray,
    H_gt: np.ndarray,
    size: tuple[int, int],
    *,
    corners: Literal["outer", "pixel"] = "outer",
) -> float:
    """Mean distance of the four image corners warped by both homographies, in pixels of image 1.

    Args:
        H_est: (3, 3) estimated homography, image 0 to image 1.
        H_gt: (3, 3) true homography.
        size: (width, height) of image 0.
        corners: `outer`: (0, 0) .. (W, H) as glue-factory; `pixel`: (0, 0) .. (W-1, H-1) as RoMa and HF-Net.

    Returns:
        The error; infinite if a corner goes to infinity.
    """
    if corners not in ("outer", "pixel"):
        raise ValueError(f"corners must be 'outer' or 'pixel', got {corners!r}.")
    width, height = size if corners == "outer" else (size[0] - 1, size[1] - 1)
    points = np.array([(0, 0), (width, 0), (width, height), (0, height)], dtype=np.float64)
    error = np.linalg.norm(warp_points(H_est, points) - warp_points(H_gt, points), axis=1).mean()
    return float(error) if np.isfinite(error) else float("inf")


def absolute_pose_error(estimate: Pose, truth: Pose) -> tuple[float, float]:
    """Distance of the camera centres (unit of the scene) and angle of the rotations (degrees)."""
    return float(np.linalg.norm(estimate.center - truth.center)), rotation_error_deg(estimate.rotation, truth.rotation)


def depth_error(
    depth: np.ndarray,
    depth_gt: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    align: Literal["median", "none"] = "median",
) -> DepthError:
    """Compare a depth map with the truth.

    Args:
        depth: (H, W) predicted depth.
        depth_gt: (H, W) true depth; values that are not finite and positive are left out.
        mask: (H, W) bool, pixels to use.
        align: `median`: multiply by median(true) / median(predicted) over the pixels used; `none`: compare as
            it is.

    Returns:
        The errors. Predictions that are not finite and positive count as wrong for delta and as an error of
        1.

    Raises:
        ValueError: If shapes differ or no pixel is left to compare.
    """
    z, truth = np.asarray(depth, dtype=np.float64), np.asarray(depth_gt, dtype=np.float64)
    chosen = np.ones(z.shape, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    if not z.shape == truth.shape == chosen.shape:
        raise ValueError(f"Depth, truth and mask must have one shape, got {z.shape}, {truth.shape}, {chosen.shape}.")
    if align not in ("median", "none"):
        raise ValueError(f"align must be 'median' or 'none', got {align!r}.")
    used = chosen & np.isfinite(truth) & (truth > 0)
    z, truth = z[used], truth[used]
    if not len(truth):
        raise ValueError("There is no pixel with a known depth to compare.")
    usable = np.isfinite(z) & (z > 0)
    scale = float(np.median(truth[usable]) / np.median(z[usable])) if align == "median" and usable.any() else 1.0
    relative = np.where(usable, np.abs(scale * np.where(usable, z, 0) - truth) / truth, 1.0)
    ratio = np.full(len(z), np.inf)
    ratio[usable] = np.maximum(scale * z[usable] / truth[usable], truth[usable] / (scale * z[usable]))
    deltas = [float(np.mean(ratio < 1.25**power)) for power in (1, 2, 3)]
    return DepthError(float(relative.mean()), *deltas, scale=scale, num_pixels=len(truth))


def _normalised(xy: np.ndarray, K: np.ndarray) -> np.ndarray:
    """(N, 3) rays with z = 1."""
    xy = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
    K = check_intrinsics(K)
    return np.concatenate([(xy - K[:2, 2]) / np.diag(K)[:2], np.ones((len(xy), 1))], axis=1)
