"""Matches between photos of any size: masks, given keypoints, coarse to fine, caches, many pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mast3r
from mast3r.model import AsymmetricMASt3R
from mast3r.pairs.config import PairConfig
from mast3r.pairs.subpixel import sample_map
from mast3r.pairs.two_view import TokenCache, decode, describe, encode, model_input
from mast3r.predictor import predict_pairs
from mast3r.tiling.matching import MAX_STEP, pyramid_levels, pyramid_scales
from mast3r.tiling.network import NetworkTiles
from mast3r.training import PRESETS
from multiview.images import Image, as_image
from multiview.matches import Matches
from tests.mast3r.stand_in_models import ColourModel, PatchModel, gradient, texture

SHIFT = np.array([24.0, 12.0])  # pixel p of the first crop shows what pixel p - SHIFT of the second shows


@pytest.fixture(scope="module")
def tiny() -> AsymmetricMASt3R:
    torch.manual_seed(0)
    return AsymmetricMASt3R(**PRESETS["tiny"].model).eval()


@pytest.fixture(scope="module")
def photos() -> tuple[np.ndarray, np.ndarray]:
    """Two overlapping parts of one picture, not of one size."""
    whole = texture(240, 200)
    x, y = SHIFT.astype(int)
    return whole[:160, :200], whole[y : y + 168, x : x + 184]


def errors(matches: Matches) -> np.ndarray:
    return np.linalg.norm(matches.xy0 - matches.xy1 - SHIFT, axis=1)


# --- masks ---


def test_no_match_ends_on_a_masked_pixel(photos):
    a, b = photos
    mask_a, mask_b = np.ones(a.shape[:2], bool), np.ones(b.shape[:2], bool)
    mask_a[:, 120:] = False
    mask_b[:50] = False
    for resolution in ("coarse", "fine"):
        options = {"resolution": resolution, "subsample": 4}
        everything = mast3r.match(PatchModel(), a, b, **options)
        found = mast3r.match(PatchModel(), a, b, mask_a=mask_a, mask_b=mask_b, **options)
        assert 0 < len(found) < len(everything)
        assert np.rint(found.xy0[:, 0]).max() < 120
        assert np.rint(found.xy1[:, 1]).min() >= 50
    assert len(mast3r.match(PatchModel(), a, b, mask_a=np.zeros_like(mask_a))) == 0


def test_a_mask_of_another_size_is_refused(photos):
    a, b = photos
    with pytest.raises(ValueError, match="mask1 must have the image's shape"):
        mast3r.match(PatchModel(), a, b, mask_b=np.ones(a.shape[:2], bool))


# --- keypoints ---


@pytest.mark.parametrize("resolution", ["coarse", "fine"])
def test_given_keypoints_get_one_match_each(photos, resolution):
    rng = np.random.default_rng(0)
    keypoints = rng.uniform((28, 16), (195, 155), (100, 2))
    found = mast3r.match(PatchModel(), *photos, keypoints_a=keypoints, resolution=resolution)
    assert found.index0 is not None
    assert found.index1 is None
    assert len(found) > 50
    assert len(np.unique(found.index0)) == len(found)
    np.testing.assert_array_equal(found.xy0, keypoints[found.index0].astype(np.float32))
    assert np.median(errors(found)) < (0.2 if resolution == "fine" else 1.5)
    swapped = mast3r.match(PatchModel(), *photos[::-1], keypoints_b=keypoints, resolution=resolution)
    assert swapped.index0 is None
    if resolution == "coarse":  # windows of the two directions need not agree
        order, other = np.argsort(found.index0), np.argsort(swapped.index1)
        np.testing.assert_array_equal(found.index0[order], swapped.index1[other])
        np.testing.assert_allclose(found.xy1[order], swapped.xy0[other], atol=1e-3)


@pytest.mark.parametrize("resolution", ["coarse", "fine"])
def test_keypoints_of_both_photos_match_each_other(photos, resolution):
    rng = np.random.default_rng(1)
    true = rng.uniform((35, 25), (190, 150), (40, 2))
    a = np.concatenate([true, rng.uniform((28, 16), (195, 155), (10, 2))])
    b = np.concatenate([rng.uniform(20, 140, (8, 2)), true - SHIFT])
    found = mast3r.match(PatchModel(), *photos, keypoints_a=a, keypoints_b=b, resolution=resolution)
    assert found.index0 is not None
    assert found.index1 is not None
    np.testing.assert_array_equal(found.xy0, a[found.index0].astype(np.float32))
    np.testing.assert_array_equal(found.xy1, b[found.index1].astype(np.float32))
    assert len(np.unique(found.index0)) == len(np.unique(found.index1)) == len(found)
    right = found.index0 + 8 == found.index1
    assert right.sum() > 20
    assert right.mean() > 0.8


def test_keypoints_that_cannot_match_are_left_out(photos):
    a, b = photos
    keypoints = np.array([(-5.0, 10), (100, 80), (199.4, 5), (np.nan, 3), (4, 4)])  # off, good, edge, NaN, unseen
    found = mast3r.match(PatchModel(), a, b, keypoints_a=keypoints)
    assert found.index0 is not None
    assert set(found.index0.tolist()) <= {1, 4}
    assert 1 in found.index0
    none = mast3r.match(PatchModel(), a, b, keypoints_a=np.zeros((0, 2)), keypoints_b=keypoints)
    assert len(none) == 0
    assert none.index0 is not None
    assert len(mast3r.match(PatchModel(), a, b, keypoints_a=keypoints, max_matches=1)) == 1
    with pytest.raises(ValueError, match="keypoints_a must have shape"):
        mast3r.match(PatchModel(), a, b, keypoints_a=np.zeros((4, 3)))


def test_the_tolerance_decides_what_survives(photos):
    keypoints = np.random.default_rng(3).uniform((28, 16), (195, 155), (200, 2))
    counts = [
        len(mast3r.match(PatchModel(), *photos, keypoints_a=keypoints, config=PairConfig(keypoint_tolerance_px=t)))
        for t in (0.5, 2, 8)
    ]
    assert 0 < counts[0] < counts[1] <= counts[2]


# --- coarse to fine ---


def test_fine_matches_are_many_and_exact(photos):
    network_alone = PairConfig(photometric=False)
    coarse = mast3r.match(PatchModel(), *photos, config=network_alone)
    model = PatchModel()
    fine = mast3r.match(model, *photos, resolution="fine", config=network_alone)
    assert len(fine) > 5 * len(coarse)
    assert np.median(errors(fine)) < 0.1
    assert np.median(errors(fine)) < 0.2 * np.median(errors(coarse))
    assert fine.size0 == (200, 160)
    assert (np.diff(fine.confidence) <= 0).all()
    rounded = np.rint(fine.xy0)
    assert len(np.unique(rounded, axis=0)) == len(fine)


def test_fine_of_photos_of_different_scale_and_orientation(photos):
    a, b = photos
    big = np.array(as_image(a).to_pil().resize((260, 208)))
    turned = np.ascontiguousarray(b[:, :130])  # portrait
    found = mast3r.match(PatchModel(), big, turned, resolution="fine")
    scaled = (found.xy0 + 0.5) / 1.3 - 0.5
    error = np.linalg.norm(scaled - found.xy1 - SHIFT, axis=1)
    assert len(found) > 100
    assert np.median(error) < 0.3


def test_max_image_size_bounds_the_work(photos):
    full, reduced = PatchModel(), PatchModel()
    mast3r.match(full, *photos, resolution="fine")
    found = mast3r.match(reduced, *photos, resolution="fine", max_image_size=110)
    assert reduced.encoded < 0.5 * full.encoded
    assert np.median(errors(found)) < 1.0


def test_photos_that_the_network_sees_whole_gain_nothing(photos):
    a, b = (photo[:64, :64] for photo in photos)
    for options in ({}, {"keypoints_a": np.array([[40.0, 30.0]])}):
        coarse, fine = (
            mast3r.match(PatchModel(), a, b, resolution=r, subsample=2, **options) for r in ("coarse", "fine")
        )
        np.testing.assert_array_equal(coarse.xy1, fine.xy1)


def test_wrong_options_are_refused(photos):
    with pytest.raises(ValueError, match="resolution must be one of"):
        mast3r.match(PatchModel(), *photos, resolution="finest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_image_size"):
        mast3r.match(PatchModel(), *photos, resolution="fine", max_image_size=0)


@given(size=st.tuples(st.integers(100, 9000), st.integers(100, 9000)), limit=st.none() | st.integers(200, 5000))
def test_pyramids_end_at_full_resolution(size, limit):
    whole = (224, max(1, round(224 * size[1] / size[0])))
    levels = pyramid_levels(size, whole, limit)
    if levels == 0:
        return
    scales = pyramid_scales(size, whole, levels, limit)
    assert len(scales) == levels
    assert scales[-1] == pytest.approx(1 if limit is None else max(1, max(size) / limit))
    steps = np.array([max(size) / max(whole), *scales])
    assert (steps[:-1] / steps[1:] <= MAX_STEP * 1.001).all()


@pytest.mark.parametrize(
    ("side", "image", "tile"),
    [
        (224, (4000, 3000), (224, 224)),
        (512, (4000, 3000), (512, 384)),
        (512, (3000, 4000), (384, 512)),
        (512, (4000, 1000), (512, 160)),
        (512, (3000, 3000), (512, 384)),
    ],
)
def test_tiles_have_the_shapes_of_the_training(side, image, tile):
    assert NetworkTiles(PatchModel(side=side)).tile_size(image) == tile


def test_network_tiles_match_like_whole_photos(tiny):
    a, b = (texture(64, 64, seed) for seed in (1, 2))
    tiles = NetworkTiles(tiny, PairConfig(subsample=4))
    first, second = tiles.encode([a, b])
    [found] = tiles.match([(first, second)])
    expected = mast3r.match(tiny, a, b, config=PairConfig(subsample=4, photometric=False))
    assert len(found.xy0) == len(expected) > 0
    order, other = (np.lexsort(np.rint(m.xy0).T) for m in (found, expected))
    np.testing.assert_allclose(found.xy1[order], expected.xy1[other], atol=1e-3)


# --- one encoding per photo ---


def test_a_cache_saves_encodings():
    model = ColourModel()
    cache, whole = TokenCache(model), PairConfig(closer_look=False)
    a, b, c = gradient(96, 96), 255 - gradient(96, 96), gradient(128, 96)
    for pair in ((a, b), (b, c), (a, c)):
        alone = mast3r.match(ColourModel(), *pair, config=whole)
        cached = mast3r.match(model, *pair, cache=cache, config=whole)
        np.testing.assert_array_equal(alone.xy1, cached.xy1)
    assert model.encoded == 3
    assert len(cache) == 3
    assert cache.nbytes > 0
    mast3r.match(model, a, b, cache=cache, config=whole.changed(image_size=48))
    assert model.encoded == 5, "another size is another input"
    with torch.no_grad():
        model.weight += 1
    mast3r.predict_pair(model, a, b, cache=cache, config=whole)
    assert model.encoded == 7, "tokens of old weights are of no use"
    cache.clear()
    assert len(cache) == cache.nbytes == 0


def test_the_cache_is_bounded():
    model = ColourModel()
    photos = [gradient(64, 64) // k for k in (1, 2, 3)]
    [one] = encode(model, [model_input(model, photos[0])])
    cache = TokenCache(model, max_bytes=2 * sum(t.nbytes for t in one))
    for photo in (photos[0], photos[1], photos[0], photos[2], photos[0]):
        cache.encode([model_input(model, photo)])
    assert len(cache) == 2
    assert model.encoded == 4, "the one used last stays"
    with pytest.raises(ValueError, match="max_bytes"):
        TokenCache(model, max_bytes=-1)
    with pytest.raises(ValueError, match="another model"):
        mast3r.match(ColourModel(), *photos[:2], cache=cache)


def test_many_pairs_equal_single_pairs(tiny):
    photos = [texture(64, 64, 1), texture(80, 64, 2), texture(64, 80, 3), texture(64, 64, 4)]
    pairs = [(0, 3), (1, 2), (3, 1), (2, 0), (1, 0), (3, 3)]
    K = np.array([[70.0, 0, 31.5], [0, 70, 31.5], [0, 0, 1]])
    told: list[tuple[int, int]] = []
    whole = PairConfig(subsample=4, batch_size=4, closer_look=False)
    results = predict_pairs(
        tiny,
        photos,
        pairs,
        intrinsics=[K, None, None, None],
        config=whole,
        on_pair=lambda *n: told.append(n),
    )
    assert len(results) == len(pairs)
    assert told[-1] == (6, 6)
    for (i, j), found in zip(pairs, results):
        known = [K if k == 0 else None for k in (i, j)]
        alone = mast3r.predict_pair(tiny, photos[i], photos[j], K0=known[0], K1=known[1], config=whole)
        assert [image.size for image in found.images] == [image.size for image in alone.images]
        for k in (0, 1):
            np.testing.assert_allclose(found.pointmaps[k].points, alone.pointmaps[k].points, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(found.cameras[k].K, alone.cameras[k].K, rtol=1e-3)
        assert abs(len(found.matches) - len(alone.matches)) <= 2
        assert set(found.timings) == set(alone.timings)


def test_many_pairs_encode_each_photo_once():
    model = ColourModel()
    photos = [gradient(64 + 16 * (k % 2), 64) // (k + 1) for k in range(5)]
    pairs = [(i, j) for i in range(5) for j in range(i)]
    results = predict_pairs(model, photos, pairs, config=PairConfig(batch_size=4, closer_look=False))
    assert model.encoded == 5
    assert len(results) == 10
    assert results[3].images[0] is results[4].images[0], "photos are shared, not copied"
    with pytest.raises(ValueError, match="positions below 5"):
        predict_pairs(model, photos, [(0, 5)])
    with pytest.raises(ValueError, match="one entry per image"):
        predict_pairs(model, photos, [(0, 1)], intrinsics=[None])
    assert predict_pairs(model, photos, []) == []


def test_batches_keep_the_order_and_group_sizes(tiny):
    inputs = [model_input(tiny, texture(w, h, w)) for w, h in ((64, 64), (64, 128), (64, 64), (128, 64), (64, 64))]
    tokens = encode(tiny, inputs, batch_size=2)
    for x, (features, positions) in zip(inputs, tokens):
        [(alone, _)] = encode(tiny, [x])
        torch.testing.assert_close(features, alone, rtol=1e-3, atol=1e-4)
        assert positions.shape == (1, x.shape[0] * x.shape[1] // 256, 2)
    orders = [(0, 1), (1, 0), (2, 4), (0, 2), (3, 4)]
    shapes = [x.shape for x in inputs]
    seen = decode(tiny, tokens, shapes, orders, batch_size=2)
    for order, (first, second) in zip(orders, seen):
        assert (first.shape, second.shape) == tuple(shapes[i] for i in order)
        [(alone, _)] = decode(tiny, tokens, shapes, [order])
        torch.testing.assert_close(first.points, alone.points, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="batch_size"):
        encode(tiny, inputs, batch_size=0)


@pytest.mark.parametrize("two_confs", [True, False])
def test_descriptors_alone_equal_those_with_points(two_confs):
    torch.manual_seed(0)
    model = AsymmetricMASt3R(**{**PRESETS["tiny"].model, "two_confs": two_confs}).eval()
    inputs = [model_input(model, texture(w, 64, w)) for w in (64, 80)]
    tokens, shapes, orders = encode(model, inputs), [x.shape for x in inputs], [(0, 1), (1, 0)]
    everything, alone = (f(model, tokens, shapes, orders) for f in (decode, describe))
    for both, only in zip(everything, alone):
        for seen, described in zip(both, only):
            torch.testing.assert_close(described.desc, seen.desc)
            torch.testing.assert_close(described.desc_confidence, seen.desc_confidence)
            assert described.shape == seen.shape == seen.points.shape[:2]


def test_inputs_are_told_apart_by_content():
    model = ColourModel()
    image = gradient(96, 80)
    key = model_input(model, image).key
    assert model_input(model, Image(image.copy())).key == key
    assert model_input(model, image // 2).key != key
    assert model_input(model, image, crop=True).key != key


# --- positions between pixels ---


@settings(max_examples=50, deadline=None)
@given(xy=st.tuples(st.floats(-2, 9), st.floats(-2, 7)), width=st.integers(1, 7), height=st.integers(1, 6))
def test_sampling_a_linear_map_is_exact(xy, width, height):
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    values = torch.stack([x, y, 2 * x - y], -1).double()
    [found] = sample_map(values, torch.tensor([xy], dtype=torch.float64))
    cx, cy = np.clip(xy[0], 0, width - 1), np.clip(xy[1], 0, height - 1)
    np.testing.assert_allclose(found.numpy(), [cx, cy, 2 * cx - cy], atol=1e-9)


def test_every_refinement_can_be_chosen(photos):
    whole = mast3r.match(PatchModel(), *photos, config=PairConfig(subpixel=False))
    for method in ("descriptor", "quadratic", "softargmax"):
        found = mast3r.match(PatchModel(), *photos, config=PairConfig(subpixel=method))
        assert len(found) == len(whole)
        assert (found.xy1 != whole.xy1).any()
    default = mast3r.match(PatchModel(), *photos)
    best = mast3r.match(PatchModel(), *photos, config=PairConfig(subpixel="descriptor"))
    np.testing.assert_array_equal(default.xy1, best.xy1)


def test_an_unknown_refinement_is_refused():
    with pytest.raises(ValueError, match="subpixel"):
        PairConfig(subpixel="cubic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="keypoint_tolerance_px"):
        PairConfig(keypoint_tolerance_px=0)
    with pytest.raises(ValueError, match="batch_size"):
        PairConfig(batch_size=0)
