"""Pointmaps: one 3-D point per pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from multiview.poses import Pose


@dataclass(frozen=True, eq=False)
class Pointmap:
    """A 3-D point and a confidence for every pixel of an image at model resolution.

    Attributes:
        points: (H, W, 3) float32 in `frame`, OpenCV axes; metres if the scene is metric.
        confidence: (H, W) float32; for the networks of this family 1 + exp(c), so above 1 and without upper
            bound. Its scale differs between networks: filter by percentile, not by value.
        frame: Name of the frame the points are in, for instance "camera 0" or "world".

    Raises:
        ValueError: If the shapes do not fit together.
    """

    points: np.ndarray
    confidence: np.ndarray
    frame: str

    def __post_init__(self) -> None:
        points = np.asarray(self.points, dtype=np.float32)
        confidence = np.asarray(self.confidence, dtype=np.float32)
        if points.ndim != 3 or points.shape[2] != 3 or confidence.shape != points.shape[:2]:
            raise ValueError(
                f"Pointmap needs points (H, W, 3) and confidence (H, W), got {points.shape} and {confidence.shape}."
            )
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "confidence", confidence)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in model pixels."""
        return self.points.shape[1], self.points.shape[0]

    @property
    def valid(self) -> np.ndarray:
        """(H, W) bool: where the point is finite."""
        return np.asarray(np.isfinite(self.points).all(axis=-1))

    def confident(self, percentile: float) -> np.ndarray:
        """Where the point is finite and among the more confident ones.

        Args:
            percentile: 0..100; share of the valid pixels to drop, least confident first. Pixels of equal confidence
                (see `without_rounding`) are dropped together or kept together, rather kept.

        Returns:
            (H, W) bool.
        """
        if not 0 <= percentile <= 100:
            raise ValueError(f"percentile must be in 0..100, got {percentile}.")
        valid = self.valid & np.isfinite(self.confidence)
        if not valid.any():
            return valid
        confidence = without_rounding(self.confidence)
        return valid & (confidence >= np.percentile(confidence[valid], percentile))

    def moved(self, pose: Pose, frame: str) -> Pointmap:
        """The same points in another frame.

        Args:
            pose: Map from this frame to the new one.
            frame: Name of the new frame.
        """
        return Pointmap(pose.apply(self.points).astype(np.float32), self.confidence, frame)

    def __repr__(self) -> str:
        width, height = self.size
        return f"Pointmap({width}x{height} in {self.frame}, median confidence {np.median(self.confidence):.3g})"


def without_rounding(confidence: np.ndarray) -> np.ndarray:
    """Confidence to five digits.

    A network that learned no confidence says 1 + exp(c) of very negative c: the differences that are left are those
    of rounding, and follow the rows of the map.

    Args:
        confidence: Any shape.

    Returns:
        Float64 of that shape; equal where confidences differ by less than a hundred-thousandth.
    """
    confidence = np.asarray(confidence, dtype=np.float64)
    positive = np.isfinite(confidence) & (confidence > 0)
    rounded = np.exp(np.round(np.log(np.where(positive, confidence, 1.0)), 5))
    return np.where(positive, rounded, confidence)
