"""Pictures of matches, depth and confidence, as PIL images. Matplotlib is used for its colour maps only."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import PIL.ImageDraw

from multiview.export import DrawnCamera
from multiview.images import ImageSource, as_image
from multiview.pointmaps import without_rounding

if TYPE_CHECKING:
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
    confidence = without_rounding(confidence)
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


def scene_figure(
    points: np.ndarray, colors: np.ndarray, cameras: Sequence[DrawnCamera] = (), *, height: int = 480
) -> PIL.Image.Image:
    """A scene from above (x right, z up the picture) and from the side (z right, y down), with its cameras.

    Args:
        points: (P, 3) in a world with y down.
        colors: (P, 3) uint8 RGB.
        cameras: Drawn as triangles from their centres along their fields of view.
        height: Height of the picture in pixels.

    Returns:
        An RGB picture of two square panels at one scale.
    """
    centers = np.array([view.pose.center for view in cameras]).reshape(-1, 3)
    everything = np.concatenate([centers, _core(np.asarray(points, dtype=np.float64))])
    low, high = (everything.min(axis=0), everything.max(axis=0)) if len(everything) else (-np.ones(3), np.ones(3))
    middle, size = (low + high) / 2, max(1e-9, 1.1 * float((high - low).max()))
    panels = []
    for across, along, sign in ((0, 2, -1.0), (2, 1, 1.0)):
        canvas = np.full((height, height, 3), _BACKGROUND, dtype=np.uint8)

        def place(p: np.ndarray, across: int = across, along: int = along, sign: float = sign) -> np.ndarray:
            plane = np.stack([p[..., across] - middle[across], sign * (p[..., along] - middle[along])], axis=-1)
            return (plane / size + 0.5) * height

        xy = np.floor(place(np.asarray(points, dtype=np.float64))).astype(int)
        inside = ((xy >= 0) & (xy < height)).all(axis=1)
        canvas[xy[inside, 1], xy[inside, 0]] = colors[inside]
        panel = PIL.Image.fromarray(canvas)
        _draw_cameras(PIL.ImageDraw.Draw(panel), cameras, place, size / 15)
        panels.append(panel)
    return _row(panels)


def _core(points: np.ndarray) -> np.ndarray:
    """Two corners of the box that holds the points but for the outermost 2 % on each side of each axis."""
    return np.percentile(points, (2, 98), axis=0) if len(points) else points


def _draw_cameras(
    draw: PIL.ImageDraw.ImageDraw,
    cameras: Sequence[DrawnCamera],
    place: Callable[[np.ndarray], np.ndarray],
    length: float,
) -> None:
    for view in cameras:
        camera = view.camera
        edges = camera.unproject(np.array([(0, camera.height / 2), (camera.width, camera.height / 2)]))
        corners = place(view.pose.apply(np.concatenate([np.zeros((1, 3)), edges * length])))
        draw.polygon([(float(x), float(y)) for x, y in corners], outline=view.color)


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
