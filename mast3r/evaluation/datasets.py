"""Image pairs with ground truth: folders with a `gt.json`, and the pair lists of the field.

All pixels of the truth are those of the stored files, integer pixel centres; poses map camera 0 to camera 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from multiview.cameras import check_intrinsics
from multiview.images import ImageTransform
from multiview.poses import Pose

GT_FILE = "gt.json"
LOW_CONFIDENCE = "low"
_EXIF_ORIENTATION = 0x0112
_KNOWN_COLUMNS = {
    32: (2, 12),
    36: (2, 16),
    38: (4, 16),
}  # columns of a line -> (columns before K0, of the pose)


class DatasetError(ValueError):
    """Ground truth that cannot be used; the message is one sentence."""


@dataclass(frozen=True)
class DepthTruth:
    """Where the measured depth of an image lies.

    Attributes:
        path: 16-bit PNG; 0 means no measurement.
        scale: stored value / scale is the depth, or the disparity in pixels if `disparity` is given.
        disparity: (focal in pixels, baseline, difference of the principal points in pixels) of a rectified
            stereo pair; None for plain depth.
    """

    path: Path
    scale: float
    disparity: tuple[float, float, float] | None = None

    def read(self) -> np.ndarray:
        """(H, W) float32 depth, 0 where unknown.

        Raises:
            DatasetError: If the file is missing or unreadable.
        """
        try:
            with PIL.Image.open(self.path) as file:
                stored = np.asarray(file).astype(np.float32)
        except OSError as error:
            raise DatasetError(f"The depth map {self.path} cannot be read ({error}).") from error
        if stored.ndim != 2:
            raise DatasetError(f"The depth map {self.path} must have one channel, got {stored.shape}.")
        values = stored / self.scale
        if self.disparity is None:
            return values
        focal, baseline, offset = self.disparity
        denominator = np.where(stored > 0, values + offset, np.inf)
        return np.where(denominator > 0, focal * baseline / denominator, 0).astype(np.float32)


@dataclass(frozen=True, eq=False)
class EvaluationPair:
    """Two photos and what is known about them; None for what is not.

    Attributes:
        image0: file of image 0.
        image1: file of image 1.
        name0: how image 0 is called in reports.
        name1: the same of image 1.
        K0: (3, 3) intrinsics of image 0.
        K1: (3, 3) intrinsics of image 1.
        T_0to1: (4, 4) `x_cam1 = T_0to1 @ x_cam0`.
        H_0to1: (3, 3) homography.
        points: (N, 4) annotated correspondences x0 y0 x1 y1.
        depth0: measured depth of image 0.
        depth1: measured depth of image 1.
    """

    image0: Path
    image1: Path
    name0: str
    name1: str
    K0: np.ndarray | None = None
    K1: np.ndarray | None = None
    T_0to1: np.ndarray | None = None
    H_0to1: np.ndarray | None = None
    points: np.ndarray | None = None
    depth0: DepthTruth | None = None
    depth1: DepthTruth | None = None

    @property
    def has_pose(self) -> bool:
        """Whether intrinsics and relative pose are known."""
        return self.K0 is not None and self.K1 is not None and self.T_0to1 is not None

    @property
    def has_truth(self) -> bool:
        """Whether anything is known that matches can be judged by."""
        return self.has_pose or self.H_0to1 is not None or self.points is not None


@dataclass(frozen=True, eq=False)
class EvaluationScene:
    """A named set of pairs.

    Attributes:
        name: name of the scene.
        pairs: its pairs with ground truth.
        confidence: how far the truth can be trusted: high, medium, or low (left out of totals).
        metric: whether lengths are metres.
    """

    name: str
    pairs: tuple[EvaluationPair, ...] = field(repr=False)
    confidence: str = "high"
    metric: bool = False


def read_scenes(path: str | Path, scenes: Sequence[str] | None = None) -> list[EvaluationScene]:
    """Scenes of a data folder, or of one pair list.

    Args:
        path: a folder with a `gt.json`, a folder of such folders, or a `.txt` pair list whose images lie
            beside it (`read_pair_list` takes another image folder).
        scenes: names to keep; None keeps all that have ground truth.

    Raises:
        DatasetError: If there is nothing to evaluate, a name is unknown, or a file is broken.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".txt":
        return [read_pair_list(path)]
    files = sorted([*path.glob(GT_FILE), *path.glob(f"*/{GT_FILE}")])
    if not files:
        raise DatasetError(f"No {GT_FILE} in {path} or its folders; name a data folder or a .txt pair list.")
    found = {file.parent.resolve().name: file for file in files}
    unknown = sorted(set(scenes or ()) - set(found))
    if unknown:
        raise DatasetError(f"No scene {', '.join(unknown)} in {path}; there are {', '.join(found)}.")
    read = [read_scene(found[name].parent) for name in found if scenes is None or name in scenes]
    kept = [scene for scene in read if scene.pairs]
    if not kept:
        raise DatasetError(f"No pair with ground truth in {path}.")
    return kept


