"""A closer look at pairs of photos whose matches the photos do not confirm.

Seen whole at the network's size, photos that share little, or show the same things at unlike sizes, are hardly
matched. Parts of them, each as large as the network sees, are: every part of one photo is compared with every
part of the other at little cost, the most promising pairs of parts are matched in full, and the photos themselves
say which of these are right (`multiview.photometric`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch.nn.functional as F

from mast3r.pairs.config import PairConfig
from mast3r.pairs.map_matching import in_original_pixels, match_pairs
from mast3r.pairs.two_view import Described, ModelInput, TokenCache, describe, input_side, model_input
from mast3r.tiling.matching import merge_duplicates
from multiview.images import Image, ImageTransform
from multiview.local_affine import local_affines
from multiview.matches import Matches
from multiview.photometric import MatchPlacer, PlacedMatches

logger = logging.getLogger(__name__)

_QUARTERS = {1: 0, 3: 2, 6: 3, 8: 1}  # EXIF orientation -> quarter turns against the clock
_LEAST_TELLING = 0.25  # share of matches; fewer with texture around them prove nothing
_LEAST_MATCHES = 50  # nor do fewer than these
_CELL = 4  # pixels of the network's input per cell of the maps that parts are compared by


@dataclass(frozen=True)
class CloserLookConfig:
    """How parts of photos are compared.

    Attributes:
        convinced: Share of matches that the photos confirm, of those around which there is something to see, from
            which on no closer look is needed. Wrong matches are confirmed by chance one time in ten.
        accepted: Share from which on the matches of a pair of parts are taken.
        turns: EXIF orientations in which the whole second photo is shown in the first round of the search: 3 upside
            down, 6 and 8 lying on a side.
        rounds: The other rounds. Each compares all parts of the first photo that have some share of its sides with all
            of the second photo that have some share, for a list of such pairs of shares.
        overlap: Least share of its side that a part has in common with the next one.
        size: How large parts are seen while they are compared, as a share of the network's input size.
        candidates: Pairs of parts that are matched in full, per round.

    Raises:
        ValueError: If a value is out of its range.
    """

    convinced: float = 0.3
    accepted: float = 0.22
    turns: tuple[int, ...] = (3, 6, 8)
    rounds: tuple[tuple[tuple[float, float], ...], ...] = (
        ((1.0, 0.6), (0.6, 1.0), (0.6, 0.6)),
        ((1.0, 0.4), (0.4, 1.0), (1.0, 0.25), (0.25, 1.0)),
        ((0.4, 0.4),),
    )
    overlap: float = 0.25
    size: float = 0.7
    candidates: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.accepted <= self.convinced <= 1:
            raise ValueError(f"accepted and convinced must be in 0..1 in order, got {self.accepted}, {self.convinced}.")
        if not 0 <= self.overlap < 1 or not 0 < self.size <= 1:
            raise ValueError(
                f"overlap must be in 0..1 without 1, size in 0..1 without 0, got {self.overlap} and {self.size}."
            )
        if not set(self.turns) <= {3, 6, 8}:
            raise ValueError(f"turns must be EXIF orientations 3, 6 and 8, got {self.turns}.")
        if not all(0 < share <= 1 for some in self.rounds for pair in some for share in pair):
            raise ValueError(f"rounds must hold pairs of shares above 0 and at most 1, got {self.rounds}.")
        if self.candidates < 1:
            raise ValueError(f"candidates must be at least 1, got {self.candidates}.")


def confirmed_share(placed: PlacedMatches) -> float:
    """Share of the matches that the photos confirm, of those whose surroundings tell something, 0..1."""
    count = max(placed.telling.sum(), _LEAST_TELLING * len(placed.telling), _LEAST_MATCHES)
    return float(placed.confirmed.sum() / count)


Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels of a photo, right and bottom exclusive."""


def part_boxes(size: tuple[int, int], share: float, overlap: float) -> list[Box]:
    """Parts of an image (width, height) with this share of its sides, row by row; 1 gives the image itself."""
    count = 1 + math.ceil((1 - share) / (share * (1 - overlap)) - 1e-9)
    width, height = (max(1, round(share * side)) for side in size)
    lefts, tops = (np.linspace(0, whole - side, count).round() for whole, side in zip(size, (width, height)))
    return [(int(x), int(y), int(x) + width, int(y) + height) for y in tops for x in lefts]


def checked_or_closer(
    cache: TokenCache,
    images: tuple[Image, Image],
    matches: Matches,
    placer: MatchPlacer,
    config: PairConfig,
    *,
    search: CloserLookConfig | None = None,
) -> Matches:
    """Matches of whole photos, placed and checked, or those of a closer look if too few are confirmed.

    Args:
        cache: The network, with the tokens of what it has seen.
        images: Both photos.
        matches: Of the whole photos, in their pixels.
        placer: Of the two photos.
        config: How pairs are matched.
        search: How parts are compared.
    """
    search = search or CloserLookConfig()
    first = placer.place(matches)
    if confirmed_share(first) >= search.convinced or not (search.turns or search.rounds):
        return first.kept(placer.config.min_checked)
    return look_closer(cache, images, first, placer, config, search)


