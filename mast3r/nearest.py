"""Exact nearest neighbours between descriptor maps, at the speed of the matrix product.

The question is always the same: for some query descriptors, which pixel of a map is the best match? The
answer is exact, with ties going to the lowest pixel index. Four engines give it:

* dense: blocks of the product that stay in cache, each reduced to one maximum per query and run of pixels as
  soon as it is written. Only the run that won is looked at again to find the pixel. No similarity matrix, one
  direction.
* pruned (CPU): descriptor maps are smooth, so an affine model of every 8x8 tile plus the norm of what it
  leaves unexplained bounds the best score inside the tile. Tiles that cannot win are never multiplied. When
  the bounds do not help (white noise) the dense engine takes over.
* screened (CPUs that multiply bfloat16 natively, float32 maps): the dense engine in half precision names the runs
  that can hold the best match, given the largest rounding error; those are multiplied again in full precision.
* k-d tree (CPU, "l2", up to 4 channels): points in space. Queries with more than one nearest point go to the
  dense engine, which knows which of them comes first.

Distances: "dot" maximises the dot product in the dtype of the map; "l2" minimises the Euclidean distance by
maximising `q.x - |x|^2 / 2`, in float64 wherever the device has it, so large coordinates lose nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import KDTree
from torch import Tensor

Distance = Literal["dot", "l2"]

NAN_MESSAGE = "Descriptors contain NaN: replace the invalid ones, for example by zeros, before matching."

RUN = 256
"""Pixels per maximum of the dense engine: one row of the product is reduced while it is still in cache."""

TILE = 8
"""Side of the tiles of the pruned engine, in pixels."""

MIN_GEMM_ROWS = 16
"""Smaller products take other kernels, whose last bit differs: pad, so that equal means equal."""

MIN_QUERIES_TO_PRUNE = 256
"""Fewer queries than this do not pay for the tile bounds."""

MAX_SURVIVORS = 0.33
"""Share of tiles left after pruning above which the dense engine is faster."""

MAX_SURVIVORS_SCREENED = 0.1
"""The same where the screened engine stands in for the dense one."""

MIN_QUERIES_TO_SCREEN = 64
"""Fewer queries than this do not pay for rounding the map."""

MIN_EASY_QUERIES = 0.25
"""Share of queries whose tiles are mostly excluded below which bounding is not worth its time."""

MAX_ROUGHNESS = 0.8
"""Unexplained part of a tile, relative to the norm of descriptors, above which its bound says nothing."""

MAX_TREE_CHANNELS = 4
"""Up to here a k-d tree beats products."""

_CPU_BLOCK = 3 << 18  # scores of one dense block on a CPU: 3 MB, shared by the cores' second-level caches
_SCREEN_ROWS = 1536  # queries screened at once: blocks of two runs each
_SCORE_ROUNDING = 2.0**-8 + 2.0**-16  # of a bfloat16 score, and of its sum in float32
_DEVICE_BLOCK = 1 << 26  # the same on an accelerator: 256 MB, few launches
_BOUND_BLOCK = 1 << 23  # query x tile bounds held at once: 32 MB
_MODEL_TILES = 128  # tiles bounded at once: their 3 model rows make a block of the dense engine's width
_PAIR_BLOCK = 1 << 20  # scores of the query x tile pairs evaluated at once: 4 MB


class NearestSearch:
    """Best match of query descriptors in one descriptor map, or in a batch of equally sized maps.

    Args:
        maps: (B, H, W, D) descriptors; moved to float32 unless they are float64.
        dist: "dot" (largest dot product) or "l2" (smallest Euclidean distance).
        prune: use tile bounds (one map, CPU); None decides by size and by what a few queries gain. The result
            is the same either way.
    """

    def __init__(self, maps: Tensor, *, dist: Distance = "dot", prune: bool | None = None):
        if maps.ndim != 4:
            raise ValueError(f"Descriptor maps must have shape (B, H, W, D), got {tuple(maps.shape)}.")
        if dist not in ("dot", "l2"):
            raise ValueError(f'dist must be "dot" or "l2", got {dist!r}.')
        self.dist: Distance = dist
        self.batch, self.height, self.width, _ = maps.shape
        self.maps = _as_map_scores(maps, dist)
        self.points = _pad_to_runs(self.maps.flatten(1, 2))  # (B, N, D')
        can_prune = self.batch == 1 and maps.device.type == "cpu"
        self._may_prune = can_prune and prune is None
        self._must_prune = can_prune and prune is True
        self._tiles: Tiles | None = None
        self._screen: Screen | None = None
        self._may_screen = self.batch == 1 and can_screen(self.maps)
        self._max_survivors = MAX_SURVIVORS_SCREENED if self._may_screen else MAX_SURVIVORS
        self._use_tree = self._may_prune and dist == "l2" and maps.shape[-1] <= MAX_TREE_CHANNELS
        self._tree: KDTree | None = None

    @property
    def size(self) -> int:
        """Pixels per map, H * W."""
        return self.height * self.width

    @torch.no_grad()
    def __call__(self, queries: Tensor, owner: Tensor | None = None) -> Tensor:
        """Find the best pixel for every query.

        Args:
            queries: (Q, D) descriptors.
            owner: (Q,) sorted indices of the map each query is looked up in; None when there is one map.

        Returns:
            (Q,) int64 flat pixel index y * W + x, plus H * W times the owner.
        """
        queries = _as_query_scores(queries, self.points.dtype, self.dist)
        if len(queries) == 0:
            return torch.zeros(0, dtype=torch.int64, device=queries.device)
        with torch.autocast(queries.device.type, enabled=False):
            if self.batch > 1:
                return self._batched(queries, owner)
            if self._use_tree and (self._tree or len(queries) >= MIN_QUERIES_TO_PRUNE):
                return self._by_tree(queries)
            tiles = self._useful_tiles(queries)
            if tiles is None:
                return self._dense(queries)
            step = max(MIN_GEMM_ROWS, _BOUND_BLOCK // tiles.count)
            return torch.cat([self._pruned(block, tiles) for block in queries.split(step)])

    def _batched(self, queries: Tensor, owner: Tensor | None) -> Tensor:
        """Queries of different maps, padded to the longest list."""
        if owner is None:
            raise ValueError(f"With {self.batch} maps each query needs its owner: pass the (Q,) map indices.")
        count = torch.bincount(owner, minlength=self.batch)
        place = torch.arange(len(owner), device=owner.device) - (count.cumsum(0) - count)[owner]
        padded = queries.new_zeros(self.batch, int(count.max()), queries.shape[1])
        padded[owner, place] = queries
        return dense_nearest(padded, self.points)[owner, place] + owner * self.size

    def _by_tree(self, queries: Tensor) -> Tensor:
        """Nearest points in space; `queries` and `points` carry a last channel that a tree does not need."""
        if bool(queries.isnan().any()) or bool(self.points.isnan().any()):
            raise ValueError(NAN_MESSAGE)
        self._tree = self._tree or KDTree(self.points[0, : self.size, :-1].numpy())
        distance, index = (np.asarray(a) for a in self._tree.query(queries[:, :-1].numpy(), k=2))
        found = torch.from_numpy(index[:, 0])
        tied = torch.from_numpy(distance[:, 0] == distance[:, 1])
        found[tied] = self._dense(queries[tied])
        return found

    def _dense(self, queries: Tensor) -> Tensor:
        """Look at every pixel."""
        if self._may_screen and len(queries) >= MIN_QUERIES_TO_SCREEN:
            self._screen = self._screen or Screen.build(self.points[0])
            return self._screen.nearest(queries)
        return dense_nearest(queries[None], self.points)[0]

    def _useful_tiles(self, queries: Tensor) -> Tiles | None:
        """The tiles, unless their bounds cost more than they save, as a few of the first queries show."""
        if self._must_prune and self._tiles is None:
            self._tiles = Tiles.build(self.maps[0])
        elif self._may_prune and self._tiles is None and len(queries) >= MIN_QUERIES_TO_PRUNE:
            self._tiles = _tiles_if_they_pay(self.maps[0], queries, self._max_survivors)
            self._may_prune = self._tiles is not None
        return self._tiles

    def _pruned(self, queries: Tensor, tiles: Tiles) -> Tensor:
        """Few tiles left: look into them. Many: look at everything."""
        survivors = tiles.survivors(queries)
        hard = survivors.sum(1, dtype=torch.int32) > self._max_survivors * tiles.count
        if not bool(hard.any()):
            return tiles.nearest(queries, survivors)
        found = torch.empty(len(queries), dtype=torch.int64)
        found[hard] = self._dense(queries[hard])
        found[~hard] = tiles.nearest(queries[~hard], survivors[~hard])
        return found


def _as_map_scores(maps: Tensor, dist: Distance) -> Tensor:
    """Descriptors in the form whose dot product with `_as_query_scores` ranks the candidates."""
    maps = maps.detach()
    if dist == "dot":
        return maps.to(_float_dtype(maps)).contiguous()
    maps = maps.to(_widest_dtype(maps))
    return torch.cat([maps, maps.square().sum(-1, keepdim=True).mul_(-0.5)], -1)


def _as_query_scores(queries: Tensor, dtype: torch.dtype, dist: Distance) -> Tensor:
    queries = queries.detach().to(dtype)
    return queries if dist == "dot" else F.pad(queries, (0, 1), value=1.0)


def _float_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _widest_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64


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
    points = _pad_to_runs(points)
    queries = F.pad(queries, (0, 0, 0, max(0, MIN_GEMM_ROWS - Q)))
    budget = _CPU_BLOCK if points.device.type == "cpu" else _DEVICE_BLOCK
    parts = -(-queries.shape[1] // max(MIN_GEMM_ROWS, budget // (B * RUN)))
    return torch.cat([_dense_block(part, points, budget) for part in queries.chunk(parts, 1)], 1)[:, :Q]


def _pad_to_runs(points: Tensor) -> Tensor:
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
    place[order] = _score_pairs(queries.flatten(0, 1), runs, order, block, "argmax")
    return run * RUN + place.view(B, Q)


def can_screen(maps: Tensor) -> bool:
    """Whether products of this tensor's device are faster in bfloat16 than in its own float32."""
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # torch offers no public question
    on_cpu = maps.device.type == "cpu" and maps.dtype == torch.float32
    return on_cpu and torch.backends.mkldnn.is_available() and native is not None and bool(native())


