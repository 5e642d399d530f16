"""The complete form of a reconstruction: plain arrays and a JSON text, for .npz files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multiview.cameras import Camera
from multiview.images import ImageTransform
from multiview.pointmaps import Pointmap
from multiview.poses import Pose
from multiview.reconstructed_image import ReconstructedImage
from multiview.tracks import Tracks

_TRACK_ARRAYS = ("points", "colors", "point_index", "image_index", "xy")


def image_summary(image: ReconstructedImage) -> dict[str, Any]:
    """Everything but the arrays of one image, as plain JSON values."""
    camera, pose, transform = image.camera, image.pose, image.transform
    return {
        "name": image.name,
        "path": str(image.path) if image.path else None,
        "size": list(image.size),
        "status": image.status,
        "reason": image.reason,
        "component": image.component,
        "K": None if camera is None else camera.K.tolist(),
        "camera_model": None if camera is None else camera.model,
        "distortion": None if camera is None else list(camera.distortion),
        "world_from_cam": None if pose is None else pose.world_from_cam.tolist(),
        "model_from_original": None if transform is None else transform.matrix.tolist(),
        "model_size": None if transform is None else list(transform.size_to),
        "frame": None if image.pointmap is None else image.pointmap.frame,
    }


def scene_arrays(images: Sequence[ReconstructedImage], tracks: Tracks) -> dict[str, np.ndarray]:
    """All arrays of a scene by name."""
    arrays = {f"track_{name}": getattr(tracks, name) for name in _TRACK_ARRAYS}
    for i, image in enumerate(images):
        if image.pointmap is not None:
            arrays[f"points{i}"] = image.pointmap.points
            arrays[f"confidence{i}"] = image.pointmap.confidence
        if image.colors is not None:
            arrays[f"colors{i}"] = image.colors
    return arrays


def images_from(
    summaries: Sequence[Mapping[str, Any]], arrays: Mapping[str, np.ndarray]
) -> tuple[ReconstructedImage, ...]:
    """Inverse of `image_summary` and `scene_arrays`.

    Raises:
        KeyError: If something is missing.
        ValueError: If something contradicts itself.
    """
    return tuple(_image_from(summary, arrays, i) for i, summary in enumerate(summaries))


def tracks_from(arrays: Mapping[str, np.ndarray]) -> Tracks:
    """Inverse of `scene_arrays`."""
    return Tracks(**{name: arrays[f"track_{name}"] for name in _TRACK_ARRAYS})


def _image_from(summary: Mapping[str, Any], arrays: Mapping[str, np.ndarray], i: int) -> ReconstructedImage:
    size = (summary["size"][0], summary["size"][1])
    camera = transform = pointmap = None
    if summary["K"] is not None:
        camera = Camera(np.array(summary["K"]), *size, summary["camera_model"], tuple(summary["distortion"]))
    if summary["model_from_original"] is not None:
        transform = ImageTransform(np.array(summary["model_from_original"]), size, tuple(summary["model_size"]))
    if summary["frame"] is not None:
        pointmap = Pointmap(arrays[f"points{i}"], arrays[f"confidence{i}"], summary["frame"])
    return ReconstructedImage(
        name=summary["name"],
        size=size,
        status=summary["status"],
        reason=summary["reason"],
        path=Path(summary["path"]) if summary["path"] else None,
        camera=camera,
        pose=None if summary["world_from_cam"] is None else Pose(np.array(summary["world_from_cam"])),
        component=summary["component"],
        pointmap=pointmap,
        transform=transform,
        colors=arrays.get(f"colors{i}"),
    )
