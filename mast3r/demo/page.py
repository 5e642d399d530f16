"""The Gradio page: a thin layer over the library.

It serves this machine only unless told otherwise, loads nothing from other servers, and keeps each visitor's
files in a folder of their own that goes with the visit.
"""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from mast3r.demo.line import WorkLine
from mast3r.demo.options import PageOptions
from mast3r.demo.pair_callbacks import PairCallbacks
from mast3r.demo.pair_tab import pair_tab
from mast3r.demo.scene_callbacks import SceneCallbacks
from mast3r.demo.scene_tab import scene_tab
from mast3r.demo.shelf import ModelShelf
from mast3r.demo.text import model_words
from mast3r.model import AsymmetricMASt3R

TITLE = "Photos to 3D"
_INTRO = f"# {TITLE}\nPhotos of a place from different positions become a 3D scene, with depth, matches and cameras."
_QUEUE_LENGTH = 64  # events, of which a visitor has a few; runs wait in the WorkLine


def build_page(
    model: AsymmetricMASt3R | ModelShelf, root: Path, options: PageOptions | None = None, line: WorkLine | None = None
) -> gr.Blocks:
    """The page, not yet served.

    Args:
        model: A MASt3R model, or several to choose from.
        root: Existing folder for the visitors' files.
        options: How it is served; here the settings, sample photos and the time files are kept.
        line: Where runs wait for their turn.
    """
    options = options or PageOptions()
    shelf = model if isinstance(model, ModelShelf) else ModelShelf(model)
    line = line or WorkLine()
    keep = options.keep_seconds
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(keep, keep)) as page:
        chosen = _header(shelf)
        with gr.Tabs(elem_classes="top-tabs"):
            with gr.Tab("Pair", id="pair"):
                pair_tab(PairCallbacks(shelf, root, options.config), line, chosen, options)
            with gr.Tab("Scene", id="scene"):
                scene_tab(SceneCallbacks(shelf, root, max_photos=options.max_photos), line, chosen, options)
    return page.queue(max_size=_QUEUE_LENGTH, api_open=False)


def _header(shelf: ModelShelf) -> gr.Dropdown:
    """Title, and the choice of the model with its licence."""
    with gr.Row(elem_classes="header"):
        with gr.Column(scale=5, min_width=300):
            gr.Markdown(_INTRO)
        with gr.Column(scale=2, min_width=240, elem_classes="model"):
            chosen = gr.Dropdown(
                shelf.names,
                value=shelf.names[0],
                label="Model",
                show_label=False,
                container=False,
                visible=len(shelf.names) > 1,
                elem_id="model",
            )
            licence = gr.Markdown(_model_line(shelf, None), elem_id="licence")
    chosen.change(
        lambda name: _model_line(shelf, name),
        chosen,
        licence,
        show_progress="hidden",
        api_visibility="private",
    )
    return chosen


def _model_line(shelf: ModelShelf, name: str | None) -> str:
    words = model_words(shelf.card(name))
    return words if len(shelf.names) > 1 else f"Model {shelf.names[0]} · {words}"
