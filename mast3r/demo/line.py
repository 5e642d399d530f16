"""One computation at a time: visitors stand in a line and are told how many are before them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

Result = TypeVar("Result")
Shown = TypeVar("Shown")
OnStep = Callable[[float, str], None]
"""Told while a computation runs: the share that is done, and what is being done, in words."""

LINE_LENGTH = 16
"""So many visitors may wait; further ones are asked to come back."""

_LOOK_AGAIN = 0.5  # seconds after which a waiting visitor's place is looked up again


class BusyError(ValueError):
    """The line is full."""


class StoppedError(ValueError):
    """Nobody waits for the result any more."""


@dataclass(frozen=True)
class Update:
    """What a visitor is told meanwhile.

    Attributes:
        text: A sentence or a few words.
        share: Share of the work that is done, 0..1; None while waiting.
    """

    text: str
    share: float | None = None


@dataclass(eq=False)
class _Job:
    """One visitor's place in the line."""

    visitor: str | None = None
    stopped: threading.Event = field(default_factory=threading.Event)
    updates: queue.SimpleQueue[Update | None] = field(default_factory=queue.SimpleQueue)

    def on_step(self, share: float, text: str) -> None:
        self.check()
        self.updates.put(Update(text, share))

    def check(self) -> None:
        if self.stopped.is_set():
            raise StoppedError("The run was stopped.")

    def news(self) -> Update | None:
        """The latest update, None after the last; those before it are out of date.

        Raises:
            queue.Empty: If nothing new was told for a while.
        """
        latest = self.updates.get(timeout=_LOOK_AGAIN)
        while latest is not None and not self.updates.empty():
            if (update := self.updates.get()) is None:
                self.updates.put(None)
                break
            latest = update
        return latest


class WorkLine:
    """Runs computations one after the other in a thread of its own.

    Args:
        length: How many may wait, besides the one that runs.
    """

    def __init__(self, length: int = LINE_LENGTH):
        self._length = length
        self._jobs: list[_Job] = []  # the running one first
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="page-work")

    def run(self, work: Callable[[OnStep], Result], visitor: str | None = None) -> Generator[Update, None, Result]:
        """Wait for one's turn and compute; if the generator is closed, the computation stops at its next step.

        Args:
            work: The computation; it is given a function to tell its steps to.
            visitor: Who asks for it, for `stop`.

        Yields:
            What to tell the visitor.

        Returns:
            The result of `work`.

        Raises:
            BusyError: If the line is full.
            StoppedError: If the visitor stopped it.
        """
        job = self._join(visitor)
        future = self._pool.submit(self._work, job, work)
        try:
            yield from self._updates(job)
            return future.result()
        finally:
            job.stopped.set()
            if future.cancel():
                self._leave(job)

    def stop(self, visitor: str | None) -> None:
        """End what `visitor` computes or waits for."""
        with self._lock:
            jobs = [job for job in self._jobs if job.visitor == visitor]
        for job in jobs:
            job.stopped.set()

    def _join(self, visitor: str | None) -> _Job:
        with self._lock:
            if len(self._jobs) > self._length:
                raise BusyError("Too many visitors are waiting at the moment; please try again in a few minutes.")
            self._jobs.append(job := _Job(visitor))
        return job

    def _leave(self, job: _Job) -> None:
        with self._lock:
            self._jobs.remove(job)

    def _ahead(self, job: _Job) -> int:
        with self._lock:
            return self._jobs.index(job) if job in self._jobs else 0

    def _work(self, job: _Job, work: Callable[[OnStep], Result]) -> Result:
        try:
            job.check()
            return work(job.on_step)
        finally:
            self._leave(job)
            job.updates.put(None)

    def _updates(self, job: _Job) -> Generator[Update, None, None]:
        told = 0
        while True:
            job.check()
            if (ahead := self._ahead(job)) and ahead != told:
                told = ahead
                yield _waiting(ahead)
            try:
                update = job.news()
            except queue.Empty:
                continue
            if update is None:
                return
            yield update


def follow(updates: Generator[Update, None, Result], show: Callable[[Update], Shown]) -> Generator[Shown, None, Result]:
    """Show each update of a computation, then return its result."""
    try:
        while True:
            yield show(next(updates))
    except StopIteration as end:
        return end.value
    finally:
        updates.close()


def _waiting(ahead: int) -> Update:
    who = "another visitor's run goes" if ahead == 1 else f"{ahead} runs of other visitors go"
    return Update(f"You are in the queue: {who} first.")
