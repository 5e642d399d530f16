"""The files a visitor can download."""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mast3r.demo.visits import Visit
from multiview.nerfstudio import write_transforms
from multiview.reconstruction import Reconstruction
from multiview.results import PairResult


@dataclass(frozen=True)
class Choices:
    """What a visitor chose to see, and so to download.

    Attributes:
        drop_percent: Share of the points to leave out, least confident first.
        as_mesh: A surface in place of points.
        group: Component of a reconstruction.
    """

    drop_percent: float = 20.0
    as_mesh: bool = False
    group: int = 0


@dataclass(frozen=True)
class Export:
    """A file to download.

    Attributes:
        name: By which the page's scripts find it.
        label: What is on the button.
        write: Writes it for a visit.
        filtered: Whether the choices change the file.
    """

    name: str
    label: str
    write: Callable[[Visit[Any], Choices], Path]
    filtered: bool = False


def pair_exports() -> tuple[Export, ...]:
    """The files of a pair."""
    return (*_POINTS, _NPZ, Export("matches-npz", "Matches", _matches), *_cameras(_pair_scene, filtered=False))


def scene_exports() -> tuple[Export, ...]:
    """The files of a reconstruction."""
    return (*_POINTS, _NPZ, *_cameras(lambda visit: visit.result, filtered=True))


def _cameras(scene: Callable[[Visit[Any]], Reconstruction], *, filtered: bool) -> tuple[Export, ...]:
    """Files of cameras; COLMAP's needs a package that not everybody has."""

    def colmap(visit: Visit[Any], choices: Choices) -> Path:
        return _colmap(visit, scene(visit), choices)

    def transforms(visit: Visit[Any], choices: Choices) -> Path:
        return _transforms(visit, scene(visit), choices)

    exports = (Export("colmap", "COLMAP", colmap, filtered),) if importlib.util.find_spec("pycolmap") else ()
    return (*exports, Export("transforms-json", "transforms.json", transforms, filtered))


def _glb(visit: Visit[Any], choices: Choices) -> Path:
    path = visit.fresh("scene.glb")
    options = {"confidence_percentile": choices.drop_percent, **_group(visit, choices)}
    try:
        return visit.result.save(path, as_mesh=choices.as_mesh, **options)
    except ValueError:
        if not choices.as_mesh:
            raise
        return visit.result.save(path, **options)  # no triangle is left at this confidence


def _ply(visit: Visit[Any], choices: Choices) -> Path:
    path = visit.fresh("points.ply")
    return visit.result.save(path, confidence_percentile=choices.drop_percent, **_group(visit, choices))


def _npz(visit: Visit[Any], choices: Choices) -> Path:
    return visit.result.save(visit.fresh("scene.npz" if isinstance(visit.result, Reconstruction) else "pair.npz"))


def _group(visit: Visit[Any], choices: Choices) -> dict[str, int]:
    return {"component": choices.group} if isinstance(visit.result, Reconstruction) else {}


def _matches(visit: Visit[Any], choices: Choices) -> Path:
    return visit.result.matches.save(visit.fresh("matches.npz"))


def _pair_scene(visit: Visit[PairResult]) -> Reconstruction:
    result = visit.result
    names = [image.path.name if image.path else f"photo{i + 1}.jpg" for i, image in enumerate(result.images)]
    if names[0] == names[1]:
        names = [f"{i + 1}_{name}" for i, name in enumerate(names)]
    return result.to_reconstruction((names[0], names[1]))


def _colmap(visit: Visit[Any], scene: Reconstruction, choices: Choices) -> Path:
    """The model as a zip with the folder names that COLMAP expects."""
    target = visit.fresh("colmap.zip")
    folder = scene.to_colmap(target.with_name("model"), component=choices.group)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, Path("sparse", "0", path.relative_to(folder)))
    return target


def _transforms(visit: Visit[Any], scene: Reconstruction, choices: Choices) -> Path:
    """Cameras only: points would be a second file."""
    part = scene.part(choices.group)
    points, colors = part.points(100.0, component=choices.group)
    return write_transforms(visit.fresh("transforms.json"), part.images, points[:0], colors[:0])


_POINTS = (Export("glb", "GLB", _glb, filtered=True), Export("ply", "PLY", _ply, filtered=True))
_NPZ = Export("npz", "NPZ", _npz)
