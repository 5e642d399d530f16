"""Pieces of the page's HTML; every text from outside is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from mast3r.demo.line import Update


@dataclass(frozen=True)
class Fact:
    """A number with its name.

    Attributes:
        name: What it is.
        value: The number with its unit.
        detail: More about it.
    """

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Figure:
    """A picture with a scale of colours below.

    Attributes:
        address: Where the browser finds it.
        title: What it shows.
        low: Meaning of the left end of the scale; without it there is no scale.
        high: Meaning of the right end.
        scale: Name of the colours: "depth" or "confidence".
    """

    address: str
    title: str
    low: str = ""
    high: str = ""
    scale: str = ""


@dataclass(frozen=True)
class PhotoNote:
    """What is known about one of many photos.

    Attributes:
        name: File name.
        address: Where the browser finds a small picture of it; empty if it cannot be shown.
        state: "ready", "placed" or "failed".
        note: A few words, or why it failed.
        view: Number of its view in the 3D viewer; None if it is not shown there.
    """

    name: str
    address: str
    state: str
    note: str
    view: int | None = None


def status_html(update: Update | None = None) -> str:
    """Progress of a run: a bar and words; nothing before the first run."""
    if update is None:
        return '<div class="status" role="status"></div>'
    waits = update.share is None
    width = 100 if waits else round(100 * (update.share or 0))
    kind = "status waiting" if waits else "status running"
    return (
        f'<div class="{kind}" role="status"><div class="bar"><i style="width: {width}%"></i></div>'
        f"<span>{escape(update.text)}</span></div>"
    )


def done_html(text: str) -> str:
    """The end of a run in words."""
    return f'<div class="status done" role="status"><span>{escape(text)}</span></div>'


def error_html(text: str) -> str:
    """An error in words."""
    return f'<div class="status error" role="alert"><span>{escape(text)}</span></div>'


def facts_html(facts: Iterable[Fact]) -> str:
    """Numbers as small cards."""
    cards = "".join(
        f"<div><dt>{escape(fact.name)}</dt><dd>{escape(fact.value)}"
        + (f"<small>{escape(fact.detail)}</small>" if fact.detail else "")
        + "</dd></div>"
        for fact in facts
    )
    return f'<dl class="facts">{cards}</dl>' if cards else ""


def figures_html(rows: Sequence[Sequence[Figure]]) -> str:
    """Rows of pictures."""
    return "".join(f'<div class="figures">{"".join(map(_figure_html, row))}</div>' for row in rows)


def photos_html(notes: Iterable[PhotoNote], viewer: str = "") -> str:
    """Small pictures with what became of each photo; a click shows its view in the named viewer."""
    items = "".join(_note_html(note, viewer) for note in notes)
    return f'<ul class="photos">{items}</ul>' if items else ""


def _figure_html(figure: Figure) -> str:
    scale = ""
    if figure.scale:
        scale = (
            f'<span class="scale"><span>{escape(figure.low)}</span><i class="{escape(figure.scale)}"></i>'
            f"<span>{escape(figure.high)}</span></span>"
        )
    address, title = escape(figure.address), escape(figure.title)
    return (
        f'<figure><a href="{address}" target="_blank" rel="noopener"><img src="{address}" alt="{title}"></a>'
        f"<figcaption>{title}{scale}</figcaption></figure>"
    )


def _note_html(note: PhotoNote, viewer: str) -> str:
    picture = f'<img src="{escape(note.address)}" alt="">' if note.address else '<span class="blank"></span>'
    if note.view is not None:
        action = f"window.mast3r.goTo('{escape(viewer)}', {note.view})"
        title = f"Show the view of {escape(note.name)}"
        picture = f'<button type="button" onclick="{action}" title="{title}" aria-label="{title}">{picture}</button>'
    mark = {"placed": "✓ ", "failed": "✕ "}.get(note.state, "")
    words = f"<b>{mark}{escape(note.name)}</b><small>{escape(note.note)}</small>"
    return f'<li class="{escape(note.state)}">{picture}{words}</li>'
