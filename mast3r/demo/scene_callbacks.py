"""What the Scene tab does when something is clicked: plain values in, plain values out, no Gradio."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mast3r.demo.exports import Export, scene_exports
from mast3r.demo.line import OnStep
from mast3r.demo.markup import Fact, PhotoNote, facts_html
from mast3r.demo.pictures import thumbnail
from mast3r.demo.scene_file import reconstruction_scene, write_scene_file
from mast3r.demo.shelf import ModelShelf
from mast3r.demo.text import SCALE_WORDS, duration
from mast3r.demo.uploads import check_upload
from mast3r.demo.visits import Visit, address
from mast3r.scenes.graph import GraphPlan
from mast3r.scenes.reconstruction import ReconstructConfig, reconstruct
from multiview.images import ImageError
from multiview.reconstruction import ReconstructedImage, Reconstruction
from multiview.views import View

STEP_WORDS = {
    "read": "Reading the photos",
    "encode": "Looking at each photo",
    "graph": "Choosing which photos to compare",
    "pairs": "Comparing photos",
    "place": "Placing matches",
    "align": "Fitting cameras and points",
    "tracks": "Following points through the photos",
}
MIXED, SEQUENCE = "In any order", "A sequence"


@dataclass(frozen=True)
class Photos:
    """The uploads of a scene.

    Attributes:
        paths: Where they are kept.
        names: What the visitor calls them, each once.
        problems: Why a photo cannot be used, one sentence; empty if it can.
    """

    paths: tuple[str, ...]
    names: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def usable(self) -> list[View]:
        """The photos that can be used."""
        entries = zip(self.paths, self.names, self.problems)
        return [View(path, name=name) for path, name, problem in entries if not problem]


SceneVisit = Visit[Reconstruction]


class SceneCallbacks:
    """What the Scene tab does when something is clicked; plain values in, plain values out.

    Args:
        shelf: The models.
        root: Existing folder for the visitors' files.
        max_photos: More photos are refused.
    """

    exports: tuple[Export, ...] = scene_exports()

    def __init__(self, shelf: ModelShelf, root: Path, *, max_photos: int = 60):
        self._shelf = shelf
        self._root = root
        self._max_photos = max_photos

    def look(self, paths: Sequence[str] | None) -> Photos:
        """Which uploads are photos, without decoding them.

        Raises:
            ValueError: If there are too many.
        """
        paths = tuple(paths or ())
        if len(paths) > self._max_photos:
            raise ValueError(f"This page takes up to {self._max_photos} photos at once, got {len(paths)}.")
        names = unique_names([Path(path).name for path in paths])
        return Photos(paths, names, tuple(map(_problem, paths, names)))

    def reconstruct(
        self, photos: Photos, order: str = MIXED, model: str | None = None, on_step: OnStep | None = None
    ) -> SceneVisit:
        """Cameras and points of many photos.

        Raises:
            ValueError: If fewer than two photos can be used.
        """
        if len(photos.usable) < 2:
            raise ValueError("Choose at least two photos, better five or more, that show the same place.")
        words = dict(STEP_WORDS)

        def tell(share: float, stage: str) -> None:
            if on_step is not None:
                on_step(share, words.get(stage, stage))

        def plan(graph: GraphPlan) -> None:
            words["pairs"] = f"Comparing {len(graph.edges)} pairs of photos"

        card = self._shelf.card(model)
        cache = tempfile.mkdtemp(prefix="pairs-", dir=self._root)
        try:
            found = reconstruct(
                self._shelf.model(model),
                photos.usable,
                config=ReconstructConfig(ordered=order == SEQUENCE),
                cache_dir=cache,
                progress=tell,
                on_plan=plan,
            )
        finally:
            shutil.rmtree(cache, ignore_errors=True)
        return Visit.begin(_upright(_without_paths(found, photos)), card, self._root)

    # --- what is shown ---

    def ready_notes(self, photos: Photos) -> list[PhotoNote]:
        """Uploads before a run."""
        return [
            PhotoNote(name, thumbnail(path), "failed" if problem else "ready", problem)
            for path, name, problem in zip(photos.paths, photos.names, photos.problems)
        ]

    def notes(self, visit: SceneVisit, photos: Photos, group: int = 0) -> list[PhotoNote]:
        """What became of each photo; those of the shown group lead to their view."""
        images = {image.name: image for image in visit.result.images}
        members = [image.name for image in group_of(visit.result, group)]
        notes = []
        for note in self.ready_notes(photos):
            image = images.get(note.name)
            notes.append(note if image is None else _told(note, image, members, group))
        return notes

    def scene(self, visit: SceneVisit, group: int = 0) -> dict[str, Any]:
        """What the 3D viewer shows of one group."""
        scene = reconstruction_scene(visit.result, group)
        if not scene.cameras:
            return {"message": "None of the photos could be placed; the list says why."}
        return {"url": address(write_scene_file(visit.fresh("scene.bin"), scene))}

    def groups(self, visit: SceneVisit) -> list[tuple[str, int]]:
        """Groups of photos with a common world, as choices."""
        result = visit.result
        return [
            (f"Group {n + 1}: {len(group_of(result, component))} photos", component)
            for n, component in enumerate(result.components)
        ]

    def facts(self, visit: SceneVisit, photos: Photos) -> str:
        """The numbers, as HTML."""
        return facts_html(scene_facts(visit.result, len(photos.names)))


def unique_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names, numbered where they repeat."""
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        path = Path(name)
        unique.append(name if seen[name] == 1 else f"{path.stem} ({seen[name]}){path.suffix}")
    return tuple(unique)


