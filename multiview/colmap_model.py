"""COLMAP's models on disk and in memory. This is the only module that imports pycolmap.

COLMAP counts pixels from the image's outer corner, so that the centre of its first pixel is (0.5, 0.5): half a
pixel is added on the way there and taken away on the way back, here and nowhere else. Poses there are
camera-from-world.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multiview.cameras import Camera
from multiview.files import atomic_folder
from multiview.poses import Pose
from multiview.reconstructed_image import ReconstructedImage
from multiview.similarity import nearest_rotation
from multiview.tracks import Tracks

PIXEL_SHIFT = 0.5
"""What COLMAP adds to our pixel coordinates."""

_KINDS = ("cameras", "images", "points3D", "rigs", "frames")
# How the parameters of COLMAP's models follow from fx, fy, cx, cy, k1, k2, p1, p2.
_MODELS = {
    "SIMPLE_PINHOLE": ("f", "cx", "cy"),
    "PINHOLE": ("fx", "fy", "cx", "cy"),
    "SIMPLE_RADIAL": ("f", "cx", "cy", "k1"),
    "RADIAL": ("f", "cx", "cy", "k1", "k2"),
    "OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2"),
}


def require_pycolmap() -> Any:
    """The pycolmap module.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import pycolmap
    except ImportError as error:
        raise ImportError("COLMAP files and mappers need pycolmap 4 or later: pip install 'mast3r[sfm]'.") from error
    return pycolmap


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep COLMAP's own messages, but for errors, away from the terminal."""
    log = require_pycolmap().logging
    level = log.minloglevel
    log.minloglevel = max(level, int(log.ERROR))
    try:
        yield
    finally:
        log.minloglevel = level


def write_model(
    folder: str | os.PathLike[str], images: Sequence[ReconstructedImage], tracks: Tracks, *, binary: bool = True
) -> Path:
    """Write registered images, their cameras and the tracks as a COLMAP model, atomically.

    Args:
        folder: Folder for cameras, images, points3D, rigs and frames; other files in it stay.
        images: All images; failed ones are left out. They must share one world. Image number i becomes
            COLMAP's image i + 1; images with equal intrinsics share a camera.
        tracks: Points observed in registered images.
        binary: Binary (.bin) or text (.txt) files.

    Returns:
        The folder.

    Raises:
        ValueError: If no image is registered, or a name has a space, which text files cannot hold.
        ImportError: If pycolmap is not installed.
    """
    spaced = [image.name for image in images if image.registered and any(map(str.isspace, image.name))]
    if spaced and not binary:
        raise ValueError(f"COLMAP's text files cannot hold the space in {spaced[0]!r}; write binary ones.")
    model = to_pycolmap(images, tracks)
    ours, others = (".bin", ".txt") if binary else (".txt", ".bin")
    # COLMAP reads binary files first: old ones would hide new text files.
    with atomic_folder(folder, stale=[kind + others for kind in _KINDS]) as part:
        (model.write_binary if binary else model.write_text)(str(part))
        missing = [kind for kind in _KINDS[:3] if not (part / (kind + ours)).is_file()]
        if missing:
            raise OSError(f"COLMAP wrote no {missing[0]}{ours} into {folder}.")
    return Path(folder)


def read_model(folder: str | os.PathLike[str]) -> tuple[tuple[ReconstructedImage, ...], Tracks]:
    """Images and tracks of a COLMAP model, binary or text.

    Args:
        folder: Folder with cameras, images and points3D.

    Returns:
        The registered images in the order of COLMAP's image numbers, and the tracks.

    Raises:
        ValueError: If there is no such model, or a camera model has no counterpart here.
        ImportError: If pycolmap is not installed.
    """
    folder = Path(folder)
    if not any(all((folder / (kind + suffix)).is_file() for kind in _KINDS[:3]) for suffix in (".bin", ".txt")):
        raise ValueError(f"{folder} holds no COLMAP model: cameras, images and points3D (.bin or .txt) are needed.")
    model = require_pycolmap().Reconstruction()
    try:
        with quiet():
            model.read(str(folder))
    except Exception as error:  # pycolmap raises many kinds for damaged files
        raise ValueError(f"The COLMAP model in {folder} cannot be read ({error}).") from error
    return from_pycolmap(model)


