"""The Gradio page: a thin layer over `predict_pair` and the pictures of its result.

It serves this machine only unless told otherwise, loads nothing from other servers, and keeps each visitor's
files in a folder of their own that goes with the visit.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
import torch

from mast3r.demo.callbacks import POINTS, SURFACE, PairCallbacks
from mast3r.demo.visits import Visit, end_visit
from mast3r.model import AsymmetricMASt3R
from mast3r.predictor import PairConfig

logger = logging.getLogger(__name__)
Callback = TypeVar("Callback", bound=Callable[..., Any])

QUEUE_LENGTH = 16
"""Visitors beyond so many waiting ones are asked to come later."""

SAMPLE_FOLDER = Path(__file__).parents[2] / "examples" / "pair"

_STEP_TEXT = {
    "read": "Reading the photos",
    "encode": "Looking at each photo",
    "decode": "Comparing the photos",
    "match": "Matching points",
    "pose": "Finding the cameras",
}
_IMAGE_BUTTONS = ("download", "fullscreen")  # Gradio's third one, "share", uploads to another server
_INTRO = """# Two photos, one scene
Take two photos of the same place from different positions. You get matching points, depth and a 3D scene."""


@dataclass(frozen=True)
class PageOptions:
    """How the page is served.

    Attributes:
        config: Settings of the prediction.
        tmp_dir: Folder for temporary files; None takes the system's.
        server_name: Address to listen on.
        server_port: Port; None takes the first free one from 7860.
        share: Make a public link through Gradio's servers.
        silent: Say nothing but errors.
        keep_seconds: Seconds after which the files of a visitor who does nothing are removed.
        samples: The two sample photos; without them there is no button for them.
    """

    config: PairConfig = field(default_factory=PairConfig)
    tmp_dir: Path | None = None
    server_name: str = "127.0.0.1"
    server_port: int | None = None
    share: bool = False
    silent: bool = False
    keep_seconds: int = 3600
    samples: tuple[Path, Path] = (SAMPLE_FOLDER / "a.jpg", SAMPLE_FOLDER / "b.jpg")


def told_in_one_sentence(callback: Callback) -> Callback:
    """A callback whose errors appear in the page as a sentence; the log has the rest."""

    @functools.wraps(callback)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return callback(*args, **kwargs)
        except gr.Error:
            raise
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        except Exception as error:
            logger.exception("%s failed", callback.__name__)
            raise gr.Error(_unexpected(error), print_exception=False) from error

    return guarded  # type: ignore[return-value]


def _unexpected(error: Exception) -> str:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return "The computer ran out of memory; try smaller photos."
    return "Something went wrong while computing; the program's log says what."


# --- layout ---


@dataclass(frozen=True)
class _Downloads:
    """The download buttons."""

    scene: gr.DownloadButton
    points: gr.DownloadButton
    everything: gr.DownloadButton
    matches: gr.DownloadButton


@dataclass(frozen=True)
class _Widgets:
    """The parts of the page that take part in events."""

    visit: gr.State
    photos: tuple[gr.Image, gr.Image]
    run: gr.Button
    sample: gr.Button | None
    scene: gr.Model3D
    drop: gr.Slider
    style: gr.Radio
    matches: gr.Image
    count: gr.Slider
    match_drop: gr.Slider
    maps: tuple[gr.Image, ...]
    summary: gr.Markdown
    downloads: _Downloads


def build_page(model: AsymmetricMASt3R, root: Path, options: PageOptions | None = None) -> gr.Blocks:
    """The page, not yet served.

    Args:
        model: A MASt3R model.
        root: Existing folder for the visitors' files.
        options: How it is served; here the settings, sample photos and the time files are kept.
    """
    options = options or PageOptions()
    keep = options.keep_seconds
    with gr.Blocks(title="Two photos, one scene", analytics_enabled=False, delete_cache=(keep, keep)) as page:
        widgets = _lay_out(options)
        _connect(widgets, PairCallbacks(model, root, options.config), options)
    return page.queue(max_size=QUEUE_LENGTH, api_open=False)


def _lay_out(options: PageOptions) -> _Widgets:
    visit = gr.State(None, time_to_live=options.keep_seconds, delete_callback=end_visit)
    gr.Markdown(_INTRO)
    with gr.Row():
        photos = tuple(
            gr.Image(
                label=f"Photo {i}",
                type="filepath",
                image_mode=None,
                height=280,
                sources=["upload", "clipboard"],
            )
            for i in (1, 2)
        )
    with gr.Row():
        run = gr.Button("Reconstruct", variant="primary", scale=2)
        has_samples = all(path.is_file() for path in options.samples)
        sample = gr.Button("Try the sample photos", scale=1) if has_samples else None
    with gr.Tab("3D scene"):
        scene, drop, style = _scene_tab()
    with gr.Tab("Matches"):
        matches, count, match_drop = _matches_tab()
    with gr.Tab("Depth and confidence"):
        maps = _maps_tab()
    summary = gr.Markdown(elem_id="numbers")
    names = ("Scene (.glb)", "Points (.ply)", "Everything (.npz)", "Matches (.npz)")
    with gr.Row():
        downloads = _Downloads(
            *(gr.DownloadButton(name, interactive=False, size="sm", min_width=140) for name in names)
        )
    return _Widgets(
        visit, (photos[0], photos[1]), run, sample, scene, drop, style, matches, count, match_drop, maps,
        summary, downloads,
    )  # fmt: skip


def _scene_tab() -> tuple[gr.Model3D, gr.Slider, gr.Radio]:
    scene = gr.Model3D(label="3D scene", height=480, clear_color=(0.1, 0.1, 0.1, 1.0))
    with gr.Row():
        drop = gr.Slider(0, 95, value=20, step=1, label="Leave out the least confident points (%)")
        style = gr.Radio([SURFACE, POINTS], value=SURFACE, label="Show as")
    return scene, drop, style


def _matches_tab() -> tuple[gr.Image, gr.Slider, gr.Slider]:
    matches = gr.Image(label="Matches", interactive=False, format="jpeg", buttons=[*_IMAGE_BUTTONS])
    with gr.Row():
        count = gr.Slider(0, 1000, value=200, step=10, label="Number of matches drawn")
        drop = gr.Slider(0, 95, value=0, step=1, label="Leave out the least confident matches (%)")
    return matches, count, drop


def _maps_tab() -> tuple[gr.Image, ...]:
    maps = []
    for i in (1, 2):
        with gr.Row():
            maps += [
                gr.Image(
                    label=f"{what} of photo {i}",
                    interactive=False,
                    format="png",
                    height=260,
                    buttons=[*_IMAGE_BUTTONS],
                )
                for what in ("Depth (near is red)", "Confidence (bright is sure)")
            ]
    return tuple(maps)


def _connect(w: _Widgets, act: PairCallbacks, options: PageOptions) -> None:
    """Say what happens on each click."""
    runs = [_on_run(w, act, w.run.click)]
    if w.sample is not None:
        paths = [str(path) for path in options.samples]
        chosen = w.sample.click(lambda: paths, outputs=[*w.photos], api_visibility="private")
        runs.append(_on_run(w, act, chosen.then))
    for run in runs:
        _offer(run.success, w, w.downloads.points, act.points_file, w.drop)
        _offer(run.success, w, w.downloads.matches, act.matches_file, w.match_drop)
        _offer(run.success, w, w.downloads.everything, act.everything_file)
    live: dict[str, Any] = {
        "show_progress": "hidden",
        "trigger_mode": "always_last",
        "concurrency_limit": 4,
        "api_visibility": "private",
    }

    @told_in_one_sentence
    def redraw(visit: Visit | None, count: int, drop: float) -> Any:
        return gr.skip() if visit is None else act.matches(visit, count, drop)

    @told_in_one_sentence
    def rebuild(visit: Visit | None, drop: float, style: str) -> Any:
        if visit is None:
            return gr.skip(), gr.skip()
        path = act.scene(visit, drop, style)
        return path, gr.update(value=path, interactive=True)

    for slider in (w.count, w.match_drop):
        slider.input(redraw, [w.visit, w.count, w.match_drop], w.matches, **live)
    for control in (w.drop, w.style):
        control.input(rebuild, [w.visit, w.drop, w.style], [w.scene, w.downloads.scene], **live)
    # Files follow when the hand has left the slider.
    _offer(w.drop.release, w, w.downloads.points, act.points_file, w.drop)
    _offer(w.match_drop.release, w, w.downloads.matches, act.matches_file, w.match_drop)


def _on_run(w: _Widgets, act: PairCallbacks, event: Callable[..., Any]) -> Any:
    @told_in_one_sentence
    def run(
        a: str | None,
        b: str | None,
        last: Visit | None,
        count: int,
        match_drop: float,
        drop: float,
        style: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # Gradio finds it as a default
    ) -> Any:
        """Predict the pair and show it, telling the steps."""

        def tell(share: float, step: str) -> None:
            progress(0.8 * share, desc=_STEP_TEXT[step])

        visit = act.predict(a, b, last, tell)
        progress(0.8, desc="Drawing")
        scene = act.scene(visit, drop, style)
        pictures = (act.matches(visit, count, match_drop), *act.maps(visit))
        download = gr.update(value=scene, interactive=True)
        return visit, scene, download, act.summary(visit), *pictures

    inputs = [*w.photos, w.visit, w.count, w.match_drop, w.drop, w.style]
    outputs = [w.visit, w.scene, w.downloads.scene, w.summary, w.matches, *w.maps]
    return event(
        run,
        inputs,
        outputs,
        concurrency_limit=1,
        concurrency_id="network",
        api_visibility="private",
        show_progress_on=[w.scene, w.matches],
    )


def _offer(
    event: Callable[..., Any],
    w: _Widgets,
    button: gr.DownloadButton,
    write: Callable[..., str],
    *settings: gr.Slider,
) -> None:
    """On an event, write a file and put it behind its download button."""

    @told_in_one_sentence
    def offer(visit: Visit | None, *values: float) -> Any:
        if visit is None:
            return gr.skip()
        return gr.update(value=write(visit, *values), interactive=True)

    event(
        offer,
        [w.visit, *settings],
        button,
        show_progress="hidden",
        concurrency_limit=2,
        api_visibility="private",
    )