def look_closer(
    cache: TokenCache,
    images: tuple[Image, Image],
    first: PlacedMatches,
    placer: MatchPlacer,
    config: PairConfig,
    search: CloserLookConfig,
) -> Matches:
    """Matches of the parts of two photos that have most in common, or the first ones if no parts have more.

    Args:
        cache: The network, with the tokens of what it has seen.
        images: Both photos.
        first: Matches of the whole photos.
        placer: Of the two photos.
        config: How pairs are matched.
        search: How parts are compared.

    Returns:
        Placed and checked matches in pixels of the photos.
    """
    parts = _Parts(cache, images[0], config), _Parts(cache, images[1], config)
    shares: dict[PartPair, float] = {}
    sample = config.changed(subsample=2 * config.subsample)  # enough to judge a pair of parts by
    for pairs in _rounds(images, search):
        scores = np.concatenate([_agreement(batch) for batch in _seen(parts, pairs, config, search.size)])
        best = [pairs[k] for k in np.argsort(-scores, kind="stable")[: search.candidates]]
        placed = (placer.place(matches) for matches in _matched(parts, best, sample))
        shares |= {pair: confirmed_share(look) for pair, look in zip(best, placed)}
        if max(shares.values()) >= search.convinced:
            break
    logger.info("closer look: confirmed %.2f at best, %.2f at first", max(shares.values()), confirmed_share(first))
    accepted = [pair for pair, share in shares.items() if share >= search.accepted]
    looks = [placer.place(matches) for matches in _matched(parts, accepted, config)]
    looks += [first] if confirmed_share(first) >= search.accepted else []
    return _joined(looks) if looks else first.kept(placer.config.min_checked)


@dataclass(frozen=True)
class _Part:
    """A part of a photo, and the EXIF orientation that it is turned by (1 for none)."""

    box: Box
    turn: int = 1


PartPair = tuple[_Part, _Part]


def _rounds(images: tuple[Image, Image], search: CloserLookConfig) -> Iterator[list[PartPair]]:
    """The pairs of parts of each round."""
    wholes = [_Part((0, 0, image.width, image.height)) for image in images]
    if search.turns:
        yield [(wholes[0], _Part(wholes[1].box, turn)) for turn in search.turns]
    for shares in search.rounds:
        boxes = [[part_boxes(i.size, s, search.overlap) for i, s in zip(images, pair)] for pair in shares]
        yield [(_Part(a), _Part(b)) for first, second in boxes for a in first for b in second]


class _Parts:
    """Parts of a photo as the network sees them, cut and encoded when they are asked for."""

    def __init__(self, cache: TokenCache, image: Image, config: PairConfig) -> None:
        self.cache, self._image, self._config = cache, image, config
        self._inputs: dict[tuple[_Part, float], ModelInput] = {}

    def input(self, part: _Part, size: float) -> ModelInput:
        """A part as the network sees it at this share of its input size."""
        if (part, size) not in self._inputs:
            left, top, right, bottom = part.box
            pixels = np.rot90(self._image.pixels[top:bottom, left:right], _QUARTERS[part.turn])
            model, patch = self.cache.model, self.cache.model.patch_size
            side = max(1, round(size * (self._config.image_size or input_side(model)) / patch)) * patch
            window = Image(np.ascontiguousarray(pixels))
            seen = model_input(model, window, image_size=side, crop=self._config.crop)
            crop = ImageTransform.crop(self._image.size, part.box)
            turn = ImageTransform.turn(crop.size_to, part.turn)
            self._inputs[part, size] = ModelInput(seen.pixels, crop.compose(turn).compose(seen.transform))
        return self._inputs[part, size]


def _seen(
    parts: tuple[_Parts, _Parts], pairs: Sequence[PartPair], config: PairConfig, size: float = 1.0
) -> Iterator[list[tuple[Described, Described]]]:
    """Descriptors of pairs of parts, a batch at a time."""
    cache = parts[0].cache
    for k in range(0, len(pairs), config.batch_size):
        batch = pairs[k : k + config.batch_size]
        inputs = [side.input(part, size) for pair in batch for side, part in zip(parts, pair)]
        tokens = cache.encode(inputs, batch_size=config.batch_size)
        orders = [(2 * n, 2 * n + 1) for n in range(len(batch))]
        yield describe(cache.model, tokens, [x.shape for x in inputs], orders, batch_size=config.batch_size)


def _agreement(batch: list[tuple[Described, Described]]) -> np.ndarray:
    """How far neighbouring matches of coarse maps agree with each other, 0..1, for each pair of a batch."""
    coarse = PairConfig(subsample=2, border_px=1, subpixel=False)
    found = match_pairs([[(_coarse(a), _coarse(b))] for a, b in batch], coarse)
    fits = [local_affines(matches.xy0, matches.xy1) for matches in found]
    return np.array([fit.support.mean() if len(fit.support) else 0.0 for fit in fits])


def _coarse(seen: Described) -> Described:
    """Mean descriptors of cells."""
    desc = F.avg_pool2d(seen.desc.permute(2, 0, 1), _CELL).permute(1, 2, 0)
    return Described(F.normalize(desc, dim=-1), F.avg_pool2d(seen.desc_confidence[None], _CELL)[0])


def _matched(parts: tuple[_Parts, _Parts], pairs: Sequence[PartPair], config: PairConfig) -> Iterator[Matches]:
    """Matches of pairs of parts in pixels of the photos."""
    found = (m for batch in _seen(parts, pairs, config) for m in match_pairs([[seen] for seen in batch], config))
    for (a, b), matches in zip(pairs, found):
        yield in_original_pixels(matches, (parts[0].input(a, 1.0), parts[1].input(b, 1.0)))


def _joined(looks: Sequence[PlacedMatches]) -> Matches:
    """The checked matches of some looks; of each pixel of either photo the most confident one."""
    found = [look.matches.filter(look.checked) for look in looks]
    columns = {name: np.concatenate([getattr(m, name) for m in found]) for name in ("xy0", "xy1", "confidence")}
    finest = max(found, key=lambda m: m.model_size0 or (0, 0))
    return merge_duplicates(replace(finest, **columns))
