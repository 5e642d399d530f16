"""Alignment by COLMAP's mapper on the network's matches; depth and unit of length come from the pointmaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dust3r.image_pairs import Edge
from mast3r.alignment.problem import NO_PAIR, WORLD, AlignedView, Alignment, AlignmentProblem
from multiview.cameras import Camera
from multiview.images import Image
from multiview.matches import Matches
from multiview.pointmaps import Pointmap
from multiview.poses import Pose
from multiview.reconstruction import ReconstructedImage, Reconstruction

_MAX_ERROR_PX = 2.0  # model pixels
_PLACED_CELL_PX = 0.05  # model pixels: placed matches nearer than this are one keypoint
_MIN_DEPTHS = 8  # tracks that an image needs to give its pointmap a scale


def align_by_colmap(problem: AlignmentProblem) -> Alignment:
    """Align by COLMAP, at the resolution of the network.

    Each image's pointmap is scaled to its tracks, and the world to the pointmaps, so that the unit of length is
    the network's. Intrinsics may be known (they are refined unless all are fixed), pixels may be masked.

    Args:
        problem: What is to be aligned.

    Raises:
        ValueError: If a pose or depth is given, which COLMAP's mapper does not take.
        ImportError: If pycolmap is not installed.
    """
    from multiview.colmap import MapperConfig, reconstruct_from_matches  # here: pycolmap is optional

    _check(problem)
    names = [f"{k:06d}" for k in range(len(problem.inputs))]
    images = {name: Image(seen.pixels) for name, seen in zip(names, problem.inputs)}
    cameras = {
        name: Camera(known.K.value, *seen.size)
        for name, seen, known in zip(names, problem.inputs, problem.constraints)
        if known.K is not None
    }
    matches = {(names[i], names[j]): _matches(problem, (i, j)) for i, j in problem.edges}
    fixed = all(known.K is not None and known.K.role == "fixed" for known in problem.constraints)
    cell = _PLACED_CELL_PX if problem.placed else 1.0
    config = MapperConfig(max_error_px=_MAX_ERROR_PX, fix_intrinsics=fixed, cell_px=cell, seed=problem.seed)
    scene = reconstruct_from_matches(images, cameras, matches, config=config)
    return Alignment(tuple(_views(problem, scene)))


def _check(problem: AlignmentProblem) -> None:
    for number, known in enumerate(problem.constraints):
        if known.pose is not None or known.depth is not None:
            raise ValueError(
                f"COLMAP takes intrinsics and masks only; image {number} has a pose or depth, use alignment='sparse'."
            )


def _matches(problem: AlignmentProblem, edge: Edge) -> Matches:
    """Matches of a pair in model pixels, without masked ones."""
    found = problem.matches(edge)
    sizes = [problem.inputs[i].size for i in edge]
    kept = np.ones(len(found), dtype=bool)
    for image, xy in zip(edge, (found.xy0, found.xy1)):
        mask = problem.constraints[image].mask
        if mask is not None:
            x, y = np.rint(xy).astype(np.int64).T
            kept &= mask[y.clip(0, mask.shape[0] - 1), x.clip(0, mask.shape[1] - 1)]
    matches = Matches(
        found.xy0,
        found.xy1,
        found.confidence,
        size0=sizes[0],
        size1=sizes[1],
        model_size0=sizes[0],
        model_size1=sizes[1],
    )
    return matches.filter(kept)


@dataclass(frozen=True, eq=False)
class _Depth:
    """An image's own pointmap as depth, and how many COLMAP units its unit is; None if no track tells."""

    depth: np.ndarray
    confidence: np.ndarray
    ratio: float | None


def _views(problem: AlignmentProblem, scene: Reconstruction) -> list[AlignedView]:
    depths = [_depth(problem, scene, k) if image.registered else None for k, image in enumerate(scene.images)]
    factors = {number: _unit(scene, depths, number) for number in scene.components}
    views = []
    for k, image in enumerate(scene.images):
        if image.camera is None or image.pose is None:
            views.append(AlignedView(image.reason or NO_PAIR))
            continue
        factor = factors[image.component]
        pose = Pose.from_rt(image.pose.rotation, factor * image.pose.center)
        pointmap = _pointmap(depths[k], image.camera, pose, factor)
        views.append(AlignedView("", image.camera.K, pose, image.component, pointmap))
    return views


def _depth(problem: AlignmentProblem, scene: Reconstruction, number: int) -> _Depth | None:
    """The own pointmap from the pair with most matches, and its unit as the tracks of the image tell it."""
    edges = [edge for edge in problem.edges if number in edge]
    if not edges:
        return None
    edge = max(edges, key=lambda edge: len(problem.matches(edge)))
    entry = problem.pair(edge)
    maps = entry.forward if edge[0] == number else entry.backward
    depth = maps.points_first[..., 2].astype(np.float64)
    return _Depth(depth, maps.confidence_first, _ratio(scene.images[number], scene, number, depth))


def _ratio(image: ReconstructedImage, scene: Reconstruction, number: int, depth: np.ndarray) -> float | None:
    """Median of COLMAP's depth over the network's at the tracks of an image."""
    tracks = scene.tracks
    here = tracks.image_index == number
    if image.pose is None or here.sum() < _MIN_DEPTHS:
        return None
    x, y = np.rint(tracks.xy[here]).astype(np.int64).clip((0, 0), (depth.shape[1] - 1, depth.shape[0] - 1)).T
    far = image.pose.inverse().apply(tracks.points[tracks.point_index[here]])[:, 2]
    near = depth[y, x]
    usable = (far > 0) & (near > 0) & np.isfinite(near)
    return float(np.median(far[usable] / near[usable])) if usable.sum() >= _MIN_DEPTHS else None


def _unit(scene: Reconstruction, depths: Sequence[_Depth | None], component: int) -> float:
    """Factor from COLMAP's unit to the network's, as the median image of a component sees it."""
    ratios = [
        depth.ratio
        for image, depth in zip(scene.images, depths)
        if image.registered and image.component == component and depth is not None and depth.ratio is not None
    ]
    return 1.0 / float(np.median(ratios)) if ratios else 1.0


def _pointmap(depth: _Depth | None, camera: Camera, pose: Pose, factor: float) -> Pointmap | None:
    """World points of an image: its depth, scaled to its tracks, seen through COLMAP's camera."""
    if depth is None or depth.ratio is None:
        return None
    height, width = depth.depth.shape
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    local = camera.unproject(np.stack([columns, rows], axis=-1), factor * depth.ratio * depth.depth)
    return Pointmap(pose.apply(local).astype(np.float32), depth.confidence, WORLD)
