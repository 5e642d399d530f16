"""The convolutional stem of small models."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from croco.models.conv_stem import ConvStem, fold, unfold


def test_shapes():
    coarse, fine = ConvStem((8, 12, 16), detail_dim=5)(torch.zeros(2, 3, 48, 64))
    assert coarse.shape == (2, 16, 6, 8)
    assert fine.shape == (2, 5, 12, 16)


def test_features_move_with_the_image():
    stem = ConvStem((8, 12, 16), detail_dim=5).eval()
    # The pattern stays inside, so that the statistics of the normalisation are those of the same pixels.
    image = torch.zeros(1, 3, 128, 128)
    image[..., 48:80, 40:72] = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    moved = torch.roll(image, (8, 16), dims=(-2, -1))
    with torch.no_grad():
        _, fine = stem(image)
        _, fine_moved = stem(moved)
    expected = torch.roll(fine, (2, 4), dims=(-2, -1))
    torch.testing.assert_close(fine_moved[..., 8:-8, 8:-8], expected[..., 8:-8, 8:-8], atol=1e-5, rtol=1e-4)


def test_brightness_and_contrast_change_little():
    stem = ConvStem((8, 12, 16), detail_dim=5).eval()
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        fine, darker = stem(image)[1], stem(0.5 * image)[1]
    torch.testing.assert_close(darker, fine, atol=1e-2, rtol=1e-2)


@given(rows=st.integers(1, 4), columns=st.integers(1, 4), channels=st.integers(1, 3), patch=st.sampled_from([8, 16]))
def test_unfold_inverts_fold(rows, columns, channels, patch):
    fine = torch.randn(2, channels, rows * patch // 4, columns * patch // 4)
    tokens = fold(fine, patch)
    assert tokens.shape == (2, rows * columns, channels * (patch // 4) ** 2)
    assert torch.equal(unfold(tokens, rows, columns, patch), fine)


def test_gradients():
    stem = ConvStem((4, 4, 8), detail_dim=2).double()
    image = torch.randn(1, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: stem(x), (image,), eps=1e-6, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_follows_the_model(dtype):
    coarse, fine = ConvStem((4, 4, 8), detail_dim=2).to(dtype)(torch.zeros(1, 3, 16, 16, dtype=dtype))
    assert coarse.dtype == fine.dtype == dtype
