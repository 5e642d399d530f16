"""Dense global alignment of pairwise predictions (DUSt3R, section 3.4)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch

from dust3r.cloud_opt.base_opt import BasePCOptimizer
from dust3r.cloud_opt.commons import AlignmentConfig
from dust3r.cloud_opt.modular_optimizer import ModularPointCloudOptimizer
from dust3r.cloud_opt.optimizer import PointCloudOptimizer
from dust3r.cloud_opt.pair_viewer import PairViewer

__all__ = [
    "AlignmentConfig",
    "BasePCOptimizer",
    "GlobalAlignerMode",
    "ModularPointCloudOptimizer",
    "PairViewer",
    "PointCloudOptimizer",
    "global_aligner",
]


class GlobalAlignerMode(Enum):
    """Which aligner `global_aligner` makes."""

    PointCloudOptimizer = "PointCloudOptimizer"
    ModularPointCloudOptimizer = "ModularPointCloudOptimizer"
    PairViewer = "PairViewer"


_ALIGNERS: dict[GlobalAlignerMode, type[BasePCOptimizer]] = {
    GlobalAlignerMode.PointCloudOptimizer: PointCloudOptimizer,
    GlobalAlignerMode.ModularPointCloudOptimizer: ModularPointCloudOptimizer,
    GlobalAlignerMode.PairViewer: PairViewer,
}


def global_aligner(
    dust3r_output: Mapping[str, Any],
    device: str | torch.device,
    mode: GlobalAlignerMode = GlobalAlignerMode.PointCloudOptimizer,
    **optim_kw: Any,
) -> Any:
    """An aligner of the output of `dust3r.inference.inference`.

    Args:
        dust3r_output: `view1`, `view2`, `pred1`, `pred2`.
        device: Where to align.
        mode: Which aligner.
        **optim_kw: Settings of the aligner: `dist`, `conf`, `min_conf_thr`, `base_scale`,
            `allow_pw_adaptors`, `pw_break`, `optimize_pp`, `rand_pose`, `verbose`; `focal_break` (modular:
            `focal_brake`, `fx_and_fy`).

    Returns:
        The aligner; call `compute_global_alignment(init="mst")` next, except for `PairViewer`.

    Raises:
        ValueError: If the mode or a setting is unknown, or the pairs are not usable.
    """
    if mode not in _ALIGNERS:
        raise ValueError(f"mode must be a GlobalAlignerMode, got {mode!r}.")
    parts = [dust3r_output[key] for key in ("view1", "view2", "pred1", "pred2")]
    return _ALIGNERS[mode](*parts, **optim_kw).to(device)
