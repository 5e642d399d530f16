"""One pointmap per image from all its pairs, and the few depths that stand for it (MASt3R-SfM, section 4.1).

The canonical pointmap is the confidence-weighted mean over the pairs of an image. Alignment moves only the
depth of one pixel per block of `subsample` pixels, the anchor; the other pixels follow their anchor at a fixed
ratio of depths.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dust3r.post_process import estimate_focal_knowing_depth
from mast3r.cloud_opt.observations import MapSize, ViewObservation

RelativeDepth = Literal["avg-angle", "avg-reldepth"]
"""How the ratio of a pixel's depth to its anchor's is averaged over pairs: as slope of the surface or directly."""

MIN_FOCAL, MAX_FOCAL = 0.5, 3.5  # in units of the focal that sees the longer side under 60 degrees
_FIT_ROUNDS = 10
_MIN_ERROR = 1e-3  # pixels
_CONFIDENCE_FLOOR = 0.999  # confidences start at 1: such a pixel still has a little weight
_MIN_DISTANCE = 1e-8
_EPS = float(torch.finfo(torch.float32).eps)
_MAX_STEP = 0.05  # relative change of depth within a pixel beyond which it is an edge, not a slope


@dataclass(frozen=True)
class BlockGrid:
    """Blocks of pixels of an image; the last ones are smaller where the size is no multiple.

    Attributes:
        width: Image width in pixels.
        height: Image height.
        subsample: Side of a block.
    """

    width: int
    height: int
    subsample: int

    @property
    def columns(self) -> int:
        """Blocks side by side."""
        return -(-self.width // self.subsample)

    @property
    def rows(self) -> int:
        """Blocks on top of each other."""
        return -(-self.height // self.subsample)

    def __len__(self) -> int:
        return self.columns * self.rows

    def centers(self) -> tuple[Tensor, Tensor]:
        """Rows (rows,) and columns (columns,) of the anchors, as int64 pixels."""
        half, step = self.subsample // 2, self.subsample
        y = (torch.arange(self.rows) * step + half).clamp(max=self.height - 1)
        x = (torch.arange(self.columns) * step + half).clamp(max=self.width - 1)
        return y, x

    def index(self, xy: Tensor) -> Tensor:
        """Block of integer pixels (M, 2): (M,) int64 row * columns + column."""
        block = torch.div(xy, self.subsample, rounding_mode="floor")
        return block[:, 1] * self.columns + block[:, 0]

    def at_centers(self, values: Tensor) -> Tensor:
        """(rows, columns, ...) entries of a map (H, W, ...) at the anchors."""
        y, x = self.centers()
        return values[y[:, None], x]

    def spread(self, blocks: Tensor) -> Tensor:
        """(H, W, ...) map that repeats each entry of (rows, columns, ...) over its block."""
        y = torch.arange(self.height) // self.subsample
        x = torch.arange(self.width) // self.subsample
        return blocks[y[:, None], x]


@dataclass(frozen=True, eq=False)
class CanonicalView:
    """The pointmap of an image, merged from its pairs.

    Attributes:
        points: (H, W, 3) float32 in the image's camera.
        relative: (H, W) float32 ratio of each pixel's depth to that of its anchor.
        confidence: (H, W) float32; 0 where no pair has a usable point.
        focal: Focal length in pixels that explains the points best.
        center: Principal point (x, y) in pixels that goes with it.
        grid: The blocks.
        mask: (H, W) bool, the pixels the user lets take part; None for all. Anchors serve their block even
            where the mask excludes them.
    """

    points: Tensor
    relative: Tensor
    confidence: Tensor
    focal: float
    center: tuple[float, float]
    grid: BlockGrid
    mask: Tensor | None = None

    @cached_property
    def valid(self) -> Tensor:
        """(H, W) bool: pixels that may take part and whose point, and whose anchor's point, is usable."""
        usable = self._has_depth & self.grid.spread(self.grid.at_centers(self._has_depth))
        return usable if self.mask is None else usable & self.mask

    @property
    def _has_depth(self) -> Tensor:
        return (self.confidence > 0) & (self.points[..., 2] > 0)

    @cached_property
    def core_depth(self) -> Tensor:
        """(blocks,) depth of the anchors; that of the median anchor where there is none."""
        depth = self.grid.at_centers(self.points[..., 2]).flatten()
        usable = self.grid.at_centers(self._has_depth).flatten()
        if not bool(usable.any()):
            return torch.ones_like(depth)
        return torch.where(usable, depth, depth[usable].median())

    @cached_property
    def offsets(self) -> Tensor:
        """(H, W) ratio of each pixel's depth to that of its anchor, as alignment uses it."""
        anchor = self.grid.spread(self.grid.at_centers(self.relative))
        return self.relative / anchor

    def valid_at(self, xy: Tensor) -> Tensor:
        """(M,) bool: whether the pixels nearest to (M, 2) positions are `valid`."""
        x, y = _nearest_pixels(xy, self.grid).unbind(dim=1)
        return self.valid[y, x]

    def offsets_at(self, xy: Tensor) -> tuple[Tensor, Tensor]:
        """Anchors and depth ratios of pixels.

        Args:
            xy: (M, 2) pixels; between pixel centres the depth is interpolated, except across edges.

        Returns:
            (M,) int64 anchor index and (M,) float32 ratio of the pixel's depth to the anchor's.
        """
        nearest = _nearest_pixels(xy, self.grid)
        x, y = nearest.unbind(dim=1)
        offset = self.offsets[y, x]
        fraction = xy.to(offset) - nearest
        if bool((fraction != 0).any()):
            offset = offset * _slope_ratio(self.points[..., 2], x, y, fraction)
        return self.grid.index(nearest), offset


