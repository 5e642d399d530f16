"""Rigid and projective geometry on NumPy arrays and torch tensors: one function for both wherever possible.

Conventions: OpenCV axes (x right, y down, z forward), integer pixel centres, poses are `world_from_cam` 4x4,
intrinsics K in pixels, maps are channels-last (..., H, W, C).
"""

from __future__ import annotations

from typing import Any, overload

import numpy as np
import torch
from scipy.spatial import KDTree
from scipy.spatial.distance import pdist
from torch import Tensor

_MIN_FACTOR = 1e-8  # smallest normalisation factor: keeps the division finite for degenerate scenes
_REDUCTIONS = ("avg", "median", "sqrt")
_DISTANCES = ("dis", "log1p", "warp-log1p")


def xy_grid(
    W: int,
    H: int,
    device: torch.device | str | None = None,
    origin: tuple[float, float] = (0, 0),
    unsqueeze: int | None = None,
    cat_dim: int | None = -1,
    homogeneous: bool = False,
    **arange_kw: Any,
) -> Any:
    """Pixel coordinates of a W x H grid.

    Args:
        W: width in pixels.
        H: height in pixels.
        device: None for a NumPy array, else the torch device of the result.
        origin: (x, y) of the first pixel.
        unsqueeze: axis added to each coordinate map before stacking.
        cat_dim: axis along which x and y are stacked; None returns the tuple of maps.
        homogeneous: append a map of ones.
        **arange_kw: options of `arange`, such as `dtype`.

    Returns:
        (H, W, 2) array with grid[y, x] = (x, y) + origin, or (H, W, 3) when homogeneous.
    """
    xs = _arange(origin[0], origin[0] + W, device, arange_kw)
    ys = _arange(origin[1], origin[1] + H, device, arange_kw)
    if isinstance(xs, Tensor):
        maps = [*torch.meshgrid(xs, ys, indexing="xy")]
        maps += [torch.ones((H, W), device=xs.device)] if homogeneous else []
        maps = maps if unsqueeze is None else [m.unsqueeze(unsqueeze) for m in maps]
        return tuple(maps) if cat_dim is None else torch.stack(maps, dim=cat_dim)
    maps = [*np.meshgrid(xs, ys, indexing="xy")] + ([np.ones((H, W))] if homogeneous else [])
    maps = maps if unsqueeze is None else [np.expand_dims(m, unsqueeze) for m in maps]
    return tuple(maps) if cat_dim is None else np.stack(maps, axis=cat_dim)


def _arange(start: float, stop: float, device: torch.device | str | None, options: dict[str, Any]) -> Any:
    if device is None:
        return np.arange(start, stop, **options)
    return torch.arange(start, stop, device=device, **options)


@overload
def geotrf(Trf: Any, pts: Tensor, ncol: int | None = None, norm: float | bool = False) -> Tensor: ...
@overload
def geotrf(Trf: Any, pts: np.ndarray, ncol: int | None = None, norm: float | bool = False) -> np.ndarray: ...
def geotrf(Trf: Any, pts: Any, ncol: int | None = None, norm: float | bool = False) -> Any:
    """Apply linear, rigid or projective transforms to points.

    Args:
        Trf: (*B, r, d) linear or (*B, r, d + 1) affine/projective matrices; the batch axes *B must be the
            leading axes of `pts`.
        pts: (*B, ..., d) points, NumPy or torch.
        ncol: number of leading result columns to keep (default d).
        norm: False, or the value the last homogeneous coordinate is scaled to (True and 1 mean "divide by
            it").

    Returns:
        (*B, ..., ncol) points of the type of `pts`.

    Raises:
        ValueError: if the matrix has neither d nor d + 1 columns, or more batch axes than the points.
    """
    trf = _like(Trf, pts)
    d = pts.shape[-1]
    if trf.shape[-1] not in (d, d + 1):
        raise ValueError(
            f"geotrf needs a matrix with {d} or {d + 1} columns for {d}-D points, got {tuple(trf.shape)}; "
            "pass matching shapes"
        )
    rows = trf.shape[-2] if norm else min(trf.shape[-2], ncol or d)
    batch = trf.ndim - 2
    if batch > pts.ndim - 1:
        raise ValueError(
            f"geotrf needs the matrices' batch axes {tuple(trf.shape[:batch])} to lead the points' axes, "
            f"got points {tuple(pts.shape)}; add axes to the points"
        )
    trf = trf.reshape(*trf.shape[:batch], *(1,) * (pts.ndim - 1 - batch), *trf.shape[batch:])
    # Column by column instead of matmul: exact float32 on GPUs (no TF32) and one fused kernel when compiled.
    res = pts[..., :1] * trf[..., :rows, 0]
    for k in range(1, d):
        res = res + pts[..., k : k + 1] * trf[..., :rows, k]
    if trf.shape[-1] == d + 1:
        res = res + trf[..., :rows, d]
    if norm:
        res = res / res[..., -1:] * norm
    return res[..., : ncol or d]


