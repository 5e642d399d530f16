"""Keypoints that image pairs share, and the tracks they form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class KeypointGraph:
    """Keypoints per image and which of them match.

    Attributes:
        names: Names of all images.
        keypoints: For each image (K, 2) float32 ORIGINAL pixels.
        pairs: For image numbers (i, j), i < j: (N, 2) int64 numbers of matching keypoints; each keypoint at
            most once per pair.
        confidence: For the same pairs (N,) float32 confidence of the matches.
    """

    names: tuple[str, ...]
    keypoints: tuple[np.ndarray, ...]
    pairs: Mapping[tuple[int, int], np.ndarray]
    confidence: Mapping[tuple[int, int], np.ndarray] = field(default_factory=dict)

    @classmethod
    def of_pair(cls, names: tuple[str, str], xy0: np.ndarray, xy1: np.ndarray, confidence: np.ndarray) -> KeypointGraph:
        """One pair whose (N, 2) points are one keypoint each, in their order."""
        numbers = np.arange(len(confidence), dtype=np.int64)
        return cls(names, (xy0, xy1), {(0, 1): np.stack([numbers, numbers], axis=1)}, {(0, 1): confidence})


@dataclass(frozen=True, eq=False)
class Observations:
    """Tracks without their 3-D points.

    Attributes:
        point_index: (M,) int64 number of the track, 0..P-1.
        image_index: (M,) int64 number of the image.
        xy: (M, 2) float32 ORIGINAL pixels.
    """

    point_index: np.ndarray
    image_index: np.ndarray
    xy: np.ndarray

    @property
    def num_tracks(self) -> int:
        """Number of tracks."""
        return int(self.point_index.max()) + 1 if len(self.point_index) else 0
