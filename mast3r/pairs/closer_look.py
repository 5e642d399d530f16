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
_CELL = 4  # pixels of the network's input per cell of the maps that parts are compared by


@dataclass(frozen=True)
class CloserLookConfig:
    """How parts of photos are compared.

    Attributes:
        convinced: Share of matches that the photos confirm, of those around which there is something to see, from
            which on no closer look is needed. Wrong matches are confirmed by chance one time in ten.
        accepted: Share from which on the matches of a pair of parts are taken.
        shares: Sides of the parts as shares of the photo's sides, one round of the search after the other.
        turns: EXIF orientations that the second photo is also shown in, as a whole, in a round before these: 3 upside
            down, 6 and 8 lying on a side.
        overlap: Least share of its side that a part has in common with the next one.
        max_ratio: Parts are compared if their shares differ by this factor at most.
        size: How large parts are seen while they are compared, as a share of the network's input size.
        candidates: Pairs of parts that are matched in full, per round.

    Raises:
        ValueError: If a value is out of its range.
    """

    convinced: float = 0.3
    accepted: float = 0.22
    shares: tuple[float, ...] = (0.6, 0.4)
    turns: tuple[int, ...] = (3, 6, 8)
    overlap: float = 0.25
    max_ratio: float = 2.0
    size: float = 0.7
    candidates: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.accepted <= self.convinced <= 1:
            raise ValueError(f"accepted and convinced must be in 0..1 in order, got {self.accepted}, {self.convinced}.")
        if not 0 <= self.overlap < 1 or not 0 < self.size <= 1:
            raise ValueError(
                f"overlap must be in 0..1 without 1, size in 0..1 without 0, got {self.overlap} and {self.size}."
            )
        if not all(0 < share < 1 for share in self.shares):
            raise ValueError(f"shares must be between 0 and 1, got {self.shares}.")
        if not set(self.turns) <= {3, 6, 8}:
            raise ValueError(f"turns must be EXIF orientations 3, 6 and 8, got {self.turns}.")
        if self.candidates < 1 or self.max_ratio < 1:
            raise ValueError(
                f"candidates and max_ratio must be at least 1, got {self.candidates} and {self.max_ratio}."
            )


def confirmed_share(placed: PlacedMatches) -> float:
    """Share of the matches that the photos confirm, of those whose surroundings tell something, 0..1."""
    count = max(placed.telling.sum(), _LEAST_TELLING * len(placed.telling), 1)
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
    if confirmed_share(first) >= search.convinced:
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
    parts = _Parts(cache, images[0], search, config), _Parts(cache, images[1], search, config, search.turns)
    looks = [first]
    for level in range(len(search.shares) + 1):
        pairs = _new_pairs(parts, level, search)
        scores = np.concatenate([_agreement(batch) for batch in _seen(parts, pairs, config, search.size)])
        best = [pairs[k] for k in np.argsort(-scores, kind="stable")[: search.candidates]]
        looks += [placer.place(matches) for matches in _matched(parts, best, config)]
        if max(map(confirmed_share, looks)) >= search.convinced:
            break
    shares = np.array([confirmed_share(look) for look in looks])
    logger.info(
        "closer look: %.0f %% of the best matches confirmed, %.0f %% at first", *100 * shares[[shares.argmax(), 0]]
    )
    accepted = [look for look, share in zip(looks, shares) if share >= search.accepted]
    return _joined(accepted) if accepted else first.kept(placer.config.min_checked)


@dataclass(frozen=True)
class _Part:
    """A part of a photo, as it is shown to the network.

    Attributes:
        box: Where it is.
        share: Its sides as a share of those of the photo.
        turn: EXIF orientation that it is turned by, 1 for none.
        round: Round of the search it belongs to; -1 for the whole photo as it is.
    """

    box: Box
    share: float = 1.0
    turn: int = 1
    round: int = -1


class _Parts:
    """A photo and its parts as the network sees them, cut and encoded when they are asked for.

    The first one is the whole photo. The turned whole photo belongs to the first round, the parts of each share to the
    rounds after it.
    """

    def __init__(
        self, cache: TokenCache, image: Image, search: CloserLookConfig, config: PairConfig, turns: Sequence[int] = ()
    ) -> None:
        self.cache, self._image, self._config = cache, image, config
        whole = (0, 0, image.width, image.height)
        self.parts = [_Part(whole), *(_Part(whole, turn=turn, round=0) for turn in turns)]
        for number, share in enumerate(search.shares, start=1):
            boxes = part_boxes(image.size, share, search.overlap)
            self.parts += [_Part(box, share, round=number) for box in boxes]
        self._inputs: dict[tuple[int, float], ModelInput] = {}

    def input(self, number: int, size: float) -> ModelInput:
        """A part as the network sees it at this share of its input size."""
        if (number, size) not in self._inputs:
            part = self.parts[number]
            left, top, right, bottom = part.box
            window = Image(np.ascontiguousarray(_turned(self._image.pixels[top:bottom, left:right], part.turn)))
            model, patch = self.cache.model, self.cache.model.patch_size
            side = round(size * (self._config.image_size or input_side(model)) / patch) * patch
            seen = model_input(model, window, image_size=side, crop=self._config.crop)
            crop = ImageTransform.crop(self._image.size, part.box)
            turn = ImageTransform.turn(crop.size_to, part.turn)
            self._inputs[number, size] = ModelInput(seen.pixels, crop.compose(turn).compose(seen.transform))
        return self._inputs[number, size]


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (H, W, 3) turned by an EXIF orientation that does not mirror."""
    return np.rot90(pixels, _QUARTERS[orientation])


def _new_pairs(parts: tuple[_Parts, _Parts], level: int, search: CloserLookConfig) -> list[tuple[int, int]]:
    """Pairs of parts that no round before had, of shares that are not too unlike; turned ones with the whole photo."""
    pairs = []
    for i, a in enumerate(parts[0].parts):
        for j, b in enumerate(parts[1].parts):
            ratio = max(a.share / b.share, b.share / a.share)
            if max(a.round, b.round) == level and ratio <= search.max_ratio and (level == 0 or b.turn == 1):
                pairs.append((i, j))
    return pairs


def _seen(
    parts: tuple[_Parts, _Parts], pairs: Sequence[tuple[int, int]], config: PairConfig, size: float = 1.0
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


def _matched(parts: tuple[_Parts, _Parts], pairs: Sequence[tuple[int, int]], config: PairConfig) -> Iterator[Matches]:
    """Matches of pairs of parts in pixels of the photos."""
    found = (m for batch in _seen(parts, pairs, config) for m in match_pairs([[seen] for seen in batch], config))
    for (i, j), matches in zip(pairs, found):
        yield in_original_pixels(matches, (parts[0].input(i, 1.0), parts[1].input(j, 1.0)))


def _joined(looks: Sequence[PlacedMatches]) -> Matches:
    """The checked matches of some looks; of each pixel of either photo the most confident one."""
    found = [look.matches.filter(look.checked) for look in looks]
    columns = {name: np.concatenate([getattr(m, name) for m in found]) for name in ("xy0", "xy1", "confidence")}
    finest = max(found, key=lambda m: m.model_size0 or (0, 0))
    return merge_duplicates(replace(finest, **columns))
