"""A closer look at pairs of photos whose matches the photos do not confirm.

Seen whole at the network's size, photos that share little, or show the same things at unlike sizes, are hardly
matched. Parts of them, each as large as the network sees, are: every part of one photo is compared with every
part of the other at little cost, and the most promising pairs of parts are matched in full. Their matches mostly speak
for several geometries; the parts that each of these maps to each other are matched once more, by which a right one
gains far more than a wrong one. The photos themselves (`multiview.photometric`) and the geometry that all of these have
in common (`multiview.consensus`) say which matches are right.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch.nn.functional as F

from mast3r.pairs.config import PairConfig
from mast3r.pairs.map_matching import in_original_pixels, match_pairs
from mast3r.pairs.two_view import Described, ModelInput, TokenCache, describe, input_side, model_input
from mast3r.tiling.matching import merge_duplicates
from mast3r.tiling.tiles import on_image
from multiview.consensus import Consensus, ConsensusConfig
from multiview.images import Image, ImageTransform, resample, rotated
from multiview.local_affine import local_affines
from multiview.matches import Matches, concatenated
from multiview.photometric import MatchPlacer, PlacedMatches, confirmed_share

logger = logging.getLogger(__name__)

_LEAST_SIDE = 32  # pixels of a part
_LEAST_ZOOM = 12  # matches; fewer do not say where to look
_FRINGE = 0.05  # share of them that may lie outside
_TURN_STEP = 45.0  # degrees: the network bears half of it
_CELL = 4  # pixels of the network's input per cell of the maps that parts are compared by


@dataclass(frozen=True)
class CloserLookConfig:
    """How parts of photos are compared.

    Attributes:
        convinced: Share of matches that the photos confirm, of those around which there is something to see, from
            which on no closer look is needed. Wrong matches are confirmed by chance one time in ten.
        turns: Angles in degrees, against the clock, by which the whole second photo is turned in the first round of
            the search.
        rounds: The other rounds. Each compares all parts of the first photo that have some share of its sides with all
            of the second photo that have some share, for a list of such pairs of shares.
        overlap: Least share of its side that a part has in common with the next one.
        size: How large parts are seen while they are compared, as a share of the network's input size.
        candidates: Pairs of parts that are matched in full, per round.
        zooms: How often, in the end, the parts where the matches of one geometry lie are matched once more.
        rivals: Geometries for which that is done, each time: a right one gains more matches by it than a wrong one.
        consensus: How the geometry that the pairs of parts share is found.

    Raises:
        ValueError: If a value is out of its range.
    """

    convinced: float = 0.33
    turns: tuple[float, ...] = (45, 90, 135, 180, 225, 270, 315)
    rounds: tuple[tuple[tuple[float, float], ...], ...] = (
        ((1.0, 0.6), (0.6, 1.0), (0.6, 0.6)),
        ((1.0, 0.4), (0.4, 1.0), (1.0, 0.25), (0.25, 1.0)),
        ((0.6, 0.4), (0.4, 0.6), (0.4, 0.4)),
    )
    overlap: float = 0.25
    size: float = 0.7
    candidates: int = 3
    zooms: int = 2
    rivals: int = 4
    consensus: ConsensusConfig = field(default_factory=ConsensusConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.convinced <= 1:
            raise ValueError(f"convinced must be in 0..1, got {self.convinced}.")
        if not 0 <= self.overlap < 1 or not 0 < self.size <= 1:
            raise ValueError(
                f"overlap must be in 0..1 without 1, size in 0..1 without 0, got {self.overlap} and {self.size}."
            )
        if not all(0 < share <= 1 for some in self.rounds for pair in some for share in pair):
            raise ValueError(f"rounds must hold pairs of shares above 0 and at most 1, got {self.rounds}.")
        if self.candidates < 1 or self.zooms < 0 or self.rivals < 1:
            raise ValueError(
                "candidates and rivals must be at least 1 and zooms not negative, got "
                f"{self.candidates}, {self.rivals} and {self.zooms}."
            )


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
    first: PlacedMatches,
    placer: MatchPlacer,
    config: PairConfig,
    *,
    search: CloserLookConfig | None = None,
) -> Matches:
    """The checked ones of the matches of whole photos, or those of a closer look if too few are confirmed.

    Args:
        cache: The network, with the tokens of what it has seen.
        images: Both photos.
        first: Matches of the whole photos, as the placer has placed them.
        placer: Of the two photos.
        config: How pairs are matched.
        search: How parts are compared.
    """
    search = search or CloserLookConfig()
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
    """Matches of the parts of two photos that agree with each other, or the first ones if none do.

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
    smallest = min((share for some in search.rounds for pair in some for share in pair), default=1.0)
    parts = _Parts(cache, images[0], smallest, config), _Parts(cache, images[1], smallest, config)
    looks: dict[PartPair, PlacedMatches] = {}  # of what has been matched
    for pairs in _rounds((parts[0].image.size, parts[1].image.size), search):
        scores = np.concatenate([_agreement(batch) for batch in _seen(parts, pairs, config, search.size)])
        best = [pairs[k] for k in np.argsort(-scores, kind="stable")[: search.candidates]]
        looks |= dict(zip(best, map(placer.place, _matched(parts, best, config))))
        if max(map(confirmed_share, looks.values())) >= search.convinced:
            break
    consensus = Consensus((first, *looks.values()), search.consensus)
    for _ in range(search.zooms):
        rivals = [found for found in consensus.rivals(search.rivals) if len(found) >= _LEAST_ZOOM]
        fresh = [pair for pair in dict.fromkeys(_around(parts, found) for found in rivals) if pair not in looks]
        zoomed = dict(zip(fresh, map(placer.place, _matched(parts, fresh, config))))
        consensus.add(zoomed.values())
        looks |= zoomed
    agreeing = consensus.agreeing()
    logger.info("closer look: %d pairs of parts; they %s", len(looks), "agree" if agreeing else "do not agree")
    return _joined(agreeing) if agreeing else first.kept(placer.config.min_checked)


