"""Points from their observations in images whose cameras are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from multiview.keypoint_graph import Observations
from multiview.reconstructed_image import ReconstructedImage
from multiview.tracks import Tracks

_REFINEMENTS = 3
_MAX_REJECTIONS = 8  # observations a track may lose before it is given up
_GREY = 128


def triangulate_tracks(
    images: Sequence[ReconstructedImage],
    observations: Observations,
    *,
    max_error_px: float = 4.0,
    min_angle_deg: float = 1.0,
) -> Tracks:
    """The points of tracks by least squares, without observations that disagree.

    A point minimises the sum of its squared angles to the rays, each in pixels of its camera (reweighted
    least squares). While a track has an observation beyond `max_error_px` its worst is dropped.

    Args:
        images: All images; observations in failed ones are ignored.
        observations: Tracks in original pixels.
        max_error_px: Largest reprojection error of a kept observation, in original pixels.
        min_angle_deg: Points whose rays meet at a smaller angle are dropped: their depth is unknown.

    Returns:
        Tracks with at least two observations, coloured where images know their colours, else grey. A track
        through several components becomes one per component, for each has its own world.
    """
    observations = _split_by_component(images, observations)
    rays = _rays(images, observations)
    keep = np.asarray(np.isfinite(rays).all(axis=1))
    point, image = observations.point_index, observations.image_index
    points, error = np.full((observations.num_tracks, 3), np.nan), np.full(len(point), np.inf)
    changed = np.ones(len(points), bool)
    for _ in range(_MAX_REJECTIONS + 1):
        here = np.flatnonzero(changed[point])
        some = Observations(point[here], image[here], observations.xy[here])
        points[changed] = _solved(images, some, rays[here], keep[here], len(points))[changed]
        error[here] = _errors(images, some, points)
        worst = np.zeros(len(points))
        np.maximum.at(worst, point[keep], error[keep])
        bad = keep & (error > max_error_px) & (error >= worst[point])
        if not bad.any():
            break
        keep &= ~bad
        changed = np.zeros(len(points), bool)
        changed[point[bad]] = True
    centers = _centers(images)[image]
    angle = _largest_angle(points[point] - centers, point, keep, len(points))
    keep &= (angle[point] >= min_angle_deg) & (error <= max_error_px) & np.isfinite(error)
    grey = np.full((len(points), 3), _GREY, np.uint8)
    tracks = Tracks(np.nan_to_num(points), grey, point, image, observations.xy).filter_observations(keep, least=2)
    return colored(images, tracks)


def colored(images: Sequence[ReconstructedImage], tracks: Tracks) -> Tracks:
    """The tracks with the mean colour of their observations, grey where no image knows it."""
    total, count = np.zeros((len(tracks), 3)), np.zeros(len(tracks))
    for i, image in enumerate(images):
        here = np.flatnonzero(tracks.image_index == i)
        if image.colors is None or image.transform is None or not len(here):
            continue
        place = np.rint(image.transform.apply(tracks.xy[here])).astype(int)
        height, width = image.colors.shape[:2]
        inside = (place >= 0).all(axis=1) & (place < (width, height)).all(axis=1)
        x, y = place[inside].T
        np.add.at(total, tracks.point_index[here[inside]], image.colors[y, x])
        np.add.at(count, tracks.point_index[here[inside]], 1)
    mean = np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], _GREY)
    colors = np.rint(mean).astype(np.uint8)
    return replace(tracks, colors=colors)


def reprojection_errors(images: Sequence[ReconstructedImage], tracks: Tracks) -> np.ndarray:
    """(M,) distances in original pixels of observations from their projected points; inf behind a camera."""
    observations = Observations(tracks.point_index, tracks.image_index, tracks.xy)
    return _errors(images, observations, tracks.points)


def _split_by_component(images: Sequence[ReconstructedImage], observations: Observations) -> Observations:
    component = np.array([image.component for image in images], dtype=np.int64)
    number = observations.point_index * (component.max(initial=0) + 1) + component[observations.image_index]
    return replace(observations, point_index=np.unique(number, return_inverse=True)[1].astype(np.int64))


def _rays(images: Sequence[ReconstructedImage], observations: Observations) -> np.ndarray:
    """(M, 3) unit directions in the world, NaN in failed images."""
    rays = np.full((len(observations.xy), 3), np.nan)
    for i, image in enumerate(images):
        here = observations.image_index == i
        if image.camera is not None and image.pose is not None and here.any():
            rays[here] = image.camera.unproject(observations.xy[here]) @ image.pose.rotation.T
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)


def _centers(images: Sequence[ReconstructedImage]) -> np.ndarray:
    return np.array([np.full(3, np.nan) if image.pose is None else image.pose.center for image in images]).reshape(
        -1, 3
    )


def _solved(
    images: Sequence[ReconstructedImage], observations: Observations, rays: np.ndarray, keep: np.ndarray, count: int
) -> np.ndarray:
    """(count, 3) points from the kept observations; NaN where these leave them open."""
    point, image = observations.point_index[keep], observations.image_index[keep]
    ray, center = rays[keep], _centers(images)[image]
    across = np.eye(3) - ray[:, :, None] * ray[:, None, :]
    points = _least_squares(across, np.einsum("mij,mj->mi", across, center), point, count)
    focals = np.array([1.0 if entry.camera is None else np.mean(entry.camera.focal) for entry in images])[image]
    for _ in range(_REFINEMENTS):
        # A unit beside the ray is focal / distance pixels in the image.
        distance = np.linalg.norm(points[point] - center, axis=1)
        weight = (focals / np.maximum(distance, 1e-12)) ** 2
        weighted = weight[:, None, None] * across
        points = _least_squares(weighted, np.einsum("mij,mj->mi", weighted, center), point, count)
    return points


def _least_squares(A: np.ndarray, b: np.ndarray, point: np.ndarray, count: int) -> np.ndarray:
    """Solve the sums of (M, 3, 3) and (M, 3) systems over each point."""
    sums = [np.bincount(point, np.nan_to_num(column), count) for column in (*A.reshape(-1, 9).T, *b.T)]
    left, right = np.stack(sums[:9], axis=1).reshape(-1, 3, 3), np.stack(sums[9:], axis=1)
    scale = np.trace(left, axis1=1, axis2=2)
    open_ = np.linalg.det(left) <= 1e-12 * (scale / 3) ** 3
    left[open_] = np.eye(3)
    solved = np.linalg.solve(left, right[..., None])[..., 0]
    solved[open_] = np.nan
    return solved


def _errors(images: Sequence[ReconstructedImage], observations: Observations, points: np.ndarray) -> np.ndarray:
    """(M,) reprojection errors in pixels; inf behind a camera and in failed images."""
    error = np.full(len(observations.xy), np.inf)
    for i, image in enumerate(images):
        here = np.flatnonzero(observations.image_index == i)
        if image.camera is None or image.pose is None or not len(here):
            continue
        local = image.pose.inverse().apply(points[observations.point_index[here]])
        distance = np.linalg.norm(image.camera.project(local) - observations.xy[here], axis=1)
        error[here] = np.where(np.isfinite(distance), distance, np.inf)
    return error


def _largest_angle(directions: np.ndarray, point: np.ndarray, keep: np.ndarray, count: int) -> np.ndarray:
    """(P,) about the largest angle between two rays of a point, in degrees: twice the largest from the mean."""
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    mean = np.zeros((count, 3))
    np.add.at(mean, point[keep], unit[keep])
    norm = np.linalg.norm(mean, axis=1, keepdims=True)
    mean = mean / np.where(norm > 0, norm, 1)
    sine = np.linalg.norm(np.cross(unit[keep], mean[point[keep]]), axis=1)
    cosine = (unit[keep] * mean[point[keep]]).sum(axis=1)
    angle = np.zeros(count)
    np.maximum.at(angle, point[keep], np.degrees(2 * np.arctan2(sine, cosine)))
    return angle
