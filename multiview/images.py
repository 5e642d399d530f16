"""Images and the exact affine maps between their pixel grids.

Conventions, said once for the whole library:

* A pixel's centre has integer coordinates; the top-left pixel is (0, 0), x runs right, y runs down.
* "Original" means the UPRIGHT image: the stored file after its EXIF turn. Every `xy` in original pixels,
every `K`
  and every size refers to that upright image (`ImageTransform.turn` leads from stored to upright pixels).
* Resizing keeps the image's outer edges in place, so that for each axis `u_new = (u_old + 0.5) * scale -
0.5`. * Transparent pixels are composited on white. 16-bit values are divided by 257, not clipped.
"""

from __future__ import annotations

import logging
import os
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import PIL.Image

logger = logging.getLogger(__name__)

MIN_SIDE = 16
"""Images with a side below this many pixels are refused: no patch of a network fits into them."""
MAX_PIXELS = 150_000_000
"""Images with more pixels are refused before they are decoded (memory, decompression bombs)."""

_EXIF_ORIENTATION = 0x0112
_EXIF_IFD, _EXIF_FOCAL_35MM = 0x8769, 0xA405
_FOCAL_RANGE_MM = (5.0, 2000.0)
_TRANSPOSES = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
# What decoders of damaged files raise, besides OSError.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    PIL.Image.DecompressionBombError,
)


class ImageError(ValueError):
    """An image that cannot be used; the message is one sentence."""


class ImageNotFoundError(ImageError, FileNotFoundError):
    """A path without a file behind it."""


@dataclass(frozen=True, eq=False)
class Image:
    """An upright 8-bit colour image.

    Attributes:
        pixels: (H, W, 3) uint8, RGB.
        path: File it was read from, if any.
        orientation: EXIF orientation tag (1..8) of the stored file; the turn has been applied to `pixels`.
        focal_35mm: Focal length in millimetres of the camera on 35 mm film with the same diagonal field of view,
            if the file's EXIF data tell it.

    Raises:
        ImageError: If `pixels` is no (H, W, 3) uint8 array, is too small or too large.
    """

    pixels: np.ndarray
    path: Path | None = None
    orientation: int = 1
    focal_35mm: float | None = None

    def __post_init__(self) -> None:
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 3 or self.pixels.shape[2] != 3:
            raise ImageError(
                f"Image.pixels must be a (H, W, 3) uint8 array, got {self.pixels.dtype} of shape "
                f"{self.pixels.shape}; as_image() converts other forms."
            )
        _check_size(self.width, self.height, str(self.path or "image"))

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.pixels.shape[1]

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.pixels.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.width, self.height

    def to_pil(self) -> PIL.Image.Image:
        """The same pixels as a PIL image."""
        return PIL.Image.fromarray(self.pixels)

    def __repr__(self) -> str:
        return f"Image({self.width}x{self.height}, path={str(self.path) if self.path else None!r})"


ImageSource: TypeAlias = "str | os.PathLike[str] | PIL.Image.Image | np.ndarray | Image"
"""What every entry point accepts as an image."""


