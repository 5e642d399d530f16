"""A convolutional stem: tokens that have seen their surroundings, and a fine feature map beside them.

Convolutions treat every position of a patch alike, which a linear patch projection has to learn 256 times
(Xiao et al., "Early Convolutions Help Transformers See Better", NeurIPS 2021). An option for small models that
are trained from scratch; the official models have none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from croco.models.blocks import spread_cells

STRIDE = 4
"""Pixels per cell of the fine map, along each axis."""


class ConvNorm(nn.Sequential):
    """3 x 3 convolution and a normalisation over groups of channels of the whole image."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int = 1, groups: int = 4):
        conv = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        super().__init__(conv, nn.GroupNorm(groups, channels_out))


class ResidualUnit(nn.Module):
    """x + two convolutions of GELU(x) at the same resolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = ConvNorm(channels, channels)
        self.conv2 = ConvNorm(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same shape."""
        return x + self.conv2(F.gelu(self.conv1(F.gelu(x))))


class ConvStem(nn.Module):
    """From an image to a fine map at a quarter of its resolution and a coarse one at an eighth.

    Args:
        widths: Channels at a half, a quarter and an eighth of the resolution.
        detail_dim: Channels of the fine map that is handed on.
    """

    def __init__(self, widths: Sequence[int] = (24, 48, 96), detail_dim: int = 32):
        super().__init__()
        half, quarter, eighth = widths
        self.stride2 = ConvNorm(3, half, stride=2)
        self.stride4 = ConvNorm(half, quarter, stride=2)
        self.unit = ResidualUnit(quarter)
        self.stride8 = ConvNorm(quarter, eighth, stride=2)
        self.detail = nn.Conv2d(quarter, detail_dim, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Coarse (B, widths[2], H/8, W/8) and fine (B, detail_dim, H/4, W/4) maps of a (B, 3, H, W) image."""
        fine = self.unit(self.stride4(F.gelu(self.stride2(image))))
        fine = F.gelu(fine)
        return F.gelu(self.stride8(fine)), self.detail(fine)


def fold(fine: Tensor, patch_size: int) -> Tensor:
    """(B, c, H/4, W/4) map -> (B, N, c (p/4)^2): the cells of each p x p patch as channels of its token."""
    return F.pixel_unshuffle(fine, patch_size // STRIDE).flatten(2).transpose(1, 2)


def unfold(tokens: Tensor, rows: int, columns: int, patch_size: int) -> Tensor:
    """Inverse of `fold` for rows x columns patches."""
    side = patch_size // STRIDE
    return spread_cells(tokens.unflatten(2, (-1, side, side)).unflatten(1, (rows, columns)))


def append_detail(tokens: Tensor, detail: Tensor) -> Tensor:
    """(B, N, C) tokens that carry the folded fine features (B, N, D) of their patch behind their own channels."""
    return torch.cat((tokens, detail.to(tokens.dtype)), dim=-1)
