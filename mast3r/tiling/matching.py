"""Matching large images tile by tile, with any matcher of small ones.

The coarse matches of two images choose pairs of windows (`mast3r.utils.coarse_to_fine`); a matcher that
follows `TileMatcher` sees the windows at full resolution; its matches go back to original pixels and are
merged.

Memory beyond both images: at most `MAX_TILES` encoded tiles, the matches (20 bytes each, at most one per pixel
of the start grids in each pair of tiles), and the windows of at most `MAX_COARSE_MATCHES` coarse matches (100
bytes each).
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import numpy as np

from mast3r.tiling.tiles import Tile, on_image
from mast3r.utils.coarse_to_fine import WindowConfig, select_window_pairs
from multiview.images import Image
from multiview.matches import Matches

logger = logging.getLogger(__name__)

MAX_COARSE_MATCHES = 50_000
"""Coarse matches that choose the windows, evenly taken from all."""

MAX_TILES = 256
"""Encoded tiles kept for a later pair; beyond that, those needed last are encoded again when their turn comes."""

MAX_STEP = 4.0
"""Largest step in resolution from one level to the next: windows then hold about 50 matches of a 224 px tile."""

WORTH_A_STEP = 1.2
"""Images less than this much larger than what the network saw gain nothing from windows."""

Features = TypeVar("Features")


@dataclass(frozen=True, eq=False)
class TileMatches:
    """Matches between two tiles.

    Attributes:
        xy0: (N, 2) pixels of the first tile.
        xy1: (N, 2) pixels of the second tile.
        confidence: (N,) larger is better.
        index0: (N,) position of `xy0` in the list of keypoints that was to be matched; None if there was none.
        index1: The same of the second tile.
    """

    xy0: np.ndarray
    xy1: np.ndarray
    confidence: np.ndarray
    index0: np.ndarray | None = None
    index1: np.ndarray | None = None


Keypoints = tuple[np.ndarray | None, np.ndarray | None]
"""(K0, 2) and (K1, 2) pixels to be matched in the first and second image or tile; None for any pixels."""


class TileMatcher(Protocol[Features]):
    """What `match_coarse_to_fine` needs of a matcher of small images."""

    def tile_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of the tiles it prefers for an image of this (width, height)."""
        ...

    def encode(self, tiles: Sequence[np.ndarray]) -> Sequence[Features]:
        """Features of tiles (H, W, 3) uint8 of one size; called once for each tile (but see `MAX_TILES`)."""
        ...

    def match(self, pairs: Sequence[tuple[Features, Features]]) -> Sequence[TileMatches]:
        """Matches of a batch of pairs of encoded tiles, in tile pixels."""
        ...