@dataclass(frozen=True)
class _Part:
    """A part of a photo, and the angle in degrees that it is turned by."""

    box: Box
    turn: float = 0.0


PartPair = tuple[_Part, _Part]


def _rounds(sizes: tuple[tuple[int, int], tuple[int, int]], search: CloserLookConfig) -> Iterator[list[PartPair]]:
    """The pairs of parts of each round, for photos of two sizes (width, height)."""
    whole0, whole1 = ((0, 0, *size) for size in sizes)
    if search.turns:
        yield [(_Part(whole0), _Part(whole1, turn)) for turn in search.turns]
    for shares in search.rounds:
        wide = [pair for pair in shares if all(s * min(size) >= _LEAST_SIDE for s, size in zip(pair, sizes))]
        boxes = [[part_boxes(size, s, search.overlap) for size, s in zip(sizes, pair)] for pair in wide]
        if boxes:
            yield [(_Part(a), _Part(b)) for first, second in boxes for a in first for b in second]


class _Parts:
    """Parts of a photo as the network sees them, cut and encoded when they are asked for.

    Args:
        cache: The network, with the tokens of what it has seen.
        image: The photo.
        smallest: Smallest share of the photo's sides that is looked at; it bounds the resolution that is needed.
        config: How pairs are matched.
    """

    def __init__(self, cache: TokenCache, image: Image, smallest: float, config: PairConfig) -> None:
        self.cache, self._config = cache, config
        self._side = config.image_size or input_side(cache.model)
        shrink = min(1.0, 1.5 * self._side / smallest / max(image.size))
        self._resize = ImageTransform.resize(image.size, _scaled(image.size, shrink))
        self.image = Image(resample(image, self._resize)) if shrink < 1 else image
        self._inputs: dict[tuple[_Part, float], ModelInput] = {}

    def input(self, part: _Part, size: float) -> ModelInput:
        """A part as the network sees it at this share of its input size."""
        if (part, size) not in self._inputs:
            left, top, right, bottom = part.box
            window = Image(np.ascontiguousarray(self.image.pixels[top:bottom, left:right]))
            transform = self._resize.compose(ImageTransform.crop(self.image.size, part.box))
            if part.turn:
                window, turn = _turned(window, part.turn, 2 * self._side)
                transform = transform.compose(turn)
            model, patch = self.cache.model, self.cache.model.patch_size
            side = max(1, round(size * self._side / patch)) * patch
            seen = model_input(model, window, image_size=side, crop=self._config.crop)
            self._inputs[part, size] = ModelInput(seen.pixels, transform.compose(seen.transform))
        return self._inputs[part, size]

    def around(self, xy: np.ndarray, turn: float = 0.0) -> _Part:
        """A box around most of some pixels (N, 2) of the photo, turned by an angle in degrees."""
        low, high = np.quantile(self._resize.apply(xy), (_FRINGE, 1 - _FRINGE), axis=0)
        half = 0.65 * (high - low)
        centre, half = (low + high) / 2, np.maximum(half, max(_LEAST_SIDE, 0.1 * max(self.image.size), half.max() / 4))
        box = np.concatenate([np.floor(centre - half), np.ceil(centre + half) + 1])
        left, top, right, bottom = (int(v) for v in box.clip(0, 2 * self.image.size))
        return _Part((left, top, min(right, self.image.width), min(bottom, self.image.height)), turn)


def _scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _turned(image: Image, degrees: float, side: int) -> tuple[Image, ImageTransform]:
    """The image turned, after it was made no larger than a side in pixels, and the map to it."""
    resize = ImageTransform.resize(image.size, _scaled(image.size, min(1.0, side / max(image.size))))
    small = Image(resample(image, resize))
    return Image(rotated(small, degrees)), resize.compose(ImageTransform.rotate(small.size, degrees))


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
        matches = in_original_pixels(matches, (parts[0].input(a, 1.0), parts[1].input(b, 1.0)))
        yield matches.filter(on_image(matches.xy0, matches.size0) & on_image(matches.xy1, matches.size1))


def _around(parts: tuple[_Parts, _Parts], found: Matches) -> PartPair:
    """The parts of both photos where most of some matches lie, the second turned as the first is."""
    return parts[0].around(found.xy0), parts[1].around(found.xy1, turn=_turn(found))


def _turn(found: Matches) -> float:
    """Angle in degrees, in whole steps, by which to turn the second photo for both to be seen upright alike."""
    arms0, arms1 = (xy - np.median(xy, axis=0) for xy in (found.xy0, found.xy1))
    cross = arms0[:, 0] * arms1[:, 1] - arms0[:, 1] * arms1[:, 0]
    dot = (arms0 * arms1).sum(axis=1)
    length = np.maximum(np.hypot(cross, dot), 1e-9)
    angle = math.degrees(math.atan2((cross / length).sum(), (dot / length).sum()))
    return float(_TURN_STEP * round(angle / _TURN_STEP) % 360)


def _joined(found: Sequence[Matches]) -> Matches:
    """Matches of some looks as one; of each pixel of either photo the most confident one."""
    return merge_duplicates(concatenated(found))
