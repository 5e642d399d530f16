"""Rotary and sine-cosine positions: golden numbers and laws."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from croco.models.pos_embed import RoPE2D, grid_positions, sincos_table


def test_golden_rope(golden):
    fixture = golden("rope2d")
    for i, case in enumerate(fixture.meta["cases"]):
        rope = RoPE2D(freq=case["freq"])
        tokens, positions = fixture.tensors[f"{i}.tokens"], fixture.tensors[f"{i}.pos"]
        fixture.close(rope(tokens, positions), f"{i}.out", rtol=1e-5, atol=1e-6)
        fixture.close(rope(tokens.double(), positions), f"{i}.out64", rtol=1e-6, atol=5e-6)


def test_golden_sincos(golden):
    fixture = golden("rope2d")
    keys = fixture.keys("sincos")
    assert keys
    for key in keys:
        height, width, dim = map(int, re.fullmatch(r"sincos_(\d+)x(\d+)_d(\d+)", key).groups())
        fixture.close(sincos_table(dim, height, width), key, rtol=1e-12, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    quarter=st.integers(1, 8),
    shift=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    seed=st.integers(0, 2**31 - 1),
)
def test_rope_is_an_isometry_that_sees_only_relative_positions(quarter, shift, seed):
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 1, 2, 6, 4 * quarter, dtype=torch.float64, generator=generator)
    positions = torch.randint(0, 30, (1, 6, 2), generator=generator)
    rope = RoPE2D()
    rotated = rope(q, positions)
    torch.testing.assert_close(rotated.norm(dim=-1), q.norm(dim=-1))
    moved = positions + torch.tensor(shift)
    here = rotated @ rope(k, positions).transpose(-1, -2)
    there = rope(q, moved) @ rope(k, moved).transpose(-1, -2)
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4)  # angles are float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rope_keeps_dtype_and_float32_angles(dtype):
    tokens = torch.randn(1, 2, 5, 16).to(dtype)
    positions = torch.randint(0, 500, (1, 5, 2))
    rotated = RoPE2D()(tokens, positions)
    assert rotated.dtype == dtype
    exact = RoPE2D()(tokens.double(), positions)
    step = torch.finfo(dtype).eps if dtype != torch.float64 else torch.finfo(torch.float32).eps
    assert (rotated.double() - exact).abs().max() <= 4 * step * tokens.abs().max()


def test_rope_table_equals_positions():
    tokens = torch.randn(2, 3, 8, 12)
    positions = grid_positions(2, 2, 4)
    rope = RoPE2D()
    torch.testing.assert_close(rope(tokens, rope.table(positions, 12)), rope(tokens, positions), rtol=0, atol=0)


def test_grid_positions_are_raster_order():
    assert grid_positions(1, 2, 3)[0].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_bad_dimensions():
    with pytest.raises(ValueError, match="divisible by 4"):
        RoPE2D()(torch.zeros(1, 1, 1, 6), torch.zeros(1, 1, 2))
    with pytest.raises(ValueError, match="divisible by 4"):
        sincos_table(6, 2, 2)
