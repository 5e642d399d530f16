"""Pictures of matches, depth and confidence, as PIL images. Matplotlib is used for its colour maps only."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw

from multiview.images import ImageSource, as_image
from multiview.matches import Matches
from multiview.results import PairResult

_BACKGROUND = (24, 24, 24)
_GAP = 8


def draw_matches(
    matches: Matches,
    image0: ImageSource | None = None,
    image1: ImageSource | None = None,
    *,
    limit: int = 200,
    height: int = 480,
    line_width: int = 1,
) -> PIL.Image.Image:
    """Both images side by side with a line per match, coloured by its position in image 0.

    Args:
        matches: Matches in original pixels.
        image0: Image 0 at original size; None draws on an empty canvas.
        image1: Image 1.
        limit: Draw at most so many matches: some of the most confident ones, spread over the image.
        height: Height of the picture in pixels.
        line_width: Width of the lines in pixels; 0 draws end points only.

    Returns:
        An RGB picture.

    Raises:
        ValueError: If an image's size is not the one the matches belong to.
    """
    sizes = (matches.size0, matches.size1)
    panels = [_panel(image, size, height, i) for i, (image, size) in enumerate(zip((image0, image1), sizes))]
    picture = _row(panels)
    chosen = _spread(matches.top(4 * limit), limit)
    scales = [height / size[1] for size in sizes]
    offset = panels[0].width + _GAP
    # Pixel centres are integers in the matches, half-integers on PIL's canvas of areas.
    start = (chosen.xy0.astype(np.float64) + 0.5) * scales[0] - 0.5
    end = (chosen.xy1.astype(np.float64) + 0.5) * scales[1] - 0.5 + (offset, 0)
    draw = PIL.ImageDraw.Draw(picture)
    for a, b, color in zip(start, end, position_colors(chosen.xy0, matches.size0)):
        if line_width:
            draw.line([*a, *b], fill=color, width=line_width)
        for x, y in (a, b):
            draw.ellipse([x - 2, y - 2, x + 2, y + 2], fill=color)
    return picture


def position_colors(xy: np.ndarray, size: tuple[int, int]) -> list[tuple[int, int, int]]:
    """One RGB colour (0..255) per point: hue from x, saturation from y.

    Args:
        xy: (N, 2) pixels.
        size: (width, height) of the image.
    """
    share = np.clip(np.asarray(xy, dtype=np.float64).reshape(-1, 2) / size, 0, 1)
    rgb = (colorsys.hsv_to_rgb(0.85 * x, 0.5 + 0.5 * y, 1.0) for x, y in share)
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in rgb]


def colorize(
    values: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    cmap: str = "turbo",
    percentiles: tuple[float, float] = (2.0, 98.0),
) -> np.ndarray:
    """A map of numbers as colours.

    Args:
        values: (H, W) numbers.
        mask: (H, W) bool, where the numbers mean something; other and non-finite pixels become dark grey.
        cmap: Name of a matplotlib colour map.
        percentiles: The values at these percentiles take the ends of the colour map.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    import matplotlib  # here: importing multiview must not need it

    values = np.asarray(values, dtype=np.float64)
    known = np.isfinite(values) if mask is None else np.isfinite(values) & np.asarray(mask, dtype=bool)
    picture = np.full((*values.shape, 3), _BACKGROUND, dtype=np.uint8)
    if known.any():
        low, high = np.percentile(values[known], percentiles)
        share = np.clip((values[known] - low) / max(high - low, 1e-12), 0, 1)
        picture[known] = np.rint(matplotlib.colormaps[cmap](share)[:, :3] * 255).astype(np.uint8)
    return picture


def depth_picture(depth: np.ndarray, mask: np.ndarray | None = None) -> PIL.Image.Image:
    """A depth map in colours by 1 / depth, near is red; values that are not positive stay dark."""
    depth = np.asarray(depth, dtype=np.float64)
    positive = depth > 0
    inverse = np.divide(1.0, depth, out=np.full(depth.shape, np.nan), where=positive)
    return PIL.Image.fromarray(colorize(inverse, positive if mask is None else positive & mask))


def confidence_picture(confidence: np.ndarray) -> PIL.Image.Image:
    """A confidence map in colours, bright is confident; the colour follows the logarithm."""
    confidence = np.asarray(confidence, dtype=np.float64)
    logarithm = np.log(np.maximum(confidence, 1e-12))
    return PIL.Image.fromarray(colorize(logarithm, confidence > 0, cmap="viridis"))


def pair_figure(result: PairResult, *, height: int = 300, limit: int = 200) -> PIL.Image.Image:
    """All of a pair in one picture: per image a row of colours, depth and confidence, below them the matches.

    Args:
        result: The pair.
        height: Height of a row in pixels.
        limit: Number of matches drawn.

    Returns:
        An RGB picture.
    """
    rows = []
    for i in (0, 1):
        panels = [PIL.Image.fromarray(result.colors(i))]
        if i == 0 or result.own_pointmap1 is not None or result.pose1 is not None:
            panels.append(depth_picture(result.depth(i)))
        panels.append(confidence_picture(result.confidences[i]))
        rows.append(_row([_scaled_to_height(panel, height) for panel in panels]))
    rows.append(draw_matches(result.matches, *result.images, limit=limit, height=height))
    picture = PIL.Image.new(
        "RGB", (max(row.width for row in rows), sum(row.height + _GAP for row in rows) - _GAP), _BACKGROUND
    )
    top = 0
    for row in rows:
        picture.paste(row, (0, top))
        top += row.height + _GAP
    return picture


def _spread(matches: Matches, limit: int) -> Matches:
    """At most `limit` of the matches, evenly from left to right."""
    if len(matches) <= limit:
        return matches
    order = np.argsort(matches.xy0[:, 0], kind="stable")
    return matches.filter(order[np.linspace(0, len(order) - 1, limit).astype(int)])


def _panel(source: ImageSource | None, size: tuple[int, int], height: int, i: int) -> PIL.Image.Image:
    """One image of a match picture, `height` pixels high."""
    if source is None:
        return _scaled_to_height(PIL.Image.new("RGB", size, (64, 64, 64)), height)
    image = as_image(source)
    if image.size != size:
        raise ValueError(f"The matches belong to an image {i} of size {size}, got one of size {image.size}.")
    return _scaled_to_height(image.to_pil(), height)


def _scaled_to_height(picture: PIL.Image.Image, height: int) -> PIL.Image.Image:
    return picture.resize((max(1, round(picture.width * height / picture.height)), height))


def _row(panels: Sequence[PIL.Image.Image]) -> PIL.Image.Image:
    """Panels of one height beside each other."""
    width = sum(panel.width + _GAP for panel in panels) - _GAP
    row = PIL.Image.new("RGB", (width, max(panel.height for panel in panels)), _BACKGROUND)
    left = 0
    for panel in panels:
        row.paste(panel, (left, 0))
        left += panel.width + _GAP
    return row
