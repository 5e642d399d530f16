"""Safe constructor expressions instead of `eval` (defined beside the checkpoint reader, one floor below)."""

from __future__ import annotations

from croco.expression import build, parse_call

__all__ = ["build", "parse_call"]
