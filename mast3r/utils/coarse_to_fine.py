"""Which windows of two large images to match at full resolution, decided from a few coarse matches.

A grid of overlapping windows is laid over each image. The matches inside a window say where its partner in
the other image lies. Window pairs that explain many matches near their centres are taken greedily until most
of the matches are covered (MASt3R, section 3.4). Boxes are (left, top, right, bottom) in pixels, right and
bottom exclusive; shapes are (height, width); positions are (x, y).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, vstack

WINDOW_MULTIPLE = 16
"""Window sides are multiples of this, the patch size of the networks."""

_FREE_ASPECT = 3.01 / 4  # short over long side of windows without a forced resolution
_MIN_SPREAD = 20.0  # pixels: extents below this say nothing about relative scale


@dataclass(frozen=True)
class WindowConfig:
    """How large images are cut into windows.

    Attributes:
        size: longer side of a window in pixels, the resolution the network was trained for.
        overlap: fraction of a window shared with its neighbour, in [0, 1).
        coverage: fraction of the coarse matches' weight to cover before no more pairs are taken, in (0, 1].
        min_matches: windows with fewer coarse matches are not considered.

    Raises:
        ValueError: a value is out of range.
    """

    size: int = 512
    overlap: float = 0.5
    coverage: float = 0.9
    min_matches: int = 10

    def __post_init__(self) -> None:
        if self.size < WINDOW_MULTIPLE:
            raise ValueError(f"size must be at least {WINDOW_MULTIPLE} pixels, got {self.size}.")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap must be at least 0 and below 1, got {self.overlap}.")
        if not 0 < self.coverage <= 1:
            raise ValueError(f"coverage must be above 0 and at most 1, got {self.coverage}.")
        if self.min_matches < 1:
            raise ValueError(f"min_matches must be at least 1, got {self.min_matches}.")


@dataclass(frozen=True, eq=False)
class WindowPairs:
    """Candidate pairs of windows.

    Attributes:
        boxes0: (M, 4) int64 windows in image 0.
        boxes1: (M, 4) int64 their partners in image 1.
        scores: (M, N) sparse weight of each of the N coarse matches in each pair, in [0, 1]; a match lies in
            few windows.
    """

    boxes0: np.ndarray
    boxes1: np.ndarray
    scores: csr_matrix

    def __len__(self) -> int:
        return len(self.boxes0)

    @property
    def weights(self) -> np.ndarray:
        """(M, N) the scores as a plain array."""
        return self.scores.toarray()

    def swapped(self) -> WindowPairs:
        """The same pairs with the images exchanged."""
        return WindowPairs(self.boxes1, self.boxes0, self.scores)

    def extended(self, other: WindowPairs) -> WindowPairs:
        """These pairs followed by others over the same matches."""
        boxes0, boxes1 = (np.concatenate([getattr(self, n), getattr(other, n)]) for n in ("boxes0", "boxes1"))
        return WindowPairs(boxes0, boxes1, csr_matrix(vstack([self.scores, other.scores])))


def window_starts(total: int, window: int, overlap: float) -> np.ndarray:
    """Evenly spread positions of windows that cover a side, at least `overlap` shared by neighbours.

    Args:
        total: length of the image side in pixels.
        window: length of the window in pixels.
        overlap: shared fraction, in [0, 1).

    Returns:
        (n,) int64 first pixels, from 0 to total - window.
    """
    count = 2 + int((total - window - 1) // (window * (1 - overlap)))
    return np.round(np.linspace(0, max(0, total - window), max(1, count))).astype(np.int64)


def window_grid(shape: Sequence[int], size: int, overlap: float) -> np.ndarray:
    """Overlapping windows with the image's aspect ratio, row by row.

    Args:
        shape: (height, width) of the image.
        size: longer side of a window in pixels; the shorter one is rounded down to a multiple of 16.
        overlap: shared fraction of neighbours.

    Returns:
        (n, 4) int64 boxes.
    """
    height, width = (_window_side(side, size, max(shape[:2])) for side in shape[:2])
    tops, lefts = (window_starts(t, w, overlap) for t, w in zip(shape[:2], (height, width)))
    top, left = (axis.ravel() for axis in np.meshgrid(tops, lefts, indexing="ij"))
    return np.stack([left, top, left + width, top + height], 1)


def _window_side(side: int, size: int, longest: int) -> int:
    rounded = side * size // longest // WINDOW_MULTIPLE * WINDOW_MULTIPLE
    return min(side, max(WINDOW_MULTIPLE, rounded))


def normalise_windows(boxes: np.ndarray, shape: Sequence[int], resolution: tuple[int, int] | None = None) -> np.ndarray:
    """Give windows the size the network wants, keep their centres, move them inside the image.

    Args:
        boxes: (n, 4) boxes, possibly fractional.
        shape: (height, width) of the image.
        resolution: (height, width) of the result; None keeps the longer side and makes the aspect 4:3.

    Returns:
        (n, 4) int64 boxes.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    corner, end = boxes[:, :2], boxes[:, 2:]
    size = _free_size(end - corner) if resolution is None else np.broadcast_to(resolution[::-1], corner.shape)
    centre = (corner + end) / 2
    corner, end = np.floor(centre - size / 2), np.floor(centre + size / 2)
    corner += (end - corner) - size  # flooring both ends may have made the window a pixel too large
    shift = np.maximum(0, -corner)
    corner, end = corner + shift, end + shift
    shift = np.maximum(0, end - np.array(shape[1::-1]))
    return np.concatenate([corner - shift, end - shift], 1).astype(np.int64)


