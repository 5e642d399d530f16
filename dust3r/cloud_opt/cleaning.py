"""Removing points that float in front of a surface another camera sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dust3r.utils.geometry import geotrf


@torch.no_grad()
def clean_pointcloud(
    im_confs: Sequence[Tensor],
    K: Tensor,
    cams: Tensor,
    depthmaps: Sequence[Tensor],
    all_pts3d: Sequence[Tensor],
    tol: float = 0.001,
    bad_conf: float = 0,
    dbg: Any = (),
) -> list[Tensor]:
    """Lower the confidence of points that stand in the free space of a more confident view.

    A point of image i that projects into image j nearer than that view's depth, and is less sure than the
    pixel it hides, cannot be there. Confidences already lowered count as such for later pairs.

    Args:
        im_confs: (H, W) confidence of each image.
        K: (N, 3, 3) intrinsics in pixels.
        cams: (N, 4, 4) cam_from_world.
        depthmaps: (H, W) z depth of each image.
        all_pts3d: (H, W, 3) world points of each image.
        tol: Share of the depth by which a point must be nearer, 0..1.
        bad_conf: Largest confidence left to a removed point.
        dbg: Ignored; kept for callers that pass it.

    Returns:
        New confidences (H, W).

    Raises:
        ValueError: If the numbers of images differ or `tol` is not in [0, 1).
    """
    counts = {len(im_confs), len(K), len(cams), len(depthmaps), len(all_pts3d)}
    if len(counts) != 1:
        raise ValueError(f"clean_pointcloud needs one entry per image in every list, got lengths {counts}.")
    if not 0 <= tol < 1:
        raise ValueError(f"tol must be in [0, 1), got {tol}.")
    confs = [conf.detach().clone() for conf in im_confs]
    depths = [depth.detach().reshape(conf.shape) for depth, conf in zip(depthmaps, confs)]
    for i, points in enumerate(all_pts3d):
        points = points.detach().reshape(*confs[i].shape, 3)
        for j in range(len(confs)):
            if i != j:
                wrong = _hides_surer_point(points, confs[i], K[j], cams[j], depths[j], confs[j], tol)
                confs[i] = torch.where(wrong, confs[i].clamp(max=bad_conf), confs[i])
    return confs


def _hides_surer_point(
    points: Tensor, conf: Tensor, K: Tensor, cam: Tensor, depth: Tensor, depth_conf: Tensor, tol: float
) -> Tensor:
    """(H, W) bool: points (H, W, 3) nearer to a camera than its depth map, and less sure than it."""
    local = geotrf(cam, points)
    z = local[..., 2]
    height, width = depth.shape
    pixel = geotrf(K, local, norm=1, ncol=2)
    x, y = (pixel.nan_to_num(nan=-1.0).clamp(-1, max(height, width))).round().long().unbind(-1)
    inside = (z > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    return inside & (z < (1 - tol) * depth[y, x]) & (conf < depth_conf[y, x])
