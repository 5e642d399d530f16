"""Pictures of a result."""

from __future__ import annotations

import numpy as np
import PIL.Image

from multiview.matches import Matches
from multiview.plots import confidence_picture, depth_picture, draw_matches
from multiview.results import PairResult

_GAP = 8
_BACKGROUND = 24


def matches_picture(
    result: PairResult, *, limit: int = 200, drop_percent: float = 0.0, height: int = 480
) -> PIL.Image.Image:
    """Both photos side by side with lines between the matches.

    Args:
        result: The pair.
        limit: Number of matches drawn at most.
        drop_percent: Share of the matches that is not drawn, least confident first; 0..100.
        height: Height of the picture in pixels.
    """
    matches = confident_matches(result.matches, drop_percent)
    return draw_matches(matches, *result.images, limit=limit, height=height)


def confident_matches(matches: Matches, drop_percent: float) -> Matches:
    """The matches without the least confident share of them (0..100)."""
    if not len(matches):
        return matches
    return matches.filter(matches.confidence >= np.percentile(matches.confidence, drop_percent))


def map_pictures(result: PairResult, i: int) -> tuple[PIL.Image.Image, PIL.Image.Image]:
    """Depth (near is red) and confidence (bright is sure) of photo `i` at model resolution."""
    has_depth = i == 0 or result.own_pointmap1 is not None or result.pose1 is not None
    depth = result.depth(i) if has_depth else np.zeros(result.pointmaps[i].points.shape[:2])
    return depth_picture(depth), confidence_picture(result.confidences[i])


def maps_picture(result: PairResult, *, height: int = 320) -> PIL.Image.Image:
    """Per photo a row: what the model saw, depth, confidence."""
    rows = [_beside([PIL.Image.fromarray(result.colors(i)), *map_pictures(result, i)], height) for i in (0, 1)]
    width = max(row.shape[1] for row in rows)
    parts = [np.pad(row, ((0, _GAP), (0, width - row.shape[1]), (0, 0)), constant_values=24) for row in rows]
    return PIL.Image.fromarray(np.concatenate(parts)[:-_GAP])


def _beside(panels: list[PIL.Image.Image], height: int) -> np.ndarray:
    gap = np.full((height, _GAP, 3), _BACKGROUND, dtype=np.uint8)
    arrays: list[np.ndarray] = []
    for panel in panels:
        width = max(1, round(panel.width * height / panel.height))
        arrays += [np.asarray(panel.convert("RGB").resize((width, height))), gap]
    return np.concatenate(arrays[:-1], axis=1)
