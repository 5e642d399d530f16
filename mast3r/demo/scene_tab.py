"""The Scene tab: many photos, their cameras and one 3D scene."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from mast3r.demo.components import click, reveal, scene_view
from mast3r.demo.downloads import Downloads, connect_downloads, download_row
from mast3r.demo.guard import sentence_of, told_in_one_sentence
from mast3r.demo.line import StoppedError, WorkLine, follow
from mast3r.demo.markup import done_html, error_html, photos_html, status_html
from mast3r.demo.options import PageOptions
from mast3r.demo.scene_callbacks import MIXED, SEQUENCE, Photos, SceneCallbacks, SceneVisit
from mast3r.demo.text import duration
from mast3r.demo.visits import end_visit

SCENE, RESULTS, RUN = "scene-view", "scene-results", "scene-run"


@dataclass(frozen=True)
class _Widgets:
    """The parts of the tab that take part in events."""

    visit: gr.State
    files: gr.File
    order: gr.Radio
    run: gr.Button
    stop: gr.Button
    sample: gr.Button | None
    status: gr.HTML
    notes: gr.HTML
    scene: gr.HTML
    drop: gr.Slider
    style: gr.Radio
    group: gr.Dropdown
    facts: gr.HTML
    downloads: Downloads


def scene_tab(act: SceneCallbacks, line: WorkLine, model: gr.Dropdown, options: PageOptions) -> None:
    """Lay the tab out and say what happens on each click.

    Args:
        act: What is computed.
        line: Where runs wait for their turn.
        model: The page's choice of the model.
        options: Settings of the page.
    """
    widgets = _lay_out(act, options)
    _connect_photos(widgets, act, options)
    _connect_runs(widgets, act, line, model)
    _connect_groups(widgets, act)
    connect_downloads(widgets.downloads, widgets.visit, widgets.drop, widgets.style, widgets.group)


# --- layout ---


def _lay_out(act: SceneCallbacks, options: PageOptions) -> _Widgets:
    visit = gr.State(None, time_to_live=options.keep_seconds, delete_callback=end_visit)
    with gr.Row(elem_classes="work"):
        with gr.Column(scale=2, min_width=300, elem_classes="side"):
            files = gr.File(
                label="Photos", file_count="multiple", file_types=["image"], height=150, elem_id="scene-files"
            )
            order = gr.Radio([MIXED, SEQUENCE], value=MIXED, label="The photos are", elem_id="scene-order")
            with gr.Row(elem_classes="buttons"):
                run = gr.Button("Reconstruct", variant="primary", elem_id=RUN, scale=3)
                stop = gr.Button("Stop", variant="stop", visible=False, elem_id="scene-stop", scale=1, min_width=80)
            sample = gr.Button("Try the sample photos", size="md") if sample_photos(options) else None
            status = gr.HTML(status_html(), elem_id="scene-status")
            notes = gr.HTML(elem_id="scene-photos")
        with gr.Column(scale=5, min_width=320, elem_id=RESULTS):
            scene, drop, style = scene_view(SCENE, "The 3D scene of your photos appears here.")
            group = gr.Dropdown([], label="Photos that do not see the same place", visible=False, elem_id="scene-group")
            facts = gr.HTML(elem_id="scene-facts")
            downloads = download_row("scene", act.exports)
    return _Widgets(
        visit, files, order, run, stop, sample, status, notes, scene, drop, style, group, facts, downloads
    )  # fmt: skip


def sample_photos(options: PageOptions) -> list[str]:
    """The sample photos of a scene; empty if this copy of the program has none."""
    return sorted(str(path) for path in options.scene_samples.glob("*.jpg"))


# --- events ---


def _connect_photos(w: _Widgets, act: SceneCallbacks, options: PageOptions) -> None:
    @told_in_one_sentence
    def look(paths: list[str] | None) -> str:
        return photos_html(act.ready_notes(act.look(paths)))

    w.files.change(look, w.files, w.notes, show_progress="hidden", api_visibility="private")
    if w.sample is not None:
        chosen = w.sample.click(
            lambda: sample_photos(options), outputs=w.files, show_progress="hidden", api_visibility="private"
        )
        chosen.then(None, js=click(RUN))


def _connect_runs(w: _Widgets, act: SceneCallbacks, line: WorkLine, model: gr.Dropdown) -> None:
    def run(
        paths: list[str] | None, order: str, name: str, last: SceneVisit | None, visitor: gr.Request
    ) -> Generator[dict[Any, Any], None, None]:
        """Reconstruct the scene and show it, telling the steps."""
        try:
            photos = act.look(paths)
            visit = yield from follow(
                line.run(lambda on_step: act.reconstruct(photos, order, name, on_step), visitor.session_hash),
                lambda update: {w.status: status_html(update), w.stop: gr.update(visible=True)},
            )
            yield {w.visit: visit, **_shown(w, act, visit, photos)}
            end_visit(last)
        except StoppedError:
            yield {w.status: done_html("Stopped."), w.stop: gr.update(visible=False)}
        except Exception as error:
            sentence = sentence_of(error)
            yield {w.status: error_html(sentence), w.stop: gr.update(visible=False)}
            raise gr.Error(sentence, visible=False, print_exception=False) from error

    def stop(visitor: gr.Request) -> None:
        line.stop(visitor.session_hash)

    event = w.run.click(
        run,
        [w.files, w.order, model, w.visit],
        [w.visit, w.status, w.stop, w.notes, w.scene, w.group, w.facts, *w.downloads.parts],
        concurrency_limit=None,  # the line lets one after the other compute, and says who is next
        show_progress="hidden",
        api_visibility="private",
    )
    event.success(None, js=reveal(RESULTS))
    w.stop.click(stop, show_progress="hidden", api_visibility="private")


def _connect_groups(w: _Widgets, act: SceneCallbacks) -> None:
    @told_in_one_sentence
    def show(visit: SceneVisit | None, paths: list[str] | None, group: int | None) -> Any:
        if visit is None or group is None:
            return gr.skip(), gr.skip()
        return act.scene(visit, group), photos_html(act.notes(visit, act.look(paths), group), SCENE)

    w.group.input(
        show,
        [w.visit, w.files, w.group],
        [w.scene, w.notes],
        show_progress="hidden",
        api_visibility="private",
    )


def _shown(w: _Widgets, act: SceneCallbacks, visit: SceneVisit, photos: Photos) -> dict[Any, Any]:
    """All that the page shows of a new result."""
    groups = act.groups(visit)
    first = groups[0][1] if groups else 0
    placed, total = len(visit.result.registered), len(photos.names)
    seconds = sum(visit.result.timings.values())
    return {
        w.status: done_html(f"Done: {placed} of {total} photos placed in {duration(seconds)}."),
        w.stop: gr.update(visible=False),
        w.notes: photos_html(act.notes(visit, photos, first), SCENE),
        w.scene: act.scene(visit, first),
        w.group: gr.update(choices=groups, value=first if groups else None, visible=len(groups) > 1),
        w.facts: act.facts(visit, photos),
        **w.downloads.reset(),
    }
