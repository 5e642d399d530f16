"""A first guess of all cameras from the epipolar geometry of their pairs, which needs no good pointmaps.

Matches are exact long before pointmaps are: a pair's relative motion follows from them alone. Rotations and then
positions are averaged over all pairs (`multiview.motion_averaging`); the pointmaps only say how long the baselines
are, roughly. `agreement` tells which of several guesses the matches like best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mast3r.cloud_opt.initialise import FirstGuess, LocalMatches, grow
from mast3r.cloud_opt.kinematics import components_of
from multiview.epipolar import EpipolarGeometry
from multiview.metrics import epipolar_errors
from multiview.motion_averaging import RelativeMotion, average_rotations, solve_centers
from multiview.poses import Pose
from multiview.robust import estimate_relative_pose

NOISE_PX = 1.5
"""Epipolar distance of a good match, in model pixels."""

_MAX_SAMPLE = 500  # matches of a pair: more make the estimate no surer, only slower
_MIN_INLIERS = 12
_MIN_ANGLE = np.radians(1.0)  # rays that meet at less say nothing of depth
_STILL = 0.02  # baseline of images without parallax, as a share of the depth
_STILL_TRUST = 0.05  # factor on the trust in their direction


@dataclass(frozen=True, eq=False)
class PixelMatches:
    """Matches of a pair in pixels, and how far away their pointmaps say the points are.

    Attributes:
        i: First image.
        j: Second image.
        xy_i: (M, 2) model pixels of image i.
        xy_j: (M, 2) of image j.
        depth_i: (M,) predicted depth in camera i.
        depth_j: (M,) predicted depth in camera j.
        weight: (M,) confidence.
    """

    i: int
    j: int
    xy_i: np.ndarray
    xy_j: np.ndarray
    depth_i: np.ndarray
    depth_j: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True, eq=False)
class _Link:
    """The motion of a pair; `ratios` are triangulated depths at baseline 1 over predicted ones, NaN if unknown."""

    motion: RelativeMotion
    ratios: tuple[float, float]


def guess_from_motions(
    K: np.ndarray, pixels: Sequence[PixelMatches], points: Sequence[LocalMatches], *, seed: int = 0
) -> FirstGuess | None:
    """Cameras that agree with the relative motions of most pairs.

    Images without a usable motion are registered onto the points of the others.

    Args:
        K: (N, 3, 3) intrinsics in model pixels.
        pixels: Matches in pixels.
        points: The same matches as points.
        seed: Seed of the sampling.

    Returns:
        The guess; None if fewer than three images have usable motions.
    """
    links = [link for pair in pixels if (link := _link(pair, K, seed)) is not None]
    count = len(K)
    labels = components_of(count, [(link.motion.i, link.motion.j) for link in links])
    members = np.flatnonzero(labels == np.bincount(labels).argmax())
    if len(members) < 3:
        return None
    place = {int(image): k for k, image in enumerate(members)}
    inside = [link for link in links if link.motion.i in place]
    motions = [_renumbered(link.motion, place) for link in inside]
    rotations = average_rotations(len(members), motions)
    centers = solve_centers(rotations, motions)
    scale = _scales(inside, {image: centers[k] for image, k in place.items()})
    poses = {image: _pose(rotations[k], centers[k]) for image, k in place.items()}
    return replace(grow(count, poses, scale, points), from_motions=True)


def agreement(guess: FirstGuess, K: np.ndarray, pixels: Sequence[PixelMatches]) -> float:
    """How well matches lie on the epipolar lines of cameras: soft share of good ones, 0..1."""
    total = good = 0.0
    for pair in pixels:
        pose = Pose(guess.world_from_cam[pair.j]).inverse().compose(Pose(guess.world_from_cam[pair.i]))
        square = epipolar_errors(pair.xy_i, pair.xy_j, K[pair.i], K[pair.j], pose.world_from_cam)
        distance = square * K[pair.i, 0, 0] * K[pair.j, 0, 0] / 4  # about the squared Sampson distance
        good += float((pair.weight / (1 + distance / NOISE_PX**2)).sum())
        total += float(pair.weight.sum())
    return good / max(total, 1e-12)


def _link(pair: PixelMatches, K: np.ndarray, seed: int) -> _Link | None:
    rows = np.random.default_rng(seed).permutation(len(pair.xy_i))[:_MAX_SAMPLE]
    xy_i, xy_j = pair.xy_i[rows].astype(np.float64), pair.xy_j[rows].astype(np.float64)
    found = estimate_relative_pose(xy_i, xy_j, K[pair.i], K[pair.j], threshold_px=NOISE_PX, seed=seed)
    inliers = np.flatnonzero(found.inliers)
    if not found.success or len(inliers) < _MIN_INLIERS:
        return None
    rays = (_normalised(xy, K[image])[inliers] for xy, image in ((xy_i, pair.i), (xy_j, pair.j)))
    depth_i, depth_j, angle = EpipolarGeometry(found.R, found.t, np.zeros(2)).depths(*rays)
    sure = (depth_i > 0) & (depth_j > 0) & (angle > _MIN_ANGLE)
    chosen, weight = rows[inliers[sure]], float(len(inliers))
    if sure.sum() < _MIN_INLIERS:
        far = float(np.median(pair.depth_i)) * _STILL
        return _Link(RelativeMotion(pair.i, pair.j, found.R, found.t, _STILL_TRUST * weight, far), (np.nan, np.nan))
    ratios = (
        float(np.median(depth_i[sure] / pair.depth_i[chosen])),
        float(np.median(depth_j[sure] / pair.depth_j[chosen])),
    )
    length = (ratios[0] * ratios[1]) ** -0.5
    return _Link(RelativeMotion(pair.i, pair.j, found.R, found.t, weight, length), ratios)


def _scales(links: Sequence[_Link], centers: dict[int, np.ndarray]) -> dict[int, float]:
    """World units per unit of the points of images whose depth is known."""
    found: dict[int, list[float]] = {}
    for link in links:
        i, j = link.motion.i, link.motion.j
        baseline = float(np.linalg.norm(centers[j] - centers[i]))
        for image, ratio in zip((i, j), link.ratios):
            if np.isfinite(ratio) and baseline > 0:
                found.setdefault(image, []).append(baseline * ratio)
    return {image: float(np.median(values)) for image, values in found.items()}


def _renumbered(motion: RelativeMotion, place: dict[int, int]) -> RelativeMotion:
    return RelativeMotion(place[motion.i], place[motion.j], motion.R, motion.t, motion.weight, motion.length)


def _normalised(xy: np.ndarray, K: np.ndarray) -> np.ndarray:
    """(M, 3) rays of pixels on the plane z = 1."""
    return np.concatenate([xy, np.ones_like(xy[:, :1])], axis=1) @ np.linalg.inv(K).T


def _pose(R: np.ndarray, center: np.ndarray) -> np.ndarray:
    return Pose.from_rt(R.T, center).world_from_cam
