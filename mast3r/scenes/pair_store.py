"""What is kept of many photos, by content: tokens of each, entries and placed matches of pairs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal, overload

import numpy as np
import torch
from torch import Tensor

from mast3r.pairs.map_matching import MapMatches
from mast3r.pairs.two_view import Seen, Tokens
from mast3r.scenes.pair_cache import PairCache, content_key

TOKEN_BYTES = 1 << 29
"""Default bound of the tokens held in memory."""

_MATCH_FIELDS = ("xy0", "xy1", "confidence")


@dataclass(frozen=True)
class PairOptions:
    """What an entry holds; part of its key.

    Attributes:
        subsample: Spacing in model pixels of the grid from which matches are searched.
        border_px: Drop matches nearer than this to a border of the model's input.
        subpixel: Place matches between the model's pixels.
        storage: Type of the stored maps. float16 halves the disk space; a point moves by less than 0.05 % of
            its distance.

    Raises:
        ValueError: If a value is out of its range.
    """

    subsample: int = 8
    border_px: int = 3
    subpixel: bool = True
    storage: Literal["float32", "float16"] = "float32"

    def __post_init__(self) -> None:
        if self.subsample < 1 or self.border_px < 0:
            raise ValueError(
                f"subsample must be at least 1 and border_px not negative, got {self.subsample} and {self.border_px}."
            )
        if self.storage not in ("float32", "float16"):
            raise ValueError(f"storage must be 'float32' or 'float16', got {self.storage!r}.")


@dataclass(frozen=True, eq=False)
class OrderMaps:
    """One decoder pass over photos (first, second): both pointmaps, in the FIRST photo's camera.

    Attributes:
        points_first: (H1, W1, 3) float32.
        confidence_first: (H1, W1) float32, above 1.
        points_second: (H2, W2, 3) float32, points of the second photo, in the first one's camera.
        confidence_second: (H2, W2) float32, above 1.
    """

    points_first: np.ndarray
    confidence_first: np.ndarray
    points_second: np.ndarray
    confidence_second: np.ndarray

    @classmethod
    def of(cls, seen: tuple[Seen, Seen]) -> OrderMaps:
        """What the network saw in one pass."""
        return cls(*(m.cpu().numpy() for side in seen for m in (side.points, side.confidence)))


@dataclass(frozen=True, eq=False)
class PairEntry:
    """All that alignment needs of a pair (0, 1).

    Attributes:
        forward: The pass (0, 1).
        backward: The pass (1, 0).
        matches: Matches of both passes in model pixels.
    """

    forward: OrderMaps
    backward: OrderMaps
    matches: MapMatches

    @property
    def score(self) -> float:
        """How strongly the photos hang together: the sum of the matches' confidence."""
        return float(self.matches.confidence.sum())

    def swapped(self) -> PairEntry:
        """The same pair as (1, 0)."""
        return PairEntry(self.backward, self.forward, self.matches.swapped())


@dataclass(frozen=True, eq=False)
class PlacedPair:
    """The matches of a pair after the full-size photos have placed them.

    Attributes:
        matches: In model pixels.
        believed: Share of the network's matches that the photos confirm, see
            `multiview.photometric.believed_share`.
    """

    matches: MapMatches
    believed: float


