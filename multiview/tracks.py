"""Sparse points seen in several images."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from multiview.similarity import Similarity


@dataclass(frozen=True, eq=False)
class Tracks:
    """P points and the M places in images where they were observed.

    Attributes:
        points: (P, 3) float64 in the world.
        colors: (P, 3) uint8 RGB.
        point_index: (M,) int64, which point an observation shows.
        image_index: (M,) int64, in which image: the position in `Reconstruction.images`.
        xy: (M, 2) float32 ORIGINAL pixels of the observation.

    Raises:
        ValueError: If shapes do not fit together or an index is out of range.
    """

    points: np.ndarray
    colors: np.ndarray
    point_index: np.ndarray
    image_index: np.ndarray
    xy: np.ndarray

    def __post_init__(self) -> None:
        types = {
            "points": np.float64,
            "colors": np.uint8,
            "point_index": np.int64,
            "image_index": np.int64,
            "xy": np.float32,
        }
        for name, dtype in types.items():
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=dtype))
        P, M = len(self.points), len(self.point_index)
        shapes = {name: getattr(self, name).shape for name in types}
        if shapes != {"points": (P, 3), "colors": (P, 3), "point_index": (M,), "image_index": (M,), "xy": (M, 2)}:
            raise ValueError(
                f"Tracks needs points and colors (P, 3), point_index and image_index (M,) and xy (M, 2), got {shapes}."
            )
        if M and (self.point_index.min() < 0 or self.point_index.max() >= P):
            raise ValueError(f"Tracks.point_index must lie in 0..{P - 1}, got up to {self.point_index.max()}.")
        if M and self.image_index.min() < 0:
            raise ValueError(f"Tracks.image_index must not be negative, got {self.image_index.min()}.")

    @classmethod
    def empty(cls) -> Tracks:
        """No points at all."""
        none = np.zeros(0, np.int64)
        return cls(np.zeros((0, 3)), np.zeros((0, 3), np.uint8), none, none, np.zeros((0, 2), np.float32))

    def __len__(self) -> int:
        return len(self.points)

    @property
    def lengths(self) -> np.ndarray:
        """(P,) int64 number of observations of each point."""
        return np.bincount(self.point_index, minlength=len(self))

    def filter(self, keep: np.ndarray) -> Tracks:
        """Only some points, with their observations.

        Args:
            keep: (P,) bool.
        """
        keep = np.asarray(keep, dtype=bool)
        if keep.shape != (len(self),):
            raise ValueError(f"The mask must have shape ({len(self)},), got {keep.shape}.")
        number = np.cumsum(keep) - 1
        kept = keep[self.point_index]
        return Tracks(
            self.points[keep],
            self.colors[keep],
            number[self.point_index[kept]],
            self.image_index[kept],
            self.xy[kept],
        )

    def filter_observations(self, keep: np.ndarray, *, least: int = 1) -> Tracks:
        """Only some observations, and the points that are still observed.

        Args:
            keep: (M,) bool.
            least: Points with fewer observations left are dropped.
        """
        keep = np.asarray(keep, dtype=bool)
        if keep.shape != self.point_index.shape:
            raise ValueError(f"The mask must have shape {self.point_index.shape}, got {keep.shape}.")
        fewer = replace(self, point_index=self.point_index[keep], image_index=self.image_index[keep], xy=self.xy[keep])
        return fewer.filter(fewer.lengths >= least)

    def transformed(self, similarity: Similarity) -> Tracks:
        """The same tracks in another world."""
        return replace(self, points=similarity.apply(self.points))

    def __repr__(self) -> str:
        mean = len(self.point_index) / max(1, len(self))
        return f"Tracks({len(self)} points, {len(self.point_index)} observations, mean length {mean:.2f})"
