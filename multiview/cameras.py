"""Cameras: intrinsics, projection and its inverse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from multiview.images import ImageTransform

CameraModel = Literal["PINHOLE", "OPENCV"]
_PARAMETERS = {"PINHOLE": 0, "OPENCV": 4}
_UNDISTORT_ROUNDS = 20


@dataclass(frozen=True, eq=False)
class Camera:
    """Intrinsics of one image.

    Attributes:
        K: (3, 3) float64 in pixels, integer pixel centres: rows (fx, 0, cx), (0, fy, cy), (0, 0, 1).
        width: Image width in pixels.
        height: Image height in pixels.
        model: `PINHOLE`, or `OPENCV` with radial and tangential distortion.
        distortion: () for `PINHOLE`; (k1, k2, p1, p2) for `OPENCV`.

    Raises:
        ValueError: If K is no such matrix, the size is not positive or the distortion does not fit the model.
    """

    K: np.ndarray
    width: int
    height: int
    model: CameraModel = "PINHOLE"
    distortion: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        K = check_intrinsics(self.K)
        if min(self.width, self.height) < 1:
            raise ValueError(f"Camera needs a positive width and height, got {self.width}x{self.height}.")
        if self.model not in _PARAMETERS:
            raise ValueError(f"Camera.model must be one of {', '.join(_PARAMETERS)}, got {self.model!r}.")
        distortion = tuple(float(value) for value in self.distortion)
        if len(distortion) != _PARAMETERS[self.model]:
            raise ValueError(
                f"Camera model {self.model} takes {_PARAMETERS[self.model]} distortion values, got {len(distortion)}."
            )
        K.setflags(write=False)
        object.__setattr__(self, "K", K)
        object.__setattr__(self, "distortion", distortion)

    @classmethod
    def from_focal(
        cls, focal: float, width: int, height: int, *, principal_point: tuple[float, float] | None = None
    ) -> Camera:
        """A pinhole camera with square pixels.

        Args:
            focal: Focal length in pixels.
            width: Image width in pixels.
            height: Image height in pixels.
            principal_point: (cx, cy) in pixels; default is the image centre ((width - 1) / 2, (height - 1) /
                2).
        """
        cx, cy = principal_point or ((width - 1) / 2, (height - 1) / 2)
        return cls(np.array([[focal, 0, cx], [0, focal, cy], [0, 0, 1]]), width, height)

    @property
    def focal(self) -> tuple[float, float]:
        """(fx, fy) in pixels."""
        return float(self.K[0, 0]), float(self.K[1, 1])

    @property
    def principal_point(self) -> tuple[float, float]:
        """(cx, cy) in pixels."""
        return float(self.K[0, 2]), float(self.K[1, 2])

    @property
    def fov_deg(self) -> tuple[float, float]:
        """Horizontal and vertical field of view of a centred camera of this size, in degrees."""
        fx, fy = self.focal
        return (
            float(np.degrees(2 * np.arctan(self.width / (2 * fx)))),
            float(np.degrees(2 * np.arctan(self.height / (2 * fy)))),
        )

    def project(self, points: np.ndarray) -> np.ndarray:
        """Project points of the camera frame.

        Args:
            points: (..., 3) in the camera's frame.

        Returns:
            (..., 2) float64 pixels, possibly outside the image; NaN for points that are not in front of the
            camera.
        """
        points = np.asarray(points, dtype=np.float64)
        depth = np.where(points[..., 2:] > 0, points[..., 2:], np.nan)
        return self._distort(points[..., :2] / depth) @ self.K[:2, :2].T + self.K[:2, 2]

    def unproject(self, xy: np.ndarray, depth: np.ndarray | float = 1.0) -> np.ndarray:
        """Points of the camera frame behind pixels.

        Args:
            xy: (..., 2) pixels.
            depth: (...) z coordinate of each point, or one for all.

        Returns:
            (..., 3) float64 points with z = depth.
        """
        plane = (np.asarray(xy, dtype=np.float64) - self.K[:2, 2]) / np.diag(self.K)[:2]
        plane = self._undistort(plane)
        rays = np.concatenate([plane, np.ones_like(plane[..., :1])], axis=-1)
        return rays * np.asarray(depth, dtype=np.float64)[..., None]

    def transformed(self, transform: ImageTransform) -> Camera:
        """The camera of the resized or cropped image.

        Args:
            transform: Map from this camera's image to the new one, without turn, mirror or shear.

        Raises:
            ValueError: If the sizes disagree or the map turns, mirrors or shears.
        """
        if transform.size_from != (self.width, self.height):
            raise ValueError(
                f"The transform starts from size {transform.size_from}, the camera has {self.width}x{self.height}."
            )
        linear = transform.matrix[:2, :2]
        if linear[0, 1] != 0 or linear[1, 0] != 0 or (np.diag(linear) <= 0).any():
            raise ValueError("Intrinsics can be resized and cropped, not turned; turn the pose as well and build anew.")
        return Camera(transform.matrix @ self.K, *transform.size_to, self.model, self.distortion)

    def _distort(self, plane: np.ndarray) -> np.ndarray:
        """Undistorted to distorted coordinates on the plane z = 1."""
        if not self.distortion:
            return plane
        k1, k2, p1, p2 = self.distortion
        x, y = plane[..., 0], plane[..., 1]
        r2 = x * x + y * y
        radial = 1 + r2 * (k1 + k2 * r2)
        dx = 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
        dy = p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
        return np.stack([x * radial + dx, y * radial + dy], axis=-1)

    def _undistort(self, plane: np.ndarray) -> np.ndarray:
        """Inverse of `_distort` by fixed-point iteration, which converges for real lenses."""
        if not self.distortion:
            return plane
        clean = plane
        for _ in range(_UNDISTORT_ROUNDS):
            clean = clean + (plane - self._distort(clean))
        return clean

    def __repr__(self) -> str:
        (fx, fy), (cx, cy) = self.focal, self.principal_point
        return f"Camera({self.model} {self.width}x{self.height}, f=({fx:.1f}, {fy:.1f}), c=({cx:.1f}, {cy:.1f}))"


def check_intrinsics(K: np.ndarray) -> np.ndarray:
    """A (3, 3) float64 copy of intrinsics.

    Raises:
        ValueError: If `K` is not ((fx, 0, cx), (0, fy, cy), (0, 0, 1)) with positive focal lengths.
    """
    K = np.array(K, dtype=np.float64)
    if K.shape == (3, 3) and np.isfinite(K).all():
        zero = (*K[2, :2], K[1, 0], K[0, 1])
        if K[0, 0] > 0 and K[1, 1] > 0 and K[2, 2] == 1 and np.abs(zero).max() <= 1e-9 * K[0, 0]:
            return K
    raise ValueError(f"K must be ((fx, 0, cx), (0, fy, cy), (0, 0, 1)) with positive focals, got {K.tolist()}.")
