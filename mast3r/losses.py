"""Training criteria of MASt3R: metric-aware point-map regression and descriptor matching.

Same calls, arithmetic and monitoring as `dust3r.losses`. A training view also holds `is_metric_scale` (B,),
`sky_mask` (B,H,W), `corres` (B,N,2) pixel (x, y) and `valid_corres` (B,N); a prediction `desc` and
`desc_conf`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from dust3r.losses import (
    L21,
    ConfLoss,
    Details,
    L21Loss,
    MultiLoss,
    PixelLosses,
    PointDistance,
    PointPairs,
    ScaleInvariance,
    ShiftInvariance,
    View,
    confidence_weighted,
    full_precision,
    masked_mean,
    points_in_camera1,
    required,
)
from dust3r.losses import Regr3D as RelativeRegr3D
from dust3r.utils.geometry import normalize_pointcloud, warp_log1p

__all__ = [
    "L21",
    "APLoss",
    "ConfLoss",
    "ConfMatchingLoss",
    "InfoNCE",
    "L21Loss",
    "MatchingCriterion",
    "MatchingLoss",
    "Regr3D",
    "Regr3D_ScaleInv",
    "Regr3D_ScaleShiftInv",
    "Regr3D_ShiftInv",
]


# ------------------------------------------------------------------------------ point-map regression


class Regr3D(RelativeRegr3D):
    """Point-map regression that keeps the scale of metric samples (MASt3R section 3.1).

    Args:
        criterion: distance between points, such as `L21`.
        norm_mode: as in DUSt3R; with a leading `?` samples marked `is_metric_scale` are not normalised by the
            prediction: both sides are divided by the ground truth's factor.
        gt_scale: keep the scale of the ground truth.
        opt_fit_gt: accepted for compatibility, without effect (as in the official code).
        sky_loss_value: loss of a sky pixel without depth; 0 leaves the sky out.
        max_metric_scale: a sample is metric only if its farthest valid point is nearer than this (False: no
            limit).
        loss_in_log: True compares points moved radially to log(1 + distance), after normalisation; "before"
            moves the ground truth alone, before normalisation (for networks that predict such points).
    """

    def __init__(
        self,
        criterion: PointDistance,
        norm_mode: str | None = "avg_dis",
        gt_scale: bool = False,
        opt_fit_gt: bool = False,
        sky_loss_value: float = 2,
        max_metric_scale: float | Literal[False] = False,
        loss_in_log: bool | Literal["before"] = False,
    ):
        norm_mode = norm_mode or None
        super().__init__(criterion, norm_mode.removeprefix("?") if norm_mode else None, gt_scale)
        self.norm_all = norm_mode is None or not norm_mode.startswith("?")
        self.opt_fit_gt = opt_fit_gt
        self.sky_loss_value = sky_loss_value
        self.max_metric_scale = max_metric_scale
        self.loss_in_log = loss_in_log

    def point_pairs(self, gt1: View, gt2: View, pred1: View, pred2: View, dist_clip: float | None = None) -> PointPairs:
        """Normalised point maps to compare."""
        pairs = points_in_camera1(gt1, gt2, pred1, pred2, dist_clip)
        metric = self._metric_samples(gt1, pairs)
        if self.loss_in_log == "before":
            pairs = replace(pairs, gt=(warp_log1p(pairs.gt[0]), warp_log1p(pairs.gt[1])))
        if self.norm_mode is not None:
            pairs = self._normalised(pairs, self.norm_mode, metric)
        if self.loss_in_log and self.loss_in_log != "before":
            gt, pred = ((warp_log1p(a), warp_log1p(b)) for a, b in (pairs.gt, pairs.pred))
            pairs = replace(pairs, gt=gt, pred=pred)
        return pairs

    def _metric_samples(self, gt1: View, pairs: PointPairs) -> Tensor:
        """(B, 1, 1, 1) bool: samples whose scale the prediction must reproduce."""
        if self.norm_all:
            return torch.zeros(len(pairs.gt[0]), 1, 1, 1, dtype=torch.bool, device=pairs.gt[0].device)
        metric = required(gt1, "is_metric_scale")
        if self.max_metric_scale:
            farthest = [
                points.norm(dim=-1).masked_fill(~valid, 0).flatten(1).amax(dim=1)
                for points, valid in zip(pairs.gt, pairs.valid)
            ]
            metric = metric & (torch.maximum(*farthest) < self.max_metric_scale)
        return metric[:, None, None, None]

    def _normalised(self, pairs: PointPairs, mode: str, metric: Tensor) -> PointPairs:
        relative = normalize_pointcloud(*pairs.pred, mode, *pairs.valid)
        metric_pred, gt = pairs.pred, pairs.gt
        if not self.gt_scale:
            *gt, factor = normalize_pointcloud(*pairs.gt, mode, *pairs.valid, ret_factor=True)
            if mode.endswith("warp-log1p"):  # the ground truth was warped, so must be what it is compared with
                metric_pred = warp_log1p(metric_pred[0]), warp_log1p(metric_pred[1])
            metric_pred = metric_pred[0] / factor, metric_pred[1] / factor
        pred1, pred2 = (torch.where(metric, m, r) for m, r in zip(metric_pred, relative))
        return replace(pairs, gt=(gt[0], gt[1]), pred=(pred1, pred2))

    def pixel_losses(
        self, gt1: View, gt2: View, pred1: View, pred2: View, *, dist_clip: float | None = None
    ) -> PixelLosses:
        """Distance per valid pixel, and a constant on the sky."""
        losses = super().pixel_losses(gt1, gt2, pred1, pred2, dist_clip=dist_clip)
        if not self.sky_loss_value > 0:
            return losses
        skies = [required(gt, "sky_mask") & ~mask for gt, mask in zip((gt1, gt2), losses.masks)]
        values = [v.masked_fill(sky, self.sky_loss_value) for v, sky in zip(losses.values, skies)]
        masks = [mask | sky for mask, sky in zip(losses.masks, skies)]
        return PixelLosses((values[0], values[1]), (masks[0], masks[1]))


class Regr3D_ShiftInv(ShiftInvariance, Regr3D):  # noqa: N801 (public name)
    """`Regr3D` that ignores a shift in depth."""


class Regr3D_ScaleInv(ScaleInvariance, Regr3D):  # noqa: N801 (public name)
    """`Regr3D` that ignores a scale."""


class Regr3D_ScaleShiftInv(ScaleInvariance, ShiftInvariance, Regr3D):  # noqa: N801 (public name)
    """`Regr3D` that ignores a shift in depth and then a scale."""


# --------------------------------------------------------------------------------- matching criteria


class MatchingCriterion(nn.Module, ABC):
    """A loss on N descriptors of view 1 against M >= N of view 2, row i of both being the same point.

    Args:
        reduction: `mean` over the valid rows, or `none`.
        fp: dtype in which similarities are computed.
    """

    def __init__(self, reduction: Literal["mean", "none"] = "mean", fp: torch.dtype = torch.float32):
        super().__init__()
        if reduction not in ("mean", "none"):
            raise ValueError(f"unknown reduction {reduction!r}; use 'mean' or 'none'")
        self.reduction = reduction
        self.fp = fp

    @abstractmethod
    def rows(self, similarity: Tensor) -> Tensor:
        """(B, N, M) similarities, true matches on the diagonal -> (B, N) values."""

    def similarity(self, desc1: Tensor, desc2: Tensor, euclidean: bool = False) -> Tensor:
        """(B, N, D) and (B, M, D) -> (B, N, M): dot products, or 1 / (1 + distance)."""
        if self.fp.itemsize < 4:
            desc1, desc2 = desc1.to(self.fp), desc2.to(self.fp)
        if euclidean:
            return 1 / (1 + torch.cdist(full_precision(desc1), full_precision(desc2)))
        return full_precision(desc1 @ desc2.mT)

    def forward(self, desc1: Tensor, desc2: Tensor, valid: Tensor | None = None, euclidean: bool = False) -> Tensor:
        """Value per row (B, N), or its mean over the `valid` (B, N) rows."""
        values = self.rows(self.similarity(desc1, desc2, euclidean))
        if self.reduction == "none":
            return values
        return masked_mean(values, torch.ones_like(values, dtype=torch.bool) if valid is None else valid)


class InfoNCE(MatchingCriterion):
    """Cross-entropy of the true match among all candidates, in log space (MASt3R eq. 10).

    Args:
        temperature: divisor of the similarities.
        eps: smallest probability; below it the loss is constant.
        mode: `all` normalises over the whole matrix, `proper` adds the losses over the row and over the
            column, `dual` clips the product of both probabilities once.
        reduction: see `MatchingCriterion`.
        fp: see `MatchingCriterion`.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        eps: float = 1e-8,
        mode: Literal["all", "proper", "dual"] = "all",
        reduction: Literal["mean", "none"] = "mean",
        fp: torch.dtype = torch.float32,
    ):
        super().__init__(reduction, fp)
        if mode not in ("all", "proper", "dual"):
            raise ValueError(f"unknown InfoNCE mode {mode!r}; use 'all', 'proper' or 'dual'")
        self.temperature = temperature
        self.eps = eps
        self.mode = mode

    def rows(self, similarity: Tensor) -> Tensor:
        """(B, N, M) similarities -> (B, N) negative log likelihoods; a NaN similarity has probability 0."""
        bad = similarity.isnan()
        logits = similarity.masked_fill(bad, -torch.inf) / self.temperature
        n = logits.shape[-2]
        positive = logits.diagonal(dim1=-2, dim2=-1)
        if self.mode == "all":
            nll = self._clipped_nll(positive - logits.flatten(1).logsumexp(dim=1, keepdim=True))
        else:
            column = positive - logits.logsumexp(dim=-2)[..., :n]
            row = positive - logits.logsumexp(dim=-1)
            if self.mode == "proper":
                nll = self._clipped_nll(column) + self._clipped_nll(row)
            else:
                nll = self._clipped_nll(column + row)
        return nll

    def _clipped_nll(self, log_probability: Tensor) -> Tensor:
        return -log_probability.clamp(min=math.log(self.eps))