def group_of(result: Reconstruction, component: int) -> list[ReconstructedImage]:
    """The placed photos of one component."""
    return [image for image in result.images if image.registered and image.component == component]


def scene_facts(result: Reconstruction, num_photos: int) -> list[Fact]:
    """The numbers of a reconstruction of so many uploads."""
    placed = [image for image in result.images if image.camera is not None]
    groups = len(result.components)
    facts = [
        Fact("Photos placed", f"{len(placed)} of {num_photos}", f"in {groups} groups" if groups > 1 else ""),
        Fact(
            "Points", f"{sum(_points(image) for image in placed):,}", f"{len(result.tracks):,} followed through photos"
        ),
    ]
    if placed:
        focals = [image.camera.focal[0] for image in placed if image.camera]
        angles = [image.camera.fov_deg[0] for image in placed if image.camera]
        facts.append(Fact("Focal lengths", _span(focals, " px"), f"{_span(angles, '°')} wide"))
    times = result.timings
    return [
        *facts,
        Fact("Scale", *SCALE_WORDS[result.scale_status]),
        Fact("Time", duration(sum(times.values())), ", ".join(f"{name} {value:.1f}" for name, value in times.items())),
    ]


def _points(image: ReconstructedImage) -> int:
    return 0 if image.pointmap is None else int(image.pointmap.valid.sum())


def _span(values: Sequence[float], unit: str) -> str:
    low, high = f"{np.min(values):.0f}", f"{np.max(values):.0f}"
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def _problem(path: str, name: str) -> str:
    try:
        check_upload(path, name)
    except ImageError as error:
        return str(error)
    return ""


def _told(note: PhotoNote, image: ReconstructedImage, members: Sequence[str], group: int) -> PhotoNote:
    if not image.registered:
        return replace(note, state="failed", note=image.reason)
    if image.component != group:
        return replace(note, state="placed", note="in another group")
    focal = image.camera.focal[0] if image.camera else 0.0
    return replace(note, state="placed", note=f"focal {focal:.0f} px", view=members.index(image.name))


def _without_paths(result: Reconstruction, photos: Photos) -> Reconstruction:
    """The same without telling where the server kept the uploads."""
    kept = dict(zip(photos.names, photos.paths))
    images = tuple(
        replace(image, path=None, reason=image.reason.replace(kept[image.name], image.name)) for image in result.images
    )
    return replace(result, images=images)


def _upright(result: Reconstruction) -> Reconstruction:
    """The scene with gravity down, if anything was placed."""
    return result.align() if result.registered else result
