"""What a network says about pairs of images: the input of sparse alignment. No network is needed to make it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MapSize = tuple[int, int]
"""(width, height) in model pixels."""


@dataclass(frozen=True, eq=False)
class ViewObservation:
    """What one pair says about one of its images: a pointmap in that image's own camera frame.

    Attributes:
        image: Position of the image among all images.
        partner: Position of the other image of the pair.
        points: (H, W, 3) float32, OpenCV axes; pixels that are not finite are ignored.
        confidence: (H, W) float32 above 1.
        partner_points: (Hp, Wp, 3) the partner's points in the camera of `image`; only the fallback for pairs
            with poor matches uses them.
        partner_confidence: (Hp, Wp) their confidence.

    Raises:
        ValueError: If shapes do not fit together or both images are the same.
    """

    image: int
    partner: int
    points: np.ndarray
    confidence: np.ndarray
    partner_points: np.ndarray | None = None
    partner_confidence: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.image == self.partner or min(self.image, self.partner) < 0:
            raise ValueError(f"A pair needs two different images, got {self.image} and {self.partner}.")
        _store_map(self, "points", "confidence")
        if (self.partner_points is None) != (self.partner_confidence is None):
            raise ValueError("partner_points and partner_confidence belong together; give both or neither.")
        if self.partner_points is not None:
            _store_map(self, "partner_points", "partner_confidence")

    @property
    def size(self) -> MapSize:
        """(width, height) of the map in model pixels."""
        return self.points.shape[1], self.points.shape[0]


@dataclass(frozen=True, eq=False)
class PairObservation:
    """Matches between two images; one per unordered pair.

    Attributes:
        i: Position of the first image.
        j: Position of the second image.
        xy_i: (M, 2) float32 pixels (x, y) of image i in model pixels.
        xy_j: (M, 2) float32 pixels of image j.
        confidence: (M,) float32, not negative.
        score: How strongly the pair links its images in the spanning tree; default the number of matches.

    Raises:
        ValueError: If shapes do not fit together, both images are the same, or a confidence is negative.
    """

    i: int
    j: int
    xy_i: np.ndarray
    xy_j: np.ndarray
    confidence: np.ndarray
    score: float | None = None

    def __post_init__(self) -> None:
        if self.i == self.j or min(self.i, self.j) < 0:
            raise ValueError(f"A pair needs two different images, got {self.i} and {self.j}.")
        for name, shape in (("xy_i", (-1, 2)), ("xy_j", (-1, 2)), ("confidence", (-1,))):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float32).reshape(shape))
        if not len(self.xy_i) == len(self.xy_j) == len(self.confidence):
            raise ValueError(
                "A pair needs as many pixels in both images as confidences, got "
                f"{len(self.xy_i)}, {len(self.xy_j)} and {len(self.confidence)}."
            )
        if (self.confidence < 0).any():
            raise ValueError(f"Confidences must not be negative, got {self.confidence.min()}.")

    def __len__(self) -> int:
        return len(self.confidence)

    def kept(self, keep: np.ndarray) -> PairObservation:
        """The pair with only the matches selected by `keep` (M,) bool."""
        return PairObservation(self.i, self.j, self.xy_i[keep], self.xy_j[keep], self.confidence[keep], self.score)

    def renumbered(self, position: dict[int, int]) -> PairObservation:
        """The same pair among fewer images: `position` tells the new place of each."""
        i, j = position[self.i], position[self.j]
        return PairObservation(i, j, self.xy_i, self.xy_j, self.confidence, self.score)


def check_pairs(pairs: Sequence[PairObservation], sizes: Sequence[MapSize]) -> None:
    """Refuse pairs of unknown images, pairs given twice and pixels outside their image.

    Raises:
        ValueError: If there are any.
    """
    seen: set[tuple[int, int]] = set()
    for pair in pairs:
        edge = (min(pair.i, pair.j), max(pair.i, pair.j))
        if edge[1] >= len(sizes):
            raise ValueError(f"Pair {edge} names an image beyond the {len(sizes)} sizes given.")
        if edge in seen:
            raise ValueError(f"Pair {edge} is given twice; merge its matches into one.")
        seen.add(edge)
        for image, xy in ((pair.i, pair.xy_i), (pair.j, pair.xy_j)):
            if xy.size and not ((xy >= -0.5) & (xy <= np.subtract(sizes[image], 0.5))).all():
                raise ValueError(f"Pair {edge} has pixels outside image {image} of size {sizes[image]}.")


def _store_map(owner: ViewObservation, points_name: str, confidence_name: str) -> None:
    points = np.asarray(getattr(owner, points_name), dtype=np.float32)
    confidence = np.asarray(getattr(owner, confidence_name), dtype=np.float32)
    if points.ndim != 3 or points.shape[2] != 3 or confidence.shape != points.shape[:2]:
        raise ValueError(
            f"{points_name} must be (H, W, 3) and {confidence_name} (H, W), got {points.shape} and {confidence.shape}."
        )
    object.__setattr__(owner, points_name, points)
    object.__setattr__(owner, confidence_name, confidence)
