"""All matches of a component as a few dense tensors, so that a step of the optimiser has no loop over pairs.

The matches of every pair are cut into rows of `ROW` matches. Whatever depends on the pair only (two cameras
make one 3 x 4 matrix) is computed once per pair and repeated per row, never per match; the rest is arithmetic
on (rows, 3, ROW) planes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mast3r.cloud_opt.canonical import CanonicalView
from mast3r.cloud_opt.observations import PairObservation

ROW = 64
"""Matches per row; the last row of a pair is padded with matches of weight zero."""


@dataclass(frozen=True, eq=False)
class PixelAnchors:
    """Pixels of one image with the anchors that carry their depth.

    Attributes:
        xy: (M, 2) pixels.
        anchor: (M,) int64 block of the image.
        offset: (M,) ratio of the pixel's depth to the anchor's.
    """

    xy: Tensor
    anchor: Tensor
    offset: Tensor

    def __len__(self) -> int:
        return len(self.anchor)


@dataclass(frozen=True, eq=False)
class AnchoredPair:
    """Matches of one pair between anchored pixels.

    Attributes:
        i: First image.
        j: Second image.
        first: (M) pixels of image i.
        second: (M) pixels of image j.
        weight: (M,) confidence.
    """

    i: int
    j: int
    first: PixelAnchors
    second: PixelAnchors
    weight: Tensor


@dataclass(frozen=True, eq=False)
class Fallback:
    """What stands in for the matches of a poorly matched pair: one network's points for pixels of the other.

    Attributes:
        i: Image whose pixels these are.
        j: Image in whose camera the network gave them.
        pixels: (M) pixels of image i.
        points: (M, 3) where they are in camera j, at the network's scale.
        weight: (M,) confidence.
    """

    i: int
    j: int
    pixels: PixelAnchors
    points: Tensor
    weight: Tensor


@dataclass(frozen=True, eq=False)
class ImageGeometry:
    """What alignment needs of each of N images.

    Attributes:
        size: (N, 2) float width and height in pixels.
        base_focal: (N,) focal at which the predicted depths and rays agree.
        median_depth: (N,) median depth of the anchors.
        depth: (B,) depth of all anchors of all images, divided by the image's median.
        blocks: Number of anchors of each image.
    """

    size: Tensor
    base_focal: Tensor
    median_depth: Tensor
    depth: Tensor
    blocks: tuple[int, ...]

    @classmethod
    def of(cls, size: Tensor, base_focal: Tensor, core_depth: Sequence[Tensor]) -> ImageGeometry:
        """From the depth of the anchors, one tensor per image."""
        median = torch.stack([depth.median() for depth in core_depth])
        relative = torch.cat([depth / middle for depth, middle in zip(core_depth, median)])
        return cls(size, base_focal, median, relative, tuple(len(depth) for depth in core_depth))

    @property
    def block_image(self) -> Tensor:
        """(B,) int64, the image of each anchor."""
        counts = torch.tensor(self.blocks, device=self.depth.device)
        return torch.repeat_interleave(torch.arange(len(self.blocks), device=self.depth.device), counts)

    @property
    def first_block(self) -> list[int]:
        """Number of anchors before each image's."""
        return np.cumsum([0, *self.blocks]).tolist()

    def to(self, dtype: torch.dtype) -> ImageGeometry:
        """In another precision."""
        size, focal, median, depth = (
            value.to(dtype) for value in (self.size, self.base_focal, self.median_depth, self.depth)
        )
        return ImageGeometry(size, focal, median, depth, self.blocks)


@dataclass(frozen=True, eq=False)
class PixelRows:
    """Pixels of many images in rows of `ROW`.

    Attributes:
        pixel: (C, 3, ROW) homogeneous pixels (x, y, 1).
        anchor: (C, ROW) int64 anchor among those of all images.
        slope: (C, ROW) offset - 1.
        image: (C,) int64 image of each row.
    """

    pixel: Tensor
    anchor: Tensor
    slope: Tensor
    image: Tensor


@dataclass(frozen=True, eq=False)
class MatchRows:
    """Matches of many pairs in rows: entries of `first` and `second` at the same place belong together.

    Attributes:
        first: Pixels of the first images.
        second: Pixels of the second images.
        weight: (C, ROW) confidence, 0 for padding.
        pair: (C,) int64 position of each row's pair.
        total: Sum of the weights.
    """

    first: PixelRows
    second: PixelRows
    weight: Tensor
    pair: Tensor
    total: Tensor


@dataclass(frozen=True, eq=False)
class FallbackRows:
    """Fallbacks of many pairs in rows.

    Attributes:
        pixels: Pixels of the images whose points were predicted.
        points: (C, 3, ROW) predictions in the other camera.
        weight: (C, ROW) confidence, 0 for padding.
        other: (C,) int64 image of that camera.
        total: Sum of the weights.
    """

    pixels: PixelRows
    points: Tensor
    weight: Tensor
    other: Tensor
    total: Tensor


@dataclass(frozen=True, eq=False)
class SparseProblem:
    """N connected images, ready to be aligned.

    Attributes:
        images: What is known of each image.
        pairs: (E, 2) int64 images of each pair.
        matches: All matches.
        fallback: What stands in for poor pairs; None if there are none.
    """

    images: ImageGeometry
    pairs: Tensor
    matches: MatchRows
    fallback: FallbackRows | None


