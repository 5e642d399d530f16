"""CroCo: cross-view completion of a masked image with the help of a second view.

Weinzaepfel et al., "CroCo: Self-Supervised Pre-training for 3D Vision Tasks by Cross-View Completion"
(NeurIPS 2022) and "CroCo v2" (ICCV 2023).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from croco.checkpoint import load_pretrained
from croco.models.blocks import Block, DecoderBlock, LayerFactory, PatchEmbed, Positions, to_pair
from croco.models.masking import RandomMask, gather_tokens, scatter_tokens, visible_indices
from croco.models.pos_embed import RoPE2D, sincos_table

DEFAULT_NORM: LayerFactory = partial(nn.LayerNorm, eps=1e-6)


def make_rope(pos_embed: str) -> RoPE2D | None:
    """The rotary embedding named by `pos_embed`: None for 'cosine', base 100 for 'RoPE100', and so on."""
    if pos_embed == "cosine":
        return None
    name, base = pos_embed[:4], pos_embed[4:]
    if name != "RoPE" or not base.replace(".", "", 1).isdigit():
        raise ValueError(f"pos_embed must be 'cosine' or 'RoPE<base>' such as 'RoPE100', got {pos_embed!r}.")
    return RoPE2D(freq=float(base))


class CrossViewBackbone(nn.Module):
    """The shared trunk: patch embedding, encoder, and a decoder that looks at the other image.

    Subclasses add what follows the decoder. `config` keeps the constructor arguments, as literals, so that a
    checkpoint can rebuild the model.

    Args:
        img_size: Image size, int or (height, width), in pixels, multiples of `patch_size`.
        patch_size: Patch side p in pixels.
        enc_embed_dim: Encoder width.
        enc_depth: Encoder blocks.
        enc_num_heads: Encoder heads.
        dec_embed_dim: Decoder width.
        dec_depth: Decoder blocks.
        dec_num_heads: Decoder heads.
        mlp_ratio: Hidden width of the MLPs as a multiple of the token width.
        norm_layer: Normalisation layer.
        norm_im2_in_dec: Whether decoder blocks normalise the other image's tokens.
        pos_embed: 'cosine' (fixed tables added to the tokens) or 'RoPE<base>'.
    """

    enc_pos_embed: Tensor | None
    dec_pos_embed: Tensor | None

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        enc_embed_dim: int = 768,
        enc_depth: int = 12,
        enc_num_heads: int = 12,
        dec_embed_dim: int = 512,
        dec_depth: int = 8,
        dec_num_heads: int = 16,
        mlp_ratio: float = 4,
        norm_layer: LayerFactory = DEFAULT_NORM,
        norm_im2_in_dec: bool = True,
        pos_embed: str = "cosine",
    ):
        super().__init__()
        self.config: dict[str, object] = {
            "img_size": img_size if isinstance(img_size, int) else to_pair(img_size),
            "patch_size": patch_size,
            "enc_embed_dim": enc_embed_dim,
            "enc_depth": enc_depth,
            "enc_num_heads": enc_num_heads,
            "dec_embed_dim": dec_embed_dim,
            "dec_depth": dec_depth,
            "dec_num_heads": dec_num_heads,
            "mlp_ratio": mlp_ratio,
            "norm_im2_in_dec": norm_im2_in_dec,
            "pos_embed": pos_embed,
        }
        if norm_layer is not DEFAULT_NORM:
            self.config["norm_layer"] = norm_layer  # no literal: such a model cannot be stored
        self.patch_size = patch_size
        self.enc_embed_dim, self.enc_depth, self.enc_num_heads = enc_embed_dim, enc_depth, enc_num_heads
        self.dec_embed_dim, self.dec_depth, self.dec_num_heads = dec_embed_dim, dec_depth, dec_num_heads
        self.pos_embed = pos_embed
        self.rope = make_rope(pos_embed)

        self.patch_embed = self._make_patch_embed(to_pair(img_size))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dec_embed_dim))
        self.register_buffer("enc_pos_embed", self._cosine_table(enc_embed_dim))
        self.register_buffer("dec_pos_embed", self._cosine_table(dec_embed_dim))
        shared = {"mlp_ratio": mlp_ratio, "qkv_bias": True, "norm_layer": norm_layer, "rope": self.rope}
        self.enc_blocks = nn.ModuleList(Block(enc_embed_dim, enc_num_heads, **shared) for _ in range(enc_depth))
        self.enc_norm = norm_layer(enc_embed_dim)
        self.decoder_embed = nn.Linear(enc_embed_dim, dec_embed_dim)
        self.dec_blocks = nn.ModuleList(
            DecoderBlock(dec_embed_dim, dec_num_heads, norm_mem=norm_im2_in_dec, **shared) for _ in range(dec_depth)
        )
        self.dec_norm = norm_layer(dec_embed_dim)

    def _make_patch_embed(self, img_size: tuple[int, int]) -> PatchEmbed:
        return PatchEmbed(img_size, self.patch_size, embed_dim=self.enc_embed_dim)

    def _cosine_table(self, dim: int) -> Tensor | None:
        if self.rope is not None:
            return None
        return sincos_table(dim, *self.patch_embed.grid_size).float()

    def initialize_weights(self) -> None:
        """Xavier-uniform linear layers and patch projection, zero biases, N(0, 0.02) mask token."""
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.data.view(self.enc_embed_dim, -1))
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _rotary(self, positions: Tensor, x: Tensor, heads: int) -> Positions:
        """Positions in the form the blocks use fastest: one rotary table for all of them."""
        if self.rope is None:
            return None
        return self.rope.table(positions, x.shape[-1] // heads, dtype=x.dtype)

    @staticmethod
    def _add_cosine(x: Tensor, table: Tensor | None) -> Tensor:
        if table is None:
            return x
        if x.shape[1] != table.shape[0]:
            raise ValueError(
                f"cosine positions are fixed to {table.shape[0]} tokens, got {x.shape[1]}; use images of the "
                "configured img_size or a model with pos_embed='RoPE100'."
            )
        return x + table.to(x.dtype)

    def _encode_tokens(self, x: Tensor, positions: Tensor) -> list[Tensor]:
        """Outputs of all encoder blocks, the last one normalised."""
        table = self._rotary(positions, x, self.enc_num_heads)
        outputs = []
        for block in self.enc_blocks:
            x = block(x, table)
            outputs.append(x)
        return [*outputs[:-1], self.enc_norm(x)]


class CroCoNet(CrossViewBackbone):
    """Cross-view completion: predict the hidden patches of image 1 from its visible ones and image 2.

    Args:
        img_size: Image size, int or (height, width), in pixels.
        patch_size: Patch side p in pixels.
        mask_ratio: Share of hidden patches of image 1.
        enc_embed_dim: Encoder width.
        enc_depth: Encoder blocks.
        enc_num_heads: Encoder heads.
        dec_embed_dim: Decoder width.
        dec_depth: Decoder blocks.
        dec_num_heads: Decoder heads.
        mlp_ratio: Hidden width of the MLPs as a multiple of the token width.
        norm_layer: Normalisation layer.
        norm_im2_in_dec: Whether decoder blocks normalise the tokens of image 2.
        pos_embed: 'cosine' or 'RoPE<base>'.
    """

    architecture: ClassVar[str] = "CroCoNet"

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        mask_ratio: float = 0.9,
        enc_embed_dim: int = 768,
        enc_depth: int = 12,
        enc_num_heads: int = 12,
        dec_embed_dim: int = 512,
        dec_depth: int = 8,
        dec_num_heads: int = 16,
        mlp_ratio: float = 4,
        norm_layer: LayerFactory = DEFAULT_NORM,
        norm_im2_in_dec: bool = True,
        pos_embed: str = "cosine",
    ):
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            enc_embed_dim=enc_embed_dim,
            enc_depth=enc_depth,
            enc_num_heads=enc_num_heads,
            dec_embed_dim=dec_embed_dim,
            dec_depth=dec_depth,
            dec_num_heads=dec_num_heads,
            mlp_ratio=mlp_ratio,
            norm_layer=norm_layer,
            norm_im2_in_dec=norm_im2_in_dec,
            pos_embed=pos_embed,
        )
        self.config["mask_ratio"] = mask_ratio
        self.mask_generator = RandomMask(self.patch_embed.num_patches, mask_ratio)
        self.prediction_head = nn.Linear(dec_embed_dim, 3 * patch_size**2)
        self.initialize_weights()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kw: Any) -> CroCoNet:
        """Load a CroCo checkpoint: official `.pth`, a folder, a `.safetensors` file or a Hub id.

        Args:
            pretrained_model_name_or_path: File, folder, Hub id, or official checkpoint name.
            **kw: Fields of `croco.checkpoint.LoadOptions`; anything else overrides a constructor argument.

        Returns:
            The model in evaluation mode.
        """
        return load_pretrained(cls, pretrained_model_name_or_path, **kw)

    def _encode_blocks(self, image: Tensor, do_mask: bool) -> tuple[list[Tensor], Tensor, Tensor]:
        x, positions = self.patch_embed(image)
        x = self._add_cosine(x, self.enc_pos_embed)
        if not do_mask:
            mask = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
            return self._encode_tokens(x, positions), positions, mask
        mask = self.mask_generator(x)
        visible = visible_indices(mask, x.shape[1] - self.mask_generator.num_mask)
        outputs = self._encode_tokens(gather_tokens(x, visible), gather_tokens(positions, visible))
        return outputs, positions, mask

    def _encode_image(
        self, image: Tensor, do_mask: bool = False, return_all_blocks: bool = False
    ) -> tuple[Tensor | list[Tensor], Tensor, Tensor]:
        """Encode images.

        Args:
            image: (B, 3, H, W), ImageNet-normalised.
            do_mask: Hide a random share of the patches.
            return_all_blocks: Return the outputs of all blocks; only the last one is normalised.

        Returns:
            Features of the visible patches (B, N_visible, C) or a list of them; positions (B, N, 2) of ALL
            patches; mask (B, N) bool, true = hidden.
        """
        outputs, positions, mask = self._encode_blocks(image, do_mask)
        return (outputs if return_all_blocks else outputs[-1]), positions, mask

    def _decode_blocks(
        self, feat1: Tensor, pos1: Tensor, masks1: Tensor | None, feat2: Tensor, pos2: Tensor
    ) -> list[Tensor]:
        x, memory = self.decoder_embed(feat1), self.decoder_embed(feat2)
        if masks1 is not None:
            hidden = self.mask_token.to(x.dtype).expand(*masks1.shape, -1)
            x = scatter_tokens(hidden, visible_indices(masks1, x.shape[1]), x)
        x = self._add_cosine(x, self.dec_pos_embed)
        memory = self._add_cosine(memory, self.dec_pos_embed)
        table1 = self._rotary(pos1, x, self.dec_num_heads)
        table2 = self._rotary(pos2, memory, self.dec_num_heads)
        outputs = []
        for block in self.dec_blocks:
            x, memory = block(x, memory, table1, table2)
            outputs.append(x)
        return [*outputs[:-1], self.dec_norm(x)]

    def _decoder(
        self,
        feat1: Tensor,
        pos1: Tensor,
        masks1: Tensor | None,
        feat2: Tensor,
        pos2: Tensor,
        return_all_blocks: bool = False,
    ) -> Tensor | list[Tensor]:
        """Decode image 1, all of whose blocks look at the projected tokens of image 2.

        Args:
            feat1: (B, N_visible, C) encoder features of image 1.
            pos1: (B, N, 2) positions of ALL patches of image 1.
            masks1: (B, N) bool mask of image 1, or None when nothing is hidden.
            feat2: (B, M, C) encoder features of image 2.
            pos2: (B, M, 2) positions.
            return_all_blocks: Return the outputs of all blocks; only the last one is normalised.

        Returns:
            (B, N, C_dec) or a list of them.
        """
        outputs = self._decode_blocks(feat1, pos1, masks1, feat2, pos2)
        return outputs if return_all_blocks else outputs[-1]

    def patchify(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, 3 p^2); inside a patch the order is row, column, channel (fastest)."""
        batch, channels, height, width = images.shape
        p = self.patch_size
        patches = images.reshape(batch, channels, height // p, p, width // p, p)
        return patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, p * p * channels)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Inverse of `patchify` for images of the configured size: (B, N, 3 p^2) -> (B, 3, H, W)."""
        (rows, columns), p = self.patch_embed.grid_size, self.patch_size
        grid = patches.reshape(patches.shape[0], rows, columns, p, p, 3)
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, rows * p, columns * p)

    def forward(self, img1: Tensor, img2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Complete the masked first image.

        Args:
            img1: (B, 3, H, W), ImageNet-normalised; masked here.
            img2: (B, 3, H, W), seen completely.

        Returns:
            Prediction (B, N, 3 p^2), mask (B, N) bool (true = hidden), target patches (B, N, 3 p^2).
        """
        feats1, pos1, mask1 = self._encode_blocks(img1, do_mask=True)
        feats2, pos2, _ = self._encode_blocks(img2, do_mask=False)
        decoded = self._decode_blocks(feats1[-1], pos1, mask1, feats2[-1], pos2)[-1]
        return self.prediction_head(decoded), mask1, self.patchify(img1)
