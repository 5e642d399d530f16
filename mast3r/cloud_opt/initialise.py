"""A first guess of all cameras: image after image is registered onto the points of those before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_ROUNDS = 15
_MIN_POINTS = 3
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class LocalMatches:
    """Matches of a pair as 3D points, each in the camera of its own image.

    Attributes:
        i: First image.
        j: Second image.
        first: (M, 3) float64 points in camera i, at the scale of image i.
        second: (M, 3) points in camera j.
        weight: (M,) confidence.
    """

    i: int
    j: int
    first: np.ndarray
    second: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True, eq=False)
class SimilarityFit:
    """The map x -> scale R x + t.

    Attributes:
        scale: Factor.
        R: (3, 3) rotation.
        t: (3,) translation.
    """

    scale: float
    R: np.ndarray
    t: np.ndarray

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Move points (..., 3)."""
        return self.scale * points @ self.R.T + self.t


@dataclass(frozen=True, eq=False)
class FirstGuess:
    """Cameras and scales to start from.

    Attributes:
        world_from_cam: (N, 4, 4) float64.
        scale: (N,) world units per unit of each image's points.
        from_motions: Whether the cameras come from relative motions and not from points.
    """

    world_from_cam: np.ndarray
    scale: np.ndarray
    from_motions: bool = False


def robust_similarity(
    source: np.ndarray, target: np.ndarray, weight: np.ndarray, *, scale: float | None = None
) -> SimilarityFit:
    """The similarity that moves most of the points onto their targets.

    Iteratively reweighted: each round trusts a match the less the farther it was off (Cauchy weights at the
    median residual), so that up to almost half of the matches may be wrong.

    Args:
        source: (M, 3) points.
        target: (M, 3) where they should be.
        weight: (M,) confidence.
        scale: Known scale; None estimates it.

    Returns:
        The identity (at the given scale) if fewer than three points have weight.
    """
    if (weight > 0).sum() < _MIN_POINTS:
        return SimilarityFit(scale or 1.0, np.eye(3), np.zeros(3))
    fit = weighted_similarity(source, target, weight, scale=scale)
    for _ in range(_ROUNDS):
        residual = np.linalg.norm(fit.apply(source) - target, axis=1)
        width = max(_weighted_median(residual, weight), _TINY)
        fit = weighted_similarity(source, target, weight / (1 + (residual / width) ** 2), scale=scale)
    return fit


def weighted_similarity(
    source: np.ndarray, target: np.ndarray, weight: np.ndarray, *, scale: float | None = None
) -> SimilarityFit:
    """The similarity of least weighted squared distance (Umeyama 1991)."""
    weight = weight / weight.sum()
    middle_s, middle_t = weight @ source, weight @ target
    s, t = source - middle_s, target - middle_t
    U, singular, Vt = np.linalg.svd((weight[:, None] * t).T @ s)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(U @ Vt))])
    R = (U * sign) @ Vt
    if scale is None:
        scale = max(float(singular @ sign / max(weight @ (s**2).sum(axis=1), _TINY)), _TINY)
    return SimilarityFit(scale, R, middle_t - scale * R @ middle_s)


def first_guess(
    count: int,
    root: int,
    pairs: Sequence[LocalMatches],
    *,
    known_pose: Sequence[np.ndarray | None],
    known_scale: Sequence[float | None],
) -> FirstGuess:
    """Register all images of a component.

    Where known poses tell the unit of length, their images come first; else the image of known scale, or the
    root. Then always the image with the most confident matches to those already placed follows, onto the
    points of all of them.

    Args:
        count: Number of images N, all connected.
        root: Where to begin if nothing is known.
        pairs: Matches as points.
        known_pose: (4, 4) world_from_cam or None per image.
        known_scale: World units per unit of each image's points, or None.
    """
    poses = {i: pose for i, pose in enumerate(known_pose) if pose is not None}
    scales = _scales_between(pairs, poses, known_scale)
    if set(scales) & set(poses):
        return grow(count, poses, scales, pairs, known_scale)
    start = min(scales, default=root)
    guess = grow(count, {start: np.eye(4)}, scales, pairs, known_scale)
    return _moved(guess, poses, keep_scale=bool(scales)) if poses else guess


def grow(
    count: int,
    placed: dict[int, np.ndarray],
    scales: dict[int, float],
    pairs: Sequence[LocalMatches],
    known_scale: Sequence[float | None] | None = None,
) -> FirstGuess:
    """Place all images, beginning with some.

    Args:
        count: Number of images N, all connected.
        placed: (4, 4) world_from_cam of those that stand, at least one.
        scales: World units per unit of the points of some of them; the others take the usual scale.
        pairs: Matches as points.
        known_scale: Scale of each image, or None.
    """
    known_scale = known_scale or [None] * count
    poses, scales = dict(placed), dict(scales)
    usual = float(np.median(list(scales.values()))) if scales else 1.0
    scales = {i: scales.get(i, usual) for i in poses}
    links = _links(count, pairs)
    while len(poses) < count:
        image = _most_linked(links, poses)
        own, world, weight = _matches_to_placed(image, pairs, poses, scales)
        fit = robust_similarity(own, world, weight, scale=known_scale[image])
        poses[image], scales[image] = _pose(fit), fit.scale
    return FirstGuess(np.stack([poses[i] for i in range(count)]), np.array([scales[i] for i in range(count)]))


