"""The file the page's 3D viewer reads: points with colours and ranks of their confidence, and cameras.

Layout, little-endian: "MV3D", the length of the header (uint32), the header as JSON padded to 4 bytes; then per map
its points (float32, x y z in OpenCV axes, row by row) and its colours (uint8, red green blue rank). Rank 0 marks a
pixel without a point; the others run from 1 (least confident) to 255, evenly, so that a percentile is a threshold.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from multiview.cameras import Camera
from multiview.export import CAMERA_COLORS
from multiview.files import atomic_write
from multiview.pointmaps import Pointmap, without_rounding
from multiview.poses import Pose
from multiview.reconstruction import Reconstruction
from multiview.results import PairResult

MAX_POINTS = 1_200_000
"""Larger scenes are thinned evenly for the viewer; downloads keep every point."""

_MAGIC = b"MV3D"
_CAMERA_SHARE = 0.12  # length of a drawn camera, as a share of the first camera's median depth
_SPACING_SHARE = 0.6  # and at most this share of the cameras' median distance from their neighbours
_RANKS = 254


@dataclass(frozen=True, eq=False)
class ShownMap:
    """Points to show.

    Attributes:
        pointmap: Points in the world.
        colors: (H, W, 3) uint8 RGB.
        center: (3,) centre of the camera that saw them.
        spacing: Distance of neighbouring points at distance 1 from the camera.
    """

    pointmap: Pointmap
    colors: np.ndarray
    center: np.ndarray
    spacing: float


@dataclass(frozen=True, eq=False)
class ShownCamera:
    """A camera to show.

    Attributes:
        name: What the visitor calls its photo.
        camera: Its intrinsics in pixels of the photo.
        pose: Its pose in the world.
        seen: Its points, if any.
    """

    name: str
    camera: Camera
    pose: Pose
    seen: ShownMap | None = None


@dataclass(frozen=True, eq=False)
class ShownScene:
    """What the viewer shows; it starts at the first camera, and y points down."""

    maps: tuple[ShownMap, ...]
    cameras: tuple[ShownCamera, ...]


def pair_scene(result: PairResult) -> ShownScene:
    """The pointmaps and known cameras of a pair."""
    centers = [np.zeros(3) if pose is None else pose.center for pose in result.poses]
    maps = tuple(
        shown_map(result.pointmaps[i], result.colors(i), result.cameras[i], centers[i]) for i in range(len(centers))
    )
    cameras = [
        ShownCamera(f"Photo {i + 1}", result.cameras[i], pose, maps[i])
        for i, pose in enumerate(result.poses)
        if pose is not None
    ]
    return ShownScene(maps, tuple(cameras))


def reconstruction_scene(result: Reconstruction, component: int = 0) -> ShownScene:
    """The placed photos of one component of a reconstruction whose gravity points along y."""
    cameras = []
    for image in result.images:
        if image.camera is None or image.pose is None or image.component != component:
            continue
        seen, colors = None, image.model_colors
        if image.pointmap is not None and colors is not None:
            seen = shown_map(image.pointmap, colors, image.camera, image.pose.center)
        cameras.append(ShownCamera(image.name, image.camera, image.pose, seen))
    return ShownScene(tuple(shown.seen for shown in cameras if shown.seen is not None), tuple(cameras))


def shown_map(pointmap: Pointmap, colors: np.ndarray, camera: Camera, center: np.ndarray) -> ShownMap:
    """A pointmap in the world, seen by a camera with intrinsics in pixels of the photo."""
    pixel = camera.width / pointmap.size[0]  # side of a model pixel in pixels of the photo
    return ShownMap(pointmap, colors, center, pixel / camera.focal[0])


def write_scene_file(path: Path, scene: ShownScene, *, max_points: int = MAX_POINTS) -> Path:
    """Write what the viewer shows.

    Args:
        path: Target file.
        scene: What to show.
        max_points: Thin the maps to about so many points together.

    Raises:
        ValueError: If there is no camera.
    """
    if not scene.cameras:
        raise ValueError("There is nothing to show in 3D: no photo could be placed.")
    total = sum(seen.pointmap.confidence.size for seen in scene.maps)
    step = max(1, int(np.ceil(np.sqrt(total / max_points))))
    maps = [_map(seen, step) for seen in scene.maps]
    header = {
        "down": [0.0, 1.0, 0.0],
        "camera_size": _camera_size(scene.cameras),
        "maps": [entry for entry, _, _ in maps],
        "cameras": [_camera(shown, i, scene.maps) for i, shown in enumerate(scene.cameras)],
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 4)
    with atomic_write(path) as file:
        file.write(_MAGIC + struct.pack("<I", len(text)) + text)
        for _, points, colors in maps:
            file.write(points.astype("<f4").tobytes() + colors.tobytes())
    return path


def confidence_ranks(pointmap: Pointmap) -> np.ndarray:
    """(H, W) uint8: 0 where there is no point, else 1..255 from least to most confident; equals share the highest."""
    usable = pointmap.valid & np.isfinite(pointmap.confidence)
    ranks = np.zeros(usable.shape, dtype=np.uint8)
    confidence = without_rounding(pointmap.confidence)[usable]
    order = np.searchsorted(np.sort(confidence), confidence, side="right") - 1
    ranks[usable] = 1 + order * _RANKS // max(len(order) - 1, 1)
    return ranks


def _map(seen: ShownMap, step: int) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Header entry, points and colours of one map, every `step`-th row and column."""
    points = seen.pointmap.points[::step, ::step]
    ranks = confidence_ranks(seen.pointmap)[::step, ::step]
    colors = np.concatenate([seen.colors[::step, ::step], ranks[..., None]], axis=-1).astype(np.uint8)
    entry = {
        "width": points.shape[1],
        "height": points.shape[0],
        "center": seen.center.tolist(),
        "spacing": step * seen.spacing,
    }
    return entry, np.where(ranks[..., None] > 0, points, 0), colors


