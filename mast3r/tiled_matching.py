"""Matching large images tile by tile, with any matcher of small ones.

The coarse matches of two images choose pairs of windows (`mast3r.utils.coarse_to_fine`); a matcher that
follows `TileMatcher` sees the windows at full resolution; its matches go back to original pixels and are
merged.

Memory beyond both images: the encoded tiles that a later pair still needs (in practice one batch), the
matches, and two float64 matrices of windows times (at most 5000) coarse matches, 0.2 GB for a pair of
50-megapixel images.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar

import numpy as np
import PIL.Image

from mast3r.utils.coarse_to_fine import WindowConfig, crop_slice, select_window_pairs
from multiview.images import Image, ImageTransform, resample
from multiview.matches import Matches

logger = logging.getLogger(__name__)

MAX_COARSE_MATCHES = 5000
"""Coarse matches that choose the windows; the choice needs memory for windows times matches."""

Features = TypeVar("Features")


@dataclass(frozen=True, eq=False)
class TileMatches:
    """Matches between two tiles.

    Attributes:
        xy0: (N, 2) pixels of the first tile.
        xy1: (N, 2) pixels of the second tile.
        confidence: (N,) larger is better.
    """

    xy0: np.ndarray
    xy1: np.ndarray
    confidence: np.ndarray


class TileMatcher(Protocol[Features]):
    """What `match_coarse_to_fine` needs of a matcher of small images."""

    def tile_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of the tiles it prefers for an image of this (width, height)."""
        ...

    def encode(self, tiles: Sequence[np.ndarray]) -> Sequence[Features]:
        """Features of tiles (H, W, 3) uint8 of one size; called once for each tile."""
        ...

    def match(self, pairs: Sequence[tuple[Features, Features]]) -> Sequence[TileMatches]:
        """Matches of a batch of pairs of encoded tiles, in tile pixels."""
        ...


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
        H = self.original_from_tile
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


def match_coarse_to_fine(
    matcher: TileMatcher[Features],
    image0: Image,
    image1: Image,
    coarse_matches: Matches,
    config: WindowConfig | None = None,
    *,
    batch_size: int = 8,
    border: int = 3,
    intrinsics: tuple[np.ndarray, np.ndarray] | None = None,
) -> Matches:
    """Match two large images at full resolution.

    Args:
        matcher: see `TileMatcher`.
        image0: image 0.
        image1: image 1.
        coarse_matches: matches of the downscaled images, in original pixels.
        config: how windows are cut and chosen.
        batch_size: pairs given to the matcher at once.
        border: matches closer than this many tile pixels to the edge of a tile are dropped: nothing was seen
            beyond.
        intrinsics: (3, 3) K of both images, to draw windows as rotated cameras see them rather than as crops.

    Returns:
        Matches in original pixels. A pixel of either image has at most one match, the most confident one.
        Where no window has enough coarse matches, the coarse matches themselves.

    Raises:
        ValueError: sizes of images and coarse matches disagree.
    """
    images = (image0, image1)
    _check_sizes(images, coarse_matches)
    pairs = plan_tiles(matcher, coarse_matches, config, intrinsics)
    if not pairs:
        logger.info("No window has enough coarse matches; they are returned as they are.")
        return coarse_matches
    found = [
        _in_original_pixels(tiles, matches, border)
        for batch, encoded in _encoded_batches(matcher, images, pairs, batch_size)
        for tiles, matches in zip(batch, matcher.match(encoded))
    ]
    xy0, xy1, confidence = (
        np.concatenate([getattr(matches, name) for matches in found]) for name in ("xy0", "xy1", "confidence")
    )
    tile0, tile1 = pairs[0]
    merged = Matches(xy0, xy1, confidence, image0.size, image1.size, tile0.size, tile1.size)
    within = _on_image(merged.xy0, image0.size) & _on_image(merged.xy1, image1.size)
    return merge_duplicates(merged.filter(within))


