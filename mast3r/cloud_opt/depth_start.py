"""Depth to start from, once cameras are known better than depth: triangulated matches bend the network's.

A weak network's depth is off by a third while its matches are off by a pixel. Refining cameras and such depth
together would move the cameras first; so depth is laid through the triangulated matches before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mast3r.cloud_opt.canonical import CanonicalView
from mast3r.cloud_opt.initialise import FirstGuess
from mast3r.cloud_opt.problem import AnchoredPair, PixelAnchors
from multiview.epipolar import EpipolarGeometry
from multiview.poses import Pose

_MIN_ANGLE = np.radians(1.5)  # rays that meet at less tell no depth
_MAX_ERROR = 2.0  # model pixels from the epipolar line
_MAX_LOG = np.log(8.0)  # a match that bends depth more is wrong
_REACH = 2.0  # anchors: how far a correction spreads
_INERTIA = 0.05  # matches that count for the usual correction of the image


def bent_depths(
    guess: FirstGuess, K: np.ndarray, views: Sequence[CanonicalView], pairs: Sequence[AnchoredPair]
) -> list[np.ndarray]:
    """Depth of the anchors of all images, in each image's own unit, that agrees with triangulated matches.

    Args:
        guess: Cameras and scales.
        K: (N, 3, 3) intrinsics in model pixels.
        views: The images; their depth is bent.
        pairs: Matches.

    Returns:
        (blocks,) float64 per image. Anchors without matches follow their neighbours, images without them stay.
    """
    found: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in views]
    for pair in pairs:
        depths = _triangulated(guess, K, pair)
        for image, side, depth in zip((pair.i, pair.j), (pair.first, pair.second), depths):
            found[image].append(_corrections(views[image], float(guess.scale[image]), side, depth))
    return [_bent(view, samples) for view, samples in zip(views, found)]


def _triangulated(guess: FirstGuess, K: np.ndarray, pair: AnchoredPair) -> tuple[np.ndarray, np.ndarray]:
    """(M,) depth of matches in both cameras in the world's unit; NaN where it is not known."""
    motion = Pose(guess.world_from_cam[pair.j]).inverse().compose(Pose(guess.world_from_cam[pair.i]))
    baseline = float(np.linalg.norm(motion.center))
    rays = [_rays(side, K[image]) for side, image in ((pair.first, pair.i), (pair.second, pair.j))]
    if not baseline > 0:
        nothing = np.full(len(rays[0]), np.nan)
        return nothing, nothing
    geometry = EpipolarGeometry(motion.rotation, motion.center / baseline, np.zeros(2))
    depth_i, depth_j, angle = geometry.depths(*rays)
    error = np.abs(geometry.distances(*rays)) * np.sqrt(K[pair.i, 0, 0] * K[pair.j, 0, 0])
    good = (depth_i > 0) & (depth_j > 0) & (angle > _MIN_ANGLE) & (error < _MAX_ERROR)
    return np.where(good, baseline * depth_i, np.nan), np.where(good, baseline * depth_j, np.nan)


def _rays(side: PixelAnchors, K: np.ndarray) -> np.ndarray:
    xy = side.xy.double().cpu().numpy()
    return np.concatenate([xy, np.ones_like(xy[:, :1])], axis=1) @ np.linalg.inv(K).T


def _corrections(
    view: CanonicalView, scale: float, side: PixelAnchors, depth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Anchors (S,) and by how much (S,) the logarithm of their depth should change."""
    anchor, offset = side.anchor.cpu().numpy(), side.offset.double().cpu().numpy()
    before = scale * view.core_depth.double().cpu().numpy()[anchor] * offset
    with np.errstate(divide="ignore", invalid="ignore"):
        change = np.log(depth / before)
    good = np.isfinite(change) & (np.abs(change) < _MAX_LOG)
    return anchor[good], change[good]


def _bent(view: CanonicalView, samples: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    before = view.core_depth.double().cpu().numpy()
    if not sum(len(anchor) for anchor, _ in samples):
        return before
    anchor, change = (np.concatenate(column) for column in zip(*samples))
    order = np.lexsort((change, anchor))
    hit, first, count = np.unique(anchor[order], return_index=True, return_counts=True)
    middle = change[order][first + count // 2]
    y, x = np.divmod(np.arange(len(view.grid)), view.grid.columns)
    near = np.exp(-((x[:, None] - x[hit]) ** 2 + (y[:, None] - y[hit]) ** 2) / (2 * _REACH**2)) * count
    smooth = (near @ middle + _INERTIA * np.median(middle)) / (near.sum(axis=1) + _INERTIA)
    smooth[hit] = (count * middle + smooth[hit]) / (count + 1)
    return before * np.exp(smooth)