def _like(array: Any, reference: Any) -> Any:
    """`array` as the array type (and torch device) of `reference`."""
    if isinstance(reference, Tensor):
        return torch.as_tensor(array, device=reference.device)
    return np.asarray(array)


@overload
def inv(mat: Tensor) -> Tensor: ...
@overload
def inv(mat: np.ndarray) -> np.ndarray: ...
def inv(mat: Any) -> Any:
    """Inverse of (..., n, n) matrices, NumPy or torch.

    Raises:
        ValueError: if `mat` is neither an array nor a tensor.
    """
    if isinstance(mat, Tensor):
        # The unchecked variant does not wait for the GPU; a singular matrix yields non-finite values.
        return torch.linalg.inv_ex(mat).inverse
    if isinstance(mat, np.ndarray):
        return np.linalg.inv(mat)
    raise ValueError(f"inv needs a NumPy array or a torch tensor, got {type(mat).__name__}; convert it first")


# ----------------------------------------------------------------------------------- depth to points


def depthmap_to_pts3d(depth: Tensor, pseudo_focal: Tensor | float, pp: Tensor | None = None, **_: Any) -> Tensor:
    """Unproject depth maps with a focal length and a principal point.

    Args:
        depth: (B, H, W) z depth.
        pseudo_focal: focal in pixels: a number, (B,), (B, 1 | 2), (B, H, W) or (B, 1 | 2, H, W); two
            channels are (fx, fy).
        pp: (B, 2) or (2,) principal point in pixels; default the image centre ((W-1)/2, (H-1)/2).

    Returns:
        (B, H, W, 3) points in the camera frame.

    Raises:
        ValueError: if `depth` is not (B, H, W).
    """
    if depth.ndim != 3:
        raise ValueError(f"depthmap_to_pts3d needs depth (B,H,W), got {tuple(depth.shape)}; add or drop axes")
    H, W = depth.shape[1:]
    fx, fy = _focal_maps(torch.as_tensor(pseudo_focal, dtype=depth.dtype, device=depth.device))
    if pp is None:
        pp = depth.new_tensor([(W - 1) / 2, (H - 1) / 2])
    pp = pp.to(depth).reshape(-1, 1, 1, 2)
    u = torch.arange(W, device=depth.device, dtype=depth.dtype) - pp[..., 0]
    v = torch.arange(H, device=depth.device, dtype=depth.dtype)[:, None] - pp[..., 1]
    return torch.stack([depth * u / fx, depth * v / fy, depth], dim=-1)


def _focal_maps(focal: Tensor) -> tuple[Tensor, Tensor]:
    """(fx, fy), each broadcastable to (B, H, W)."""
    if focal.ndim in (1, 2):
        focal = focal.reshape(*focal.shape, *(1,) * (4 - focal.ndim))
    if focal.ndim == 4:
        return focal[:, 0], focal[:, -1]
    return focal, focal