def read_scene(folder: str | Path) -> EvaluationScene:
    """The scene whose `gt.json` lies in `folder`; pairs without any ground truth are left out.

    Raises:
        DatasetError: If the file is missing or broken.
    """
    folder = Path(folder)
    file = folder / GT_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        pairs = [_pair(folder, content, entry) for entry in content.get("pairs", ())]
    except DatasetError:
        raise
    except OSError as error:
        raise DatasetError(f"{file} cannot be read ({error}).") from error
    except json.JSONDecodeError as error:
        raise DatasetError(f"{file} is no JSON file ({error}).") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(f"{file} is not in the gt.json format ({type(error).__name__}: {error}).") from error
    return EvaluationScene(
        name=folder.resolve().name,
        pairs=tuple(pair for pair in pairs if pair.has_truth),
        confidence=str(content.get("gt_confidence", "high")),
        metric=bool(content.get("metric", False)),
    )


def read_pair_list(path: str | Path, images: str | Path | None = None, *, name: str | None = None) -> EvaluationScene:
    """A text file with one pair and its ground truth per line.

    Two forms: SuperGlue's for ScanNet and YFCC, `path0 path1 rot0 rot1 K0(9) K1(9) T_0to1(16)`, also without
    the two rotations; and glue-factory's for MegaDepth, `path0 path1 K0(9) K1(9) R(9) t(3)`. Matrices are
    row-major. The rotations, quarter turns that would show the photo upright, are not applied: the truth
    refers to the stored pixels. Empty lines and lines that start with # are skipped.

    Args:
        path: the list.
        images: folder that its paths start from; default the folder of the list.
        name: name of the scene; default the file's.

    Raises:
        DatasetError: If the list is missing, empty or broken.
    """
    path = Path(path)
    root = path.parent if images is None else Path(images)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"The pair list {path} cannot be read ({error}).") from error
    numbered = [(number, line.split()) for number, line in enumerate(lines, 1)]
    pairs = [
        _listed_pair(root, words, f"line {number} of {path}")
        for number, words in numbered
        if words and not words[0].startswith("#")
    ]
    if not pairs:
        raise DatasetError(f"The pair list {path} names no pair.")
    return EvaluationScene(name or path.stem, tuple(pairs))


def evenly(pairs: Sequence[EvaluationPair], limit: int | None) -> tuple[EvaluationPair, ...]:
    """At most `limit` of the pairs, spread evenly over their order; None keeps all."""
    if limit is None or limit >= len(pairs):
        return tuple(pairs)
    return tuple(pairs[round(i)] for i in np.linspace(0, len(pairs) - 1, limit))


def stored_from_upright(path: Path, size: tuple[int, int]) -> ImageTransform | None:
    """The map from upright pixels, in which matches are, to those of the stored file, in which the truth is.

    Args:
        path: image file.
        size: (width, height) of the upright image.

    Returns:
        The map; None if the file is stored upright.
    """
    with PIL.Image.open(path) as file:
        orientation = file.getexif().get(_EXIF_ORIENTATION, 1)
    if orientation not in range(2, 9):
        return None
    stored = (size[1], size[0]) if orientation >= 5 else size
    return ImageTransform.turn(stored, orientation).inverse()


