"""The standard dense aligner."""

from __future__ import annotations

from typing import Any

from dust3r.cloud_opt.base_opt import BasePCOptimizer


class PointCloudOptimizer(BasePCOptimizer):
    """Minimises the mean residual over all pixels of all pairs.

    Args:
        *args: `view1, view2, pred1, pred2` of `inference`, or an aligner to copy.
        optimize_pp: Optimise the principal points.
        focal_break: Divisor of the raw log focal: larger is stiffer.
        **kwargs: See `BasePCOptimizer._init_from_views`.
    """

    def __init__(self, *args: Any, optimize_pp: bool = False, focal_break: float = 20, **kwargs: Any) -> None:
        if len(args) == 1:
            super().__init__(*args)
        else:
            super().__init__(*args, optimize_pp=optimize_pp, focal_break=focal_break, **kwargs)
