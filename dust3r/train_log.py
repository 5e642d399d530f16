"""What a training run tells: JSON lines, TensorBoard, a progress bar, and where its time goes."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

logger = logging.getLogger(__name__)

LOG_NAME = "log.jsonl"


class Averages:
    """Weighted means of scalars over steps, summed on their device; only `flush` waits for the device."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._weight: torch.Tensor | None = None
        self._steps = 0

    def add(self, values: Mapping[str, torch.Tensor], weight: torch.Tensor) -> None:
        """Add a step's values (scalars on one device); with weight 0 they do not count, finite or not."""
        for name, value in values.items():
            counted = torch.where(weight > 0, value.detach().float() * weight, 0.0)
            self._sums[name] = self._sums[name] + counted if name in self._sums else counted
        self._weight = weight if self._weight is None else self._weight + weight
        self._steps += 1

    def flush(self) -> tuple[dict[str, float], int, float]:
        """Since the last flush: the mean of each name, the number of steps and their weight; one transfer."""
        if self._weight is None:
            return {}, 0, 0.0
        *totals, weight = torch.stack([*self._sums.values(), self._weight]).tolist()
        means = {name: total / weight if weight else math.nan for name, total in zip(self._sums, totals)}
        steps = self._steps
        self._sums, self._weight, self._steps = {}, None, 0
        return means, steps, weight


class PhaseClock:
    """Seconds spent in named phases; on CUDA by events, so that measuring makes nobody wait.

    Phases on different streams may overlap: their times then add up to more than the time that went by.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Count the time of the block under `phase`."""
        if self._cuda:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            end.record()
            self._events.append((phase, start, end))
        else:
            began = time.perf_counter()
            yield
            self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - began

    def flush(self) -> dict[str, float]:
        """Seconds per phase since the last flush."""
        events, self._events = self._events, []
        for phase, start, end in events:
            end.synchronize()
            self._seconds[phase] = self._seconds.get(phase, 0.0) + start.elapsed_time(end) / 1000
        seconds, self._seconds = self._seconds, {}
        return seconds


class RunLog:
    """Writes records to `log.jsonl`, to TensorBoard when it is installed, and shows a progress bar.

    Records of a session that was killed stay in the file: where a step occurs twice, the later line counts.
    """

    def __init__(self, folder: Path, *, enabled: bool = True, start: float = 0.0) -> None:
        self._enabled = enabled
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / LOG_NAME, "a", encoding="utf-8")
        self._board = _tensorboard_writer(folder)
        layout = "{percentage:5.1f}%|{bar}| {elapsed}<{remaining}{postfix}"
        self._bar = tqdm(total=1.0, initial=start, disable=None, bar_format=layout, dynamic_ncols=True)

    def progress(self, fraction: float) -> None:
        """Move the bar to `fraction` of the run."""
        if self._enabled:
            self._bar.update(max(0.0, min(1.0, fraction) - self._bar.n))

    def write(self, kind: str, record: Mapping[str, Any]) -> None:
        """Write one line; numbers also go to TensorBoard under `kind/`, when the record has a `step`."""
        if not self._enabled:
            return
        line = {"kind": kind, "time": round(time.time(), 3), **record}
        self._file.write(json.dumps(_plain(line)) + "\n")
        self._file.flush()
        if self._board is not None and "step" in record:
            for name, value in record.items():
                if isinstance(value, (int, float)) and name != "step":
                    self._board.add_scalar(f"{kind}/{name}", value, record["step"])

    def show(self, text: str) -> None:
        """One line for the reader: beside the bar on a terminal, else as a log message."""
        if not self._enabled:
            return
        if self._bar.disable:
            logger.info(text)
        else:
            self._bar.set_postfix_str(text)

    def close(self) -> None:
        """Finish the files and the bar."""
        if self._enabled:
            self._bar.close()
            self._file.close()
            if self._board is not None:
                self._board.close()


def _tensorboard_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.warning("TensorBoard is not installed: scalars go to %s only", folder / LOG_NAME)
        return None
    return SummaryWriter(str(folder / "tensorboard"))


def _plain(value: Any) -> Any:
    """`value` as strict JSON: rounded numbers, null for what is not finite, text for everything unknown."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value if isinstance(value, (int, str, bool, type(None))) else str(value)
