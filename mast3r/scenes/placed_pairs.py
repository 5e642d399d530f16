"""The matches of many pairs, placed and checked by the full-size photos.

The pair stage sees photos only as large as the network does, and keeps nothing else. Here the photos are read once
more, a few at a time; one that has become unreadable leaves its matches as they are. Placed matches are kept in the
cache of the pair stage, so that a run that was broken off goes on from them.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from dust3r.image_pairs import Edge
from mast3r.alignment.problem import AlignmentProblem
from mast3r.pairs.closer_look import CloserLookConfig, checked_or_closer
from mast3r.pairs.config import PairConfig
from mast3r.pairs.map_matching import MapMatches, in_original_pixels
from mast3r.pairs.two_view import TokenCache
from mast3r.scenes.pair_cache import CacheMiss
from mast3r.scenes.pair_store import PlacedPair
from mast3r.scenes.photos import Photo
from multiview.images import Image, ImageError, as_image
from multiview.matches import Matches
from multiview.photometric import (
    GreyPyramid,
    MatchPlacer,
    PhotometricConfig,
    believed_share,
    model_pixels,
    textured_points,
)

logger = logging.getLogger(__name__)

FINER = 1.5
"""Pixels of a photo per pixel of the network from which on the photo places matches better than the network."""

_SPACING = 6.0  # least one of the points that all pairs of a photo match, in pixels of the network's input
_CARRIED = 200_000  # points that all pairs together are to match; adjusting cameras takes time for each
_LEAST_POINTS = 250  # of a photo
_HELD_PIXELS = 40_000_000  # of the photos that are held at once, 14 bytes each


def placed_by_photos(
    photos: Sequence[Photo],
    problem: AlignmentProblem,
    *,
    closer: tuple[TokenCache, PairConfig] | None = None,
    config: PhotometricConfig | None = None,
    device: torch.device | None = None,
    on_done: Callable[[int, int], None] | None = None,
) -> dict[Edge, PlacedPair]:
    """The matches of all pairs of a problem in model pixels, after `multiview.photometric.checked_matches`.

    Args:
        photos: The photos of the problem, in its order.
        problem: Whose matches are placed.
        closer: The network, and how it matches pairs, to look closer where the photos confirm few matches (see
            `mast3r.pairs.closer_look`); None for no closer look.
        config: How it is done.
        device: Where it is computed; default the CPU.
        on_done: Told after each pair: how many are done, and how many there are.
    """
    config = config or PhotometricConfig()
    spacing = _spacing(problem)
    held, placed = _Held(photos, spacing, device), {}
    how = repr((config, spacing, None if closer is None else (closer[1], CloserLookConfig())))
    for done, edge in enumerate(sorted(problem.edges), start=1):
        keys = problem.inputs[edge[0]].key, problem.inputs[edge[1]].key
        try:
            placed[edge] = problem.store.placed(*keys, how)
        except CacheMiss:
            found = _placed(problem, edge, held, closer, config)
            if found is not None:
                problem.store.put_placed(*keys, how, found)
                placed[edge] = found
        if on_done is not None:
            on_done(done, len(problem.edges))
    return placed


def _spacing(problem: AlignmentProblem) -> float:
    """Spacing of the points of each photo, one of few values, so that some more pairs need not be placed anew."""
    points = float(np.mean([seen.size[0] * seen.size[1] for seen in problem.inputs])) / _SPACING**2
    too_many = min(2 * len(problem.edges) * points / _CARRIED, points / _LEAST_POINTS)
    return _SPACING * 2 ** (max(0, round(math.log2(max(too_many, 1e-9)))) / 2)


def _placed(
    problem: AlignmentProblem,
    edge: Edge,
    held: _Held,
    closer: tuple[TokenCache, PairConfig] | None,
    config: PhotometricConfig,
) -> PlacedPair | None:
    """The matches of one pair; None, with a warning, if its photos cannot be read any more."""
    inputs = problem.inputs[edge[0]], problem.inputs[edge[1]]
    found = in_original_pixels(problem.matches(edge), inputs)
    try:
        (image0, grey0), (image1, grey1) = held.photo(edge[0]), held.photo(edge[1])
        placer = MatchPlacer(grey0, grey1, config=config)
        first = placer.place(found)
        if closer is None:
            found, believed = first.kept(config.min_checked), believed_share(first)
        else:
            found = checked_or_closer(closer[0], (image0, image1), first, placer, closer[1])
            believed = believed_share(placer.place(found))
        pixels = model_pixels(found)
        if min(pixels) >= FINER:
            found = _anchored(found, placer, [held.points(k, pixel) for k, pixel in zip(edge, pixels)])
    except (ImageError, ValueError) as error:
        logger.warning("matches of %s and %s stay as they are: %s", held.name(edge[0]), held.name(edge[1]), error)
        return None
    xy0, xy1 = (x.transform.apply(xy) for x, xy in zip(inputs, (found.xy0, found.xy1)))
    return PlacedPair(MapMatches(xy0.astype(np.float32), xy1.astype(np.float32), found.confidence), believed)


def _anchored(found: Matches, placer: MatchPlacer, points: Sequence[np.ndarray]) -> Matches:
    """Matches of the same points of each photo in all its pairs, so that tracks run through many photos.

    A network sees a pair at a time, and matches other pixels in every pair. Points that were chosen once for each photo
    are carried to the other one as its matches go, and placed there. Where the photos confirm few, the matches stay.
    """
    there = placer.carry(found, points[0])
    back = placer.swapped().carry(found.swapped(), points[1]).swapped()
    xy0, xy1, alike = (np.concatenate(v) for v in zip(*((m.xy0, m.xy1, m.confidence) for m in (there, back))))
    if len(alike) < placer.config.min_checked:
        return found
    usual = float(np.median(found.confidence))
    return replace(found, xy0=xy0, xy1=xy1, confidence=usual * alike, index0=None, index1=None)


class _Held:
    """Full-size photos and their smaller pictures, the last used ones in memory; their points stay."""

    def __init__(self, photos: Sequence[Photo], spacing: float, device: torch.device | None) -> None:
        self._photos, self._spacing, self._device = photos, spacing, device
        self._images: OrderedDict[int, tuple[Image, GreyPyramid]] = OrderedDict()
        self._points: dict[int, np.ndarray] = {}

    def name(self, index: int) -> str:
        """Name of photo `index`."""
        return self._photos[index].name

    def photo(self, index: int) -> tuple[Image, GreyPyramid]:
        """Photo `index`; raises ImageError if it cannot be read any more."""
        if index in self._images:
            self._images.move_to_end(index)
            return self._images[index]
        source = self._photos[index].source
        if source is None:
            raise ImageError(f"{self._photos[index].name} has no pixels.")
        image = as_image(source)
        self._images[index] = found = image, GreyPyramid(image, self._device)
        while len(self._images) > 2 and sum(i.width * i.height for i, _ in self._images.values()) > _HELD_PIXELS:
            self._images.popitem(last=False)
        return found

    def points(self, index: int, pixel: float) -> np.ndarray:
        """(K, 2) pixels of photo `index` that all its pairs match; `pixel` is the side of a pixel of the network."""
        if index not in self._points:
            self._points[index] = textured_points(self.photo(index)[1], self._spacing * pixel, pixel=pixel)
        return self._points[index]
