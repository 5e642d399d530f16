"""Positions of tokens: 2-D rotary embedding (RoPE2D) and fixed sine-cosine tables."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class RotaryTable(NamedTuple):
    """Cosines and sines of the rotation angles of every token, spread over the channels they act on.

    Attributes:
        cos: (B, 1, N, D); the singleton axis stands for the attention heads.
        sin: Same shape; negative on the first channel of each rotated pair.
    """

    cos: Tensor
    sin: Tensor


class RoPE2D(nn.Module):
    """Two-dimensional rotary position embedding (RoFormer, Su et al. 2021, applied to rows and columns).

    The first half of the channels encodes the row, the second half the column. Inside each half channel k
    pairs with channel k + D/4 and both turn by `F0 * position * freq ** (-4 k / D)`. Angles are formed in
    float32 whatever the token dtype, because half precision cannot hold them.

    Args:
        freq: Base of the geometric frequency series (100 in all CroCo v2 checkpoints).
        F0: Factor on every angle.
    """

    def __init__(self, freq: float = 100.0, F0: float = 1.0):
        super().__init__()
        self.base = freq
        self.F0 = F0

    def table(self, positions: Tensor, head_dim: int, *, dtype: torch.dtype = torch.float32) -> RotaryTable:
        """Build the rotation table for integer token positions.

        Args:
            positions: (B, N, 2) integer (row, column).
            head_dim: Channels per attention head, a multiple of 4.
            dtype: Token dtype; the table is float64 for float64 tokens and float32 otherwise.

        Returns:
            The table, to be shared by all blocks that see the same positions.
        """
        if head_dim % 4:
            raise ValueError(f"RoPE2D needs a head dimension divisible by 4, got {head_dim}; change num_heads.")
        quarter = head_dim // 4
        exponent = torch.arange(quarter, device=positions.device, dtype=torch.float32) / quarter
        angles = positions[:, None, :, :, None].float() * (self.F0 / self.base**exponent)
        angles = angles.to(torch.float64 if dtype == torch.float64 else torch.float32)
        cos, sin = angles.cos(), angles.sin()  # (B, 1, N, 2, D/4), axis 3 is (row, column)
        return RotaryTable(torch.stack((cos, cos), dim=-2).flatten(-3), torch.stack((-sin, sin), dim=-2).flatten(-3))

    def forward(self, tokens: Tensor, positions: Tensor | RotaryTable) -> Tensor:
        """Rotate query or key tokens.

        Args:
            tokens: (B, heads, N, D), any floating dtype.
            positions: (B, N, 2) integer (row, column), or a table made by `table`.

        Returns:
            Rotated tokens, same shape and dtype.
        """
        if not isinstance(positions, RotaryTable):
            positions = self.table(positions, tokens.shape[-1], dtype=tokens.dtype)
        cos, sin = positions
        x = tokens.to(cos.dtype)
        row1, row2, column1, column2 = x.chunk(4, dim=-1)
        # whole-channel arithmetic: acting on the quarters themselves is many times slower on CPUs
        partner = torch.cat((row2, row1, column2, column1), dim=-1)
        return torch.addcmul(x * cos, partner, sin).to(tokens.dtype)


def grid_positions(batch: int, height: int, width: int, *, device: torch.device | None = None) -> Tensor:
    """Integer (row, column) of every token of a grid in raster order, (B, height * width, 2) int64."""
    rows = torch.arange(height, device=device)[:, None].expand(height, width)
    columns = torch.arange(width, device=device)[None, :].expand(height, width)
    return torch.stack((rows, columns), dim=-1).reshape(1, height * width, 2).expand(batch, -1, -1)


def sincos_table(dim: int, height: int, width: int) -> Tensor:
    """Fixed 2-D sine-cosine position table (MAE, He et al. 2022).

    The first half of the channels encodes the COLUMN, the second half the ROW; each half is
    `[sin | cos]` of `position * 10000 ** (-2 i / (dim / 2))`, i < dim / 4.

    Args:
        dim: Channels, a multiple of 4.
        height: Rows of the token grid.
        width: Columns of the token grid.

    Returns:
        (height * width, dim) float64, raster order.
    """
    if dim % 4:
        raise ValueError(f"sincos_table needs a dimension divisible by 4, got {dim}.")
    omega = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    row, column = grid_positions(1, height, width)[0].double().unbind(-1)
    angles = torch.stack((column, row), dim=1)[:, :, None] * omega  # (N, 2, dim/4)
    return torch.cat((angles.sin(), angles.cos()), dim=-1).flatten(1)
