"""Attention against its plain definition, patch embedding, masks, stochastic depth."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from croco.models.blocks import Attention, Block, CrossAttention, DecoderBlock, DropPath, PatchEmbed, attend
from croco.models.masking import RandomMask, gather_tokens, scatter_tokens, visible_indices
from croco.models.pos_embed import RoPE2D, grid_positions


def plain_attention(q, k, v):
    """The definition: softmax of scaled products, all in memory."""
    return ((q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v


def heads(x, count):
    return x.reshape(*x.shape[:2], count, -1).transpose(1, 2)


@pytest.mark.parametrize("rope", [None, RoPE2D()])
def test_self_attention_is_the_definition(rope):
    attention = Attention(24, rope, num_heads=3, qkv_bias=True).double()
    x, positions = torch.randn(2, 6, 24, dtype=torch.float64), grid_positions(2, 2, 3)
    q, k, v = (heads(part, 3) for part in attention.qkv(x).split(24, dim=-1))
    if rope is not None:
        q, k = rope(q, positions), rope(k, positions)
    expected = attention.proj(plain_attention(q, k, v).transpose(1, 2).reshape(2, 6, 24))
    torch.testing.assert_close(attention(x, positions), expected)


def test_bfloat16_training_follows_full_precision():
    """Where gradients are wanted on a CPU the kernel is another one."""
    exact = [torch.randn(2, 3, n, 8, dtype=torch.bfloat16).float().requires_grad_() for n in (5, 7, 7)]
    half = [x.detach().bfloat16().requires_grad_() for x in exact]
    results = [attend(*inputs) for inputs in (exact, half)]
    assert results[1].dtype == torch.bfloat16
    torch.testing.assert_close(results[1].float(), results[0], rtol=0.03, atol=0.02)
    towards = torch.randn_like(results[0]).bfloat16()
    expected = torch.autograd.grad(results[0], exact, towards.float())
    for ours, theirs in zip(torch.autograd.grad(results[1], half, towards), expected):
        torch.testing.assert_close(ours.float(), theirs, rtol=0.05, atol=0.05)


def test_cross_attention_is_the_definition():
    rope = RoPE2D()
    attention = CrossAttention(24, rope, num_heads=2, qkv_bias=True).double()
    x, y = torch.randn(2, 6, 24, dtype=torch.float64), torch.randn(2, 4, 24, dtype=torch.float64)
    px, py = grid_positions(2, 2, 3), grid_positions(2, 2, 2)
    q, k = rope(heads(attention.projq(x), 2), px), rope(heads(attention.projk(y), 2), py)
    mixed = plain_attention(q, k, heads(attention.projv(y), 2)).transpose(1, 2).reshape(2, 6, 24)
    torch.testing.assert_close(attention(x, y, y, px, py), attention.proj(mixed))


def test_blocks_have_gradients():
    rope = RoPE2D()
    positions = grid_positions(1, 2, 2)
    encoder = Block(8, 2, qkv_bias=True, rope=rope).double()
    decoder = DecoderBlock(8, 2, qkv_bias=True, rope=rope).double()
    x, y = (torch.randn(1, 4, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a: encoder(a, positions), (x,), fast_mode=True)
    assert torch.autograd.gradcheck(lambda a, b: decoder(a, b, positions, positions)[0], (x, y), fast_mode=True)


def test_decoder_block_passes_memory_on():
    x, y = torch.randn(2, 1, 4, 8)
    assert DecoderBlock(8, 2)(x, y)[1] is y


@pytest.mark.parametrize("cls", [Attention, CrossAttention])
def test_indivisible_heads(cls):
    with pytest.raises(ValueError, match="not divisible"):
        cls(10, num_heads=3)


def test_drop_path_keeps_the_mean():
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(20000, 1)
    assert torch.equal(drop.eval()(x), x)
    dropped = drop.train()(x)
    torch.testing.assert_close(dropped.unique(), torch.tensor([0.0, 4 / 3]))
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.02)


def test_patch_embed_checks_the_size():
    embed = PatchEmbed(img_size=(32, 48), patch_size=16, embed_dim=8)
    tokens, positions = embed(torch.randn(2, 3, 32, 48))
    assert tokens.shape == (2, 6, 8)
    assert torch.equal(positions, grid_positions(2, 2, 3))
    with pytest.raises(ValueError, match="takes images of"):
        embed(torch.randn(1, 3, 48, 32))
    with pytest.raises(ValueError, match="not a multiple"):
        embed.embed(torch.randn(1, 3, 40, 32))


@settings(max_examples=30, deadline=None)
@given(patches=st.integers(1, 80), ratio=st.floats(0, 0.99), batch=st.integers(1, 4))
def test_masks_hide_a_fixed_share(patches, ratio, batch):
    mask = RandomMask(patches, ratio)(torch.zeros(batch, 1))
    assert mask.shape == (batch, patches)
    assert (mask.sum(dim=1) == int(ratio * patches)).all()


def test_mask_generator_and_range():
    masks = RandomMask(16, 0.5)
    x = torch.zeros(2, 1)
    first = masks(x, generator=torch.Generator().manual_seed(3))
    assert torch.equal(first, masks(x, generator=torch.Generator().manual_seed(3)))
    with pytest.raises(ValueError, match="mask_ratio"):
        RandomMask(16, 1.0)


def test_gather_and_scatter_are_inverse():
    mask = RandomMask(10, 0.4)(torch.zeros(3, 1))
    x = torch.randn(3, 10, 2)
    index = visible_indices(mask, 6)
    assert (index.diff(dim=1) > 0).all()
    visible = gather_tokens(x, index)
    assert torch.equal(visible, x[~mask].view(3, 6, 2))
    restored = scatter_tokens(torch.zeros(3, 10, 2), index, visible)
    assert torch.equal(restored, x * ~mask[..., None])
