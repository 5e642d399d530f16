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
from typing import TYPE_CHECKING

import numpy as np

from multiview.cameras import Camera
from multiview.files import atomic_write
from multiview.gltf import Part, glb_bytes
from multiview.poses import Pose

if TYPE_CHECKING:
    import trimesh

GLTF_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])
"""(4, 4) turn from OpenCV axes (y down, z forward) to glTF axes (y up, z backward)."""

CAMERA_COLORS = ((230, 60, 60), (60, 110, 230), (60, 180, 90), (230, 170, 40), (160, 80, 200), (60, 190, 200))
_CAMERA_SHARE = 0.1  # default length of a drawn camera, as a share of the median distance of the points
_PYRAMID_SIDES = np.array([(0, 1, 2), (0, 2, 3), (0, 3, 4), (0, 4, 1)])
_PYRAMID_FACES = np.concatenate([_PYRAMID_SIDES, _PYRAMID_SIDES[:, ::-1]])  # visible from both sides, open at the base
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


def points_surface(points: np.ndarray, colors: np.ndarray, center: np.ndarray) -> Surface:
    """Loose points as a surface one pixel high, which can be drawn as points only.

    Args:
        points: (P, 3) in the world.
        colors: (P, 3) uint8 RGB.
        center: (3,) a place amid the cameras, from which the default size of drawn cameras is judged.
    """
    return Surface(points[None], colors[None], np.ones((1, len(points)), bool), center)


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
            points from the centres of their surfaces.

    Returns:
        The scene, with geometry named `surface_i` and `camera_i`. Colours are the images' sRGB values.

    Raises:
        ValueError: If no point is left to draw.
    """
    import trimesh

    scene = trimesh.Scene()
    for part in _parts(surfaces, cameras, as_mesh=as_mesh, camera_size=camera_size):
        scene.add_geometry(_trimesh_of(part), geom_name=part.name)
    return scene


def write_glb(
    path: str | os.PathLike[str],
    surfaces: Sequence[Surface],
    cameras: Sequence[DrawnCamera] = (),
    *,
    as_mesh: bool = False,
    camera_size: float | None = None,
) -> Path:
    """Write a scene as binary glTF, atomically (see `build_scene` for the arguments).

    Materials are unlit and colours converted to what the standard wants, so viewers show the images' colours.
    """
    content = glb_bytes(_parts(surfaces, cameras, as_mesh=as_mesh, camera_size=camera_size))
    with atomic_write(path) as file:
        file.write(content)
    return Path(path)


def write_ply(
    path: str | os.PathLike[str],
    surfaces: Sequence[Surface],
    cameras: Sequence[DrawnCamera] = (),
    *,
    camera_size: float | None = None,
) -> Path:
    """Write coloured points as binary PLY in OpenCV axes, atomically.

    Args:
        path: Target file.
        surfaces: What to write.
        cameras: Drawn as pyramids: their corners follow the points, joined by faces.
        camera_size: Length of the drawn cameras, see `build_scene`.

    Returns:
        The path.

    Raises:
        ValueError: If no point is left to write.
    """
    kept = _drawable(surfaces)
    size = _default_size(kept) if camera_size is None else camera_size
    points = [surface.points[surface.mask] for surface in kept]
    colors = [surface.colors[surface.mask] for surface in kept]
    faces = [np.zeros((0, 3), np.int64)]
    for view in cameras:
        faces.append(_PYRAMID_FACES + sum(map(len, points)))
        points.append(_pyramid_corners(view, size))
        colors.append(np.tile(np.array(view.color, np.uint8), (5, 1)))
    return write_ply_points(path, np.concatenate(points), np.concatenate(colors), np.concatenate(faces))


def write_ply_points(
    path: str | os.PathLike[str], points: np.ndarray, colors: np.ndarray, faces: np.ndarray | None = None
) -> Path:
    """Write coloured points, and triangles between them, as binary PLY, atomically.

    Args:
        path: Target file.
        points: (P, 3).
        colors: (P, 3) uint8 RGB.
        faces: (F, 3) numbers of points; None or empty writes points only.

    Returns:
        The path.
    """
    vertex = np.zeros(len(points), [("xyz", "<f4", 3), ("rgb", "u1", 3)])
    vertex["xyz"], vertex["rgb"] = points, colors
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    header += [f"property float {axis}" for axis in "xyz"]
    header += [f"property uchar {name}" for name in ("red", "green", "blue")]
    face = np.zeros(0 if faces is None else len(faces), [("count", "u1"), ("corners", "<i4", 3)])
    if faces is not None and len(faces):
        face["count"], face["corners"] = 3, faces
        header += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
    with atomic_write(path) as file:
        file.write("\n".join([*header, "end_header\n"]).encode())
        file.write(vertex.tobytes())
        file.write(face.tobytes())
    return Path(path)


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


def _drawable(surfaces: Sequence[Surface]) -> list[Surface]:
    kept = [surface for surface in surfaces if surface.mask.any()]
    if not kept:
        raise ValueError("There is no point to export: every pixel is masked, invalid or below the confidence limit.")
    return kept


def _default_size(surfaces: Sequence[Surface]) -> float:
    distances = [np.linalg.norm(surface.points[surface.mask] - surface.center, axis=1) for surface in surfaces]
    return _CAMERA_SHARE * float(np.median(np.concatenate(distances)))


def _parts(
    surfaces: Sequence[Surface], cameras: Sequence[DrawnCamera], *, as_mesh: bool, camera_size: float | None
) -> list[Part]:
    """Everything to draw, in glTF axes."""
    kept = _drawable(surfaces)
    size = _default_size(kept) if camera_size is None else camera_size
    draw = _mesh_part if as_mesh else _points_part
    parts = [draw(surface, f"surface_{i}") for i, surface in enumerate(kept)]
    return parts + [
        Part(f"camera_{i}", _gltf_axes(_pyramid_corners(view, size)), _PYRAMID_FACES, color=view.color)
        for i, view in enumerate(cameras)
    ]


def _gltf_axes(points: np.ndarray) -> np.ndarray:
    return np.asarray(points, dtype=np.float64) @ GLTF_FROM_OPENCV[:3, :3].T


def _points_part(surface: Surface, name: str) -> Part:
    return Part(name, _gltf_axes(surface.points[surface.mask]), colors=surface.colors[surface.mask])


def _mesh_part(surface: Surface, name: str) -> Part:
    """Grid mesh with the image as its texture."""
    height, width = surface.mask.shape
    used, faces = np.unique(grid_faces(surface), return_inverse=True)
    rows, columns = np.divmod(used, width)
    uv = np.stack([(columns + 0.5) / width, (rows + 0.5) / height], axis=1)
    vertices = _gltf_axes(surface.points.reshape(-1, 3)[used])
    return Part(name, vertices, faces.reshape(-1, 3), uv=uv, texture=surface.colors)


def _pyramid_corners(view: DrawnCamera, size: float) -> np.ndarray:
    """(5, 3) centre and corners of the camera's field of view at depth `size`, in the world."""
    right, bottom = view.camera.width - 0.5, view.camera.height - 0.5
    corners = view.camera.unproject(np.array([(-0.5, -0.5), (right, -0.5), (right, bottom), (-0.5, bottom)]), size)
    return view.pose.apply(np.concatenate([np.zeros((1, 3)), corners]))


def _trimesh_of(part: Part) -> trimesh.PointCloud | trimesh.Trimesh:
    import PIL.Image
    import trimesh
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import PBRMaterial

    if part.faces is None:
        return trimesh.PointCloud(part.positions, colors=part.colors)
    if part.texture is None or part.uv is None:
        colors = np.tile(np.array([*part.color, 255], dtype=np.uint8), (len(part.positions), 1))
        return trimesh.Trimesh(part.positions, part.faces, vertex_colors=colors, process=False)
    material = PBRMaterial(
        baseColorTexture=PIL.Image.fromarray(part.texture), metallicFactor=0.0, roughnessFactor=1.0, doubleSided=True
    )
    visual = TextureVisuals(uv=np.stack([part.uv[:, 0], 1 - part.uv[:, 1]], axis=1), material=material)
    return trimesh.Trimesh(part.positions, part.faces, visual=visual, process=False)
