"""Windows of large images, drawn at the size that a matcher of small ones wants."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import PIL.Image

from mast3r.utils.coarse_to_fine import crop_slice
from multiview.images import Image, ImageTransform, resample


@dataclass(frozen=True)
class Tile:
    """A window of an image, drawn at the size the matcher wants.

    Attributes:
        image: 0 or 1.
        box: (left, top, right, bottom) in original pixels, right and bottom exclusive.
        size: (width, height) of the tile.
        camera: (fx, fy, cx, cy) of the original image to draw the window as a rotated camera would see it;
            None for a plain crop.
    """

    image: int
    box: tuple[int, int, int, int]
    size: tuple[int, int]
    camera: tuple[float, float, float, float] | None = None

    @cached_property
    def original_from_tile(self) -> np.ndarray:
        """(3, 3) homography from tile pixels to original pixels, integer pixel centres on both sides."""
        if self.camera is None:
            return self._crop_and_resize().inverse().matrix
        from mast3r.datasets.utils.cropping import crop_to_homography

        fx, fy, cx, cy = self.camera
        K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        return crop_to_homography(K, self.box, self.size)[3]

    def _crop_and_resize(self) -> ImageTransform:
        """From original pixels; the size of the image does not matter beyond containing the box."""
        crop = ImageTransform.crop((self.box[2], self.box[3]), self.box)
        return crop.compose(ImageTransform.resize(crop.size_to, self.size))

    def image_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of the whole image at the resolution of the tile, for its original `size`."""
        sides = self.box[2] - self.box[0], self.box[3] - self.box[1]
        width, height = (max(1, round(a * to / side)) for a, to, side in zip(size, self.size, sides))
        return width, height

    def draw(self, image: Image) -> np.ndarray:
        """The tile's pixels (H, W, 3) uint8."""
        if self.camera is not None:
            return _warp(image, self.original_from_tile, self.size)
        pixels = image.pixels[crop_slice(self.box)]
        if pixels.shape[1::-1] == self.size:
            return pixels
        window = Image(np.ascontiguousarray(pixels))
        return resample(window, ImageTransform.resize(window.size, self.size))

    def to_original(self, xy: np.ndarray) -> np.ndarray:
        """Tile pixels (N, 2) as original pixels (N, 2), float64."""
        return _apply_homography(self.original_from_tile, xy)

    def from_original(self, xy: np.ndarray) -> np.ndarray:
        """Original pixels (N, 2) as tile pixels (N, 2), float64; they may lie outside."""
        return _apply_homography(np.linalg.inv(self.original_from_tile), xy)

    def contains(self, xy: np.ndarray) -> np.ndarray:
        """Which tile pixels (N, 2) lie on the tile: (N,) bool."""
        return on_image(xy, self.size)


def _apply_homography(H: np.ndarray, xy: np.ndarray) -> np.ndarray:
    mapped = np.asarray(xy, dtype=np.float64) @ H[:, :2].T + H[:, 2]
    return mapped[:, :2] / mapped[:, 2:]


def _warp(image: Image, original_from_tile: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Draw the image through a homography, bicubic; (H, W, 3) uint8."""
    corners = np.array([(0, 0, 1), (size[0], 0, 1), (0, size[1], 1), (*size, 1)]) @ original_from_tile.T
    corners = corners[:, :2] / corners[:, 2:]
    low = np.clip(np.floor(corners.min(0)) - 3, 0, np.array(image.size) - 1).astype(int)
    high = np.clip(np.ceil(corners.max(0)) + 4, low + 1, image.size).astype(int)
    part = PIL.Image.fromarray(np.ascontiguousarray(image.pixels[low[1] : high[1], low[0] : high[0]]))
    # Pillow counts from pixel corners: half a pixel on both sides.
    to_centres, to_corners = np.eye(3), np.eye(3)
    to_centres[:2, 2], to_corners[:2, 2] = -0.5, 0.5 - low
    H = to_corners @ original_from_tile @ to_centres
    coefficients = tuple((H / H[2, 2]).ravel()[:8])
    drawn = part.transform(size, PIL.Image.Transform.PERSPECTIVE, coefficients, PIL.Image.Resampling.BICUBIC)
    return np.array(drawn)


def on_image(xy: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Which pixels (N, 2) lie on an image of (width, height): (N,) bool."""
    return np.all((xy >= -0.5) & (xy < np.array(size) - 0.5), axis=1)
