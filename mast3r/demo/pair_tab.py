"""The Pair tab: two photos, their matches, depth, cameras and 3D scene."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from mast3r.demo.components import click, drawing, photo_input, reveal, scene_view, set_drawing
from mast3r.demo.downloads import Downloads, connect_downloads, download_row
from mast3r.demo.guard import sentence_of, told_in_one_sentence
from mast3r.demo.line import WorkLine, follow
from mast3r.demo.markup import done_html, error_html, status_html
from mast3r.demo.options import PageOptions
from mast3r.demo.pair_callbacks import PairCallbacks, PairVisit
from mast3r.demo.text import duration
from mast3r.demo.uploads import check_upload
from mast3r.demo.visits import end_visit

SCENE, MATCHES, RESULTS, RUN = "pair-scene", "pair-matches", "pair-results", "pair-run"


@dataclass(frozen=True)
class _Widgets:
    """The parts of the tab that take part in events."""

    visit: gr.State
    photos: tuple[gr.Image, gr.Image]
    run: gr.Button
    sample: gr.Button | None
    status: gr.HTML
    scene: gr.HTML
    drop: gr.Slider
    style: gr.Radio
    matches: gr.HTML
    count: gr.Slider
    match_drop: gr.Slider
    fitting: gr.Checkbox
    maps: gr.HTML
    facts: gr.HTML
    downloads: Downloads
    closer: gr.Checkbox


def pair_tab(act: PairCallbacks, line: WorkLine, model: gr.Dropdown, options: PageOptions) -> None:
    """Lay the tab out and say what happens on each click.

    Args:
        act: What is computed.
        line: Where runs wait for their turn.
        model: The page's choice of the model.
        options: Settings of the page.
    """
    widgets = _lay_out(act, options)
    _connect_photos(widgets, options)
    _connect_runs(widgets, act, line, model)
    connect_downloads(widgets.downloads, widgets.visit, widgets.drop, widgets.style)


# --- layout ---


def _lay_out(act: PairCallbacks, options: PageOptions) -> _Widgets:
    visit = gr.State(None, time_to_live=options.keep_seconds, delete_callback=end_visit)
    with gr.Row(elem_classes="work"):
        with gr.Column(scale=2, min_width=300, elem_classes="side"):
            with gr.Row(elem_classes="photos-row"):
                photos = (photo_input(1), photo_input(2))
            run = gr.Button("Reconstruct", variant="primary", elem_id=RUN)
            has_samples = all(path.is_file() for path in options.samples)
            sample = gr.Button("Try the sample photos", size="md") if has_samples else None
            closer = gr.Checkbox(
                False, label="Look closer where few matches are right (up to a minute)", elem_id="pair-closer"
            )
            status = gr.HTML(status_html(), elem_id="pair-status")
        with gr.Column(scale=5, min_width=320, elem_id=RESULTS):
            with gr.Tab("3D"):
                scene, drop, style = scene_view(SCENE, "The 3D scene of your two photos appears here.")
            with gr.Tab("Matches"):
                matches, count, match_drop, fitting = _matches_view()
            with gr.Tab("Depth"):
                maps = gr.HTML('<p class="empty">Depth and confidence maps appear here.</p>', elem_id="pair-maps")
            facts = gr.HTML(elem_id="pair-facts")
            downloads = download_row("pair", act.exports)
    return _Widgets(
        visit, photos, run, sample, status, scene, drop, style, matches, count, match_drop, fitting, maps, facts,
        downloads, closer,
    )  # fmt: skip


def _matches_view() -> tuple[gr.HTML, gr.Slider, gr.Slider, gr.Checkbox]:
    matches = drawing("MatchView", MATCHES, empty="Lines between matching points appear here.", count=200)
    with gr.Row(elem_classes="controls"):
        count = gr.Slider(0, 1000, value=200, step=10, label="Matches drawn", elem_id="match-count")
        drop = gr.Slider(0, 95, value=0, step=1, label="Hide the least confident (%)", elem_id="match-drop")
        fitting = gr.Checkbox(False, label="Only those that agree with the cameras", min_width=180)
    gr.on(
        [count.change, drop.change, fitting.change],
        None,
        [count, drop, fitting],
        js=set_drawing(MATCHES, "{count, drop, fitting}", "count", "drop", "fitting"),
    )
    return matches, count, drop, fitting


# --- events ---


def _connect_photos(w: _Widgets, options: PageOptions) -> None:
    for number, photo in enumerate(w.photos, start=1):

        @told_in_one_sentence
        def check(path: str | None, name: str = f"Photo {number}") -> None:
            if path is not None:
                check_upload(path, name)

        photo.upload(check, photo, show_progress="hidden", api_visibility="private")
    if w.sample is not None:
        paths = [str(path) for path in options.samples]
        chosen = w.sample.click(
            lambda: paths, outputs=[*w.photos], show_progress="hidden", api_visibility="private"
        )  # fmt: skip
        chosen.then(None, js=click(RUN))


def _connect_runs(w: _Widgets, act: PairCallbacks, line: WorkLine, model: gr.Dropdown) -> None:
    def run(
        a: str | None, b: str | None, name: str, closer: bool, last: PairVisit | None
    ) -> Generator[dict[Any, Any], None, None]:
        """Predict the pair and show it, telling the steps."""
        try:
            photos = act.read(a, b)
            visit = yield from follow(
                line.run(lambda on_step: act.predict(photos, name, on_step, closer=closer)),
                lambda update: {w.status: status_html(update)},
            )
            yield {w.visit: visit, **_shown(w, act, visit)}
            end_visit(last)
        except Exception as error:
            sentence = sentence_of(error)
            yield {w.status: error_html(sentence)}
            raise gr.Error(sentence, visible=False, print_exception=False) from error

    event = w.run.click(
        run,
        [*w.photos, model, w.closer, w.visit],
        [w.visit, w.status, w.scene, w.matches, w.count, w.maps, w.facts, *w.downloads.parts],
        concurrency_limit=None,  # the line lets one after the other compute, and says who is next
        show_progress="hidden",
        api_visibility="private",
    )
    event.success(None, js=reveal(RESULTS))


def _shown(w: _Widgets, act: PairCallbacks, visit: PairVisit) -> dict[Any, Any]:
    """All that the page shows of a new result."""
    seconds = sum(visit.result.timings.values())
    total = len(visit.result.matches)
    return {
        w.status: done_html(f"Done: {total:,} matches in {duration(seconds)}."),
        w.scene: act.scene(visit),
        w.matches: act.matches(visit),
        w.count: gr.update(maximum=max(200, total)),
        w.maps: act.maps(visit),
        w.facts: act.facts(visit),
        **w.downloads.reset(),
    }
