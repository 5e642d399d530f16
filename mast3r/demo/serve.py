"""Serving the page, on this machine only unless told otherwise."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from mast3r.demo.look import page_head, page_style, page_theme
from mast3r.demo.options import PageOptions
from mast3r.demo.page import build_page
from mast3r.demo.shelf import ModelShelf
from mast3r.demo.uploads import MAX_FILE_SIZE
from mast3r.model import AsymmetricMASt3R

# The browser itself refuses to ask any other server.
_CONTENT_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' data: blob: ws: wss:; "
    "object-src 'none'; base-uri 'self'"
)


class _OnlyThisServer:
    """ASGI middleware: every answer forbids the page to load anything from elsewhere."""

    def __init__(self, app: Any):
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _CONTENT_POLICY.encode())
                message = {**message, "headers": [*message.get("headers", ()), policy]}
            await send(message)

        await self._app(scope, receive, send_with_policy)


def serve_page(model: AsymmetricMASt3R | ModelShelf, options: PageOptions | None = None) -> None:
    """Serve the page until it is stopped, then remove its files.

    Args:
        model: A MASt3R model, or several to choose from.
        options: How it is served.
    """
    options = options or PageOptions()
    if options.tmp_dir is not None:
        options.tmp_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mast3r-page-", dir=options.tmp_dir) as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder, "gradio"))
        root = Path(folder, "visits")
        root.mkdir()
        page = build_page(model, root, options)
        launch(page, options, root)


def launch(page: gr.Blocks, options: PageOptions, root: Path, *, wait: bool = True) -> tuple[str, str | None]:
    """Start serving.

    Args:
        page: What `build_page` returned.
        options: How it is served.
        root: Folder of the visitors' files.
        wait: Return only when the page was stopped; else the caller closes the page.

    Returns:
        The local address and the public one, if any.
    """
    _, local, public = page.launch(
        server_name=options.server_name,
        server_port=options.server_port,
        share=options.share,
        quiet=options.silent,
        prevent_thread_lock=not wait,
        max_file_size=MAX_FILE_SIZE,
        allowed_paths=[str(root), *(str(path) for path in options.samples)],
        show_error=False,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        theme=page_theme(),
        css=page_style(),
        head=page_head(),
        app_kwargs={"middleware": [Middleware(_OnlyThisServer)]},
    )
    return local, public
