"""Drawing scenes with trimesh, under the names that scripts import (`multiview.export` writes files).

Meshes here are dictionaries `vertices` (V, 3), `faces` (F, 3) and `face_colors` (F, 3), in OpenCV axes.
trimesh is imported when something is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
from scipy import ndimage

from dust3r.utils.device import to_numpy
from dust3r.utils.geometry import geotrf, get_med_dist_between_poses
from dust3r.utils.image import img_to_arr, rgb
from multiview.cameras import Camera
from multiview.export import CAMERA_COLORS, GLTF_FROM_OPENCV

if TYPE_CHECKING:
    import trimesh

__all__ = [
    "CAM_COLORS",
    "OPENGL",
    "SceneViz",
    "add_scene_cam",
    "auto_cam_size",
    "cat_meshes",
    "pts3d_to_trimesh",
    "rgb",
    "segment_sky",
]

Mesh = dict[str, np.ndarray]

CAM_COLORS = [*CAMERA_COLORS]
"""RGB colours, 0..255, to tell cameras apart."""

OPENGL = GLTF_FROM_OPENCV.copy()
"""(4, 4) turn between OpenCV axes and OpenGL axes (y up, z backward); its own inverse."""

_DEFAULT_CAM_SIZE = 0.03
_CAM_SHARE = 0.1  # length of a drawn camera, as a share of the distance between cameras
_SKY_BLUE_MARGIN = 0.02  # by how much blue must exceed red
_SKY_MIN_BRIGHTNESS = 0.35
_SKY_MAX_GRADIENT = 0.06  # a sky is smooth: brightness change per pixel


def pts3d_to_trimesh(img: np.ndarray, pts3d: Any, valid: Any = None) -> Mesh:
    """Two-sided triangles between neighbouring pixels.

    Args:
        img: (H, W, 3) colours, float 0..1 or uint8.
        pts3d: (H, W, 3) points.
        valid: (H, W) bool; triangles with an invalid corner are left out.

    Returns:
        The mesh; its vertices are all pixels.

    Raises:
        ValueError: If the shapes differ.
    """
    img, points = np.asarray(to_numpy(img)), np.asarray(to_numpy(pts3d))
    if img.ndim != 3 or img.shape != points.shape or img.shape[2] != 3:
        raise ValueError(f"Image and points need one shape (H, W, 3), got {img.shape} and {points.shape}.")
    height, width, _ = img.shape
    index = np.arange(height * width).reshape(height, width)
    a, b, c, d = (part.ravel() for part in (index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]))
    upper, lower = np.stack([a, b, c], axis=1), np.stack([c, b, d], axis=1)
    faces = np.concatenate([upper, upper[:, ::-1], lower, lower[:, ::-1]])
    colors = img.reshape(-1, 3)[np.concatenate([a, a, d, d])]
    if valid is not None:
        keep = np.asarray(to_numpy(valid), dtype=bool).ravel()[faces].all(axis=1)
        faces, colors = faces[keep], colors[keep]
    return {"vertices": points.reshape(-1, 3), "faces": faces, "face_colors": colors}


def cat_meshes(meshes: Sequence[Mapping[str, np.ndarray]]) -> Mesh:
    """One mesh of several.

    Raises:
        ValueError: If there is none.
    """
    if not meshes:
        raise ValueError("cat_meshes() got no meshes.")
    starts = np.cumsum([0, *(len(mesh["vertices"]) for mesh in meshes[:-1])])
    return {
        "vertices": np.concatenate([mesh["vertices"] for mesh in meshes]),
        "faces": np.concatenate([mesh["faces"] + start for mesh, start in zip(meshes, starts)]),
        "face_colors": np.concatenate([mesh["face_colors"] for mesh in meshes]),
    }


def auto_cam_size(im_poses: Any) -> float:
    """Length of drawn cameras: a tenth of the median distance between them, in scene units."""
    poses = to_numpy(im_poses)
    if len(poses) < 2:
        return _DEFAULT_CAM_SIZE
    return _CAM_SHARE * get_med_dist_between_poses(poses) or _DEFAULT_CAM_SIZE


def add_scene_cam(
    scene: trimesh.Scene,
    pose_c2w: Any,
    edge_color: Sequence[int],
    image: Any = None,
    focal: float | None = None,
    imsize: tuple[int, int] | None = None,
    screen_width: float = _DEFAULT_CAM_SIZE,
    marker: str | None = None,
) -> None:
    """Add a camera as a pyramid, with its image on the base.

    Args:
        scene: The trimesh scene, in the axes of the pose.
        pose_c2w: (4, 4) world_from_cam.
        edge_color: RGB, 0..255.
        image: (H, W, 3) picture for the base, float 0..1 or uint8.
        focal: Focal in pixels; default 1.1 times the longer side.
        imsize: (W, H) if there is no image; default square.
        screen_width: Width of the base in scene units.
        marker: `"o"` adds a small ball at the centre.

    Raises:
        ValueError: If the marker is unknown.
    """
    import trimesh

    if marker not in (None, "o"):
        raise ValueError(f"marker must be None or 'o', got {marker!r}.")
    pose = np.asarray(to_numpy(pose_c2w), dtype=np.float64)
    picture = None if image is None else _to_bytes(image)
    width, height = _image_size(picture, imsize, focal)
    length = float(focal) if focal else 1.1 * max(width, height)
    corners = _base_corners(width, height, length, screen_width)
    vertices = geotrf(pose, np.concatenate([np.zeros((1, 3)), corners]))
    sides = np.array([(0, 1, 2), (0, 2, 3), (0, 3, 4), (0, 4, 1)])
    colors = np.tile(np.array([*edge_color, 255], dtype=np.uint8), (2 * len(sides), 1))
    faces = np.concatenate([sides, sides[:, ::-1]])
    scene.add_geometry(trimesh.Trimesh(vertices, faces, face_colors=colors, process=False))
    if picture is not None:
        scene.add_geometry(_picture(vertices[1:], picture))
    if marker == "o":
        ball = trimesh.creation.icosphere(3, radius=screen_width / 4, face_colors=(*edge_color, 255))
        scene.add_geometry(ball.apply_translation(pose[:3, 3]))


def _image_size(picture: np.ndarray | None, imsize: tuple[int, int] | None, focal: float | None) -> tuple[int, int]:
    if picture is not None:
        return picture.shape[1], picture.shape[0]
    if imsize is not None:
        return int(imsize[0]), int(imsize[1])
    side = round(float(focal) / 1.1) if focal else 1
    return max(side, 1), max(side, 1)


def _base_corners(width: int, height: int, focal: float, base_width: float) -> np.ndarray:
    """(4, 3) corners of the image in the camera's frame, clockwise from the top left."""
    K = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    right, bottom = width - 0.5, height - 0.5
    pixels = np.array([(-0.5, -0.5), (right, -0.5), (right, bottom), (-0.5, bottom)])
    return Camera(K, width, height).unproject(pixels, base_width * focal / width)