class KeypointTileMatcher(TileMatcher[Features], Protocol[Features]):
    """A `TileMatcher` that can also match given keypoints."""

    def match_keypoints(
        self, pairs: Sequence[tuple[Features, Features]], keypoints: Sequence[Keypoints]
    ) -> Sequence[TileMatches]:
        """At most one match for each given keypoint (tile pixels) of each pair, with `index0` or `index1`."""
        ...


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
    scale: tuple[float, float] = (1.0, 1.0),
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
        scale: original pixels per tile pixel in both images; 1 matches at full resolution, 2 as if the image
            had been reduced to half its size.

    Returns:
        Matches in original pixels. A pixel of either image has at most one match, the most confident one.
        Where no window has enough coarse matches, the coarse matches themselves.

    Raises:
        ValueError: sizes of images and coarse matches disagree.
    """
    images = (image0, image1)
    _check_sizes(images, coarse_matches)
    pairs = plan_tiles(matcher, coarse_matches, config, intrinsics, scale=scale)
    if not pairs:
        logger.info("No window has enough coarse matches; they are returned as they are.")
        return coarse_matches
    found = [
        _in_original_pixels(tiles, matches, border)
        for batch, encoded in _encoded_batches(matcher, images, pairs, batch_size)
        for tiles, matches in zip(batch, matcher.match(encoded))
    ]
    return merge_duplicates(_gathered(found, pairs[0], images))


def match_keypoints_coarse_to_fine(
    matcher: KeypointTileMatcher[Features],
    image0: Image,
    image1: Image,
    coarse_matches: Matches,
    keypoints: Keypoints,
    config: WindowConfig | None = None,
    *,
    batch_size: int = 8,
    border: int = 3,
    intrinsics: tuple[np.ndarray, np.ndarray] | None = None,
    scale: tuple[float, float] = (1.0, 1.0),
) -> Matches:
    """Match given keypoints of two large images at full resolution (see `match_coarse_to_fine`).

    Args:
        matcher: see `KeypointTileMatcher`.
        image0: image 0.
        image1: image 1.
        coarse_matches: matches of the downscaled images, in original pixels; they choose the windows.
        keypoints: original pixels of the keypoints of either image or both.
        config: how windows are cut and chosen.
        batch_size: pairs given to the matcher at once.
        border: matches closer than this many tile pixels to the edge of a tile are dropped.
        intrinsics: see `match_coarse_to_fine`.
        scale: see `match_coarse_to_fine`.

    Returns:
        At most one match per keypoint, the most confident one, with the keypoints' positions; keypoints that
        lie in no window are left out.

    Raises:
        ValueError: sizes of images and coarse matches disagree.
    """
    images = (image0, image1)
    _check_sizes(images, coarse_matches)
    pairs = plan_tiles(matcher, coarse_matches, config, intrinsics, scale=scale)
    found = []
    for batch, encoded in _encoded_batches(matcher, images, pairs, batch_size):
        inside = [tuple(_within_tile(tile, xy) for tile, xy in zip(tiles, keypoints)) for tiles in batch]
        given: list[Keypoints] = [(a.xy, b.xy) for a, b in inside]
        for tiles, positions, matches in zip(batch, inside, matcher.match_keypoints(encoded, given)):
            found.append(_in_original_pixels(tiles, _renumbered(matches, positions), border))
    if not found:
        empty = np.zeros((0, 2))
        none = [None if xy is None else np.zeros(0, np.int64) for xy in keypoints]
        return Matches(empty, empty, np.zeros(0), image0.size, image1.size, index0=none[0], index1=none[1])
    return _one_per_keypoint(_gathered(found, pairs[0], images), keypoints)


@dataclass(frozen=True, eq=False)
class _TileKeypoints:
    """Keypoints inside a tile: tile pixels (K, 2) and positions in the whole list (K,); None if none are given."""

    xy: np.ndarray | None
    index: np.ndarray | None


def _within_tile(tile: Tile, xy: np.ndarray | None) -> _TileKeypoints:
    if xy is None:
        return _TileKeypoints(None, None)
    on_tile = tile.from_original(xy)
    index = np.flatnonzero(tile.contains(on_tile))
    return _TileKeypoints(on_tile[index], index)


def _renumbered(matches: TileMatches, inside: tuple[_TileKeypoints, ...]) -> TileMatches:
    """Positions in the tile's lists of keypoints as positions in the whole lists."""
    numbers = [
        None if points.index is None or index is None else points.index[np.asarray(index, dtype=np.int64)]
        for points, index in zip(inside, (matches.index0, matches.index1))
    ]
    return replace(matches, index0=numbers[0], index1=numbers[1])


def _one_per_keypoint(matches: Matches, keypoints: Keypoints) -> Matches:
    """The most confident match of each keypoint, in the order of the keypoints and exactly at their places."""
    matches = matches.filter(np.argsort(-matches.confidence, kind="stable"))
    for name in ("index1", "index0"):
        if getattr(matches, name) is not None:
            matches = matches.filter(np.unique(getattr(matches, name), return_index=True)[1])
    ends = [
        xy if given is None or index is None else np.asarray(given)[index]
        for xy, given, index in zip((matches.xy0, matches.xy1), keypoints, (matches.index0, matches.index1))
    ]
    return replace(matches, xy0=ends[0], xy1=ends[1])


