"""What a user would pick instead: RootSIFT, ratio test, mutual nearest neighbours.

Arandjelovic and Zisserman, "Three things everyone should know to improve object retrieval" (CVPR 2012).
OpenCV, a package for development only, detects and describes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np

from multiview.images import Image, read_image
from multiview.matches import Matches

_EPSILON = 1e-12
_BLOCK = 2048  # descriptors of image 0 compared at once
_CACHED_IMAGES = 48  # a scene, not a data set: features of an image take some megabytes


@dataclass(frozen=True, eq=False)
class Features:
    """Keypoints of an image and their descriptors.

    Attributes:
        xy: (N, 2) float32 original pixels.
        descriptors: (N, 128) float32, unit length.
        size: (width, height) of the image.
    """

    xy: np.ndarray
    descriptors: np.ndarray
    size: tuple[int, int]


@dataclass(eq=False)
class RootSift:
    """Matches by RootSIFT; features of an image are computed once.

    Attributes:
        ratio: largest distance to the best over distance to the second best, both ways' mutual best only.
        max_features: at most so many keypoints of an image, strongest first; 0 keeps all.
        name: name in tables.
    """

    ratio: float = 0.8
    max_features: int = 0
    name: str = "rootsift"
    _cache: dict[Path, Features] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, image0: Path, image1: Path) -> Matches:
        """Matches of two image files; the confidence is 1 - distance ratio."""
        a, b = self._features(image0), self._features(image1)
        index0, index1, ratio = mutual_ratio_matches(a.descriptors, b.descriptors, ratio=self.ratio)
        return Matches(a.xy[index0], b.xy[index1], 1 - ratio, a.size, b.size)

    def _features(self, path: Path) -> Features:
        if path not in self._cache:
            while len(self._cache) >= _CACHED_IMAGES:
                self._cache.pop(next(iter(self._cache)))
            self._cache[path] = rootsift(read_image(path), max_features=self.max_features)
        return self._cache[path]


def rootsift(image: Image, *, max_features: int = 0) -> Features:
    """RootSIFT features of an image.

    Args:
        image: the image.
        max_features: at most so many, strongest first; 0 keeps all.

    Raises:
        ModuleNotFoundError: If OpenCV is not installed.
    """
    cv2 = _opencv()
    gray = cv2.cvtColor(image.pixels, cv2.COLOR_RGB2GRAY)
    detector = cv2.SIFT_create(nfeatures=max_features, enable_precise_upscale=True)
    keypoints, descriptors = detector.detectAndCompute(gray, None)
    if descriptors is None:
        return Features(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32), image.size)
    xy = np.array([point.pt for point in keypoints], dtype=np.float32)
    shares = descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), _EPSILON)
    return Features(xy, np.sqrt(shares).astype(np.float32), image.size)


def mutual_ratio_matches(
    descriptors0: np.ndarray, descriptors1: np.ndarray, *, ratio: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mutual nearest neighbours whose best distance is below `ratio` times the second best.

    Args:
        descriptors0: (N, D) unit vectors.
        descriptors1: (M, D) unit vectors.
        ratio: bound of the distance ratio, from image 0 to image 1.

    Returns:
        (K,) indices into both sets, and the (K,) distance ratios.
    """
    if not len(descriptors0) or len(descriptors1) < 2:
        empty = np.zeros(0, np.int64)
        return empty, empty, np.zeros(0, np.float32)
    best, first, second, best_back = _nearest_two(descriptors0, descriptors1)
    distances = [np.sqrt(np.maximum(2 - 2 * value, 0)) for value in (first, second)]
    ratios = distances[0] / np.maximum(distances[1], _EPSILON)
    rows = np.arange(len(best))
    keep = (best_back[best] == rows) & (ratios < ratio)
    return rows[keep], best[keep], ratios[keep]


def _nearest_two(
    descriptors0: np.ndarray, descriptors1: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each in set 0: best in set 1 and two largest similarities; of each in set 1: best in set 0."""
    best, first, second = (np.empty(len(descriptors0), kind) for kind in (np.int64, np.float32, np.float32))
    best_back = np.zeros(len(descriptors1), np.int64)
    value_back = np.full(len(descriptors1), -np.inf, np.float32)
    for start in range(0, len(descriptors0), _BLOCK):
        part = slice(start, start + _BLOCK)
        similarity = descriptors0[part] @ descriptors1.T
        rows = np.arange(len(similarity))
        row_back = similarity.argmax(axis=0)
        value = similarity[row_back, np.arange(len(descriptors1))]
        better = value > value_back
        best_back[better], value_back[better] = start + row_back[better], value[better]
        best[part] = similarity.argmax(axis=1)
        first[part] = similarity[rows, best[part]]
        similarity[rows, best[part]] = -np.inf
        second[part] = similarity.max(axis=1)
    return best, first, second, best_back


def _opencv() -> ModuleType:
    try:
        import cv2  # here: nothing else needs it
    except ImportError:
        raise ModuleNotFoundError("The RootSIFT baseline needs OpenCV: pip install opencv-python-headless.") from None
    return cv2
