"""The matches of many pairs, placed and checked by the full-size photos.

The pair stage sees photos only as large as the network does, and keeps nothing else. Here the photos are read once
more, a few at a time; one that has become unreadable leaves its matches as they are.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import torch

from dust3r.image_pairs import Edge
from mast3r.alignment.problem import AlignmentProblem
from mast3r.matching import in_original_pixels
from mast3r.pair_matching import MapMatches
from mast3r.photos import Photo
from multiview.images import Image, ImageError, as_image
from multiview.photometric import PhotometricConfig, checked_matches

logger = logging.getLogger(__name__)

_HELD_PIXELS = 60_000_000  # of the photos that are held at once


def placed_by_photos(
    photos: Sequence[Photo],
    problem: AlignmentProblem,
    *,
    config: PhotometricConfig | None = None,
    device: torch.device | None = None,
    on_done: Callable[[int, int], None] | None = None,
) -> dict[Edge, MapMatches]:
    """The matches of all pairs of a problem in model pixels, after `multiview.photometric.checked_matches`.

    Args:
        photos: The photos of the problem, in its order.
        problem: Whose matches are placed.
        config: How it is done.
        device: Where it is computed; default the CPU.
        on_done: Told after each pair: how many are done, and how many there are.
    """
    held, placed = _Held(photos), {}
    for done, edge in enumerate(sorted(problem.edges), start=1):
        inputs = (problem.inputs[edge[0]], problem.inputs[edge[1]])
        found = in_original_pixels(problem.matches(edge), inputs)
        try:
            image0, image1 = held.image(edge[0]), held.image(edge[1])
            found = checked_matches(found, image0, image1, config=config, device=device)
        except (ImageError, ValueError) as error:
            names = photos[edge[0]].name, photos[edge[1]].name
            logger.warning("matches of %s and %s stay as they are: %s", *names, error)
        else:
            xy0, xy1 = (x.transform.apply(xy) for x, xy in zip(inputs, (found.xy0, found.xy1)))
            placed[edge] = MapMatches(xy0.astype(np.float32), xy1.astype(np.float32), found.confidence)
        if on_done is not None:
            on_done(done, len(problem.edges))
    return placed


class _Held:
    """Full-size photos, the last used ones in memory."""

    def __init__(self, photos: Sequence[Photo]) -> None:
        self._photos = photos
        self._images: OrderedDict[int, Image] = OrderedDict()

    def image(self, index: int) -> Image:
        """Photo `index`; raises ImageError if it cannot be read any more."""
        if index in self._images:
            self._images.move_to_end(index)
            return self._images[index]
        source = self._photos[index].source
        if source is None:
            raise ImageError(f"{self._photos[index].name} has no pixels.")
        self._images[index] = image = as_image(source)
        while len(self._images) > 2 and sum(i.width * i.height for i in self._images.values()) > _HELD_PIXELS:
            self._images.popitem(last=False)
        return image