def _gathered(found: Sequence[TileMatches], tiles: tuple[Tile, Tile], images: tuple[Image, Image]) -> Matches:
    """Matches of all pairs of tiles that lie on the images."""
    columns = ([getattr(matches, name) for matches in found] for name in ("xy0", "xy1", "confidence"))
    indices = ([getattr(matches, name) for matches in found] for name in ("index0", "index1"))
    xy0, xy1, confidence = (np.concatenate(column) for column in columns)
    index0, index1 = (None if column[0] is None else np.concatenate(column) for column in indices)
    seen0, seen1 = (tile.image_size(image.size) for tile, image in zip(tiles, images))
    sizes = (images[0].size, images[1].size, seen0, seen1)
    merged = Matches(xy0, xy1, confidence, *sizes, index0, index1)
    return merged.filter(on_image(merged.xy0, sizes[0]) & on_image(merged.xy1, sizes[1]))


def plan_tiles(
    matcher: TileMatcher[Features],
    coarse_matches: Matches,
    config: WindowConfig | None = None,
    intrinsics: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    scale: tuple[float, float] = (1.0, 1.0),
) -> list[tuple[Tile, Tile]]:
    """Pairs of tiles to match, ordered so that pairs with a common tile follow each other."""
    if len(coarse_matches) > MAX_COARSE_MATCHES:
        coarse_matches = coarse_matches.filter(np.linspace(0, len(coarse_matches) - 1, MAX_COARSE_MATCHES).round())
    sizes = (coarse_matches.size0, coarse_matches.size1)
    tile_sizes = [matcher.tile_size(size) for size in sizes]
    resolutions = [_window_shape(tile, size, s) for tile, size, s in zip(tile_sizes, sizes, scale)]
    pairs = select_window_pairs(
        sizes[0][::-1],
        sizes[1][::-1],
        coarse_matches.xy0,
        coarse_matches.xy1,
        config,
        resolution0=resolutions[0],
        resolution1=resolutions[1],
        scale=scale,
    )
    cameras = (None, None) if intrinsics is None else (_camera(intrinsics[0]), _camera(intrinsics[1]))
    tiles = [[Tile(i, _box(pair[i]), tile_sizes[i], cameras[i]) for i in (0, 1)] for pair in pairs]
    return sorted(((a, b) for a, b in tiles), key=lambda pair: (pair[0].box, pair[1].box))


def pyramid_scales(
    size: tuple[int, int], model_size: tuple[int, int], levels: int, max_size: int | None = None
) -> list[float]:
    """Original pixels per tile pixel of each level, from that after the coarse one down to full resolution.

    Args:
        size: (width, height) of the image.
        model_size: (width, height) at which it has been matched as a whole.
        levels: How many levels; see `pyramid_levels`.
        max_size: Longer side beyond which the image counts as reduced.
    """
    coarse, fine = max(size) / max(model_size), _finest(size, max_size)
    coarse = max(coarse, fine)
    return [fine * (coarse / fine) ** (k / levels) for k in range(levels - 1, -1, -1)]


def pyramid_levels(size: tuple[int, int], model_size: tuple[int, int], max_size: int | None = None) -> int:
    """How many steps of at most `MAX_STEP` lead from a match of the whole image to full resolution.

    A window needs enough coarse matches, and these have the spacing of the level before. 0 if the image is
    hardly larger than what the network saw.
    """
    step = max(size) / max(model_size) / _finest(size, max_size)
    return 0 if step < WORTH_A_STEP else max(1, math.ceil(math.log(step, MAX_STEP)))


def _finest(size: tuple[int, int], max_size: int | None) -> float:
    return 1.0 if max_size is None else max(1.0, max(size) / max_size)


def merge_duplicates(matches: Matches) -> Matches:
    """Keep the most confident match of every pixel of either image, in order of confidence."""
    matches = matches.filter(np.argsort(-matches.confidence, kind="stable"))
    for side in (0, 1):
        xy = matches.xy1 if side else matches.xy0
        x, y = np.round(xy).astype(np.int64).T
        _, first = np.unique(y << 32 | (x + 1), return_index=True)  # x is at least -1
        matches = matches.filter(np.sort(first))
    return matches


