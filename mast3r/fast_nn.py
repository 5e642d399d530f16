"""Reciprocal nearest neighbours between two descriptor maps.

Start pixels of image 0 jump to their best match in image 1 and back until they stay where they are. Most end
after two or three rounds in a pair of pixels that are each other's best match (MASt3R, section 3.3).
`match_reciprocal` and `match_reciprocal_batch` are the typed core; the other public functions are the
official entry points on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mast3r.nearest import Distance, NearestSearch

MAX_ROUNDS = 10
"""Rounds there and back after which a start pixel that still moves is given up."""

ArrayLike = np.ndarray | Tensor


@dataclass(frozen=True)
class ReciprocalMatches:
    """Matches between two maps as flat pixel indices.

    Attributes:
        index0: (N,) int64 pixel y * W0 + x in map 0, sorted.
        index1: (N,) int64 pixel y * W1 + x in map 1.
        basin: (H0 * W0,) int64 pixel of map 0 that each visited pixel moved to, -1 where never visited; None
            unless asked for.
    """

    index0: Tensor
    index1: Tensor
    basin: Tensor | None = None


class ReciprocalSearch:
    """Both directions of the best-match function between two maps, each entry computed at most once.

    Args:
        map0: (H0, W0, D) or (B, H0, W0, D) descriptors of image 0.
        map1: the same for image 1.
        dist: "dot" or "l2".

    Indices are flat over the batch: b * H * W + y * W + x.
    """

    def __init__(self, map0: Tensor, map1: Tensor, *, dist: Distance = "dot"):
        map0, map1 = (m if m.ndim == 4 else m[None] for m in (map0, map1))
        if len(map0) != len(map1) or map0.shape[-1] != map1.shape[-1]:
            raise ValueError(
                "Both sides need the same number of maps and descriptor channels, "
                f"got {tuple(map0.shape)} and {tuple(map1.shape)}."
            )
        self._maps = (map0.flatten(0, 2), map1.flatten(0, 2))
        self._search = (NearestSearch(map0, dist=dist), NearestSearch(map1, dist=dist))
        self._known = tuple(torch.full((len(m),), -1, device=m.device) for m in self._maps)

    @property
    def asked(self) -> tuple[int, int]:
        """How many pixels of map 0 and of map 1 have been looked up so far."""
        return int((self._known[0] >= 0).sum()), int((self._known[1] >= 0).sum())

    def best_in_1(self, index0: Tensor) -> Tensor:
        """Best match in map 1 of pixels of map 0: (K,) -> (K,) flat indices."""
        return self._look_up(0, index0)

    def best_in_0(self, index1: Tensor) -> Tensor:
        """Best match in map 0 of pixels of map 1: (K,) -> (K,) flat indices."""
        return self._look_up(1, index1)

    def reversed(self) -> ReciprocalSearch:
        """The same search with the two images exchanged, sharing what is already known."""
        other = object.__new__(ReciprocalSearch)
        other._maps, other._search, other._known = self._maps[::-1], self._search[::-1], self._known[::-1]
        return other

    def _look_up(self, side: int, index: Tensor) -> Tensor:
        known = self._known[side]
        missing = index[known[index] < 0].unique()
        if len(missing):
            owner = missing // self._search[side].size
            known[missing] = self._search[1 - side](self._maps[side][missing], owner)
        return known[index]

    def follow(self, start: Tensor, *, max_rounds: int = MAX_ROUNDS, basin: bool = False) -> Walk:
        """Walk from start pixels of map 0 until they are reciprocal or `max_rounds` have passed."""
        here, there = start.clone(), torch.full_like(start, -1)
        moved_to = torch.full_like(self._known[0], -1) if basin else None
        active = torch.arange(len(start), device=start.device)
        for _ in range(max_rounds):
            if len(active) == 0:
                break
            old = here[active]
            there[active] = self.best_in_1(old)
            new = self.best_in_0(there[active])
            if moved_to is not None:
                moved_to[old] = new
            here[active] = new
            active = active[new != old]
        settled = torch.ones_like(start, dtype=torch.bool)
        settled[active] = False
        return Walk(here, there, settled, moved_to)


@dataclass(frozen=True)
class Walk:
    """Where start pixels ended.

    Attributes:
        here: (K,) int64 last pixel in map 0.
        there: (K,) int64 last pixel in map 1.
        settled: (K,) bool, whether the two are each other's best match.
        basin: see `ReciprocalMatches`.
    """

    here: Tensor
    there: Tensor
    settled: Tensor
    basin: Tensor | None


def match_reciprocal(
    map0: Tensor,
    map1: Tensor,
    *,
    start: int | Tensor = 8,
    pixel_tol: float = 0,
    dist: Distance = "dot",
    basin: bool = False,
) -> ReciprocalMatches:
    """Find pixels of two descriptor maps that are each other's best match.

    Args:
        map0: (H0, W0, D) descriptors of image 0, on any device.
        map1: (H1, W1, D) descriptors of image 1, same device.
        start: spacing in pixels of the start grid, or (K, 2) integer start pixels (x, y) of image 0. Grid
            points may walk to a better place (10 rounds), given pixels may not (1 round).
        pixel_tol: with given start pixels, also keep those whose way back ends less than this many pixels
            away.
        dist: "dot" for normalised descriptors, "l2" for points.
        basin: also return where each visited pixel moved to.

    Returns:
        Distinct matches sorted by pixel of map 0.

    Raises:
        ValueError: shapes do not fit, start pixels lie outside the image, or a tolerance is given with a
            grid.
    """
    search = ReciprocalSearch(map0, map1, dist=dist)
    return _match(search, _start_pixels(map0.shape, start, map0.device), map0.shape[1], start, pixel_tol, basin)


def match_reciprocal_batch(
    maps0: Sequence[Tensor] | Tensor,
    maps1: Sequence[Tensor] | Tensor,
    *,
    subsample: int = 8,
    dist: Distance = "dot",
    both_ways: bool = False,
) -> list[ReciprocalMatches]:
    """`match_reciprocal` from a start grid for many pairs of maps.

    On a CPU pairs follow each other, since one pair already fills the cache; on an accelerator pairs of equal
    size advance together, so that small maps do not wait for launches.

    Args:
        maps0: B maps (H0, W0, D).
        maps1: B maps (H1, W1, D).
        subsample: spacing of the start grid in pixels.
        dist: "dot" or "l2".
        both_ways: also start from the grid of the second map.

    Returns:
        One result per pair, in order.
    """
    if len(maps0) != len(maps1):
        raise ValueError(f"Need as many maps for image 0 as for image 1, got {len(maps0)} and {len(maps1)}.")
    results: list[ReciprocalMatches | None] = [None] * len(maps0)
    for pairs in _pairs_together(maps0, maps1):
        batch0, batch1 = (torch.stack([m[i] for i in pairs]) for m in (maps0, maps1))
        for i, found in zip(pairs, _match_together(batch0, batch1, subsample, dist, both_ways)):
            results[i] = found
    return [r for r in results if r is not None]


def _pairs_together(maps0: Sequence[Tensor] | Tensor, maps1: Sequence[Tensor] | Tensor) -> list[list[int]]:
    """Pair indices that are matched in one batch."""
    groups: dict[Any, list[int]] = {}
    for i, (a, b) in enumerate(zip(maps0, maps1)):
        groups.setdefault(i if a.device.type == "cpu" else (a.shape, b.shape), []).append(i)
    return list(groups.values())


def _match_together(
    maps0: Tensor, maps1: Tensor, subsample: int, dist: Distance, both_ways: bool
) -> list[ReciprocalMatches]:
    """Match B pairs of equal size at once: (B, H0, W0, D) and (B, H1, W1, D)."""
    n0, n1 = (m.shape[1] * m.shape[2] for m in (maps0, maps1))
    search = ReciprocalSearch(maps0, maps1, dist=dist)
    walk = search.follow(_start_grids(maps0, subsample))
    here, there = walk.here[walk.settled], walk.there[walk.settled]
    if both_ways:
        back = search.reversed().follow(_start_grids(maps1, subsample))
        here, there = (torch.cat(ends) for ends in ((here, back.there[back.settled]), (there, back.here[back.settled])))
    index0, index1 = _unique_pairs(here, there)
    counts = torch.bincount(index0 // n0, minlength=len(maps0)).tolist()
    return [ReciprocalMatches(i0, i1) for i0, i1 in zip((index0 % n0).split(counts), (index1 % n1).split(counts))]


def _start_grids(maps: Tensor, subsample: int) -> Tensor:
    """Start pixels of a batch of maps (B, H, W, D), as flat indices over the batch."""
    grid = _start_pixels(maps.shape[1:], subsample, maps.device)
    return (torch.arange(len(maps), device=grid.device)[:, None] * (maps.shape[1] * maps.shape[2]) + grid).flatten()


def _match(
    search: ReciprocalSearch, pixels: Tensor, width: int, start: int | Tensor, pixel_tol: float, basin: bool
) -> ReciprocalMatches:
    """Walk and keep what settled, or with a tolerance what came back close to its start."""
    if isinstance(start, int):
        if pixel_tol:
            raise ValueError(f"pixel_tol={pixel_tol} needs given start pixels, got a grid of spacing {start}.")
        walk = search.follow(pixels, basin=basin)
        keep = walk.settled
    else:
        walk = search.follow(pixels, max_rounds=1, basin=basin)
        offset = (index_to_xy(walk.here, width) - index_to_xy(pixels, width)).square().sum(1)
        keep = offset < pixel_tol**2 if pixel_tol else walk.settled
    # Within the tolerance the start is reported: it is the pixel the caller asked about.
    index0, index1 = _unique_pairs((pixels if pixel_tol else walk.here)[keep], walk.there[keep])
    return ReciprocalMatches(index0, index1, walk.basin)


def _start_pixels(shape: Sequence[int], start: int | Tensor, device: torch.device) -> Tensor:
    """Sorted distinct flat pixel indices of a grid or of given (x, y)."""
    H, W = shape[0], shape[1]
    if isinstance(start, int):
        if start < 1:
            raise ValueError(f"The spacing of the start grid must be at least 1 pixel, got {start}.")
        y, x = (torch.arange(n, device=device)[start // 2 :: start] for n in (H, W))
        return (y[:, None] * W + x).flatten()
    x, y = start.to(device=device, dtype=torch.int64).unbind(-1)
    if len(x) and not bool(((x >= 0) & (x < W) & (y >= 0) & (y < H)).all()):
        raise ValueError(f"Start pixels must lie inside the {W}x{H} map; drop those outside.")
    return (y * W + x).unique()


def _unique_pairs(index0: Tensor, index1: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct pairs sorted by index0, then index1."""
    pairs = (index0 << 32 | index1).unique()  # one key sorts much faster than rows
    return pairs >> 32, pairs & 0xFFFFFFFF


