"""Which way is down, judged from how photographers hold cameras and from level surfaces."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from multiview.reconstructed_image import ReconstructedImage

DOWN = np.array([0.0, 1.0, 0.0])
"""Direction of gravity in an aligned world: +y, as in OpenCV's camera axes."""

_UP_WEIGHT = 0.02  # of the y axes, which matter only where the x axes leave a direction open
_CONE_DEG = (20.0, 10.0, 5.0)  # normals within this angle of the estimate, in turn, belong to level surfaces
_MIN_LEVEL_SHARE = 0.03  # with fewer level pixels the cameras alone decide
_MAX_NORMALS = 20_000


def estimate_gravity(images: Iterable[ReconstructedImage]) -> np.ndarray:
    """Direction of gravity in the world of some registered images.

    The direction most perpendicular to all cameras' x axes comes first; where those are parallel, the y axes
    decide. Then floors, tables and ceilings of the pointmaps refine it.

    Args:
        images: Registered images of one world.

    Returns:
        (3,) float64 unit vector.

    Raises:
        ValueError: If there is no registered image.
    """
    images = [image for image in images if image.pose is not None]
    if not images:
        raise ValueError("Gravity cannot be estimated without a registered image.")
    rotations = np.array([image.pose.rotation for image in images if image.pose is not None])
    x, y = rotations[:, :, 0], rotations[:, :, 1]
    _, vectors = np.linalg.eigh(x.T @ x - _UP_WEIGHT * (y.T @ y))
    gravity = vectors[:, 0] * (1.0 if vectors[:, 0] @ y.sum(axis=0) >= 0 else -1.0)
    return _refined(gravity, _normals(images))


def _refined(gravity: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Mean normal of the surfaces that are nearly level, in shrinking cones."""
    for degrees in _CONE_DEG:
        cosine = normals @ gravity
        level = np.abs(cosine) >= np.cos(np.radians(degrees))
        if level.sum() < max(50, _MIN_LEVEL_SHARE * len(normals)):
            return gravity
        mean = (normals[level] * np.sign(cosine[level])[:, None]).sum(axis=0)
        gravity = mean / np.linalg.norm(mean)
    return gravity


def _normals(images: list[ReconstructedImage]) -> np.ndarray:
    """(N, 3) unit normals of the confident half of the pointmaps, at most `_MAX_NORMALS`."""
    found = [np.zeros((0, 3))]
    for image in images:
        if image.pointmap is None:
            continue
        points = image.pointmap.points.astype(np.float64)
        across, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
        normal = np.cross(across, down)
        length = np.linalg.norm(normal, axis=-1)
        good = image.pointmap.confident(50)[1:-1, 1:-1] & np.isfinite(length) & (length > 0)
        found.append(normal[good] / length[good, None])
    normals = np.concatenate(found)
    return normals[:: max(1, -(-len(normals) // _MAX_NORMALS))]
