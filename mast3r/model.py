"""MASt3R: DUSt3R with a local descriptor per pixel.

Leroy et al., "Grounding Image Matching in 3D with MASt3R" (ECCV 2024).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dust3r.heads.postprocess import RangeMode, range_mode
from dust3r.model import AsymmetricCroCo3DStereo, full_precision, head_tokens
from mast3r.catmlp_dpt_head import DescriptorOptions, mast3r_head_factory

log = logging.getLogger(__name__)


class AsymmetricMASt3R(AsymmetricCroCo3DStereo):
    """The MASt3R network; only its heads differ from DUSt3R.

    The forward pass adds to both results 'desc' (B, H, W, d), unit length, and 'desc_conf' (B, H, W).

    Args:
        desc_mode: Activation of descriptors, 'norm'.
        two_confs: Whether descriptors have a confidence of their own.
        desc_conf_mode: Activation of that confidence; None for `conf_mode`.
        desc_hidden_ratio: Hidden width of the descriptor MLP as a multiple of its input width.
        **kwargs: Arguments of `AsymmetricCroCo3DStereo`; `head_type` 'catmlp+dpt', 'catmlp+linear' or, with
            `detail_dim`, 'catconv+linear'; `output_mode` 'pts3d+desc<d>'.
    """

    architecture: ClassVar[str] = "AsymmetricMASt3R"
    packaged_weights: ClassVar[Path | None] = Path(__file__).parent / "weights"

    def __init__(
        self,
        desc_mode: str = "norm",
        two_confs: bool = False,
        desc_conf_mode: RangeMode | None = None,
        *,
        desc_hidden_ratio: float = 4.0,
        **kwargs: Any,
    ):
        desc_conf_mode = None if desc_conf_mode is None else range_mode(desc_conf_mode)
        # before super().__init__(), which builds the heads
        self.descriptor = DescriptorOptions(desc_mode, two_confs, desc_conf_mode, desc_hidden_ratio)
        super().__init__(**kwargs)
        self.config.update(
            desc_mode=desc_mode,
            two_confs=two_confs,
            desc_conf_mode=desc_conf_mode,
            desc_hidden_ratio=desc_hidden_ratio,
        )

    def _make_head(self) -> nn.Module:
        return mast3r_head_factory(self.head_type, self.output_mode, self, has_conf=self.conf_mode is not None)

    def _descriptors(self, head_num: int, decout: Sequence[Tensor], img_shape: tuple[int, int]) -> dict[str, Tensor]:
        """What matching needs of `_downstream_head`, without the points: a fifth of an official pair's work less.

        Args:
            head_num: 1 or 2.
            decout: Token list of that image, as `_decoder` returns it.
            img_shape: (height, width) of all images of the batch.

        Returns:
            'desc' (B, H, W, d) and 'desc_conf' (B, H, W).
        """
        head = getattr(self, f"downstream_head{head_num}")
        tokens = head_tokens(head, decout)
        with full_precision(tokens[-1].device.type):
            return head.describe(tokens, img_shape)


def load_model(model_path: str | Path, device: str | torch.device, verbose: bool = True) -> AsymmetricMASt3R:
    """Load a MASt3R checkpoint file (see `AsymmetricMASt3R.from_pretrained`).

    Args:
        model_path: Path of a `.pth` or `.safetensors` file.
        device: Where to put the model.
        verbose: Log what was loaded.
    """
    model = AsymmetricMASt3R.from_pretrained(model_path, device=device)
    if verbose:
        log.info("loaded %s from %s", type(model).__name__, model_path)
    return model