@dataclass(frozen=True, eq=False)
class ImageTransform:
    """An exact affine map from the pixels of one image to the pixels of another.

    In the results of this library it leads from ORIGINAL to MODEL pixels; `inverse()` leads back.

    Attributes:
        matrix: (3, 3) float64, maps (x, y, 1) to (x', y', 1); last row 0 0 1.
        size_from: (width, height) of the source image.
        size_to: (width, height) of the target image.

    Raises:
        ValueError: If the matrix is not an invertible affine map or a size is not positive.
    """

    matrix: np.ndarray
    size_from: tuple[int, int]
    size_to: tuple[int, int]

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, dtype=np.float64)
        affine = matrix.shape == (3, 3) and np.isfinite(matrix).all() and np.array_equal(matrix[2], (0, 0, 1))
        if not affine or np.linalg.det(matrix[:2, :2]) == 0:
            raise ValueError(f"ImageTransform.matrix must be an invertible affine (3, 3) matrix, got {self.matrix!r}.")
        for name in ("size_from", "size_to"):
            size = tuple(int(side) for side in getattr(self, name))
            if len(size) != 2 or min(size) < 1:
                raise ValueError(f"ImageTransform.{name} must be (width, height) with positive sides, got {size}.")
            object.__setattr__(self, name, size)
        matrix.setflags(write=False)
        object.__setattr__(self, "matrix", matrix)

    @classmethod
    def identity(cls, size: tuple[int, int]) -> ImageTransform:
        """The map of an image of this (width, height) onto itself."""
        return cls(np.eye(3), size, size)

    @classmethod
    def resize(cls, size_from: tuple[int, int], size_to: tuple[int, int]) -> ImageTransform:
        """Resize to `size_to`; the outer edges stay in place, so centres move by the pixel-centre rule."""
        sx, sy = size_to[0] / size_from[0], size_to[1] / size_from[1]
        return cls(np.array([[sx, 0, 0.5 * sx - 0.5], [0, sy, 0.5 * sy - 0.5], [0, 0, 1]]), size_from, size_to)

    @classmethod
    def crop(cls, size_from: tuple[int, int], box: tuple[int, int, int, int]) -> ImageTransform:
        """Cut out `box` = (left, top, right, bottom), right and bottom exclusive."""
        left, top, right, bottom = box
        return cls(np.array([[1.0, 0, -left], [0, 1, -top], [0, 0, 1]]), size_from, (right - left, bottom - top))

    @classmethod
    def turn(cls, size_from: tuple[int, int], orientation: int) -> ImageTransform:
        """From the pixels of a stored file to upright pixels.

        Args:
            size_from: (width, height) as stored.
            orientation: EXIF orientation tag, 1..8.

        Raises:
            ValueError: If the orientation is not in 1..8.
        """
        if orientation not in range(1, 9):
            raise ValueError(f"EXIF orientation must be 1..8, got {orientation!r}.")
        w, h = size_from[0] - 1, size_from[1] - 1
        rows = {
            1: ((1, 0, 0), (0, 1, 0)),
            2: ((-1, 0, w), (0, 1, 0)),
            3: ((-1, 0, w), (0, -1, h)),
            4: ((1, 0, 0), (0, -1, h)),
            5: ((0, 1, 0), (1, 0, 0)),
            6: ((0, -1, h), (1, 0, 0)),
            7: ((0, -1, h), (-1, 0, w)),
            8: ((0, 1, 0), (-1, 0, w)),
        }[orientation]
        size_to = (size_from[1], size_from[0]) if orientation >= 5 else size_from
        return cls(np.array([*rows, (0, 0, 1)], dtype=np.float64), size_from, size_to)

    @classmethod
    def rotate(cls, size_from: tuple[int, int], degrees: float) -> ImageTransform:
        """Turn about the centre, against the clock on the screen, onto the smallest canvas that holds all pixels."""
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        R = np.array([[c, s], [-s, c]]).round(15)
        # Sides of 200.0000001 pixels are 200 pixels.
        size_to = tuple(int(side) for side in np.ceil(np.abs(R) @ size_from - 1e-6))
        matrix = np.eye(3)
        matrix[:2, :2] = R
        matrix[:2, 2] = (np.array(size_to) - 1) / 2 - R @ ((np.array(size_from) - 1) / 2)
        return cls(matrix, size_from, (size_to[0], size_to[1]))

    def apply(self, xy: np.ndarray) -> np.ndarray:
        """Map points.

        Args:
            xy: (..., 2) pixel coordinates in the source image.

        Returns:
            (..., 2) float64 pixel coordinates in the target image; they may lie outside it.
        """
        return np.asarray(xy, dtype=np.float64) @ self.matrix[:2, :2].T + self.matrix[:2, 2]

    def inverse(self) -> ImageTransform:
        """The map from the target image back to the source image."""
        linear = np.linalg.inv(self.matrix[:2, :2])
        matrix = np.eye(3)
        matrix[:2, :2] = linear
        matrix[:2, 2] = -linear @ self.matrix[:2, 2]
        return ImageTransform(matrix, self.size_to, self.size_from)

    def compose(self, then: ImageTransform) -> ImageTransform:
        """This map followed by `then`.

        Raises:
            ValueError: If `then` does not start from the size this map ends at.
        """
        if self.size_to != then.size_from:
            raise ValueError(
                f"Cannot compose: this map ends at size {self.size_to}, the next starts at {then.size_from}."
            )
        return ImageTransform(then.matrix @ self.matrix, self.size_from, then.size_to)

    def inside(self, xy: np.ndarray) -> np.ndarray:
        """Which source points fall on the target image.

        Args:
            xy: (..., 2) pixel coordinates in the source image.

        Returns:
            (...) bool; a point belongs to the image if it lies on the area of one of its pixels.
        """
        out = self.apply(xy)
        return np.all((out >= -0.5) & (out < np.array(self.size_to) - 0.5), axis=-1)


