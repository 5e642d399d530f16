"""Camera parameters read off a predicted point map."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

_WEISZFELD_ROUNDS = 10
_TAN_30 = 3**-0.5  # the reference focal sees the longer image side under 60 degrees


def estimate_focal_knowing_depth(
    pts3d: Tensor,
    pp: Tensor,
    focal_mode: Literal["median", "weiszfeld"] = "median",
    min_focal: float = 0.0,
    max_focal: float = float("inf"),
) -> Tensor:
    """Focal length that best reprojects a point map onto its own pixel grid.

    Args:
        pts3d: (B, H, W, 3) points in the frame of the camera that sees them.
        pp: (B, 2) or (2,) principal point in pixels.
        focal_mode: `median` of all per-coordinate estimates, or `weiszfeld`, the focal that minimises the
            sum of reprojection distances (iteratively reweighted least squares).
        min_focal: smallest result, in units of the focal that sees the longer side under 60 degrees.
        max_focal: largest result, in the same unit.

    Returns:
        (B,) focal in pixels.

    Raises:
        ValueError: for an unknown `focal_mode`.
    """
    B, H, W, _ = pts3d.shape
    u = torch.arange(W, device=pts3d.device, dtype=pts3d.dtype).expand(H, W)
    v = torch.arange(H, device=pts3d.device, dtype=pts3d.dtype)[:, None].expand(H, W)
    pixels = torch.stack([u, v], dim=-1).reshape(1, -1, 2) - pp.reshape(-1, 1, 2).to(pts3d)
    xyz = pts3d.reshape(B, -1, 3)
    if focal_mode == "median":
        focal = (pixels * xyz[..., 2:] / xyz[..., :2]).flatten(1).nanmedian(dim=1).values
    elif focal_mode == "weiszfeld":
        focal = _weiszfeld_focal(pixels, xyz)
    else:
        raise ValueError(f"unknown focal_mode {focal_mode!r}; use 'median' or 'weiszfeld'")
    reference = max(H, W) / (2 * _TAN_30)
    return focal.clamp(min=min_focal * reference, max=max_focal * reference)


def _weiszfeld_focal(pixels: Tensor, xyz: Tensor) -> Tensor:
    """(B | 1, N, 2) centred pixels and (B, N, 3) points -> (B,) focal of least summed distance."""
    rays = (xyz[..., :2] / xyz[..., 2:]).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    ray_dot_pixel = (rays * pixels).sum(dim=-1)
    ray_dot_ray = rays.square().sum(dim=-1)
    focal = ray_dot_pixel.mean(dim=1) / ray_dot_ray.mean(dim=1)
    for _ in range(_WEISZFELD_ROUNDS):
        distance = (pixels - focal[:, None, None] * rays).norm(dim=-1)
        weight = distance.clamp(min=1e-8).reciprocal()
        focal = (weight * ray_dot_pixel).mean(dim=1) / (weight * ray_dot_ray).mean(dim=1)
    return focal
