"""Eight cameras around a cloud of points, with exact or noisy matches."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from multiview.cameras import Camera
from multiview.images import ImageTransform
from multiview.matches import Matches
from multiview.pointmaps import Pointmap
from multiview.poses import Pose
from multiview.reconstruction import ReconstructedImage, Reconstruction, Tracks


@dataclass(frozen=True)
class Scene:
    """Truth: points, one camera and pose per image, and which points each image sees where."""

    names: tuple[str, ...]
    points: np.ndarray
    cameras: tuple[Camera, ...]
    poses: tuple[Pose, ...]
    xy: tuple[np.ndarray, ...]
    visible: tuple[np.ndarray, ...]

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """(W, H) by name."""
        return {name: (camera.width, camera.height) for name, camera in zip(self.names, self.cameras)}


def look_at(center: np.ndarray, target: np.ndarray) -> Pose:
    """An upright camera (x level, world y down) at `center` looking at `target`."""
    z = (target - center) / np.linalg.norm(target - center)
    x = np.cross([0.0, 1.0, 0.0], z)
    x /= np.linalg.norm(x)
    return Pose.from_rt(np.stack([x, np.cross(z, x), z], axis=1), center)


def make_scene(
    count: int = 8, *, num_points: int = 300, seed: int = 0, one_camera: bool = False, spaces: str = ""
) -> Scene:
    """Cameras on an arc in front of points in a box."""
    rng = np.random.default_rng(seed)
    points = rng.uniform((-1.5, -1, -1), (1.5, 1, 1), (num_points, 3))
    cameras, poses, xy, visible = [], [], [], []
    for i in range(count):
        angle = np.radians(-50 + 100 * i / max(1, count - 1))
        center = np.array([5 * np.sin(angle), -0.5 + 0.2 * rng.normal(), -5 * np.cos(angle)])
        size = (640, 480) if one_camera or i % 3 else (480, 640)
        focal = 600.0 if one_camera else 560.0 + 20 * i
        cameras.append(Camera.from_focal(focal, *size))
        poses.append(look_at(center, rng.normal(0, 0.1, 3)))
        pixels = cameras[-1].project(poses[-1].inverse().apply(points))
        inside = ((pixels > 0) & (pixels < np.array(size) - 1)).all(axis=1)
        xy.append(pixels)
        visible.append(inside & (rng.random(num_points) < 0.8))
    names = tuple(f"{spaces}set{i % 2}/im{i}.jpg" for i in range(count))
    return Scene(names, points, tuple(cameras), tuple(poses), tuple(xy), tuple(visible))


def make_matches(
    scene: Scene, *, noise_px: float = 0.0, outliers: float = 0.0, seed: int = 1, pairs=None
) -> dict[tuple[str, str], Matches]:
    """Matches of pairs (default all), optionally noisy and with a share of wrong ones."""
    rng = np.random.default_rng(seed)
    noisy = [xy + rng.normal(0, noise_px, xy.shape) if noise_px else xy for xy in scene.xy]
    found = {}
    for i, j in pairs or itertools.combinations(range(len(scene.names)), 2):
        both = np.flatnonzero(scene.visible[i] & scene.visible[j])
        xy0, xy1 = noisy[i][both], noisy[j][both].copy()
        wrong = rng.random(len(both)) < outliers
        size0, size1 = scene.sizes[scene.names[i]], scene.sizes[scene.names[j]]
        xy1[wrong] = rng.uniform(0, size1, (wrong.sum(), 2))
        confidence = np.where(wrong, 1.0, 2.0) + rng.random(len(both))
        found[scene.names[i], scene.names[j]] = Matches(xy0, xy1, confidence, size0, size1)
    return found


def make_reconstruction(scene: Scene, *, pointmaps: bool = False, tracks: bool = True) -> Reconstruction:
    """The truth as a reconstruction; pointmaps show a plane behind the points."""
    images = [
        ReconstructedImage(
            name,
            scene.sizes[name],
            "registered",
            camera=camera,
            pose=pose,
            **(_maps(camera, pose) if pointmaps else {}),
        )
        for name, camera, pose in zip(scene.names, scene.cameras, scene.poses)
    ]
    return Reconstruction(tuple(images), true_tracks(scene) if tracks else Tracks.empty(), "metric-predicted", {"a": 1})


def true_tracks(scene: Scene) -> Tracks:
    """Every point seen by two or more images, exactly where it projects."""
    image, point = np.nonzero(np.stack(scene.visible))
    xy = np.stack(scene.xy)[image, point]
    colors = np.random.default_rng(5).integers(0, 255, (len(scene.points), 3)).astype(np.uint8)
    return Tracks(scene.points, colors, point, image, xy).filter(np.stack(scene.visible).sum(axis=0) >= 2)


def _maps(camera: Camera, pose: Pose) -> dict:
    """A pointmap of the level floor y = 1.2 and of the far wall z = 4 at an eighth of the size."""
    size = (camera.width // 8, camera.height // 8)
    transform = ImageTransform.resize((camera.width, camera.height), size)
    ys, xs = np.mgrid[: size[1], : size[0]]
    rays = camera.transformed(transform).unproject(np.stack([xs, ys], axis=-1)) @ pose.rotation.T
    with np.errstate(divide="ignore"):
        floor = np.where(rays[..., 1] > 0, (1.2 - pose.center[1]) / rays[..., 1], np.inf)
        wall = np.where(rays[..., 2] > 0, (4 - pose.center[2]) / rays[..., 2], np.inf)
    points = pose.center + rays * np.minimum(floor, wall)[..., None]
    points[~np.isfinite(points).all(axis=-1)] = np.nan
    confidence = 1 + np.linspace(0, 4, size[0] * size[1]).reshape(size[1], size[0])
    colors = np.stack([xs % 256, ys % 256, np.full_like(xs, 90)], axis=-1).astype(np.uint8)
    return {"pointmap": Pointmap(points, confidence, "world"), "transform": transform, "colors": colors}