def to_pycolmap(images: Sequence[ReconstructedImage], tracks: Tracks, *, square_pixels: bool = False) -> Any:
    """A `pycolmap.Reconstruction` (see `write_model` for the other arguments).

    Point number p of the tracks becomes COLMAP's point p + 1.

    Args:
        images: All images.
        tracks: Points observed in registered images.
        square_pixels: Pinhole cameras with equal focal lengths become SIMPLE_PINHOLE, which keeps them
            equal when COLMAP refines them.

    Raises:
        ValueError: If no image is registered.
    """
    pycolmap = require_pycolmap()
    model = pycolmap.Reconstruction()
    if not any(image.registered for image in images):
        raise ValueError("There is no registered image to export.")
    camera_ids: dict[tuple[Any, ...], int] = {}
    place = np.zeros(len(tracks.xy), np.int64)  # of each observation in its image's list
    for i, image in enumerate(images):
        if image.camera is None or image.pose is None:
            continue
        key = camera_key(image.camera)
        if key not in camera_ids:
            camera_ids[key] = len(camera_ids) + 1
            name = simplest_model(image.camera) if square_pixels else None
            model.add_camera_with_trivial_rig(pycolmap_camera(image.camera, camera_ids[key], model=name))
        here = np.flatnonzero(tracks.image_index == i)
        place[here] = np.arange(len(here))
        model.add_image_with_trivial_frame(
            pycolmap.Image(
                name=image.name,
                keypoints=tracks.xy[here].astype(np.float64) + PIXEL_SHIFT,
                camera_id=camera_ids[key],
                image_id=i + 1,
            ),
            _rigid(image.pose),
        )
    _add_points(model, tracks, place)
    model.update_point_3d_errors()
    return model


def from_pycolmap(model: Any) -> tuple[tuple[ReconstructedImage, ...], Tracks]:
    """Inverse of `to_pycolmap`: registered images by ascending number, and all points with their observations."""
    ids = sorted(model.reg_image_ids())
    images, keypoints = [], {}
    for image_id in ids:
        image = model.images[image_id]
        camera = our_camera(model.cameras[image.camera_id])
        pose = our_pose(image.cam_from_world())
        images.append(
            ReconstructedImage(image.name, (camera.width, camera.height), "registered", "", None, camera, pose)
        )
        keypoints[image_id] = np.array([point.xy for point in image.points2D]).reshape(-1, 2) - PIXEL_SHIFT
    return tuple(images), read_tracks(model, {image_id: i for i, image_id in enumerate(ids)}, keypoints)


def read_tracks(model: Any, index_of: dict[int, int], keypoints: dict[int, np.ndarray]) -> Tracks:
    """All points of a model with their observations.

    Args:
        model: The `pycolmap.Reconstruction`.
        index_of: Our image number by COLMAP's.
        keypoints: (K, 2) pixels, in our convention, of each image by COLMAP's number.
    """
    numbers = sorted(model.point3D_ids())
    points = [model.points3D[number] for number in numbers]
    elements = [
        (p, element.image_id, element.point2D_idx)
        for p, point in enumerate(points)
        for element in point.track.elements
        if element.image_id in index_of
    ]
    point_index, image_id, place = np.array(elements, dtype=np.int64).reshape(-1, 3).T
    xy = [keypoints[i][j] for i, j in zip(image_id.tolist(), place.tolist())]
    return Tracks(
        np.array([point.xyz for point in points]).reshape(-1, 3),
        np.array([point.color for point in points], dtype=np.uint8).reshape(-1, 3),
        point_index,
        np.array([index_of[i] for i in image_id.tolist()], dtype=np.int64),
        np.array(xy).reshape(-1, 2),
    )