def _pair(folder: Path, content: Mapping[str, Any], entry: Mapping[str, Any]) -> EvaluationPair:
    """The pair that an entry of a scene's file describes."""
    names = (str(entry["image0"]), str(entry["image1"]))
    for name in names:
        if not (folder / name).is_file():
            raise DatasetError(f"{folder / GT_FILE} names the image {name}, which does not exist.")
    listed = [content.get("images", {}).get(name, {}) for name in names]
    depths = [_depth(folder, content, image) for image in listed]
    K0, K1 = (entry.get(f"K{i}", listed[i].get("K")) for i in (0, 1))
    return EvaluationPair(
        folder / names[0],
        folder / names[1],
        *names,
        K0=None if K0 is None else check_intrinsics(K0),
        K1=None if K1 is None else check_intrinsics(K1),
        T_0to1=_pose(entry.get("T_0to1")),
        H_0to1=_matrix(entry.get("H_0to1"), (3, 3), "H_0to1"),
        points=_matrix(entry.get("corrs"), (-1, 4), "corrs"),
        depth0=_disparity(folder, content, entry) or depths[0],
        depth1=depths[1],
    )


def _depth(folder: Path, content: Mapping[str, Any], image: Mapping[str, Any]) -> DepthTruth | None:
    return DepthTruth(folder / image["depth"], float(content["depth_scale"])) if image.get("depth") else None


def _disparity(folder: Path, content: Mapping[str, Any], entry: Mapping[str, Any]) -> DepthTruth | None:
    if not entry.get("disparity0"):
        return None
    stereo = (float(entry["K0"][0][0]), float(entry["baseline_m"]), float(entry.get("doffs", 0.0)))
    return DepthTruth(folder / entry["disparity0"], float(content["disparity_scale"]), stereo)


def _pose(value: Any) -> np.ndarray | None:
    """A (4, 4) rigid pose, or None."""
    matrix = _matrix(value, (4, 4), "T_0to1")
    if matrix is None:
        return None
    try:
        return np.array(Pose(matrix).world_from_cam)
    except ValueError:
        raise ValueError("T_0to1 must be a rotation and a translation with last row 0 0 0 1") from None


def _matrix(value: Any, shape: tuple[int, int], name: str) -> np.ndarray | None:
    """Finite float64 matrix of a shape (-1: any), or None."""
    if value is None:
        return None
    matrix = np.asarray(value, dtype=np.float64)
    fits = matrix.ndim == 2 and all(want in (-1, got) for want, got in zip(shape, matrix.shape))
    if not fits or not np.isfinite(matrix).all():
        raise ValueError(f"{name} must be a finite matrix of shape {shape}, got shape {matrix.shape}")
    return matrix


def _listed_pair(root: Path, words: list[str], where: str) -> EvaluationPair:
    """The pair that the words of a line describe."""
    if len(words) not in _KNOWN_COLUMNS:
        raise DatasetError(
            f"A pair list has 38, 36 or 32 columns (two paths, two rotations, K0, K1, pose), "
            f"got {len(words)} in {where}."
        )
    start, length = _KNOWN_COLUMNS[len(words)]
    for name in words[:2]:
        if not (root / name).is_file():
            raise DatasetError(f"There is no image {root / name}, named in {where}.")
    try:
        numbers = np.array(words[start:], dtype=np.float64)
        K0, K1 = (check_intrinsics(numbers[i : i + 9].reshape(3, 3)) for i in (0, 9))
        return EvaluationPair(
            root / words[0],
            root / words[1],
            words[0],
            words[1],
            K0=K0,
            K1=K1,
            T_0to1=_pose(_listed_pose(numbers[18 : 18 + length])),
        )
    except ValueError as error:
        raise DatasetError(f"The ground truth in {where} is broken ({error}).") from error


def _listed_pose(numbers: np.ndarray) -> np.ndarray:
    if len(numbers) == 16:
        return numbers.reshape(4, 4)
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = numbers[:9].reshape(3, 3), numbers[9:]
    return T
