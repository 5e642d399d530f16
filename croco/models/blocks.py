"""Transformer building blocks: patch embedding, attention, encoder and decoder blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from croco.models.pos_embed import RoPE2D, RotaryTable, grid_positions

LayerFactory = Callable[..., nn.Module]
Positions = Tensor | RotaryTable | None


def to_pair(value: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """`value` as a (height, width) pair; an int stands for both."""
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ValueError(f"a size is a positive int or a (height, width) pair of them, got {value!r}.")
    return pair[0], pair[1]


class DropPath(nn.Module):
    """Stochastic depth: drops the residual branch of whole samples while training (Huang et al. 2016)."""

    def __init__(self, drop_prob: float = 0.0):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """Zero the branch (B, ...) of random samples and rescale the others."""
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1.0 - self.drop_prob
        alive = torch.rand(x.shape[0], *(1,) * (x.ndim - 1), device=x.device) < keep
        return x * alive.to(x.dtype) / keep


class Mlp(nn.Module):
    """Two linear layers with an activation between them.

    Args:
        in_features: Input width.
        hidden_features: Hidden width, default `in_features`.
        out_features: Output width, default `in_features`.
        act_layer: Activation, exact (erf) GELU by default.
        drop: Dropout probability after each layer.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: LayerFactory = nn.GELU,
        drop: float = 0.0,
    ):
        super().__init__()
        hidden_features = hidden_features or in_features
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.act = act_layer()
        self.fc2 = nn.Linear(hidden_features, out_features or in_features)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


