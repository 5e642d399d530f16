"""One image of a reconstruction: where it was taken from, or why that is not known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from multiview.cameras import Camera
from multiview.images import ImageTransform
from multiview.pointmaps import Pointmap
from multiview.poses import Pose
from multiview.similarity import Similarity

ImageStatus = Literal["registered", "failed"]

# Neighbouring pixels whose distances from the camera differ more belong to different surfaces.
_MAX_DISTANCE_RATIO = 1.1


@dataclass(frozen=True, eq=False)
class ReconstructedImage:
    """What a reconstruction knows about one image.

    Attributes:
        name: Unique name, usually the file's path relative to the folder of the images, with "/".
        size: (width, height) of the original, upright image.
        status: "registered" with camera and pose, or "failed" with a reason.
        reason: Why it failed, one sentence; may add a remark to a registered image.
        path: File it was read from, if any.
        camera: Intrinsics in ORIGINAL pixels; None if failed.
        pose: world_from_cam; None if failed.
        component: Number of the connected component; 0 is the largest. Each component has its own world.
        pointmap: (H, W, 3) points of its pixels in the WORLD frame, at model resolution.
        transform: Map from original pixels to the pixels of the pointmap.
        colors: (H, W, 3) uint8 RGB at model resolution.

    Raises:
        ValueError: If the fields contradict each other.
    """

    name: str
    size: tuple[int, int]
    status: ImageStatus
    reason: str = ""
    path: Path | None = None
    camera: Camera | None = None
    pose: Pose | None = None
    component: int = 0
    pointmap: Pointmap | None = None
    transform: ImageTransform | None = None
    colors: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("ReconstructedImage.name must not be empty: images are told apart by it.")
        if self.status not in get_args(ImageStatus):
            raise ValueError(f"ReconstructedImage.status must be one of {get_args(ImageStatus)}, got {self.status!r}.")
        object.__setattr__(self, "size", (int(self.size[0]), int(self.size[1])))
        object.__setattr__(self, "path", None if self.path is None else Path(self.path))
        known = self.camera is not None and self.pose is not None
        if self.status == "registered" and not known:
            raise ValueError(f"Registered image {self.name!r} needs a camera and a pose.")
        if self.status == "failed" and not self.reason:
            raise ValueError(f"Failed image {self.name!r} needs a reason in one sentence.")
        if self.status == "failed" and (self.camera, self.pose, self.pointmap) != (None, None, None):
            raise ValueError(f"Failed image {self.name!r} must have no camera, no pose and no pointmap.")
        if self.component < 0:
            raise ValueError(f"Image {self.name!r} must have a component of 0 or more, got {self.component}.")
        self._check_sizes()

    def _check_sizes(self) -> None:
        camera, transform, pointmap = self.camera, self.transform, self.pointmap
        originals = {self.size}
        originals |= {(camera.width, camera.height)} if camera else set()
        originals |= {transform.size_from} if transform else set()
        if len(originals) != 1:
            raise ValueError(f"Image {self.name!r} must have one original size, got {sorted(originals)}.")
        models = {transform.size_to} if transform else set()
        models |= {pointmap.size} if pointmap else set()
        if self.colors is not None:
            colors = np.asarray(self.colors)
            if colors.dtype != np.uint8 or colors.ndim != 3 or colors.shape[2] != 3:
                raise ValueError(
                    f"Image {self.name!r} needs colors (H, W, 3) uint8, got {colors.dtype} of shape {colors.shape}."
                )
            models.add((colors.shape[1], colors.shape[0]))
        if len(models) > 1:
            raise ValueError(f"Image {self.name!r} must have one model size, got {sorted(models)}.")

    @property
    def registered(self) -> bool:
        """Whether camera and pose are known."""
        return self.status == "registered"

    @property
    def model_colors(self) -> np.ndarray | None:
        """(H, W, 3) uint8 colours of the pointmap, grey if unknown; None without pointmap."""
        if self.pointmap is None or self.colors is not None:
            return self.colors
        return np.full(self.pointmap.points.shape, 128, np.uint8)

    def transformed(self, similarity: Similarity) -> ReconstructedImage:
        """The same image in another world."""
        pointmap = self.pointmap
        if pointmap is not None:
            moved = similarity.apply(pointmap.points).astype(np.float32)
            pointmap = Pointmap(moved, pointmap.confidence, pointmap.frame)
        pose = None if self.pose is None else similarity.apply_pose(self.pose)
        return replace(self, pose=pose, pointmap=pointmap)

    def point_at(self, xy: tuple[float, float] | np.ndarray) -> np.ndarray:
        """The world point behind a pixel, from the pointmap.

        Between pixels the points are interpolated, at edges of objects the nearest pixel's is taken.

        Args:
            xy: ORIGINAL pixel.

        Returns:
            (3,) float64.

        Raises:
            ValueError: If there is no pointmap or no point at this pixel.
        """
        if self.pointmap is None or self.transform is None or self.pose is None:
            raise ValueError(f"Image {self.name!r} has no pointmap to look a point up in.")
        x, y = self.transform.apply(np.asarray(xy, dtype=np.float64).reshape(2))
        width, height = self.pointmap.size
        if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
            raise ValueError(f"Pixel {tuple(map(float, xy))} lies outside what the network saw of image {self.name!r}.")
        point = _interpolated(self.pointmap.points, float(x), float(y), self.pose.center)
        if not np.isfinite(point).all():
            raise ValueError(f"Image {self.name!r} has no valid point at pixel {tuple(map(float, xy))}.")
        return point

    def __repr__(self) -> str:
        width, height = self.size
        state = (
            f"{self.camera}, {self.pose}, component {self.component}" if self.registered else f"failed: {self.reason}"
        )
        return f"ReconstructedImage({self.name!r} {width}x{height}, {state})"


def _interpolated(points: np.ndarray, x: float, y: float, center: np.ndarray) -> np.ndarray:
    """Bilinear interpolation of an (H, W, 3) map on one surface, the nearest pixel across a jump."""
    height, width = points.shape[:2]
    columns = np.clip([np.floor(x), np.floor(x) + 1], 0, width - 1).astype(int)
    rows = np.clip([np.floor(y), np.floor(y) + 1], 0, height - 1).astype(int)
    corners = points[np.ix_(rows, columns)].astype(np.float64)
    distances = np.linalg.norm(corners - center, axis=-1)
    fx, fy = np.clip([x - columns[0], y - rows[0]], 0, 1)
    if np.isfinite(distances).all() and distances.max() <= _MAX_DISTANCE_RATIO * distances.min():
        weights = np.outer([1 - fy, fy], [1 - fx, fx])
        return (weights[..., None] * corners).sum(axis=(0, 1))
    return corners[round(fy), round(fx)]
