"""A small synthetic pair with known geometry."""

from __future__ import annotations

import numpy as np

from multiview.cameras import Camera
from multiview.images import as_image, fit_for_model
from multiview.matches import Matches
from multiview.pointmaps import Pointmap
from multiview.poses import Pose
from multiview.results import PairResult


def rotation(axis, degrees: float) -> np.ndarray:
    """Rotation matrix by Rodrigues' formula."""
    x, y, z = np.asarray(axis, dtype=float) / np.linalg.norm(axis)
    K = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * K + (1 - np.cos(angle)) * K @ K


def picture(width: int, height: int) -> np.ndarray:
    """Red grows to the right, green grows downwards, blue is constant."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x // (width - 1), 255 * y // (height - 1), np.full_like(x, 40)], axis=-1).astype(np.uint8)


def make_pair(*, own: bool = True, pose: bool = True, sizes=((120, 90), (100, 120))) -> PairResult:
    """Two cameras in front of the plane z = 2 of camera 0."""
    images = tuple(as_image(picture(*size)) for size in sizes)
    transforms = tuple(fit_for_model(image, 64)[1] for image in images)
    cameras = tuple(Camera.from_focal(110.0, *size) for size in sizes)
    pose1 = Pose.from_rt(rotation((0, 1, 0), -10), np.array([0.4, 0.05, 0.1]))
    maps, points = [], []
    for camera, transform, world in zip(cameras, transforms, (Pose.identity(), pose1)):
        width, height = transform.size_to
        ys, xs = np.mgrid[:height, :width]
        rays = camera.transformed(transform).unproject(np.stack([xs, ys], axis=-1)) @ world.rotation.T
        points.append(world.center + rays * ((2 - world.center[2]) / rays[..., 2:]))
        confidence = 1 + np.linspace(0.1, 5, width * height).reshape(height, width)
        maps.append(Pointmap(points[-1], confidence, "camera 0"))
    seen = points[0][::4, ::4].reshape(-1, 3)
    xy1 = cameras[1].project(pose1.inverse().apply(seen))
    matches = Matches(
        cameras[0].project(seen), xy1, np.linspace(1, 3, len(seen)), *sizes, *(t.size_to for t in transforms)
    )
    own_map = Pointmap(pose1.inverse().apply(points[1]), maps[1].confidence, "camera 1") if own else None
    return PairResult(
        images,
        transforms,
        tuple(maps),
        matches,
        cameras,
        pose1 if pose else None,
        len(matches) if pose else 0,
        "metric-predicted",
        own_map,
        {"encode": 0.5, "decode": 0.25},
    )