def read_image(path: str | os.PathLike[str]) -> Image:
    """Read an image file as upright 8-bit RGB (see the module's conventions).

    Args:
        path: Any file Pillow reads (`.heic` and `.heif` with the package `pillow_heif`); of animations the
            first frame.

    Returns:
        The image, with its path and EXIF orientation.

    Raises:
        ImageNotFoundError: If there is no such file.
        ImageError: If it is a directory, empty, damaged, smaller than `MIN_SIDE` or larger than `MAX_PIXELS`.
    """
    path = Path(path)
    _check_file(path)
    if path.suffix.lower() in (".heic", ".heif"):
        _register_heif(path)
    try:
        with warnings.catch_warnings():
            # Pillow warns at half of our own limit.
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(path) as pil:
                _check_size(pil.width, pil.height, str(path))
                pixels, orientation = _upright_rgb(pil, str(path))
                focal = _focal_35mm(pil)
    except ImageError:
        raise
    except PIL.Image.DecompressionBombError:
        raise ImageError(f"{path} has far more than {MAX_PIXELS} pixels, the limit; downscale it first.") from None
    except PIL.UnidentifiedImageError:
        raise ImageError(f"{path} is not an image in a format that Pillow can read.") from None
    except _DECODE_ERRORS as error:
        raise ImageError(f"{path} is damaged and cannot be decoded ({error}).") from error
    return Image(pixels, path, orientation, focal)


def as_image(source: ImageSource) -> Image:
    """Turn anything that stands for an image into an `Image`.

    Args:
        source: A path, a PIL image (its EXIF turn is applied), an `Image` (returned as it is), or an array:
            (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA, of uint8, bool, uint16 (full range), any other
            integer type with values in 0..255, or floats in [0, 1].

    Returns:
        An upright 8-bit RGB image.

    Raises:
        ImageNotFoundError: If a path leads nowhere.
        ImageError: If the source cannot be read as an image; the message says why.
    """
    if isinstance(source, Image):
        return source
    if isinstance(source, (str, os.PathLike)):
        return read_image(source)
    if isinstance(source, PIL.Image.Image):
        _check_size(source.width, source.height, "the PIL image")
        try:
            pixels, orientation = _upright_rgb(source, "the PIL image")
        except ImageError:
            raise
        except _DECODE_ERRORS as error:
            raise ImageError(f"The PIL image cannot be decoded ({error}).") from error
        return Image(pixels, None, orientation, _focal_35mm(source))
    if isinstance(source, np.ndarray):
        return Image(_rgb_from_array(source))
    raise ImageError(
        f"An image must be a path, a PIL image, a NumPy array or a multiview Image, got {type(source).__name__}."
    )


def resize_long_edge(pil: PIL.Image.Image, long_edge: int) -> PIL.Image.Image:
    """Resize so that the longer side has `long_edge` pixels; Lanczos when shrinking, else bicubic.

    Raises:
        ImageError: If the result would have more than `MAX_PIXELS` pixels.
    """
    longest = max(pil.size)
    resample = PIL.Image.Resampling.LANCZOS if longest > long_edge else PIL.Image.Resampling.BICUBIC
    size = (_scaled(pil.width, long_edge, longest), _scaled(pil.height, long_edge, longest))
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(f"Resizing a {pil.width}x{pil.height} image to {size[0]}x{size[1]} needs too much memory.")
    return pil.resize(size, resample)


def fit_for_model(
    image: ImageSource, size: int, patch_size: int = 16, square_ok: bool = False
) -> tuple[np.ndarray, ImageTransform]:
    """Resize and centre-crop an image for a network of the DUSt3R family.

    The longer side becomes `size` and both sides are cut to multiples of `patch_size`; a square result is cut
    to 4:3 unless `square_ok`. Size 224 means: short side 224, square crop.

    Args:
        image: The image, or anything `as_image` takes.
        size: Long side of the result in pixels, at least one patch.
        patch_size: Patch side of the network in pixels.
        square_ok: Whether a square result may stay square.

    Returns:
        The (h, w, 3) uint8 pixels and the map from original to model pixels.

    Raises:
        ImageError: If the image cannot be read, or is so elongated that its short side holds no patch.
        ValueError: If `size` is smaller than a patch.
    """
    if patch_size < 1 or size < patch_size:
        raise ValueError(f"size must be at least one patch of {patch_size} px, got {size}.")
    image = as_image(image)
    width, height = image.size
    long_edge = round(size * max(width / height, height / width)) if size == 224 else size
    resized = resize_long_edge(image.to_pil(), long_edge)
    box = _centre_box(resized.size, patch_size, square=size == 224, square_ok=square_ok)
    if box[0] >= box[2] or box[1] >= box[3]:
        raise ImageError(
            f"A {width}x{height} image is too elongated: at long side {long_edge} its short side holds no "
            f"{patch_size} px patch; crop it or use a larger size."
        )
    transform = ImageTransform.resize(image.size, resized.size).compose(ImageTransform.crop(resized.size, box))
    return np.array(resized.crop(box)), transform