def pack_problem(
    images: ImageGeometry, pairs: Sequence[AnchoredPair], fallbacks: Sequence[Fallback] = ()
) -> SparseProblem:
    """Put matches into rows.

    Args:
        images: The images.
        pairs: At least one pair with matches.
        fallbacks: What stands in for the matches of other pairs.

    Raises:
        ValueError: If there is neither a match nor a fallback.
    """
    if not pairs and not fallbacks:
        raise ValueError("Nothing connects the images: give at least one pair with matches.")
    device, dtype = images.depth.device, images.depth.dtype
    pairs = pairs or [_pair_without_matches(fallbacks[0])]
    edges = torch.tensor([(pair.i, pair.j) for pair in pairs], device=device).reshape(-1, 2)
    rows = _Rows([len(pair.weight) for pair in pairs], device)
    weight = rows.pack([pair.weight.to(dtype) for pair in pairs])
    matches = MatchRows(
        _pixel_rows(rows, images, [(pair.i, pair.first) for pair in pairs]),
        _pixel_rows(rows, images, [(pair.j, pair.second) for pair in pairs]),
        weight,
        rows.owner,
        _positive(weight.sum()),
    )
    return SparseProblem(images, edges, matches, _fallback_rows(images, fallbacks) if fallbacks else None)


def anchored_pairs(
    views: Mapping[int, CanonicalView] | Sequence[CanonicalView], pairs: Sequence[PairObservation]
) -> list[AnchoredPair]:
    """Look up the anchors of all matches.

    Args:
        views: The view of each image that occurs.
        pairs: Matches; those on pixels without usable depth are left out.
    """
    result = []
    for pair in pairs:
        sides = []
        usable = torch.ones(len(pair), dtype=torch.bool)
        for image, pixels in ((pair.i, pair.xy_i), (pair.j, pair.xy_j)):
            xy = torch.from_numpy(pixels).to(views[image].points)
            anchor, offset = views[image].offsets_at(xy)
            usable &= views[image].valid_at(xy).cpu() & (offset > 0).cpu()
            sides.append(PixelAnchors(xy, anchor, offset))
        first, second = (PixelAnchors(s.xy[usable], s.anchor[usable], s.offset[usable]) for s in sides)
        weight = torch.from_numpy(pair.confidence).to(first.offset.device)[usable]
        result.append(AnchoredPair(pair.i, pair.j, first, second, weight))
    return result


def _pair_without_matches(like: Fallback) -> AnchoredPair:
    none = PixelAnchors(like.pixels.xy[:0], like.pixels.anchor[:0], like.pixels.offset[:0])
    return AnchoredPair(like.i, like.j, none, none, like.weight[:0])


class _Rows:
    """Where the entries of several lists go when each is cut into rows."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        rows = [-(-length // ROW) for length in lengths]
        start = np.cumsum([0, *rows])[:-1] * ROW
        self.count = sum(rows)
        owner = np.repeat(np.arange(len(lengths)), rows)
        self.owner = torch.from_numpy(owner).to(device)
        places = [np.arange(length) + first for length, first in zip(lengths, start)]
        self._place = torch.from_numpy(np.concatenate([*places, np.zeros(0, np.int64)])).to(device)

    def pack(self, values: Sequence[Tensor], padding: float = 0.0) -> Tensor:
        """(C, ROW, ...) of lists of entries (M, ...)."""
        entries = torch.cat([value.to(self._place.device) for value in values])
        packed = entries.new_full((self.count * ROW, *entries.shape[1:]), padding)
        packed[self._place] = entries
        return packed.reshape(self.count, ROW, *entries.shape[1:])


def _pixel_rows(rows: _Rows, images: ImageGeometry, sides: Sequence[tuple[int, PixelAnchors]]) -> PixelRows:
    dtype, first_block = images.depth.dtype, images.first_block
    xy = rows.pack([side.xy.to(dtype) for _, side in sides]).transpose(1, 2)
    pixel = torch.cat([xy, torch.ones_like(xy[:, :1])], dim=1).contiguous()
    # Padding points at anchor 0 of image 0, whose depth is positive: with weight 0 it has no effect.
    anchor = rows.pack([side.anchor + first_block[image] for image, side in sides])
    slope = rows.pack([(side.offset - 1).to(dtype) for _, side in sides])
    owners = torch.tensor([image for image, _ in sides], device=rows.owner.device)
    return PixelRows(pixel, anchor, slope, owners[rows.owner])


def _fallback_rows(images: ImageGeometry, fallbacks: Sequence[Fallback]) -> FallbackRows:
    device, dtype = images.depth.device, images.depth.dtype
    rows = _Rows([len(fallback.weight) for fallback in fallbacks], device)
    weight = rows.pack([fallback.weight.to(dtype) for fallback in fallbacks])
    points = rows.pack([fallback.points.to(dtype) for fallback in fallbacks]).transpose(1, 2).contiguous()
    others = torch.tensor([fallback.j for fallback in fallbacks], device=device)
    pixels = _pixel_rows(rows, images, [(fallback.i, fallback.pixels) for fallback in fallbacks])
    return FallbackRows(pixels, points, weight, others[rows.owner], _positive(weight.sum()))


def _positive(total: Tensor) -> Tensor:
    return total.clamp(min=torch.finfo(total.dtype).tiny)
