"""Sparse global alignment: cameras and depth of many images that agree with what is said about their pairs.

    alignment = align_sparse(views, pairs, sizes)
    alignment.world_from_cam, alignment.K, alignment.dense(0)

Duisterhof et al., "MASt3R-SfM: a Fully-Integrated Solution for Unconstrained Structure-from-Motion" (2024).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mast3r.cloud_opt.canonical import CanonicalView, canonical_views, with_known_depth
from mast3r.cloud_opt.component import (
    ComponentInput,
    ComponentResult,
    OnStage,
    default_intrinsics,
    solve_component,
)
from mast3r.cloud_opt.config import SparseConfig
from mast3r.cloud_opt.dense import DenseView, densify
from mast3r.cloud_opt.focal_search import search_focals
from mast3r.cloud_opt.kinematics import components_of, score_matrix
from mast3r.cloud_opt.observations import MapSize, PairObservation, ViewObservation, check_pairs
from mast3r.cloud_opt.problem import AnchoredPair, Fallback, PixelAnchors, anchored_pairs
from mast3r.cloud_opt.verification import PairVerdict, judge_pairs
from multiview.views import ViewConstraints, prior

Status = Literal["registered", "failed"]


@dataclass(frozen=True, eq=False)
class MatchPoints:
    """Matches of a pair that took part, as points of the world.

    Attributes:
        xy_i: (M, 2) float32 model pixels of image i.
        xy_j: (M, 2) float32 model pixels of image j.
        points: (M, 3) float64 in the world, midway between what both images say.
        error: (M,) float64 larger reprojection error of the two images' points in the other image, in pixels;
            infinite behind a camera.
    """

    xy_i: np.ndarray
    xy_j: np.ndarray
    points: np.ndarray
    error: np.ndarray


@dataclass(frozen=True, eq=False)
class SparseAlignment:
    """N aligned images.

    Attributes:
        world_from_cam: (N, 4, 4) float64; NaN for images that failed.
        K: (N, 3, 3) float64 in model pixels; NaN for images that failed.
        component: (N,) int64; images of one component share a frame and a unit. -1 for images that failed.
            Images of given poses are all in one component, whose frame is the given one.
        status: "registered" or "failed" for each image.
        reason: Why an image failed, one sentence; "" if it did not.
        pairs: The matches that took part, per given pair; None where the pair was left out.
        losses: Objective at the end of each stage, of the largest component.
        views: Merged pointmap of each image; None where no pair has a usable point.
        core_depth: (blocks,) float64 depth of the anchors of each registered image, world units.
        slope: (N,) factor on how much pixels differ from their anchor.
    """

    world_from_cam: np.ndarray
    K: np.ndarray
    component: np.ndarray
    status: tuple[Status, ...]
    reason: tuple[str, ...]
    pairs: tuple[AnchoredPair | None, ...]
    losses: Mapping[str, float] = field(default_factory=dict)
    views: tuple[CanonicalView | None, ...] = ()
    core_depth: tuple[np.ndarray | None, ...] = ()
    slope: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def registered(self) -> list[int]:
        """The images that have a camera."""
        return [i for i, status in enumerate(self.status) if status == "registered"]

    @property
    def pairs_used(self) -> tuple[bool, ...]:
        """Whether each given pair took part."""
        return tuple(pair is not None for pair in self.pairs)

    def dense(self, image: int, *, clean: bool = True) -> DenseView | None:
        """Points of all pixels of an image; None if it failed or nothing is known of its depth."""
        return (self._cleaned if clean else self._raw)[image]

    def dense_all(self, *, clean: bool = True) -> list[DenseView | None]:
        """`dense` of every image.

        Args:
            clean: Whether confidence falls to zero where a point floats in front of a surer one of another
                image of its component.
        """
        return list(self._cleaned if clean else self._raw)

    @cached_property
    def _raw(self) -> list[DenseView | None]:
        return self._densified(clean=False)

    @cached_property
    def _cleaned(self) -> list[DenseView | None]:
        return self._densified(clean=True)

    def _densified(self, *, clean: bool) -> list[DenseView | None]:
        result: list[DenseView | None] = [None] * len(self.status)
        for component in np.unique(self.component[self.component >= 0]):
            members = [int(i) for i in np.flatnonzero(self.component == component) if self._has_depth(int(i))]
            views = [view for i in members if (view := self.views[i]) is not None]
            depth = [core for i in members if (core := self.core_depth[i]) is not None]
            dense = densify(
                views, depth, self.slope[members], self.K[members], self.world_from_cam[members], clean=clean
            )
            for image, view in zip(members, dense):
                result[image] = view
        return result

    def _has_depth(self, image: int) -> bool:
        return self.views[image] is not None and self.core_depth[image] is not None

    def match_points(self, pair: int) -> MatchPoints | None:
        """The matches of a given pair that took part; None if the pair was left out.

        Args:
            pair: Position in the pairs given to `align_sparse`.
        """
        used = self.pairs[pair]
        if used is None:
            return None
        points_i, points_j = self._points(used.i, used.first), self._points(used.j, used.second)
        xy_i, xy_j = used.first.xy.double().cpu().numpy(), used.second.xy.double().cpu().numpy()
        error_j = np.linalg.norm(self._project(used.j, points_i) - xy_j, axis=1)
        error_i = np.linalg.norm(self._project(used.i, points_j) - xy_i, axis=1)
        middle = (points_i + points_j) / 2
        return MatchPoints(xy_i.astype(np.float32), xy_j.astype(np.float32), middle, np.fmax(error_i, error_j))

    def sparse_points(self, image: int) -> tuple[np.ndarray, np.ndarray]:
        """The matched pixels of an image, each once, and their points.

        Returns:
            (M, 2) float32 model pixels and (M, 3) float64 world points; none if the image failed.
        """
        xy, points = [np.zeros((0, 2), np.float32)], [np.zeros((0, 3))]
        for pair in self.pairs:
            for side in _sides_of(pair, image):
                xy.append(side.xy.float().cpu().numpy())
                points.append(self._points(image, side))
        pixels, first = np.unique(np.concatenate(xy), axis=0, return_index=True)
        return pixels, np.concatenate(points)[first]

    def _points(self, image: int, pixels: PixelAnchors) -> np.ndarray:
        """(M, 3) world points of anchored pixels."""
        core = self.core_depth[image]
        if core is None:
            raise ValueError(f"Image {image} is not registered ({self.reason[image]}), so its pixels have no points.")
        anchor, offset = pixels.anchor.cpu().numpy(), pixels.offset.double().cpu().numpy()
        depth = core[anchor] * (1 + (offset - 1) * self.slope[image])
        xy = pixels.xy.double().cpu().numpy()
        rays = np.concatenate([xy, np.ones_like(xy[:, :1])], axis=1) @ np.linalg.inv(self.K[image]).T
        pose = self.world_from_cam[image]
        return (rays * depth[:, None]) @ pose[:3, :3].T + pose[:3, 3]

    def _project(self, image: int, points: np.ndarray) -> np.ndarray:
        """(M, 2) pixels of world points; infinite behind the camera."""
        pose = self.world_from_cam[image]
        local = (points - pose[:3, 3]) @ pose[:3, :3] @ self.K[image].T
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(local[:, 2:] > 0, local[:, :2] / local[:, 2:], np.inf)


def align_sparse(
    views: Iterable[ViewObservation],
    pairs: Sequence[PairObservation],
    sizes: Sequence[MapSize],
    *,
    constraints: Sequence[ViewConstraints | None] | None = None,
    config: SparseConfig | None = None,
    on_step: OnStage | None = None,
    device: torch.device | str = "cpu",
) -> SparseAlignment:
    """Align images.

    Args:
        views: What each pair says about each of its images; read once, in any order.
        pairs: Matches of each unordered pair, in model pixels.
        sizes: (W, H) of each of the N images in model pixels.
        constraints: What the user knows of each image, in model pixels; None where nothing.
        config: Settings; default `SparseConfig()`.
        on_step: Told the share of the optimisation that is done and the stage, for progress bars.
        device: Where to compute.

    Returns:
        Cameras and depth of every image that a usable pair links to another.

    Raises:
        ValueError: If sizes, pairs, observations or constraints do not fit together.
    """
    config = config or SparseConfig()
    known = _checked_constraints(constraints, len(sizes))
    check_pairs(pairs, sizes)
    poor = _PoorPairs(pairs, config)
    masks = [constraint.mask for constraint in known]
    merged = canonical_views(
        poor.watch(views),
        sizes,
        subsample=config.subsample,
        mode=config.relative_depth,
        fit_center=config.fit_center,
        masks=masks,
        device=device,
    )
    run = _AlignmentRun(list(merged), known, list(pairs), list(sizes), config, poor)
    return run.solve(on_step)


class _PoorPairs:
    """Pairs whose matches are not trusted, and what their networks say instead."""

    def __init__(self, pairs: Sequence[PairObservation], config: SparseConfig) -> None:
        threshold = config.matching_conf_thr
        poor = [pair for pair in pairs if len(pair) and not pair.confidence.max() > threshold]
        self.edges = {edge for pair in poor for edge in ((pair.i, pair.j), (pair.j, pair.i))}
        self._subsample = config.subsample
        self._points: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def watch(self, views: Iterable[ViewObservation]) -> Iterator[ViewObservation]:
        """Pass observations on, keeping the points that will be needed."""
        for view in views:
            edge = (view.partner, view.image)
            if edge in self.edges and view.partner_points is not None and view.partner_confidence is not None:
                self._points[edge] = (torch.from_numpy(view.partner_points), torch.from_numpy(view.partner_confidence))
            yield view

    def fallbacks(self, views: Sequence[CanonicalView | None]) -> list[Fallback]:
        """For both directions of each poor pair the anchors of one image as the other sees them."""
        result = []
        for (i, j), (points, confidence) in sorted(self._points.items(), key=lambda item: item[0]):
            view = views[i]
            if view is None or confidence.shape != view.confidence.shape:
                continue
            y, x = (side.flatten() for side in torch.meshgrid(*view.grid.centers(), indexing="ij"))
            anchor = torch.arange(len(view.grid))
            weight = torch.where(points[y, x].isfinite().all(dim=-1), confidence[y, x], 0.0).nan_to_num()
            keep = (weight > 0) & view.valid[y, x].cpu()
            xy = torch.stack([x, y], dim=1)[keep].to(view.points)
            pixels = PixelAnchors(xy, anchor[keep].to(xy.device), torch.ones_like(xy[:, 0]))
            result.append(Fallback(i, j, pixels, points[y, x][keep].to(xy), weight[keep].to(xy)))
        return result


class _AlignmentRun:
    """One call of `align_sparse`, step by step."""

    def __init__(
        self,
        views: list[CanonicalView | None],
        constraints: list[ViewConstraints],
        pairs: list[PairObservation],
        sizes: list[MapSize],
        config: SparseConfig,
        poor: _PoorPairs,
    ) -> None:
        self.constraints, self.pairs, self.sizes, self.config = constraints, pairs, sizes, config
        self.views, self.known_blocks = _apply_known_depth(views, constraints)
        self.fallbacks = [
            # Where the user gives depth, the network's points have another unit.
            fallback
            for fallback in poor.fallbacks(self.views)
            if not bool(self.known_blocks[fallback.j].any())
        ]
        self.K, self.searched = self._approximate_intrinsics()
        self.verdicts = self._judge(poor)
        self.used = self._anchored()
        links = [(pair.i, pair.j) for pair in self.used if pair is not None]
        self.labels = components_of(len(sizes), links + [(f.i, f.j) for f in self.fallbacks])

    def solve(self, on_step: OnStage | None) -> SparseAlignment:
        """Solve every component and put the results together."""
        results: dict[int, ComponentResult] = {}
        members = [np.flatnonzero(self.labels == label).tolist() for label in np.unique(self.labels)]
        connected = [images for images in members if len(images) > 1]
        for number, images in enumerate(connected):
            report = _share(on_step, number, len(connected))
            results[images[0]] = solve_component(self._component(images), self.config, report)
        return self._assemble(connected, results)

    # --- which pairs and matches take part ---

    def _judge(self, poor: _PoorPairs) -> list[PairVerdict]:
        verdicts = judge_pairs(
            self.pairs, self.sizes, self.K, min_matches=self.config.min_matches, check=self.config.check
        )
        return [
            replace(verdict, usable=False, reason="no confident match") if (pair.i, pair.j) in poor.edges else verdict
            for pair, verdict in zip(self.pairs, verdicts)
        ]

    def _approximate_intrinsics(self) -> tuple[np.ndarray, np.ndarray]:
        """(N, 3, 3) known intrinsics, else what pointmaps and matches say; and (N,) bool, where matches said it."""
        K = np.stack([self._intrinsics_of(i) for i in range(len(self.sizes))])
        if not self.config.search_focals:
            return K, np.zeros(len(K), dtype=bool)
        return search_focals(self.pairs, self.sizes, K, [constraint.K is not None for constraint in self.constraints])

    def _constraints_of(self, image: int) -> ViewConstraints:
        """What is known of an image; the focal that all matches agree on is not left to a few."""
        known, weight = self.constraints[image], self.config.focal_weight
        return replace(known, K=prior(self.K[image], weight)) if self.searched[image] and weight > 0 else known

    def _intrinsics_of(self, image: int) -> np.ndarray:
        known, view = self.constraints[image].K, self.views[image]
        if known is not None:
            return known.value
        if view is not None:
            return default_intrinsics(view)
        width, height = self.sizes[image]
        focal = max(width, height)
        return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])

    def _anchored(self) -> list[AnchoredPair | None]:
        """The pairs that take part, with matches on pixels without depth left out."""
        result: list[AnchoredPair | None] = []
        drop = self.config.check is not None and self.config.check.drop_outliers
        views = {i: view for i, view in enumerate(self.views) if view is not None}
        for pair, verdict in zip(self.pairs, self.verdicts):
            anchored = None
            if verdict.usable and pair.i in views and pair.j in views:
                kept = pair.kept(verdict.inliers & (pair.confidence > 0)) if drop else pair
                anchored = anchored_pairs(views, [kept])[0]
            enough = anchored is not None and len(anchored.weight) >= self.config.min_matches
            result.append(anchored if enough else None)
        return result

    # --- components ---

    def _component(self, images: list[int]) -> ComponentInput:
        position = {image: place for place, image in enumerate(images)}
        used = [(pair, given) for pair, given in zip(self.used, self.pairs) if pair is not None]
        scores = score_matrix(
            len(images),
            [
                (position[pair.i], position[pair.j], len(pair.weight) if given.score is None else given.score)
                for pair, given in used
                if pair.i in position
            ],
        )
        return ComponentInput(
            [view for i in images if (view := self.views[i]) is not None],
            [self.known_blocks[i] for i in images],
            [self._constraints_of(i) for i in images],
            [replace(pair, i=position[pair.i], j=position[pair.j]) for pair, _ in used if pair.i in position],
            [replace(f, i=position[f.i], j=position[f.j]) for f in self.fallbacks if f.i in position],
            scores,
            self.K[images],
        )

    # --- results ---

    def _assemble(self, connected: list[list[int]], results: dict[int, ComponentResult]) -> SparseAlignment:
        count = len(self.sizes)
        pose, K = np.full((count, 4, 4), np.nan), np.full((count, 3, 3), np.nan)
        slope = np.ones(count)
        depth: list[np.ndarray | None] = [None] * count
        placed = np.zeros(count, dtype=bool)
        for images in connected:
            result = results[images[0]]
            pose[images], K[images], slope[images], placed[images] = result.world_from_cam, result.K, result.slope, True
            for image, core in zip(images, result.core_depth):
                depth[image] = core
        self._place_known(pose, K, placed)
        largest = max(connected, key=len, default=[])
        return SparseAlignment(
            pose,
            K,
            self._components(placed),
            tuple("registered" if good else "failed" for good in placed),
            tuple("" if good else self._reason(image) for image, good in enumerate(placed)),
            tuple(self.used),
            results[largest[0]].losses if largest else {},
            tuple(self.views),
            tuple(depth),
            slope,
        )

    def _place_known(self, pose: np.ndarray, K: np.ndarray, placed: np.ndarray) -> None:
        """Images that no pair links, but whose pose is fixed, have a camera all the same."""
        for image, known in enumerate(self.constraints):
            if not placed[image] and known.pose is not None and known.pose.role == "fixed":
                pose[image], K[image], placed[image] = known.pose.value, self.K[image], True

    def _components(self, placed: np.ndarray) -> np.ndarray:
        """Labels by frame: all images that share the given world are one component."""
        labels = self.labels.copy()
        given = [i for i, known in enumerate(self.constraints) if placed[i] and known.pose is not None]
        labels[np.isin(labels, labels[given])] = -2
        result = np.full(len(labels), -1, dtype=np.int64)
        for number, label in enumerate(dict.fromkeys(labels[placed].tolist())):
            result[placed & (labels == label)] = number
        return result

    def _reason(self, image: int) -> str:
        if self.views[image] is None:
            return "No pair predicts a usable point for this image."
        own = [(p, v) for p, v in zip(self.pairs, self.verdicts) if image in (p.i, p.j)]
        if not own:
            return "The image is in no pair."
        best, verdict = max(own, key=lambda item: int(item[1].inliers.sum()))
        other = best.j if best.i == image else best.i
        why = verdict.reason or "its matches lie on pixels without depth or outside the mask"
        return f"None of its {len(own)} pairs is usable; the best, with image {other}: {why}."


def _checked_constraints(constraints: Sequence[ViewConstraints | None] | None, count: int) -> list[ViewConstraints]:
    if constraints is None:
        return [ViewConstraints()] * count
    if len(constraints) != count:
        raise ValueError(f"constraints needs one entry (or None) per image, got {len(constraints)} for {count} images.")
    return [constraint or ViewConstraints() for constraint in constraints]


def _apply_known_depth(
    views: Sequence[CanonicalView | None], constraints: Sequence[ViewConstraints]
) -> tuple[list[CanonicalView | None], list[Tensor]]:
    """Views with known depth put in, and per image the (blocks,) mask of anchors that have it."""
    result, blocks = list(views), []
    for image, (view, constraint) in enumerate(zip(views, constraints)):
        known = torch.zeros(0 if view is None else len(view.grid), dtype=torch.bool)
        if view is not None and constraint.depth is not None:
            depth = torch.as_tensor(constraint.depth.value, device=view.points.device)
            result[image], known = with_known_depth(view, depth)
        blocks.append(known.cpu())
    return result, blocks


def _sides_of(pair: AnchoredPair | None, image: int) -> list[PixelAnchors]:
    if pair is None or image not in (pair.i, pair.j):
        return []
    return [pair.first if pair.i == image else pair.second]


def _share(on_step: OnStage | None, number: int, count: int) -> OnStage | None:
    return None if on_step is None else lambda done, stage: on_step((number + done) / count, stage)