@dataclass(frozen=True)
class Screen:
    """A descriptor list rounded to bfloat16, to find out where the best match can be.

    Attributes:
        runs: (T, RUN, D) float32 descriptors.
        rounded: (T * RUN, D) bfloat16 the same.
        norm: largest norm of a descriptor.
        error: largest norm of what rounding took from one.
    """

    runs: Tensor
    rounded: Tensor
    norm: float
    error: float

    @classmethod
    def build(cls, points: Tensor) -> Screen:
        """Round (T * RUN, D) float32 descriptors."""
        rounded = points.bfloat16()
        norm, error = (float(v.norm(dim=1).max()) for v in (points, points - rounded.float()))
        return cls(points.view(-1, RUN, points.shape[1]), rounded, norm, error)

    def nearest(self, queries: Tensor) -> Tensor:
        """Best point (Q,) of each of the (Q, D) float32 queries; raises ValueError if a score is NaN."""
        rounded = queries.bfloat16()
        norm, lost = queries.norm(dim=1), (queries - rounded.float()).norm(dim=1)
        # |q.x - q'.x'| <= |q - q'| |x| + |q'| |x - x'|, and the score itself is rounded by at most 2^-8.
        wrong = lost * self.norm + (norm + lost) * (self.error + (self.norm + self.error) * _SCORE_ROUNDING)
        wrong += torch.finfo(torch.float32).tiny * queries.shape[1] * (1 + norm) * (1 + self.norm)
        if not bool(wrong.isfinite().all()):
            return dense_nearest(queries[None], self.runs.flatten(0, 1)[None])[0]
        parts = zip(queries.split(_SCREEN_ROWS), rounded.split(_SCREEN_ROWS), wrong.split(_SCREEN_ROWS))
        pixels = torch.arange(len(self.rounded)).view(-1, RUN)
        found = []
        for part, half, margin in parts:
            maxima = self._run_maxima(half)
            survivors = maxima >= (maxima.amax(1) - 2 * margin)[:, None]
            found.append(best_of_pairs(part, self.runs, pixels, survivors))
        return torch.cat(found)

    def _run_maxima(self, queries: Tensor) -> Tensor:
        """Largest score (Q, T) in every run, as float32; 0 where all are negative.

        Bit patterns of positive numbers are ordered like integers, whose maxima are faster.
        """
        count = len(self.runs)
        maxima = torch.empty(len(queries), count, dtype=torch.int16)
        step = max(1, _CPU_BLOCK // (len(queries) * RUN))
        buffer = queries.new_empty(len(queries) * step * RUN)
        for first in range(0, count, step):
            n = min(step, count - first)
            scores = buffer[: len(queries) * n * RUN].view(len(queries), n * RUN)
            torch.mm(queries, self.rounded[first * RUN : (first + n) * RUN].T, out=scores)
            runs = scores.view(torch.int16).view(len(queries), n, RUN)
            torch.amax(runs, 2, out=maxima[:, first : first + n])
        return maxima.clamp_(min=0).view(torch.bfloat16).float()


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


@dataclass(frozen=True)
class Tiles:
    """A descriptor map cut into tiles, with an affine model of each.

    Attributes:
        points: (T, P, D) descriptors of the P pixels of each tile, edge pixels repeated to fill the last
            tiles.
        pixels: (T, P) flat pixel index of each of them, increasing except for repeats.
        model: (T, 3, D) mean, then slope from centre to right edge, slope from centre to bottom edge.
        radius: (T,) largest norm of what the model leaves unexplained.
        norm: largest norm of a descriptor, for the rounding margin.
    """

    points: Tensor
    pixels: Tensor
    model: Tensor
    radius: Tensor
    norm: float

    @property
    def count(self) -> int:
        """Number of tiles T."""
        return len(self.points)

    @classmethod
    def build(cls, descriptors: Tensor) -> Tiles:
        """Cut an (H, W, D) map into tiles and fit the models."""
        H, W, _ = descriptors.shape
        th, tw = min(H, TILE), min(W, TILE)
        if th == 1:  # a plain list of descriptors: runs of it
            tw = min(W, TILE * TILE)
        points = _cut(_repeat_edges(descriptors, th, tw), th, tw)
        pixels = _cut(_repeat_edges(torch.arange(H * W).view(H, W, 1), th, tw), th, tw)[..., 0]
        model, radius = _fit_tiles(points, th, tw)
        if bool(radius.isnan().any()):
            raise ValueError(NAN_MESSAGE)
        return cls(points, pixels, model, radius, float(points.norm(dim=-1).max()))

    def survivors(self, queries: Tensor) -> Tensor:
        """Tiles (Q, T) bool that may hold the best match of each of the (Q, D) queries."""
        estimate = queries.new_empty(len(queries), self.count)
        for first in range(0, self.count, _MODEL_TILES):
            span = slice(first, first + _MODEL_TILES)
            _model_maxima(queries, self.model[span], out=estimate[:, span])
        likely = _argmax(estimate)
        order = likely.argsort(stable=True)
        reached = torch.empty_like(estimate[:, 0])
        reached[order] = _score_pairs(queries, self.points, order, likely[order], "amax")
        rounding = 4 * (queries.shape[1] + 16) * torch.finfo(queries.dtype).eps * self.norm
        if bool(reached.isnan().any()):
            raise ValueError(NAN_MESSAGE)
        bound = estimate.addcmul_(queries.norm(dim=1)[:, None], (self.radius + rounding)[None])
        return bound >= reached[:, None]

    def nearest(self, queries: Tensor, survivors: Tensor) -> Tensor:
        """Best pixel (Q,) of each query among the surviving tiles."""
        return best_of_pairs(queries, self.points, self.pixels, survivors)


def best_of_pairs(queries: Tensor, blocks: Tensor, pixels: Tensor, survivors: Tensor) -> Tensor:
    """Best pixel of each query among some blocks of descriptors, the lowest one of equals.

    Args:
        queries: (Q, D).
        blocks: (T, P, D).
        pixels: (T, P) flat pixel index of each descriptor.
        survivors: (Q, T) bool, at least one block per query.

    Returns:
        (Q,) int64 flat pixel index.
    """
    block, query = survivors.t().contiguous().nonzero(as_tuple=True)  # sorted by block
    score = _score_pairs(queries, blocks, query, block, "amax")
    best = torch.full_like(queries[:, 0], -torch.inf).scatter_reduce_(0, query, score, "amax")
    tied = score == best[query]
    block, query = block[tied], query[tied]
    pixel = pixels[block, _score_pairs(queries, blocks, query, block, "argmax")]
    first = torch.full((len(queries),), pixels.numel())
    return first.scatter_reduce_(0, query, pixel, "amin")


def _tiles_if_they_pay(descriptors: Tensor, queries: Tensor, max_survivors: float) -> Tiles | None:
    """Tiles of an (H, W, D) map, or None where the bounds would exclude little for these (Q, D) queries."""
    top = max(0, len(descriptors) // 2 - TILE)
    strip = Tiles.build(descriptors[top : top + TILE])  # one row of tiles shows whether the map is smooth
    if bool(strip.radius.median() >= MAX_ROUGHNESS * strip.norm):
        return None
    tiles = Tiles.build(descriptors)
    left = tiles.survivors(queries[:: max(1, len(queries) // 64)]).float().mean(1)
    pays = (left <= max_survivors).float().mean() >= MIN_EASY_QUERIES
    return tiles if bool(pays) else None


def _repeat_edges(image: Tensor, th: int, tw: int) -> Tensor:
    """An (H, W, D) map grown to whole tiles by repeating its last row and column."""
    H, W, _ = image.shape
    if H % th:
        image = image[torch.arange(H + -H % th).clamp_(max=H - 1)]
    if W % tw:
        image = image[:, torch.arange(W + -W % tw).clamp_(max=W - 1)]
    return image


def _cut(image: Tensor, th: int, tw: int) -> Tensor:
    """Tiles (T, th * tw, D) of an (H, W, D) map."""
    H, W, D = image.shape
    tiles = image.reshape(H // th, th, W // tw, tw, D).transpose(1, 2)
    return tiles.reshape(-1, th * tw, D)


def _fit_tiles(points: Tensor, th: int, tw: int) -> tuple[Tensor, Tensor]:
    """Least-squares affine model (T, 3, D) of each tile and the largest residual norm (T,)."""
    y = torch.linspace(-1, 1, th, dtype=points.dtype) if th > 1 else points.new_zeros(1)
    x = torch.linspace(-1, 1, tw, dtype=points.dtype) if tw > 1 else points.new_zeros(1)
    basis = torch.stack([torch.ones(th, tw, dtype=points.dtype), x.expand(th, tw), y[:, None].expand(th, tw)])
    basis = basis.flatten(1)  # (3, P), orthogonal rows
    fit = basis / basis.square().sum(1, keepdim=True).clamp(min=1)
    model = torch.matmul(fit, points)  # (T, 3, D)
    radius = torch.empty_like(points[:, 0, 0])
    for tiles in torch.arange(len(points)).split(1024):  # residuals in cache
        span = slice(int(tiles[0]), int(tiles[-1]) + 1)
        residual = torch.baddbmm(points[span], basis.t().expand(len(tiles), -1, -1), model[span], alpha=-1)
        radius[span] = residual.square_().sum(-1).amax(1).sqrt()
    return model, radius


def _model_maxima(queries: Tensor, model: Tensor, *, out: Tensor) -> None:
    """Write the largest dot product (Q, T) with the affine models (T, 3, D), reached in a corner."""
    terms = torch.mm(queries, model.transpose(0, 1).reshape(-1, model.shape[2]).t()).view(len(queries), 3, -1)
    terms[:, 1:].abs_()
    torch.add(terms[:, 0], terms[:, 1], out=out).add_(terms[:, 2])


def _argmax(x: Tensor, group: int = 32) -> Tensor:
    """`x.argmax(1)` for (Q, T), in two steps since maxima are fast and their places slow."""
    whole = x.shape[1] // group * group
    if whole < x.shape[1] or whole == 0:
        return x.argmax(1)
    groups = x.view(len(x), -1, group)
    best = groups.amax(2).argmax(1)
    return best * group + groups[torch.arange(len(x), device=x.device), best].argmax(1)


def _score_pairs(
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
