"""The pair stage: each photo encoded once, each pair stored once, whatever the batches and interruptions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import combinations

import numpy as np
import pytest
import torch

from mast3r.model import AsymmetricMASt3R
from mast3r.pairs.config import PairConfig
from mast3r.pairs.map_matching import match_orders
from mast3r.pairs.two_view import ModelInput, decode, encode, model_input
from mast3r.scenes import pair_inference
from mast3r.scenes.pair_cache import CacheMiss, PairCache, weights_key
from mast3r.scenes.pair_inference import (
    batch_that_fits,
    encode_images,
    infer_pairs,
    pair_bytes,
    run_in_batches,
)
from mast3r.scenes.pair_store import PairOptions, PairStore
from mast3r.training import PRESETS
from multiview.images import Image

SIZES = ((64, 48), (64, 48), (48, 64), (64, 64))


@pytest.fixture(scope="module")
def tiny() -> AsymmetricMASt3R:
    torch.manual_seed(0)
    return AsymmetricMASt3R(**PRESETS["tiny"].model).eval()


@pytest.fixture(scope="module")
def photos(tiny) -> dict[str, ModelInput]:
    rng = np.random.default_rng(0)
    images = [Image(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]
    inputs = [model_input(tiny, image, image_size=64) for image in images]
    return {x.key: x for x in inputs}


@pytest.fixture
def store(tiny, tmp_path) -> PairStore:
    return PairStore(PairCache(tmp_path), weights_key(tiny), PairOptions(border_px=0))


@pytest.fixture
def counted(tiny, monkeypatch) -> dict[str, int]:
    """How many images were encoded and orders decoded."""
    counts = {"encoded": 0, "decoded": 0}
    encode_image, decoder = tiny._encode_image, tiny._decoder

    def counting_encode(image, shape):
        counts["encoded"] += len(image)
        return encode_image(image, shape)

    def counting_decode(f1, *rest):
        counts["decoded"] += len(f1)
        return decoder(f1, *rest)

    monkeypatch.setattr(tiny, "_encode_image", counting_encode)
    monkeypatch.setattr(tiny, "_decoder", counting_decode)
    return counts


def all_pairs(photos):
    return list(combinations(photos, 2))


def test_entries_equal_the_plain_computation(tiny, photos, store):
    infer_pairs(tiny, photos, all_pairs(photos), store)
    for a, b in (sorted(pair) for pair in all_pairs(photos)):  # as stored: the other way round is the same, swapped
        entry = store.pair(a, b)
        shapes = [photos[k].shape for k in (a, b)]
        tokens = encode(tiny, [photos[a], photos[b]])
        there, back = decode(tiny, tokens, shapes, [(0, 1), (1, 0)])
        for maps, (first, second) in ((entry.forward, there), (entry.backward, back)):
            np.testing.assert_allclose(maps.points_first, first.points, atol=1e-4)
            np.testing.assert_allclose(maps.points_second, second.points, atol=1e-4)
            np.testing.assert_allclose(maps.confidence_first, first.confidence, rtol=1e-4)
            np.testing.assert_allclose(maps.confidence_second, second.confidence, rtol=1e-4)
            assert maps.points_first.dtype == np.float32
        plain = match_orders([there, back], PairConfig(border_px=0))
        np.testing.assert_allclose(entry.matches.xy0, plain.xy0, atol=1e-3)
        np.testing.assert_allclose(entry.matches.xy1, plain.xy1, atol=1e-3)
        assert entry.score == pytest.approx(float(entry.matches.confidence.sum()))


def test_each_photo_is_encoded_once_and_each_pair_decoded_in_both_orders(tiny, photos, store, counted):
    pairs = all_pairs(photos)
    infer_pairs(tiny, photos, [*pairs, *((b, a) for a, b in pairs)], store)
    assert counted == {"encoded": len(photos), "decoded": 2 * len(pairs)}


def test_what_is_there_is_not_computed_again(tiny, photos, store, counted):
    infer_pairs(tiny, photos, all_pairs(photos)[:3], store)
    counted.update(encoded=0, decoded=0)
    infer_pairs(tiny, photos, all_pairs(photos), PairStore(store.cache, store.model_key, store.options))
    assert counted == {"encoded": 0, "decoded": 2 * (len(all_pairs(photos)) - 3)}


def test_photos_are_encoded_once_even_if_no_tokens_fit_into_memory(tiny, photos, store, counted):
    forgetful = PairStore(store.cache, store.model_key, token_bytes=0)
    encode_images(tiny, photos, forgetful)
    infer_pairs(tiny, photos, all_pairs(photos), forgetful)
    assert counted["encoded"] == len(photos)
    assert not forgetful._recent


def test_tokens_in_memory_stay_within_the_bound(tiny, photos, store):
    encode_images(tiny, photos, store)
    one = sum(t.numel() * t.element_size() for t in store.tokens(next(iter(photos))))
    bounded = PairStore(store.cache, store.model_key, token_bytes=int(2.5 * one))
    for key in [*photos, *photos]:
        bounded.tokens(key)
        assert sum(t.numel() * t.element_size() for tokens in bounded._recent.values() for t in tokens) <= 2.5 * one


def test_results_do_not_depend_on_batches_or_order(tiny, photos, tmp_path):
    stores = []
    for k, (batch, pairs) in enumerate([(1, all_pairs(photos)), (5, all_pairs(photos)[::-1])]):
        stores.append(PairStore(PairCache(tmp_path / str(k)), weights_key(tiny)))
        infer_pairs(tiny, photos, pairs, stores[-1], batch_size=batch)
    for a, b in all_pairs(photos):
        one, other = (store.pair(a, b) for store in stores)
        np.testing.assert_allclose(one.forward.points_first, other.forward.points_first, atol=1e-4)
        np.testing.assert_allclose(one.backward.points_second, other.backward.points_second, atol=1e-4)


def test_a_pair_reads_back_the_other_way_round(tiny, photos, store):
    a, b = list(photos)[:2]
    infer_pairs(tiny, photos, [(a, b)], store)
    there, back = store.pair(a, b), store.pair(b, a)
    assert np.array_equal(there.forward.points_second, back.backward.points_second)
    assert np.array_equal(there.matches.xy0, back.matches.xy1)
    assert np.array_equal(store.matches(b, a).xy0, back.matches.xy0)
    assert len(store.matches(a, b)) == len(there.matches)


def test_half_precision_storage_moves_points_hardly(tiny, photos, tmp_path):
    entries = []
    for storage in ("float32", "float16"):
        store = PairStore(PairCache(tmp_path / storage), weights_key(tiny), PairOptions(storage=storage))
        a, b = list(photos)[:2]
        infer_pairs(tiny, photos, [(a, b)], store)
        entries.append(store.pair(a, b))
    exact, rounded = (entry.forward.points_first for entry in entries)
    assert rounded.dtype == np.float32
    assert np.abs(exact - rounded).max() < 1e-3 * np.abs(exact).max()
    assert np.array_equal(entries[0].matches.xy1, entries[1].matches.xy1)


def test_other_weights_or_options_have_other_entries(tiny, photos, store):
    a, b = list(photos)[:2]
    infer_pairs(tiny, photos, [(a, b)], store)
    assert store.has_pair(a, b)
    assert not PairStore(store.cache, store.model_key, PairOptions(subsample=4)).has_pair(a, b)
    assert not PairStore(store.cache, "other weights").has_pair(a, b)


def test_a_damaged_entry_is_computed_again(tiny, photos, store, counted):
    pairs = all_pairs(photos)
    infer_pairs(tiny, photos, pairs, store)
    path = store.cache.path(store.pair_key(*pairs[2]))
    path.write_bytes(path.read_bytes()[:-50])
    tokens = store.cache.path(store.tokens_key(pairs[2][0]))
    tokens.write_bytes(b"")
    counted.update(encoded=0, decoded=0)
    fresh = PairStore(store.cache, store.model_key, store.options)
    with pytest.raises(CacheMiss):
        fresh.pair(*pairs[2])
    infer_pairs(tiny, photos, pairs, fresh)
    assert counted == {"encoded": 1, "decoded": 2}
    assert len(fresh.pair(*pairs[2]).matches)


def test_memory_that_runs_out_halves_the_batch(tiny, photos, store, monkeypatch):
    batches = []
    real = pair_inference.decode

    def narrow(model, tokens, shapes, orders, *, batch_size):
        batches.append(len(orders) // 2)
        if len(orders) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(model, tokens, shapes, orders, batch_size=batch_size)

    monkeypatch.setattr(pair_inference, "decode", narrow)
    same_size = [key for key, x in photos.items() if x.shape == (48, 64)]
    infer_pairs(tiny, photos, [*combinations(same_size, 2), *((k, k) for k in same_size)], store, batch_size=3)
    assert batches == [3, 1, 1, 1]


def test_a_pair_that_does_not_fit_is_an_error_and_others_errors_pass_through():
    def full(batch):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(MemoryError, match="smaller images"):
        run_in_batches([1, 2, 3], 2, full)

    def broken(batch):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run_in_batches([1], 1, broken)


def test_less_memory_means_smaller_batches(tiny):
    shapes = ((64, 64), (64, 64))
    one = pair_bytes(tiny, shapes)
    assert one > 0
    assert batch_that_fits(tiny, shapes, 1) == 1
    assert batch_that_fits(tiny, shapes, 100 * one) > 1
    assert pair_bytes(tiny, ((512, 512), (512, 512))) > 50 * one


def test_progress_counts_what_was_there_before(tiny, photos, store):
    seen = []
    infer_pairs(tiny, photos, all_pairs(photos)[:2], store)
    infer_pairs(tiny, photos, all_pairs(photos), store, batch_size=1, on_done=lambda *done: seen.append(done))
    assert seen[0] == (2, 6)
    assert seen[-1] == (6, 6)


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="subsample"):
        PairOptions(subsample=0)
    with pytest.raises(ValueError, match="storage"):
        PairOptions(storage="float8")


WORKER = """
import sys
import numpy as np, torch
from itertools import combinations
from mast3r.model import AsymmetricMASt3R
from mast3r.scenes.pair_cache import PairCache, weights_key
from mast3r.scenes.pair_inference import infer_pairs
from mast3r.scenes.pair_store import PairStore
from mast3r.training import PRESETS
from mast3r.pairs.two_view import model_input
from multiview.images import Image
torch.manual_seed(0)
model = AsymmetricMASt3R(**PRESETS["tiny"].model).eval()
rng = np.random.default_rng(0)
images = [Image(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(12)]
inputs = [model_input(model, image, image_size=64) for image in images]
photos = {x.key: x for x in inputs}
counts = {"encoded": 0, "decoded": 0}
encode, decode = model._encode_image, model._decoder
def counting_encode(image, shape):
    counts["encoded"] += len(image)
    return encode(image, shape)
def counting_decode(f1, *rest):
    counts["decoded"] += len(f1)
    return decode(f1, *rest)
model._encode_image, model._decoder = counting_encode, counting_decode
store = PairStore(PairCache(sys.argv[1]), weights_key(model))
infer_pairs(model, photos, combinations(photos, 2), store, batch_size=1)
print(counts["encoded"], counts["decoded"])
"""


def test_a_killed_run_goes_on_with_what_it_had(tmp_path):
    """Kill -9 in the middle; the second run computes the rest only."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    cache = PairCache(tmp_path)
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    while sum(1 for _ in cache.keys()) < 12 + 15 and first.poll() is None:
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    first.wait()
    survived = sum(1 for _ in cache.keys()) - 12
    assert 0 < survived < 66
    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    encoded, decoded = (int(word) for word in second.stdout.split())
    assert encoded == 0
    assert decoded == 2 * (66 - survived)
