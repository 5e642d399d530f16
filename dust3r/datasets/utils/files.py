"""Reading the files of prepared data sets: photos, depth maps, cameras, lists. Nothing in a file is executed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from dust3r.utils.image import IMREAD_UNCHANGED, imread_cv2
from multiview.exr import read_exr
from multiview.images import read_image

_MASK_LEVEL = 128  # of 255


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a data set with what is known about it.

    Attributes:
        image: RGB photo.
        depthmap: (H, W) float32 z depth, 0 where unknown.
        K: (3, 3) intrinsics in pixels.
        world_from_cam: (4, 4) pose.
        name: For messages.
    """

    image: PIL.Image.Image
    depthmap: np.ndarray
    K: np.ndarray
    world_from_cam: np.ndarray
    name: str

    def masked(self, keep: np.ndarray) -> Frame:
        """The frame without the depth of pixels where `keep` (H, W) is False."""
        if keep.shape != self.depthmap.shape:
            raise ValueError(f"the mask of {self.name} has shape {keep.shape}, its depth map {self.depthmap.shape}")
        return replace(self, depthmap=np.where(keep, self.depthmap, 0))

    @property
    def has_depth(self) -> bool:
        """Whether any pixel has depth."""
        return bool((self.depthmap > 0).any())


def read_photo(path: Path) -> PIL.Image.Image:
    """An RGB photo."""
    return read_image(path).to_pil()


def read_mask(path: Path) -> np.ndarray:
    """(H, W) bool of an 8-bit mask: True where it is at least half."""
    mask = imread_cv2(path, IMREAD_UNCHANGED)
    return (mask if mask.ndim == 2 else mask[..., 0]) >= _MASK_LEVEL


def read_depth_png(path: Path, unit: float) -> np.ndarray:
    """(H, W) float32 depth of a 16-bit PNG whose levels are `unit` apart."""
    return imread_cv2(path, IMREAD_UNCHANGED).astype(np.float32) * np.float32(unit)


def read_depth_exr(path: Path) -> np.ndarray:
    """(H, W) float32 depth of an OpenEXR file; the first channel if it has several. NaN becomes 0."""
    depth = read_exr(path)
    return np.nan_to_num(depth if depth.ndim == 2 else depth[..., 0], nan=0.0, posinf=0.0, neginf=0.0)


def load_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Named arrays of an `.npz` file.

    Raises:
        ValueError: If the file is missing, damaged, or lacks one of them.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({error}); it must hold the arrays {', '.join(names)}") from error


def load_rows(path: Path) -> np.ndarray:
    """The array of an `.npy` file.

    Raises:
        ValueError: If the file is missing or damaged, or holds Python objects.
    """
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({error}); prepare the data set again") from error


def load_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: If the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); prepare the data set again") from error


def pose_from_parts(camera: Mapping[str, Any]) -> np.ndarray:
    """(4, 4) pose from `R_cam2world` (3, 3) and `t_cam2world` (3,)."""
    pose = np.eye(4, dtype=np.float32)
    pose[:3, :3] = camera["R_cam2world"]
    pose[:3, 3] = np.asarray(camera["t_cam2world"]).reshape(3)
    return pose


def text_of(value: object) -> str:
    """A name stored as text or bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


def check_split(name: str, split: str | None, allowed: tuple[str | None, ...]) -> None:
    """Refuse a part the data set does not have."""
    if split not in allowed:
        raise ValueError(f"{name} has the splits {', '.join(map(repr, allowed))}, got {split!r}")
