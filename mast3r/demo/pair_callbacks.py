"""What the Pair tab does when something is clicked: plain values in, plain values out, no Gradio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from mast3r.demo.exports import Export, pair_exports
from mast3r.demo.line import OnStep
from mast3r.demo.markup import Figure, facts_html, figures_html
from mast3r.demo.pictures import depth_of, map_pictures, match_rows, save_preview
from mast3r.demo.scene_file import pair_scene, write_scene_file
from mast3r.demo.shelf import ModelShelf
from mast3r.demo.text import pair_facts, unit_of
from mast3r.demo.uploads import read_upload
from mast3r.demo.visits import Visit, address
from mast3r.predictor import PairConfig, predict_pair
from multiview.images import Image
from multiview.results import PairResult

STEP_WORDS = {
    "read": "Preparing the photos",
    "encode": "Looking at each photo",
    "decode": "Comparing the photos",
    "match": "Matching points",
    "pose": "Finding the cameras",
}
_NAMES = ("Photo 1", "Photo 2")

PairVisit = Visit[PairResult]


class PairCallbacks:
    """What the Pair tab does when something is clicked; plain values in, plain values out.

    Args:
        shelf: The models.
        root: Existing folder for the visitors' files.
        config: Settings of the prediction.
    """

    exports: tuple[Export, ...] = pair_exports()

    def __init__(self, shelf: ModelShelf, root: Path, config: PairConfig | None = None):
        self._shelf = shelf
        self._root = root
        self._config = config or PairConfig()

    def read(self, a: str | None, b: str | None) -> tuple[Image, Image]:
        """The two uploaded photos."""
        if a is None or b is None:
            raise ValueError("Choose two photos first.")
        read = [replace(read_upload(path, name), path=Path(Path(path).name)) for path, name in zip((a, b), _NAMES)]
        return read[0], read[1]

    def predict(
        self, photos: Sequence[Image], model: str | None = None, on_step: OnStep | None = None, *, closer: bool = False
    ) -> PairVisit:
        """Run the network on two photos; with `closer`, also on their parts where few matches are right."""

        def tell(share: float, step: str) -> None:
            if on_step is not None:
                on_step(share, STEP_WORDS.get(step, step))

        card = self._shelf.card(model)
        result = predict_pair(
            self._shelf.model(model), *photos, config=replace(self._config, closer_look=closer), on_step=tell
        )
        return Visit.begin(result, card, self._root)

    # --- what is shown ---

    def scene(self, visit: PairVisit) -> dict[str, Any]:
        """What the 3D viewer shows."""
        return {"url": address(write_scene_file(visit.fresh("scene.bin"), pair_scene(visit.result)))}

    def matches(self, visit: PairVisit) -> dict[str, Any]:
        """What the drawing of the matches shows."""
        photos = [
            {
                "url": address(save_preview(image, visit.fresh(f"photo{i + 1}.jpg"))),
                "width": image.width,
                "height": image.height,
            }
            for i, image in enumerate(visit.result.images)
        ]
        return {"photos": photos, "rows": match_rows(visit.result)}

    def maps(self, visit: PairVisit) -> str:
        """Photos with their depth and confidence, as HTML."""
        return figures_html([self._figures(visit, i) for i in (0, 1)])

    def facts(self, visit: PairVisit) -> str:
        """The numbers, as HTML."""
        return facts_html(pair_facts(visit.result))

    def _figures(self, visit: PairVisit, i: int) -> list[Figure]:
        result = visit.result
        depth, confidence = map_pictures(result, i)
        seen = PIL.Image.fromarray(result.colors(i))
        near, far = _range_words(depth_of(result, i), unit_of(result.scale_status))

        def saved(picture: PIL.Image.Image, name: str) -> str:
            path = visit.fresh(f"{name}{i + 1}.png")
            picture.save(path)
            return address(path)

        return [
            Figure(saved(seen, "photo"), _NAMES[i]),
            Figure(saved(depth, "depth"), "Depth", near, far, "depth"),
            Figure(saved(confidence, "confidence"), "Confidence", "unsure", "sure", "confidence"),
        ]


def _range_words(depth: np.ndarray, unit: str) -> tuple[str, str]:
    """The depths at the ends of the colours (see `multiview.plots.depth_picture`)."""
    known = depth[np.isfinite(depth) & (depth > 0)]
    if not known.size:
        return "unknown", "unknown"
    near, far = np.percentile(known, (2, 98))
    return f"{near:.2g}{unit}", f"{far:.2g}{unit}"
