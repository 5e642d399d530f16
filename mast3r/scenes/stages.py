"""Progress and time of work that goes through named stages."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

logger = logging.getLogger(__name__)

Progress: TypeAlias = "Callable[[float, str], None]"
"""Told the share of the work that is done, 0..1, and the name of the stage it is in."""


class Stages:
    """Runs stages one after the other.

    Args:
        weights: Name -> about how much of the time the stage takes, in the order they run.
        listener: Told about progress; None tells nobody.

    Attributes:
        seconds: Time of every finished stage, by name.
    """

    def __init__(self, weights: Mapping[str, float], listener: Progress | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._weights = dict(weights)
        self._listener = listener
        self._told = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[float], None]]:
        """Run a stage; yields a function that takes the share of it that is done."""
        names = list(self._weights)
        total = sum(self._weights.values())
        start_share = sum(self._weights[other] for other in names[: names.index(name)]) / total
        weight = self._weights[name] / total

        def report(share: float) -> None:
            # Sums of shares round differently: a bar must not run backwards.
            self._told = min(max(self._told, start_share + weight * min(max(share, 0.0), 1.0)), 1.0)
            if self._listener is not None:
                self._listener(self._told, name)

        report(0.0)
        start = time.perf_counter()
        yield report
        self.seconds[name] = time.perf_counter() - start
        logger.info("%s: %.2f s", name, self.seconds[name])
        report(1.0)
