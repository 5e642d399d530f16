"""Training criteria of DUSt3R: point-map regression, its invariant variants, confidence weighting.

A criterion is called as `criterion(view1, view2, pred1, pred2) -> (loss, details)`. Criteria add, subtract
and scale like numbers: `a + 0.075 * b`. `details` holds detached 0-D tensors, so nothing waits for the GPU
until a value is printed (`details_to_float` fetches all of them at once). Everything is computed in float32
(or float64), also under autocast, and masks replace boolean indexing, so shapes are static for
`torch.compile`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dust3r.heads.postprocess import channel_norm
from dust3r.utils.geometry import (
    geotrf,
    get_joint_pointcloud_center_scale,
    get_joint_pointcloud_depth,
    inv,
    normalize_pointcloud,
)

View = Mapping[str, Any]
Details = dict[str, Tensor]


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask`; 0 (with zero gradient) where the mask is empty."""
    return values.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)


def required(view: View, key: str) -> Tensor:
    """`view[key]`.

    Raises:
        ValueError: if the view or prediction lacks it.
    """
    if key not in view:
        raise ValueError(f"this loss needs {key!r} in the view or prediction, got only {sorted(view)}; add it")
    return view[key]


def full_precision(x: Tensor) -> Tensor:
    """`x` in at least float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def details_to_float(details: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Monitoring values as Python numbers, fetched from the device in one transfer."""
    if not details:
        return {}
    device = next((v.device for v in details.values() if isinstance(v, Tensor)), torch.device("cpu"))
    values = torch.stack([torch.as_tensor(v, dtype=torch.float32, device=device) for v in details.values()])
    return dict(zip(details, values.tolist()))


# ----------------------------------------------------------------------------------- point distances


