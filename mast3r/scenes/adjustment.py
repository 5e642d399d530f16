"""Tracks through all photos of a scene, and cameras adjusted to them.

Alignment works at the size at which the network saw the photos, with matches weighted pair by pair. Tracks of matches
that the full-size photos placed know the cameras ten times better: bundle adjustment finds what they say.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from dust3r.image_pairs import Edge
from mast3r.alignment import AlignmentProblem
from mast3r.pairs.map_matching import in_original_pixels
from mast3r.scenes.placed_pairs import FINER
from multiview.matches import Matches
from multiview.metrics import epipolar_errors
from multiview.reconstruction import ReconstructedImage, Reconstruction
from multiview.track_building import tracks_from_matches
from multiview.triangulation import reprojection_errors, triangulate_tracks

if TYPE_CHECKING:
    from multiview.bundle_adjustment import BundleConfig

logger = logging.getLogger(__name__)

SHARED_FOCAL = 0.15
"""Photos of one size whose focal lengths differ by less than this were probably taken by one camera."""

_TRACK_PX = 3.0  # model pixels: a match farther from its epipolar line, or its point, is no part of a track
_ADJUSTED_TRACK_PX = 1.0  # the same once the cameras have been adjusted
_PLACED_CELL_PX = 0.25  # original pixels: placed matches nearer than this are one keypoint
_CLOSE_PX = 0.25  # model pixels: errors of matches that the cameras explain
_HELD_TOGETHER = 0.02  # differences of focal lengths that are no differences
_SIMPLER = 0.02  # share of the observations that one camera for many photos may cost
_WELL_EXPLAINED = 0.7
_MOST_MAPPED = 60  # photos; a mapper adjusts all cameras again after every few, and is slow with many
_ROUNDS = 2
_MIN_IMAGES_FOR_FOCAL = 5  # fewer leave focal length and depth to be traded for each other


def with_tracks(
    scene: Reconstruction, problem: AlignmentProblem, usable: Sequence[int], *, max_error: float = _TRACK_PX
) -> Reconstruction:
    """The scene with the matches that agree with its cameras, joined and triangulated.

    Args:
        scene: Its cameras are looked at.
        problem: Its matches are joined.
        usable: For each photo of the problem, which image of the scene it is.
        max_error: Largest distance from the epipolar line, and reprojection error, in model pixels.
    """
    images = scene.images
    found = {}
    for edge, a, b in _placed_pairs(scene, problem, usable):
        found[a.name, b.name] = _consistent(problem, edge, a, b, max_error)
    cell = _PLACED_CELL_PX if problem.placed else None
    observations = tracks_from_matches([image.name for image in images], found, cell_px=cell)
    tracks = triangulate_tracks(images, observations, max_error_px=max_error * _model_pixel(scene))
    return replace(scene, tracks=tracks)


def adjusted(
    scene: Reconstruction, problem: AlignmentProblem, usable: Sequence[int], *, shared_focal: float = SHARED_FOCAL
) -> Reconstruction:
    """Bundle adjustment with focal lengths shared where they are alike, then new tracks, and once more.

    Args:
        scene: A scene with tracks.
        problem: What the tracks come from; its fixed intrinsics and poses stay.
        usable: For each photo of the problem, which image of the scene it is.
        shared_focal: See `multiview.bundle_adjustment.BundleConfig`.

    Returns:
        The adjusted scene. The scene as it is if photos are hardly larger than the network's input or did not place
        the matches, if a constraint is a prior or a depth, of which bundle adjustment knows nothing, if the tracks
        would fit worse, or without pycolmap.
    """
    if not _can_adjust(scene, problem) or not len(scene.tracks):
        return scene
    from multiview.bundle_adjustment import BundleConfig  # here: pycolmap is optional

    names = [scene.images[k].name for k in usable]
    config = BundleConfig(
        fixed_poses=frozenset(name for name, c in zip(names, problem.constraints) if c.pose is not None),
        fixed_cameras=frozenset(name for name, c in zip(names, problem.constraints) if c.K is not None),
        loss_scale_px=_loss_scale(scene),
        refine_focal=len(scene.registered) >= _MIN_IMAGES_FOR_FOCAL,
    )
    configs = [replace(config, shared_focal=tolerance) for tolerance in (shared_focal, _HELD_TOGETHER)]
    if _shared_intrinsics(scene, configs[0]) == _shared_intrinsics(scene, configs[1]):
        configs = configs[:1]
    for _ in range(_ROUNDS):
        tried = [_moved(scene, config) for config in configs]
        fits = [-1.0 if moved is None else _fitting(moved) for moved in tried]
        best = 0 if fits[0] + _SIMPLER >= fits[-1] else 1
        moved = tried[best]
        if moved is None or fits[best] < _fitting(scene):
            return scene
        configs = configs[best : best + 1]
        scene = with_tracks(moved, problem, usable, max_error=_ADJUSTED_TRACK_PX)
    return scene


def _shared_intrinsics(scene: Reconstruction, config: BundleConfig) -> list[bytes]:
    """The intrinsics that bundle adjustment would begin with, to tell whether two settings come to the same."""
    from multiview.bundle_adjustment import with_shared_cameras  # here: pycolmap is optional

    parts = [scene.part(component).images for component in scene.components]
    shared = [with_shared_cameras(part, config.shared_focal, config.fixed_cameras) for part in parts]
    return [image.camera.K.tobytes() for part in shared for image in part if image.camera]


def explained(scene: Reconstruction, problem: AlignmentProblem, usable: Sequence[int]) -> float:
    """Share of all matches of a problem that agree closely with the cameras of a scene, 0..1."""
    total = sum(len(problem.matches(edge)) for edge in problem.edges)
    pairs = _placed_pairs(scene, problem, usable)
    agreeing = sum(len(_consistent(problem, edge, a, b, _CLOSE_PX)) for edge, a, b in pairs)
    return agreeing / max(total, 1)


def may_map_again(scene: Reconstruction, problem: AlignmentProblem, usable: Sequence[int]) -> bool:
    """Whether COLMAP's mapper could do better than a scene of not too many photos, and can be asked."""
    free = all(c.pose is None and c.depth is None for c in problem.constraints)
    able = free and len(usable) <= _MOST_MAPPED and _can_adjust(scene, problem)
    return able and explained(scene, problem, usable) < _WELL_EXPLAINED