def resample(image: Image, transform: ImageTransform) -> np.ndarray:
    """The image's pixels on the target grid of a resize-and-crop transform, with anti-aliasing.

    Args:
        image: Source image of size `transform.size_from`.
        transform: A map without turn or shear.

    Returns:
        (h, w, 3) uint8 pixels of size `transform.size_to`; target pixels outside the source repeat its
        border.

    Raises:
        ValueError: If the sizes disagree, or the transform turns, mirrors or shears.
    """
    if image.size != transform.size_from:
        raise ValueError(f"The transform starts from size {transform.size_from}, the image has {image.size}.")
    linear = transform.matrix[:2, :2]
    if linear[0, 1] != 0 or linear[1, 0] != 0 or (np.diag(linear) <= 0).any():
        raise ValueError("resample() takes maps made of resizing and cropping only; apply turns to the pixels first.")
    edges = transform.inverse().apply(np.array([(0, 0), transform.size_to]) - 0.5) + 0.5
    inside = (edges >= 0).all() and (edges <= np.array(image.size) + 1e-9).all()
    if inside:
        box = tuple(np.minimum(edges, image.size).ravel())
        return np.array(image.to_pil().resize(transform.size_to, PIL.Image.Resampling.LANCZOS, box=box))
    inverse = transform.inverse()
    columns = np.arange(transform.size_to[0]) * inverse.matrix[0, 0] + inverse.matrix[0, 2]
    rows = np.arange(transform.size_to[1]) * inverse.matrix[1, 1] + inverse.matrix[1, 2]
    columns = np.clip(np.rint(columns), 0, image.width - 1).astype(int)
    rows = np.clip(np.rint(rows), 0, image.height - 1).astype(int)
    return image.pixels[rows[:, None], columns]


def rotated(image: Image, degrees: float, *, fill: int = 127) -> np.ndarray:
    """The image turned about its centre, against the clock, on the canvas of `ImageTransform.rotate`.

    Args:
        image: The image.
        degrees: Angle.
        fill: Value of the canvas beyond the image, 0..255.

    Returns:
        (h, w, 3) uint8 pixels.
    """
    transform = ImageTransform.rotate(image.size, degrees)
    back = transform.inverse().matrix[:2]
    offset = back[:, 2] + 0.5 - back[:, :2] @ (0.5, 0.5)  # Pillow counts from pixel corners
    coefficients = (*back[0, :2], offset[0], *back[1, :2], offset[1])
    drawn = image.to_pil().transform(
        transform.size_to, PIL.Image.Transform.AFFINE, coefficients, PIL.Image.Resampling.BICUBIC, fillcolor=(fill,) * 3
    )
    return np.array(drawn)


def _scaled(side: int, long_edge: int, longest: int) -> int:
    return max(1, round(side * long_edge / longest))


def _centre_box(size: tuple[int, int], patch_size: int, *, square: bool, square_ok: bool) -> tuple[int, int, int, int]:
    """Centred crop window (left, top, right, bottom) of the rule in `fit_for_model`."""
    cx, cy = size[0] // 2, size[1] // 2
    if square:
        half = min(cx, cy)
        return cx - half, cy - half, cx + half, cy + half
    width = 2 * cx // patch_size * patch_size
    height = 2 * cy // patch_size * patch_size
    if size[0] == size[1] and not square_ok:
        height = 3 * width // 4 // patch_size * patch_size
    left, top = cx - width // 2, cy - height // 2
    return left, top, left + width, top + height


def _check_file(path: Path) -> None:
    """Refuse what cannot be opened, with one sentence each."""
    try:
        if path.is_dir():
            raise ImageError(f"{path} is a directory, not an image file; name a file or list the directory yourself.")
        if not path.exists():
            raise ImageNotFoundError(f"There is no image file {path}.")
        if path.stat().st_size == 0:
            raise ImageError(f"{path} is empty (0 bytes).")
    except ImageError:
        raise
    except (OSError, ValueError) as error:
        raise ImageError(f"{str(path)!r} cannot be opened ({error}).") from error


