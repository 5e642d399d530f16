"""Similarities between point maps and between camera sets."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dust3r.cloud_opt.commons import to_homogeneous
from dust3r.utils.geometry import geotrf, get_med_dist_between_poses

Similarity = tuple[Tensor, Tensor, Tensor]
"""(scale, R (3, 3), T (3,)) of the map x -> scale R x + T."""

_MIN_POINTS = 3
_MIN_SCALE = 1e-6  # unrelated points register best at scale 0, which has no logarithm
# A camera's axis counts by points this many times nearer than the cameras are to each other.
_AXIS_SHARE = 100


def rigid_points_registration(pts1: Tensor, pts2: Tensor, conf: Tensor) -> Similarity:
    """The similarity that best moves `pts1` onto `pts2` (Umeyama 1991, weighted).

    Args:
        pts1: (..., 3) points.
        pts2: (..., 3) their targets.
        conf: (...) non-negative weights.

    Returns:
        scale (), R (3, 3) and T (3,) of `pts2 = scale R pts1 + T`; the identity if fewer than three points
        have weight.
    """
    weights = conf.reshape(-1)
    if int((weights > 0).sum()) < _MIN_POINTS:
        return pts1.new_tensor(1.0), torch.eye(3).to(pts1), pts1.new_zeros(3)
    import roma  # here: it loads the machinery of torch.compile, a second of work

    result: Any = roma.rigid_points_registration(
        pts1.reshape(-1, 3), pts2.reshape(-1, 3), weights=weights, compute_scaling=True
    )
    R, T, scale = result
    return scale.clamp(min=_MIN_SCALE), R, T


def sRT_to_4x4(scale: Tensor | float, R: Tensor, T: Tensor, device: torch.device | str) -> Tensor:  # noqa: N802
    """(4, 4) matrix of the similarity x -> scale R x + T."""
    return to_homogeneous((scale * R).to(device), T.to(device))


def align_multiple_poses(src_poses: Tensor, target_poses: Tensor) -> Similarity:
    """The similarity that best moves cameras onto cameras, by their centres and short pieces of their axes.

    Args:
        src_poses: (K, 4, 4) world_from_cam, K >= 2.
        target_poses: (K, 4, 4) where they should be.

    Returns:
        scale, R, T.

    Raises:
        ValueError: If the numbers of poses differ or are below 2.
    """
    if src_poses.shape != target_poses.shape or len(src_poses) < 2:
        raise ValueError(
            "align_multiple_poses needs two sets of at least 2 poses (K, 4, 4), got "
            f"{tuple(src_poses.shape)} and {tuple(target_poses.shape)}."
        )
    source, target = _centers_and_axes(src_poses), _centers_and_axes(target_poses.to(src_poses))
    return rigid_points_registration(source, target, torch.ones_like(source[:, 0]))


def _centers_and_axes(poses: Tensor) -> Tensor:
    # Cameras at one place leave the scale open: any axis length then keeps the registration well defined.
    length = (get_med_dist_between_poses(poses) or 1.0) / _AXIS_SHARE
    centers = poses[:, :3, 3]
    return torch.cat([centers, centers + length * poses[:, :3, 2]])


def registration_error(source: Tensor, target: Tensor, conf: Tensor) -> float:
    """Mean distance left by the best similarity, as a share of the mean distance of the target from its mean.

    Args:
        source: (K, 3) points.
        target: (K, 3) points.
        conf: (K,) weights.

    Returns:
        0 for a perfect fit, about 1 for unrelated points; infinity if nothing has weight.
    """
    total = conf.sum()
    if not bool(total > 0):
        return math.inf
    moved = move_points(rigid_points_registration(source, target, conf), source)
    center = (conf[:, None] * target).sum(dim=0) / total
    left = (conf * (moved - target).norm(dim=-1)).sum()
    return float(left / (conf * (target - center).norm(dim=-1)).sum().clamp(min=torch.finfo(conf.dtype).tiny))


def move_points(similarity: Similarity, points: Tensor) -> Tensor:
    """Apply a similarity to points (..., 3)."""
    return geotrf(sRT_to_4x4(*similarity, points.device), points)


def move_pose(similarity: Similarity, pose: Tensor) -> Tensor:
    """Apply a similarity to a (4, 4) world_from_cam; the result is rigid."""
    scale, R, T = similarity
    return to_homogeneous(R @ pose[:3, :3], scale * (R @ pose[:3, 3]) + T)
