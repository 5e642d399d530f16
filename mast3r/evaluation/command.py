"""What the evaluation commands have in common: measure, write the numbers, print a table."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from multiview.files import atomic_write

Found = TypeVar("Found")


def run_command(
    measure: Callable[[], Found],
    table: Callable[[Found], str],
    save: Callable[[Path, Found], None],
    path: Path | None,
) -> int:
    """Measure, save and print; what is wrong with the user's data or set-up is told in one sentence.

    Args:
        measure: Does the work.
        table: What it found, for the terminal.
        save: Writes all numbers to a file.
        path: That file, if one is wanted.

    Returns:
        The exit status.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        found = measure()
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if path is not None:
        save(path, found)
    sys.stdout.write(table(found) + "\n")
    return 0


def save_scores(path: Path, scores: Sequence[Any]) -> None:
    """Write dataclasses as a JSON list."""
    with atomic_write(path) as file:
        file.write(json.dumps([asdict(score) for score in scores], indent=1).encode())
