"""Gradio components of this page's own."""

from __future__ import annotations

from typing import Any, Literal

import gradio as gr
from gradio.data_classes import ImageData

POINTS, SURFACE = "Points", "Surface"
DrawingKind = Literal["Viewer", "MatchView"]


def photo_input(number: int) -> gr.Image:
    """Where the visitor drops photo 1 or 2."""
    photo = gr.Image(
        label=f"Photo {number}",
        type="filepath",
        image_mode=None,
        height=180,
        min_width=130,
        sources=["upload"],
        buttons=[],
        elem_classes="photo",
        elem_id=f"photo-{number}",
    )
    # Gradio would open the file itself and speak its own words about a damaged one. (A subclass that did this would
    # make Gradio write a .pyi file beside this module.)
    photo.preprocess = _path_of
    return photo


def _path_of(payload: ImageData | None) -> str | None:
    """Where an upload is kept."""
    return None if payload is None else payload.path


def drawing(kind: DrawingKind, name: str, **options: Any) -> gr.HTML:
    """A drawing by the page's scripts; its value says what it shows (see assets/).

    Args:
        kind: Class of the script.
        name: By which `set_drawing` finds it.
        **options: Options of the class.
    """
    return gr.HTML(
        value=None,
        html_template="<div></div>",
        js_on_load=f"window.mast3r.start('{kind}', '{name}', element.firstElementChild, props, watch);",
        elem_id=name,
        apply_default_css=False,
        options=options,
    )


def set_drawing(name: str, options: str, *names: str) -> str:
    """A script for an event: hands the values of its inputs to a drawing, without asking the server.

    Args:
        name: Name of the drawing.
        options: An object in JavaScript, made of the names of the inputs.
        *names: Names of the inputs, in order.
    """
    return f"({', '.join(names)}) => {{ window.mast3r.set('{name}', {options}); return []; }}"


def reveal(name: str) -> str:
    """A script for an event: scrolls to the results where they lie below the screen."""
    return f"() => {{ window.mast3r.reveal('{name}'); return []; }}"


def click(name: str) -> str:
    """A script for an event: clicks a button."""
    return f"() => {{ document.getElementById('{name}').click(); return []; }}"


def scene_view(name: str, empty: str) -> tuple[gr.HTML, gr.Slider, gr.Radio]:
    """The 3D viewer with its controls.

    Args:
        name: Name of the drawing.
        empty: What it says before there is a scene.
    """
    scene = drawing("Viewer", name, empty=empty, drop=20, surface=False)
    with gr.Row(elem_classes="controls"):
        drop = gr.Slider(
            0, 95, value=20, step=1, scale=3, label="Hide the least confident points (%)", elem_id=f"{name}-drop"
        )
        style = gr.Radio(
            [POINTS, SURFACE], value=POINTS, scale=2, min_width=180, label="Show as", elem_id=f"{name}-style"
        )
    gr.on(
        [drop.change, style.change],
        None,
        [drop, style],
        js=set_drawing(name, f"{{drop, surface: style === '{SURFACE}'}}", "drop", "style"),
    )
    return scene, drop, style