def depthmap_to_camera_coordinates(
    depthmap: np.ndarray, camera_intrinsics: np.ndarray, pseudo_focal: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Unproject one depth map with its intrinsics.

    Args:
        depthmap: (H, W) z depth; values <= 0 or non-finite mean "unknown".
        camera_intrinsics: (3, 3) K without skew.
        pseudo_focal: optional (H, W) per-pixel focal that replaces the one of K.

    Returns:
        (H, W, 3) float32 points in the camera frame and the (H, W) bool mask of valid pixels.

    Raises:
        ValueError: if K has skew.
    """
    K = np.asarray(camera_intrinsics, dtype=np.float32)
    if K[0, 1] != 0 or K[1, 0] != 0:
        raise ValueError(f"depthmap_to_camera_coordinates needs K without skew, got {K.tolist()}; rectify first")
    H, W = depthmap.shape
    fx, fy = (K[0, 0], K[1, 1]) if pseudo_focal is None else (pseudo_focal, pseudo_focal)
    u, v = np.meshgrid(np.arange(W), np.arange(H))
    with np.errstate(invalid="ignore"):  # infinite depth is legal, and masked
        x = (u - K[0, 2]) * depthmap / fx
        y = (v - K[1, 2]) * depthmap / fy
    valid = (depthmap > 0) & np.isfinite(depthmap)
    return np.stack([x, y, depthmap], axis=-1).astype(np.float32), valid


def depthmap_to_absolute_camera_coordinates(
    depthmap: np.ndarray, camera_intrinsics: np.ndarray, camera_pose: np.ndarray | None, **kw: Any
) -> tuple[np.ndarray, np.ndarray]:
    """`depthmap_to_camera_coordinates` moved to the world by `camera_pose` (world_from_cam or None)."""
    points, valid = depthmap_to_camera_coordinates(depthmap, camera_intrinsics, **kw)
    if camera_pose is None:
        return points, valid
    return geotrf(np.asarray(camera_pose, dtype=np.float32), points), valid


def colmap_to_opencv_intrinsics(K: np.ndarray) -> np.ndarray:
    """(..., 3, 3) K from COLMAP pixel coordinates (corner origin) to OpenCV's (integer pixel centres)."""
    K = K.copy()
    K[..., :2, 2] -= 0.5
    return K


def opencv_to_colmap_intrinsics(K: np.ndarray) -> np.ndarray:
    """(..., 3, 3) K from OpenCV pixel coordinates (integer pixel centres) to COLMAP's (corner origin)."""
    K = K.copy()
    K[..., :2, 2] += 0.5
    return K


# ----------------------------------------------------------------------- normalisation of point maps


def normalize_pointcloud(
    pts1: Tensor,
    pts2: Tensor | None,
    norm_mode: str = "avg_dis",
    valid1: Tensor | None = None,
    valid2: Tensor | None = None,
    ret_factor: bool = False,
) -> Any:
    """Divide two point maps in one frame by their joint size (DUSt3R eq. 3).

    Args:
        pts1: (B, ..., 3) points of view 1.
        pts2: (B, ..., 3) points of view 2 in the same frame, or None.
        norm_mode: `REDUCTION_DISTANCE`. Distances to the origin: `dis` d, `log1p` log(1+d), `warp-log1p`
            the same, and the points are moved there along their ray first. Reductions over valid points:
            `avg` mean, `median` (no gradient), `sqrt` squared mean of square roots.
        valid1: (B, ...) bool mask of view 1; default all points.
        valid2: (B, ...) bool mask of view 2.
        ret_factor: also return the (B, 1, ..., 1) divisor.

    Returns:
        pts1, or (pts1, pts2) if `pts2` is given, followed by the factor when asked. Invalid points are
        scaled too, except that `warp-log1p` sets them to 0.

    Raises:
        ValueError: for an unknown mode.
    """
    reduction, _, distance = norm_mode.partition("_")
    if reduction not in _REDUCTIONS or distance not in _DISTANCES:
        raise ValueError(
            f"unknown norm_mode {norm_mode!r}; use one of {_REDUCTIONS} and one of {_DISTANCES} joined by '_'"
        )
    clouds = [pts1] if pts2 is None else [pts1, pts2]
    masks = [valid1] if pts2 is None else [valid1, valid2]
    flat = [_flat_valid(p, m) for p, m in zip(clouds, masks)]
    dist = torch.cat([p.norm(dim=-1) for p, _ in flat], dim=1)
    valid = torch.cat([m for _, m in flat], dim=1)
    if distance != "dis":
        dist = dist.log1p()
    if distance == "warp-log1p":
        clouds = [warp_log1p(p).reshape(c.shape) for (p, _), c in zip(flat, clouds)]
    factor = _reduce_distances(dist, valid, reduction).clamp(min=_MIN_FACTOR)
    factor = factor.reshape(-1, *(1,) * (pts1.ndim - 1))
    result = [p / factor for p in clouds] + ([factor] if ret_factor else [])
    return result[0] if len(result) == 1 else tuple(result)


def warp_log1p(pts: Tensor) -> Tensor:
    """Move (..., 3) points along their ray from distance d to distance log(1 + d)."""
    dist = pts.norm(dim=-1, keepdim=True)
    return pts * (dist.log1p() / dist.clamp(min=_MIN_FACTOR))


def _flat_valid(pts: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """(B, N, 3) points, zero where invalid (so that no gradient becomes NaN there), and their (B, N) mask."""
    pts = pts.flatten(1, -2)
    if valid is None:
        return pts, torch.ones(pts.shape[:2], dtype=torch.bool, device=pts.device)
    valid = valid.flatten(1)
    return pts.masked_fill(~valid[..., None], 0), valid


def _reduce_distances(dist: Tensor, valid: Tensor, reduction: str) -> Tensor:
    """(B, N) distances and mask -> (B,) size of the valid points; 0 without valid points."""
    if reduction == "median":
        return _masked_median(dist.detach(), valid)
    if reduction == "sqrt":
        # The square root has an infinite slope at 0: take it of 1 where the point does not count.
        dist = torch.where(valid & (dist > 0), dist, 1).sqrt() * (valid & (dist > 0))
    mean = (dist * valid).sum(dim=1) / (valid.sum(dim=1) + 1e-8)
    return mean.square() if reduction == "sqrt" else mean


def _masked_median(values: Tensor, valid: Tensor) -> Tensor:
    """Lower median over axis 1 of the valid entries; 0 where there are none."""
    return values.masked_fill(~valid, torch.nan).nanmedian(dim=1).values.nan_to_num(0.0)


@torch.no_grad()
def get_joint_pointcloud_depth(
    z1: Tensor,
    z2: Tensor | None,
    valid_mask1: Tensor | None,
    valid_mask2: Tensor | None = None,
    quantile: float = 0.5,
) -> Tensor:
    """Quantile of the depth of the valid points of both views, without gradient.

    Args:
        z1: (B, ...) depth of view 1.
        z2: (B, ...) depth of view 2, or None.
        valid_mask1: (B, ...) bool, or None for all.
        valid_mask2: (B, ...) bool, or None for all.
        quantile: 0.5 takes the lower median, other values interpolate linearly.

    Returns:
        (B,) depths; 0 for samples without a valid point.
    """
    parts = [(z1, valid_mask1)] + ([] if z2 is None else [(z2, valid_mask2)])
    flat = [_flat_valid(z[..., None], m) for z, m in parts]
    depth = torch.cat([z[..., 0] for z, _ in flat], dim=1)
    valid = torch.cat([m for _, m in flat], dim=1)
    if quantile == 0.5:
        return _masked_median(depth, valid)
    return torch.nanquantile(depth.masked_fill(~valid, torch.nan), quantile, dim=1).nan_to_num(0.0)


@torch.no_grad()
def get_joint_pointcloud_center_scale(
    pts1: Tensor,
    pts2: Tensor | None,
    valid_mask1: Tensor | None = None,
    valid_mask2: Tensor | None = None,
    z_only: bool = False,
    center: bool = True,
) -> tuple[Tensor, Tensor]:
    """Median centre and median distance to it of the valid points of both views, without gradient.

    Args:
        pts1: (B, H, W, 3) points of view 1.
        pts2: (B, H, W, 3) points of view 2, or None.
        valid_mask1: (B, H, W) bool, or None for all.
        valid_mask2: (B, H, W) bool, or None for all.
        z_only: move the centre along z only.
        center: False measures the scale from the origin.

    Returns:
        (B, 1, 1, 3) coordinate-wise median centre and (B, 1, 1, 1) scale; both 0 without a valid point.
    """
    parts = [(pts1, valid_mask1)] + ([] if pts2 is None else [(pts2, valid_mask2)])
    flat = [_flat_valid(p, m) for p, m in parts]
    points = torch.cat([p for p, _ in flat], dim=1)
    valid = torch.cat([m for _, m in flat], dim=1)
    centre = _masked_median(points, valid[..., None].expand_as(points))
    if z_only:
        centre = centre * centre.new_tensor([0.0, 0.0, 1.0])
    offset = points - centre[:, None] if center else points
    scale = _masked_median(offset.norm(dim=-1), valid)
    return centre[:, None, None, :], scale[:, None, None, None]


# ---------------------------------------------------------------------------------------- point sets


def find_reciprocal_matches(P1: np.ndarray, P2: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Mutual nearest neighbours of two point sets (SciPy KD-tree, all cores).

    Args:
        P1: (N1, D) points.
        P2: (N2, D) points.

    Returns:
        (N2,) bool mask of the points of P2 whose nearest neighbour in P1 points back; (N2,) index of that
        nearest neighbour in P1; the number of mutual matches.
    """
    nn1_in_P2 = np.asarray(KDTree(P2).query(P1, workers=-1)[1])
    nn2_in_P1 = np.asarray(KDTree(P1).query(P2, workers=-1)[1])
    reciprocal_in_P2 = nn1_in_P2[nn2_in_P1] == np.arange(len(P2))
    return reciprocal_in_P2, nn2_in_P1, int(reciprocal_in_P2.sum())


def get_med_dist_between_poses(poses: Any) -> float:
    """Median distance between the centres of all pairs of (N, 4, 4) world_from_cam poses."""
    centres = np.stack([_to_numpy(pose)[:3, 3] for pose in poses])
    return float(np.median(pdist(centres)))


def _to_numpy(array: Any) -> np.ndarray:
    return array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)
