"""Where the best match of a query can be, from stand-ins that cost a fraction of the product.

A block of descriptors is represented by stand-ins whose best score is, up to a known margin, an upper bound of every
score inside. Blocks whose bound does not reach a score already found are never multiplied; the others are, in full
precision, so that the answer is exact. Two kinds of stand-ins:

* tiles (`Screen.of_map`): descriptor maps are smooth. An affine model of every 4 x 4 tile is largest in one of its
  corners, and the norm of what it leaves unexplained bounds the rest: four stand-ins for sixteen pixels, with that norm
  as one more channel beside the norm of the query.
* copies (`Screen.of_points`): each descriptor stands for itself, rounded to half precision.

Where the CPU multiplies bfloat16 natively, stand-ins of both kinds are rounded to it; the margin covers what is lost.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mast3r.block_products import RUN, score_pairs

TILE = 4
"""Side in pixels of the tiles that have a model."""

BLOCK = 16
"""Side in pixels of the blocks that are multiplied or not."""

MAX_ROUGHNESS = 0.8
"""Unexplained part of a tile, relative to the norm of descriptors, above which its bound says nothing."""

_GUESSES = 6  # blocks multiplied to find out which others cannot win
_SCORES = 1 << 21  # scores held at once: 4 MB in half precision


def can_screen(maps: Tensor) -> bool:
    """Whether products of this tensor's device are faster in bfloat16 than in its own float32."""
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # torch offers no public question
    on_cpu = maps.device.type == "cpu" and maps.dtype == torch.float32
    return on_cpu and torch.backends.mkldnn.is_available() and native is not None and bool(native())


