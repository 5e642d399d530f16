"""Points from their pixels in several calibrated views."""

from __future__ import annotations

import torch
from torch import Tensor


def batched_triangulate(pts2d: Tensor, proj_mats: Tensor) -> Tensor:
    """Linear triangulation (DLT) in inhomogeneous coordinates.

    Args:
        pts2d: (B, V, M, 2) pixels of M points in V views; views where a pixel is not finite have no say.
        proj_mats: (B, V, 3, 4) projection matrices K [R | t].

    Returns:
        (B, M, 3) points; NaN for points seen in fewer than two views.

    Raises:
        ValueError: If shapes do not fit together.
    """
    if pts2d.ndim != 4 or pts2d.shape[-1] != 2 or proj_mats.shape != (*pts2d.shape[:2], 3, 4):
        raise ValueError(
            "Triangulation needs pixels (B, V, M, 2) and projections (B, V, 3, 4), got "
            f"{tuple(pts2d.shape)} and {tuple(proj_mats.shape)}."
        )
    seen = pts2d.isfinite().all(dim=-1)
    pixel = torch.where(seen[..., None], pts2d, 0.0)
    # Each pixel gives two rows: (x P3 - P1) X = 0 and (y P3 - P2) X = 0.
    rows = pixel[..., None] * proj_mats[:, :, None, 2:] - proj_mats[:, :, None, :2]
    rows = torch.where(seen[..., None, None], rows, 0.0)
    rows = rows.permute(0, 2, 1, 3, 4).flatten(2, 3)
    points = _least_squares(rows[..., :3], -rows[..., 3])
    return torch.where((seen.sum(dim=1) >= 2)[..., None], points, torch.nan)


def matches_to_depths(
    intrinsics: Tensor,
    extrinsics: Tensor,
    matches: Tensor,
    batchsize: int = 16,
    min_num_valids_ratio: float = 0.3,
) -> tuple[Tensor, Tensor]:
    """Depth maps of the first view of several groups, from where each of its pixels lies in the others.

    Args:
        intrinsics: (B, V, 3, 3) intrinsics in pixels.
        extrinsics: (B, V, 4, 4) cam_from_world.
        matches: (B, V, H, W, 2) pixel of each view that matches each pixel of view 0, NaN where there is none;
            entry 0 are the pixels of view 0 themselves.
        batchsize: Groups triangulated at once.
        min_num_valids_ratio: Share of the views that must see a pixel for its depth to count, 0..1.

    Returns:
        (B, H, W) z depth in view 0, NaN where unknown, and (B, H, W) number of views that see the pixel.

    Raises:
        ValueError: If shapes do not fit together.
    """
    if matches.ndim != 5 or matches.shape[-1] != 2 or batchsize < 1:
        raise ValueError(
            f"matches must be (B, V, H, W, 2) and batchsize at least 1, got {tuple(matches.shape)} and {batchsize}."
        )
    height, width = matches.shape[2:4]
    projections = intrinsics @ extrinsics[..., :3, :]
    depths = []
    for part in torch.arange(len(matches)).split(batchsize):
        points = batched_triangulate(matches[part].flatten(2, 3), projections[part])
        first = extrinsics[part, 0]
        depths.append((points @ first[:, 2, :3, None])[..., 0] + first[:, 2, 3, None])
    counts = matches.isfinite().all(dim=-1).sum(dim=1)
    depth = torch.cat(depths).reshape(-1, height, width)
    enough = counts >= max(2.0, min_num_valids_ratio * matches.shape[1])
    return torch.where(enough & (depth > 0), depth, torch.nan), counts


def _least_squares(A: Tensor, b: Tensor) -> Tensor:
    """(..., 3) solutions of overdetermined systems (..., R, 3) x = (..., R), by QR: the normal equations would lose
    half the digits.
    """
    Q, R = torch.linalg.qr(A)
    right = Q.transpose(-1, -2) @ b[..., None]
    # A system without enough rows is singular: its solution is replaced by the caller.
    singular = (R.diagonal(dim1=-2, dim2=-1).abs() <= torch.finfo(R.dtype).tiny).any(dim=-1)
    safe = torch.where(singular[..., None, None], torch.eye(3, dtype=R.dtype, device=R.device), R)
    return torch.linalg.solve_triangular(safe, right, upper=True)[..., 0]
