"""Reciprocal matching written as plainly as possible: the yardstick of the fast path, for tests and
benchmarks.

Every round multiplies blocks of 8192 x 8192 descriptors, takes the maxima in both directions and uses one of
them. Slow on purpose; use `mast3r.fast_nn`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def reference_scores(a: Tensor, b: Tensor, dist: Literal["dot", "l2"]) -> Tensor:
    """Similarity (Q, N) of (Q, D) and (N, D) descriptors: dot product, or minus squared distance."""
    if dist == "dot":
        return a @ b.T
    return -torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist").square()


def reference_nearest(
    a: Tensor, b: Tensor, dist: Literal["dot", "l2"] = "dot", block_size: int = 8192
) -> tuple[Tensor, Tensor]:
    """Best match in `b` of each row of `a` and in `a` of each row of `b`; the lowest index among equals.

    Args:
        a: (Q, D) descriptors.
        b: (N, D) descriptors.
        dist: "dot" or "l2".
        block_size: rows of either side compared at once.

    Returns:
        (Q,) and (N,) int64 indices.
    """
    best_a, best_b = (torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device) for x in (a, b))
    index_a, index_b = (torch.zeros(len(x), dtype=torch.int64, device=x.device) for x in (a, b))
    for i in range(0, len(a), block_size):
        for j in range(0, len(b), block_size):
            scores = reference_scores(a[i : i + block_size], b[j : j + block_size], dist)
            _keep_better(best_a[i : i + block_size], index_a[i : i + block_size], *scores.max(1), offset=j)
            _keep_better(best_b[j : j + block_size], index_b[j : j + block_size], *scores.max(0), offset=i)
    return index_a, index_b


def _keep_better(best: Tensor, index: Tensor, score: Tensor, place: Tensor, *, offset: int) -> None:
    """Overwrite the entries of `best` and `index` (in place) where the new score is strictly better."""
    better = score > best
    best[better] = score[better].to(best.dtype)
    index[better] = place[better] + offset


def reference_reciprocal(
    map0: Tensor,
    map1: Tensor,
    start: Tensor,
    *,
    dist: Literal["dot", "l2"] = "dot",
    max_rounds: int = 10,
    block_size: int = 8192,
) -> list[tuple[int, int]]:
    """Reciprocal matches reached from some start pixels.

    Args:
        map0: (H0, W0, D) descriptors of image 0.
        map1: (H1, W1, D) descriptors of image 1.
        start: (K,) flat pixel indices in map 0.
        dist: "dot" or "l2".
        max_rounds: rounds there and back before a start point is given up.
        block_size: see `reference_nearest`.

    Returns:
        Sorted list of distinct (pixel in map 0, pixel in map 1) flat indices, each the best match of the
        other.
    """
    a, b = map0.flatten(0, 1), map1.flatten(0, 1)
    active, matches = start.unique(), set()
    for _ in range(max_rounds):
        if len(active) == 0:
            break
        there, _ = reference_nearest(a[active], b, dist, block_size)
        back, _ = reference_nearest(b[there], a, dist, block_size)
        home = back == active
        matches.update(zip(active[home].tolist(), there[home].tolist()))
        active = back[~home].unique()
    return sorted(matches)
