"""Maxima of products between query descriptors and listed descriptors, without their similarity matrix.

Blocks of the product stay in cache and are reduced to one maximum per query and run of candidates as soon as they are
written. Only the run that won is looked at again to find the place. Ties go to the lowest index.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

NAN_MESSAGE = "Descriptors contain NaN: replace the invalid ones, for example by zeros, before matching."

RUN = 256
"""Candidates per maximum: one row of the product is reduced while it is still in cache."""

MIN_GEMM_ROWS = 16
"""Smaller products take other kernels, whose last bit differs: pad, so that equal means equal."""

_CPU_BLOCK = 3 << 18  # scores of one dense block on a CPU: 3 MB, shared by the cores' second-level caches
_DEVICE_BLOCK = 1 << 26  # the same on an accelerator: 256 MB, few launches
_PAIR_BLOCK = 1 << 20  # scores of the query x block pairs evaluated at once: 4 MB


def dense_nearest(queries: Tensor, points: Tensor) -> Tensor:
    """Best point for each query by a blocked matrix product fused with the running maximum.

    Args:
        queries: (B, Q, D).
        points: (B, N, D), same dtype.

    Returns:
        (B, Q) int64 index of the point with the largest dot product, the lowest one of equals.

    Raises:
        ValueError: a score is NaN.
    """
    B, Q, _ = queries.shape
    if Q == 0:
        return torch.zeros(B, 0, dtype=torch.int64, device=queries.device)
    points = pad_to_runs(points)
    queries = F.pad(queries, (0, 0, 0, max(0, MIN_GEMM_ROWS - Q)))
    budget = _CPU_BLOCK if points.device.type == "cpu" else _DEVICE_BLOCK
    parts = -(-queries.shape[1] // max(MIN_GEMM_ROWS, budget // (B * RUN)))
    return torch.cat([_dense_block(part, points, budget) for part in queries.chunk(parts, 1)], 1)[:, :Q]


def pad_to_runs(points: Tensor) -> Tensor:
    """(B, N, D) with the last point repeated to whole runs: a repeat never wins against its original."""
    missing = -points.shape[1] % RUN
    return torch.cat([points, points[:, -1:].expand(-1, missing, -1)], 1) if missing else points


def _dense_block(queries: Tensor, points: Tensor, budget: int) -> Tensor:
    B, Q, D = queries.shape
    best, run = run_maxima(queries, points, budget).max(2)  # (B, Q)
    if bool(best.isnan().any()):
        raise ValueError(NAN_MESSAGE)
    runs = points.reshape(-1, RUN, D)  # (B * N / RUN, RUN, D)
    owner = torch.arange(B, device=run.device)[:, None] * (len(runs) // B)
    block, order = (run + owner).flatten().sort(stable=True)
    place = torch.empty_like(order)
    place[order] = score_pairs(queries.flatten(0, 1), runs, order, block, "argmax")
    return run * RUN + place.view(B, Q)


def run_maxima(queries: Tensor, points: Tensor, budget: int) -> Tensor:
    """Largest dot product of each query with every run of RUN consecutive points.

    Args:
        queries: (B, Q, D).
        points: (B, N, D), N a multiple of RUN.
        budget: scores held at once.

    Returns:
        (B, Q, N / RUN).
    """
    B, Q, _ = queries.shape
    runs = points.shape[1] // RUN
    maxima = queries.new_empty(B, Q, runs)
    step = max(1, min(runs, budget // (B * Q * RUN)))
    buffer = queries.new_empty(B * Q * step * RUN)
    for first in range(0, runs, step):
        n = min(step, runs - first)
        scores = buffer[: B * Q * n * RUN].view(B, Q, n * RUN)
        torch.bmm(queries, points[:, first * RUN : (first + n) * RUN].mT, out=scores)
        torch.amax(scores.view(B, Q, n, RUN), 3, out=maxima[:, :, first : first + n])
    return maxima


def best_of_pairs(queries: Tensor, blocks: Tensor, pixels: Tensor, survivors: Tensor) -> Tensor:
    """Best pixel of each query among some blocks of descriptors, the lowest one of equals.

    Args:
        queries: (Q, D).
        blocks: (T, P, D).
        pixels: (T, P) flat pixel index of each descriptor.
        survivors: (Q, T) bool, at least one block per query.

    Returns:
        (Q,) int64 flat pixel index.

    Raises:
        ValueError: a score is NaN.
    """
    block, query = survivors.t().contiguous().nonzero(as_tuple=True)  # sorted by block
    score = score_pairs(queries, blocks, query, block, "amax")
    best = torch.full_like(queries[:, 0], -torch.inf).scatter_reduce_(0, query, score, "amax")
    if bool(best.isnan().any()):
        raise ValueError(NAN_MESSAGE)
    tied = score == best[query]
    block, query = block[tied], query[tied]
    pixel = pixels[block, score_pairs(queries, blocks, query, block, "argmax")]
    first = torch.full((len(queries),), pixels.numel())
    return first.scatter_reduce_(0, query, pixel, "amin")


def score_pairs(
    queries: Tensor, blocks: Tensor, query: Tensor, block: Tensor, reduce: Literal["amax", "argmax"]
) -> Tensor:
    """Best score, or its first place inside the block, of listed (query, block) pairs.

    Queries that meet the same block are multiplied together, in groups of equal size.

    Args:
        queries: (Q, D).
        blocks: (T, P, D).
        query: (K,) query of each pair.
        block: (K,) block of each pair, sorted.
        reduce: "amax" for the score, "argmax" for the place.

    Returns:
        (K,) score or int64 place.
    """
    size = MIN_GEMM_ROWS if len(query) < 4 * MIN_GEMM_ROWS * len(blocks) else 4 * MIN_GEMM_ROWS
    count = torch.bincount(block, minlength=len(blocks))
    groups = (count + size - 1) // size
    slot = torch.arange(len(block), device=block.device) - (count.cumsum(0) - count)[block]
    slot += (groups.cumsum(0) - groups)[block] * size
    member = torch.zeros(int(groups.sum()) * size, dtype=torch.int64, device=block.device)
    member[slot] = query
    owner = torch.repeat_interleave(torch.arange(len(blocks), device=block.device), groups)
    step = max(1, _PAIR_BLOCK // (size * blocks.shape[1]))
    found = [
        getattr(torch.bmm(_rows(queries, m), _rows(blocks, o).mT), reduce)(2)
        for m, o in zip(member.view(-1, size).split(step), owner.split(step))
    ]
    return torch.cat(found).flatten()[slot]


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """`values[index]`, faster."""
    return values.index_select(0, index.flatten()).view(*index.shape, *values.shape[1:])