class APLoss(MatchingCriterion):
    """Average precision of the true match when candidates are ranked by similarity (1 is perfect).

    Args:
        nq: "torch" ranks exactly (1 / rank; a metric without gradient); an integer uses that many histogram
            bins, which is differentiable (Revaud et al., ICCV 2019).
        min: smallest similarity of the histogram.
        max: largest similarity of the histogram.
        euc: replace the dot product s by 1 - |a - b| = 1 - sqrt(2 - 2 s) (unit descriptors).
        reduction: see `MatchingCriterion`.
        fp: see `MatchingCriterion`; torch.float16 halves the memory and may create ties.
    """

    def __init__(
        self,
        nq: Literal["torch"] | int = "torch",
        min: float = 0,
        max: float = 1,
        euc: bool = False,
        reduction: Literal["mean", "none"] = "mean",
        fp: torch.dtype = torch.float32,
    ):
        super().__init__(reduction, fp)
        if nq != "torch" and not (isinstance(nq, int) and nq >= 2):
            raise ValueError(f"APLoss needs nq='torch' or an integer >= 2, got {nq!r}")
        if not max > min:
            raise ValueError(f"APLoss needs max > min, got min={min}, max={max}")
        self.nq = nq
        self.min = min
        self.max = max
        self.euc = euc

    def rows(self, similarity: Tensor) -> Tensor:
        """(B, N, M) similarities -> (B, N) average precisions."""
        if self.euc:
            similarity = 1 - (2 - 2 * similarity).clamp(min=1e-12).sqrt()
        positive = similarity.diagonal(dim1=-2, dim2=-1)
        if isinstance(self.nq, int):
            return self._quantised(similarity, positive, self.nq)
        return 1 / (1 + (similarity > positive[..., None]).sum(dim=-1)).float()

    def _quantised(self, similarity: Tensor, positive: Tensor, bins: int) -> Tensor:
        """Sum over similarity bins, best first, of precision times gained recall (triangular bins)."""
        gap = (self.max - self.min) / (bins - 1)
        seen, recall, precision_sum = 0.0, 0.0, 0.0
        for k in range(bins):
            centre = self.max - k * gap
            seen = seen + self._membership(similarity, centre, gap).sum(dim=-1)
            gained = self._membership(positive, centre, gap)
            recall = recall + gained
            precision_sum = precision_sum + gained * recall / (seen + 1e-16)
        return torch.as_tensor(precision_sum) / recall

    def _membership(self, similarity: Tensor, centre: float, gap: float) -> Tensor:
        return (1 - (similarity.clamp(self.min, self.max) - centre).abs() / gap).clamp(min=0)