class PointDistance(nn.Module, ABC):
    """A distance between point maps. `distance` is per point; calling the object reduces it."""

    def __init__(self, reduction: Literal["mean", "sum", "none"] = "mean"):
        super().__init__()
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"unknown reduction {reduction!r}; use 'mean', 'sum' or 'none'")
        self.reduction = reduction

    @abstractmethod
    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """(..., D) and (..., D) points -> (...) distances."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Reduced distance; an empty set has the mean 0."""
        if a.shape != b.shape:
            raise ValueError(f"both point sets need one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
        dist = self.distance(a, b)
        if self.reduction == "none":
            return dist
        return dist.sum() if self.reduction == "sum" else dist.sum() / max(dist.numel(), 1)


class L21Loss(PointDistance):
    """Euclidean distance per point (the L2,1 norm of the map)."""

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """(..., D) and (..., D) points -> (...) Euclidean distances."""
        return channel_norm(a - b)[..., 0]


L21 = L21Loss()


# ------------------------------------------------------------------------------- algebra of criteria


class MultiLoss(nn.Module, ABC):
    """Base of all criteria: full precision, call signature and arithmetic."""

    @abstractmethod
    def compute_loss(
        self, gt1: View, gt2: View, pred1: View, pred2: View, *, dist_clip: float | None = None
    ) -> tuple[Tensor, Details]:
        """Scalar loss and monitoring values; called with autocast off."""

    @abstractmethod
    def get_name(self) -> str:
        """Short formula of the criterion."""

    def forward(
        self, gt1: View, gt2: View, pred1: View, pred2: View, *, dist_clip: float | None = None
    ) -> tuple[Tensor, Details]:
        """Evaluate the criterion on one batch.

        Args:
            gt1: ground truth of view 1 (training view keys: pts3d, camera_pose, valid_mask, ...).
            gt2: ground truth of view 2.
            pred1: prediction for view 1 (pts3d, conf, ...).
            pred2: prediction for view 2 (pts3d_in_other_view, conf, ...).
            dist_clip: ignore points farther than this from camera 1, in scene units.

        Returns:
            Scalar loss and a dict of detached 0-D tensors for monitoring.
        """
        device = next(v for v in pred1.values() if isinstance(v, Tensor)).device
        with torch.autocast(device_type=device.type, enabled=False):
            return self.compute_loss(gt1, gt2, pred1, pred2, dist_clip=dist_clip)

    def __add__(self, other: MultiLoss | float) -> MultiLoss:
        if isinstance(other, (int, float)) and other == 0:
            return self  # so that sum([...]) works
        if not isinstance(other, MultiLoss):
            return NotImplemented
        return WeightedSum([*_terms(self), *_terms(other)])

    __radd__ = __add__

    def __mul__(self, weight: float) -> MultiLoss:
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            return NotImplemented
        return WeightedSum([(weight * w, loss) for w, loss in _terms(self)])

    __rmul__ = __mul__

    def __neg__(self) -> MultiLoss:
        return -1 * self

    def __sub__(self, other: MultiLoss) -> MultiLoss:
        if not isinstance(other, MultiLoss):
            return NotImplemented
        return self + (-1 * other)

    def __repr__(self) -> str:
        return self.get_name()


class WeightedSum(MultiLoss):
    """Weighted sum of criteria, what the arithmetic of `MultiLoss` builds."""

    def __init__(self, terms: Iterable[tuple[float, MultiLoss]]):
        super().__init__()
        terms = list(terms)
        self.weights = [weight for weight, _ in terms]
        self.losses = nn.ModuleList(loss for _, loss in terms)

    def get_name(self) -> str:
        """Formula, such as `A + 0.075*B`."""
        parts = [loss.get_name() if weight == 1 else f"{weight:g}*{loss.get_name()}" for weight, loss in _terms(self)]
        return " + ".join(parts)

    def compute_loss(
        self, gt1: View, gt2: View, pred1: View, pred2: View, *, dist_clip: float | None = None
    ) -> tuple[Tensor, Details]:
        """Weighted sum of the terms; the details of all terms are merged."""
        values, details = [], {}
        for weight, loss in _terms(self):
            value, term_details = loss.compute_loss(gt1, gt2, pred1, pred2, dist_clip=dist_clip)
            values.append(weight * value)
            details |= term_details
        return torch.stack(values).sum(), details


def _terms(loss: MultiLoss) -> list[tuple[float, MultiLoss]]:
    """Flat list of the weighted terms of a criterion."""
    if isinstance(loss, WeightedSum):
        return [(w, term) for w, term in zip(loss.weights, loss.losses) if isinstance(term, MultiLoss)]
    return [(1, loss)]


# ------------------------------------------------------------------------------ point-map regression


@dataclass(frozen=True)
class PointPairs:
    """What a regression compares, all in the frame of camera 1.

    Attributes:
        gt: two (B, H, W, 3) ground-truth maps; 0 outside `valid`.
        pred: two (B, H, W, 3) predicted maps.
        valid: two (B, H, W) bool masks of usable ground truth.
    """

    gt: tuple[Tensor, Tensor]
    pred: tuple[Tensor, Tensor]
    valid: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class PixelLosses:
    """Per-pixel losses of the two views and the pixels that count.

    Attributes:
        values: two (B, H, W) losses.
        masks: two (B, H, W) bool masks.
    """

    values: tuple[Tensor, Tensor]
    masks: tuple[Tensor, Tensor]

    def means(self) -> tuple[Tensor, Tensor]:
        """Mean loss of each view over its counting pixels (0 when there are none)."""
        mean1, mean2 = (masked_mean(v, m) for v, m in zip(self.values, self.masks))
        return mean1, mean2


class PixelLoss(MultiLoss):
    """A criterion with one value per pixel, which `ConfLoss` can weight."""

    @abstractmethod
    def pixel_losses(
        self, gt1: View, gt2: View, pred1: View, pred2: View, *, dist_clip: float | None = None
    ) -> PixelLosses:
        """Per-pixel losses and masks of both views."""

    def pixel_details(self, losses: PixelLosses) -> Details:
        """Monitoring values: the mean of each view, named after the class."""
        name = type(self).__name__
        return {f"{name}_pts3d_{i}": mean.detach() for i, mean in enumerate(losses.means(), start=1)}

    def compute_loss(
        self, gt1: View, gt2: View, pred1: View, pred2: View, *, dist_clip: float | None = None
    ) -> tuple[Tensor, Details]:
        """Sum of the mean losses of the two views."""
        losses = self.pixel_losses(gt1, gt2, pred1, pred2, dist_clip=dist_clip)
        mean1, mean2 = losses.means()
        return mean1 + mean2, self.pixel_details(losses)


class Regr3D(PixelLoss):
    """Distance between predicted and true point maps, both in the frame of camera 1 (DUSt3R eq. 2).

    Args:
        criterion: distance between points, such as `L21`.
        norm_mode: joint normalisation of both maps (see `normalize_pointcloud`), or None.
        gt_scale: keep the scale of the ground truth; only the prediction is normalised.
    """

    def __init__(self, criterion: PointDistance, norm_mode: str | None = "avg_dis", gt_scale: bool = False):
        super().__init__()
        self.criterion = criterion
        self.norm_mode = norm_mode
        self.gt_scale = gt_scale

    def get_name(self) -> str:
        """`Regr3D(L21Loss())` and the like."""
        return f"{type(self).__name__}({type(self.criterion).__name__}())"

    def point_pairs(self, gt1: View, gt2: View, pred1: View, pred2: View, dist_clip: float | None = None) -> PointPairs:
        """Normalised point maps to compare."""
        pairs = points_in_camera1(gt1, gt2, pred1, pred2, dist_clip)
        if self.norm_mode is None:
            return pairs
        pred = normalize_pointcloud(*pairs.pred, self.norm_mode, *pairs.valid)
        gt = pairs.gt if self.gt_scale else normalize_pointcloud(*pairs.gt, self.norm_mode, *pairs.valid)
        return replace(pairs, gt=gt, pred=pred)

    def pixel_losses(
        self, gt1: View, gt2: View, pred1: View, pred2: View, *, dist_clip: float | None = None
    ) -> PixelLosses:
        """Distance per pixel, on the valid pixels."""
        pairs = self.point_pairs(gt1, gt2, pred1, pred2, dist_clip)
        dist1, dist2 = (self.criterion.distance(p, g) for p, g in zip(pairs.pred, pairs.gt))
        return PixelLosses((dist1, dist2), pairs.valid)


def points_in_camera1(gt1: View, gt2: View, pred1: View, pred2: View, dist_clip: float | None = None) -> PointPairs:
    """Ground truth moved to camera 1, beside the predictions, which are there already."""
    cam1_from_world = inv(full_precision(required(gt1, "camera_pose")))
    gt, valid = [], []
    for view in (gt1, gt2):
        mask = required(view, "valid_mask")
        points = geotrf(cam1_from_world, full_precision(required(view, "pts3d")))
        points = points.masked_fill(~mask[..., None], 0)
        valid.append(mask if dist_clip is None else mask & (points.norm(dim=-1) <= dist_clip))
        gt.append(points)
    points1, points2 = required(pred1, "pts3d"), required(pred2, "pts3d_in_other_view")
    pred = full_precision(points1), full_precision(points2)
    return PointPairs((gt[0], gt[1]), pred, (valid[0], valid[1]))


class ShiftInvariance(Regr3D):
    """Mix-in: remove the joint median depth of prediction and ground truth."""

    def point_pairs(self, gt1: View, gt2: View, pred1: View, pred2: View, dist_clip: float | None = None) -> PointPairs:
        """Point maps with median depth 0."""
        pairs = super().point_pairs(gt1, gt2, pred1, pred2, dist_clip)
        gt, pred = (_without_median_depth(maps, pairs.valid) for maps in (pairs.gt, pairs.pred))
        return replace(pairs, gt=gt, pred=pred)


def _without_median_depth(maps: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    shift = get_joint_pointcloud_depth(maps[0][..., 2], maps[1][..., 2], *valid)
    offset = torch.stack([torch.zeros_like(shift), torch.zeros_like(shift), shift], dim=-1)[:, None, None]
    return maps[0] - offset, maps[1] - offset


class ScaleInvariance(Regr3D):
    """Mix-in: divide prediction and ground truth by their joint median distance to the median centre.

    With `gt_scale` the prediction takes the ground truth's scale instead. The prediction's scale is clipped
    to [1e-3, 1e3].
    """

    def point_pairs(self, gt1: View, gt2: View, pred1: View, pred2: View, dist_clip: float | None = None) -> PointPairs:
        """Point maps of equal scale."""
        pairs = super().point_pairs(gt1, gt2, pred1, pred2, dist_clip)
        gt_scale, pred_scale = (
            get_joint_pointcloud_center_scale(*maps, *pairs.valid)[1] for maps in (pairs.gt, pairs.pred)
        )
        pred_scale = pred_scale.clamp(min=1e-3, max=1e3)
        if self.gt_scale:
            factor = gt_scale / pred_scale
            return replace(pairs, pred=(pairs.pred[0] * factor, pairs.pred[1] * factor))
        gt_scale = gt_scale.clamp(min=torch.finfo(gt_scale.dtype).tiny)
        gt = pairs.gt[0] / gt_scale, pairs.gt[1] / gt_scale
        return replace(pairs, gt=gt, pred=(pairs.pred[0] / pred_scale, pairs.pred[1] / pred_scale))


class Regr3D_ShiftInv(ShiftInvariance, Regr3D):  # noqa: N801 (public name)
    """`Regr3D` that ignores a shift in depth."""


class Regr3D_ScaleInv(ScaleInvariance, Regr3D):  # noqa: N801 (public name)
    """`Regr3D` that ignores a scale."""


class Regr3D_ScaleShiftInv(ScaleInvariance, ShiftInvariance, Regr3D):  # noqa: N801 (public name)
    """`Regr3D` that ignores a shift in depth and then a scale."""


# ------------------------------------------------------------------------------ confidence weighting


class ConfLoss(MultiLoss):
    """Confidence-weighted pixel loss `conf * loss - alpha * log(conf)` (DUSt3R eq. 4).

    Args:
        pixel_loss: per-pixel criterion.
        alpha: weight of the term that rewards confidence; > 0.
    """

    def __init__(self, pixel_loss: PixelLoss, alpha: float = 1):
        super().__init__()
        if not isinstance(pixel_loss, PixelLoss):
            raise ValueError(f"ConfLoss needs a per-pixel criterion, got {pixel_loss!r}; pass a Regr3D")
        if not alpha > 0:
            raise ValueError(f"ConfLoss needs alpha > 0, got {alpha}; without it every confidence collapses")
        self.pixel_loss = pixel_loss
        self.alpha = alpha

    def get_name(self) -> str:
        """`ConfLoss(...)` around the pixel loss."""
        return f"ConfLoss({self.pixel_loss.get_name()})"

    def compute_loss(
        self, gt1: View, gt2: View, pred1: View, pred2: View, *, dist_clip: float | None = None
    ) -> tuple[Tensor, Details]:
        """Sum of the mean weighted losses of the two views."""
        losses = self.pixel_loss.pixel_losses(gt1, gt2, pred1, pred2, dist_clip=dist_clip)
        conf_loss1, conf_loss2 = (
            masked_mean(confidence_weighted(value, full_precision(required(pred, "conf")), self.alpha), mask)
            for value, mask, pred in zip(losses.values, losses.masks, (pred1, pred2))
        )
        details = {"conf_loss_1": conf_loss1.detach(), "conf_loss2": conf_loss2.detach()}
        return conf_loss1 + conf_loss2, details | self.pixel_loss.pixel_details(losses)


def confidence_weighted(loss: Tensor, conf: Tensor, alpha: float) -> Tensor:
    """`conf * loss - alpha * log(conf)`, elementwise."""
    return conf * loss - alpha * conf.log()