def _check_size(width: int, height: int, name: str) -> None:
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"{name} has {width}x{height} pixels, too few: each side needs at least {MIN_SIDE}.")
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name} has {width}x{height} pixels, the limit is {MAX_PIXELS} in all; downscale it first.")


def _register_heif(path: Path) -> None:
    try:
        import pillow_heif  # pyright: ignore[reportMissingImports]  # optional package
    except ImportError:
        raise ImageError(f"Reading {path} needs the package pillow_heif (pip install pillow-heif).") from None
    pillow_heif.register_heif_opener()


def _upright_rgb(pil: PIL.Image.Image, name: str) -> tuple[np.ndarray, int]:
    """(H, W, 3) uint8 upright pixels and the EXIF orientation they were stored with."""
    orientation = _orientation(pil, name)
    rgb = _rgb_from_pil(pil, name)
    if orientation in _TRANSPOSES:
        rgb = rgb.transpose(_TRANSPOSES[orientation])
    return np.array(rgb), orientation


def _orientation(pil: PIL.Image.Image, name: str) -> int:
    """EXIF orientation tag; 1 when there is none or the tags are unreadable."""
    try:
        orientation = pil.getexif().get(_EXIF_ORIENTATION, 1)
    except _DECODE_ERRORS as error:
        logger.warning("%s has unreadable EXIF data (%s); taken as upright.", name, error)
        return 1
    return orientation if orientation in range(1, 9) else 1


def _focal_35mm(pil: PIL.Image.Image) -> float | None:
    """EXIF focal length as on 35 mm film; None if it is missing, zero ("unknown") or absurd."""
    try:
        focal = float(pil.getexif().get_ifd(_EXIF_IFD).get(_EXIF_FOCAL_35MM, 0))
    except _DECODE_ERRORS:
        return None
    low, high = _FOCAL_RANGE_MM
    return focal if low <= focal <= high else None


def _rgb_from_pil(pil: PIL.Image.Image, name: str) -> PIL.Image.Image:
    """Any PIL mode as 8-bit RGB."""
    if pil.mode == "I" or pil.mode.startswith("I;16"):
        values = np.asarray(pil)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(f"{name} holds integers outside the 16-bit range; scale them to 0..65535 first.")
        return PIL.Image.fromarray(_eight_bit_from_sixteen(values)).convert("RGB")
    if pil.mode == "F":
        return PIL.Image.fromarray(_eight_bit_from_float(np.asarray(pil), name)).convert("RGB")
    if pil.has_transparency_data:
        rgba = pil.convert("RGBA")
        return PIL.Image.alpha_composite(PIL.Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return pil.convert("RGB")


def _rgb_from_array(array: np.ndarray) -> np.ndarray:
    """Any accepted array as a fresh (H, W, 3) uint8 array."""
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise ImageError(
            f"An image array must have shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {array.shape}; "
            "move the channels to the last axis."
        )
    if array.size == 0:
        raise ImageError(f"The image array of shape {array.shape} is empty.")
    _check_size(array.shape[1], array.shape[0], "the image array")
    values = _eight_bit(array)
    if channels == 1:
        return np.repeat(values.reshape(*values.shape[:2], 1), 3, axis=2)
    if channels == 4:
        rgba = PIL.Image.fromarray(np.ascontiguousarray(values))
        return np.array(_rgb_from_pil(rgba, "the image array"))
    return values.copy()


def _eight_bit(array: np.ndarray) -> np.ndarray:
    """Array values as uint8, by the ranges documented in `as_image`."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return _eight_bit_from_sixteen(array)
    if np.issubdtype(array.dtype, np.integer):
        if array.min() < 0 or array.max() > 255:
            raise ImageError(f"An {array.dtype} image array must hold 0..255, got {array.min()}..{array.max()}.")
        return array.astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating):
        return _eight_bit_from_float(array, "the image array")
    raise ImageError(f"An image array must hold integers or floats, got {array.dtype}.")


def _eight_bit_from_sixteen(values: np.ndarray) -> np.ndarray:
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _eight_bit_from_float(values: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ImageError(f"{name} holds NaN or infinite values; replace them first.")
    if values.min() < 0 or values.max() > 1:
        raise ImageError(
            f"{name} holds floats in {values.min():.4g}..{values.max():.4g}, expected [0, 1]; "
            "scale them, or pass 0..255 as uint8."
        )
    return np.rint(values.astype(np.float64) * 255).astype(np.uint8)
