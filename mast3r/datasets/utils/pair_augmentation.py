"""Geometric augmentation of a pair of training views: crops as rotations of the camera, turns by 90 degrees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import PIL.Image

from dust3r.datasets.base.base_stereo_view_dataset import View
from dust3r.utils.geometry import depthmap_to_absolute_camera_coordinates, geotrf
from mast3r.datasets.utils.cropping import (
    crop_to_homography,
    extract_correspondences_from_pts3d,
    random_boxes,
)

Resolution = tuple[int, int]


def crop_pair(
    views: Sequence[View],
    resolutions: Sequence[Resolution],
    *,
    aug_crop: float | Literal["auto"],
    tentative: int,
    rng: np.random.Generator,
) -> list[View]:
    """Zoom into both views of a pair at places that show the same things.

    Args:
        views: Two views with pts3d and valid_mask.
        resolutions: (W, H) of the result, one per view.
        aug_crop: See `gen_random_crops`.
        tentative: Number of random crops tried for each view.
        rng: Source of the crops.

    Returns:
        The views seen by the cameras of the two crops that share most pixels; points and masks renewed.
    """
    matched = extract_correspondences_from_pts3d(views[0], views[1], None)
    crops = [
        random_boxes(view["img"].size, tentative, resolution, aug_crop, rng)
        for view, resolution in zip(views, resolutions)
    ]
    inside = [_inside(xy, boxes) for xy, boxes in zip(matched, crops)]
    shared = inside[0].astype(np.int64) @ inside[1].T.astype(np.int64)
    best = np.unravel_index(int(shared.argmax()), shared.shape)
    # the official code rounds corner and size of the first box (the corner down), and the corners of the second
    first, second = crops[0][best[0]], crops[1][best[1]]
    corner, size = np.floor(first[:2]), np.round(first[2:] - first[:2])
    chosen = np.concatenate([corner, corner + size]), np.round(second)
    return [crop_view(view, box, size) for view, box, size in zip(views, chosen, resolutions)]


def crop_view(view: View, crop: np.ndarray, resolution: Resolution) -> View:
    """The view of the camera that replaces a crop (see `crop_to_homography`).

    Args:
        view: img (PIL), depthmap, camera_intrinsics and camera_pose.
        crop: (left, top, right, bottom) in pixels.
        resolution: (W, H) of the result.

    Returns:
        A new view; colours by bicubic interpolation, depth from the nearest pixel along the new axis. As in the
        official code the homography is applied to corners instead of centres of pixels: what is seen is shifted by
        up to half the zoom's excess over 1 of a pixel.
    """
    _, K, R, homography = crop_to_homography(view["camera_intrinsics"], crop, resolution)
    turn = np.eye(4)
    turn[:3, :3] = R
    out = dict(view)
    out["img"] = warp_image(view["img"], homography, resolution)
    out["depthmap"] = _warp_depth(view["depthmap"], homography, view["camera_intrinsics"], R, resolution)
    out["camera_intrinsics"] = K.astype(np.float32)
    out["camera_pose"] = (np.asarray(view["camera_pose"], dtype=np.float64) @ turn).astype(np.float32)
    return renew_points(out)


def renew_points(view: View) -> View:
    """The view with points and validity of its depth and camera."""
    points, valid = depthmap_to_absolute_camera_coordinates(
        view["depthmap"], view["camera_intrinsics"], view["camera_pose"]
    )
    return {**view, "pts3d": points, "valid_mask": valid & np.isfinite(points).all(axis=-1)}


def turn_view(view: View, quarters: int) -> View:
    """Turn a view by multiples of 90 degrees anti-clockwise, with its camera, maps and pixels.

    Args:
        view: img (PIL), maps (H, W, ...), corres (N, 2), camera_intrinsics and camera_pose.
        quarters: Number of quarter turns.
    """
    for _ in range(quarters % 4):
        view = _quarter_turn(view)
    return view


def warp_image(image: PIL.Image.Image, new_to_old: np.ndarray, size: Resolution) -> PIL.Image.Image:
    """Resample an image by a homography from new to old pixels; black outside the old image."""
    coefficients = (new_to_old / new_to_old[2, 2]).ravel()[:8].tolist()
    return image.transform(size, PIL.Image.Transform.PERSPECTIVE, coefficients, PIL.Image.Resampling.BICUBIC)


def _inside(xy: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(number of boxes, N) bool: which pixels lie in which box."""
    boxes = boxes[:, None]
    return np.all((xy >= boxes[..., :2]) & (xy < boxes[..., 2:]), axis=-1)


def _warp_depth(
    depthmap: np.ndarray, new_to_old: np.ndarray, K: np.ndarray, R: np.ndarray, size: Resolution
) -> np.ndarray:
    """Depth of the nearest old pixels, measured along the axis of the turned camera; 0 outside."""
    width, height = size
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float64)
    old = np.floor(geotrf(new_to_old, grid + 0.5, norm=1, ncol=2)).astype(np.int64)
    limits = np.array(depthmap.shape[::-1])
    inside = ((old >= 0) & (old < limits)).all(axis=-1)
    x, y = np.moveaxis(np.clip(old, 0, limits - 1), -1, 0)
    rays = geotrf(np.linalg.inv(np.asarray(K, dtype=np.float64)), np.stack([x, y], axis=-1).astype(float), ncol=3)
    along = rays @ R[:, 2]
    return np.where(inside, depthmap[y, x] * along, 0).astype(np.float32)


def _quarter_turn(view: View) -> View:
    width = view["img"].width
    # new x = old y, new y = W - 1 - old x: the camera rolls, its axes turn the other way
    turn = np.array([[0, 1, 0], [-1, 0, width - 1], [0, 0, 1]], dtype=np.float32)
    K = view["camera_intrinsics"]
    pose = view["camera_pose"].copy()
    pose[:3, :3] = np.stack([pose[:3, 1], -pose[:3, 0], pose[:3, 2]], axis=1)
    out: dict[str, Any] = {**view, "img": view["img"].transpose(PIL.Image.Transpose.ROTATE_90), "camera_pose": pose}
    fx, fy = K[0, 0], K[1, 1]
    cx, cy = geotrf(turn, K[:2, 2], ncol=2)
    out["camera_intrinsics"] = np.array([[fy, 0, cx], [0, fx, cy], [0, 0, 1]], dtype=np.float32)
    for name in ("depthmap", "pts3d", "valid_mask", "sky_mask"):
        if name in view:
            out[name] = np.rot90(view[name]).copy()
    if "corres" in view:
        x, y = view["corres"].T
        out["corres"] = np.stack([y, width - 1 - x], axis=1)
    return out