def camera_key(camera: Camera) -> tuple[Any, ...]:
    """Equal for cameras with equal intrinsics."""
    return (camera.model, camera.width, camera.height, *camera.K.ravel().tolist(), *camera.distortion)


def pycolmap_camera(camera: Camera, camera_id: int, *, model: str | None = None) -> Any:
    """A `pycolmap.Camera` with the half pixel added.

    Args:
        camera: Our camera.
        camera_id: COLMAP's number.
        model: COLMAP's name of the model; default our own. Models with one focal length take the mean,
            parameters they lack are dropped.
    """
    model = camera.model if model is None else model
    values = _parameters(camera)
    return require_pycolmap().Camera(
        camera_id=camera_id,
        model=model,
        width=camera.width,
        height=camera.height,
        params=[values[name] for name in _MODELS[model]],
    )


def simplest_model(camera: Camera) -> str:
    """COLMAP's model with the fewest parameters that holds this camera."""
    fx, fy = camera.focal
    return "SIMPLE_PINHOLE" if camera.model == "PINHOLE" and fx == fy else camera.model


def our_camera(camera: Any) -> Camera:
    """Our form of a `pycolmap.Camera`; radial models become OPENCV.

    Raises:
        ValueError: If its model has no counterpart.
    """
    name = str(camera.model_name)
    if name not in _MODELS:
        raise ValueError(
            f"COLMAP camera model {name} is not supported; undistort the images or use one of {(*_MODELS,)}."
        )
    values = dict(zip(_MODELS[name], (float(value) for value in camera.params)))
    fx, fy = (values.get(axis, values.get("f", 0.0)) for axis in ("fx", "fy"))
    K = np.array([[fx, 0, values["cx"] - PIXEL_SHIFT], [0, fy, values["cy"] - PIXEL_SHIFT], [0, 0, 1]])
    if "PINHOLE" in name:
        return Camera(K, camera.width, camera.height)
    distortion = tuple(values.get(key, 0.0) for key in ("k1", "k2", "p1", "p2"))
    return Camera(K, camera.width, camera.height, "OPENCV", distortion)


def our_pose(cam_from_world: Any) -> Pose:
    """Our form of a `pycolmap.Rigid3d`."""
    return Pose.from_cam_from_world(cam_from_world.rotation.matrix(), cam_from_world.translation)


def _parameters(camera: Camera) -> dict[str, float]:
    (fx, fy), (cx, cy) = camera.focal, camera.principal_point
    values = {"f": (fx + fy) / 2, "fx": fx, "fy": fy, "cx": cx + PIXEL_SHIFT, "cy": cy + PIXEL_SHIFT}
    return values | dict(zip(("k1", "k2", "p1", "p2"), camera.distortion or (0.0,) * 4))


def _rigid(pose: Pose) -> Any:
    pycolmap = require_pycolmap()
    R = nearest_rotation(pose.rotation.T)
    return pycolmap.Rigid3d(pycolmap.Rotation3d(R), -R @ pose.center)


def _add_points(model: Any, tracks: Tracks, place: np.ndarray) -> None:
    pycolmap = require_pycolmap()
    order = np.argsort(tracks.point_index, kind="stable")
    ends = np.cumsum(tracks.lengths)
    elements = list(zip((tracks.image_index[order] + 1).tolist(), place[order].tolist()))
    for p, (end, length) in enumerate(zip(ends.tolist(), tracks.lengths.tolist())):
        track = pycolmap.Track([pycolmap.TrackElement(*element) for element in elements[end - length : end]])
        point = pycolmap.Point3D(xyz=tracks.points[p], color=tracks.colors[p], track=track)
        model.add_point3D_with_id(p + 1, point)
