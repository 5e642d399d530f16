"""Linear head: every token predicts the pixels of its patch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from croco.models.blocks import spread_cells
from dust3r.heads.postprocess import RangeMode, postprocess


def tokens_to_pixels(tokens: Tensor, image_size: tuple[int, int], patch_size: int) -> Tensor:
    """Spread the channels of tokens over the pixels of their patches.

    Args:
        tokens: (B, N, c p^2) in raster order; channel index c * p^2 + row * p + column.
        image_size: (height, width) in pixels.
        patch_size: p.

    Returns:
        (B, c, H, W).
    """
    rows, columns = image_size[0] // patch_size, image_size[1] // patch_size
    return spread_cells(tokens.unflatten(2, (-1, patch_size, patch_size)).unflatten(1, (rows, columns)))


class LinearPts3d(nn.Module):
    """Pointmap (and confidence) by one linear layer on the last decoder tokens.

    Args:
        dim: Token width of the decoder.
        patch_size: Patch side p in pixels.
        depth_mode: See `dust3r.heads.postprocess.reg_dense_depth`.
        conf_mode: See `dust3r.heads.postprocess.reg_dense_conf`, or None for no confidence.
    """

    def __init__(self, dim: int, patch_size: int, *, depth_mode: RangeMode, conf_mode: RangeMode | None):
        super().__init__()
        self.patch_size = patch_size
        self.depth_mode = depth_mode
        self.conf_mode = conf_mode
        self.proj = nn.Linear(dim, (3 + (conf_mode is not None)) * patch_size**2)

    def forward(self, decout: Sequence[Tensor], img_shape: tuple[int, int]) -> dict[str, Tensor]:
        """Predict from the token list of the decoder; see `postprocess` for the result."""
        raw = tokens_to_pixels(self.proj(decout[-1]), img_shape, self.patch_size)
        return postprocess(raw, self.depth_mode, self.conf_mode)