def _moved(guess: FirstGuess, poses: dict[int, np.ndarray], *, keep_scale: bool) -> FirstGuess:
    """The guess with its cameras brought to known poses."""
    images = list(poses)
    source, target = guess.world_from_cam[images], np.stack(list(poses.values()))
    # Each camera counts by its centre and by a point on its axis, so that two cameras fix the turn about the
    # line between them, and one camera everything but the scale.
    length = max(_spread(source[:, :3, 3]), _TINY)
    scale = 1.0 if keep_scale or _spread(target[:, :3, 3]) < _TINY else _spread(target[:, :3, 3]) / length
    axes = np.concatenate([np.zeros((1, 3)), length * np.eye(3)])
    before, after = (
        (axes * factor @ pose[:, :3, :3].transpose(0, 2, 1) + pose[:, None, :3, 3]).reshape(-1, 3)
        for pose, factor in ((source, 1.0), (target, scale))
    )
    fit = weighted_similarity(before, after, np.ones(len(before)), scale=scale)
    moved = guess.world_from_cam.copy()
    moved[:, :3, :3] = fit.R @ moved[:, :3, :3]
    moved[:, :3, 3] = fit.apply(moved[:, :3, 3])
    moved[images] = target
    return FirstGuess(moved, scale * guess.scale)


def _spread(points: np.ndarray) -> float:
    """Root mean squared distance of points (M, 3) from their mean."""
    return float(np.sqrt(((points - points.mean(axis=0)) ** 2).sum(axis=1).mean()))


def _scales_between(
    pairs: Sequence[LocalMatches], poses: dict[int, np.ndarray], known_scale: Sequence[float | None]
) -> dict[int, float]:
    """Scale of the images that are told it, or that see the same points from two known cameras."""
    scales = {i: scale for i, scale in enumerate(known_scale) if scale is not None}
    found: dict[int, list[float]] = {}
    for pair in pairs:
        if pair.i not in poses or pair.j not in poses or not len(pair.weight):
            continue
        # scale (R_i p - R_j q) = t_j - t_i, solved per match along the baseline and reduced by the median
        apart = pair.first @ poses[pair.i][:3, :3].T - pair.second @ poses[pair.j][:3, :3].T
        baseline = poses[pair.j][:3, 3] - poses[pair.i][:3, 3]
        along, length = apart @ baseline, baseline @ baseline
        usable = along > _TINY
        if length > _TINY and usable.any():
            value = _weighted_median(length / along[usable], pair.weight[usable])
            found.setdefault(pair.i, []).append(value)
            found.setdefault(pair.j, []).append(value)
    return {**{i: float(np.median(values)) for i, values in found.items()}, **scales}


def _links(count: int, pairs: Sequence[LocalMatches]) -> np.ndarray:
    links = np.zeros((count, count))
    for pair in pairs:
        links[pair.i, pair.j] = links[pair.j, pair.i] = pair.weight.sum() + _TINY
    return links


def _most_linked(links: np.ndarray, placed: dict[int, np.ndarray]) -> int:
    strength = links[:, list(placed)].sum(axis=1)
    strength[list(placed)] = -1
    return int(strength.argmax())


def _matches_to_placed(
    image: int, pairs: Sequence[LocalMatches], poses: dict[int, np.ndarray], scales: dict[int, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of an image (M, 3), where the placed images see them in the world (M, 3), and weights (M,)."""
    own, world, weight = [np.zeros((0, 3))], [np.zeros((0, 3))], [np.zeros(0)]
    for pair in pairs:
        for here, there, mine, theirs in (
            (pair.i, pair.j, pair.first, pair.second),
            (pair.j, pair.i, pair.second, pair.first),
        ):
            if here == image and there in poses:
                own.append(mine)
                world.append(scales[there] * theirs @ poses[there][:3, :3].T + poses[there][:3, 3])
                weight.append(pair.weight)
    return np.concatenate(own), np.concatenate(world), np.concatenate(weight)


def _pose(fit: SimilarityFit) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = fit.R, fit.t
    return pose


def _weighted_median(values: np.ndarray, weight: np.ndarray) -> float:
    order = np.argsort(values)
    below = np.cumsum(weight[order])
    return float(values[order][np.searchsorted(below, 0.5 * below[-1])]) if below[-1] > 0 else float(np.median(values))
