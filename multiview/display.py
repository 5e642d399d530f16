"""How results show themselves in a notebook: a sentence, a small picture, a table.

Pictures are PIL images and travel inside the HTML, so nothing is written or fetched.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from multiview.plots import draw_matches, pair_figure

if TYPE_CHECKING:
    from multiview.matches import Matches
    from multiview.reconstructed_image import ReconstructedImage
    from multiview.reconstruction import Reconstruction
    from multiview.results import PairResult

_BACKGROUND = (24, 24, 24)
_FAILED = (60, 24, 24)
_FAINT = (96, 96, 96)
_GAP = 8
_MAX_COMPONENTS = 3  # more scenes than these are not drawn
_JPEG_QUALITY = 85


def matches_html(matches: Matches) -> str:
    """Matches as HTML: a sentence, and their places on empty canvases."""
    picture = draw_matches(matches, limit=150, height=200)
    return _sentence(matches) + picture_html(picture, "places of the most confident matches")


def pair_html(result: PairResult) -> str:
    """A pair as HTML: a sentence, and colours, depth, confidence and matches in one picture."""
    return _sentence(result) + picture_html(pair_figure(result, height=160, limit=100), "colours, depth, confidence")


def reconstruction_html(reconstruction: Reconstruction) -> str:
    """A reconstruction as HTML: a sentence, the images, the scene and a table of the cameras."""
    parts = [_sentence(reconstruction)]
    if reconstruction.images:
        parts.append(picture_html(contact_sheet(reconstruction, height=72, width=640), "what the network saw"))
    for component in reconstruction.components[:_MAX_COMPONENTS]:
        parts.append(picture_html(reconstruction.plot(component=component, height=260), "from above and from the side"))
    parts.append(table_html(("image", "size", "status", "focal", "centre"), _camera_rows(reconstruction.images)))
    return "".join(parts)


def picture_html(picture: PIL.Image.Image, description: str = "") -> str:
    """An <img> element that holds the picture itself.

    Args:
        picture: Any picture; it is stored as JPEG.
        description: What it shows, for those who cannot see it.
    """
    file = io.BytesIO()
    picture.convert("RGB").save(file, "JPEG", quality=_JPEG_QUALITY)
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<img alt="{html.escape(description)}" style="max-width: 100%" width="{picture.width}" '
        f'src="data:image/jpeg;base64,{data}"/>'
    )


def table_html(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of escaped text."""
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def contact_sheet(
    reconstruction: Reconstruction, *, height: int = 96, width: int = 960, limit: int = 60
) -> PIL.Image.Image:
    """The images in rows, as the network saw them; failed ones are an empty, reddish frame.

    Args:
        reconstruction: What to show.
        height: Height of an image in pixels.
        width: Width of the sheet in pixels.
        limit: Show at most so many images, evenly chosen.

    Returns:
        An RGB picture.

    Raises:
        ValueError: If there is no image.
    """
    images = reconstruction.images
    if not images:
        raise ValueError("There is no image to show: the reconstruction is empty.")
    chosen = images if len(images) <= limit else [images[i] for i in np.linspace(0, len(images) - 1, limit).astype(int)]
    placed, left, top = [], 0, 0
    for thumbnail in (_thumbnail(image, height) for image in chosen):
        if left and left + thumbnail.width > width:
            left, top = 0, top + height + _GAP
        placed.append((thumbnail, (left, top)))
        left += thumbnail.width + _GAP
    sheet = PIL.Image.new("RGB", (max(x + part.width for part, (x, _) in placed), top + height), _BACKGROUND)
    for thumbnail, place in placed:
        sheet.paste(thumbnail, place)
    return sheet


def _thumbnail(image: ReconstructedImage, height: int) -> PIL.Image.Image:
    width = max(1, round(height * image.size[0] / image.size[1])) if image.size[1] else height  # unreadable: no size
    if image.colors is not None:
        return PIL.Image.fromarray(image.colors).resize((width, height))
    return PIL.Image.new("RGB", (width, height), _FAINT if image.registered else _FAILED)


def _camera_rows(images: Sequence[ReconstructedImage]) -> list[tuple[str, ...]]:
    rows = []
    for image in images:
        size = f"{image.size[0]}x{image.size[1]}"
        if image.camera is None or image.pose is None:
            rows.append((image.name, size, f"failed: {image.reason}", "", ""))
            continue
        centre = ", ".join(f"{value:.3g}" for value in image.pose.center)
        status = f"registered, component {image.component}"
        rows.append((image.name, size, status, f"{image.camera.focal[0]:.0f} px", centre))
    return rows


def _sentence(value: Any) -> str:
    return f"<p>{html.escape(repr(value))}</p>"
