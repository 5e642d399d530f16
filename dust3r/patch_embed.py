"""Patch embeddings for images of any size and of mixed orientation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from croco.models.blocks import PatchEmbed, grid_positions
from croco.models.conv_stem import ConvStem, append_detail, fold
from dust3r.utils.misc import ShapeLike, portrait_rows, restore_rows

PatchEmbedName = Literal["PatchEmbedDust3R", "ManyAR_PatchEmbed"]


class PatchEmbedDust3R(PatchEmbed):
    """Patch embedding for images of any height and width that are multiples of the patch size."""

    def forward(self, image: Tensor, true_shape: ShapeLike | None = None) -> tuple[Tensor, Tensor]:
        """Embed images.

        Args:
            image: (B, 3, H, W).
            true_shape: Ignored; accepted so that both embeddings are called alike.

        Returns:
            Tokens (B, N, C) in raster order and their integer (row, column) positions (B, N, 2).
        """
        return self.embed(image)


class ManyAR_PatchEmbed(PatchEmbed):  # noqa: N801 (official name, stored in checkpoints)
    """Patch embedding for batches that mix landscape and portrait images in one landscape container.

    Rows whose true shape is portrait hold the image with its two spatial axes swapped. They are swapped back
    before the projection, so that their tokens and positions are those of the portrait image.
    """

    def forward(self, image: Tensor, true_shape: ShapeLike) -> tuple[Tensor, Tensor]:
        """Embed images.

        Args:
            image: (B, 3, H, W) with W >= H.
            true_shape: (B, 2) true (height, width) of each image; a square counts as landscape.

        Returns:
            Tokens (B, N, C), each row in the raster order of its own orientation, and positions (B, N, 2).

        Raises:
            ValueError: If the container is portrait or `true_shape` has another batch size.
        """
        batch, _, height, width = image.shape
        if height > width:
            raise ValueError(f"ManyAR_PatchEmbed takes landscape containers (W >= H), got H={height}, W={width}.")
        portrait = portrait_rows(true_shape)
        if len(portrait) != batch:
            raise ValueError(f"true_shape has {len(portrait)} rows for {batch} images; give one (height, width) each.")
        landscape, portrait = (~portrait).nonzero().flatten(), portrait.nonzero().flatten()
        landscape, portrait = landscape.to(image.device), portrait.to(image.device)
        if len(portrait) == 0:
            return self.embed(image)
        if len(landscape) == 0:
            return self.embed(image.transpose(-1, -2))
        tokens1, positions1 = self.embed(image.index_select(0, landscape))
        tokens2, positions2 = self.embed(image.index_select(0, portrait).transpose(-1, -2))
        order = torch.cat((landscape, portrait))
        return (
            restore_rows(torch.cat((tokens1, tokens2)), order),
            restore_rows(torch.cat((positions1, positions2)), order),
        )


class _StemEmbed(PatchEmbed):
    """Replaces the patch projection by a convolutional stem whose fine features travel behind each token.

    Args:
        img_size: Nominal image size, int or (height, width), in pixels.
        patch_size: Patch side in pixels, 16.
        in_chans: Image channels, 3.
        embed_dim: Token width C without the fine features.
        detail_dim: Channels c of the fine map at a quarter of the resolution; tokens get c (p/4)^2 more channels.
    """

    def __init__(
        self, img_size: int | tuple[int, int], patch_size: int, in_chans: int, embed_dim: int, *, detail_dim: int
    ):
        super().__init__(img_size, patch_size, in_chans, embed_dim)
        widths = (32, 64, 128)
        self.stem = ConvStem(widths, detail_dim)
        self.proj = nn.Conv2d(widths[-1], embed_dim, kernel_size=patch_size // 8, stride=patch_size // 8)

    def embed(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, N, C + c (p/4)^2) and positions of images of any size that is a multiple of the patch size."""
        self.check_size(image)
        coarse, fine = self.stem(image)
        grid = self.proj(coarse)  # (B, C, h, w)
        positions = grid_positions(grid.shape[0], grid.shape[2], grid.shape[3], device=grid.device)
        return append_detail(grid.flatten(2).transpose(1, 2), fold(fine, self.patch_size[0])), positions


class StemEmbedDust3R(_StemEmbed, PatchEmbedDust3R):
    """`PatchEmbedDust3R` with a convolutional stem."""


class ManyARStemEmbed(_StemEmbed, ManyAR_PatchEmbed):
    """`ManyAR_PatchEmbed` with a convolutional stem."""


_STEMS: dict[str, type[_StemEmbed]] = {"PatchEmbedDust3R": StemEmbedDust3R, "ManyAR_PatchEmbed": ManyARStemEmbed}
_CLASSES: dict[str, type[PatchEmbed]] = {
    "PatchEmbedDust3R": PatchEmbedDust3R,
    "ManyAR_PatchEmbed": ManyAR_PatchEmbed,
}


def get_patch_embed(
    patch_embed_cls: PatchEmbedName | str,
    img_size: int | tuple[int, int],
    patch_size: int,
    enc_embed_dim: int,
    detail_dim: int = 0,
) -> PatchEmbed:
    """Build a patch embedding by name.

    Args:
        patch_embed_cls: 'PatchEmbedDust3R' (inference) or 'ManyAR_PatchEmbed' (mixed orientations).
        img_size: Nominal image size, int or (height, width), in pixels.
        patch_size: Patch side in pixels.
        enc_embed_dim: Token width.
        detail_dim: Channels of the fine map of a convolutional stem; 0 for the official patch projection.

    Raises:
        ValueError: If the name is unknown.
    """
    if patch_embed_cls not in _CLASSES:
        raise ValueError(f"patch_embed_cls must be one of {sorted(_CLASSES)}, got {patch_embed_cls!r}.")
    if detail_dim:
        return _STEMS[patch_embed_cls](img_size, patch_size, 3, enc_embed_dim, detail_dim=detail_dim)
    return _CLASSES[patch_embed_cls](img_size, patch_size, 3, enc_embed_dim)
