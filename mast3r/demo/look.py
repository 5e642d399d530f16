"""How the page looks: theme, styles and scripts, all from this package."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import gradio as gr

ASSETS = Path(__file__).parent / "assets"
_SCRIPTS = ("geometry3d.js", "orbit.js", "painter.js", "viewer.js", "matches.js", "connect.js")
_SYSTEM_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
_SYSTEM_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def page_theme() -> gr.themes.Base:
    """The theme, with fonts that every system has."""
    return gr.themes.Default(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        radius_size="lg",
        font=_SYSTEM_FONTS,
        font_mono=_SYSTEM_MONO,
    )


@cache
def page_style() -> str:
    """The style sheet."""
    return (ASSETS / "page.css").read_text(encoding="utf-8")


@cache
def page_head() -> str:
    """The scripts, for the head of the page."""
    scripts = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    return f"<script>\n{scripts}\n</script>"
