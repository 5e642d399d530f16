"""What is known of a photo's focal length before its matches are looked at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mast3r.pairs.geometry import SeenMap, estimate_camera
from multiview.cameras import Camera
from multiview.images import Image

ORDINARY_FOCAL = 0.9
"""Focal length of an ordinary camera, in units of the longer side: a field of view of 58 degrees."""

_ORDINARY_DEVIATION = 0.4
_EXIF_DEVIATION = 0.05  # rounded values, crops by the camera's own corrections
_MAP_DEVIATION = 0.05  # of a pointmap that is exactly one of a pinhole camera
_MISFIT_DEVIATION = 2.0  # per unit of misfit
_FILM_DIAGONAL_MM = 43.27
_UNSURE_PERCENTILE = 30.0


@dataclass(frozen=True)
class FocalPrior:
    """A camera before its matches are looked at.

    Attributes:
        camera: The most probable camera, in ORIGINAL pixels.
        deviation: Standard deviation of the logarithm of its focal length; 0 if it was given.
    """

    camera: Camera
    deviation: float


def focal_prior(image: Image, own: SeenMap, known: Camera | None = None) -> FocalPrior:
    """The given camera; else that of the EXIF data; else between an ordinary one and the pointmap's.

    Args:
        image: The photo.
        own: Its pointmap in its own camera's frame.
        known: The camera, if it was given.
    """
    if known is not None:
        return FocalPrior(known, 0.0)
    if image.focal_35mm is not None:
        focal = image.focal_35mm / _FILM_DIAGONAL_MM * float(np.hypot(*image.size))
        return FocalPrior(Camera.from_focal(focal, *image.size), _EXIF_DEVIATION)
    seen = estimate_camera(own)
    precisions = np.array([_ORDINARY_DEVIATION, _map_deviation(own, seen)]) ** -2.0
    logs = np.log([ORDINARY_FOCAL * max(image.size), seen.focal[0]])
    focal = np.exp((precisions * logs).sum() / precisions.sum())
    return FocalPrior(Camera.from_focal(float(focal), *image.size), float(precisions.sum() ** -0.5))


def _map_deviation(own: SeenMap, camera: Camera) -> float:
    """Deviation of the log focal length read off a pointmap, from how far it is from any pinhole camera's."""
    rows, columns = np.nonzero(own.pointmap.confident(_UNSURE_PERCENTILE) & (own.pointmap.points[..., 2] > 0))
    if not len(rows):
        return np.inf
    xy = own.transform.inverse().apply(np.stack([columns, rows], axis=1))
    off = np.linalg.norm(camera.project(own.pointmap.points[rows, columns]) - xy, axis=1)
    radius = np.linalg.norm(xy - camera.principal_point, axis=1)
    return float(np.hypot(_MAP_DEVIATION, _MISFIT_DEVIATION * np.median(off) / np.median(radius)))