def plan_tiles(
    matcher: TileMatcher[Features],
    coarse_matches: Matches,
    config: WindowConfig | None = None,
    intrinsics: tuple[np.ndarray, np.ndarray] | None = None,
) -> list[tuple[Tile, Tile]]:
    """Pairs of tiles to match, ordered so that pairs with a common tile follow each other."""
    if len(coarse_matches) > MAX_COARSE_MATCHES:
        coarse_matches = coarse_matches.filter(np.linspace(0, len(coarse_matches) - 1, MAX_COARSE_MATCHES).round())
    sizes = (coarse_matches.size0, coarse_matches.size1)
    tile_sizes = [matcher.tile_size(size) for size in sizes]
    resolutions = [_window_shape(tile, size) for tile, size in zip(tile_sizes, sizes)]
    pairs = select_window_pairs(
        sizes[0][::-1],
        sizes[1][::-1],
        coarse_matches.xy0,
        coarse_matches.xy1,
        config,
        resolution0=resolutions[0],
        resolution1=resolutions[1],
    )
    cameras = (None, None) if intrinsics is None else (_camera(intrinsics[0]), _camera(intrinsics[1]))
    tiles = [[Tile(i, _box(pair[i]), tile_sizes[i], cameras[i]) for i in (0, 1)] for pair in pairs]
    return sorted(((a, b) for a, b in tiles), key=lambda pair: (pair[0].box, pair[1].box))


def merge_duplicates(matches: Matches) -> Matches:
    """Keep the most confident match of every pixel of either image, in order of confidence."""
    matches = matches.filter(np.argsort(-matches.confidence, kind="stable"))
    for side in (0, 1):
        xy = matches.xy1 if side else matches.xy0
        _, first = np.unique(np.round(xy).astype(np.int64), axis=0, return_index=True)
        matches = matches.filter(np.sort(first))
    return matches


def _encoded_batches(
    matcher: TileMatcher[Features],
    images: tuple[Image, Image],
    pairs: Sequence[tuple[Tile, Tile]],
    batch_size: int,
) -> Iterator[tuple[Sequence[tuple[Tile, Tile]], list[tuple[Features, Features]]]]:
    """Batches of pairs with their features; a tile is encoded once and forgotten after its last pair."""
    uses = Counter(tile for pair in pairs for tile in pair)
    known: dict[Tile, Features] = {}
    for first in range(0, len(pairs), batch_size):
        batch = pairs[first : first + batch_size]
        for side in (0, 1):  # tiles of one image have one size
            new = list(dict.fromkeys(pair[side] for pair in batch if pair[side] not in known))
            if new:
                known.update(zip(new, matcher.encode([tile.draw(images[side]) for tile in new])))
        yield batch, [(known[a], known[b]) for a, b in batch]
        uses.subtract(tile for pair in batch for tile in pair)
        known = {tile: features for tile, features in known.items() if uses[tile]}


def _in_original_pixels(tiles: tuple[Tile, Tile], matches: TileMatches, border: int) -> TileMatches:
    xys = [np.asarray(xy).reshape(-1, 2) for xy in (matches.xy0, matches.xy1)]
    keep = np.ones(len(xys[0]), dtype=bool)
    for tile, xy in zip(tiles, xys):
        keep &= ((xy >= border) & (xy < np.array(tile.size) - border)).all(1)
    xy0, xy1 = (tile.to_original(xy[keep]) for tile, xy in zip(tiles, xys))
    return TileMatches(xy0, xy1, np.asarray(matches.confidence).reshape(-1)[keep])


def _window_shape(tile: tuple[int, int], image: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of windows for a tile (width, height), scaled down to fit into a smaller image."""
    scale = min(1.0, image[0] / tile[0], image[1] / tile[1])
    return int(tile[1] * scale), int(tile[0] * scale)


def _box(edges: np.ndarray) -> tuple[int, int, int, int]:
    left, top, right, bottom = (int(edge) for edge in edges)
    return left, top, right, bottom


def _camera(K: np.ndarray) -> tuple[float, float, float, float]:
    return float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2])


def _on_image(xy: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.all((xy >= -0.5) & (xy < np.array(size) - 0.5), axis=1)


def _check_sizes(images: tuple[Image, Image], matches: Matches) -> None:
    for image, size in zip(images, (matches.size0, matches.size1)):
        if image.size != size:
            raise ValueError(
                f"The coarse matches belong to an image of {size}, the image has {image.size}: "
                "pass the image that they were found in."
            )
