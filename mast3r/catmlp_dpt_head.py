"""MASt3R heads: a pointmap head plus a local descriptor per pixel from an MLP on the tokens.

Leroy et al., "Grounding Image Matching in 3D with MASt3R" (ECCV 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from croco.models.blocks import Mlp, spread_cells
from croco.models.conv_stem import STRIDE, ResidualUnit, unfold
from dust3r.heads import HeadOwner, owner_dpt
from dust3r.heads.linear_head import tokens_to_pixels
from dust3r.heads.postprocess import RangeMode, channel_norm, reg_dense_conf
from dust3r.heads.postprocess import postprocess as postprocess_points


@dataclass(frozen=True)
class DescriptorOptions:
    """How a MASt3R head predicts descriptors.

    Attributes:
        desc_mode: Activation, 'norm' (unit length).
        two_confs: Whether descriptors have a confidence of their own.
        desc_conf_mode: Activation of that confidence; None for the one of the points.
        hidden_ratio: Hidden width of the MLP as a multiple of its input width.
    """

    desc_mode: str = "norm"
    two_confs: bool = False
    desc_conf_mode: RangeMode | None = None
    hidden_ratio: float = 4.0


class DescriptorOwner(HeadOwner, Protocol):
    """What a MASt3R head needs to know of its network."""

    descriptor: DescriptorOptions
    detail_dim: int


def reg_desc(desc: Tensor, mode: str) -> Tensor:
    """Activate raw descriptors.

    Args:
        desc: (..., d) raw values.
        mode: 'norm': scale to unit length.

    Raises:
        ValueError: On an unknown mode.
    """
    if mode != "norm":
        raise ValueError(f"desc_mode must be 'norm', got {mode!r}.")
    return desc * channel_norm(desc).reciprocal()  # a product: half the cost of a quotient's gradient


def postprocess(
    out: Tensor,
    depth_mode: RangeMode,
    conf_mode: RangeMode | None,
    desc_dim: int | None = None,
    desc_mode: str = "norm",
    two_confs: bool = False,
    desc_conf_mode: RangeMode | None = None,
) -> dict[str, Tensor]:
    """Activate the raw output of a MASt3R head.

    Args:
        out: (B, C, H, W): x, y, z, confidence (with `conf_mode`), `desc_dim` descriptor channels, descriptor
            confidence (with `two_confs`).
        depth_mode: See `dust3r.heads.postprocess.reg_dense_depth`.
        conf_mode: See `dust3r.heads.postprocess.reg_dense_conf`; None for no confidence.
        desc_dim: Descriptor channels d; None or 0 for none.
        desc_mode: See `reg_desc`.
        two_confs: Whether the last channel is a descriptor confidence; else the point confidence serves.
        desc_conf_mode: Activation of the descriptor confidence, default `conf_mode`.

    Returns:
        'pts3d' (B, H, W, 3) and as asked 'conf' (B, H, W), 'desc' (B, H, W, d), 'desc_conf' (B, H, W).
    """
    split = 3 + (conf_mode is not None)
    result = postprocess_points(out[:, :split], depth_mode, conf_mode)
    if desc_dim:
        options = DescriptorOptions(desc_mode, two_confs, desc_conf_mode or conf_mode)
        result |= _descriptor_maps(out[:, split:], desc_dim, options, result.get("conf"))
    return result


def _descriptor_maps(
    raw: Tensor, desc_dim: int, options: DescriptorOptions, point_confidence: Tensor | None
) -> dict[str, Tensor]:
    """'desc' and, if there is one, 'desc_conf' from raw (B, d or d + 1, H, W); see `postprocess`."""
    desc, confidence = raw.permute(0, 2, 3, 1).tensor_split((desc_dim,), dim=-1)
    result = {"desc": reg_desc(desc, options.desc_mode)}
    if options.two_confs and options.desc_conf_mode is not None:
        result["desc_conf"] = reg_dense_conf(confidence[..., 0], options.desc_conf_mode)
    elif point_confidence is not None:
        result["desc_conf"] = point_confidence.clone()
    return result


class DescriptorHead(nn.Module):
    """A raw pointmap head plus raw descriptors; subclasses say how each is made.

    Args:
        net: The network the head belongs to.
        desc_dim: Descriptor channels.
        has_conf: Whether points have a confidence.
    """

    def __init__(self, net: DescriptorOwner, *, desc_dim: int, has_conf: bool):
        super().__init__()
        self.patch_size = net.patch_size
        self.depth_mode = net.depth_mode
        self.conf_mode = net.conf_mode if has_conf else None
        self.desc_dim = desc_dim
        self.descriptor = net.descriptor

    def raw_points(self, decout: Sequence[Tensor], img_shape: tuple[int, int]) -> Tensor:
        """Raw points and confidence (B, 3 or 4, H, W)."""
        raise TypeError(f"{type(self).__name__} has no pointmap head; use one of its subclasses.")

    def raw_descriptors(self, decout: Sequence[Tensor], img_shape: tuple[int, int]) -> Tensor:
        """Raw descriptors and, with two confidences, theirs (B, d or d + 1, H, W)."""
        raise TypeError(f"{type(self).__name__} has no descriptor head; use one of its subclasses.")

    def offset_layers(self) -> list[tuple[nn.Linear | nn.Conv2d, int]]:
        """Layers whose outputs are spread over the pixels of a cell, with the number of those pixels."""
        return []

    def forward(self, decout: Sequence[Tensor], img_shape: tuple[int, int]) -> dict[str, Tensor]:
        """Predict from the token list of the decoder; see `postprocess` for the result."""
        result = postprocess_points(self.raw_points(decout, img_shape), self.depth_mode, self.conf_mode)
        options = replace(self.descriptor, desc_conf_mode=self.descriptor.desc_conf_mode or self.conf_mode)
        raw = self.raw_descriptors(decout, img_shape)
        return result | _descriptor_maps(raw, self.desc_dim, options, result.get("conf"))

    def describe(self, decout: Sequence[Tensor], img_shape: tuple[int, int]) -> dict[str, Tensor]:
        """'desc' and 'desc_conf' alone, for matching: as `forward`, without the points if they have no part in it."""
        if not self.descriptor.two_confs:
            result = self(decout, img_shape)
            return {key: result[key] for key in ("desc", "desc_conf") if key in result}
        options = replace(self.descriptor, desc_conf_mode=self.descriptor.desc_conf_mode or self.conf_mode)
        return _descriptor_maps(self.raw_descriptors(decout, img_shape), self.desc_dim, options, None)


class CatMLPHead(DescriptorHead):
    """Descriptors from an MLP on [encoder token, last decoder token]; see `DescriptorHead` for the arguments."""

    def __init__(self, net: DescriptorOwner, *, desc_dim: int, has_conf: bool):
        super().__init__(net, desc_dim=desc_dim, has_conf=has_conf)
        width = net.enc_embed_dim + net.dec_embed_dim
        self.head_local_features = Mlp(
            width,
            hidden_features=int(net.descriptor.hidden_ratio * width),
            out_features=(desc_dim + net.descriptor.two_confs) * net.patch_size**2,
        )

    def raw_descriptors(self, decout: Sequence[Tensor], img_shape: tuple[int, int]) -> Tensor:
        """See `DescriptorHead.raw_descriptors`."""
        local = self.head_local_features(torch.cat((decout[0], decout[-1]), dim=-1))
        return tokens_to_pixels(local, img_shape, self.patch_size)

    def offset_layers(self) -> list[tuple[nn.Linear | nn.Conv2d, int]]:
        """See `DescriptorHead.offset_layers`."""
        return [(self.head_local_features.fc2, self.patch_size**2)]


class CatMLPDPTHead(CatMLPHead):
    """Official head: points from a DPT."""

    def __init__(self, net: DescriptorOwner, *, desc_dim: int, has_conf: bool):
        super().__init__(net, desc_dim=desc_dim, has_conf=has_conf)
        self.dpt = owner_dpt(net, has_conf=has_conf)

    def raw_points(self, decout: Sequence[Tensor], img_shape: tuple[int, int]) -> Tensor:
        """Raw points and confidence (B, 3 or 4, H, W)."""
        return self.dpt(decout, img_shape)


class CatMLPLinearHead(CatMLPHead):
    """Small-model head: points from one linear layer on the last decoder tokens."""

    def __init__(self, net: DescriptorOwner, *, desc_dim: int, has_conf: bool):
        super().__init__(net, desc_dim=desc_dim, has_conf=has_conf)
        self.proj = nn.Linear(net.dec_embed_dim, (3 + has_conf) * net.patch_size**2)

    def raw_points(self, decout: Sequence[Tensor], img_shape: tuple[int, int]) -> Tensor:
        """Raw points and confidence (B, 3 or 4, H, W)."""
        return tokens_to_pixels(self.proj(decout[-1]), img_shape, self.patch_size)


class CatConvLinearHead(DescriptorHead):
    """Head of small models with a convolutional stem: linear points, descriptors from tokens and fine features.

    The tokens say what a place means and the fine features of the stem, which travel in the encoder features,
    where exactly it is: both meet at a quarter of the image resolution.

    Args:
        net: The network the head belongs to, built with `detail_dim` > 0.
        desc_dim: Descriptor channels.
        has_conf: Whether points have a confidence.
        hidden: Channels at a quarter of the resolution.
    """

    def __init__(self, net: DescriptorOwner, *, desc_dim: int, has_conf: bool, hidden: int = 48):
        super().__init__(net, desc_dim=desc_dim, has_conf=has_conf)
        if not net.detail_dim:
            raise ValueError("head_type 'catconv+linear' needs a model with detail_dim > 0, got 0.")
        self.width = net.enc_embed_dim
        cells = (net.patch_size // STRIDE) ** 2
        self.proj = nn.Linear(net.dec_embed_dim, (3 + has_conf) * net.patch_size**2)
        self.context = nn.Linear(net.enc_embed_dim + net.dec_embed_dim, hidden * cells)
        self.detail = nn.Conv2d(net.detail_dim, hidden, 1)
        self.unit = ResidualUnit(hidden)
        self.local = nn.Conv2d(hidden, (desc_dim + net.descriptor.two_confs) * STRIDE**2, 1)

    def raw_points(self, decout: Sequence[Tensor], img_shape: tuple[int, int]) -> Tensor:
        """See `DescriptorHead.raw_points`."""
        return tokens_to_pixels(self.proj(decout[-1]), img_shape, self.patch_size)

    def raw_descriptors(self, decout: Sequence[Tensor], img_shape: tuple[int, int]) -> Tensor:
        """See `DescriptorHead.raw_descriptors`."""
        rows, columns = img_shape[0] // self.patch_size, img_shape[1] // self.patch_size
        tokens, detail = decout[0][..., : self.width], decout[0][..., self.width :]
        context = self.context(torch.cat((tokens, decout[-1]), dim=-1))
        context, detail = (unfold(x, rows, columns, self.patch_size) for x in (context, detail))
        x = self.unit(context + self.detail(detail))
        cells = self.local(F.gelu(x)).unflatten(1, (-1, STRIDE, STRIDE))  # (B, d or d + 1, 4, 4, H/4, W/4)
        return spread_cells(cells.permute(0, 4, 5, 1, 2, 3))

    def offset_layers(self) -> list[tuple[nn.Linear | nn.Conv2d, int]]:
        """See `DescriptorHead.offset_layers`."""
        return [(self.context, (self.patch_size // STRIDE) ** 2), (self.local, STRIDE**2)]


_HEADS: dict[str, type[DescriptorHead]] = {
    "catmlp+dpt": CatMLPDPTHead,
    "catmlp+linear": CatMLPLinearHead,
    "catconv+linear": CatConvLinearHead,
}


def mast3r_head_factory(head_type: str, output_mode: str, net: DescriptorOwner, has_conf: bool = False) -> nn.Module:
    """Build a MASt3R head.

    Args:
        head_type: 'catmlp+dpt' (official), 'catmlp+linear' or 'catconv+linear' (small models).
        output_mode: 'pts3d+desc<d>' with d descriptor channels, such as 'pts3d+desc24'.
        net: The network the head belongs to.
        has_conf: Whether points have a confidence.

    Returns:
        Module of (token list, (height, width)) that gives a dict of maps.

    Raises:
        ValueError: On an unknown combination.
    """
    digits = output_mode.removeprefix("pts3d+desc")
    if head_type not in _HEADS or digits == output_mode or not digits.isdigit() or int(digits) < 1:
        raise ValueError(
            f"no MASt3R head for head_type={head_type!r} with output_mode={output_mode!r}; choose one of "
            f"{sorted(_HEADS)} with 'pts3d+desc<channels>'."
        )
    return _HEADS[head_type](net, desc_dim=int(digits), has_conf=has_conf)
