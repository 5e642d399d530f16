"""nerfstudio's `transforms.json`: cameras for NeRF and Gaussian-splat trainers, with points to start from.

Its cameras have OpenGL axes (x right, y up, z backward), its world has z up where ours has y down, and its pixels
are counted from the image's outer corner, as COLMAP's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multiview.cameras import Camera
from multiview.export import write_ply_points
from multiview.files import atomic_write
from multiview.poses import Pose
from multiview.reconstructed_image import ReconstructedImage

NERFSTUDIO_FROM_WORLD = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
"""(4, 4) turn from our world (y down) to nerfstudio's (z up); its first three rows are `applied_transform`."""

POINTS_NAME = "sparse_pc.ply"
_OPENGL_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])


def write_transforms(
    path: str | os.PathLike[str],
    images: Sequence[ReconstructedImage],
    points: np.ndarray,
    colors: np.ndarray,
) -> Path:
    """Write `transforms.json` and, beside it, the points it refers to.

    Args:
        path: The json file, or the folder in which to write `transforms.json`.
        images: Registered images of one world. Files are referred to by their path relative to the json
            file where they have one, else by name.
        points: (P, 3) points in the world; without any, no point file is written.
        colors: (P, 3) uint8 RGB.

    Returns:
        Path of the json file.

    Raises:
        ValueError: If no image is registered.
    """
    path = Path(path)
    path = path if path.suffix.lower() == ".json" else path / "transforms.json"
    frames = [
        _frame(image, image.camera, image.pose, path.parent)
        for image in images
        if image.camera is not None and image.pose is not None
    ]
    if not frames:
        raise ValueError("There is no registered image to export.")
    tree: dict[str, Any] = {
        "camera_model": "OPENCV",
        "applied_transform": NERFSTUDIO_FROM_WORLD[:3].tolist(),
        "frames": frames,
    }
    if len(points):
        write_ply_points(path.with_name(POINTS_NAME), points @ NERFSTUDIO_FROM_WORLD[:3, :3].T, colors)
        tree["ply_file_path"] = POINTS_NAME
    with atomic_write(path) as file:
        file.write(json.dumps(tree, indent=2).encode())
    return path


def _frame(image: ReconstructedImage, camera: Camera, pose: Pose, folder: Path) -> dict[str, Any]:
    (fx, fy), (cx, cy) = camera.focal, camera.principal_point
    distortion = dict(zip(("k1", "k2", "p1", "p2"), camera.distortion or (0.0, 0.0, 0.0, 0.0)))
    return {
        "file_path": _relative(image, folder),
        "transform_matrix": (NERFSTUDIO_FROM_WORLD @ pose.world_from_cam @ _OPENGL_FROM_OPENCV).tolist(),
        "w": camera.width,
        "h": camera.height,
        "fl_x": fx,
        "fl_y": fy,
        "cx": cx + 0.5,
        "cy": cy + 0.5,
        **distortion,
    }


def _relative(image: ReconstructedImage, folder: Path) -> str:
    if image.path is None:
        return image.name
    try:
        return Path(os.path.relpath(image.path.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive
        return image.path.resolve().as_posix()
