"""The dense aligner that weighs all pairs alike."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dust3r.cloud_opt.base_opt import BasePCOptimizer


class ModularPointCloudOptimizer(BasePCOptimizer):
    """Minimises the mean over pairs of the mean residual of each image; both focals may be free.

    It differs from `PointCloudOptimizer` only for images of unequal sizes.

    Args:
        *args: `view1, view2, pred1, pred2` of `inference`, or an aligner to copy.
        optimize_pp: Optimise the principal points.
        fx_and_fy: Optimise two focals per image.
        focal_brake: Divisor of the raw log focal: larger is stiffer.
        **kwargs: See `BasePCOptimizer._init_from_views`.
    """

    def __init__(
        self,
        *args: Any,
        optimize_pp: bool = False,
        fx_and_fy: bool = False,
        focal_brake: float = 20,
        **kwargs: Any,
    ) -> None:
        if len(args) == 1:
            super().__init__(*args)
        else:
            options = {"optimize_pp": optimize_pp, "fx_and_fy": fx_and_fy, "focal_break": focal_brake}
            super().__init__(*args, **options, **kwargs)

    def reduce_losses(self, losses: Tensor) -> Tensor:
        """The objective of `pixel_losses` (E, 2): mean over edges of the means over pixels."""
        return (losses / self._areas[self._edge_images]).sum() / self.n_edges