def index_to_xy(index: Tensor, width: int) -> Tensor:
    """Pixels (N, 2) as (x, y) of flat indices (N,) into rows of `width` pixels."""
    return torch.stack([index % width, torch.div(index, width, rounding_mode="floor")], -1)


# Official entry points --------------------------------------------------------------------------------------


def fast_reciprocal_NNs(  # noqa: N802
    pts1: ArrayLike,
    pts2: ArrayLike,
    subsample_or_initxy1: int | tuple[ArrayLike, ArrayLike] = 8,
    ret_xy: bool | Literal["y_x"] = True,
    pixel_tol: float = 0,
    ret_basin: bool = False,
    device: str | torch.device | None = None,
    **matcher_kw: Any,
) -> tuple[Any, ...]:
    """Reciprocal nearest neighbours of two maps (official signature; see `match_reciprocal`).

    Args:
        pts1: (H1, W1, D) descriptors or points.
        pts2: (H2, W2, D).
        subsample_or_initxy1: grid spacing, or start pixels (x, y) of map 1 as two integer arrays.
        ret_xy: True for (N, 2) int64 (x, y); False for (N,) int32 flat indices; "y_x" for (rows, columns).
        pixel_tol: with given start pixels, largest distance (exclusive) between a start and its way back.
        ret_basin: also return the (H1 * W1 + 1,) int32 pixel each visited pixel moved to, else -1.
        device: where to compute; None computes where the inputs are.
        **matcher_kw: `dist` "l2" (default) or "dot"; `block_size` and `workers` are accepted and not needed.

    Returns:
        NumPy arrays: matches in map 1, matches in map 2, and the basin if asked for.
    """
    map0, map1 = _as_tensor(pts1, device), _as_tensor(pts2, device)
    start = subsample_or_initxy1
    if not isinstance(start, (int, np.integer)):
        start = torch.stack([_as_tensor(c, map0.device).flatten() for c in start], -1)
    found = match_reciprocal(
        map0,
        map1,
        start=start if isinstance(start, Tensor) else int(start),
        pixel_tol=pixel_tol,
        dist=_distance(matcher_kw),
        basin=ret_basin,
    )
    result = tuple(
        _index_form(i.cpu().numpy().astype(np.int32), m.shape, ret_xy)
        for i, m in ((found.index0, map0), (found.index1, map1))
    )
    if found.basin is None:
        return result
    return *result, np.append(found.basin.cpu().numpy(), -1).astype(np.int32)