@dataclass(frozen=True)
class Screen:
    """Blocks of descriptors and their stand-ins.

    Attributes:
        blocks: (T, P, D) descriptors, float32 or float64.
        pixels: (T, P) flat pixel index of each, increasing except for repeats.
        standins: (T * S, K) S stand-ins of each block; K is D, or D + 1 where the last channel is a radius.
        norm: largest norm of a stand-in before rounding.
        error: largest norm of what rounding took from one.
    """

    blocks: Tensor
    pixels: Tensor
    standins: Tensor
    norm: float
    error: float

    @classmethod
    def of_points(cls, points: Tensor) -> Screen:
        """Copies of a (T * RUN, D) list in half precision."""
        blocks = points.view(-1, RUN, points.shape[1])
        return cls._rounded(blocks, torch.arange(len(points)).view(-1, RUN), points, torch.bfloat16)

    @classmethod
    def of_map(cls, descriptors: Tensor) -> Screen:
        """Tiles of an (H, W, D) map."""
        H, W, _ = descriptors.shape
        blocks = _cut(_repeat_edges(descriptors))
        pixels = _cut(_repeat_edges(torch.arange(H * W).view(H, W, 1)))[..., 0]
        dtype = torch.bfloat16 if can_screen(descriptors) else descriptors.dtype
        return cls._rounded(blocks, pixels, _tile_corners(blocks), dtype)

    @classmethod
    def _rounded(cls, blocks: Tensor, pixels: Tensor, standins: Tensor, dtype: torch.dtype) -> Screen:
        rounded = standins.to(dtype)
        norm, error = (float(v.norm(dim=1).max()) for v in (standins, standins - rounded.to(standins.dtype)))
        return cls(blocks, pixels, rounded, norm, error)

    def survivors(self, queries: Tensor) -> Tensor:
        """Blocks (Q, T) bool that may hold the best match of each of the (Q, D) queries; all if numbers overflow."""
        norm = queries.norm(dim=1, keepdim=True)
        lifted = self.standins.shape[1] > queries.shape[1]
        full = torch.cat([queries, norm], 1) if lifted else queries
        rounded = full.to(self.standins.dtype)
        margin = self._margin(full, rounded)
        bound = self._block_maxima(rounded)
        reached = self._reached(queries, bound)
        return (bound + margin[:, None] >= reached[:, None]) | ~margin.isfinite()[:, None]

    def _reached(self, queries: Tensor, bound: Tensor) -> Tensor:
        """A score (Q,) that each query reaches, the best one in its most promising blocks."""
        likely = bound.topk(min(_GUESSES, bound.shape[1]), 1, sorted=False).indices
        block, order = likely.flatten().sort(stable=True)
        query = order // likely.shape[1]
        score = score_pairs(queries, self.blocks, query, block, "amax")
        return torch.full_like(bound[:, 0], -torch.inf).scatter_reduce_(0, query, score, "amax")

    def _margin(self, full: Tensor, rounded: Tensor) -> Tensor:
        """What a bound (Q,) may be too low by.

        |q.x - q'.x'| <= |q - q'| |x| + |q'| |x - x'|, then the rounding of the score and of its sum.
        """
        numbers = torch.finfo(full.dtype)
        half = 2.0**-8 if rounded.dtype == torch.bfloat16 else 0.0
        rounding = half + 4 * (full.shape[1] + 16) * numbers.eps
        norm, lost = full.norm(dim=1), (full - rounded.to(full.dtype)).norm(dim=1)
        margin = lost * self.norm + (norm + lost) * (self.error + (self.norm + self.error) * rounding)
        return margin + numbers.tiny * full.shape[1] * (1 + norm) * (1 + self.norm)

    def _block_maxima(self, queries: Tensor) -> Tensor:
        """Largest score (Q, T) of the stand-ins of every block; in half precision 0 where all are negative."""
        size = len(self.standins) // len(self.blocks)
        step = max(1, _SCORES // (len(queries) * size))
        buffer = queries.new_empty(len(queries) * step * size)
        half = queries.dtype == torch.bfloat16
        number = torch.int16 if half else queries.dtype
        maxima = torch.empty(len(queries), len(self.blocks), dtype=number)
        for first, part in enumerate(self.standins.split(step * size)):
            scores = buffer[: len(queries) * len(part)].view(len(queries), len(part))
            torch.mm(queries, part.T, out=scores)
            # Bit patterns of positive numbers are ordered like integers, whose maxima are faster.
            runs = scores.view(number).view(len(queries), -1, size)
            torch.amax(runs, 2, out=maxima[:, first * step : first * step + runs.shape[1]])
        return maxima.clamp_(min=0).view(torch.bfloat16).float() if half else maxima


def tiles_are_smooth(descriptors: Tensor) -> bool:
    """Whether tiles are worth their models, as the middle of an (H, W, D) map shows."""
    top = max(0, (len(descriptors) - BLOCK) // 2)
    corners = _tile_corners(_cut(_repeat_edges(descriptors[top : top + BLOCK])))
    return bool(corners[:, -1].median() < MAX_ROUGHNESS * corners[:, :-1].norm(dim=1).median())


def _repeat_edges(image: Tensor) -> Tensor:
    """An (H, W, D) map grown to whole blocks by repeating its last row and column."""
    H, W, _ = image.shape
    if H % BLOCK:
        image = image[torch.arange(H + -H % BLOCK).clamp_(max=H - 1)]
    if W % BLOCK:
        image = image[:, torch.arange(W + -W % BLOCK).clamp_(max=W - 1)]
    return image


def _cut(image: Tensor) -> Tensor:
    """Blocks (T, BLOCK^2, D) of an (H, W, D) map, pixels of a block row by row."""
    H, W, D = image.shape
    blocks = image.reshape(H // BLOCK, BLOCK, W // BLOCK, BLOCK, D).transpose(1, 2)
    return blocks.reshape(-1, BLOCK * BLOCK, D)


def _tile_corners(blocks: Tensor) -> Tensor:
    """Corners of the affine model of each tile, and its radius: (T * 4 * tiles, D + 1), block by block.

    The radius is the largest norm of what the model leaves unexplained at a pixel of the tile.
    """
    n, D = BLOCK // TILE, blocks.shape[2]
    tiles = blocks.view(-1, n, TILE, n, TILE, D).transpose(2, 3).reshape(-1, TILE * TILE, D)
    ramp = torch.linspace(-1, 1, TILE, dtype=blocks.dtype)
    y, x = torch.meshgrid(ramp, ramp, indexing="ij")
    basis = torch.stack([torch.ones_like(x), x, y]).flatten(1)  # (3, TILE^2), orthogonal rows
    fit = basis / basis.square().sum(1, keepdim=True)
    signs = blocks.new_tensor([[1, -1, -1], [1, 1, -1], [1, -1, 1], [1, 1, 1]])
    unexplained = torch.eye(TILE * TILE, dtype=blocks.dtype) - basis.T @ fit
    radius = torch.cat([(unexplained @ part).square().sum(2).amax(1).sqrt() for part in tiles.split(1024)])
    corners = (signs @ fit) @ tiles  # (tiles, 4, D)
    return torch.cat([corners, radius[:, None, None].expand(-1, 4, 1)], 2).flatten(0, 1)
