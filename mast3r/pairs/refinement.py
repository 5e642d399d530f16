"""Cameras and pointmaps of a pair, made right by its matches.

Matches of a MASt3R network are good long before its pointmaps are, and better ones stay ahead of them. So the
matches place the cameras (`multiview.self_calibration`), and the points they show bend the network's depth
(`multiview.depth_correction`); the rays come from the cameras. The unit of length stays the network's: the
baseline is as long as makes triangulated depths agree with predicted ones on the median.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mast3r.pairs.focal_priors import FocalPrior
from mast3r.pairs.geometry import PairPose, SeenMap, baseline_length
from multiview.cameras import Camera
from multiview.depth_correction import DepthMap, DepthSamples, FieldConfig, correct_depths
from multiview.epipolar import NUM_PARAMETERS, EpipolarGeometry
from multiview.matches import Matches
from multiview.pointmaps import Pointmap
from multiview.poses import Pose
from multiview.robust import estimate_homography
from multiview.self_calibration import Calibration, calibrate

_NOISE = 1.0  # usual epipolar distance of a match, in model pixels
_DEPTH_NOISE = 0.7  # usual distance of a match along the epipolar line
_MIN_SUPPORT = 0.25  # share of matches that must agree with a pose that is to change depths
_MIN_SAMPLES = 30
_MAX_DEVIATION = 0.5  # of log depth of a sample
_MAX_PLANAR = 0.9  # share of the agreeing matches that one homography may explain
_DERIVATIVE = 1e-5


@dataclass(frozen=True, eq=False)
class ViewEvidence:
    """What is known of one image of a pair, matches aside.

    Attributes:
        own: Its pointmap in its own camera's frame.
        prior: Its camera, as far as it is known.
        colors: (H, W, 3) uint8 image at model resolution.
    """

    own: SeenMap
    prior: FocalPrior
    colors: np.ndarray


@dataclass(frozen=True, eq=False)
class RefinedPair:
    """Cameras of a pair and pointmaps that obey them; confidences are the network's.

    Attributes:
        cameras: Intrinsics in ORIGINAL pixels; given ones are as given.
        pose: Pose of camera 1 in the unit of the pointmaps.
        maps: Of images 0 and 1, both in camera 0's frame.
        own1: Of image 1 in camera 1's frame.
    """

    cameras: tuple[Camera, Camera]
    pose: PairPose
    maps: tuple[Pointmap, Pointmap]
    own1: Pointmap


def refine_pair(
    matches: Matches,
    views: tuple[ViewEvidence, ViewEvidence],
    *,
    threshold_px: float = 1.5,
    seed: int = 0,
    config: FieldConfig | None = None,
) -> RefinedPair | None:
    """Cameras from the matches, and pointmaps on the rays of these cameras whose matched points coincide.

    Args:
        matches: Matches in original pixels.
        views: What is known of both images.
        threshold_px: Largest epipolar distance of an inlier, in model pixels.
        seed: Seed of the sampling.
        config: How the depth is bent.

    Returns:
        The refined pair; pixels without a depth keep the point of their own camera's frame. None, and nothing is to
        be changed, if the matches allow no pose, too few agree with it or have parallax, or they lie on a plane.
    """
    own = views[0].own, views[1].own
    pixel = (own[0].pixel * own[1].pixel) ** 0.5
    calibration = calibrate(
        matches.xy0,
        matches.xy1,
        (views[0].prior.camera, views[1].prior.camera),
        (views[0].prior.deviation, views[1].prior.deviation),
        noise_px=_NOISE * pixel,
        threshold_px=threshold_px * pixel,
        seed=seed,
    )
    agreeing = matches.filter(calibration.distances < threshold_px * pixel)
    if calibration.support < _MIN_SUPPORT or _is_planar(agreeing, threshold_px * pixel):
        return None
    geometry = calibration.geometry
    baseline = baseline_length(agreeing, calibration.cameras, own, geometry.R, geometry.t)
    if baseline is None:
        return None
    depths = _bent_depths(agreeing, calibration, views, baseline, config)
    if depths is None:
        return None
    pose = Pose.from_cam_from_world(geometry.R, baseline * geometry.t)
    own0, own1 = (_on_rays(*parts) for parts in zip(own, calibration.cameras, depths))
    maps = own0, own1.moved(pose, own0.frame)
    return RefinedPair(calibration.cameras, PairPose(pose, len(agreeing)), maps, own1)


def _bent_depths(
    agreeing: Matches,
    calibration: Calibration,
    views: tuple[ViewEvidence, ViewEvidence],
    baseline: float,
    config: FieldConfig | None,
) -> tuple[np.ndarray, ...] | None:
    """Depth maps of both images that agree with the triangulated matches; None if these are too few."""
    samples = _samples(agreeing, calibration, (views[0].own, views[1].own), baseline)
    maps = [_depth_map(view) for view in views]
    if samples is None or not all(_covers(*pair) for pair in zip(samples, maps)):
        return None
    return correct_depths(maps, samples, calibration.covariance, config).depths


def _is_planar(matches: Matches, threshold_px: float) -> bool:
    """Whether one homography explains the matches: then depths hang on focal lengths that nothing tells."""
    plane = estimate_homography(matches.xy0, matches.xy1, threshold_px=threshold_px, max_iterations=500)
    return plane.success and float(plane.inliers.mean()) > _MAX_PLANAR


def _samples(
    matches: Matches, calibration: Calibration, own: tuple[SeenMap, SeenMap], baseline: float
) -> tuple[DepthSamples, DepthSamples] | None:
    """Triangulated depths in both images, with their errors; None if they are too few."""
    geometry, rays = calibration.geometry, calibration.rays(matches.xy0, matches.xy1)
    depth0, depth1, angle = geometry.depths(*rays)
    noise = 2**0.5 * _DEPTH_NOISE / float(np.sqrt(np.prod(geometry.focals)))
    deviation = noise / np.tan(np.minimum(angle, np.pi / 4)).clip(1e-9)
    used = (depth0 > 0) & (depth1 > 0) & (deviation < _MAX_DEVIATION)
    if used.sum() < _MIN_SAMPLES:
        return None
    matches, deviation, rays = matches.filter(used), deviation[used], (rays[0][used], rays[1][used])
    modes = _modes(geometry, *rays)
    samples0, samples1 = (
        DepthSamples(seen.transform.apply(xy), np.log(baseline * depth[used]), deviation, mode)
        for seen, xy, depth, mode in zip(own, (matches.xy0, matches.xy1), (depth0, depth1), modes)
    )
    return samples0, samples1


def _modes(geometry: EpipolarGeometry, rays0: np.ndarray, rays1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, 7) derivatives of the log depths of both images by the step of the geometry; NaN where there is none."""
    columns = []
    for step in _DERIVATIVE * np.eye(NUM_PARAMETERS):
        ends = [geometry.moved(sign * step).depths(rays0, rays1)[:2] for sign in (1, -1)]
        positive = (np.min(ends, axis=0) > 0).all(axis=0)
        logs = np.log(np.where(positive, ends, np.nan))
        columns.append((logs[0] - logs[1]) / (2 * _DERIVATIVE))
    by_image = np.stack(columns, axis=-1)
    return by_image[0], by_image[1]


def _depth_map(view: ViewEvidence) -> DepthMap:
    """Depth of a pointmap, NaN where the network gave no confidence."""
    pointmap = view.own.pointmap
    known = pointmap.valid & np.isfinite(pointmap.confidence)
    return DepthMap(np.where(known, pointmap.points[..., 2], np.nan), view.colors)


def _covers(samples: DepthSamples, depth_map: DepthMap) -> bool:
    """Whether enough samples lie on pixels with depth."""
    height, width = depth_map.depth.shape
    column, row = np.rint(samples.xy).astype(int).clip(0, (width - 1, height - 1)).T
    usable = (depth_map.depth[row, column] > 0) & np.isfinite(samples.modes).all(axis=1)
    return int(usable.sum()) >= _MIN_SAMPLES


def _on_rays(seen: SeenMap, camera: Camera, depth: np.ndarray) -> Pointmap:
    """Points at this depth on the rays of a camera; where it is NaN the old ones."""
    height, width = depth.shape
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)
    points = camera.unproject(seen.transform.inverse().apply(pixels), depth)
    points = np.where(np.isfinite(depth)[..., None], points, seen.pointmap.points)
    return Pointmap(points.astype(np.float32), seen.pointmap.confidence, seen.pointmap.frame)
