"""Pre-training loss of cross-view completion."""

from __future__ import annotations

from torch import Tensor, nn


class MaskedMSE(nn.Module):
    """Mean squared error between predicted and true patches.

    Args:
        norm_pix_loss: Normalise each target patch by its mean and unbiased variance (MAE, He et al. 2022).
        masked: Average over hidden patches only, else over all.
    """

    def __init__(self, norm_pix_loss: bool = False, masked: bool = True):
        super().__init__()
        self.norm_pix_loss = norm_pix_loss
        self.masked = masked

    def forward(self, pred: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            pred: (B, N, 3 p^2) predicted patches.
            mask: (B, N) bool, true where the patch was hidden.
            target: (B, N, 3 p^2) true patches.

        Returns:
            Scalar loss.
        """
        if self.norm_pix_loss:
            mean = target.mean(dim=-1, keepdim=True)
            variance = target.var(dim=-1, keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        per_patch = (pred - target).square().mean(dim=-1)  # (B, N)
        if not self.masked:
            return per_patch.mean()
        weight = mask.to(per_patch.dtype)
        return (per_patch * weight).sum() / weight.sum()