def _encoded_batches(
    matcher: TileMatcher[Features],
    images: tuple[Image, Image],
    pairs: Sequence[tuple[Tile, Tile]],
    batch_size: int,
) -> Iterator[tuple[Sequence[tuple[Tile, Tile]], list[tuple[Features, Features]]]]:
    """Batches of pairs with their features; a tile is encoded once and forgotten after its last pair."""
    memory = _TileMemory(matcher, images, pairs)
    for first in range(0, len(pairs), batch_size):
        batch = pairs[first : first + batch_size]
        yield batch, memory.encode(batch)
        memory.forget(first + len(batch))


class _TileMemory(Generic[Features]):
    """Features of tiles that a later pair still needs."""

    def __init__(self, matcher: TileMatcher[Features], images: tuple[Image, Image], pairs: Sequence[tuple[Tile, Tile]]):
        self._matcher, self._images = matcher, images
        self._known: dict[Tile, Features] = {}
        self._uses: dict[Tile, list[int]] = defaultdict(list)  # positions of the pairs of a tile, last one first
        for position in range(len(pairs) - 1, -1, -1):
            for tile in pairs[position]:
                self._uses[tile].append(position)

    def encode(self, batch: Sequence[tuple[Tile, Tile]]) -> list[tuple[Features, Features]]:
        """Features of both tiles of each pair."""
        for side in (0, 1):  # tiles of one image have one size
            new = list(dict.fromkeys(pair[side] for pair in batch if pair[side] not in self._known))
            if new:
                features = self._matcher.encode([tile.draw(self._images[side]) for tile in new])
                self._known.update(zip(new, features))
        return [(self._known[a], self._known[b]) for a, b in batch]

    def forget(self, done: int) -> None:
        """Drop what the pairs from position `done` on do not need, and beyond `MAX_TILES` what is needed last."""
        for tile in list(self._known):
            uses = self._uses[tile]
            while uses and uses[-1] < done:
                uses.pop()
            if not uses:
                del self._known[tile]
        if len(self._known) > MAX_TILES:
            order = sorted(self._known, key=lambda tile: self._uses[tile][-1])
            self._known = {tile: self._known[tile] for tile in order[:MAX_TILES]}


def _in_original_pixels(tiles: tuple[Tile, Tile], matches: TileMatches, border: int) -> TileMatches:
    xys = [np.asarray(xy).reshape(-1, 2) for xy in (matches.xy0, matches.xy1)]
    keep = np.ones(len(xys[0]), dtype=bool)
    for tile, xy in zip(tiles, xys):
        keep &= ((xy >= border) & (xy < np.array(tile.size) - border)).all(1)
    xy0, xy1 = (tile.to_original(xy[keep]).astype(np.float32) for tile, xy in zip(tiles, xys))
    index0, index1 = (None if index is None else index[keep] for index in (matches.index0, matches.index1))
    return TileMatches(xy0, xy1, np.asarray(matches.confidence, np.float32).reshape(-1)[keep], index0, index1)


def _window_shape(tile: tuple[int, int], image: tuple[int, int], scale: float) -> tuple[int, int]:
    """(height, width) of windows for a tile (width, height), scaled down to fit into a smaller image."""
    scale = min(scale, image[0] / tile[0], image[1] / tile[1])
    return int(tile[1] * scale), int(tile[0] * scale)


def _box(edges: np.ndarray) -> tuple[int, int, int, int]:
    left, top, right, bottom = (int(edge) for edge in edges)
    return left, top, right, bottom


def _camera(K: np.ndarray) -> tuple[float, float, float, float]:
    return float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2])


def _check_sizes(images: tuple[Image, Image], matches: Matches) -> None:
    for image, size in zip(images, (matches.size0, matches.size1)):
        if image.size != size:
            raise ValueError(
                f"The coarse matches belong to an image of {size}, the image has {image.size}: "
                "pass the image that they were found in."
            )
