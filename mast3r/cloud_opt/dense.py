"""A point for every pixel of aligned images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dust3r.cloud_opt.cleaning import clean_pointcloud
from mast3r.cloud_opt.canonical import CanonicalView

CLEAN_TOLERANCE = 0.02
"""Points are compared with the depth of the nearest pixel, which on a slope differs by about a per cent."""


@dataclass(frozen=True, eq=False)
class DenseView:
    """Points of all pixels of one image.

    Attributes:
        points: (H, W, 3) float32 in the world.
        depth: (H, W) float32 z depth in the image's camera, world units.
        confidence: (H, W) float32; 0 where the point is unknown, masked, or floats in front of a surface that
            another image sees better.
    """

    points: np.ndarray
    depth: np.ndarray
    confidence: np.ndarray


def dense_depth(view: CanonicalView, core_depth: Tensor, slope: Tensor | float) -> Tensor:
    """(H, W) depth of all pixels from that of their anchors.

    Args:
        view: The image's pointmap.
        core_depth: (blocks,) depth of the anchors.
        slope: Factor on how much pixels differ from their anchor.
    """
    anchor = view.grid.spread(core_depth.reshape(view.grid.rows, view.grid.columns))
    return anchor * (1 + (view.offsets.to(core_depth) - 1) * slope)


def unproject(depth: Tensor, K: Tensor, world_from_cam: Tensor) -> Tensor:
    """(H, W, 3) world points of a depth map (H, W)."""
    height, width = depth.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([x, y, torch.ones_like(x)], dim=-1).to(depth)
    local = (pixels @ torch.linalg.inv(K).T) * depth[..., None]
    return local @ world_from_cam[:3, :3].T + world_from_cam[:3, 3]


@torch.no_grad()
def densify(
    views: Sequence[CanonicalView],
    core_depth: Sequence[np.ndarray],
    slope: np.ndarray,
    K: np.ndarray,
    world_from_cam: np.ndarray,
    *,
    clean: bool = True,
    tolerance: float = CLEAN_TOLERANCE,
) -> list[DenseView]:
    """Points of all pixels of images in one frame.

    Args:
        views: The images' pointmaps.
        core_depth: (blocks,) depth of the anchors of each image.
        slope: (N,) factor on how much pixels differ from their anchor.
        K: (N, 3, 3) intrinsics.
        world_from_cam: (N, 4, 4) poses.
        clean: Whether confidence falls to zero where a point floats in front of a surer one.
        tolerance: Share of the depth by which it must be in front.
    """
    intrinsics, poses = torch.from_numpy(K), torch.from_numpy(world_from_cam)
    result = []
    for i, view in enumerate(views):
        device = view.points.device
        depth = dense_depth(view, torch.from_numpy(core_depth[i]).to(device), float(slope[i]))
        points = unproject(depth, intrinsics[i].to(device), poses[i].to(device))
        confidence = torch.where(view.valid & (depth > 0), view.confidence, 0.0)
        result.append(DenseView(*(value.float().cpu().numpy() for value in (points, depth, confidence))))
    return cleaned(result, K, world_from_cam, tolerance=tolerance) if clean and len(result) > 1 else result


def cleaned(
    views: Sequence[DenseView], K: np.ndarray, world_from_cam: np.ndarray, *, tolerance: float = CLEAN_TOLERANCE
) -> list[DenseView]:
    """The same views with confidence 0 where a point hides a surer one of another image."""
    confidence = clean_pointcloud(
        [torch.from_numpy(view.confidence) for view in views],
        torch.from_numpy(K).float(),
        torch.from_numpy(np.linalg.inv(world_from_cam)).float(),
        [torch.from_numpy(view.depth) for view in views],
        [torch.from_numpy(view.points) for view in views],
        tol=tolerance,
    )
    return [replace(view, confidence=value.numpy()) for view, value in zip(views, confidence)]
