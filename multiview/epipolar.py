"""Epipolar distances of matches as a function of the relative pose and both focal lengths, with derivatives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NUM_PARAMETERS = 7
"""Of a step: rotation vector (3), direction of translation on its tangent plane (2), log focal lengths (2)."""

_SQUARE = np.array([1.0, 1.0, 0.0])  # the coordinates of a pixel that a focal length divides
_TINY = 1e-24


@dataclass(frozen=True, eq=False)
class EpipolarGeometry:
    """Two pinhole cameras with square pixels, up to the length of their baseline.

    Attributes:
        R: (3, 3) rotation, camera 1 from camera 0.
        t: (3,) unit vector, `x_cam1 = R x_cam0 + s t`.
        log_focals: (2,) logarithms of the focal lengths in pixels.
    """

    R: np.ndarray
    t: np.ndarray
    log_focals: np.ndarray

    @property
    def focals(self) -> np.ndarray:
        """(2,) focal lengths in pixels."""
        return np.exp(self.log_focals)

    def moved(self, step: np.ndarray) -> EpipolarGeometry:
        """The geometry after a step (7,) of its parameters, see `NUM_PARAMETERS`."""
        t = self.t + step[3:5] @ tangents(self.t)
        return EpipolarGeometry(
            rotation_from_vector(step[:3]) @ self.R, t / np.linalg.norm(t), self.log_focals + step[5:7]
        )

    def distances(self, rays0: np.ndarray, rays1: np.ndarray) -> np.ndarray:
        """Signed Sampson distances in pixels.

        Args:
            rays0: (N, 3) pixels (x, y, 1) of image 0 from its principal point.
            rays1: (N, 3) the same of image 1.
        """
        scale0, scale1 = self._scales()
        F = scale1[:, None] * (cross_matrix(self.t) @ self.R) * scale0
        line1, line0 = rays0 @ F.T, rays1 @ F
        square = (line1[:, :2] ** 2).sum(1) + (line0[:, :2] ** 2).sum(1)
        return (rays1 * line1).sum(1) / np.sqrt(np.maximum(square, _TINY))

    def derivatives(self, rays0: np.ndarray, rays1: np.ndarray) -> np.ndarray:
        """(N, 7) derivatives of `distances` by the step of `moved`."""
        scale0, scale1 = self._scales()
        across = cross_matrix(self.t)
        F = scale1[:, None] * (across @ self.R) * scale0
        line1, line0 = rays0 @ F.T, rays1 @ F
        value = (rays1 * line1).sum(1)
        norm = np.sqrt(np.maximum((line1[:, :2] ** 2).sum(1) + (line0[:, :2] ** 2).sum(1), _TINY))
        turned = [across @ cross_matrix(axis) @ self.R for axis in np.eye(3)]
        shifted = [cross_matrix(axis) @ self.R for axis in tangents(self.t)]
        changes = [scale1[:, None] * E * scale0 for E in (*turned, *shifted)] + [-F * _SQUARE, -F * _SQUARE[:, None]]
        columns = []
        for dF in changes:
            change1, change0 = rays0 @ dF.T, rays1 @ dF
            dnorm = ((line1 * change1)[:, :2].sum(1) + (line0 * change0)[:, :2].sum(1)) / norm
            columns.append(((rays1 * change1).sum(1) - value * dnorm / norm) / norm)
        return np.stack(columns, axis=1)

    def depths(self, rays0: np.ndarray, rays1: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Depths of the points that matches show, and how well they are determined.

        Args:
            rays0: (N, 3) pixels (x, y, 1) of image 0 from its principal point.
            rays1: (N, 3) the same of image 1.

        Returns:
            (N,) depths in camera 0 and in camera 1, in units of the baseline and not positive for points behind
            a camera; and the angle in radians at which the rays meet.
        """
        scale0, scale1 = self._scales()
        ray0, ray1 = (rays0 * scale0) @ self.R.T, rays1 * scale1
        normal = np.cross(ray0, ray1)
        square = np.maximum((normal**2).sum(1), _TINY)
        # From z1 ray1 = z0 ray0 + t, by the cross products with ray1 and ray0.
        depth0 = -(np.cross(self.t, ray1) * normal).sum(1) / square
        depth1 = (np.cross(ray0, self.t) * normal).sum(1) / square
        angle = np.arctan2(np.sqrt(square), (ray0 * ray1).sum(1))
        return depth0, depth1, angle

    def _scales(self) -> tuple[np.ndarray, np.ndarray]:
        focal0, focal1 = self.focals
        return np.array([1 / focal0, 1 / focal0, 1.0]), np.array([1 / focal1, 1 / focal1, 1.0])


def cross_matrix(v: np.ndarray) -> np.ndarray:
    """(3, 3) matrix whose product with x is v x x (cross product)."""
    return np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])


def rotation_from_vector(v: np.ndarray) -> np.ndarray:
    """(3, 3) rotation about v by its length in radians (Rodrigues)."""
    angle = float(np.linalg.norm(v))
    across = cross_matrix(v)
    if angle < 1e-8:
        return np.eye(3) + across
    return np.eye(3) + np.sin(angle) / angle * across + (1 - np.cos(angle)) / angle**2 * across @ across


def tangents(t: np.ndarray) -> np.ndarray:
    """(2, 3) unit vectors that are orthogonal to the unit vector t and to each other."""
    first = np.cross(t, np.eye(3)[np.argmin(np.abs(t))])
    first /= np.linalg.norm(first)
    return np.stack([first, np.cross(t, first)])
