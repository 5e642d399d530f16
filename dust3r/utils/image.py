"""Images for the two-view networks, in the official call forms: a thin layer over `multiview.images`."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from multiview.images import (
    ImageError,
    ImageNotFoundError,
    ImageSource,
    as_image,
    fit_for_model,
    read_image,
    resize_long_edge,
)

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
HEIF_SUFFIXES = (".heic", ".heif")

IMREAD_UNCHANGED = -1
IMREAD_GRAYSCALE = 0
IMREAD_COLOR = 1
_UNCHANGED_MODES = ("1", "L", "LA", "RGB", "RGBA", "I", "F")


class ImageView(TypedDict):
    """One entry of `load_images`: what a two-view network takes as a view.

    Keys:
        img: (1, 3, H, W) float32 in [-1, 1].
        true_shape: (1, 2) int32, (height, width) of `img`.
        idx: position in the list.
        instance: `str(idx)`.
    """

    img: Tensor
    true_shape: np.ndarray
    idx: int
    instance: str


@dataclass(frozen=True)
class NormalizeImage:
    """8-bit pixels to the network's range: `(u / 255 - mean) / std`.

    Attributes:
        mean: Subtracted from values in [0, 1].
        std: Divided by afterwards.
    """

    mean: float = 0.5
    std: float = 0.5

    def __call__(self, image: PIL.Image.Image | np.ndarray) -> Tensor:
        """Convert one image.

        Args:
            image: RGB PIL image or (H, W, 3) uint8 array.

        Returns:
            (3, H, W) float32 tensor.
        """
        pixels = np.array(image if isinstance(image, np.ndarray) else image.convert("RGB"))
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"Expected (H, W, 3) uint8 pixels, got {pixels.dtype} of shape {pixels.shape}.")
        chw = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
        return (chw.float() / 255 - self.mean) / self.std


ImgNorm = NormalizeImage()
"""The normalisation of DUSt3R and MASt3R: [-1, 1]."""


def load_images(
    folder_or_list: str | os.PathLike[str] | Sequence[ImageSource],
    size: int,
    square_ok: bool = False,
    verbose: bool = True,
    patch_size: int = 16,
) -> list[ImageView]:
    """Read images, fit them to the network (`multiview.images.fit_for_model`) and normalise them.

    Args:
        folder_or_list: A folder (its .jpg, .jpeg, .png, .heic, .heif files in name order) or a list of
            images: paths, PIL images or arrays.
        size: Long side in pixels (224: square images of that side).
        square_ok: Keep square images square instead of cutting them to 4:3.
        verbose: Log one line per image at INFO level.
        patch_size: Patch side of the network.

    Returns:
        One view per image; shapes differ between images of different aspect.

    Raises:
        ImageError: If the folder holds no image, the list is empty or an image cannot be used.
    """
    views: list[ImageView] = []
    for source in _image_sources(folder_or_list):
        image = as_image(source)
        pixels, _ = fit_for_model(image, size, patch_size, square_ok)
        height, width = pixels.shape[:2]
        if verbose:
            logger.info("%s: %dx%d -> %dx%d", image.path or "image", image.width, image.height, width, height)
        views.append(
            ImageView(
                img=ImgNorm(pixels)[None],
                true_shape=np.array([[height, width]], dtype=np.int32),
                idx=len(views),
                instance=str(len(views)),
            )
        )
    return views


def rgb(ftensor: Any, true_shape: Any = None) -> Any:
    """Network images as displayable colours.

    Args:
        ftensor: (..., 3, H, W) or (..., H, W, 3), tensor or array: float in [-1, 1] or uint8. A list or tuple
            is converted element by element.
        true_shape: Optional (height, width) to cut each image to.

    Returns:
        (..., H, W, 3) float32 array in [0, 1], or a list of them.

    Raises:
        ValueError: If no axis holds the three colours.
    """
    if isinstance(ftensor, (list, tuple)):
        return [rgb(item, true_shape) for item in ftensor]
    array = ftensor.detach().cpu().numpy() if isinstance(ftensor, Tensor) else np.asarray(ftensor)
    if array.ndim >= 3 and array.shape[-3] == 3 and (array.shape[-1] != 3 or array.ndim == 4):
        array = np.moveaxis(array, -3, -1)
    if array.ndim < 3 or array.shape[-1] != 3:
        raise ValueError(f"Expected an image of shape (..., 3, H, W) or (..., H, W, 3), got {array.shape}.")
    if true_shape is not None:
        height, width = (int(side) for side in np.asarray(true_shape).ravel())
        array = array[..., :height, :width, :]
    scaled = array.astype(np.float32) / 255 if array.dtype == np.uint8 else array.astype(np.float32) * 0.5 + 0.5
    return scaled.clip(0, 1)


def imread_cv2(path: str | os.PathLike[str], options: int = IMREAD_COLOR) -> np.ndarray:
    """Read an image or depth file as an array, with the meaning of OpenCV's flags but channels in RGB order.

    Args:
        path: Image file; `.exr` needs an OpenCV built with OpenEXR.
        options: 1 upright 8-bit RGB, 0 upright 8-bit grey, any other value unchanged (16-bit and float depth
            kept, no EXIF turn).

    Returns:
        (H, W) or (H, W, C) array.

    Raises:
        ImageNotFoundError: If there is no such file.
        ImageError: If it cannot be read.
    """
    path = Path(path)
    if path.suffix.lower() == ".exr" and path.exists():
        return _read_exr(path)
    if options == IMREAD_COLOR:
        return read_image(path).pixels
    if options == IMREAD_GRAYSCALE:
        return np.array(read_image(path).to_pil().convert("L"))
    try:
        with PIL.Image.open(path) as pil:
            plain = pil.mode in _UNCHANGED_MODES or pil.mode.startswith("I;16")
            return np.array(pil if plain else pil.convert("RGBA" if pil.has_transparency_data else "RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        if not path.exists():
            raise ImageNotFoundError(f"There is no image file {path}.") from error
        raise ImageError(f"{path} cannot be read as an image ({error}).") from error


def img_to_arr(img: ImageSource) -> np.ndarray:
    """Any image as (H, W, 3) uint8 RGB; arrays pass unchanged."""
    return img if isinstance(img, np.ndarray) else as_image(img).pixels


def _resize_pil_image(img: PIL.Image.Image, long_edge_size: int) -> PIL.Image.Image:
    """`multiview.images.resize_long_edge` under its official name."""
    return resize_long_edge(img, long_edge_size)


def _image_sources(folder_or_list: str | os.PathLike[str] | Sequence[ImageSource]) -> Sequence[ImageSource]:
    """The images of a folder in name order, or the list itself."""
    if isinstance(folder_or_list, (str, os.PathLike)):
        folder = Path(folder_or_list)
        if not folder.is_dir():
            raise ImageError(f"{folder} is not a folder of images; pass a list to load single files.")
        suffixes = IMAGE_SUFFIXES + HEIF_SUFFIXES if _has_heif() else IMAGE_SUFFIXES
        names = sorted(entry.name for entry in folder.iterdir() if entry.name.lower().endswith(suffixes))
        if not names:
            raise ImageError(f"{folder} holds no image ({', '.join(suffixes)}).")
        return [folder / name for name in names]
    if not isinstance(folder_or_list, (list, tuple)):
        raise ImageError(f"Expected a folder or a list of images, got {type(folder_or_list).__name__}.")
    if not folder_or_list:
        raise ImageError("The list of images is empty.")
    return folder_or_list


def _has_heif() -> bool:
    try:
        import pillow_heif  # noqa: F401  # pyright: ignore[reportMissingImports]  # optional package
    except ImportError:
        return False
    return True


def _read_exr(path: Path) -> np.ndarray:
    """Float EXR image through OpenCV, which must be told before its import that EXR is wanted."""
    os.environ.setdefault("OPENCV_IO_ENABLE_OPENEXR", "1")
    try:
        import cv2  # optional package, only for EXR
    except ImportError:
        raise ImageError(f"Reading {path} needs OpenCV (pip install opencv-python-headless).") from None
    try:
        array = cv2.imread(str(path), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)
    except cv2.error as error:
        raise ImageError(f"{path} cannot be read by this OpenCV build ({error}).") from error
    if array is None:
        raise ImageError(f"{path} cannot be read by OpenCV as an EXR image.")
    return array[..., ::-1].copy() if array.ndim == 3 else array
