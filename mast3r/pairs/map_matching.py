"""Matches between the descriptor maps of a pair, in model pixels.

Dense matches start from a grid of pixels; given keypoints are looked up one by one. Both end between the
pixels (`mast3r.pairs.subpixel`), and both are exact nearest neighbours (`mast3r.nearest`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mast3r.fast_nn import ReciprocalMatches, index_to_xy, match_reciprocal_batch
from mast3r.nearest import NearestSearch
from mast3r.pairs.config import PairConfig
from mast3r.pairs.subpixel import refine_matches, refine_positions, sample_map
from mast3r.pairs.two_view import Described, ModelInput
from multiview.matches import Matches


@dataclass(frozen=True, eq=False)
class MapMatches:
    """Matches between two maps, on the CPU.

    Attributes:
        xy0: (N, 2) float32 MODEL pixels of image 0.
        xy1: (N, 2) float32 MODEL pixels of image 1.
        confidence: (N,) float32, geometric mean of both descriptor confidences.
        index0: (N,) int64 position of `xy0` among the given keypoints; None if none were given.
        index1: The same of image 1.
    """

    xy0: np.ndarray
    xy1: np.ndarray
    confidence: np.ndarray
    index0: np.ndarray | None = None
    index1: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.confidence)

    def swapped(self) -> MapMatches:
        """The same matches with the roles of the images exchanged."""
        return MapMatches(self.xy1, self.xy0, self.confidence, self.index1, self.index0)

    def filter(self, chosen: np.ndarray) -> MapMatches:
        """The matches chosen by a mask (N,) or by positions (M,)."""
        index0, index1 = (None if index is None else index[chosen] for index in (self.index0, self.index1))
        return MapMatches(self.xy0[chosen], self.xy1[chosen], self.confidence[chosen], index0, index1)


def match_orders(orders: Sequence[tuple[Described, Described]], config: PairConfig) -> MapMatches:
    """Dense matches of one pair (see `match_pairs`)."""
    return match_pairs([orders], config)[0]


def match_pairs(pairs: Sequence[Sequence[tuple[Described, Described]]], config: PairConfig) -> list[MapMatches]:
    """Dense matches of many pairs, each decoded in one order or in both.

    Matches are searched from the grids of both images; those of both orders are joined, and of a match found
    twice the first stays.

    Args:
        pairs: Per pair what is seen in order (0, 1), then if wanted what is seen in order (1, 0).
        config: `subsample`, `border_px` and `subpixel` are used.

    Returns:
        The matches of each pair.
    """
    sights = [order if k == 0 else order[::-1] for pair in pairs for k, order in enumerate(pair)]
    found = match_reciprocal_batch(
        [a.desc for a, _ in sights], [b.desc for _, b in sights], subsample=config.subsample, both_ways=True
    )
    placed = iter([_placed(a, b, matches, config) for (a, b), matches in zip(sights, found)])
    return [_joined([next(placed) for _ in pair]) for pair in pairs]


@dataclass(frozen=True, eq=False)
class _Placed:
    """Matches of one order: a key per pair of whole pixels, and where they ended."""

    key: np.ndarray  # (N,) int64
    matches: MapMatches


def _placed(seen0: Described, seen1: Described, found: ReciprocalMatches, config: PairConfig) -> _Placed:
    """Matches of one order away from the borders, refined, with confidence."""
    xy0, xy1 = (index_to_xy(i, seen.shape[1]) for i, seen in ((found.index0, seen0), (found.index1, seen1)))
    inside = _off_border(xy0, seen0, config.border_px) & _off_border(xy1, seen1, config.border_px)
    index0, index1, xy0, xy1 = (values[inside] for values in (found.index0, found.index1, xy0, xy1))
    confidence = (seen0.desc_confidence.flatten()[index0] * seen1.desc_confidence.flatten()[index1]).sqrt()
    refined = xy1.float()
    if config.refinement is not None:
        refined = refine_matches(seen0.desc, seen1.desc, xy0, xy1, method=config.refinement)
    key = index0 * seen1.desc_confidence.numel() + index1
    return _Placed(key.cpu().numpy(), MapMatches(*(_array(v) for v in (xy0, refined, confidence))))


def _joined(orders: Sequence[_Placed]) -> MapMatches:
    """Matches of all orders; of equal pairs of pixels the first."""
    _, first = np.unique(np.concatenate([order.key for order in orders]), return_index=True)
    columns = ([getattr(order.matches, name) for order in orders] for name in ("xy0", "xy1", "confidence"))
    return MapMatches(*(np.concatenate(column)[first] for column in columns))


def _off_border(xy: Tensor, seen: Described, border: int) -> Tensor:
    """(N,) bool: at least `border` pixels from the left and top, and more from the right and bottom."""
    limit = torch.tensor([seen.shape[1], seen.shape[0]], device=xy.device)
    return ((xy >= border) & (xy < limit - border)).all(1)


def _array(values: Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()


# --- given keypoints ---


def match_keypoints(
    seen0: Described, seen1: Described, xy0: np.ndarray | None, xy1: np.ndarray | None, config: PairConfig
) -> MapMatches:
    """At most one match for each given keypoint.

    A keypoint's descriptor is interpolated at its exact place. With keypoints of one image, the other end is
    the best place of the other map. With keypoints of both, the two are each other's best among the given
    ones, and the best place of keypoint 0 in map 1 is near keypoint 1. A match must lead back to less than
    `config.keypoint_tolerance_px` from its keypoint; keypoints near the border are left out.

    Args:
        seen0: What is seen of image 0.
        seen1: What is seen of image 1, in the same order of the pair.
        xy0: (K0, 2) model pixels of keypoints of image 0, or None.
        xy1: (K1, 2) of image 1, or None; not both None.
        config: `border_px`, `subpixel` and `keypoint_tolerance_px` are used.

    Returns:
        Matches in the order of the first given list of keypoints, with the positions of the keypoints.

    Raises:
        ValueError: If no keypoints are given.
    """
    if xy0 is not None and xy1 is not None:
        return _match_both_lists(_Points.at(seen0, xy0, config), _Points.at(seen1, xy1, config), config)
    if xy0 is not None:
        return _look_up(_Points.at(seen0, xy0, config), seen1, config)
    if xy1 is not None:
        return _look_up(_Points.at(seen1, xy1, config), seen0, config).swapped()
    raise ValueError("match_keypoints() needs keypoints of image 0 or of image 1, got neither.")


@dataclass(frozen=True, eq=False)
class _Points:
    """Keypoints of one map away from its border."""

    seen: Described
    index: Tensor  # (K,) int64 position in the given list
    xy: Tensor  # (K, 2) float32
    desc: Tensor  # (K, D) unit length
    confidence: Tensor  # (K,)

    @classmethod
    def at(cls, seen: Described, xy: np.ndarray, config: PairConfig) -> _Points:
        """Keypoints at (K, 2) model pixels."""
        places = torch.from_numpy(np.asarray(xy, dtype=np.float32).reshape(-1, 2)).to(seen.desc.device)
        index = _off_border(places.round(), seen, config.border_px).nonzero()[:, 0]
        places = places[index]
        desc = F.normalize(sample_map(seen.desc, places), dim=1)
        return cls(seen, index, places, desc, sample_map(seen.desc_confidence[..., None], places)[:, 0])

    def chosen(self, mask: Tensor) -> _Points:
        """The keypoints chosen by a mask or by positions."""
        values = (v[mask] for v in (self.index, self.xy, self.desc, self.confidence))
        return _Points(self.seen, *values)


def _dense_ends(points: _Points, other: Described, config: PairConfig) -> tuple[_Points, Tensor]:
    """The keypoints whose best pixel in the other map leads back to them, and that pixel (K, 2)."""
    there = NearestSearch(other.desc[None])(points.desc)
    back = NearestSearch(points.seen.desc[None])(other.desc.flatten(0, 1)[there])
    end = index_to_xy(there, other.shape[1])
    offset = (index_to_xy(back, points.seen.shape[1]) - points.xy).norm(dim=1)
    kept = (offset < config.keypoint_tolerance_px) & _off_border(end, other, config.border_px)
    return points.chosen(kept), end[kept]


def _look_up(points: _Points, other: Described, config: PairConfig) -> MapMatches:
    """Match keypoints to any place of the other map."""
    points, end = _dense_ends(points, other, config)
    confidence = (points.confidence * other.desc_confidence[end[:, 1], end[:, 0]]).sqrt()
    refined = end.float()
    if config.refinement is not None:
        refined = refine_positions(points.desc, other.desc, end, method=config.refinement)
    found = MapMatches(_array(points.xy), _array(refined), _array(confidence))
    return replace(found, index0=points.index.cpu().numpy())


def _match_both_lists(points0: _Points, points1: _Points, config: PairConfig) -> MapMatches:
    """Match keypoints to keypoints."""
    points0, end = _dense_ends(points0, points1.seen, config)
    if not len(points0.xy) or not len(points1.xy):
        points0, points1 = (points.chosen(points.index[:0]) for points in (points0, points1))
        best1 = best0 = points0.index
    else:
        best1 = NearestSearch(points1.desc[None, None])(points0.desc)
        best0 = NearestSearch(points0.desc[None, None])(points1.desc)
    near = (points1.xy[best1] - end[: len(best1)]).norm(dim=1) < config.keypoint_tolerance_px
    kept = near & (best0[best1] == torch.arange(len(best1), device=best1.device))
    points0, points1 = points0.chosen(kept), points1.chosen(best1[kept])
    confidence = (points0.confidence * points1.confidence).sqrt()
    found = MapMatches(*(_array(v) for v in (points0.xy, points1.xy, confidence)))
    return replace(found, index0=points0.index.cpu().numpy(), index1=points1.index.cpu().numpy())


# --- from model pixels to original pixels ---


def in_original_pixels(found: MapMatches, inputs: Sequence[ModelInput]) -> Matches:
    """Matches of two network inputs as matches of the photos they were made from."""
    first, second = (x.transform for x in inputs)
    return Matches(
        first.inverse().apply(found.xy0),
        second.inverse().apply(found.xy1),
        found.confidence,
        size0=first.size_from,
        size1=second.size_from,
        model_size0=whole_size(inputs[0]),
        model_size1=whole_size(inputs[1]),
        index0=found.index0,
        index1=found.index1,
    )


def whole_size(x: ModelInput) -> tuple[int, int]:
    """(width, height) that the whole photo would have at the scale of a possibly cropped or turned input."""
    scale = np.linalg.norm(x.transform.matrix[:2, :2], axis=0)
    width, height = np.array(x.transform.size_from) * scale
    return max(1, round(width)), max(1, round(height))
