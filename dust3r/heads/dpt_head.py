"""DPT head: pointmap and confidence from four token layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from croco.models.dpt_block import DPTOutputAdapter
from dust3r.heads.postprocess import RangeMode, postprocess


@dataclass(frozen=True)
class DPTWidths:
    """Widths of a DPT head; the defaults are those of every official checkpoint.

    Attributes:
        feature_dim: Width of the fusion path.
        layer_dims: Widths after reassembly of the four layers, shallow to deep.
        last_dim: Width of the last layers.
    """

    feature_dim: int = 256
    layer_dims: tuple[int, int, int, int] = (96, 192, 384, 768)
    last_dim: int = 128


def dpt_hooks(dec_depth: int) -> tuple[int, int, int, int]:
    """Token layers a DPT head reads: the encoder output and three decoder depths (0, 1/2, 3/4, 1)."""
    return 0, dec_depth * 2 // 4, dec_depth * 3 // 4, dec_depth


def make_dpt(
    *,
    enc_embed_dim: int,
    dec_embed_dim: int,
    dec_depth: int,
    patch_size: int,
    num_channels: int,
    widths: DPTWidths,
) -> DPTOutputAdapter:
    """The DPT adapter for the token list of a two-view decoder."""
    return DPTOutputAdapter(
        num_channels=num_channels,
        patch_size=patch_size,
        hooks=dpt_hooks(dec_depth),
        layer_dims=widths.layer_dims,
        feature_dim=widths.feature_dim,
        last_dim=widths.last_dim,
        dim_tokens_enc=(enc_embed_dim, dec_embed_dim, dec_embed_dim, dec_embed_dim),
    )


class DPTPts3d(nn.Module):
    """Pointmap (and confidence) by a DPT adapter.

    Args:
        dpt: Adapter with 3 output channels, or 4 with `conf_mode`.
        depth_mode: See `dust3r.heads.postprocess.reg_dense_depth`.
        conf_mode: See `dust3r.heads.postprocess.reg_dense_conf`, or None for no confidence.
    """

    def __init__(self, dpt: DPTOutputAdapter, *, depth_mode: RangeMode, conf_mode: RangeMode | None):
        super().__init__()
        self.dpt = dpt
        self.depth_mode = depth_mode
        self.conf_mode = conf_mode

    def forward(self, decout: Sequence[Tensor], img_shape: tuple[int, int]) -> dict[str, Tensor]:
        """Predict from the token list of the decoder; see `postprocess` for the result."""
        return postprocess(self.dpt(decout, img_shape), self.depth_mode, self.conf_mode)
