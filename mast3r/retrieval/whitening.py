"""PCA whitening of features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MIN_EIGENVALUE = 1e-14


def pca_whitening(features: Tensor, shrinkage: float = 1.0) -> tuple[Tensor, Tensor]:
    """Mean and projection that decorrelate features.

    Args:
        features: (N, D) samples.
        shrinkage: 1 scales every principal direction to unit variance, 0 only rotates.

    Returns:
        Mean (1, D) and projection (D, D), float64; columns by decreasing variance, `(x - mean) @ projection`.

    Raises:
        ValueError: If `features` is no matrix or has no row.
    """
    if features.ndim != 2 or len(features) == 0:
        raise ValueError(f"pca_whitening needs (N, D) features with N >= 1, got shape {tuple(features.shape)}.")
    x = features.double()
    mean = x.mean(dim=0, keepdim=True)
    centred = x - mean
    variance, directions = torch.linalg.eigh(centred.T @ centred / len(x))
    variance, directions = variance.flip(0).clamp(min=_MIN_EIGENVALUE), directions.flip(1)
    return mean, directions * variance ** (-shrinkage / 2)


class Whitener(nn.Module):
    """`(x - m) @ p`, computed in float64 and returned in the dtype of `x`.

    Args:
        dim: Feature width D.
        l2norm: Normalise the result to unit length along this axis; None leaves it as it is.
    """

    def __init__(self, dim: int, l2norm: int | None = None) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.zeros(1, dim, dtype=torch.float64))
        self.p = nn.Parameter(torch.eye(dim, dtype=torch.float64))
        self.l2norm = l2norm

    def forward(self, x: Tensor) -> Tensor:
        """Whiten features (..., D)."""
        with torch.autocast(x.device.type, enabled=False):
            white = (x.to(self.p.dtype) - self.m) @ self.p
        if self.l2norm is not None:
            white = F.normalize(white, dim=self.l2norm)
        return white.to(x.dtype)