def _picture(corners: np.ndarray, picture: np.ndarray) -> trimesh.Trimesh:
    """A textured rectangle, visible from both sides."""
    import trimesh
    from trimesh.visual import TextureVisuals

    quad = np.array([(0, 2, 1), (0, 3, 2)])
    uv = np.array([(0.0, 1.0), (1.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
    visual = TextureVisuals(uv=uv, image=PIL.Image.fromarray(picture))
    faces = np.concatenate([quad, quad[:, ::-1]])
    return trimesh.Trimesh(corners, faces, visual=visual, process=False)


def _to_bytes(image: Any) -> np.ndarray:
    """(H, W, 3) uint8 of a float (0..1) or uint8 image, or of anything `img_to_arr` reads."""
    pixels = to_numpy(image)
    pixels = pixels if isinstance(pixels, np.ndarray) else img_to_arr(pixels)
    return pixels if pixels.dtype == np.uint8 else (255 * np.clip(pixels, 0, 1)).astype(np.uint8)


class SceneViz:
    """A scene to look at, in OpenCV axes until it is shown.

    Attributes:
        scene: The `trimesh.Scene`.
    """

    def __init__(self) -> None:
        import trimesh

        self.scene = trimesh.Scene()

    def add_rgbd(
        self,
        image: Any,
        depth: Any,
        intrinsics: Any = None,
        cam2world: Any = None,
        zfar: float = np.inf,
        mask: Any = None,
    ) -> SceneViz:
        """Add a depth map as a mesh.

        Args:
            image: (H, W, 3) colours.
            depth: (H, W) z depth; non-finite and non-positive values are left out.
            intrinsics: (3, 3) K; default a focal of the longer side about the centre.
            cam2world: (4, 4) pose; default the world's origin.
            zfar: Largest depth drawn.
            mask: (H, W) bool.

        Returns:
            Itself.
        """
        z, pixels = np.asarray(to_numpy(depth), dtype=np.float64), _to_bytes(image)
        height, width = z.shape
        side = max(width, height)
        K = np.array([[side, 0, (width - 1) / 2], [0, side, (height - 1) / 2], [0, 0, 1.0]])
        K = K if intrinsics is None else np.asarray(to_numpy(intrinsics), dtype=np.float64)
        valid = np.isfinite(z) & (z > 0) & (z < zfar)
        valid &= True if mask is None else np.asarray(to_numpy(mask), dtype=bool)
        columns, rows = np.meshgrid(np.arange(width), np.arange(height))
        safe = np.where(valid, z, 1.0)
        local = np.stack([(columns - K[0, 2]) / K[0, 0] * safe, (rows - K[1, 2]) / K[1, 1] * safe, safe], axis=-1)
        points = local if cam2world is None else geotrf(np.asarray(to_numpy(cam2world)), local)
        return self._add_mesh(pts3d_to_trimesh(pixels, points, valid))

    def add_pointcloud(self, pts3d: Any, color: Any = (0, 0, 0), mask: Any = None, denoise: bool = False) -> SceneViz:
        """Add points.

        Args:
            pts3d: (..., 3) points, or a list of such.
            color: One RGB (0..255), or colours of the shape of the points (or a list of such).
            mask: (...) bool, or a list.
            denoise: Leave out the points farther from their median than 10 times the median distance.

        Returns:
            Itself.
        """
        import trimesh

        points = _gather(pts3d, mask, 3).astype(np.float64)
        single = not isinstance(color, (list, np.ndarray)) and np.shape(to_numpy(color)) == (3,)
        if single:
            colors = np.tile(np.asarray(color, dtype=np.uint8), (len(points), 1))
        else:
            colors = _to_bytes(_gather(color, mask, 3)[None])[0]
        keep = np.isfinite(points).all(axis=1)
        if denoise and keep.any():
            distance = np.linalg.norm(points - np.median(points[keep], axis=0), axis=1)
            keep &= distance <= 10 * np.median(distance[keep])
        if keep.any():
            self.scene.add_geometry(trimesh.PointCloud(points[keep], colors=colors[keep]))
        return self

    def add_camera(
        self,
        pose_c2w: Any,
        focal: Any = None,
        color: Sequence[int] = (0, 0, 0),
        image: Any = None,
        imsize: tuple[int, int] | None = None,
        cam_size: float = _DEFAULT_CAM_SIZE,
    ) -> SceneViz:
        """Add one camera (see `add_scene_cam`; `focal` may be a number or K); returns itself."""
        value = None if focal is None else np.asarray(to_numpy(focal), dtype=np.float64).ravel()
        length = None if value is None else float(value[0])
        add_scene_cam(self.scene, pose_c2w, color, image, length, imsize, screen_width=cam_size)
        return self

    def add_cameras(
        self,
        poses: Any,
        focals: Any = None,
        images: Any = None,
        imsizes: Any = None,
        colors: Sequence[Sequence[int]] | None = None,
        **kw: Any,
    ) -> SceneViz:
        """Add several cameras; colours are used in turn. Returns itself."""
        palette = colors or CAM_COLORS
        for i, pose in enumerate(poses):
            self.add_camera(
                pose,
                focal=None if focals is None else focals[i],
                image=None if images is None else images[i],
                imsize=None if imsizes is None else imsizes[i],
                color=palette[i % len(palette)],
                **kw,
            )
        return self

    def show(self, point_size: int = 2) -> Any:
        """Open a window (needs trimesh's viewer, pyglet) and return what trimesh returns."""
        shown = self.scene.copy()
        shown.apply_transform(OPENGL)
        return shown.show(line_settings={"point_size": point_size})

    def _add_mesh(self, mesh: Mesh) -> SceneViz:
        import trimesh

        if len(mesh["faces"]):
            parts = mesh["vertices"], mesh["faces"]
            self.scene.add_geometry(trimesh.Trimesh(*parts, face_colors=mesh["face_colors"], process=False))
        return self


def _gather(values: Any, mask: Any, columns: int) -> np.ndarray:
    """(K, columns) rows of one array or of a list of arrays, where the mask is true."""
    arrays = list(values) if isinstance(values, (list, tuple)) else [values]
    masks = list(mask) if isinstance(mask, (list, tuple)) else [mask] * len(arrays)
    rows = []
    for array, keep in zip(arrays, masks):
        flat = np.asarray(to_numpy(array)).reshape(-1, columns)
        rows.append(flat if keep is None else flat[np.asarray(to_numpy(keep), dtype=bool).ravel()])
    return np.concatenate(rows)


def segment_sky(image: Any) -> np.ndarray:
    """Pixels that look like sky: bright, bluish or colourless, smooth, and joined to the upper border.

    A heuristic of colour and place, for tidying up displays.

    Args:
        image: (H, W, 3) colours, float 0..1 or uint8.

    Returns:
        (H, W) bool.
    """
    pixels = _to_bytes(image).astype(np.float32) / 255
    red, blue = pixels[..., 0], pixels[..., 2]
    brightness = pixels.max(axis=-1)
    smooth = ndimage.gaussian_gradient_magnitude(pixels.mean(axis=-1), 1.0) < _SKY_MAX_GRADIENT
    bluish = (blue - red > _SKY_BLUE_MARGIN) & (blue >= pixels[..., 1])
    overcast = (np.ptp(pixels, axis=-1) < 0.08) & (brightness > 0.8)
    labels = ndimage.label(smooth & (brightness > _SKY_MIN_BRIGHTNESS) & (bluish | overcast))[0]  # pyright: ignore
    reached = np.unique(labels[0])
    return np.isin(labels, reached[reached > 0])
