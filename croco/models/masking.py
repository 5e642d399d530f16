"""Random patch masks for cross-view completion."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RandomMask(nn.Module):
    """Hide a fixed share of the patches of each image.

    Args:
        num_patches: Patches per image N.
        mask_ratio: Share of hidden patches in [0, 1); `int(mask_ratio * N)` are hidden.
    """

    def __init__(self, num_patches: int, mask_ratio: float):
        super().__init__()
        if not 0.0 <= mask_ratio < 1.0:
            raise ValueError(f"mask_ratio must lie in [0, 1), got {mask_ratio}.")
        self.num_patches = num_patches
        self.num_mask = int(mask_ratio * num_patches)

    def forward(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw one mask per sample.

        Args:
            x: Any tensor with batch axis first; gives the batch size and the device.
            generator: Source of randomness, default the global one of the device.

        Returns:
            (B, N) bool, true where a patch is hidden; every row hides the same number of patches.
        """
        noise = torch.rand(x.shape[0], self.num_patches, device=x.device, generator=generator)
        return noise.argsort(dim=1) < self.num_mask


def visible_indices(mask: Tensor, num_visible: int) -> Tensor:
    """Raster-order indices (B, num_visible) of the visible patches of a mask (B, N); no device sync."""
    return torch.argsort(mask.to(torch.uint8), dim=1, stable=True)[:, :num_visible]


def gather_tokens(x: Tensor, indices: Tensor) -> Tensor:
    """Tokens (B, N, C) at `indices` (B, M): (B, M, C)."""
    return x.gather(1, indices[:, :, None].expand(-1, -1, x.shape[-1]))


def scatter_tokens(background: Tensor, indices: Tensor, x: Tensor) -> Tensor:
    """`background` (B, N, C) with the tokens `x` (B, M, C) written at `indices` (B, M); out of place."""
    return background.scatter(1, indices[:, :, None].expand(-1, -1, x.shape[-1]), x)
