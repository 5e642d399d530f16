"""Cameras of a pair from its pointmaps and matches."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch

from dust3r.post_process import estimate_focal_knowing_depth
from multiview.cameras import Camera
from multiview.images import ImageTransform
from multiview.matches import Matches
from multiview.metrics import EPIPOLAR_THRESHOLD, epipolar_errors
from multiview.pointmaps import Pointmap
from multiview.poses import Pose
from multiview.robust import estimate_absolute_pose, estimate_relative_pose

logger = logging.getLogger(__name__)

FOCAL_RANGE = (0.2, 10.0)
"""Estimated focal lengths stay in this range, in units of the focal that sees the longer side
under 60 degrees."""

_UNSURE_PERCENTILE = 30.0  # share of the least confident points that the estimators do not look at
_MIN_PARALLAX_DEG = 1.0  # depth from rays that meet at a smaller angle is noise
_MIN_RATIOS = 8
_PNP_POINTS = 3000
_PNP_PX = 5.0  # pointmaps are less exact than matches; in model pixels


@dataclass(frozen=True, eq=False)
class SeenMap:
    """A pointmap, and how its pixels lie in the original image.

    Attributes:
        pointmap: Points at model resolution.
        transform: Map from original to model pixels.
    """

    pointmap: Pointmap
    transform: ImageTransform

    @property
    def pixel(self) -> float:
        """Side of a model pixel in original pixels."""
        return model_pixel(self.transform)

    def sample(self, xy: np.ndarray) -> np.ndarray:
        """(N, 3) float64 points at the model pixels nearest to (N, 2) original pixels."""
        width, height = self.pointmap.size
        xy = np.rint(self.transform.apply(xy)).astype(int).clip((0, 0), (width - 1, height - 1))
        return self.pointmap.points[xy[:, 1], xy[:, 0]].astype(np.float64)


@dataclass(frozen=True, eq=False)
class PairPose:
    """Pose of camera 1 in camera 0's frame.

    Attributes:
        pose1: The pose in the unit of the pointmaps, or None if none was found.
        num_inliers: Number of matches that agree with it.
    """

    pose1: Pose | None
    num_inliers: int


def model_pixel(transform: ImageTransform) -> float:
    """Side of a model pixel in original pixels."""
    return float(abs(np.linalg.det(transform.matrix[:2, :2])) ** -0.5)


def estimate_camera(own: SeenMap) -> Camera:
    """Pinhole camera with square pixels and centred principal point that fits a pointmap best.

    Args:
        own: Pointmap of an image in its own camera's frame.

    Returns:
        The camera in ORIGINAL pixels. If the points allow no estimate, the longer side is taken to be seen
        under 60 degrees.
    """
    width, height = own.transform.size_from
    sure = own.pointmap.confident(_UNSURE_PERCENTILE) & (own.pointmap.points[..., 2] > 0)
    stretch = np.diag(own.transform.matrix)[:2] * own.pixel  # about 1: model pixels need not be square
    points = np.where(sure[..., None], own.pointmap.points * np.array([*stretch, 1.0]), np.nan)
    center = own.transform.apply(np.array([(width - 1) / 2, (height - 1) / 2]))
    focal = estimate_focal_knowing_depth(
        torch.from_numpy(points)[None], torch.from_numpy(center), "weiszfeld", *FOCAL_RANGE
    ).item()
    if not np.isfinite(focal):
        logger.warning("no focal length could be estimated: the pointmap has no usable point")
        focal = max(own.pointmap.size) * 3**0.5 / 2
    return Camera.from_focal(focal * own.pixel, width, height)


def estimate_pose(
    matches: Matches,
    cameras: tuple[Camera, Camera],
    own: tuple[SeenMap, SeenMap],
    other: SeenMap,
    *,
    threshold_px: float = 1.5,
    seed: int = 0,
) -> PairPose:
    """Pose of camera 1: from matches, or where these fail from the pointmap of image 1 in camera 0's frame.

    Args:
        matches: Matches in original pixels.
        cameras: Intrinsics in original pixels.
        own: Pointmaps of images 0 and 1, each in its own camera's frame.
        other: Pointmap of image 1 in camera 0's frame.
        threshold_px: Largest epipolar distance of an inlier, in model pixels.
        seed: Seed of the sampling.
    """
    pixel = (own[0].pixel * own[1].pixel) ** 0.5
    relative = estimate_relative_pose(
        matches.xy0, matches.xy1, cameras[0].K, cameras[1].K, threshold_px=threshold_px * pixel, seed=seed
    )
    if relative.success:
        scale = baseline_length(matches.filter(relative.inliers), cameras, own, relative.R, relative.t)
        if scale is not None:
            pose = Pose.from_cam_from_world(relative.R, scale * relative.t)
            return PairPose(pose, int(relative.inliers.sum()))
    return pose_from_pointmap(matches, cameras, other, seed=seed)


def baseline_length(
    matches: Matches,
    cameras: tuple[Camera, Camera],
    own: tuple[SeenMap, SeenMap],
    R: np.ndarray,
    t: np.ndarray,
) -> float | None:
    """Length of the baseline at which triangulated depths agree with predicted ones.

    Args:
        matches: Matches that agree with the pose.
        cameras: Intrinsics in original pixels.
        own: Pointmaps of images 0 and 1, each in its own camera's frame.
        R: (3, 3) rotation, camera 1 from camera 0.
        t: (3,) unit translation, `x_cam1 = R x_cam0 + length * t`.

    Returns:
        The median ratio of predicted and triangulated depth, or None if too few matches have parallax.
    """
    rays0, rays1 = cameras[0].unproject(matches.xy0) @ R.T, cameras[1].unproject(matches.xy1)
    normal = np.cross(rays0, rays1)
    square = (normal**2).sum(axis=1)
    norms = np.linalg.norm(rays0, axis=1) * np.linalg.norm(rays1, axis=1)
    parallax = np.degrees(np.arcsin(np.clip(np.sqrt(square) / norms, 0, 1)))
    # From z1 rays1 = z0 rays0 + t, by the cross products with rays1 and rays0.
    square = np.maximum(square, 1e-300)
    depths = (-(np.cross(t, rays1) * normal).sum(1) / square, (np.cross(rays0, t) * normal).sum(1) / square)
    usable = (depths[0] > 0) & (depths[1] > 0) & (parallax > _MIN_PARALLAX_DEG)
    ratios = [
        seen.sample(xy)[usable, 2] / depth[usable] for seen, xy, depth in zip(own, (matches.xy0, matches.xy1), depths)
    ]
    known = np.concatenate(ratios)
    known = known[np.isfinite(known) & (known > 0)]
    return float(np.median(known)) if len(known) >= _MIN_RATIOS else None


def pose_from_pointmap(matches: Matches, cameras: tuple[Camera, Camera], other: SeenMap, *, seed: int = 0) -> PairPose:
    """Pose of camera 1 from its pixels and their points in camera 0's frame.

    Args:
        matches: Matches in original pixels, only to count those that agree.
        cameras: Intrinsics in original pixels.
        other: Pointmap of image 1 in camera 0's frame.
        seed: Seed of the sampling.
    """
    rows, columns = np.nonzero(other.pointmap.confident(_UNSURE_PERCENTILE))
    if len(rows) > _PNP_POINTS:
        chosen = np.random.default_rng(seed).choice(len(rows), _PNP_POINTS, replace=False)
        rows, columns = rows[chosen], columns[chosen]
    xy = other.transform.inverse().apply(np.stack([columns, rows], axis=1))
    points = other.pointmap.points[rows, columns]
    found = estimate_absolute_pose(xy, points, cameras[1].K, threshold_px=_PNP_PX * other.pixel, seed=seed)
    if not found.success:
        return PairPose(None, 0)
    errors = epipolar_errors(matches.xy0, matches.xy1, cameras[0].K, cameras[1].K, found.pose.cam_from_world)
    return PairPose(found.pose, int((errors < EPIPOLAR_THRESHOLD).sum()))
