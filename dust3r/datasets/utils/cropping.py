"""Resizing and cropping of an image together with its depth map and intrinsics.

Images are (W, H) in PIL order, depth maps (H, W), K is OpenCV's (integer pixel centres), boxes are
(left, top, right, bottom) with exclusive right and bottom.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import PIL.Image

from dust3r.utils.geometry import colmap_to_opencv_intrinsics, opencv_to_colmap_intrinsics

_MaybeDepth = TypeVar("_MaybeDepth", np.ndarray, None)


def rescale_image_depthmap(
    image: PIL.Image.Image | np.ndarray,
    depthmap: _MaybeDepth,
    camera_intrinsics: np.ndarray,
    output_resolution: tuple[int, int],
    force: bool = True,
) -> tuple[PIL.Image.Image, _MaybeDepth, np.ndarray]:
    """Resize, keeping the aspect ratio, to the smallest size that covers `output_resolution`.

    Args:
        image: RGB image (H, W, 3) uint8 or PIL; Lanczos when it shrinks, bicubic when it grows.
        depthmap: (H, W) depth of the same size, or None; nearest neighbour.
        camera_intrinsics: (3, 3) K.
        output_resolution: (W, H) to cover.
        force: False leaves images alone that would have to grow.

    Returns:
        The resized image, depth map and K.

    Raises:
        ValueError: if image and depth map differ in size.
    """
    pil = _as_pil(image)
    _check_same_size(pil, depthmap)
    size = np.array(pil.size)
    # The surplus of 1e-8 keeps the rounding below from losing the last pixel.
    scale = float(np.max(np.array(output_resolution) / size)) + 1e-8
    if scale >= 1 and not force:
        return pil, depthmap, camera_intrinsics
    W, H = (int(side) for side in np.floor(size * scale))
    resample = PIL.Image.Resampling.LANCZOS if scale < 1 else PIL.Image.Resampling.BICUBIC
    K = camera_matrix_of_crop(camera_intrinsics, (pil.width, pil.height), (W, H), scaling=scale)
    if depthmap is not None:
        depthmap = _resize_nearest(depthmap, W, H)
    return pil.resize((W, H), resample=resample), depthmap, K


def _as_pil(image: PIL.Image.Image | np.ndarray) -> PIL.Image.Image:
    return image if isinstance(image, PIL.Image.Image) else PIL.Image.fromarray(image)


def _check_same_size(image: PIL.Image.Image, depthmap: np.ndarray | None) -> None:
    if depthmap is not None and depthmap.shape[:2] != (image.height, image.width):
        raise ValueError(
            f"image {image.width}x{image.height} and depth map {depthmap.shape[1]}x{depthmap.shape[0]} "
            "differ; resize the depth map first"
        )


def _resize_nearest(array: np.ndarray, W: int, H: int) -> np.ndarray:
    """Nearest neighbour that takes source pixel floor(i * old / new), as OpenCV's `INTER_NEAREST` does."""
    rows = np.floor(np.arange(H) * (array.shape[0] / H)).astype(int).clip(max=array.shape[0] - 1)
    cols = np.floor(np.arange(W) * (array.shape[1] / W)).astype(int).clip(max=array.shape[1] - 1)
    return array[rows[:, None], cols]


def crop_image_depthmap(
    image: PIL.Image.Image | np.ndarray,
    depthmap: _MaybeDepth,
    camera_intrinsics: np.ndarray,
    crop_bbox: tuple[int, int, int, int] | np.ndarray,
) -> tuple[PIL.Image.Image, _MaybeDepth, np.ndarray]:
    """Cut the box (left, top, right, bottom) out of image and depth map; K moves with it."""
    pil = _as_pil(image)
    _check_same_size(pil, depthmap)
    left, top, right, bottom = (int(side) for side in crop_bbox)
    K = camera_intrinsics.copy()
    K[:2, 2] -= (left, top)
    if depthmap is not None:
        depthmap = depthmap[top:bottom, left:right]
    return pil.crop((left, top, right, bottom)), depthmap, K


def camera_matrix_of_crop(
    input_camera_matrix: np.ndarray,
    input_resolution: tuple[int, int],
    output_resolution: tuple[int, int],
    scaling: float = 1,
    offset_factor: float = 0.5,
    offset: tuple[float, float] | np.ndarray | None = None,
) -> np.ndarray:
    """K after scaling an image and cutting a window out of it.

    Args:
        input_camera_matrix: (3, 3) K of the original image.
        input_resolution: (W, H) of the original image.
        output_resolution: (W, H) of the window.
        scaling: factor applied before the cut.
        offset_factor: position of the window as a fraction of the margin it leaves; 0.5 centres it.
        offset: (x, y) of the window's corner in scaled pixels; replaces `offset_factor`.

    Returns:
        (3, 3) K of the window.
    """
    if offset is None:
        margins = np.asarray(input_resolution) * scaling - np.asarray(output_resolution)
        offset = offset_factor * margins
    # Scaling acts on the image's outer corner, which is the origin of COLMAP's convention.
    K = opencv_to_colmap_intrinsics(input_camera_matrix)
    K[:2] *= scaling
    K[:2, 2] -= offset
    return colmap_to_opencv_intrinsics(K)


def bbox_from_intrinsics_in_out(
    input_camera_matrix: np.ndarray, output_camera_matrix: np.ndarray, output_resolution: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Box of size `output_resolution` whose cut turns the first K into the second (equal focals)."""
    corner = np.round(input_camera_matrix[:2, 2] - output_camera_matrix[:2, 2]).astype(int)
    left, top = int(corner[0]), int(corner[1])
    return left, top, left + output_resolution[0], top + output_resolution[1]
