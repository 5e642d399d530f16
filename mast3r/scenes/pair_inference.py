"""The pair stage of a reconstruction: photos and pairs in, one cache entry per pair out.

`infer_pairs` is a pure function of the photos' content, the weights and the options: up to rounding an entry does
not depend on the other pairs, nor on the order or batch it was computed in. A list of pairs may therefore be cut
into parts and given to workers that share a cache folder; `infer_pairs` on the whole list then only reads.

Every photo is encoded once, however many pairs it belongs to, and both orders of a pair are decoded from that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias, TypeVar

import torch

from mast3r.model import AsymmetricMASt3R
from mast3r.pairs.config import PairConfig
from mast3r.pairs.map_matching import match_pairs
from mast3r.pairs.two_view import ModelInput, Shape, Tokens, decode, encode
from mast3r.scenes.pair_cache import CacheMiss
from mast3r.scenes.pair_store import OrderMaps, PairEntry, PairStore

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Kind = TypeVar("Kind")
KeyPair: TypeAlias = "tuple[str, str]"
"""Keys (`ModelInput.key`) of the two photos of a pair."""
OnDone: TypeAlias = "Callable[[int, int], None]"
"""Told after each batch: how many are finished, and how many there are."""

DEFAULT_MEMORY = 2 << 30
"""Bytes the stage aims to stay within, beyond the weights, unless told otherwise."""

TOKEN_SHARE = 0.25
"""Share of the memory for tokens; the rest is for activations."""

_ACCELERATOR_BATCH, _CPU_BATCH = 16, 2  # a CPU is busy with one pair already
_LINEAR_FLOATS = 256  # values a pixel held by a head without DPT
_TOKEN_FLOATS = 24  # values a token and channel held by a decoder layer
_STORED_FLOATS = 64  # values a pixel of the maps of both orders


def encode_images(
    model: AsymmetricMASt3R,
    images: Mapping[str, ModelInput],
    store: PairStore,
    *,
    max_memory: int | None = None,
    batch_size: int | None = None,
    on_done: OnDone | None = None,
) -> None:
    """Encode the photos that the store does not know yet; each once.

    Args:
        model: The model.
        images: Photos by key.
        store: Where tokens are looked up and kept.
        max_memory: Bytes to stay within, beyond the weights; default `DEFAULT_MEMORY`.
        batch_size: Photos at once; default what the memory allows.
        on_done: Told about progress.

    Raises:
        MemoryError: If not even one photo fits.
    """
    missing = [key for key in images if not store.has_tokens(key)]
    progress = _Progress(len(images), len(images) - len(missing), on_done)

    def run(keys: list[str]) -> None:
        for key, tokens in zip(keys, encode(model, [images[key] for key in keys], batch_size=len(keys))):
            store.put_tokens(key, tokens)
        progress.add(len(keys))

    for shape, keys in _grouped(missing, lambda key: images[key].shape).items():
        limit = batch_size or batch_that_fits(model, (shape, shape), max_memory)
        run_in_batches(keys, limit, run)


def infer_pairs(
    model: AsymmetricMASt3R,
    images: Mapping[str, ModelInput],
    pairs: Iterable[KeyPair],
    store: PairStore,
    *,
    max_memory: int | None = None,
    batch_size: int | None = None,
    on_done: OnDone | None = None,
) -> None:
    """Compute the entries of pairs that the store does not have yet.

    Args:
        model: The model.
        images: Photos by key; those of the missing pairs are needed.
        pairs: Pairs of keys. (a, b) and (b, a) are one pair.
        store: Where tokens and entries are looked up and kept; read the results from it.
        max_memory: Bytes to stay within, beyond the weights; default `DEFAULT_MEMORY`.
        batch_size: Pairs at once; default what the memory allows. When memory runs out the batch is halved.
        on_done: Told about progress.

    Raises:
        KeyError: If a missing pair names a photo that is not among `images`.
        MemoryError: If not even one pair fits.
    """
    distinct = sorted({(min(a, b), max(a, b)) for a, b in pairs})
    missing = [pair for pair in distinct if not store.has_pair(*pair)]
    progress = _Progress(len(distinct), len(distinct) - len(missing), on_done)
    needed = {key: images[key] for pair in missing for key in pair}
    encode_images(model, needed, store, max_memory=max_memory, batch_size=batch_size)

    def run(batch: list[KeyPair]) -> None:
        for pair, entry in zip(batch, _infer_batch(model, images, batch, store)):
            store.put_pair(*pair, entry)
        progress.add(len(batch))

    for shapes, group in _grouped(missing, lambda pair: (images[pair[0]].shape, images[pair[1]].shape)).items():
        run_in_batches(group, batch_size or batch_that_fits(model, shapes, max_memory), run)


def batch_that_fits(model: AsymmetricMASt3R, shapes: tuple[Shape, Shape], max_memory: int | None = None) -> int:
    """How many pairs of these shapes are decoded at once, at least 1.

    Args:
        model: The model.
        shapes: (height, width) of both photos.
        max_memory: Bytes to stay within, beyond the weights; default `DEFAULT_MEMORY`.
    """
    budget = (1 - TOKEN_SHARE) * (DEFAULT_MEMORY if max_memory is None else max_memory)
    on_cpu = next(model.parameters()).device.type == "cpu"
    limit = _CPU_BATCH if on_cpu else _ACCELERATOR_BATCH
    return max(1, min(limit, int(budget // pair_bytes(model, shapes))))


def pair_bytes(model: AsymmetricMASt3R, shapes: tuple[Shape, Shape]) -> int:
    """About how many bytes the decoding of both orders of one pair needs, beyond the weights."""
    pixels = [height * width for height, width in shapes]
    widths = model.dpt_widths
    a_pixel = widths.feature_dim + 3 * widths.last_dim if "dpt" in model.head_type else _LINEAR_FLOATS
    # Photos of equal shape go through a head together, once in either order.
    in_head = sum(pixels) if shapes[0] == shapes[1] else max(pixels)
    tokens = sum(pixels) / model.patch_size**2 * model.enc_embed_dim * _TOKEN_FLOATS
    return int(4 * (in_head * a_pixel + 2 * tokens + sum(pixels) * _STORED_FLOATS))


def run_in_batches(items: Sequence[Item], batch_size: int, run: Callable[[list[Item]], None]) -> None:
    """Call `run` on consecutive batches; where memory runs out, on half as many from then on.

    Raises:
        MemoryError: If not even one item fits.
    """
    rest, size = list(items), max(1, batch_size)
    while rest:
        batch = rest[:size]
        if _fits(run, batch):
            rest = rest[len(batch) :]
        elif len(batch) == 1:
            raise MemoryError(
                "There is not enough memory for a single pair; use smaller images (image_size) or another device."
            )
        else:
            size = len(batch) // 2
            logger.warning("out of memory with %d at once, going on with %d", len(batch), size)


def _fits(run: Callable[[list[Item]], None], batch: list[Item]) -> bool:
    """Run a batch; False if memory ran out."""
    try:
        run(batch)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        return False
    return True


def _is_out_of_memory(error: BaseException) -> bool:
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    text = str(error).lower()
    return known or "out of memory" in text or "can't allocate memory" in text


def _infer_batch(
    model: AsymmetricMASt3R, images: Mapping[str, ModelInput], pairs: Sequence[KeyPair], store: PairStore
) -> list[PairEntry]:
    keys = list(dict.fromkeys(key for pair in pairs for key in pair))
    place = {key: k for k, key in enumerate(keys)}
    forward = [(place[a], place[b]) for a, b in pairs]
    orders = forward + [(j, i) for i, j in forward]
    tokens = [_known_tokens(model, images[key], key, store) for key in keys]
    passes = decode(model, tokens, [images[key].shape for key in keys], orders, batch_size=len(orders))
    both = list(zip(passes, passes[len(pairs) :]))
    options = store.options
    config = PairConfig(subsample=options.subsample, border_px=options.border_px, subpixel=options.subpixel)
    found = match_pairs(both, config)
    return [PairEntry(OrderMaps.of(there), OrderMaps.of(back), m) for (there, back), m in zip(both, found)]


def _known_tokens(model: AsymmetricMASt3R, image: ModelInput, key: str, store: PairStore) -> Tokens:
    """Tokens of a photo on the model's device, encoded anew if their file was damaged since."""
    try:
        features, positions = store.tokens(key)
    except CacheMiss:
        features, positions = encode(model, [image])[0]
        store.put_tokens(key, (features, positions))
    device = next(model.parameters()).device
    return features.to(device), positions.to(device)


def _grouped(items: Iterable[Item], kind: Callable[[Item], Kind]) -> dict[Kind, list[Item]]:
    groups: dict[Kind, list[Item]] = {}
    for item in items:
        groups.setdefault(kind(item), []).append(item)
    return groups


class _Progress:
    """Counts finished items and tells a listener."""

    def __init__(self, total: int, done: int, listener: OnDone | None) -> None:
        self._total, self._done, self._listener = total, done, listener
        self.add(0)

    def add(self, count: int) -> None:
        self._done += count
        if self._listener is not None:
            self._listener(self._done, self._total)
