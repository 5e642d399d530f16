"""What the page remembers about a visitor: one result, and files in a folder that nobody else uses."""

from __future__ import annotations

import logging
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

from mast3r.demo.pictures import confident_matches
from multiview.results import PairResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Visit:
    """One result and the folder of its files.

    Attributes:
        result: The pair.
        folder: Folder of the files that were made from it.
    """

    result: PairResult
    folder: Path

    @classmethod
    def begin(cls, result: PairResult, root: Path) -> Visit:
        """A visit with a new folder below `root`."""
        return cls(result, Path(tempfile.mkdtemp(prefix="visit-", dir=root)))

    def end(self) -> None:
        """Remove the files."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def scene(self, *, drop_percent: float, as_mesh: bool) -> Path:
        """Write the scene as .glb under a new name: viewers keep what they know by name.

        Args:
            drop_percent: Share of the points to leave out, least confident first.
            as_mesh: A surface in place of points; points if no surface is left.
        """
        path = self._fresh() / "scene.glb"
        try:
            self.result.save(path, confidence_percentile=drop_percent, as_mesh=as_mesh)
        except ValueError:
            if not as_mesh:
                raise
            logger.info("no surface is left at this confidence, points are shown")
            self.result.save(path, confidence_percentile=drop_percent)
        return path

    def points(self, *, drop_percent: float) -> Path:
        """Write the points as .ply, without the least confident share of them."""
        return self.result.save(self._fresh() / "points.ply", confidence_percentile=drop_percent)

    def everything(self) -> Path:
        """Write the whole result as .npz."""
        return self.result.save(self._fresh() / "pair.npz")

    def matches(self, *, drop_percent: float) -> Path:
        """Write the matches as .npz, without the least confident share of them."""
        matches = confident_matches(self.result.matches, drop_percent)
        return matches.save(self._fresh() / "matches.npz")

    def _fresh(self) -> Path:
        folder = self.folder / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return folder


def end_visit(visit: Visit | None) -> None:
    """Remove the files of a visit, if there was one."""
    if visit is not None:
        visit.end()
