"""Pictures of a result."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps

from multiview.images import Image
from multiview.matches import Matches
from multiview.metrics import epipolar_errors
from multiview.plots import confidence_picture, depth_picture, draw_matches
from multiview.results import PairResult

_GAP = 8
_BACKGROUND = 24
_PREVIEW_SIDE = 1280
_CELLS = 8  # matches are spread over this many columns and rows of photo 0


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


def match_rows(result: PairResult) -> list[list[float]]:
    """The matches for the page's drawing, in an order of which every beginning is spread over the photo.

    Returns:
        Per match x0, y0, x1, y1 in original pixels, the share (0..100) of less confident matches, and 1 if it agrees
        with the cameras, else 0.
    """
    matches = result.matches
    order = _spread_order(matches)
    rank = np.empty(len(matches))
    rank[np.argsort(matches.confidence, kind="stable")] = np.arange(len(matches)) * (100 / max(len(matches), 1))
    columns = (matches.xy0.round(1), matches.xy1.round(1), rank[:, None].round(1), fitting(result)[:, None])
    rows = np.concatenate([column.astype(np.float64) for column in columns], axis=1)[order]
    return [[round(value, 1) for value in row] for row in rows.tolist()]


def fitting(result: PairResult) -> np.ndarray:
    """(N,) bool: the `num_inliers` matches nearest to their epipolar lines; none without a pose."""
    fits = np.zeros(len(result.matches), dtype=bool)
    if result.pose1 is not None and result.num_inliers:
        K0, K1 = (camera.K for camera in result.cameras)
        errors = epipolar_errors(result.matches.xy0, result.matches.xy1, K0, K1, result.pose1.cam_from_world)
        fits[np.argsort(np.nan_to_num(errors, nan=np.inf), kind="stable")[: result.num_inliers]] = True
    return fits


def _spread_order(matches: Matches) -> np.ndarray:
    """The best match of every cell of photo 0, then the second best of every cell, and so on."""
    cell = np.floor(matches.xy0.astype(np.float64) / matches.size0 * _CELLS).clip(0, _CELLS - 1)
    number = (cell[:, 1] * _CELLS + cell[:, 0]).astype(np.int64)
    by_cell = np.lexsort((-matches.confidence, number))
    starts = np.concatenate([[0], np.cumsum(np.bincount(number, minlength=_CELLS**2))])
    place = np.empty(len(matches), dtype=np.int64)
    place[by_cell] = np.arange(len(matches)) - starts[number[by_cell]]
    return np.lexsort((-matches.confidence, place))


def save_preview(image: Image, path: Path, *, side: int = _PREVIEW_SIDE) -> Path:
    """Write a photo as .jpg, shrunk so that its longer side has at most `side` pixels."""
    picture = image.to_pil()
    picture.thumbnail((side, side))
    picture.convert("RGB").save(path, quality=88)
    return path


def thumbnail(path: str, *, side: int = 160) -> str:
    """A small upright picture of a file as a data address; empty if it cannot be decoded."""
    content = io.BytesIO()
    try:
        with PIL.Image.open(path) as stored:
            stored.draft("RGB", (side, side))
            picture = PIL.ImageOps.exif_transpose(stored)
        picture.thumbnail((side, side))
        picture.convert("RGB").save(content, "JPEG", quality=75)
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def map_pictures(result: PairResult, i: int) -> tuple[PIL.Image.Image, PIL.Image.Image]:
    """Depth (near is red) and confidence (bright is sure) of photo `i` at model resolution."""
    return depth_picture(depth_of(result, i)), confidence_picture(result.confidences[i])


def depth_of(result: PairResult, i: int) -> np.ndarray:
    """(H, W) depth of photo `i`; zeros if it is not known."""
    has_depth = i == 0 or result.own_pointmap1 is not None or result.pose1 is not None
    return result.depth(i) if has_depth else np.zeros(result.pointmaps[i].points.shape[:2])


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
