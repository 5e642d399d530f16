"""Refinement of cameras and sparse points together, by COLMAP's solver."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from multiview.cameras import Camera
from multiview.colmap_model import our_camera, our_pose, quiet, require_pycolmap, to_pycolmap
from multiview.pointmaps import Pointmap
from multiview.poses import Pose
from multiview.reconstructed_image import ReconstructedImage
from multiview.reconstruction import Reconstruction
from multiview.similarity import Similarity, similarity_from_poses
from multiview.tracks import Tracks
from multiview.triangulation import reprojection_errors

Loss = Literal["squared", "soft_l1", "huber", "cauchy"]
_LOSSES = {"squared": "TRIVIAL", "soft_l1": "SOFT_L1", "huber": "HUBER", "cauchy": "CAUCHY"}
_MIN_OBSERVATIONS = 4  # of an image; with fewer its pose is left as it is


@dataclass(frozen=True)
class BundleConfig:
    """What to refine and how.

    Attributes:
        refine_focal: Whether focal lengths may change.
        refine_principal_point: Whether principal points may change; few images determine them.
        refine_distortion: Whether distortion may change (cameras that have none keep none).
        refine_poses: Whether poses may change.
        fixed_poses: Names of images whose pose stays as it is.
        fixed_cameras: Names of images whose intrinsics stay as they are.
        shared_focal: Undistorted images of one size and principal point whose focal lengths are no more than this
            share away from their median get one camera, with square pixels. 0 leaves cameras as they are.
        loss: Robust loss of the reprojection error.
        loss_scale_px: Error in original pixels from which on observations lose weight.
        max_error_px: Observations that end up with a larger error are dropped; None keeps all.
        tolerance: The solver stops when a step changes the cost by less than this share of it; 0 makes all steps.
        max_iterations: Bound of the solver's steps.
        num_threads: Threads of the solver; -1 takes all.

    Raises:
        ValueError: If a number is out of its range or the loss is unknown.
    """

    refine_focal: bool = True
    refine_principal_point: bool = False
    refine_distortion: bool = False
    refine_poses: bool = True
    fixed_poses: Collection[str] = field(default_factory=frozenset)
    fixed_cameras: Collection[str] = field(default_factory=frozenset)
    shared_focal: float = 0.0
    loss: Loss = "cauchy"
    loss_scale_px: float = 1.0
    max_error_px: float | None = None
    tolerance: float = 1e-6
    max_iterations: int = 100
    num_threads: int = -1

    def __post_init__(self) -> None:
        if self.loss not in get_args(Loss):
            raise ValueError(f"loss must be one of {get_args(Loss)}, got {self.loss!r}.")
        for name in ("loss_scale_px", "max_iterations"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        for name in ("shared_focal", "tolerance"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in 0..1, got {getattr(self, name)}.")
        if self.max_error_px is not None and not self.max_error_px > 0:
            raise ValueError(f"max_error_px must be positive or None, got {self.max_error_px}.")


def bundle_adjust(reconstruction: Reconstruction, config: BundleConfig | None = None) -> Reconstruction:
    """Move cameras and tracked points so that points project onto their observations.

    Cameras with equal intrinsics are one camera and stay equal. World and unit of length stay: unless poses are
    fixed, the result is laid onto the former poses by a similarity. Pointmaps follow their cameras.

    Args:
        reconstruction: Cameras and tracks.
        config: What to refine; default `BundleConfig()`.

    Returns:
        The refined reconstruction; every component is refined by itself.

    Raises:
        ValueError: If there are no tracks, a fixed name is unknown, or the solver finds no solution.
        ImportError: If pycolmap is not installed.
    """
    config = BundleConfig() if config is None else config
    for name in (*config.fixed_poses, *config.fixed_cameras):
        reconstruction.image(name)
    if not len(reconstruction.tracks):
        raise ValueError("Bundle adjustment needs tracks; triangulate() makes them from matches.")
    images, points = list(reconstruction.images), reconstruction.tracks.points.copy()
    for component in reconstruction.components:
        part = reconstruction.part(component)
        chosen = _points_of(reconstruction, component)
        if not chosen.any():
            continue
        shared = with_shared_cameras(part.images, config.shared_focal, config.fixed_cameras)
        refined, moved = _adjusted(shared, reconstruction.tracks.filter(chosen), config)
        points[chosen] = moved
        for i in part.registered:
            images[i] = refined[i]
    tracks = replace(reconstruction.tracks, points=points)
    if config.max_error_px is not None:
        good = reprojection_errors(images, tracks) <= config.max_error_px
        tracks = tracks.filter_observations(good, least=2)
    return replace(reconstruction, images=tuple(images), tracks=tracks)


def with_shared_cameras(
    images: Sequence[ReconstructedImage], tolerance: float, fixed: Collection[str] = ()
) -> list[ReconstructedImage]:
    """One camera for images that were probably taken with one.

    Args:
        images: All images.
        tolerance: See `BundleConfig.shared_focal`.
        fixed: Names of images that keep their camera.
    """
    groups: dict[tuple[float, ...], list[int]] = {}
    for i, image in enumerate(images):
        camera = image.camera
        if camera is not None and camera.model == "PINHOLE" and image.name not in fixed:
            key = (camera.width, camera.height, *np.round(camera.K[:2, 2]))
            groups.setdefault(key, []).append(i)
    shared = list(images)
    for members in groups.values():
        focals = np.array([np.sqrt(np.prod(_camera(images[i]).focal)) for i in members])
        focal, first = float(np.median(focals)), _camera(images[members[0]])
        center = (float(first.K[0, 2]), float(first.K[1, 2]))
        common = Camera.from_focal(focal, first.width, first.height, principal_point=center)
        for i, own in zip(members, focals):
            fx, fy = _camera(images[i]).focal
            if max(abs(own / focal - 1), abs(fx / fy - 1)) <= tolerance:
                shared[i] = _with(images[i], common, images[i].pose)
    return shared


def _camera(image: ReconstructedImage) -> Camera:
    if image.camera is None:
        raise ValueError(f"{image.name} has no camera; only registered images have one.")
    return image.camera


def _points_of(reconstruction: Reconstruction, component: int) -> np.ndarray:
    """(P,) bool: points observed by images of a component."""
    tracks = reconstruction.tracks
    components = np.array([image.component for image in reconstruction.images])
    chosen = np.zeros(len(tracks), bool)
    chosen[tracks.point_index[components[tracks.image_index] == component]] = True
    return chosen


def _adjusted(
    images: Sequence[ReconstructedImage], tracks: Tracks, config: BundleConfig
) -> tuple[list[ReconstructedImage], np.ndarray]:
    """Refined images and points of one component."""
    pycolmap = require_pycolmap()
    model = to_pycolmap(images, tracks, square_pixels=True)
    fixed = _fixed(images, tracks, config)
    choice = pycolmap.BundleAdjustmentConfig()
    for image_id in model.reg_image_ids():
        choice.add_image(image_id)
        if images[image_id - 1].name in config.fixed_cameras:
            choice.set_constant_cam_intrinsics(model.images[image_id].camera_id)
        if image_id - 1 in fixed:
            choice.set_constant_rig_from_world_pose(model.images[image_id].frame_id)
    if config.refine_poses:
        choice.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    with quiet():
        report = pycolmap.create_default_bundle_adjuster(_options(config), choice, model).solve()
    if not report.is_solution_usable():
        raise ValueError(f"Bundle adjustment found no solution ({report.brief_report()}).")
    points = np.array([model.points3D[p + 1].xyz for p in range(len(tracks))]).reshape(-1, 3)
    poses = {image_id - 1: our_pose(model.images[image_id].cam_from_world()) for image_id in model.reg_image_ids()}
    cameras = {i: our_camera(model.cameras[model.images[i + 1].camera_id]) for i in poses}
    back = Similarity(1.0, np.eye(3), np.zeros(3))
    if config.refine_poses and not config.fixed_poses:
        back = _back(images, poses)
    refined = list(images)
    for i, pose in poses.items():
        moved = images[i].pose if i in fixed and config.fixed_poses else back.apply_pose(pose)
        refined[i] = _with(images[i], cameras[i], moved)
    return refined, back.apply(points)


def _fixed(images: Sequence[ReconstructedImage], tracks: Tracks, config: BundleConfig) -> set[int]:
    """Numbers of the images whose pose must not change."""
    count = np.bincount(tracks.image_index, minlength=len(images))
    return {
        i
        for i, image in enumerate(images)
        if not config.refine_poses or image.name in config.fixed_poses or count[i] < _MIN_OBSERVATIONS
    }


def _options(config: BundleConfig) -> Any:
    pycolmap = require_pycolmap()
    options = pycolmap.BundleAdjustmentOptions()
    options.refine_focal_length = config.refine_focal
    options.refine_principal_point = config.refine_principal_point
    options.refine_extra_params = config.refine_distortion
    options.print_summary = False
    options.ceres.loss_function_type = getattr(pycolmap.LossFunctionType, _LOSSES[config.loss])
    options.ceres.loss_function_scale = config.loss_scale_px
    options.ceres.solver_options.function_tolerance = config.tolerance
    options.ceres.solver_options.max_num_iterations = config.max_iterations
    options.ceres.solver_options.num_threads = config.num_threads
    return options


def _back(images: Sequence[ReconstructedImage], poses: dict[int, Pose]) -> Similarity:
    """The map that lays the refined poses onto the former ones."""
    former = [(poses[i], image.pose) for i, image in enumerate(images) if image.pose is not None and i in poses]
    try:
        return similarity_from_poses([a for a, _ in former], [b for _, b in former])
    except ValueError:  # all cameras at one place: nothing to compare lengths with
        return Similarity(1.0, np.eye(3), np.zeros(3))


def _with(image: ReconstructedImage, camera: Camera, pose: Pose | None) -> ReconstructedImage:
    """The image with another camera and pose; its pointmap keeps its depth, and its points stay in their pixels."""
    pointmap = image.pointmap
    if pointmap is not None and pose is not None and image.pose is not None and image.camera is not None:
        own = image.pose.inverse().apply(pointmap.points) @ (np.linalg.inv(camera.K) @ image.camera.K).T
        pointmap = Pointmap(pose.apply(own).astype(np.float32), pointmap.confidence, pointmap.frame)
    return replace(image, camera=camera, pose=pose, pointmap=pointmap)
