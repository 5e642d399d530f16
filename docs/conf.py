"""How Sphinx builds these pages: `make docs`. Nothing is fetched from the network, and warnings are errors."""

from __future__ import annotations

import contextlib
import io
import os
import re
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.parsers.rst.states import Inliner
from sphinx.application import Sphinx

import mast3r
from mast3r import cli

project = "MASt3R, open"
author = "its contributors"
version = release = mast3r.__version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

default_role = "name"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
maximum_signature_line_length = 90
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"MASt3R, open {release}"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"top_of_page_buttons": []}

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*(\.\w+)*(\(\))?")
_SUFFIXED = re.compile(r"(`[^`\s][^`]*`)(?=\w)")
_CODE = re.compile(r"(`[^`]+`)")
_HELP_COLUMNS = 88


class CliHelp(Directive):
    """What `mast3r COMMAND --help` says in the version that is documented: ``{cli-help} COMMAND``."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The text as a literal block."""
        text = help_text(*self.arguments)
        return [nodes.literal_block(text, text, language="text")]


def help_text(*command: str) -> str:
    """The help of a command, or of all of them."""
    said, before = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(_HELP_COLUMNS)
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            cli.main([*command, "--help"])
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
    return said.getvalue().rstrip()


def name_role(
    name: str, rawtext: str, text: str, lineno: int, inliner: Inliner, options: Any = None, content: Any = ()
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """Single backticks in docstrings: a link if it names something documented here, else code."""
    if not _IDENTIFIER.fullmatch(text):
        return [nodes.literal(rawtext, text)], []
    role = inliner.document.settings.env.get_domain("py").role("obj")
    return role("py:obj", rawtext, text, lineno, inliner, options or {}, content)


def plain_docstring(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings use backticks and nothing else of reStructuredText: keep `x`s, * and | from being markup."""
    for row, line in enumerate(lines):
        parts = _CODE.split(_SUFFIXED.sub(r"\1\\ ", line))
        lines[row] = "".join(
            part if part.startswith("`") else part.replace("*", r"\*").replace("|", r"\|") for part in parts
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Register what is defined here."""
    app.add_role("name", name_role)
    app.add_directive("cli-help", CliHelp)
    app.connect("autodoc-process-docstring", plain_docstring, priority=400)  # before napoleon
    return {"parallel_read_safe": True}