class PairStore:
    """Tokens of photos and entries of pairs, on disk and, for tokens, partly in memory.

    Args:
        cache: Where they are kept.
        model_key: Identity of the weights (`mast3r.scenes.pair_cache.weights_key`).
        options: What a pair's entry holds.
        token_bytes: Bound of the tokens held in memory; those used longest ago leave first.
    """

    def __init__(
        self,
        cache: PairCache,
        model_key: str,
        options: PairOptions | None = None,
        *,
        token_bytes: int = TOKEN_BYTES,
    ) -> None:
        self.cache = cache
        self.model_key = model_key
        self.options = options or PairOptions()
        self.token_bytes = token_bytes
        self._recent: OrderedDict[str, Tokens] = OrderedDict()
        self._held = 0

    def tokens_key(self, image: str) -> str:
        """Key of the cache entry with a photo's tokens."""
        return content_key("tokens", self.model_key, image)

    def pair_key(self, a: str, b: str) -> str:
        """Key of the cache entry of a pair; the same for (a, b) and (b, a)."""
        return content_key("pair", self.model_key, repr(asdict(self.options)), *sorted((a, b)))

    def has_tokens(self, image: str) -> bool:
        """Whether a photo has been encoded."""
        return image in self._recent or self.tokens_key(image) in self.cache

    def has_pair(self, a: str, b: str) -> bool:
        """Whether a pair is finished and undamaged."""
        return self.pair_key(a, b) in self.cache

    def tokens(self, image: str) -> Tokens:
        """Tokens of a photo, on the CPU unless they are still in memory.

        Raises:
            CacheMiss: If the photo has not been encoded.
        """
        if image in self._recent:
            self._recent.move_to_end(image)
            return self._recent[image]
        entry = self.cache.read(self.tokens_key(image))
        return self._hold(image, (entry["features"], entry["positions"]))

    def put_tokens(self, image: str, tokens: Tokens) -> None:
        """Keep the tokens of a photo."""
        features, positions = tokens
        self.cache.write(self.tokens_key(image), {"features": features, "positions": positions})
        self._hold(image, tokens)

    def features(self, images: Sequence[str], width: int) -> Sequence[Tensor]:
        """The first `width` channels (N_i, C) of the features of photos, each read when it is asked for."""
        return _Features(self, tuple(images), width)

    def put_pair(self, a: str, b: str, entry: PairEntry) -> None:
        """Keep the entry of the pair (a, b)."""
        self.cache.write(self.pair_key(a, b), _to_tensors(entry if a <= b else entry.swapped(), self.options))

    def pair(self, a: str, b: str) -> PairEntry:
        """The entry of the pair (a, b).

        Raises:
            CacheMiss: If the pair is not finished or its file is damaged.
        """
        entry = _from_tensors(self.cache.read(self.pair_key(a, b)))
        return entry if a <= b else entry.swapped()

    def matches(self, a: str, b: str) -> MapMatches:
        """Only the matches of the pair (a, b); raises as `pair` does."""
        names = [f"matches.{name}" for name in _MATCH_FIELDS]
        found = _matches_from(self.cache.read(self.pair_key(a, b), names))
        return found if a <= b else found.swapped()

    def placed_key(self, a: str, b: str, how: str) -> str:
        """Key of the cache entry with the matches of a pair after the photos have placed them in some way."""
        return content_key("placed pair", self.pair_key(a, b), how)

    def placed(self, a: str, b: str, how: str) -> PlacedPair:
        """The placed matches of the pair (a, b).

        Raises:
            CacheMiss: If they are not there, or damaged.
        """
        tensors = self.cache.read(self.placed_key(a, b, how))
        found = _matches_from(tensors)
        return PlacedPair(found if a <= b else found.swapped(), float(tensors["believed"]))

    def put_placed(self, a: str, b: str, how: str, pair: PlacedPair) -> None:
        """Keep the placed matches of the pair (a, b)."""
        matches = pair.matches if a <= b else pair.matches.swapped()
        believed = torch.tensor(pair.believed, dtype=torch.float64)
        self.cache.write(self.placed_key(a, b, how), _match_tensors(matches) | {"believed": believed})

    def _hold(self, image: str, tokens: Tokens) -> Tokens:
        """Remember tokens, and forget the oldest ones beyond the bound."""
        self._recent[image] = tokens
        self._held += _nbytes(tokens)
        while self._held > self.token_bytes and self._recent:
            self._held -= _nbytes(self._recent.popitem(last=False)[1])
        return tokens


class _Features(Sequence[Tensor]):
    """Features of photos in a store."""

    def __init__(self, store: PairStore, images: tuple[str, ...], width: int) -> None:
        self._store, self._images, self._width = store, images, width

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[k] for k in range(len(self))[index]]
        features, _ = self._store.tokens(self._images[index])
        return features[0, :, : self._width].cpu()


def _to_tensors(entry: PairEntry, options: PairOptions) -> dict[str, Tensor]:
    dtype = getattr(torch, options.storage)
    tensors = _match_tensors(entry.matches)
    for order in ("forward", "backward"):
        maps = getattr(entry, order)
        tensors |= {f"{order}.{field.name}": _tensor(getattr(maps, field.name)).to(dtype) for field in fields(maps)}
    return tensors


def _from_tensors(tensors: Mapping[str, Tensor]) -> PairEntry:
    forward, backward = (
        OrderMaps(*(tensors[f"{order}.{field.name}"].float().numpy() for field in fields(OrderMaps)))
        for order in ("forward", "backward")
    )
    return PairEntry(forward, backward, _matches_from(tensors))


def _match_tensors(matches: MapMatches) -> dict[str, Tensor]:
    return {f"matches.{name}": _tensor(getattr(matches, name)) for name in _MATCH_FIELDS}


def _matches_from(tensors: Mapping[str, Tensor]) -> MapMatches:
    return MapMatches(*(tensors[f"matches.{name}"].numpy() for name in _MATCH_FIELDS))


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _nbytes(tokens: Tokens) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tokens)
