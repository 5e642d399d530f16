"""Rigid camera poses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_RIGID_TOLERANCE = 1e-3  # poses often come from float32 predictions


@dataclass(frozen=True, eq=False)
class Pose:
    """Where a camera stands: the rigid map from its axes (x right, y down, z forward) to the world.

    Attributes:
        world_from_cam: (4, 4) float64; `x_world = world_from_cam @ x_cam`.

    Raises:
        ValueError: If the matrix is not a rotation and a translation.
    """

    world_from_cam: np.ndarray

    def __post_init__(self) -> None:
        matrix = np.array(self.world_from_cam, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.allclose(matrix[3], (0, 0, 0, 1)):
            raise ValueError(f"Pose.world_from_cam must be a finite (4, 4) matrix with last row 0 0 0 1, got {matrix}.")
        R = matrix[:3, :3]
        if np.abs(R @ R.T - np.eye(3)).max() > _RIGID_TOLERANCE or np.linalg.det(R) < 0:
            raise ValueError(f"Pose.world_from_cam must hold a rotation without scale or mirror, got {R}.")
        matrix.setflags(write=False)
        object.__setattr__(self, "world_from_cam", matrix)

    @classmethod
    def identity(cls) -> Pose:
        """The camera whose frame is the world."""
        return cls(np.eye(4))

    @classmethod
    def from_rt(cls, R: np.ndarray, t: np.ndarray) -> Pose:
        """From `x_world = R x_cam + t`.

        Args:
            R: (3, 3) rotation, world from camera.
            t: (3,) camera centre in the world.
        """
        matrix = np.eye(4)
        matrix[:3, :3] = R
        matrix[:3, 3] = np.asarray(t).reshape(3)
        return cls(matrix)

    @classmethod
    def from_cam_from_world(cls, R: np.ndarray, t: np.ndarray) -> Pose:
        """From `x_cam = R x_world + t`, as COLMAP and OpenCV give it."""
        R = np.asarray(R, dtype=np.float64)
        return cls.from_rt(R.T, -R.T @ np.asarray(t, dtype=np.float64).reshape(3))

    @property
    def rotation(self) -> np.ndarray:
        """(3, 3) rotation, world from camera."""
        return self.world_from_cam[:3, :3]

    @property
    def center(self) -> np.ndarray:
        """(3,) camera centre in the world."""
        return self.world_from_cam[:3, 3]

    @property
    def cam_from_world(self) -> np.ndarray:
        """(4, 4) map from the world to the camera."""
        return self.inverse().world_from_cam

    def inverse(self) -> Pose:
        """The pose of the world seen from this camera."""
        return Pose.from_rt(self.rotation.T, -self.rotation.T @ self.center)

    def compose(self, other: Pose) -> Pose:
        """The pose of `other`, whose pose is given in this camera's frame, in the world."""
        return Pose(self.world_from_cam @ other.world_from_cam)

    def relative(self, other: Pose) -> Pose:
        """The pose of `other` in this camera's frame; `self.compose(self.relative(other))` is `other`."""
        return self.inverse().compose(other)

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Map points from the camera's frame to the world.

        Args:
            points: (..., 3).

        Returns:
            (..., 3) float64.
        """
        return np.asarray(points, dtype=np.float64) @ self.rotation.T + self.center

    @property
    def angle_deg(self) -> float:
        """Angle of the rotation in degrees, 0..180."""
        # atan2 of sine and cosine keeps small angles exact where acos of the trace does not.
        skew = self.rotation - self.rotation.T
        sine = np.linalg.norm((skew[2, 1], skew[0, 2], skew[1, 0])) / 2
        return float(np.degrees(np.arctan2(sine, (np.trace(self.rotation) - 1) / 2)))

    def __repr__(self) -> str:
        x, y, z = self.center
        return f"Pose(centre=({x:.4g}, {y:.4g}, {z:.4g}), rotation={self.angle_deg:.2f} deg)"