class CanonicalBuilder:
    """Merges the pointmaps of one image; each is needed only while it is added.

    Args:
        size: (W, H) of the image in model pixels.
        subsample: Side of the blocks in pixels.
        mode: How ratios of depth are averaged.
        fit_center: False puts the principal point at (W / 2, H / 2), as the official code does. True puts it in
            the middle of the pixels, ((W - 1) / 2, (H - 1) / 2), unless the points clearly tell another one.
        device: Where to compute.
    """

    def __init__(
        self,
        size: MapSize,
        *,
        subsample: int = 8,
        mode: RelativeDepth = "avg-angle",
        fit_center: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        if mode not in ("avg-angle", "avg-reldepth"):
            raise ValueError(f"mode must be 'avg-angle' or 'avg-reldepth', got {mode!r}.")
        self.grid = BlockGrid(*size, subsample)
        self._mode, self._fit_center = mode, fit_center
        width, height = size
        self._points = torch.zeros(height, width, 3, device=device)
        self._weight, self._square, self._ratio, self._distance, self._count = torch.zeros(
            5, height, width, device=device
        )

    @property
    def empty(self) -> bool:
        """Whether no pair has told anything yet."""
        return not bool((self._weight > 0).any())

    def add(self, points: Tensor, confidence: Tensor) -> None:
        """Add what one pair says.

        Args:
            points: (H, W, 3) in the image's camera.
            confidence: (H, W).

        Raises:
            ValueError: If the size is not that of the image.
        """
        if confidence.shape != self._weight.shape:
            raise ValueError(
                f"The pointmap of an image of size {(self.grid.width, self.grid.height)} must be (H, W, 3) = "
                f"{(*self._weight.shape, 3)}, got {tuple(points.shape)}."
            )
        points, confidence = points.to(self._points), confidence.to(self._points)
        weight = _usable_weight(points, confidence)
        points = points.nan_to_num(0.0, 0.0, 0.0)
        self._points += weight[..., None] * points
        self._weight += weight
        self._square += weight * weight
        self._add_ratio(points, weight)

    def _add_ratio(self, points: Tensor, weight: Tensor) -> None:
        anchor = self.grid.spread(self.grid.at_centers(points))
        used = weight * (self.grid.spread(self.grid.at_centers(weight)) > 0)
        if self._mode == "avg-reldepth":
            self._ratio += used * (points[..., 2] / _nonzero(anchor[..., 2]))
        else:
            distance = (points[..., :2] - anchor[..., :2]).norm(dim=-1).clamp(min=_MIN_DISTANCE)
            self._ratio += used * torch.atan((points[..., 2] - anchor[..., 2]) / distance)
            self._distance += distance * (used > 0)
        self._count += used > 0

    def build(self, mask: Tensor | None = None) -> CanonicalView:
        """The merged view.

        Args:
            mask: (H, W) bool, True where the image may be used.

        Raises:
            ValueError: If the mask has another size.
        """
        if mask is not None and mask.shape != self._weight.shape:
            raise ValueError(
                f"The mask of an image must have its size {tuple(self._weight.shape)}, got {tuple(mask.shape)}."
            )
        known = self._weight > 0
        safe = torch.where(known, self._weight, 1.0)
        points = self._points / safe[..., None]
        confidence = torch.where(known, self._square / safe, 0.0)
        relative = torch.where(known, self._relative(points, safe), 1.0)
        seen = known if mask is None or not bool((known & mask).any()) else known & mask
        camera = fit_camera(torch.where(seen[..., None], points, torch.nan), fit_center=self._fit_center)
        return CanonicalView(points, relative, confidence, *camera, self.grid, mask)

    def _relative(self, points: Tensor, weight: Tensor) -> Tensor:
        mean = self._ratio / weight
        if self._mode == "avg-reldepth":
            return mean
        depth = self.grid.spread(self.grid.at_centers(points[..., 2])).clamp(min=_EPS)
        return 1 + self._distance / self._count.clamp(min=1) * torch.tan(mean) / depth


def canonical_views(
    observations: Iterable[ViewObservation],
    sizes: Sequence[MapSize],
    *,
    subsample: int = 8,
    mode: RelativeDepth = "avg-angle",
    fit_center: bool = False,
    masks: Sequence[np.ndarray | None] | None = None,
    device: torch.device | str = "cpu",
) -> list[CanonicalView | None]:
    """Merge what all pairs say about each image, reading the observations once.

    Args:
        observations: In any order; each is dropped once read.
        sizes: (W, H) of each image in model pixels.
        subsample: Side of the blocks in pixels.
        mode: How ratios of depth are averaged.
        fit_center: See `CanonicalBuilder`.
        masks: (H, W) bool per image, or None for all pixels.
        device: Where to compute.

    Returns:
        One view per image, None where no pair has a usable point.

    Raises:
        ValueError: If an observation names an unknown image or has another size.
    """
    options: dict[str, Any] = {"subsample": subsample, "mode": mode, "fit_center": fit_center, "device": device}
    builders = [CanonicalBuilder(size, **options) for size in sizes]
    for observation in observations:
        if observation.image >= len(sizes):
            raise ValueError(f"An observation names image {observation.image}, but there are {len(sizes)}.")
        builders[observation.image].add(torch.from_numpy(observation.points), torch.from_numpy(observation.confidence))
    views: list[CanonicalView | None] = []
    for image in range(len(builders)):
        mask = None if masks is None or masks[image] is None else torch.as_tensor(masks[image], device=device)
        views.append(None if builders[image].empty else builders[image].build(mask))
    return views


def with_known_depth(view: CanonicalView, depth: Tensor) -> tuple[CanonicalView, Tensor]:
    """The view with depths that the user knows; the network's shape, brought to their scale, fills the gaps.

    Args:
        view: The merged view.
        depth: (H, W) z depth; not finite or not positive where unknown.

    Returns:
        A view whose points have these depths along their own rays, and (blocks,) bool: the anchors whose block
        holds a known depth. The view is unchanged if none is known.

    Raises:
        ValueError: If the size is not that of the image.
    """
    if depth.shape != view.confidence.shape:
        raise ValueError(
            f"Known depth must have the image's size {tuple(view.confidence.shape)}, got {tuple(depth.shape)}."
        )
    grid, predicted = view.grid, view.points[..., 2]
    known = depth.isfinite() & (depth > 0)
    common = known & (view.confidence > 0) & (predicted > 0)
    if not bool(common.any()):
        return view, torch.zeros(len(grid), dtype=torch.bool, device=depth.device)
    ratio, counts = _block_means(torch.where(common, depth / _nonzero(predicted), 0.0), common, grid)
    overall = (depth[common] / predicted[common]).median()
    scale = grid.spread(torch.where(counts > 0, ratio, overall))
    merged = torch.where(known, depth.nan_to_num(), scale * predicted)
    points = view.points * (merged / _nonzero(predicted))[..., None]
    points[..., 2] = merged
    center = grid.spread(grid.at_centers(merged))
    usable = (merged > 0) & (center > 0)
    relative = torch.where(usable, merged / _nonzero(center), 1.0)
    sure = view.confidence[view.confidence > 0].median()
    confidence = torch.where(known & (view.confidence <= 0), sure, view.confidence)
    return replace(view, points=points, relative=relative, confidence=confidence), counts.flatten() > 0


def _block_means(values: Tensor, known: Tensor, grid: BlockGrid) -> tuple[Tensor, Tensor]:
    """(rows, columns) mean of a map (H, W), 0 where unknown, over the known pixels of each block; their number."""
    rows, columns = torch.arange(grid.height) // grid.subsample, torch.arange(grid.width) // grid.subsample
    block = (rows[:, None] * grid.columns + columns).flatten().to(values.device)
    sums = values.new_zeros(len(grid)).index_add_(0, block, values.flatten())
    counts = values.new_zeros(len(grid)).index_add_(0, block, known.flatten().to(values))
    shape = (grid.rows, grid.columns)
    return (sums / counts.clamp(min=1)).reshape(shape), counts.reshape(shape)


def _usable_weight(points: Tensor, confidence: Tensor) -> Tensor:
    usable = points.isfinite().all(dim=-1) & confidence.isfinite()
    weight = (confidence.nan_to_num(0.0, 0.0, 0.0) - _CONFIDENCE_FLOOR).clamp(min=0)
    return weight * usable


def fit_camera(points: Tensor, *, fit_center: bool) -> tuple[float, tuple[float, float]]:
    """Focal and principal point that project a pointmap best onto its own pixels.

    Args:
        points: (H, W, 3) in the camera; NaN where unknown.
        fit_center: See `CanonicalBuilder`.

    Returns:
        Focal and principal point (x, y) in pixels.
    """
    height, width = points.shape[:2]
    center = points.new_tensor([width - 1.0, height - 1.0] if fit_center else [width, height]) / 2
    focal = _focal(points, center)
    if fit_center:
        free_focal, free_center = _fit_focal_and_center(points)
        # Predicted points scatter by pixels: only a clearly better fit is worth leaving the middle.
        if _median_error(points, free_focal, free_center) < 0.5 * _median_error(points, focal, center):
            focal, center = free_focal, free_center
    x, y = center.tolist()
    return float(focal), (x, y)


def _focal(points: Tensor, center: Tensor) -> Tensor:
    focal = estimate_focal_knowing_depth(
        points[None], center, focal_mode="weiszfeld", min_focal=MIN_FOCAL, max_focal=MAX_FOCAL
    )[0]
    # Points without any usable ray leave the focal open: assume a common field of view.
    return focal if bool(focal.isfinite()) else focal.new_tensor(max(points.shape[:2]) * 3**0.5 / 2)


def _fit_focal_and_center(points: Tensor) -> tuple[Tensor, Tensor]:
    """Focal () and principal point (2,) of least summed reprojection distance (iteratively reweighted)."""
    rays, pixels = _rays_and_pixels(points)
    weight = torch.ones_like(rays[:, :1])
    for _ in range(_FIT_ROUNDS):
        share = weight / weight.sum()
        middle_ray, middle_pixel = (share * rays).sum(dim=0), (share * pixels).sum(dim=0)
        ray, pixel = rays - middle_ray, pixels - middle_pixel
        focal = (share * ray * pixel).sum() / (share * ray * ray).sum()
        center = middle_pixel - focal * middle_ray
        weight = 1 / (pixels - focal * rays - center).norm(dim=1, keepdim=True).clamp(min=_MIN_ERROR)
    return focal, center


def _median_error(points: Tensor, focal: Tensor, center: Tensor) -> float:
    """Median reprojection error of a pointmap in pixels; at most infinity."""
    rays, pixels = _rays_and_pixels(points)
    error = (pixels - focal * rays - center).norm(dim=1)
    return float(error.median()) if len(error) and bool(focal.isfinite() & (focal > 0)) else float("inf")


def _rays_and_pixels(points: Tensor) -> tuple[Tensor, Tensor]:
    """(M, 2) x / z, y / z and (M, 2) pixels of the points in front of the camera."""
    height, width = points.shape[:2]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([x, y], dim=-1).to(points)
    front = points[..., 2] > 0
    return (points[..., :2] / points[..., 2:])[front], pixels[front]


def _nearest_pixels(xy: Tensor, grid: BlockGrid) -> Tensor:
    limit = torch.tensor([grid.width - 1, grid.height - 1], device=xy.device)
    return xy.round().long().clamp(min=torch.zeros_like(limit), max=limit)


def _slope_ratio(depth: Tensor, x: Tensor, y: Tensor, fraction: Tensor) -> Tensor:
    """Depth between pixel centres over that of the nearest pixel; 1 across edges."""
    height, width = depth.shape
    here = depth[y, x]
    step_x, step_y = fraction.sign().long().unbind(dim=1)
    next_x, next_y = (x + step_x).clamp(0, width - 1), (y + step_y).clamp(0, height - 1)
    share = fraction.abs()
    change = torch.zeros_like(here)
    for neighbour, part in ((depth[y, next_x], share[:, 0]), (depth[next_y, x], share[:, 1])):
        # Inverse depth is linear in pixels on a plane.
        relative = here / _nonzero(neighbour) - 1
        change = change + torch.where(relative.abs() < _MAX_STEP, relative, 0.0) * part
    return 1 / (1 + change)


def _nonzero(value: Tensor) -> Tensor:
    return torch.where(value.abs() > _EPS, value, _EPS)
