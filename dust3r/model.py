"""DUSt3R: two images in, two pointmaps in the frame of the first camera out.

Wang et al., "DUSt3R: Geometric 3D Vision Made Easy" (CVPR 2024).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from croco.models.blocks import PatchEmbed
from croco.models.conv_stem import append_detail
from croco.models.croco import CrossViewBackbone
from dust3r.checkpoint import load_pretrained
from dust3r.heads import DPTWidths, head_factory
from dust3r.heads.postprocess import RangeMode, range_mode
from dust3r.patch_embed import ManyAR_PatchEmbed, PatchEmbedName, get_patch_embed
from dust3r.utils.misc import (
    ShapeLike,
    common_shape,
    freeze_all_params,
    interleave,
    is_symmetrized,
    landscape_maps,
)

log = logging.getLogger(__name__)
inf = float("inf")

View = dict[str, Any]
TokenList = list[Tensor]
ModelT = TypeVar("ModelT", bound="AsymmetricCroCo3DStereo")


class AsymmetricCroCo3DStereo(CrossViewBackbone):
    """The DUSt3R network: a shared encoder, two decoders that look at each other, two heads.

    Tensors in, tensors out: with `landscape_only=False` and 'PatchEmbedDust3R' the forward pass depends on
    tensor shapes only and can be exported or compiled.

    Args:
        output_mode: What the heads predict, 'pts3d'.
        head_type: 'linear' or 'dpt'.
        depth_mode: Activation of points, see `dust3r.heads.postprocess.reg_dense_depth`.
        conf_mode: Activation of confidence, see `dust3r.heads.postprocess.reg_dense_conf`.
        freeze: Parameters without gradient: 'none', 'mask' (mask token) or 'encoder' (mask token, patch
            embedding and encoder blocks; the final encoder norm stays trainable).
        landscape_only: True (training): all images come in landscape containers and `true_shape` tells which
            are portrait. False (inference): images come in their own orientation.
        patch_embed_cls: 'PatchEmbedDust3R' or 'ManyAR_PatchEmbed' (needed for portrait rows in training).
        dpt_feature_dim: Width of the fusion path of a DPT head.
        dpt_layer_dims: Widths of its four layers.
        dpt_last_dim: Width of its last layers.
        detail_dim: Channels of the fine feature map of a convolutional stem in place of the patch projection
            (small models); 0 for the official one. Encoder features then carry the fine features of their patch
            behind their own `enc_embed_dim` channels, for heads that use them.
        **croco_kwargs: Arguments of `croco.models.croco.CrossViewBackbone`.
    """

    architecture: ClassVar[str] = "AsymmetricCroCo3DStereo"
    packaged_weights: ClassVar[Path | None] = None

    def __init__(
        self,
        output_mode: str = "pts3d",
        head_type: str = "linear",
        depth_mode: RangeMode = ("exp", -inf, inf),
        conf_mode: RangeMode | None = ("exp", 1, inf),
        freeze: Literal["none", "mask", "encoder"] = "none",
        landscape_only: bool = True,
        patch_embed_cls: PatchEmbedName = "PatchEmbedDust3R",
        *,
        dpt_feature_dim: int = 256,
        dpt_layer_dims: Sequence[int] = (96, 192, 384, 768),
        dpt_last_dim: int = 128,
        detail_dim: int = 0,
        **croco_kwargs: Any,
    ):
        self.detail_dim = detail_dim
        self.patch_embed_cls = patch_embed_cls  # before super().__init__(), which builds the patch embedding
        super().__init__(**croco_kwargs)
        self.output_mode = output_mode
        self.head_type = head_type
        self.depth_mode = range_mode(depth_mode)
        self.conf_mode = None if conf_mode is None else range_mode(conf_mode)
        self.landscape_only = landscape_only
        self.dpt_widths = DPTWidths(dpt_feature_dim, tuple(dpt_layer_dims), dpt_last_dim)  # type: ignore[arg-type]
        self.config.update(
            output_mode=output_mode,
            head_type=head_type,
            depth_mode=self.depth_mode,
            conf_mode=self.conf_mode,
            freeze=freeze,
            landscape_only=landscape_only,
            patch_embed_cls=patch_embed_cls,
            dpt_feature_dim=dpt_feature_dim,
            dpt_layer_dims=self.dpt_widths.layer_dims,
            dpt_last_dim=dpt_last_dim,
            **({"detail_dim": detail_dim} if detail_dim else {}),
        )
        self.initialize_weights()
        self.dec_blocks2 = copy.deepcopy(self.dec_blocks)
        self.downstream_head1 = self._make_head()
        self.downstream_head2 = self._make_head()
        self.set_freeze(freeze)

    def _make_patch_embed(self, img_size: tuple[int, int]) -> PatchEmbed:
        return get_patch_embed(self.patch_embed_cls, img_size, self.patch_size, self.enc_embed_dim, self.detail_dim)

    def _make_head(self) -> nn.Module:
        return head_factory(self.head_type, self.output_mode, self, has_conf=self.conf_mode is not None)

    @classmethod
    def from_pretrained(cls: type[ModelT], pretrained_model_name_or_path: str | Path, **kw: Any) -> ModelT:
        """Load a checkpoint without executing anything stored in it.

        Args:
            pretrained_model_name_or_path: Official checkpoint name, Hub id 'owner/name', folder with
                config.json and model.safetensors, or a `.pth` or `.safetensors` file.
            **kw: Options of `dust3r.checkpoint.load_pretrained` (device, dtype, mmap, revision, ...);
                anything else overrides a constructor argument.

        Returns:
            The model in evaluation mode, set up for inference: native orientation, any image size.

        Raises:
            CheckpointError: If the file is damaged, unsafe, or belongs to another architecture.
        """
        return load_pretrained(cls, pretrained_model_name_or_path, packaged=cls.packaged_weights, **kw)

    def set_freeze(self, freeze: Literal["none", "mask", "encoder"]) -> None:
        """Turn off gradients of a part of the network; see the constructor."""
        frozen: dict[str, list[nn.Module | nn.Parameter]] = {
            "none": [],
            "mask": [self.mask_token],
            "encoder": [self.mask_token, self.patch_embed, self.enc_blocks],
        }
        if freeze not in frozen:
            raise ValueError(f"freeze must be one of {sorted(frozen)}, got {freeze!r}.")
        self.freeze = freeze
        freeze_all_params(frozen[freeze])

    def _encode_image(self, image: Tensor, true_shape: ShapeLike) -> tuple[Tensor, Tensor, None]:
        """Encode images.

        Args:
            image: (B, 3, H, W) in [-1, 1].
            true_shape: (B, 2) true (height, width), tensor or integer array; used by ManyAR_PatchEmbed only.

        Returns:
            Normalised features (B, N, C), integer (row, column) positions (B, N, 2), None.
        """
        x, positions = self.patch_embed(image, true_shape)
        x, detail = x[..., : self.enc_embed_dim], x[..., self.enc_embed_dim :]
        x = self._encode_tokens(self._add_cosine(x, self.enc_pos_embed), positions)[-1]
        return (append_detail(x, detail) if self.detail_dim else x), positions, None

    def _encode_image_pairs(
        self, img1: Tensor, img2: Tensor, true_shape1: ShapeLike, true_shape2: ShapeLike
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Encode both images of each pair, in one batch if their sizes agree.

        Args:
            img1: (B, 3, H1, W1) in [-1, 1].
            img2: (B, 3, H2, W2).
            true_shape1: (B, 2) true (height, width).
            true_shape2: (B, 2).

        Returns:
            Features of image 1, of image 2, positions of image 1, of image 2.
        """
        if img1.shape[-2:] == img2.shape[-2:]:
            shapes = torch.cat((torch.as_tensor(true_shape1), torch.as_tensor(true_shape2)))
            feats, positions, _ = self._encode_image(torch.cat((img1, img2)), shapes)
            feat1, feat2 = feats.chunk(2)
            pos1, pos2 = positions.chunk(2)
        else:
            feat1, pos1, _ = self._encode_image(img1, true_shape1)
            feat2, pos2, _ = self._encode_image(img2, true_shape2)
        return feat1, feat2, pos1, pos2

    def _encode_symmetrized(
        self, view1: View, view2: View
    ) -> tuple[tuple[ShapeLike, ShapeLike], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Encode both views; of a symmetrised batch (every pair followed by its swap) only the even rows.

        Args:
            view1: 'img' (B, 3, H, W); optional 'true_shape' (B, 2) and 'instance' (B names).
            view2: Same for the second images.

        Returns:
            True shapes, features and positions, each as a pair (view 1, view 2).
        """
        img1, img2 = view1["img"], view2["img"]
        shape1, shape2 = _true_shape(view1), _true_shape(view2)
        if not is_symmetrized(view1, view2):
            feat1, feat2, pos1, pos2 = self._encode_image_pairs(img1, img2, shape1, shape2)
            return (shape1, shape2), (feat1, feat2), (pos1, pos2)
        feat1, feat2, pos1, pos2 = self._encode_image_pairs(img1[::2], img2[::2], shape1[::2], shape2[::2])
        return (shape1, shape2), interleave(feat1, feat2), interleave(pos1, pos2)

    def _decoder(self, f1: Tensor, pos1: Tensor, f2: Tensor, pos2: Tensor) -> tuple[TokenList, TokenList]:
        """Decode both images; each block looks at the other image's tokens of the block before.

        Args:
            f1: (B, N1, C) encoder features of image 1.
            pos1: (B, N1, 2) positions.
            f2: (B, N2, C) encoder features of image 2.
            pos2: (B, N2, 2) positions.

        Returns:
            Per image the list [encoder features, output of block 1, ..., normalised last output].
        """
        width = self.enc_embed_dim
        x1, x2 = (self._add_cosine(self.decoder_embed(f[..., :width]), self.dec_pos_embed) for f in (f1, f2))
        table1 = self._rotary(pos1, x1, self.dec_num_heads)
        table2 = self._rotary(pos2, x2, self.dec_num_heads)
        tokens1, tokens2 = [f1], [f2]
        for block1, block2 in zip(self.dec_blocks, self.dec_blocks2):
            x1, x2 = block1(x1, x2, table1, table2)[0], block2(x2, x1, table2, table1)[0]
            tokens1.append(x1)
            tokens2.append(x2)
        return [*tokens1[:-1], self.dec_norm(x1)], [*tokens2[:-1], self.dec_norm(x2)]

    def _downstream_head(
        self, head_num: int, decout: Sequence[Tensor], img_shape: ShapeLike | tuple[int, int]
    ) -> dict[str, Tensor]:
        """Run a head, in the precision of its weights and outside autocast.

        Args:
            head_num: 1 or 2.
            decout: Token list of that image, as `_decoder` returns it.
            img_shape: (B, 2) true (height, width); or one (height, width) of ints for the whole batch.

        Returns:
            Dict of maps: 'pts3d' (B, H, W, 3), 'conf' (B, H, W), and what the head adds.
        """
        head = getattr(self, f"downstream_head{head_num}")
        tokens = head_tokens(head, decout)
        with full_precision(tokens[-1].device.type):
            if isinstance(img_shape, tuple) and isinstance(img_shape[0], int | torch.SymInt):
                return head(tokens, img_shape)
            if self.landscape_only:
                return landscape_maps(head, tokens, img_shape)  # type: ignore[arg-type]
            return head(tokens, common_shape(img_shape))  # type: ignore[arg-type]

    def _head_shape(self, image: Tensor, true_shape: ShapeLike) -> ShapeLike | tuple[int, int]:
        """True shapes where the orientation may differ from the container's, else the plain image size."""
        if self.landscape_only or isinstance(self.patch_embed, ManyAR_PatchEmbed):
            return true_shape
        return image.shape[-2], image.shape[-1]

    def forward(self, view1: View, view2: View) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Predict the pointmaps of image pairs.

        Args:
            view1: 'img' (B, 3, H, W) in [-1, 1]; optional 'true_shape' (B, 2) (height, width), default the
                size of the image; optional 'instance', B names that tell symmetrised batches.
            view2: Same for the second images.

        Returns:
            For view 1 'pts3d' (B, H, W, 3) and 'conf' (B, H, W); for view 2 'pts3d_in_other_view' and 'conf'.
            Both pointmaps are in the frame of camera 1. MASt3R adds 'desc' and 'desc_conf'.
        """
        (shape1, shape2), (feat1, feat2), (pos1, pos2) = self._encode_symmetrized(view1, view2)
        dec1, dec2 = self._decoder(feat1, pos1, feat2, pos2)
        res1 = self._downstream_head(1, dec1, self._head_shape(view1["img"], shape1))
        res2 = self._downstream_head(2, dec2, self._head_shape(view2["img"], shape2))
        res2 = {("pts3d_in_other_view" if key == "pts3d" else key): value for key, value in res2.items()}
        return res1, res2


def _true_shape(view: View) -> Tensor | np.ndarray:
    """True (height, width) of each image, by default the size of the image tensor."""
    if view.get("true_shape") is not None:
        return view["true_shape"]
    batch, _, height, width = view["img"].shape
    return torch.tensor([[height, width]]).expand(batch, -1)


def head_tokens(head: nn.Module, decout: Sequence[Tensor]) -> list[Tensor]:
    """A token list in the precision of a head's weights."""
    dtype = next(head.parameters()).dtype
    return [token.to(dtype) for token in decout]


def full_precision(device_type: str) -> Any:
    """Context without autocast (only entered where autocast is on, so that exported graphs stay plain)."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def load_model(model_path: str | Path, device: str | torch.device, verbose: bool = True) -> AsymmetricCroCo3DStereo:
    """Load a DUSt3R checkpoint file (see `AsymmetricCroCo3DStereo.from_pretrained`).

    Args:
        model_path: Path of a `.pth` or `.safetensors` file.
        device: Where to put the model.
        verbose: Log what was loaded.
    """
    model = AsymmetricCroCo3DStereo.from_pretrained(model_path, device=device)
    if verbose:
        log.info("loaded %s from %s", type(model).__name__, model_path)
    return model
