"""What is measured of one pair, and how a pair is judged.

None stands for "no estimate" (a failure, which counts as infinitely wrong) wherever a score exists at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mast3r.evaluation.datasets import DepthTruth, EvaluationPair, stored_from_upright
from multiview.cameras import Camera
from multiview.images import ImageTransform
from multiview.matches import Matches
from multiview.metrics import (
    EPIPOLAR_THRESHOLD,
    depth_error,
    epipolar_distances,
    epipolar_precision,
    homography_corner_error,
    relative_pose_error,
    warp_points,
)
from multiview.results import PairResult
from multiview.robust import estimate_fundamental, estimate_homography, estimate_relative_pose

POINT_RADII_PX = (2, 4, 8, 16)
MAA_THRESHOLDS_PX = tuple(range(1, 21))


@dataclass(frozen=True)
class Thresholds:
    """When a match, a model or a point counts as right.

    Attributes:
        pose_px: largest epipolar error of an inlier of essential and fundamental matrix, stored pixels.
        homography_px: largest transfer error of an inlier of a homography, stored pixels.
        epipolar: squared symmetric epipolar distance below which a match is correct, normalised coordinates.
        transfer_px: distance from the true homography below which a match is correct, stored pixels.
        reach_px: largest distance in image 0 from an annotated point to the match that carries it over.
        seed: seed of every RANSAC.
    """

    pose_px: float = 1.0
    homography_px: float = 3.0
    epipolar: float = EPIPOLAR_THRESHOLD
    transfer_px: float = 3.0
    reach_px: float = 16.0
    seed: int = 0


@dataclass(frozen=True)
class PoseScore:
    """Relative pose from matches with known intrinsics.

    Attributes:
        rotation_deg: angle of the rotation error.
        translation_deg: angle between translation directions, 0..90; None also if the true one is zero.
        max_deg: the larger one; None if no pose was found.
        inliers: matches that agree with the estimated pose.
        precision: share of matches that satisfy the true epipolar geometry.
    """

    rotation_deg: float | None
    translation_deg: float | None
    max_deg: float | None
    inliers: int
    precision: float


@dataclass(frozen=True)
class HomographyScore:
    """Homography from matches.

    Attributes:
        corner_error_px: mean distance of the warped image corners; None if no homography was found.
        inliers: matches that agree with the estimated homography.
        precision: share of matches near the true homography.
    """

    corner_error_px: float | None
    inliers: int
    precision: float


@dataclass(frozen=True)
class PointScore:
    """Annotated points.

    Attributes:
        within_px: share of points carried over to within 2, 4, 8 and 16 px.
        maa: share of points within t px of the epipolar lines of the fundamental matrix of the matches, mean
            over t = 1..20 (WxBS); 0 if none was found, None for planar scenes (with a true homography), which
            do not determine one.
        count: number of points.
    """

    within_px: tuple[float, ...]
    maa: float | None
    count: int


@dataclass(frozen=True)
class DepthScore:
    """Predicted depth of image 0 and pointmaps of both images, where depth was measured.

    Attributes:
        abs_rel: mean |z - z_true| / z_true after scaling to the true median.
        delta1: share of pixels within a factor of 1.25, after scaling.
        metric_abs_rel: the same without scaling; None unless prediction and truth are in metres.
        metric_delta1: the same.
        pointmap: median of |s X - X_true| / |X_true| over both pointmaps in camera 0's frame, s by medians.
    """

    abs_rel: float
    delta1: float
    metric_abs_rel: float | None
    metric_delta1: float | None
    pointmap: float | None


@dataclass(frozen=True)
class PairScore:
    """All that was measured of one pair; None for what the pair or the matcher does not offer.

    Attributes:
        scene: name of the scene.
        image0: name of image 0.
        image1: name of image 1.
        matches: number of matches.
        seconds: time of the matcher.
        pose: relative pose.
        homography: homography.
        points: annotated points.
        depth: depth and pointmaps.
        focal_error: |f / f_true - 1|, mean of the images with known intrinsics.
    """

    scene: str
    image0: str
    image1: str
    matches: int
    seconds: float
    pose: PoseScore | None = None
    homography: HomographyScore | None = None
    points: PointScore | None = None
    depth: DepthScore | None = None
    focal_error: float | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PairScore:
        """Inverse of `dataclasses.asdict`."""
        parts = {"pose": PoseScore, "homography": HomographyScore, "depth": DepthScore}
        made = {key: None if values[key] is None else part(**values[key]) for key, part in parts.items()}
        points = values["points"]
        if points is not None:
            points = PointScore(tuple(points["within_px"]), points["maa"], points["count"])
        return cls(**{**values, **made, "points": points})


def judge_pair(
    scene: str,
    pair: EvaluationPair,
    prediction: Matches | PairResult,
    *,
    seconds: float = 0.0,
    metric: bool = False,
    thresholds: Thresholds | None = None,
) -> PairScore:
    """Measure a prediction against the truth of a pair.

    Args:
        scene: name for the score.
        pair: the truth.
        prediction: matches, or all a model says of the pair.
        seconds: time of the matcher, for the score.
        metric: whether the truth is in metres.
        thresholds: when what counts as right.
    """
    thresholds = thresholds or Thresholds()
    matches = prediction.matches if isinstance(prediction, PairResult) else prediction
    xy0 = _to_stored(matches.xy0, pair.image0, matches.size0)
    xy1 = _to_stored(matches.xy1, pair.image1, matches.size1)
    result = prediction if isinstance(prediction, PairResult) else None
    turn0 = stored_from_upright(pair.image0, matches.size0)
    size0 = matches.size0 if turn0 is None else turn0.size_to
    return PairScore(
        scene,
        pair.name0,
        pair.name1,
        len(matches),
        seconds,
        pose=score_pose(xy0, xy1, pair, thresholds),
        homography=score_homography(xy0, xy1, pair, size0, thresholds),
        points=score_points(xy0, xy1, pair, thresholds),
        depth=None if result is None else score_depth(result, pair, metric=metric),
        focal_error=None if result is None else focal_error(result, pair),
    )


def _to_stored(xy: np.ndarray, path: Path, size: tuple[int, int]) -> np.ndarray:
    """Upright pixels as (N, 2) float64 pixels of the stored file."""
    turn = stored_from_upright(path, size)
    return xy.astype(np.float64) if turn is None else turn.apply(xy)


def score_pose(xy0: np.ndarray, xy1: np.ndarray, pair: EvaluationPair, thresholds: Thresholds) -> PoseScore | None:
    """Relative pose by essential matrix; None if the pair has none to compare with.

    Args:
        xy0: (N, 2) matched stored pixels of image 0.
        xy1: (N, 2) the same of image 1.
        pair: the truth.
        thresholds: inlier bounds and seed.
    """
    if pair.K0 is None or pair.K1 is None or pair.T_0to1 is None:
        return None
    K0, K1, T = pair.K0, pair.K1, pair.T_0to1
    precision = epipolar_precision(xy0, xy1, K0, K1, T, threshold=thresholds.epipolar)
    found = estimate_relative_pose(
        xy0, xy1, K0, K1, threshold_px=thresholds.pose_px, seed=thresholds.seed, accept="any"
    )
    if not found.success:
        return PoseScore(None, None, None, 0, precision)
    error = relative_pose_error(found.R, found.t, T)
    translation = None if np.isnan(error.translation_deg) else error.translation_deg
    return PoseScore(error.rotation_deg, translation, error.max_deg, int(found.inliers.sum()), precision)


def score_homography(
    xy0: np.ndarray, xy1: np.ndarray, pair: EvaluationPair, size0: tuple[int, int], thresholds: Thresholds
) -> HomographyScore | None:
    """Homography by RANSAC; None if the pair has none to compare with (arguments as in `score_pose`)."""
    if pair.H_0to1 is None:
        return None
    distance = np.linalg.norm(warp_points(pair.H_0to1, xy0) - xy1, axis=1)
    precision = float(np.mean(distance < thresholds.transfer_px)) if len(distance) else 0.0
    found = estimate_homography(xy0, xy1, threshold_px=thresholds.homography_px, seed=thresholds.seed, accept="any")
    if not found.success:
        return HomographyScore(None, 0, precision)
    error = homography_corner_error(found.H, pair.H_0to1, size0)
    return HomographyScore(error if np.isfinite(error) else None, int(found.inliers.sum()), precision)


def score_points(xy0: np.ndarray, xy1: np.ndarray, pair: EvaluationPair, thresholds: Thresholds) -> PointScore | None:
    """Annotated points; None if the pair has none (arguments as in `score_pose`).

    A point is carried over by the match nearest to it in image 0: it lands as far from the match in image 1
    as it was in image 0. Without a match within `thresholds.reach_px` it counts as lost.
    """
    if pair.points is None or not len(pair.points):
        return None
    here, there = pair.points[:, :2], pair.points[:, 2:]
    errors = np.linalg.norm(_carry_over(here, xy0, xy1, thresholds.reach_px) - there, axis=1)
    within = tuple(float(np.mean(errors <= radius)) for radius in POINT_RADII_PX)
    if pair.H_0to1 is not None:
        return PointScore(within, None, len(here))
    found = estimate_fundamental(xy0, xy1, threshold_px=thresholds.pose_px, seed=thresholds.seed, accept="any")
    distances = epipolar_distances(found.F, here, there) if found.success else np.full(len(here), np.inf)
    maa = float(np.mean([np.mean(distances <= bound) for bound in MAA_THRESHOLDS_PX]))
    return PointScore(within, maa, len(here))


def _carry_over(points: np.ndarray, xy0: np.ndarray, xy1: np.ndarray, reach: float) -> np.ndarray:
    """(M, 2) places in image 1 of (M, 2) points of image 0; infinite without a match near."""
    if not len(xy0):
        return np.full(points.shape, np.inf)
    squared = np.sum((points[:, None] - xy0[None]) ** 2, axis=2)
    nearest = squared.argmin(axis=1)
    near = squared[np.arange(len(points)), nearest] <= reach**2
    return np.where(near[:, None], xy1[nearest] + points - xy0[nearest], np.inf)


def focal_error(result: PairResult, pair: EvaluationPair) -> float | None:
    """|f / f_true - 1|, mean of the images whose intrinsics are known; None without any or if not finite."""
    errors = [
        abs(np.mean(camera.focal) / np.mean(np.diag(K)[:2]) - 1)
        for camera, K in zip(result.cameras, (pair.K0, pair.K1))
        if K is not None
    ]
    return float(np.mean(errors)) if errors and np.isfinite(errors).all() else None


def score_depth(result: PairResult, pair: EvaluationPair, *, metric: bool) -> DepthScore | None:
    """Depth of image 0 and pointmaps of both images; None if the depth of image 0 was not measured.

    The truth is read at the stored pixel nearest to each model pixel.

    Args:
        result: what the model says of the pair.
        pair: the truth.
        metric: whether it is in metres.
    """
    if pair.depth0 is None:
        return None
    truth = _true_depth(pair.depth0, result.transforms[0], pair.image0)
    if not (truth > 0).any():
        return None
    aligned = depth_error(result.depth(0), truth)
    metres = metric and result.scale_status != "arbitrary"
    absolute = depth_error(result.depth(0), truth, align="none") if metres else None
    return DepthScore(
        aligned.abs_rel,
        aligned.delta1,
        None if absolute is None else absolute.abs_rel,
        None if absolute is None else absolute.delta1,
        _pointmap_error(result, pair),
    )


def _true_depth(depth: DepthTruth, transform: ImageTransform, image: Path) -> np.ndarray:
    """(h, w) measured depth at the pixels of the model, 0 where unknown."""
    values = depth.read()
    width, height = transform.size_to
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)
    stored = _to_stored(transform.inverse().apply(grid), image, transform.size_from)
    x, y = np.rint(stored[..., 0]).astype(int), np.rint(stored[..., 1]).astype(int)
    inside = (x >= 0) & (y >= 0) & (x < values.shape[1]) & (y < values.shape[0])
    clipped = values[np.clip(y, 0, values.shape[0] - 1), np.clip(x, 0, values.shape[1] - 1)]
    return np.where(inside & np.isfinite(clipped), clipped, 0)


def _pointmap_error(result: PairResult, pair: EvaluationPair) -> float | None:
    """Median relative distance of the scaled pointmaps of both images from the truth."""
    if pair.K0 is None or pair.depth0 is None or stored_from_upright(pair.image0, result.images[0].size):
        return None
    predicted, truths = [], []
    known = ((pair.depth0, pair.K0, np.eye(4)), (pair.depth1, pair.K1, pair.T_0to1))
    for i, (depth, K, T_0to1) in enumerate(known):
        if depth is None or K is None or T_0to1 is None:
            continue
        transform = result.transforms[i]
        z = _true_depth(depth, transform, (pair.image0, pair.image1)[i])
        camera = Camera(K, *transform.size_from).transformed(transform)
        grid = np.stack(np.meshgrid(np.arange(z.shape[1]), np.arange(z.shape[0])), axis=-1)
        used = (z > 0) & result.pointmaps[i].valid
        points = camera.unproject(grid[used], z[used])
        truths.append((points - T_0to1[:3, 3]) @ T_0to1[:3, :3])  # camera 0's frame: R^T (x - t)
        predicted.append(result.pointmaps[i].points[used])
    truth, points = np.concatenate(truths), np.concatenate(predicted).astype(np.float64)
    if not len(truth):
        return None
    distance = np.linalg.norm(truth, axis=1)
    scale = np.median(distance) / max(float(np.median(np.linalg.norm(points, axis=1))), 1e-9)
    return float(np.median(np.linalg.norm(scale * points - truth, axis=1) / np.maximum(distance, 1e-9)))
