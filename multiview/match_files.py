"""Matches in the file forms of other tools: hloc's HDF5 and COLMAP's text lists.

h5py is imported when an .h5 file is written (`pip install 'mast3r[h5]'`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from multiview.colmap_model import PIXEL_SHIFT
from multiview.files import atomic_folder, atomic_path
from multiview.keypoint_graph import KeypointGraph

FEATURES_FOLDER = "features"
"""Folder of COLMAP's keypoint files, beside the list of matches."""

_DESCRIPTOR_SIZE = 128  # COLMAP's reader wants so many numbers per keypoint; nothing uses them


def write_hloc(
    path: str | os.PathLike[str], graph: KeypointGraph, *, features_path: str | os.PathLike[str] | None = None
) -> Path:
    """Write keypoints and matches as hloc reads them, atomically.

    Keypoints: group IMAGE NAME with `keypoints` (K, 2) float32 in pixels with integer centres. Matches: group
    NAME0/NAME1 ("/" within a name becomes "-") with `matches0` (K0,) int32, the number of the matching keypoint of
    image 1 or -1, and `matching_scores0` (K0,) float32, 0 where unmatched.

    Args:
        path: Target file of the matches, and of the keypoints unless these go elsewhere.
        graph: Keypoints and matches.
        features_path: A file of its own for the keypoints.

    Returns:
        The path of the matches.

    Raises:
        ValueError: If two pairs would get one name.
        ImportError: If h5py is not installed.
    """
    h5py = _h5py()
    groups = {pair: _pair_name(*(graph.names[i] for i in pair)) for pair in graph.pairs}
    if len(set(groups.values())) != len(groups):
        raise ValueError("Two pairs would share one name in hloc's file: image names must differ in more than / and -.")
    with atomic_path(path) as part, h5py.File(part, "w") as file:
        if features_path is None:
            _write_keypoints(file, graph)
        for pair, name in groups.items():
            target, score = _as_columns(graph, pair)
            group = file.require_group(name)
            group.create_dataset("matches0", data=target)
            group.create_dataset("matching_scores0", data=score)
    if features_path is not None:
        with atomic_path(features_path) as part, h5py.File(part, "w") as file:
            _write_keypoints(file, graph)
    return Path(path)


def write_colmap_lists(path: str | os.PathLike[str], graph: KeypointGraph) -> Path:
    """Write COLMAP's list of raw matches and, in a folder `features` beside it, a keypoint file per image.

    They are read by `colmap feature_importer --import_path features` and `colmap matches_importer --match_type
    raw --match_list_path LIST`. Keypoints are in COLMAP's pixels, half a pixel more than ours; descriptors are zero.

    Args:
        path: Target file of the match list.
        graph: Keypoints and matches.

    Returns:
        The path.

    Raises:
        ValueError: If a name holds a space, which separates names there, or leaves the folder.
    """
    path = Path(path)
    _check_names(graph.names)
    blocks = []
    for (i, j), matches in graph.pairs.items():
        lines = [f"{graph.names[i]} {graph.names[j]}", *(f"{a} {b}" for a, b in matches.tolist()), ""]
        blocks.append("\n".join(lines))
    with atomic_folder(path.parent) as part:
        for name, keypoints in zip(graph.names, graph.keypoints):
            file = part / FEATURES_FOLDER / f"{name}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(_keypoint_text(keypoints))
        (part / path.name).write_text("\n".join([*blocks, ""]))
    return path


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ImportError("Writing .h5 files needs h5py: pip install 'mast3r[h5]'.") from error
    return h5py


def _pair_name(name0: str, name1: str) -> str:
    return "/".join(name.replace("/", "-") for name in (name0, name1))


def _write_keypoints(file: Any, graph: KeypointGraph) -> None:
    for name, keypoints in zip(graph.names, graph.keypoints):
        file.require_group(name).create_dataset("keypoints", data=keypoints.astype(np.float32))


def _as_columns(graph: KeypointGraph, pair: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """For each keypoint of the first image its match in the second (-1 for none) and the score."""
    count = len(graph.keypoints[pair[0]])
    target, score = np.full(count, -1, np.int32), np.zeros(count, np.float32)
    first, second = graph.pairs[pair].T
    target[first] = second
    score[first] = graph.confidence[pair]
    return target, score


def _check_names(names: Iterable[str]) -> None:
    for name in names:
        if any(map(str.isspace, name)):
            raise ValueError(f"COLMAP's text files cannot hold the space in image name {name!r}.")
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"Image name {name!r} must be a path inside the folder of the images.")


def _keypoint_text(keypoints: np.ndarray) -> str:
    """COLMAP's text form of keypoints: x, y, scale, orientation and a descriptor per line."""
    tail = " 1 0" + " 0" * _DESCRIPTOR_SIZE
    shifted = (keypoints.astype(np.float64) + PIXEL_SHIFT).tolist()
    return "\n".join([f"{len(keypoints)} {_DESCRIPTOR_SIZE}", *(f"{x:.9g} {y:.9g}{tail}" for x, y in shifted), ""])