def bruteforce_reciprocal_nns(
    A: ArrayLike,
    B: ArrayLike,
    device: str | torch.device | None = None,
    block_size: int | None = None,
    dist: Distance = "l2",
) -> tuple[np.ndarray, np.ndarray]:
    """Best match in `B` of every row of `A` and in `A` of every row of `B` (official signature).

    Args:
        A: (N, D) or (H, W, D) descriptors.
        B: (M, D) or (H, W, D) descriptors.
        device: where to compute; None computes where the inputs are.
        block_size: accepted for compatibility; blocks follow the cache.
        dist: "l2" or "dot".

    Returns:
        (N,) and (M,) int64 NumPy arrays; the lowest index among equals.
    """
    del block_size
    a, b = (_as_map(_as_tensor(x, device)) for x in (A, B))
    best_in_b = NearestSearch(b[None], dist=dist)(a.flatten(0, 1))
    best_in_a = NearestSearch(a[None], dist=dist)(b.flatten(0, 1))
    return best_in_b.cpu().numpy(), best_in_a.cpu().numpy()


def merge_corres(
    idx1: np.ndarray,
    idx2: np.ndarray,
    shape1: tuple[int, ...] | None = None,
    shape2: tuple[int, ...] | None = None,
    ret_xy: bool | Literal["y_x"] = True,
    ret_index: bool = False,
) -> tuple[Any, ...]:
    """Distinct matches, sorted by first then second pixel (official signature).

    Args:
        idx1: (N,) flat pixel indices in image 1.
        idx2: (N,) flat pixel indices in image 2.
        shape1: (H1, W1), needed unless `ret_xy` is False.
        shape2: (H2, W2), likewise.
        ret_xy: form of the result, see `fast_reciprocal_NNs`.
        ret_index: also return the (M,) int64 position where each pair occurs first.

    Returns:
        The two sides, and the positions if asked for.
    """
    if ret_xy and (shape1 is None or shape2 is None):
        raise ValueError("shape1 and shape2 are needed to turn indices into coordinates; pass them or ret_xy=False.")
    pairs, first = np.unique(np.stack([idx1, idx2], 1), axis=0, return_index=True)
    sides = tuple(_index_form(pairs[:, k], shape, ret_xy) for k, shape in enumerate((shape1, shape2)))
    return (*sides, first) if ret_index else sides


