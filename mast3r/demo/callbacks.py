"""What the page does when something is clicked: plain values in, plain values out, no Gradio."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import PIL.Image

from mast3r.demo.pictures import map_pictures, matches_picture
from mast3r.demo.text import summary_table
from mast3r.demo.visits import Visit, end_visit
from mast3r.loading import card_of
from mast3r.model import AsymmetricMASt3R
from mast3r.predictor import PairConfig, predict_pair
from multiview.images import Image, ImageError, read_image

MAX_PIXELS = 64_000_000
"""Photos with more pixels are refused by the page."""

POINTS, SURFACE = "Points", "Surface"
_NO_RESULT = "Run a pair of photos first."


class PairCallbacks:
    """What the page does when something is clicked; plain values in, plain values out.

    Args:
        model: A MASt3R model.
        root: Existing folder for the visitors' files.
        config: Settings of the prediction.
    """

    def __init__(self, model: AsymmetricMASt3R, root: Path, config: PairConfig | None = None):
        self._model = model
        self._root = root
        self._config = config or PairConfig()

    def predict(
        self,
        a: str | None,
        b: str | None,
        last: Visit | None = None,
        on_step: Callable[[float, str], None] | None = None,
    ) -> Visit:
        """Run the network on two uploaded files; the files of the last visit are removed."""
        if a is None or b is None:
            raise ValueError("Choose two photos first.")
        images = read_upload(a, "Photo 1"), read_upload(b, "Photo 2")
        result = predict_pair(self._model, *images, config=self._config, on_step=on_step)
        end_visit(last)
        return Visit.begin(result, self._root)

    def matches(self, visit: Visit | None, count: int, drop_percent: float) -> PIL.Image.Image:
        """The picture of the matches."""
        return matches_picture(_result(visit).result, limit=int(count), drop_percent=drop_percent)

    def maps(self, visit: Visit | None) -> tuple[PIL.Image.Image, ...]:
        """Depth and confidence of photo 1, then of photo 2."""
        result = _result(visit).result
        return *map_pictures(result, 0), *map_pictures(result, 1)

    def scene(self, visit: Visit | None, drop_percent: float, style: str) -> str:
        """Path of the scene as .glb."""
        return str(_result(visit).scene(drop_percent=drop_percent, as_mesh=style == SURFACE))

    def points_file(self, visit: Visit | None, drop_percent: float) -> str:
        """Path of the points as .ply."""
        return str(_result(visit).points(drop_percent=drop_percent))

    def everything_file(self, visit: Visit | None) -> str:
        """Path of the whole result as .npz."""
        return str(_result(visit).everything())

    def matches_file(self, visit: Visit | None, drop_percent: float) -> str:
        """Path of the matches as .npz."""
        return str(_result(visit).matches(drop_percent=drop_percent))

    def summary(self, visit: Visit | None) -> str:
        """The numbers as a Markdown table."""
        return summary_table(_result(visit).result, card_of(self._model))


def read_upload(path: str, name: str) -> Image:
    """Read an uploaded photo; messages call it by `name` and do not tell where the server keeps it.

    Raises:
        ImageError: If it cannot be used or has more than `MAX_PIXELS` pixels.
    """
    try:
        with PIL.Image.open(path) as header:
            pixels = header.width * header.height
    except OSError:
        pixels = 0  # read_image finds the words for it
    if pixels > MAX_PIXELS:
        raise ImageError(
            f"{name} has {pixels / 1e6:.0f} million pixels; this page takes up to {MAX_PIXELS / 1e6:.0f} million."
        )
    try:
        return read_image(path)
    except ImageError as error:
        raise ImageError(str(error).replace(path, name)) from error


def _result(visit: Visit | None) -> Visit:
    if visit is None:
        raise ValueError(_NO_RESULT)
    return visit
