"""The demo: a command line for two photos, and a Gradio page. Gradio is imported only when the page opens."""

from __future__ import annotations

import os

from mast3r.demo.arguments import get_args_parser
from mast3r.demo.entry import main, main_demo

# Gradio counts its users unless it is told not to before it is imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

__all__ = ["get_args_parser", "main", "main_demo"]