def _can_adjust(scene: Reconstruction, problem: AlignmentProblem) -> bool:
    known = [value for c in problem.constraints for value in (c.K, c.pose) if value is not None]
    soft = any(value.role == "prior" for value in known) or any(c.depth is not None for c in problem.constraints)
    if soft or not problem.placed or _model_pixel(scene) < FINER:
        return False
    if find_spec("pycolmap") is None:
        logger.info("pycolmap is not installed: cameras and tracks are not adjusted to each other")
        return False
    return True


def _moved(scene: Reconstruction, config: BundleConfig) -> Reconstruction | None:
    """The scene after bundle adjustment, without new focal lengths if those make it fail; None if all fails."""
    from multiview.bundle_adjustment import bundle_adjust  # here: pycolmap is optional

    for refine_focal in sorted({config.refine_focal, False}, reverse=True):
        try:
            return bundle_adjust(scene, replace(config, refine_focal=refine_focal))
        except ValueError as error:
            logger.info("bundle adjustment (focal lengths free: %s): %s", refine_focal, error)
    logger.warning("bundle adjustment found no solution")
    return None


def _fitting(scene: Reconstruction) -> float:
    """Share of observations that their points project to closely."""
    return float((reprojection_errors(scene.images, scene.tracks) < _loss_scale(scene)).mean())


def _loss_scale(scene: Reconstruction) -> float:
    """Reprojection error in original pixels from which on observations lose weight."""
    return max(1.0, _CLOSE_PX * _model_pixel(scene))


def _model_pixel(scene: Reconstruction) -> float:
    """Side of the largest model pixel in original pixels."""
    return max((image.size[0] / image.transform.size_to[0] for image in scene.images if image.transform), default=1.0)


def _placed_pairs(
    scene: Reconstruction, problem: AlignmentProblem, usable: Sequence[int]
) -> Iterator[tuple[Edge, ReconstructedImage, ReconstructedImage]]:
    """The pairs of a problem whose images have poses in one world."""
    for edge in problem.edges:
        a, b = (scene.images[usable[i]] for i in edge)
        if a.registered and b.registered and a.component == b.component:
            yield edge, a, b


def _consistent(
    problem: AlignmentProblem, edge: Edge, a: ReconstructedImage, b: ReconstructedImage, max_error: float
) -> Matches:
    """The matches of a pair near their epipolar lines, in original pixels."""
    seen_a, seen_b = (problem.inputs[i] for i in edge)
    original = in_original_pixels(problem.matches(edge), (seen_a, seen_b))
    if a.camera is None or b.camera is None or a.pose is None or b.pose is None:
        return original.filter(np.zeros(len(original), bool))
    b_from_a = b.pose.inverse().compose(a.pose).world_from_cam
    errors = epipolar_errors(original.xy0, original.xy1, a.camera.K, b.camera.K, b_from_a)
    pixel = a.size[0] / seen_a.size[0] / a.camera.focal[0]  # a model pixel on the plane z = 1
    return original.filter(errors < 2 * (max_error * pixel) ** 2)