def extract_correspondences_nonsym(
    A: Tensor,
    B: Tensor,
    confA: Tensor,
    confB: Tensor,
    subsample: int = 8,
    device: str | torch.device | None = None,
    ptmap_key: str = "pred_desc",
    pixel_tol: float = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Matches of one decoder pass, searched from both images (official signature).

    Args:
        A: (H1, W1, D) descriptors of image 1.
        B: (H2, W2, D) descriptors of image 2.
        confA: (H1, W1) descriptor confidence of image 1.
        confB: (H2, W2) of image 2.
        subsample: spacing of both start grids in pixels.
        device: where to compute; None computes where `A` is.
        ptmap_key: a name containing "3d" compares points (L2), any other descriptors (dot product).
        pixel_tol: if positive, grid points may miss themselves by this many pixels on the way back.

    Returns:
        (N, 2) int64 (x, y) in image 1, the same in image 2, (N,) confidence: the smaller of both sides.
    """
    maps = [_as_tensor(m, device) for m in (A, B)]
    index0, index1 = _both_ways(maps[0], maps[1], subsample, _distance_of(ptmap_key), pixel_tol)
    index0, index1 = _unique_pairs(index0, index1)
    conf0, conf1 = (_as_tensor(c, maps[0].device).flatten() for c in (confA, confB))
    confidence = torch.minimum(conf0[index0], conf1[index1])
    return index_to_xy(index0, maps[0].shape[1]), index_to_xy(index1, maps[1].shape[1]), confidence


def extract_correspondences(
    feats: Sequence[Tensor],
    qonfs: Sequence[Tensor],
    subsample: int = 8,
    device: str | torch.device | None = None,
    ptmap_key: str = "pred_desc",
) -> tuple[Tensor, Tensor, Tensor]:
    """Matches of both decoder passes of a pair, each searched from both images (official signature).

    Args:
        feats: maps (f11, f21, f22, f12): image 1 and 2 from the pass (1, 2), image 2 and 1 from the pass (2,
            1).
        qonfs: their (H, W) confidences in the same order.
        subsample: spacing of the start grids in pixels.
        device: where to compute; None computes where the inputs are.
        ptmap_key: see `extract_correspondences_nonsym`.

    Returns:
        (N, 2) int64 (x, y) in image 1, the same in image 2, (N,) confidence: geometric mean of both sides in
        the first pass that found the match.
    """
    f11, f21, f22, f12 = (_as_tensor(f, device) for f in feats)
    c11, c21, c22, c12 = (_as_tensor(c, f11.device).flatten() for c in qonfs)
    found = []
    for a, b, conf_a, conf_b in ((f11, f21, c11, c21), (f12, f22, c12, c22)):
        index0, index1 = _both_ways(a, b, subsample, _distance_of(ptmap_key), 0)
        found.append((index0, index1, (conf_a[index0] * conf_b[index1]).sqrt()))
    index0, index1, confidence = (torch.cat(column) for column in zip(*found))
    pairs, inverse = (index0 << 32 | index1).unique(return_inverse=True)
    position = torch.arange(len(inverse), device=inverse.device)
    first = torch.full_like(pairs, len(inverse)).scatter_reduce_(0, inverse, position, "amin")
    index0, index1 = pairs >> 32, pairs & 0xFFFFFFFF
    return index_to_xy(index0, f11.shape[1]), index_to_xy(index1, f21.shape[1]), confidence[first]


def _both_ways(map0: Tensor, map1: Tensor, subsample: int, dist: Distance, pixel_tol: float) -> tuple[Tensor, Tensor]:
    """Matches from the grid of map 0, then from the grid of map 1, as flat indices with repeats."""
    search = ReciprocalSearch(map0, map1, dist=dist)
    found = []
    for way, m in ((search, map0), (search.reversed(), map1)):
        grid = _start_pixels(m.shape, subsample, m.device)
        start = index_to_xy(grid, m.shape[1]) if pixel_tol else subsample
        found.append(_match(way, grid, m.shape[1], start, pixel_tol, basin=False))
    forward, backward = found
    return torch.cat([forward.index0, backward.index1]), torch.cat([forward.index1, backward.index0])


def _as_tensor(x: Any, device: str | torch.device | None) -> Tensor:
    return torch.as_tensor(x, device=device)


def _as_map(x: Tensor) -> Tensor:
    """A list of descriptors (N, D) as a map of one row; maps stay as they are."""
    return x[None] if x.ndim == 2 else x


def _distance(matcher_kw: dict[str, Any]) -> Distance:
    """The distance among the official matcher options."""
    unknown = set(matcher_kw) - {"dist", "block_size", "workers"}
    if unknown:
        raise ValueError(f"Unknown matcher options {sorted(unknown)}: use dist, block_size or workers.")
    return matcher_kw.get("dist", "l2")


def _distance_of(ptmap_key: str) -> Distance:
    return "l2" if "3d" in ptmap_key else "dot"


def _index_form(index: np.ndarray, shape: Sequence[int] | None, ret_xy: bool | Literal["y_x"]) -> Any:
    """Flat indices in the form that the official functions return."""
    if not ret_xy or shape is None:
        return index
    rows, columns = np.unravel_index(index, tuple(shape[:2]))
    return (rows, columns) if ret_xy == "y_x" else np.stack([columns, rows], -1).astype(np.int64)
