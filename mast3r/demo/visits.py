"""What the page remembers about a visitor: a result, and files in a folder that nobody else uses."""

from __future__ import annotations

import shutil
import tempfile
import urllib.parse
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from mast3r.loading import WeightsCard

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Visit(Generic[Result]):
    """One result and the folder of its files.

    Attributes:
        result: What was computed.
        card: The model that computed it.
        folder: Folder of the files that were made from it.
    """

    result: Result
    card: WeightsCard
    folder: Path

    @classmethod
    def begin(cls, result: Result, card: WeightsCard, root: Path) -> Visit[Result]:
        """A visit with a new folder below `root`."""
        return cls(result, card, Path(tempfile.mkdtemp(prefix="visit-", dir=root)))

    def end(self) -> None:
        """Remove the files."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def fresh(self, name: str) -> Path:
        """Where to write a file of this name: in a new folder that cannot be guessed; browsers keep old names."""
        folder = self.folder / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return folder / name


def end_visit(visit: Visit | None) -> None:
    """Remove the files of a visit, if there was one."""
    if visit is not None:
        visit.end()


def address(path: Path) -> str:
    """Where the browser finds a file of a visit, relative to the page."""
    return "gradio_api/file=" + urllib.parse.quote(str(path))