# ----------------------------------------------------------------------------------- matching losses


@dataclass(frozen=True)
class Correspondences:
    """Pixels compared by a matching loss, in rows of one block each.

    Attributes:
        xy1: (B, N, 2) int64 pixels of view 1.
        xy2: (B, N, 2) int64 pixels of view 2; row i shows the same point as row i of `xy1` if valid.
        valid: (B, N) bool; invalid rows are negatives only.
    """

    xy1: Tensor
    xy2: Tensor
    valid: Tensor

    def shuffled(self, rng: np.random.Generator | None) -> Correspondences:
        """The same rows in another order, drawn per sample (from NumPy's global state when `rng` is None)."""
        B, N = self.valid.shape
        permutation = (np.random if rng is None else rng).permutation
        order = torch.from_numpy(np.stack([permutation(N) for _ in range(B)])).to(self.valid.device)
        xy1, xy2 = (xy.gather(1, order[..., None].expand(-1, -1, 2)) for xy in (self.xy1, self.xy2))
        return Correspondences(xy1, xy2, self.valid.gather(1, order))


def gather_pixels(maps: Tensor, xy: Tensor) -> Tensor:
    """(B, H, W) or (B, H, W, D) maps at (B, N, 2) pixels (x, y) -> (B, N) or (B, N, D)."""
    index = xy[..., 0] + maps.shape[2] * xy[..., 1]
    flat = maps.flatten(1, 2)
    if flat.ndim == 3:
        index = index[..., None].expand(-1, -1, flat.shape[-1])
    return flat.gather(1, index)


