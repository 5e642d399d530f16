"""Patch embeddings for images of any size and of mixed orientation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from croco.models.blocks import PatchEmbed
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
        tokens1, positions1 = self.embed(image.index_select(0, landscape))
        tokens2, positions2 = self.embed(image.index_select(0, portrait).transpose(-1, -2))
        order = torch.cat((landscape, portrait))
        return (
            restore_rows(torch.cat((tokens1, tokens2)), order),
            restore_rows(torch.cat((positions1, positions2)), order),
        )


_CLASSES: dict[str, type[PatchEmbed]] = {
    "PatchEmbedDust3R": PatchEmbedDust3R,
    "ManyAR_PatchEmbed": ManyAR_PatchEmbed,
}


def get_patch_embed(
    patch_embed_cls: PatchEmbedName | str,
    img_size: int | tuple[int, int],
    patch_size: int,
    enc_embed_dim: int,
) -> PatchEmbed:
    """Build a patch embedding by name.

    Args:
        patch_embed_cls: 'PatchEmbedDust3R' (inference) or 'ManyAR_PatchEmbed' (mixed orientations).
        img_size: Nominal image size, int or (height, width), in pixels.
        patch_size: Patch side in pixels.
        enc_embed_dim: Token width.

    Raises:
        ValueError: If the name is unknown.
    """
    if patch_embed_cls not in _CLASSES:
        raise ValueError(f"patch_embed_cls must be one of {sorted(_CLASSES)}, got {patch_embed_cls!r}.")
    return _CLASSES[patch_embed_cls](img_size, patch_size, 3, enc_embed_dim)