def _check_heads(dim: int, heads: int) -> None:
    if heads < 1 or dim % heads:
        raise ValueError(f"attention width {dim} is not divisible by {heads} heads; change one of them.")


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, C) -> (B, heads, N, C / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """Softmax attention of queries (B, heads, N, c) to keys and values (B, heads, M, c)."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad:
        # PyTorch's fused CPU kernel takes three times as long to train in bfloat16 as its parts.
        weights = ((q * q.shape[-1] ** -0.5) @ k.mT).softmax(dim=-1)
        return F.dropout(weights, dropout) @ v
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)


class Attention(nn.Module):
    """Multi-head self-attention with optional rotary positions.

    Args:
        dim: Token width C.
        rope: Rotary embedding for queries and keys, or None.
        num_heads: Attention heads; `dim` must be divisible by it.
        qkv_bias: Whether the joint query-key-value projection has a bias.
        attn_drop: Dropout on attention weights.
        proj_drop: Dropout on the output.
    """

    def __init__(
        self,
        dim: int,
        rope: RoPE2D | None = None,
        num_heads: int = 8,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        super().__init__()
        _check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.attn_drop = attn_drop
        self.rope = rope
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, xpos: Positions = None) -> Tensor:
        """Attend among tokens.

        Args:
            x: (B, N, C).
            xpos: (B, N, 2) integer positions or their rotary table; needed only with `rope`.

        Returns:
            (B, N, C).
        """
        q, k, v = (_split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=-1))
        if self.rope is not None and xpos is not None:
            q, k = self.rope(q, xpos), self.rope(k, xpos)
        drop = self.attn_drop if self.training else 0.0
        mixed = attend(q, k, v, drop)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))


class CrossAttention(nn.Module):
    """Multi-head attention from one token set to another; arguments as in `Attention`."""

    def __init__(
        self,
        dim: int,
        rope: RoPE2D | None = None,
        num_heads: int = 8,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        super().__init__()
        _check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.attn_drop = attn_drop
        self.rope = rope
        self.projq = nn.Linear(dim, dim, bias=qkv_bias)
        self.projk = nn.Linear(dim, dim, bias=qkv_bias)
        self.projv = nn.Linear(dim, dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, qpos: Positions = None, kpos: Positions = None
    ) -> Tensor:
        """Attend from `query` (B, N, C) to `key` and `value` (B, M, C); positions as in `Attention`."""
        q = _split_heads(self.projq(query), self.num_heads)
        k = _split_heads(self.projk(key), self.num_heads)
        v = _split_heads(self.projv(value), self.num_heads)
        if self.rope is not None:
            q = q if qpos is None else self.rope(q, qpos)
            k = k if kpos is None else self.rope(k, kpos)
        drop = self.attn_drop if self.training else 0.0
        mixed = attend(q, k, v, drop)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))


class Block(nn.Module):
    """Pre-norm encoder block: self-attention, then MLP."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        act_layer: LayerFactory = nn.GELU,
        norm_layer: LayerFactory = nn.LayerNorm,
        rope: RoPE2D | None = None,
    ):
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = Attention(dim, rope, num_heads, qkv_bias, attn_drop, drop)
        self.drop_path = DropPath(drop_path)
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=drop)

    def forward(self, x: Tensor, xpos: Positions = None) -> Tensor:
        """Update tokens (B, N, C); `xpos` as in `Attention`."""
        x = x + self.drop_path(self.attn(self.norm1(x), xpos))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class DecoderBlock(nn.Module):
    """Pre-norm decoder block: self-attention, cross-attention to the other image, then MLP.

    Args:
        dim: Token width.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLP as a multiple of `dim`.
        qkv_bias: Whether attention projections have a bias.
        drop: Dropout on projections.
        attn_drop: Dropout on attention weights.
        drop_path: Stochastic depth.
        act_layer: Activation of the MLP.
        norm_layer: Normalisation layer.
        norm_mem: Whether the block normalises the other image's tokens (`norm_y`) before attending to them.
        rope: Rotary embedding shared by both attentions, or None.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        act_layer: LayerFactory = nn.GELU,
        norm_layer: LayerFactory = nn.LayerNorm,
        norm_mem: bool = True,
        rope: RoPE2D | None = None,
    ):
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = Attention(dim, rope, num_heads, qkv_bias, attn_drop, drop)
        self.cross_attn = CrossAttention(dim, rope, num_heads, qkv_bias, attn_drop, drop)
        self.drop_path = DropPath(drop_path)
        self.norm2 = norm_layer(dim)
        self.norm3 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=drop)
        self.norm_y = norm_layer(dim) if norm_mem else nn.Identity()

    def forward(self, x: Tensor, y: Tensor, xpos: Positions = None, ypos: Positions = None) -> tuple[Tensor, Tensor]:
        """Update the tokens of one image while looking at the other.

        Args:
            x: (B, N, C) tokens to update.
            y: (B, M, C) tokens of the other image.
            xpos: Positions of `x`, as in `Attention`.
            ypos: Positions of `y`.

        Returns:
            The updated x, and y unchanged.
        """
        x = x + self.drop_path(self.attn(self.norm1(x), xpos))
        memory = self.norm_y(y)
        x = x + self.drop_path(self.cross_attn(self.norm2(x), memory, memory, xpos, ypos))
        return x + self.drop_path(self.mlp(self.norm3(x))), y


def spread_cells(cells: Tensor) -> Tensor:
    """Lay the pixels of the cells of a grid side by side: (B, h, w, c, p, p) -> (B, c, h p, w p).

    `F.pixel_shuffle` does the same; one copy by strides is several times faster on a CPU.
    """
    return cells.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


class PatchEmbed(nn.Module):
    """Cut images into patches and project each to a token; accepts only the configured image size.

    Args:
        img_size: Image size, int or (height, width), in pixels.
        patch_size: Patch size p, int or (height, width), in pixels.
        in_chans: Image channels.
        embed_dim: Token width C.
        norm_layer: Optional normalisation of the tokens.
        flatten: Return (B, N, C) tokens in raster order instead of a (B, C, h, w) map.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        norm_layer: LayerFactory | None = None,
        flatten: bool = True,
    ):
        super().__init__()
        self.img_size = to_pair(img_size)
        self.patch_size = to_pair(patch_size)
        self.grid_size = (self.img_size[0] // self.patch_size[0], self.img_size[1] // self.patch_size[1])
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.flatten = flatten
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=self.patch_size, stride=self.patch_size)
        self.norm = norm_layer(embed_dim) if norm_layer else nn.Identity()

    def check_size(self, image: Tensor) -> None:
        """Raise a ValueError if the image size is not a multiple of the patch size."""
        height, width = image.shape[-2:]
        if height % self.patch_size[0] or width % self.patch_size[1]:
            raise ValueError(
                f"image size {height}x{width} is not a multiple of the patch size {self.patch_size}; "
                "resize or crop the image first."
            )

    def embed(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and positions of images of any size that is a multiple of the patch size."""
        self.check_size(image)
        grid = self.proj(image)  # (B, C, h, w)
        positions = grid_positions(grid.shape[0], grid.shape[2], grid.shape[3], device=grid.device)
        return self.norm(grid.flatten(2).transpose(1, 2) if self.flatten else grid), positions

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Embed images.

        Args:
            image: (B, in_chans, H, W) with (H, W) equal to `img_size`.

        Returns:
            Tokens (B, N, C) and their integer (row, column) positions (B, N, 2).

        Raises:
            ValueError: If the image size differs from `img_size`.
        """
        if tuple(image.shape[-2:]) != self.img_size:
            raise ValueError(
                f"this patch embedding takes images of {self.img_size} (height, width), got "
                f"{tuple(image.shape[-2:])}; resize the image or build the model with that img_size."
            )
        return self.embed(image)
