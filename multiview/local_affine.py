"""What the neighbours of a match say about it.

Around a point of image 0 the matches of a static scene follow nearly one affine map. The map is fitted to the
nearest matches with robust weights; matches that their neighbourhood does not support are mostly wrong, and the
map tells how a patch around a match is deformed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.spatial import KDTree

_RIDGE = 1e-3  # pull towards a shift, in units of the neighbours' weights
_SHRINK = 0.6  # of the robust scale, per round
_AT_ONCE = 8192  # points; bounds the memory of their neighbours


@dataclass(frozen=True)
class NeighbourhoodConfig:
    """How neighbourhoods are fitted.

    Attributes:
        neighbours: Matches looked at around each match.
        first_scale: Robust scale of the first round, in `scale`s of the call.
        last_scale: That of the last rounds.
        agreement: Residual up to which a neighbour supports the fit, in `scale`s.
        rounds: Rounds of reweighted least squares.
    """

    neighbours: int = 24
    first_scale: float = 12.0
    last_scale: float = 2.0
    agreement: float = 3.0
    rounds: int = 6


@dataclass(frozen=True, eq=False)
class LocalAffines:
    """An affine map around each match, or around each of some points of image 0.

    Attributes:
        A: (N, 2, 2) derivative of pixels of image 1 by pixels of image 0.
        xy1: (N, 2) where the map of its neighbourhood sends the match's own end in image 0, or the point.
        support: (N,) share of the neighbours, nearer ones counting more, that agree with the map, 0..1.
        reach: (N,) median distance of the neighbours in pixels of image 0.
    """

    A: np.ndarray
    xy1: np.ndarray
    support: np.ndarray
    reach: np.ndarray


def local_affines(
    xy0: np.ndarray,
    xy1: np.ndarray,
    *,
    at: np.ndarray | None = None,
    scale: float = 1.0,
    config: NeighbourhoodConfig | None = None,
) -> LocalAffines:
    """Fit an affine map to the neighbourhood of each match, or of given points.

    Args:
        xy0: (N, 2) pixels in image 0.
        xy1: (N, 2) pixels in image 1.
        at: (K, 2) pixels in image 0 around which to fit; default the matches' own.
        scale: Usual error of a right match in pixels of image 1.
        config: How it is fitted.

    Returns:
        The maps. With fewer than three matches they are shifts without support (the identity at given points).
    """
    from scipy.spatial import KDTree

    config = config or NeighbourhoodConfig()
    xy0, xy1 = np.asarray(xy0, dtype=np.float64), np.asarray(xy1, dtype=np.float64)
    around = xy0 if at is None else np.asarray(at, dtype=np.float64).reshape(-1, 2)
    count = len(around)
    if len(xy0) < 3:
        own = xy1.copy() if at is None else around.copy()
        return LocalAffines(np.tile(np.eye(2), (count, 1, 1)), own, np.zeros(count), np.full(count, np.inf))
    tree = KDTree(xy0)
    own = None if at is not None else np.arange(count)
    parts = [
        _fitted(tree, xy1, around[k : k + _AT_ONCE], None if own is None else own[k : k + _AT_ONCE], scale, config)
        for k in range(0, max(count, 1), _AT_ONCE)
    ]
    return LocalAffines(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(LocalAffines)))


def _fitted(
    tree: KDTree, xy1: np.ndarray, around: np.ndarray, own: np.ndarray | None, scale: float, config: NeighbourhoodConfig
) -> LocalAffines:
    """The maps around (K, 2) points, which are the (K,) matches `own` if given."""
    xy0 = tree.data
    distance, index = tree.query(around, k=min(config.neighbours, len(xy0) - 1) + 1)
    offset, target = xy0[index] - around[:, None], xy1[index]
    reach = np.maximum(np.median(distance, axis=1), 1e-6)[:, None]
    near = np.exp(-((distance / (1.5 * reach)) ** 2) / 2)
    design = np.concatenate([np.ones_like(offset[..., :1]), offset / reach[..., None]], axis=-1)
    fitted = np.median(target - offset, axis=1)[:, None] + offset
    robust, fit = config.first_scale * scale, np.zeros((len(around), 3, 2))
    for _ in range(config.rounds):
        weight = near / (1 + ((target - fitted) ** 2).sum(-1) / robust**2)
        fit = _weighted_fit(design, target, weight, reach)
        fitted = design @ fit
        robust = max(_SHRINK * robust, config.last_scale * scale)
    agreeing = np.linalg.norm(target - fitted, axis=-1) < config.agreement * scale
    if own is not None:
        near = near * (index != own[:, None])  # a match does not support itself
    support = (near * agreeing).sum(1) / np.maximum(near.sum(1), 1e-12)
    return LocalAffines(np.swapaxes(fit[:, 1:] / reach[..., None], 1, 2), fit[:, 0], support, reach[:, 0])


def _weighted_fit(design: np.ndarray, target: np.ndarray, weight: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """(N, 3, 2) constant and linear terms by least squares, the linear ones drawn a little to the identity."""
    weighted = design * weight[..., None]
    ridge = _RIDGE * weight.sum(1)[:, None, None] * np.diag([1e-6, 1.0, 1.0])
    identity = np.concatenate([np.zeros((1, 2)), np.eye(2)]) * reach[..., None]
    normal = np.swapaxes(weighted, 1, 2) @ design + ridge
    return np.linalg.solve(normal, np.swapaxes(weighted, 1, 2) @ target + ridge @ identity)
