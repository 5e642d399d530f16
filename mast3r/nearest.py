"""Exact nearest neighbours between descriptor maps, at the speed of the matrix product.

The question is always the same: for some query descriptors, which pixel of a map is the best match? The
answer is exact, with ties going to the lowest pixel index. Four engines give it:

* dense (`mast3r.block_products`): every product, one maximum per query and run of pixels.
* tiles and copies (CPU, `mast3r.screen`): stand-ins, a quarter as many as pixels or in half precision, name the blocks
  that can hold the best match; those are multiplied. Queries for which that excludes too little go on to the next
  engine: tiles, copies, dense.
* k-d tree (CPU, "l2", up to 4 channels): points in space. Queries with more than one nearest point go to the
  dense engine, which knows which of them comes first.

Distances: "dot" maximises the dot product in the dtype of the map; "l2" minimises the Euclidean distance by
maximising `q.x - |x|^2 / 2`, in float64 wherever the device has it, so large coordinates lose nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import KDTree
from torch import Tensor

from mast3r.block_products import NAN_MESSAGE, best_of_pairs, dense_nearest, pad_to_runs
from mast3r.screen import BLOCK, Screen, can_screen, tiles_are_smooth

Distance = Literal["dot", "l2"]

MIN_QUERIES_TO_PRUNE = 256
"""Fewer queries than this do not pay for the models of the tiles."""

MIN_QUERIES_TO_ROUND = 64
"""Fewer queries than this do not pay for rounding the map."""

MAX_SURVIVORS = 0.4
"""Share of blocks left after screening above which the next engine is faster."""

MIN_EASY_QUERIES = 0.25
"""Share of queries whose blocks are mostly excluded below which tiles are not worth their time."""

MAX_TREE_CHANNELS = 4
"""Up to here a k-d tree beats products."""

_ROWS = 4096  # queries screened at once


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
        self.points = pad_to_runs(self.maps.flatten(1, 2))  # (B, N, D')
        one_on_cpu = self.batch == 1 and maps.device.type == "cpu"
        self._must_prune = one_on_cpu and prune is True
        self._may_prune = one_on_cpu and prune is None and min(self.height, self.width) >= BLOCK
        self._tiles: Screen | None = None
        self._may_round = self.batch == 1 and can_screen(self.maps)
        self._copies: Screen | None = None
        self._use_tree = one_on_cpu and prune is None and dist == "l2" and maps.shape[-1] <= MAX_TREE_CHANNELS
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
                return self._by_copies(queries)
            return self._screened(queries, tiles, self._by_copies)

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

    def _screened(self, queries: Tensor, screen: Screen, otherwise: Callable[[Tensor], Tensor]) -> Tensor:
        """Few blocks left: look into them. Many: try otherwise."""
        found = torch.empty(len(queries), dtype=torch.int64)
        hard = torch.zeros(len(queries), dtype=torch.bool)
        for rows in torch.arange(len(queries)).split(_ROWS):
            survivors = screen.survivors(queries[rows])
            hard[rows] = _many(survivors)
            easy = ~hard[rows]
            found[rows[easy]] = best_of_pairs(queries[rows[easy]], screen.blocks, screen.pixels, survivors[easy])
        if bool(hard.any()):
            found[hard] = otherwise(queries[hard])
        return found

    def _by_copies(self, queries: Tensor) -> Tensor:
        """Look at every pixel, in half precision where that is faster."""
        if not self._may_round or len(queries) < MIN_QUERIES_TO_ROUND:
            return self._dense(queries)
        self._copies = self._copies or Screen.of_points(self.points[0])
        return self._screened(queries, self._copies, self._dense)

    def _dense(self, queries: Tensor) -> Tensor:
        return dense_nearest(queries[None], self.points)[0]

    def _useful_tiles(self, queries: Tensor) -> Screen | None:
        """The tiles, unless their models cost more than they save, as a few of the first queries show."""
        if self._must_prune and self._tiles is None:
            self._tiles = Screen.of_map(self.maps[0])
        elif self._may_prune and self._tiles is None and len(queries) >= MIN_QUERIES_TO_PRUNE:
            self._tiles = _tiles_if_they_pay(self.maps[0], queries)
            self._may_prune = self._tiles is not None
        return self._tiles


def _tiles_if_they_pay(descriptors: Tensor, queries: Tensor) -> Screen | None:
    """Tiles of an (H, W, D) map, or None where their bounds would exclude little for these (Q, D) queries."""
    if not tiles_are_smooth(descriptors):
        return None
    tiles = Screen.of_map(descriptors)
    hard = _many(tiles.survivors(queries[:: max(1, len(queries) // 64)]))
    return tiles if bool((~hard).float().mean() >= MIN_EASY_QUERIES) else None


def _many(survivors: Tensor) -> Tensor:
    """Queries (Q,) for which more than `MAX_SURVIVORS` of their blocks (Q, T) are left."""
    return survivors.sum(1, dtype=torch.int32) > max(1, MAX_SURVIVORS * survivors.shape[1])


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
