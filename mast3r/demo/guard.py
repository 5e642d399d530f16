"""Errors in the page: one sentence for the visitor, the rest in the log."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import gradio as gr
import torch

logger = logging.getLogger(__name__)
Callback = TypeVar("Callback", bound=Callable[..., Any])


def sentence_of(error: Exception) -> str:
    """What the visitor reads about an error; what is not meant for visitors goes to the log."""
    if isinstance(error, ValueError):  # the library's ValueErrors are written for users
        return str(error)
    logger.error("a callback of the page failed", exc_info=error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return "The computer ran out of memory; try fewer or smaller photos."
    return "Something went wrong while computing; the program's log says what."


def told_in_one_sentence(callback: Callback) -> Callback:
    """A callback whose errors pop up in the page as a sentence."""

    @functools.wraps(callback)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return callback(*args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:
            raise gr.Error(sentence_of(error), print_exception=False) from error

    return guarded  # type: ignore[return-value]
