"""Pair graph from image similarities: key images by farthest point sampling, and nearest neighbours."""

from __future__ import annotations

from itertools import combinations

import numpy as np


def farthest_point_sampling(
    dist: np.ndarray, N: int | None = None, dist_thresh: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Spread-out images: each next one is the farthest from those chosen before.

    Args:
        dist: (n, n) distances between images.
        N: number of images to choose; all without it.
        dist_thresh: stop as soon as no image is farther than this from the chosen ones.

    Returns:
        Indices (m,) int64 in order of choice, the first drawn from NumPy's global random state; and (m,) the distance
        of each to those before it (inf for the first).

    Raises:
        ValueError: if `dist` is not a square matrix or `N` is not between 1 and n.
    """
    dist = np.asarray(dist)
    n = len(dist)
    count = n if N is None else N
    if dist.shape != (n, n) or not 1 <= count <= n:
        raise ValueError(f"expected (n, n) distances and 1 <= N <= n, got shape {dist.shape} and N={N}")
    chosen, gaps = [int(np.random.randint(n))], [np.inf]
    nearest = dist[chosen[0]].astype(float)
    while len(chosen) < count:
        nearest[chosen] = -np.inf
        farthest = int(nearest.argmax())
        if dist_thresh is not None and nearest[farthest] <= dist_thresh:
            break
        chosen.append(farthest)
        gaps.append(float(nearest[farthest]))
        nearest = np.minimum(nearest, dist[farthest])
    return np.array(chosen), np.array(gaps)


def make_pairs_fps(
    sim_mat: np.ndarray, Na: int = 20, tokK: int = 1, dist_thresh: float | None = None
) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Pairs of images to match: key images among each other, every other image with its nearest ones.

    Args:
        sim_mat: (n, n) similarities of images, larger is more alike.
        Na: number of key images; without any, only nearest neighbours are paired.
        tokK: nearest images of each image, itself included, that become pairs.
        dist_thresh: see `farthest_point_sampling`.

    Returns:
        Sorted pairs (i, j) with i < j, and the indices of the key images.
    """
    dist = 1 - np.asarray(sim_mat)
    keys = farthest_point_sampling(dist, Na, dist_thresh)[0] if Na else np.empty(0, dtype=np.int64)
    pairs = {(min(i, j), max(i, j)) for i, j in combinations(keys.tolist(), 2)}
    for i in sorted(set(range(len(dist))) - set(keys.tolist())) if Na else ():
        key = int(keys[dist[i, keys].argmin()])
        pairs.add((min(i, key), max(i, key)))
    for i, row in enumerate(dist):
        pairs |= {(min(i, j), max(i, j)) for j in np.argsort(row, kind="stable")[:tokK].tolist() if j != i}
    return sorted(pairs), keys
