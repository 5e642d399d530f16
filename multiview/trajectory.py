"""Camera trajectories in the text form of the TUM RGB-D benchmark."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from multiview.files import atomic_write
from multiview.poses import Pose


def write_tum(
    path: str | os.PathLike[str], poses: Mapping[str, Pose], *, timestamps: Mapping[str, float] | None = None
) -> Path:
    """Write `timestamp tx ty tz qx qy qz qw` per camera (world_from_cam), atomically.

    A comment line before each camera names its image.

    Args:
        path: Target file.
        poses: Poses by image name, in the order of the trajectory.
        timestamps: Seconds by image name; default 0, 1, 2, ...

    Returns:
        The path.

    Raises:
        ValueError: If there is no pose or a timestamp is missing.
    """
    if not poses:
        raise ValueError("There is no camera pose to write as a trajectory.")
    missing = [name for name in poses if timestamps is not None and name not in timestamps]
    if missing:
        raise ValueError(f"timestamps lacks image {missing[0]!r}.")
    lines = ["# timestamp tx ty tz qx qy qz qw"]
    for i, (name, pose) in enumerate(poses.items()):
        time = i if timestamps is None else timestamps[name]
        numbers = [*pose.center, *quaternion_xyzw(pose.rotation)]
        lines += [f"# {name}", " ".join([f"{time:.6f}" if timestamps else str(i), *(f"{v:.9g}" for v in numbers)])]
    with atomic_write(path) as file:
        file.write(("\n".join(lines) + "\n").encode())
    return Path(path)


def read_tum(path: str | os.PathLike[str]) -> list[tuple[float, Pose]]:
    """Timestamps and poses of a TUM trajectory.

    Raises:
        ValueError: If a line does not hold eight numbers.
    """
    entries = []
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            time, *values = (float(value) for value in line.split())
            center, quaternion = np.array(values[:3]), np.array(values[3:])
            entries.append((time, Pose.from_rt(rotation_from_xyzw(quaternion), center)))
        except ValueError as error:
            raise ValueError(f"Line {number} of {path} is not 'timestamp tx ty tz qx qy qz qw' ({error}).") from error
    return entries


def quaternion_xyzw(R: np.ndarray) -> np.ndarray:
    """(4,) unit quaternion (x, y, z, w) with w >= 0 of a (3, 3) rotation."""
    # The eigenvector of the largest eigenvalue is exact near half turns too (Bar-Itzhack 2000).
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = np.asarray(R, dtype=np.float64)
    K = np.array(
        [
            [xx - yy - zz, yx + xy, zx + xz, zy - yz],
            [yx + xy, yy - xx - zz, zy + yz, xz - zx],
            [zx + xz, zy + yz, zz - xx - yy, yx - xy],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz],
        ]
    )
    quaternion = np.linalg.eigh(K)[1][:, -1]
    return quaternion if quaternion[3] >= 0 else -quaternion


def rotation_from_xyzw(quaternion: np.ndarray) -> np.ndarray:
    """(3, 3) rotation of a quaternion (x, y, z, w), which need not be normalised.

    Raises:
        ValueError: If it is not four numbers or zero.
    """
    quaternion = np.asarray(quaternion, dtype=np.float64)
    if quaternion.shape != (4,) or not np.linalg.norm(quaternion) > 0:
        raise ValueError(f"a quaternion is four numbers (x, y, z, w), not all zero, got {quaternion.tolist()}")
    x, y, z, w = quaternion / np.linalg.norm(quaternion)
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * skew + 2 * skew @ skew
