"""Output activations and the linear head."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dust3r.heads.dpt_head import dpt_hooks
from dust3r.heads.linear_head import tokens_to_pixels
from dust3r.heads.postprocess import postprocess, range_mode, reg_dense_conf, reg_dense_depth

inf = math.inf


def test_golden_depth_and_confidence(golden):
    fixture = golden("postprocess")
    raw = fixture.tensors["raw"].permute(0, 2, 3, 1)
    for key in fixture.keys("depth."):
        mode = (key.removeprefix("depth."), -inf, inf)
        fixture.close(reg_dense_depth(raw[..., :3], mode), key, rtol=1e-6, atol=1e-7)
    for key in fixture.keys("conf."):
        name, lowest, highest = key.removeprefix("conf.").split("_")
        mode = (name, float(lowest), float(highest))
        fixture.close(reg_dense_conf(raw[..., 3], mode), key, rtol=1e-6, atol=1e-7)


def test_golden_postprocess(golden):
    fixture = golden("postprocess")
    result = postprocess(fixture.tensors["raw"][:, :4], ("exp", -inf, inf), ("exp", 1, inf))
    assert set(result) == {"pts3d", "conf"}
    for key, value in result.items():
        fixture.close(value, f"dust3r.{key}", rtol=1e-6, atol=1e-7)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-8, 8, width=32), min_size=3, max_size=3))
def test_exp_depth_has_the_inverse_log(xyz):
    raw = torch.tensor(xyz, dtype=torch.float64)
    points = reg_dense_depth(raw, ("exp", -inf, inf))
    distance = points.norm()
    restored = points / distance.clamp(min=1e-300) * torch.log1p(distance)
    torch.testing.assert_close(restored, raw, rtol=1e-6, atol=1e-7)


@settings(max_examples=50, deadline=None)
@given(
    x=st.floats(-50, 50),
    lowest=st.floats(0, 2),
    width=st.floats(0.1, 10),
    name=st.sampled_from(["exp", "sigmoid"]),
)
def test_confidence_stays_in_range(x, lowest, width, name):
    value = reg_dense_conf(torch.tensor(x, dtype=torch.float64), (name, lowest, lowest + width))
    assert lowest <= value <= lowest + width + 1e-12


def test_zero_raw_point_has_a_finite_gradient():
    raw = torch.zeros(1, 3, requires_grad=True)
    reg_dense_depth(raw, ("exp", -inf, inf)).sum().backward()
    assert torch.isfinite(raw.grad).all()


@pytest.mark.parametrize("mode", [("exp", 0, inf), ("exp", -inf, 10), ("cube", -inf, inf), ("exp", inf, -inf)])
def test_bad_depth_modes(mode):
    with pytest.raises(ValueError, match="depth_mode"):
        reg_dense_depth(torch.zeros(1, 3), mode)


def test_bad_confidence_mode():
    with pytest.raises(ValueError, match="conf_mode"):
        reg_dense_conf(torch.zeros(1), ("linear", 0, 1))
    with pytest.raises(ValueError, match="an activation is"):
        range_mode(("exp", "1", inf))


def test_no_confidence():
    assert set(postprocess(torch.zeros(1, 3, 2, 2), ("linear", -inf, inf), None)) == {"pts3d"}


def test_pixels_of_a_patch():
    p, channels = 2, 3
    tokens = torch.arange(2 * channels * p * p).view(1, 2, -1)  # grid of 1 x 2 tokens
    pixels = tokens_to_pixels(tokens, (2, 4), p)
    assert pixels.shape == (1, channels, 2, 4)
    for c in range(channels):
        for dy in range(p):
            for dx in range(p):
                assert pixels[0, c, dy, p + dx] == tokens[0, 1, c * p * p + dy * p + dx]


def test_hooks_of_the_official_depth():
    assert dpt_hooks(12) == (0, 6, 9, 12)
    assert all(max(dpt_hooks(depth)) == depth for depth in range(1, 13))