def _free_size(size: np.ndarray) -> np.ndarray:
    """(n, 2) widths and heights with the same longer side and an aspect of 4:3."""
    longest = size.max(1, keepdims=True)
    return np.where(size == longest, longest, np.floor(longest * _FREE_ASPECT))


def inside(box: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Which points (N, 2) lie in a box (4,): (N,) bool."""
    return np.all((xy >= box[:2]) & (xy < box[2:]), axis=1)


def partner_window(box: np.ndarray, xy: np.ndarray, xy_other: np.ndarray) -> np.ndarray:
    """Where the content of a window lies in the other image.

    Args:
        box: (4,) window.
        xy: (N, 2) matched points inside it.
        xy_other: (N, 2) their matches in the other image.

    Returns:
        (4,) fractional box around the mean of the matches, scaled by the ratio of both 10-90 % ranges.
    """
    spread, spread_other = (
        np.maximum(_MIN_SPREAD, np.ptp(np.percentile(p, (10, 90), axis=0), axis=0)) for p in (xy, xy_other)
    )
    size = (box[2:] - box[:2]) * spread_other / spread
    centre = xy_other.mean(0)
    return np.concatenate([centre - size / 2, centre + size / 2])


def centrality(box: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """exp(-2 d^2) for points (N, 2), d being the offset from the box's centre in units of its size: (N,)."""
    offset = (xy - (box[:2] + box[2:]) / 2) / (box[2:] - box[:2])
    return np.exp(-2 * np.square(offset).sum(1))


def score_windows(
    boxes: np.ndarray,
    xy: np.ndarray,
    xy_other: np.ndarray,
    shape_other: Sequence[int],
    resolution_other: tuple[int, int] | None = None,
    min_matches: int = 10,
) -> WindowPairs:
    """Find the partner of each window and weigh the matches that the pair explains.

    Args:
        boxes: (n, 4) windows of one image.
        xy: (N, 2) coarse matches in that image.
        xy_other: (N, 2) in the other image.
        shape_other: (height, width) of the other image.
        resolution_other: (height, width) of windows there, see `normalise_windows`.
        min_matches: windows with fewer matches are left out.

    Returns:
        The remaining windows as `boxes0`, their partners as `boxes1`, and the weights.
    """
    members = list(_members(boxes, xy))
    enough = np.array([len(m) >= min_matches for m in members], dtype=bool)
    boxes, members = boxes[enough], [m for m, kept in zip(members, enough) if kept]
    partners = [partner_window(box, xy[m], xy_other[m]) for box, m in zip(boxes, members)]
    others = normalise_windows(np.array(partners).reshape(-1, 4), shape_other, resolution_other)
    weights = [centrality(b, xy[m]) * centrality(o, xy_other[m]) for b, o, m in zip(boxes, others, members)]
    starts = np.cumsum([0, *(len(m) for m in members)])
    entries = (np.concatenate([*weights, []]), np.concatenate([*members, np.zeros(0, dtype=np.int64)]), starts)
    return WindowPairs(boxes, others, csr_matrix(entries, shape=(len(boxes), len(xy))))


def _members(boxes: np.ndarray, xy: np.ndarray) -> Iterator[np.ndarray]:
    """Increasing positions of the points (N, 2) in each box (n, 4)."""
    by_row = np.argsort(xy[:, 1], kind="stable")
    rows = xy[by_row, 1]
    for box in boxes:
        first, last = np.searchsorted(rows, (box[1], box[3]))
        near = np.sort(by_row[first:last])
        yield near[inside(box, xy[near])]


def greedy_selection(corres_weights: np.ndarray, target: float = 0.9) -> list[int]:
    """Rows that together cover most of what all rows cover (official name).

    Args:
        corres_weights: (M, N) weight of each match in each candidate.
        target: fraction of the sum over matches of the best weight at which to stop.

    Returns:
        Candidate indices in the order in which they were taken.
    """
    return _cover(csr_matrix(np.asarray(corres_weights, dtype=np.float64)), target)


def _cover(scores: csr_matrix, target: float) -> list[int]:
    """`greedy_selection` of sparse scores."""
    if scores.nnz == 0:
        return []
    left = np.array(scores.data, dtype=np.float64)
    row_start, column = scores.indptr.astype(np.int64), scores.indices
    count, width = len(row_start) - 1, int(column.max()) + 1
    row = np.repeat(np.arange(count), np.diff(row_start))
    by_column = np.argsort(column, kind="stable")
    column_start = np.searchsorted(column[by_column], np.arange(width + 1))
    sums = np.bincount(row, left, count)
    best_of_column = np.zeros(width)
    np.maximum.at(best_of_column, column, left)
    wanted, covered, chosen = target * best_of_column.sum(), 0.0, []
    while covered < wanted:
        best = int(sums.argmax())
        if sums[best] <= 0:
            break
        chosen.append(best)
        covered += sums[best]
        span = slice(row_start[best], row_start[best + 1])
        there = column[span]
        sharers = column_start[there + 1] - column_start[there]
        entries = by_column[_ranges(column_start[there], sharers)]
        left[entries] = np.maximum(0, left[entries] - np.repeat(left[span], sharers))
        touched = np.unique(row[entries])  # few: windows see their own part of the image
        length = row_start[touched + 1] - row_start[touched]
        sums[touched] = np.add.reduceat(left[_ranges(row_start[touched], length)], np.cumsum(length) - length)
    return chosen


def _ranges(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """The numbers start[i], ..., start[i] + length[i] - 1 of all i, one after the other."""
    end = np.cumsum(length)
    return np.arange(end[-1] if len(end) else 0) + np.repeat(start - (end - length), length)


def select_window_pairs(
    shape0: Sequence[int],
    shape1: Sequence[int],
    xy0: np.ndarray,
    xy1: np.ndarray,
    config: WindowConfig | None = None,
    *,
    resolution0: tuple[int, int] | None = None,
    resolution1: tuple[int, int] | None = None,
    scale: tuple[float, float] = (1.0, 1.0),
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of windows worth matching at full resolution.

    Args:
        shape0: (height, width) of image 0.
        shape1: (height, width) of image 1.
        xy0: (N, 2) coarse matches in image 0, in its pixels.
        xy1: (N, 2) in image 1.
        config: see `WindowConfig`.
        resolution0: (height, width) of windows in image 0; None keeps the longer side and makes them 4:3.
        resolution1: the same for image 1.
        scale: factors on `config.size` for both images, for windows that are reduced before they are matched.

    Returns:
        (box in image 0, box in image 1) pairs, most useful first; none if no window has enough matches.
    """
    config = config or WindowConfig()
    xy0, xy1 = (np.asarray(xy, dtype=np.float64).reshape(-1, 2) for xy in (xy0, xy1))
    if len(xy0) != len(xy1):
        raise ValueError(f"Both sides need the same number of coarse matches, got {len(xy0)} and {len(xy1)}.")
    sides = [round(config.size * factor) for factor in scale]
    grid0, grid1 = (window_grid(shape, side, config.overlap) for shape, side in zip((shape0, shape1), sides))
    grid0, grid1 = (
        normalise_windows(grid0, shape0, resolution0),
        normalise_windows(grid1, shape1, resolution1),
    )
    forward = score_windows(grid0, xy0, xy1, shape1, resolution1, config.min_matches)
    backward = score_windows(grid1, xy1, xy0, shape0, resolution0, config.min_matches)
    candidates = forward.extended(backward.swapped())
    chosen = _cover(candidates.scores, config.coverage)
    return [(candidates.boxes0[i], candidates.boxes1[i]) for i in chosen]


# Official entry points --------------------------------------------------------------------------------------


def crop_slice(cell: Sequence[int]) -> tuple[slice, slice]:
    """Rows and columns of a box (left, top, right, bottom), to index an image with (official name)."""
    left, top, right, bottom = (int(edge) for edge in cell)
    return slice(top, bottom), slice(left, right)


def select_pairs_of_crops(
    img_q: Any,
    img_b: Any,
    pos2d_in_query: Any,
    pos2d_in_ref: Any,
    maxdim: int = 512,
    overlap: float = 0.5,
    forced_resolution: Sequence[Any] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, Callable[..., tuple[str, str]]]]:
    """Pairs of crops worth matching (official signature; see `select_window_pairs`).

    Args:
        img_q: query image, an array (H, W, ...).
        img_b: map image, likewise.
        pos2d_in_query: (N, 2) coarse matches in the query image.
        pos2d_in_ref: (N, 2) in the map image.
        maxdim: longer side of a crop.
        overlap: fraction shared by neighbouring crops.
        forced_resolution: (height, width) of all crops, or one such pair for each image; None for free 4:3.

    Yields:
        Box in the query, box in the map image, and a function that turns two names into two crop names.
    """
    resolution_q, resolution_b = _two_resolutions(forced_resolution)
    pairs = select_window_pairs(
        img_q.shape[:2],
        img_b.shape[:2],
        np.asarray(pos2d_in_query),
        np.asarray(pos2d_in_ref),
        WindowConfig(size=maxdim, overlap=overlap),
        resolution0=resolution_q,
        resolution1=resolution_b,
    )
    for box_q, box_b in pairs:
        yield box_q, box_b, partial(_crop_names, box_q, box_b)


def _two_resolutions(forced: Sequence[Any] | None) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """One (height, width) for each image from one, two or none."""
    if forced is None:
        return None, None
    first, second = (forced, forced) if isinstance(forced[0], (int, np.integer)) else forced
    return (int(first[0]), int(first[1])), (int(second[0]), int(second[1]))


def _crop_names(box_q: np.ndarray, box_b: np.ndarray, *names: Any) -> tuple[str, str]:
    """Names like `image[top:bottom,left:right]`, from two names or one pair of names."""
    name_q, name_b = names if len(names) == 2 else names[0]
    return _crop_name(name_q, box_q), _crop_name(name_b, box_b)


def _crop_name(name: Any, box: np.ndarray) -> str:
    left, top, right, bottom = box
    return f"{name}[{top}:{bottom},{left}:{right}]"