def _camera(shown: ShownCamera, i: int, maps: Sequence[ShownMap]) -> dict[str, Any]:
    camera = shown.camera
    right, bottom = camera.width - 0.5, camera.height - 0.5
    corners = camera.unproject(np.array([(-0.5, -0.5), (right, -0.5), (right, bottom), (-0.5, bottom)]))
    return {
        "name": shown.name,
        "world_from_cam": shown.pose.world_from_cam.tolist(),
        "corners": corners[:, :2].tolist(),
        "focal": 2 * camera.focal[1] / camera.height,
        "aspect": camera.width / camera.height,
        "depth": _median_depth(shown),
        "color": CAMERA_COLORS[i % len(CAMERA_COLORS)],
        "map": next((k for k, seen in enumerate(maps) if seen is shown.seen), -1),
    }


def _median_depth(shown: ShownCamera) -> float:
    """Median depth of the more confident half of a camera's points before it; 1 if there are none."""
    if shown.seen is None:
        return 1.0
    points = shown.seen.pointmap.points[shown.seen.pointmap.confident(50.0)]
    depth = shown.pose.inverse().apply(points)[:, 2]
    depth = depth[depth > 0]
    return float(np.median(depth)) if len(depth) else 1.0


def _camera_size(cameras: Sequence[ShownCamera]) -> float:
    """Length of a drawn camera: small beside the scene and beside the distance of the next camera."""
    size = _CAMERA_SHARE * _median_depth(cameras[0])
    if len(cameras) < 3:
        return size
    centers = np.stack([shown.pose.center for shown in cameras])
    apart = np.linalg.norm(centers[:, None] - centers[None], axis=-1)
    nearest = float(np.median(np.sort(apart, axis=1)[:, 1]))
    return max(min(size, _SPACING_SHARE * nearest), size / 8)
