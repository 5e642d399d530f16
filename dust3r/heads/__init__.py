"""Heads: from decoder tokens to pointmaps."""

from __future__ import annotations

from typing import Protocol

from torch import nn

from croco.models.dpt_block import DPTOutputAdapter
from dust3r.heads.dpt_head import DPTPts3d, DPTWidths, make_dpt
from dust3r.heads.linear_head import LinearPts3d
from dust3r.heads.postprocess import RangeMode


class HeadOwner(Protocol):
    """What a head needs to know of its network."""

    enc_embed_dim: int
    dec_embed_dim: int
    dec_depth: int
    patch_size: int
    depth_mode: RangeMode
    conf_mode: RangeMode | None
    dpt_widths: DPTWidths


def owner_dpt(net: HeadOwner, *, has_conf: bool) -> DPTOutputAdapter:
    """The DPT adapter for `net`, with a confidence channel if asked."""
    return make_dpt(
        enc_embed_dim=net.enc_embed_dim,
        dec_embed_dim=net.dec_embed_dim,
        dec_depth=net.dec_depth,
        patch_size=net.patch_size,
        num_channels=3 + has_conf,
        widths=net.dpt_widths,
    )


def head_factory(head_type: str, output_mode: str, net: HeadOwner, has_conf: bool = False) -> nn.Module:
    """Build a DUSt3R head.

    Args:
        head_type: 'linear' or 'dpt'.
        output_mode: 'pts3d'.
        net: The network the head belongs to.
        has_conf: Whether the head predicts a confidence.

    Returns:
        Module of (token list, (height, width)) that gives a dict of maps.

    Raises:
        ValueError: On an unknown combination.
    """
    conf_mode = net.conf_mode if has_conf else None
    if output_mode == "pts3d" and head_type == "linear":
        return LinearPts3d(net.dec_embed_dim, net.patch_size, depth_mode=net.depth_mode, conf_mode=conf_mode)
    if output_mode == "pts3d" and head_type == "dpt":
        return DPTPts3d(owner_dpt(net, has_conf=has_conf), depth_mode=net.depth_mode, conf_mode=conf_mode)
    raise ValueError(
        f"no DUSt3R head for head_type={head_type!r} with output_mode={output_mode!r}; "
        "choose 'linear' or 'dpt' with 'pts3d'."
    )
