"""Scenes as .glb and .ply files.

glTF wants y up, and a camera there looks along -z: everything in a .glb is turned by 180 degrees about x from
OpenCV axes, so that a camera at the origin keeps its place and what it sees lies along -z. A .ply keeps
OpenCV axes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multiview.cameras import Camera
from multiview.files import atomic_write
from multiview.poses import Pose
from multiview.results import PairResult

if TYPE_CHECKING:
    import trimesh

GLTF_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])
"""(4, 4) turn from OpenCV axes (y down, z forward) to glTF axes (y up, z backward)."""

CAMERA_COLORS = ((230, 60, 60), (60, 110, 230), (60, 180, 90), (230, 170, 40), (160, 80, 200), (60, 190, 200))
_CAMERA_SHARE = 0.1  # default length of a drawn camera, as a share of the median distance of the points
_MAX_DISTANCE_RATIO = 1.1  # neighbouring pixels whose distances differ more belong to different surfaces


@dataclass(frozen=True, eq=False)
class Surface:
    """A coloured pointmap to draw.

    Attributes:
        points: (H, W, 3) points in the world, OpenCV axes.
        colors: (H, W, 3) uint8 RGB.
        mask: (H, W) bool, which points to draw.
        center: (3,) centre of the camera that saw the surface; a mesh is cut where the distance from it
            jumps.
    """

    points: np.ndarray
    colors: np.ndarray
    mask: np.ndarray
    center: np.ndarray = field(default_factory=lambda: np.zeros(3))

    def __post_init__(self) -> None:
        shape = np.shape(self.mask)
        if len(shape) != 2 or np.shape(self.points) != (*shape, 3) or np.shape(self.colors) != (*shape, 3):
            raise ValueError(
                f"Surface needs points and colors (H, W, 3) and mask (H, W), got {np.shape(self.points)}, "
                f"{np.shape(self.colors)}, {shape}."
            )
        mask = np.asarray(self.mask, dtype=bool) & np.isfinite(self.points).all(axis=-1)
        object.__setattr__(self, "mask", mask)


@dataclass(frozen=True, eq=False)
class DrawnCamera:
    """A camera to draw as a pyramid.

    Attributes:
        camera: Its intrinsics.
        pose: Its pose in the world.
        color: RGB, 0..255.
    """

    camera: Camera
    pose: Pose
    color: tuple[int, int, int] = CAMERA_COLORS[0]


def pair_surfaces(result: PairResult, *, confidence_percentile: float = 0.0) -> list[Surface]:
    """Both pointmaps of a pair, without the least confident share of each."""
    centers = (np.zeros(3), np.zeros(3) if result.pose1 is None else result.pose1.center)
    return [
        Surface(pointmap.points, result.colors(i), pointmap.confident(confidence_percentile), centers[i])
        for i, pointmap in enumerate(result.pointmaps)
    ]


def pair_views(result: PairResult) -> list[DrawnCamera]:
    """The cameras of a pair whose poses are known."""
    views = zip(result.cameras, result.poses, CAMERA_COLORS)
    return [DrawnCamera(camera, pose, color) for camera, pose, color in views if pose is not None]


def build_scene(
    surfaces: Sequence[Surface],
    cameras: Sequence[DrawnCamera] = (),
    *,
    as_mesh: bool = False,
    camera_size: float | None = None,
) -> trimesh.Scene:
    """A trimesh scene in glTF axes.

    Args:
        surfaces: What to draw, in one common world frame.
        cameras: Cameras in the same frame.
        as_mesh: Triangles between neighbouring pixels (textured, visible from both sides) in place of points.
        camera_size: Length of the drawn cameras in scene units; default a tenth of the median distance of the
            points from the world's origin.

    Returns:
        The scene, with geometry named `surface_i` and `camera_i`. Colours are the images' sRGB values.

    Raises:
        ValueError: If no point is left to draw.
    """
    import trimesh

    kept = [surface for surface in surfaces if surface.mask.any()]
    if not kept:
        raise ValueError("There is no point to export: every pixel is masked, invalid or below the confidence limit.")
    scene = trimesh.Scene()
    for i, surface in enumerate(kept):
        scene.add_geometry(_mesh(surface) if as_mesh else _point_cloud(surface), geom_name=f"surface_{i}")
    if camera_size is None:
        distances = np.concatenate([np.linalg.norm(surface.points[surface.mask], axis=1) for surface in kept])
        camera_size = _CAMERA_SHARE * float(np.median(distances))
    for i, camera in enumerate(cameras):
        scene.add_geometry(_pyramid(camera, camera_size), geom_name=f"camera_{i}")
    return scene


def write_glb(
    path: str | os.PathLike[str],
    surfaces: Sequence[Surface],
    cameras: Sequence[DrawnCamera] = (),
    *,
    as_mesh: bool = False,
    camera_size: float | None = None,
) -> Path:
    """Write a scene as binary glTF, atomically (see `build_scene` for the arguments)."""
    scene = build_scene(surfaces, cameras, as_mesh=as_mesh, camera_size=camera_size)
    return _write(path, scene.export(file_type="glb"))


def write_ply(path: str | os.PathLike[str], surfaces: Sequence[Surface]) -> Path:
    """Write coloured points as binary PLY in OpenCV axes, atomically.

    Args:
        path: Target file.
        surfaces: What to write.

    Returns:
        The path.

    Raises:
        ValueError: If no point is left to write.
    """
    import trimesh

    points = np.concatenate([np.zeros((0, 3)), *(surface.points[surface.mask] for surface in surfaces)])
    if not len(points):
        raise ValueError("There is no point to export: every pixel is masked, invalid or below the confidence limit.")
    colors = np.concatenate([surface.colors[surface.mask] for surface in surfaces])
    cloud = trimesh.PointCloud(points.astype(np.float32), colors=colors)
    return _write(path, cloud.export(file_type="ply"))


def _write(path: str | os.PathLike[str], content: Any) -> Path:
    with atomic_write(path) as file:
        file.write(content)
    return Path(path)


def _gltf_axes(points: np.ndarray) -> np.ndarray:
    return np.asarray(points, dtype=np.float64) @ GLTF_FROM_OPENCV[:3, :3].T


def _point_cloud(surface: Surface) -> trimesh.PointCloud:
    import trimesh

    return trimesh.PointCloud(_gltf_axes(surface.points[surface.mask]), colors=surface.colors[surface.mask])


def _mesh(surface: Surface) -> trimesh.Trimesh:
    """Textured grid mesh; a texture (unlike vertex colours) is sRGB by the glTF standard."""
    import PIL.Image
    import trimesh
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import PBRMaterial

    height, width = surface.mask.shape
    faces = grid_faces(surface)
    used, faces = np.unique(faces, return_inverse=True)
    rows, columns = np.divmod(used, width)
    uv = np.stack([(columns + 0.5) / width, 1 - (rows + 0.5) / height], axis=1)
    material = PBRMaterial(
        baseColorTexture=PIL.Image.fromarray(surface.colors),
        baseColorFactor=(255, 255, 255, 255),
        metallicFactor=0.0,
        roughnessFactor=1.0,
        doubleSided=True,
    )
    visual = TextureVisuals(uv=uv, material=material)
    vertices = _gltf_axes(surface.points.reshape(-1, 3)[used])
    return trimesh.Trimesh(vertices, faces.reshape(-1, 3), visual=visual, process=False)


def grid_faces(surface: Surface) -> np.ndarray:
    """Triangles between neighbouring pixels, facing the camera.

    Args:
        surface: Points on a pixel grid.

    Returns:
        (F, 3) int64 pixel numbers (row * W + column). Triangles with a masked corner, or across a jump of the
        distance from the camera, are left out.

    Raises:
        ValueError: If no triangle is left.
    """
    height, width = surface.mask.shape
    index = np.arange(height * width).reshape(height, width)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    faces = np.stack([np.stack([a, c, b], axis=-1), np.stack([b, c, d], axis=-1)], axis=2).reshape(-1, 3)
    distance = np.linalg.norm(surface.points.reshape(-1, 3) - surface.center, axis=1)[faces]
    whole = surface.mask.ravel()[faces].all(axis=1)
    with np.errstate(invalid="ignore"):
        whole &= distance.max(axis=1) <= _MAX_DISTANCE_RATIO * distance.min(axis=1)
    if not whole.any():
        raise ValueError(
            "There is no triangle to export: no three neighbouring pixels are left; export points instead."
        )
    return faces[whole]


def _pyramid(view: DrawnCamera, size: float) -> trimesh.Trimesh:
    """The camera's field of view up to depth `size`, open at its base, visible from both sides."""
    import trimesh

    right, bottom = view.camera.width - 0.5, view.camera.height - 0.5
    corners = view.camera.unproject(np.array([(-0.5, -0.5), (right, -0.5), (right, bottom), (-0.5, bottom)]), size)
    vertices = _gltf_axes(view.pose.apply(np.concatenate([np.zeros((1, 3)), corners])))
    sides = np.array([(0, 1, 2), (0, 2, 3), (0, 3, 4), (0, 4, 1)])
    faces = np.concatenate([sides, sides[:, ::-1]])
    colors = np.tile(np.array([*view.color, 255], dtype=np.uint8), (len(vertices), 1))
    return trimesh.Trimesh(vertices, faces, vertex_colors=colors, process=False)
