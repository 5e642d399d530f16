"""Pair graph from image similarities: key images by farthest point sampling, and nearest neighbours."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

DEFAULT_KEY_IMAGES = 20
DEFAULT_NEIGHBOURS = 1


def farthest_point_sampling(
    dist: np.ndarray, N: int | None = None, dist_thresh: float | None = None, *, first: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Spread-out images: each next one is the farthest from those chosen before.

    Args:
        dist: (n, n) distances between images.
        N: Number of images to choose; all without it.
        dist_thresh: Stop as soon as no image is farther than this from the chosen ones.
        first: The first image; None draws it from NumPy's global random state, as the official code does.

    Returns:
        Indices (m,) int64 in order of choice; and (m,) the distance of each to those before it (inf for the
        first).

    Raises:
        ValueError: If `dist` is not a square matrix, or `N` or `first` do not fit it.
    """
    dist = np.asarray(dist)
    n = len(dist)
    count = n if N is None else N
    if dist.shape != (n, n) or not 1 <= count <= n:
        raise ValueError(f"expected (n, n) distances and 1 <= N <= n, got shape {dist.shape} and N={N}")
    if first is not None and not 0 <= first < n:
        raise ValueError(f"the first of {n} images must be one of 0..{n - 1}, got {first}")
    chosen, gaps = [int(np.random.randint(n)) if first is None else first], [np.inf]
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
    sim_mat: np.ndarray,
    Na: int = 20,
    tokK: int = 1,
    dist_thresh: float | None = None,
    *,
    first: int | None = None,
) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Pairs of images to match: key images among each other, every other image with its nearest ones.

    Args:
        sim_mat: (n, n) similarities of images, larger is more alike.
        Na: Number of key images; without any, only nearest neighbours are paired.
        tokK: Nearest images of each image, itself included, that become pairs.
        dist_thresh: See `farthest_point_sampling`.
        first: See there.

    Returns:
        Sorted pairs (i, j) with i < j, and the indices of the key images.
    """
    dist = 1 - np.asarray(sim_mat)
    keys = np.empty(0, dtype=np.int64)
    if Na:
        keys = farthest_point_sampling(dist, Na, dist_thresh, first=first)[0]
    pairs = {(min(i, j), max(i, j)) for i, j in combinations(keys.tolist(), 2)}
    for i in sorted(set(range(len(dist))) - set(keys.tolist())) if Na else ():
        key = int(keys[dist[i, keys].argmin()])
        pairs.add((min(i, key), max(i, key)))
    for i, row in enumerate(dist):
        pairs |= {(min(i, j), max(i, j)) for j in np.argsort(row, kind="stable")[:tokK].tolist() if j != i}
    return sorted(pairs), keys


def is_retrieval_graph(scene_graph: str) -> bool:
    """Whether a scene graph is named `retrieval...`."""
    return scene_graph.split("-")[0] == "retrieval"


def retrieval_edges(n: int, scene_graph: str, similarity: Any, *, first: int | None = None) -> list[tuple[int, int]]:
    """Index pairs of the graph `retrieval[-Na][-k]` over `n` images.

    Args:
        n: Number of images.
        scene_graph: Name and options; Na is cut to `n`.
        similarity: (n, n) scores, larger is more alike.
        first: First key image, see `farthest_point_sampling`.

    Returns:
        Sorted pairs (i, j) with i < j.

    Raises:
        ValueError: If the options are no numbers, or similarities are missing or of the wrong shape.
    """
    if similarity is None:
        raise ValueError(f"scene_graph {scene_graph!r} needs sim_mat, the ({n}, {n}) image similarities.")
    similarity = np.asarray(similarity)
    if similarity.shape != (n, n):
        raise ValueError(f"sim_mat must have shape ({n}, {n}) for {n} images, got {similarity.shape}.")
    numbers = scene_graph.split("-")[1:]
    if len(numbers) > 2 or not all(number.isdecimal() for number in numbers):
        raise ValueError(f"Expected scene_graph 'retrieval-Na-k' with two numbers, got {scene_graph!r}.")
    defaults = (DEFAULT_KEY_IMAGES, DEFAULT_NEIGHBOURS)
    key_images, neighbours = (*(int(number) for number in numbers), *defaults[len(numbers) :])
    return make_pairs_fps(similarity, min(key_images, n), neighbours, first=first)[0]