class MatchingLoss(MultiLoss):
    """A matching criterion on the descriptors at ground-truth correspondences.

    Args:
        criterion: `InfoNCE` or `APLoss`.
        withconf: also report the spread of the confidences at the matched pixels.
        use_pts3d: match predicted points by Euclidean distance in place of descriptors.
        negatives_padding: number of further pixels of view 2 (the first unused ones in raster order) added as
            wrong candidates.
        blocksize: with more correspondences than this, rows are shuffled and compared in blocks of this size.
        rng: source of that shuffle; default NumPy's global state.
    """

    def __init__(
        self,
        criterion: MatchingCriterion,
        withconf: bool = False,
        use_pts3d: bool = False,
        negatives_padding: int = 0,
        blocksize: int = 4096,
        *,
        rng: np.random.Generator | None = None,
    ):
        super().__init__()
        self.criterion = criterion
        self.withconf = withconf
        self.use_pts3d = use_pts3d
        self.negatives_padding = negatives_padding
        self.blocksize = blocksize
        self.rng = rng

    def get_name(self) -> str:
        """`MatchingLoss(InfoNCE())` and the like."""
        return f"MatchingLoss({type(self.criterion).__name__}())"

    def compute_loss(
        self, gt1: View, gt2: View, pred1: View, pred2: View, *, dist_clip: float | None = None
    ) -> tuple[Tensor, Details]:
        """Mean over the valid correspondences."""
        corres = self.correspondences(gt1, gt2)
        loss = masked_mean(self.row_losses(corres, pred1, pred2), corres.valid)
        details = {"MatchingLoss": loss.detach()}
        if self.withconf:
            details = confidence_details(*self.confidences(corres, pred1, pred2)) | details
        return loss, details

    def correspondences(self, gt1: View, gt2: View) -> Correspondences:
        """Rows to compare, shuffled when they will be split into blocks.

        Raises:
            ValueError: if the number of correspondences is above `blocksize` and not a multiple of it.
        """
        corres = Correspondences(
            required(gt1, "corres").long(), required(gt2, "corres").long(), required(gt1, "valid_corres")
        )
        n = corres.valid.shape[1]
        if n <= self.blocksize:
            return corres
        if n % self.blocksize:
            raise ValueError(f"{n} correspondences do not fill blocks of {self.blocksize}; use a multiple")
        return corres.shuffled(self.rng)

    def row_losses(self, corres: Correspondences, pred1: View, pred2: View) -> Tensor:
        """(B, N) value of the criterion per correspondence."""
        map1, map2 = (full_precision(m) for m in self._matched_maps(pred1, pred2))
        desc1, desc2 = gather_pixels(map1, corres.xy1), gather_pixels(map2, corres.xy2)
        B, n, d = desc1.shape
        block = min(n, self.blocksize) or 1
        desc1, desc2 = (desc.reshape(-1, block, d) for desc in (desc1, desc2))
        if self.negatives_padding > 0:
            padding = gather_pixels(map2, self._unused_pixels(corres.xy2, map2))
            desc2 = torch.cat([desc2, padding.repeat_interleave(n // block, dim=0)], dim=1)
        similarity = self.criterion.similarity(desc1, desc2, euclidean=self.use_pts3d)
        return self.criterion.rows(similarity).reshape(B, n)

    def confidences(self, corres: Correspondences, pred1: View, pred2: View) -> tuple[Tensor, Tensor]:
        """Two (B, N) confidences at the corresponding pixels."""
        key = "conf" if self.use_pts3d else "desc_conf"
        conf1, conf2 = full_precision(required(pred1, key)), full_precision(required(pred2, key))
        return gather_pixels(conf1, corres.xy1), gather_pixels(conf2, corres.xy2)

    def _matched_maps(self, pred1: View, pred2: View) -> tuple[Tensor, Tensor]:
        if self.use_pts3d:
            return required(pred1, "pts3d"), required(pred2, "pts3d_in_other_view")
        return required(pred1, "desc"), required(pred2, "desc")

    def _unused_pixels(self, xy: Tensor, maps: Tensor) -> Tensor:
        """(B, padding, 2): the first pixels in raster order that `xy` does not contain."""
        _, H, W = maps.shape[:3]
        if self.negatives_padding + xy.shape[1] > H * W:
            raise ValueError(
                f"negatives_padding={self.negatives_padding} and {xy.shape[1]} correspondences exceed the "
                f"{H * W} pixels of the image; lower one of them"
            )
        used = torch.zeros(len(xy), H * W, dtype=torch.uint8, device=xy.device)
        used = used.scatter(1, xy[..., 0] + W * xy[..., 1], 1)
        index = used.argsort(dim=1, stable=True)[:, : self.negatives_padding]
        return torch.stack([index % W, index // W], dim=-1)


class ConfMatchingLoss(MultiLoss):
    """Confidence-weighted matching loss `c * loss - alpha * log(c)` over the valid correspondences.

    Args:
        pixel_loss: the matching loss to weight.
        alpha: weight of the term that rewards confidence; > 0.
        confmode: how the two pixels' confidences combine: `prod` c1 c2, `mean` (c1 + c2) / 2.
        neg_conf_loss_quantile: False, or q: pixels without a match get this quantile of the valid losses as
            loss.
        unweighted: weight of the matching loss without confidence, added; the same as `+ unweighted * pixel_loss`
            in one evaluation instead of two.
    """

    def __init__(
        self,
        pixel_loss: MatchingLoss,
        alpha: float = 1.0,
        confmode: Literal["prod", "mean"] = "prod",
        neg_conf_loss_quantile: float | Literal[False] = False,
        *,
        unweighted: float = 0.0,
    ):
        super().__init__()
        if not alpha > 0:
            raise ValueError(f"ConfMatchingLoss needs alpha > 0, got {alpha}; otherwise confidences collapse")
        if confmode not in ("prod", "mean"):
            raise ValueError(f"unknown confmode {confmode!r}; use 'prod' or 'mean'")
        self.pixel_loss = pixel_loss
        self.alpha = alpha
        self.confmode = confmode
        self.neg_conf_loss_quantile = neg_conf_loss_quantile
        self.unweighted = unweighted

    def get_name(self) -> str:
        """`ConfLoss(...)` around the matching loss."""
        name = self.pixel_loss.get_name()
        return f"ConfLoss({name})" + (f" + {self.unweighted:g}*{name}" if self.unweighted else "")

    def compute_loss(
        self, gt1: View, gt2: View, pred1: View, pred2: View, *, dist_clip: float | None = None
    ) -> tuple[Tensor, Details]:
        """Mean weighted loss of the matches, plus the term of the unmatched pixels when asked."""
        corres = self.pixel_loss.correspondences(gt1, gt2)
        rows = self.pixel_loss.row_losses(corres, pred1, pred2)
        conf1, conf2 = self.pixel_loss.confidences(corres, pred1, pred2)
        conf = conf1 * conf2 if self.confmode == "prod" else (conf1 + conf2) / 2
        loss = masked_mean(confidence_weighted(rows, conf, self.alpha), corres.valid)
        if self.neg_conf_loss_quantile:
            loss = loss + self._unmatched_loss(rows, corres.valid, conf1, conf2)
        plain = masked_mean(rows, corres.valid)
        details = {"matching_conf_loss": loss.detach()} | confidence_details(conf1, conf2)
        return loss + self.unweighted * plain, details | {"MatchingLoss": plain.detach()}

    def _unmatched_loss(self, rows: Tensor, valid: Tensor, conf1: Tensor, conf2: Tensor) -> Tensor:
        valid_rows = rows.detach().masked_fill(~valid, torch.nan).flatten()
        penalty = valid_rows.nanquantile(float(self.neg_conf_loss_quantile)).nan_to_num(0.0)
        conf = torch.stack([conf1, conf2])
        return masked_mean(confidence_weighted(penalty, conf, self.alpha), ~valid.expand_as(conf))


def confidence_details(conf1: Tensor, conf2: Tensor) -> Details:
    """Standard deviations of the confidences of both views, for monitoring."""
    return {"Conf1_std": conf1.detach().std(), "Conf2_std": conf2.detach().std()}
