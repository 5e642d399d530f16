"""Download buttons, whose files are written as soon as there is a result."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from mast3r.demo.components import SURFACE
from mast3r.demo.exports import Choices, Export
from mast3r.demo.guard import sentence_of
from mast3r.demo.visits import Visit

_REST = 0.4  # seconds: while a slider moves, the computer has better things to do than to write files


@dataclass(frozen=True)
class Downloads:
    """The buttons and what they give.

    Attributes:
        row: What holds the buttons; hidden until there is a result.
        buttons: One per export.
        exports: The files.
    """

    row: gr.Row
    buttons: tuple[gr.DownloadButton, ...]
    exports: tuple[Export, ...]

    @property
    def parts(self) -> list[Any]:
        """All components."""
        return [self.row, *self.buttons]

    def reset(self) -> dict[Any, Any]:
        """Updates for a new result, whose files are not yet written."""
        return {self.row: gr.update(visible=True), **{button: _without_file() for button in self.buttons}}


def download_row(name: str, exports: Sequence[Export]) -> Downloads:
    """A row of buttons, hidden until there is a result."""
    with gr.Row(visible=False, elem_classes="downloads", elem_id=f"{name}-downloads") as row:
        buttons = tuple(
            gr.DownloadButton(
                f"↓ {export.label}",
                size="sm",
                min_width=90,
                interactive=False,
                elem_id=f"{name}-{export.name}",
            )
            for export in exports
        )
    return Downloads(row, buttons, tuple(exports))


def connect_downloads(downloads: Downloads, visit: gr.State, *controls: gr.Slider | gr.Radio | gr.Dropdown) -> None:
    """Write the files when there is a new result, and those that depend on a control when it changes.

    Args:
        downloads: The buttons.
        visit: The result.
        *controls: What is left out, how it is shown, and where there is a choice, which group.
    """
    pairs = list(zip(downloads.buttons, downloads.exports))
    _write_on(visit.change, pairs, 0.0, visit, *controls)
    filtered = [(button, export) for button, export in pairs if export.filtered]
    for control in controls:
        _write_on(control.change, filtered, _REST, visit, *controls)


def _write_on(event: Any, offered: Sequence[tuple[gr.DownloadButton, Export]], rest: float, *inputs: Any) -> None:
    def write(
        visit: Visit[Any] | None, drop: float, style: str, group: int | None = None
    ) -> Generator[dict[Any, Any], None, None]:
        """Write one file after the other; each button works as soon as its file is there."""
        if visit is None:
            return
        time.sleep(rest)
        choices = Choices(drop, style == SURFACE, group or 0)
        for button, export in offered:
            yield {button: _file_update(export, visit, choices)}

    event(
        write,
        list(inputs),
        [button for button, _ in offered],
        trigger_mode="always_last",
        concurrency_limit=2,
        show_progress="hidden",
        api_visibility="private",
    )


def _file_update(export: Export, visit: Visit[Any], choices: Choices) -> Any:
    """What becomes of a button; a result without points or cameras has nothing to write for some."""
    try:
        return gr.update(value=str(export.write(visit, choices)), interactive=True)
    except ValueError:
        return _without_file()
    except Exception as error:
        gr.Warning(f"{export.label} could not be written. {sentence_of(error)}")
        return _without_file()


def _without_file() -> Any:
    return gr.update(value=None, interactive=False)
