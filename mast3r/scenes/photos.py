"""The photos of a reconstruction: reading them, and naming those that cannot be read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from dust3r.utils.image import HEIF_SUFFIXES, IMAGE_SUFFIXES
from mast3r.model import AsymmetricMASt3R
from mast3r.pairs.two_view import ModelInput, model_input
from multiview.images import ImageError, ImageSource, as_image
from multiview.views import View, ViewConstraints, as_view

PhotoSource: TypeAlias = "ImageSource | View"
PhotoList: TypeAlias = "Sequence[PhotoSource] | str | os.PathLike[str]"
"""Photos, or a folder of photos."""

_SUFFIXES = (*IMAGE_SUFFIXES, *HEIF_SUFFIXES)


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo as a reconstruction uses it. The full-size pixels are not kept.

    Attributes:
        name: Unique name.
        path: File it was read from, if any.
        size: (width, height) of the upright original; (0, 0) if it could not be read.
        input: What the network sees; None if it could not be read.
        known: What the user knows, in original pixels.
        constraints: The same in MODEL pixels.
        reason: Why it could not be read, one sentence.
        source: What it was read from, to look at its full-size pixels again.
    """

    name: str
    path: Path | None
    size: tuple[int, int]
    input: ModelInput | None
    known: ViewConstraints
    constraints: ViewConstraints
    reason: str = ""
    source: ImageSource | None = None


def list_photos(images: PhotoList, constraints: Sequence[ViewConstraints | None] | None = None) -> list[View]:
    """The photos to reconstruct, as views with unique names.

    Args:
        images: Photos, or a folder: its files of known image types, by name.
        constraints: What is known about each photo; replaces what the views say.

    Raises:
        ValueError: If there are no photos, or not as many constraints as photos.
        NotADirectoryError: If a single path is given that is no folder.
    """
    views = [as_view(image) for image in (_in_folder(Path(images)) if isinstance(images, _PathTypes) else images)]
    if not views:
        raise ValueError("There are no images to reconstruct; give at least two.")
    if constraints is not None:
        if len(constraints) != len(views):
            raise ValueError(f"There are {len(views)} images but constraints for {len(constraints)}; give one each.")
        views = [View(v.image, c or ViewConstraints(), v.name) for v, c in zip(views, constraints)]
    return [View(v.image, v.constraints, name) for v, name in zip(views, _unique_names(views))]


def read_photos(
    model: AsymmetricMASt3R,
    views: Sequence[View],
    *,
    image_size: int | None = None,
    crop: bool | None = None,
    on_done: Callable[[int, int], None] | None = None,
) -> list[Photo]:
    """Read photos one after the other, keeping only what the network sees of them.

    A photo that cannot be used becomes one without input and with a reason; the others go on.

    Args:
        model: The model the photos are resized for.
        views: Photos with unique names.
        image_size: Size of the model's input; None takes the size it was trained at.
        crop: See `mast3r.pairs.two_view.model_input`.
        on_done: Told after each photo: how many are read, and how many there are.

    Raises:
        ValueError: If constraints contradict their photo.
    """
    photos = []
    for k, view in enumerate(views):
        photos.append(_read(model, view, image_size, crop))
        if on_done is not None:
            on_done(k + 1, len(views))
    return photos


_PathTypes = (str, os.PathLike)


def _read(model: AsymmetricMASt3R, view: View, image_size: int | None, crop: bool | None) -> Photo:
    name, path = view.name or "image", _path(view)
    try:
        image = as_image(view.image)
        seen = model_input(model, image, image_size=image_size, crop=crop)
    except ImageError as error:
        return Photo(name, path, (0, 0), None, view.constraints, ViewConstraints(), str(error))
    try:
        constraints = view.constraints.transformed(seen.transform)
    except ValueError as error:
        raise ValueError(f"The constraints of image {name!r} do not fit: {error}") from error
    return Photo(name, path or image.path, image.size, seen, view.constraints, constraints, source=view.image)


def _path(view: View) -> Path | None:
    return Path(view.image) if isinstance(view.image, _PathTypes) else getattr(view.image, "path", None)


def _in_folder(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder of images; give a folder or a list of images.")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not found:
        raise ValueError(f"{folder} holds no image ({', '.join(_SUFFIXES)}).")
    return found


def _unique_names(views: Sequence[View]) -> list[str]:
    """Given names, else paths below their common folder, else numbers; repeated ones get a number."""
    paths = [_path(view) for view in views]
    common = _common_folder(path for path in paths if path is not None)
    names = []
    for k, (view, path) in enumerate(zip(views, paths)):
        names.append(view.name or (_below(path, common) if path is not None else f"image {k}"))
    repeated, seen = {name for name, count in Counter(names).items() if count > 1}, Counter[str]()
    for k, name in enumerate(names):
        if name in repeated:
            seen[name] += 1
            names[k] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return names


def _common_folder(paths: Iterable[Path]) -> str | None:
    parents = [os.path.abspath(path.parent) for path in paths]
    try:
        return os.path.commonpath(parents) if parents else None
    except ValueError:  # different drives
        return None


def _below(path: Path, folder: str | None) -> str:
    return path.name if folder is None else Path(os.path.relpath(os.path.abspath(path), folder)).as_posix()
