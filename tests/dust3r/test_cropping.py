from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dust3r.datasets.utils.cropping import (
    bbox_from_intrinsics_in_out,
    camera_matrix_of_crop,
    crop_image_depthmap,
    rescale_image_depthmap,
)
from dust3r.datasets.utils.transforms import ColorJitter, ImgNorm, JitterAndNormalize

few = settings(max_examples=25, deadline=None)
sizes = st.integers(8, 60)


def test_rescaling_matches_the_official_code(golden):
    g = golden("cropping")
    img, depth, K = (g.tensors[k].numpy() for k in ("img", "depth", "K"))
    for i, resolution in enumerate(g.meta["rescale_to"]):
        image, resized, K2 = rescale_image_depthmap(img, depth, K, tuple(resolution))
        np.testing.assert_array_equal(np.asarray(image), g.tensors[f"resc{i}.img"].numpy())
        np.testing.assert_array_equal(resized, g.tensors[f"resc{i}.depth"].numpy())
        g.close(K2, f"resc{i}.K")


def test_cropping_matches_the_official_code(golden):
    g = golden("cropping")
    img, depth, K = (g.tensors[k].numpy() for k in ("img", "depth", "K"))
    image, cut, K2 = crop_image_depthmap(PIL.Image.fromarray(img), depth, K, g.meta["crop_box"])
    np.testing.assert_array_equal(np.asarray(image), g.tensors["crop.img"].numpy())
    np.testing.assert_array_equal(cut, g.tensors["crop.depth"].numpy())
    g.close(K2, "crop.K")


def test_box_matches_the_official_code(golden):
    g = golden("cropping")
    K, box = g.tensors["K"].numpy(), g.tensors["bbox"].numpy()
    H, W = g.tensors["depth"].shape
    size = (int(box[2] - box[0]), int(box[3] - box[1]))
    centred = camera_matrix_of_crop(K, (W, H), size)
    np.testing.assert_array_equal(bbox_from_intrinsics_in_out(K, centred, size), box)


@few
@given(sizes, sizes, sizes, sizes, st.booleans())
def test_rescaling_covers_the_target_and_keeps_the_rays(W, H, w, h, force):
    K = np.array([[40.0, 0, 0.4 * W], [0, 41, 0.6 * H], [0, 0, 1]])
    depth = np.arange(H * W, dtype=np.float32).reshape(H, W)
    image = PIL.Image.new("RGB", (W, H))
    resized, small, K2 = rescale_image_depthmap(image, depth, K, (w, h), force=force)
    if not force and (w >= W or h >= H):
        assert resized is image
        assert small is depth
        assert K2 is K
        return
    assert resized.size == small.shape[::-1]
    assert resized.size[0] >= w
    assert resized.size[1] >= h
    assert resized.size[0] == w or resized.size[1] == h
    assert set(np.unique(small)) <= set(np.unique(depth))
    scale = max(w / W, h / H)
    np.testing.assert_allclose(K2[[0, 1], [0, 1]], scale * K[[0, 1], [0, 1]], rtol=1e-6)
    # Each edge of the image loses at most half a pixel of the rounding.
    corner = (K[:2, 2] + 0.5) * scale - 0.5
    assert np.all(np.abs(K2[:2, 2] - corner) <= 0.5)


@few
@given(sizes, sizes, st.floats(0.2, 3), st.floats(-5, 5), st.floats(-5, 5))
def test_camera_of_a_crop_maps_pixels_exactly(W, H, scale, dx, dy):
    K = np.array([[30.0, 0, W / 2], [0, 33, H / 3], [0, 0, 1]])
    K2 = camera_matrix_of_crop(K, (W, H), (W, H), scaling=scale, offset=(dx, dy))
    ray = np.array([0.3, -0.2, 1])
    old, new = (K @ ray)[:2], (K2 @ ray)[:2]
    np.testing.assert_allclose(new, (old + 0.5) * scale - 0.5 - (dx, dy), atol=1e-9)


def test_errors_and_missing_depth():
    image = PIL.Image.new("RGB", (8, 6))
    with pytest.raises(ValueError, match="differ"):
        rescale_image_depthmap(image, np.zeros((8, 6)), np.eye(3), (4, 4))
    with pytest.raises(ValueError, match="differ"):
        crop_image_depthmap(image, np.zeros((8, 6)), np.eye(3), (0, 0, 2, 2))
    resized, depth, _ = rescale_image_depthmap(image, None, np.eye(3), (4, 3))
    assert (resized.size, depth) == ((4, 3), None)
    cut, depth, _ = crop_image_depthmap(image, None, np.eye(3), (1, 1, 4, 3))
    assert (cut.size, depth) == ((3, 2), None)


def noise_image(seed=0, size=(9, 7)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def test_jitter_is_reproducible_and_in_range():
    image = noise_image()
    first, second = (ColorJitter(image, np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (3, 7, 9)
    assert first.dtype == torch.float32
    assert first.abs().max() <= 1
    assert not torch.equal(first, ColorJitter(image, np.random.default_rng(4)))
    torch.manual_seed(0)
    drawn = ColorJitter(image)
    torch.manual_seed(0)
    assert torch.equal(drawn, ColorJitter(np.asarray(image)))


def test_jitter_without_strength_only_normalises():
    image = noise_image()
    still = JitterAndNormalize(0, 0, 0, 0)(image)
    # The 8-bit round trip through hue and saturation costs a few levels.
    assert (still - ImgNorm(image)).abs().max() <= 10 / 127.5


def test_half_a_hue_turn_swaps_red_and_cyan():
    red = PIL.Image.new("RGB", (2, 2), (255, 0, 0))

    class HalfTurn:
        def uniform(self, low, high):
            return high

        def permutation(self, n):
            return np.arange(n)

    turned = JitterAndNormalize(0, 0, 0, hue=0.5)(red, HalfTurn())
    torch.testing.assert_close(turned[:, 0, 0], torch.tensor([-1.0, 1.0, 1.0]), atol=0.05, rtol=0)
