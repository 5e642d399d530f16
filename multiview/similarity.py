"""Maps between world frames that differ in place, turn and unit of length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from multiview.poses import Pose

ScaleStatus = Literal["metric-predicted", "metric-given", "arbitrary"]
"""Origin of the unit of length: the network's guess of metres, metres given by the user, or none."""

_RIGID_TOLERANCE = 1e-3
# Below this ratio of second to first extent, centres lie on a line: the turn about it is unknown from them.
_LINE_RATIO = 1e-2


@dataclass(frozen=True, eq=False)
class Similarity:
    """The map `x_new = scale * R @ x_old + t`.

    Attributes:
        scale: Positive factor of lengths.
        R: (3, 3) rotation.
        t: (3,) translation, in the new unit.

    Raises:
        ValueError: If the scale is not positive or R is no rotation.
    """

    scale: float
    R: np.ndarray
    t: np.ndarray

    def __post_init__(self) -> None:
        R = np.array(self.R, dtype=np.float64)
        t = np.array(self.t, dtype=np.float64).reshape(-1)
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"Similarity.scale must be positive and finite, got {self.scale}.")
        if R.shape != (3, 3) or np.abs(R @ R.T - np.eye(3)).max() > _RIGID_TOLERANCE or np.linalg.det(R) < 0:
            raise ValueError(f"Similarity.R must be a (3, 3) rotation without scale or mirror, got {R.tolist()}.")
        if t.shape != (3,) or not np.isfinite(t).all():
            raise ValueError(f"Similarity.t must be three finite numbers, got {t.tolist()}.")
        for name, value in (("scale", float(self.scale)), ("R", R), ("t", t)):
            object.__setattr__(self, name, value)

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Map (..., 3) points; returns float64."""
        return self.scale * (np.asarray(points, dtype=np.float64) @ self.R.T) + self.t

    def apply_pose(self, pose: Pose) -> Pose:
        """The same camera, seen from the new world."""
        return Pose.from_rt(self.R @ pose.rotation, self.apply(pose.center))


def check_scale_status(value: str) -> None:
    """Refuse a scale status that is none of `ScaleStatus`."""
    if value not in get_args(ScaleStatus):
        raise ValueError(f"scale_status must be one of {get_args(ScaleStatus)}, got {value!r}.")


def umeyama(source: np.ndarray, target: np.ndarray) -> Similarity:
    """The least-squares similarity from points to points (Umeyama, PAMI 1991).

    Args:
        source: (N, 3) points, at least three of them not on one line.
        target: (N, 3) where they should go.

    Returns:
        The similarity that minimises the squared distances in the target frame.

    Raises:
        ValueError: If the points do not determine it.
    """
    source, target = (np.asarray(points, dtype=np.float64) for points in (source, target))
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 3:
        raise ValueError(f"Umeyama needs two (N, 3) arrays of one length, got {source.shape} and {target.shape}.")
    if _on_a_line(source) or _on_a_line(target):
        raise ValueError(f"{len(source)} points on one line (or fewer than three) determine no similarity.")
    a, b = source - source.mean(axis=0), target - target.mean(axis=0)
    R = nearest_rotation(b.T @ a)
    return _with_rotation(source, target, R)


def similarity_from_poses(source: Sequence[Pose], target: Sequence[Pose]) -> Similarity:
    """The similarity that brings cameras to known poses.

    Centres that span a plane determine it alone. On a line (two cameras always are) the turn about the line
    comes from the cameras' rotations.

    Args:
        source: N poses.
        target: The same cameras' poses in the wanted world.

    Returns:
        Map from the source's to the target's world.

    Raises:
        ValueError: If fewer than two centres are distinct in either world.
    """
    if len(source) != len(target):
        raise ValueError(f"Both lists need the same cameras, got {len(source)} and {len(target)} poses.")
    a, b = (np.array([pose.center for pose in poses]).reshape(-1, 3) for poses in (source, target))
    if min(_extent(a), _extent(b)) <= 1e-9 * max(1.0, np.abs(b).max(initial=0), np.abs(a).max(initial=0)):
        raise ValueError(f"At least two cameras at different places are needed to find a scale, got {len(a)} poses.")
    if not (_on_a_line(a) or _on_a_line(b)):
        return umeyama(a, b)
    turns = sum(q.rotation @ p.rotation.T for p, q in zip(source, target))
    return _with_rotation(a, b, _turn_onto_line(np.asarray(turns), a, b))


def nearest_rotation(matrix: np.ndarray) -> np.ndarray:
    """The rotation with the largest product with a (3, 3) matrix."""
    u, _, vt = np.linalg.svd(matrix)
    return u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt


def rotation_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The smallest rotation that turns direction `a` into direction `b`; both (3,), not zero."""
    a, b = (np.asarray(v, dtype=np.float64) / np.linalg.norm(v) for v in (a, b))
    axis, cosine = np.cross(a, b), float(a @ b)
    if cosine < -1 + 1e-12:  # opposite: half a turn about any perpendicular axis
        axis = np.cross(a, np.eye(3)[np.abs(a).argmin()])
        axis /= np.linalg.norm(axis)
        return 2 * np.outer(axis, axis) - np.eye(3)
    x, y, z = axis
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + skew + skew @ skew / (1 + cosine)


def _turn_onto_line(turns: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The rotations' mean, corrected by the smallest turn that brings the line of the centres onto its target."""
    R = nearest_rotation(turns)
    moved = (a - a.mean(axis=0)) @ R.T
    covariance = (b - b.mean(axis=0)).T @ moved
    u, _, vt = np.linalg.svd(covariance)
    return rotation_between(vt[0], u[:, 0]) @ R


def _with_rotation(source: np.ndarray, target: np.ndarray, R: np.ndarray) -> Similarity:
    """Least-squares scale and translation for a known rotation."""
    a, b = source - source.mean(axis=0), target - target.mean(axis=0)
    scale = float(((a @ R.T) * b).sum() / (a * a).sum())
    if scale <= 0:
        raise ValueError("The two sets of cameras contradict each other: no similarity fits them.")
    return Similarity(scale, R, target.mean(axis=0) - scale * R @ source.mean(axis=0))


def _extent(points: np.ndarray) -> float:
    """Largest distance of a point from the mean; 0 for none."""
    return float(np.linalg.norm(points - points.mean(axis=0), axis=1).max()) if len(points) else 0.0


def _on_a_line(points: np.ndarray) -> bool:
    if len(points) < 3:
        return True
    extents = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    return bool(extents[1] <= _LINE_RATIO * extents[0])
