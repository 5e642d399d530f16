"""COLMAP as another back end: from matches of many pairs to cameras and points, by its own mappers.

Everything here is in our conventions; `multiview.colmap_model` translates. Nothing is downloaded and COLMAP's own
features are not used.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from multiview.bundle_adjustment import BundleConfig, bundle_adjust
from multiview.cameras import Camera
from multiview.colmap_model import (
    PIXEL_SHIFT,
    camera_key,
    our_camera,
    our_pose,
    pycolmap_camera,
    quiet,
    read_model,
    read_tracks,
    require_pycolmap,
    simplest_model,
    write_model,
)
from multiview.files import atomic_path
from multiview.images import ImageSource, as_image
from multiview.keypoint_graph import KeypointGraph
from multiview.matches import Matches
from multiview.reconstructed_image import ReconstructedImage
from multiview.reconstruction import Reconstruction
from multiview.track_building import PairName, cell_sizes, link_matches, tracks_from_matches
from multiview.tracks import Tracks
from multiview.triangulation import triangulate_tracks

__all__ = [
    "BundleConfig",
    "Mapper",
    "MapperConfig",
    "bundle_adjust",
    "read_model",
    "reconstruct_from_matches",
    "tracks_from_matches",
    "triangulate",
    "write_database",
    "write_model",
]

Mapper = Literal["incremental", "global"]

_FOCAL_RANGE = (0.1, 10.0)  # of focal lengths that cameras have, as shares of the longer side
_MOST_DISTORTION = 10.0  # of any parameter
_TOLERANCE = 1e-6  # relative change of the cost at which bundle adjustment stops; COLMAP's 0 makes every allowed step
_GROWTH = 1.3  # of a model until all of it is adjusted again; COLMAP's 1.1 does so for almost every photo
_FOCAL_FACTOR = 1.2  # of the longer side: COLMAP's guess of an unknown focal length


@dataclass(frozen=True)
class MapperConfig:
    """How COLMAP checks matches and builds the scene.

    Attributes:
        max_error_px: Largest epipolar and reprojection error of an inlier, in original pixels. Default 4, or
            one pixel of the image as the network saw it if that is larger.
        min_inliers: Pairs with fewer verified matches are not used.
        fix_intrinsics: Keep the given cameras as they are.
        cell_px: Grid on which matches of several pairs become one keypoint (see `link_matches`).
        seed: Seed of every random choice.
        num_threads: Threads; -1 takes all.

    Raises:
        ValueError: If a value is out of range.
    """

    max_error_px: float | None = None
    min_inliers: int = 15
    fix_intrinsics: bool = False
    cell_px: float | None = None
    seed: int = 0
    num_threads: int = -1

    def __post_init__(self) -> None:
        if self.max_error_px is not None and not self.max_error_px > 0:
            raise ValueError(f"max_error_px must be positive or None, got {self.max_error_px}.")
        if self.min_inliers < 1:
            raise ValueError(f"min_inliers must be at least 1, got {self.min_inliers}.")


def triangulate(
    reconstruction: Reconstruction,
    matches_by_pair: Mapping[PairName, Matches],
    *,
    cell_px: float | None = None,
    max_error_px: float = 4.0,
    min_angle_deg: float = 1.0,
) -> Reconstruction:
    """The reconstruction with tracks made of matches; cameras stay as they are. Needs no pycolmap.

    Args:
        reconstruction: Cameras with known poses.
        matches_by_pair: Matches by (name of image 0, name of image 1), in original pixels.
        cell_px: See `link_matches`.
        max_error_px: See `triangulate_tracks`.
        min_angle_deg: See `triangulate_tracks`.

    Raises:
        ValueError: If a name is unknown.
    """
    names = [image.name for image in reconstruction.images]
    observations = tracks_from_matches(names, matches_by_pair, cell_px=cell_px)
    tracks = triangulate_tracks(
        reconstruction.images, observations, max_error_px=max_error_px, min_angle_deg=min_angle_deg
    )
    return replace(reconstruction, tracks=tracks)


def write_database(
    path: str | os.PathLike[str], cameras: Mapping[str, Camera], graph: KeypointGraph, *, guessed: Collection[str] = ()
) -> Path:
    """Write a COLMAP database with cameras, images, keypoints and matches, not yet verified; atomically.

    Args:
        path: Target file; one that exists is replaced.
        cameras: Camera of every image by name. Equal cameras become one.
        graph: Keypoints and matches; image number i becomes COLMAP's image i + 1.
        guessed: Names of images whose camera is a guess: COLMAP is told so, and equal guesses stay several
            cameras.

    Returns:
        The path.

    Raises:
        ValueError: If a camera is missing.
        ImportError: If pycolmap is not installed.
    """
    missing = [name for name in graph.names if name not in cameras]
    if missing:
        raise ValueError(f"There is no camera for image {missing[0]!r}.")
    with atomic_path(path) as part:
        database = require_pycolmap().Database.open(str(part))
        try:
            _fill(database, cameras, graph, guessed)
        finally:
            database.close()
    return Path(path)


def reconstruct_from_matches(
    images: Mapping[str, ImageSource],
    cameras: Mapping[str, Camera] | None,
    matches_by_pair: Mapping[PairName, Matches],
    *,
    mapper: Mapper = "incremental",
    config: MapperConfig | None = None,
) -> Reconstruction:
    """Cameras and sparse points from matches alone, by COLMAP's verification and mapper.

    Args:
        images: Images by name; their sizes and colours are used.
        cameras: Camera by name in original pixels, each a starting point (or kept, see `MapperConfig`).
            Images without one start with a focal length of 1.2 times the longer side, each its own. Images
            given equal cameras are taken for those of one camera, which stay equal.
        matches_by_pair: Matches by (name of image 0, name of image 1), in original pixels.
        mapper: "incremental" adds image after image, "global" (GLOMAP) solves for all at once.
        config: Thresholds and more; default `MapperConfig()`.

    Returns:
        All images, registered or failed with a reason; component 0 is the largest. The scale is arbitrary.

    Raises:
        ValueError: If names or sizes contradict each other, or the mapper is unknown.
        ImportError: If pycolmap is not installed.
    """
    require_pycolmap()
    if mapper not in get_args(Mapper):
        raise ValueError(f"mapper must be one of {get_args(Mapper)}, got {mapper!r}.")
    config = MapperConfig() if config is None else config
    names = list(images)
    pictures = {name: as_image(source) for name, source in images.items()}
    sizes = {name: picture.size for name, picture in pictures.items()}
    start = time.perf_counter()
    graph = link_matches(names, matches_by_pair, cell_px=config.cell_px)
    _check_sizes(sizes, cameras or {}, matches_by_pair)
    # COLMAP's lists of pairs are split at spaces, which names may have.
    plain = replace(graph, names=tuple(f"{i:08d}" for i in range(len(names))))
    given = {short: (cameras or {}).get(name) for short, name in zip(plain.names, names)}
    used = {short: camera or _guessed(sizes[name]) for (short, camera), name in zip(given.items(), names)}
    guessed = {short for short, camera in given.items() if camera is None}
    linked = time.perf_counter()
    max_error = config.max_error_px or max([4.0, *cell_sizes(names, matches_by_pair)])
    with tempfile.TemporaryDirectory() as folder, quiet():
        database = write_database(Path(folder) / "database.db", used, plain, guessed=guessed)
        inliers = _verify(database, plain, config, max_error)
        verified = time.perf_counter()
        options = _global_options(config) if mapper == "global" else _incremental_options(config, max_error)
        models, error = _map(database, mapper, options, calibrate=None in given.values())
    placed, tracks = _assembled(models, graph)
    entries = tuple(
        _entry(i, name, pictures[name].path, sizes[name], placed, graph, inliers, error) for i, name in enumerate(names)
    )
    timings = {"link": linked - start, "verify": verified - linked, "map": time.perf_counter() - verified}
    tracks = _colored(tracks, [pictures[name].pixels for name in names])
    return Reconstruction(entries, tracks, "arbitrary", timings)


def _check_sizes(
    sizes: Mapping[str, tuple[int, int]], cameras: Mapping[str, Camera], matches_by_pair: Mapping[PairName, Matches]
) -> None:
    for name, camera in cameras.items():
        if name in sizes and (camera.width, camera.height) != sizes[name]:
            raise ValueError(
                f"Image {name!r} has size {sizes[name]}, its camera is of size {(camera.width, camera.height)}."
            )
    for pair, matches in matches_by_pair.items():
        for name, size in zip(pair, (matches.size0, matches.size1)):
            if sizes[name] != size:
                raise ValueError(f"Image {name!r} has size {sizes[name]}, its matches in {pair} are of size {size}.")


def _guessed(size: tuple[int, int]) -> Camera:
    return Camera.from_focal(_FOCAL_FACTOR * max(size), *size)


def _fill(database: Any, cameras: Mapping[str, Camera], graph: KeypointGraph, guessed: Collection[str]) -> None:
    """Write everything into an open database."""
    pycolmap = require_pycolmap()
    camera_ids: dict[tuple[Any, ...], int] = {}
    for i, name in enumerate(graph.names):
        key = (name,) if name in guessed else camera_key(cameras[name])
        if key not in camera_ids:
            camera_ids[key] = len(camera_ids) + 1
            camera = pycolmap_camera(cameras[name], camera_ids[key], model=simplest_model(cameras[name]))
            camera.has_prior_focal_length = name not in guessed
            database.write_camera(camera, use_camera_id=True)
            rig = pycolmap.Rig(rig_id=camera_ids[key])
            rig.add_ref_sensor(camera.sensor_id)
            database.write_rig(rig, use_rig_id=True)
        image = pycolmap.Image(name=name, camera_id=camera_ids[key], image_id=i + 1)
        database.write_image(image, use_image_id=True)
        frame = pycolmap.Frame(frame_id=i + 1, rig_id=camera_ids[key])
        frame.add_data_id(image.data_id)
        database.write_frame(frame, use_frame_id=True)
        database.write_keypoints(i + 1, graph.keypoints[i] + np.float32(PIXEL_SHIFT))
    for (i, j), matches in graph.pairs.items():
        database.write_matches(i + 1, j + 1, matches.astype(np.uint32))


def _verify(database: Path, graph: KeypointGraph, config: MapperConfig, max_error: float) -> dict[tuple[int, int], int]:
    """Verify all pairs by their two-view geometry; number of inliers by pair."""
    pycolmap = require_pycolmap()
    pairs = database.with_name("pairs.txt")
    pairs.write_text("".join(f"{graph.names[i]} {graph.names[j]}\n" for i, j in graph.pairs))
    options = pycolmap.TwoViewGeometryOptions()
    options.min_num_inliers = config.min_inliers
    options.ransac.max_error = max_error
    options.ransac.random_seed = config.seed
    options.compute_relative_pose = True
    # Networks match dense regions: few distinct borders make that check reject good pairs.
    options.detect_watermark = False
    if graph.pairs:
        pycolmap.verify_matches(str(database), str(pairs), options)
    store = pycolmap.Database.open(str(database))
    try:
        numbers, counts = store.read_two_view_geometry_num_inliers()
    finally:
        store.close()
    ends = [pycolmap.pair_id_to_image_pair(number) for number in numbers]
    return {(min(a, b) - 1, max(a, b) - 1): count for (a, b), count in zip(ends, counts)}


def _map(database: Path, mapper: Mapper, options: Any, *, calibrate: bool) -> tuple[list[Any], str]:
    """Models of one mapper, the largest first, and what went wrong if there are none."""
    pycolmap = require_pycolmap()
    output = database.with_name("models")
    output.mkdir()
    pycolmap.set_random_seed(options.random_seed)
    run = pycolmap.global_mapping if mapper == "global" else pycolmap.incremental_mapping
    try:
        if mapper == "global" and calibrate:
            pycolmap.calibrate_view_graph(str(database))
        found = run(str(database), str(database.parent), str(output), options)
    except Exception as error:  # pycolmap raises many kinds; none of them must lose the images that failed
        return [], f"COLMAP's {mapper} mapper stopped: {' '.join(str(error).split())}."
    models = sorted(found.values(), key=lambda model: -model.num_reg_images())
    return [model for model in models if model.num_reg_images() >= 2], ""


def _incremental_options(config: MapperConfig, max_error: float) -> Any:
    options = require_pycolmap().IncrementalPipelineOptions()
    options.min_num_matches = config.min_inliers
    options.min_model_size = 2
    options.extract_colors = False
    options.num_threads = config.num_threads
    options.random_seed = config.seed
    options.mapper.random_seed = options.triangulation.random_seed = config.seed
    options.ba_global_frames_ratio = options.ba_global_points_ratio = _GROWTH
    options.ba_local_function_tolerance = options.ba_global_function_tolerance = _TOLERANCE
    options.ba_refine_focal_length = not config.fix_intrinsics
    options.ba_refine_extra_params = not config.fix_intrinsics
    options.mapper.abs_pose_refine_focal_length = not config.fix_intrinsics
    options.mapper.abs_pose_refine_extra_params = not config.fix_intrinsics
    options.mapper.init_min_num_inliers = min(100, 2 * config.min_inliers)
    options.mapper.abs_pose_min_num_inliers = min(30, config.min_inliers)
    options.mapper.init_max_error = options.mapper.filter_max_reproj_error = max_error
    options.mapper.abs_pose_max_error = 3 * max_error
    options.triangulation.merge_max_reproj_error = options.triangulation.complete_max_reproj_error = max_error
    # Pairs are often all there is: tracks of two images must count.
    options.triangulation.ignore_two_view_tracks = False
    return options


def _global_options(config: MapperConfig) -> Any:
    options = require_pycolmap().GlobalPipelineOptions()
    options.min_num_matches = config.min_inliers
    options.num_threads = config.num_threads
    options.random_seed = config.seed
    for part in (options.mapper, options.mapper.rotation_averaging, options.mapper.global_positioning):
        part.random_seed = config.seed
    options.mapper.retriangulation.random_seed = config.seed
    options.mapper.global_positioning.use_gpu = False
    options.mapper.bundle_adjustment.ceres.use_gpu = False
    options.mapper.bundle_adjustment.refine_focal_length = not config.fix_intrinsics
    options.mapper.bundle_adjustment.refine_extra_params = not config.fix_intrinsics
    return options


def _assembled(models: Sequence[Any], graph: KeypointGraph) -> tuple[dict[int, tuple[int, Any]], Tracks]:
    """For each placed image its component and model, and the tracks of all models."""
    placed: dict[int, tuple[int, Any]] = {}
    parts: list[Tracks] = []
    keypoints = {i + 1: xy for i, xy in enumerate(graph.keypoints)}
    for model in models:
        new = [i - 1 for i in model.reg_image_ids() if i - 1 not in placed and not _bogus(model, i)]
        if len(new) < 2:  # all but one stand in a larger model
            continue
        placed |= {i: (len(parts), model) for i in new}
        tracks = read_tracks(model, {i + 1: i for i in new}, keypoints)
        parts.append(tracks.filter(tracks.lengths >= 2))
    start = np.cumsum([0, *(len(part) for part in parts)])
    empty = Tracks.empty()
    return placed, Tracks(
        np.concatenate([empty.points, *(part.points for part in parts)]),
        np.concatenate([empty.colors, *(part.colors for part in parts)]),
        np.concatenate([empty.point_index, *(part.point_index + first for part, first in zip(parts, start))]),
        np.concatenate([empty.image_index, *(part.image_index for part in parts)]),
        np.concatenate([empty.xy, *(part.xy for part in parts)]),
    )


def _bogus(model: Any, image_id: int) -> bool:
    """Whether the intrinsics of an image of a model are none that a camera has: matches did not determine them."""
    camera = model.cameras[model.images[image_id].camera_id]
    return camera.has_bogus_params(*_FOCAL_RANGE, _MOST_DISTORTION)


def _entry(
    i: int,
    name: str,
    path: Path | None,
    size: tuple[int, int],
    placed: Mapping[int, tuple[int, Any]],
    graph: KeypointGraph,
    inliers: Mapping[tuple[int, int], int],
    error: str,
) -> ReconstructedImage:
    """One image of the result."""
    if i in placed:
        component, model = placed[i]
        image = model.images[i + 1]
        camera = our_camera(model.cameras[image.camera_id])
        pose = our_pose(image.cam_from_world())
        return ReconstructedImage(name, size, "registered", "", path, camera, pose, component)
    return ReconstructedImage(name, size, "failed", error or _reason(i, graph, inliers), path)


def _reason(i: int, graph: KeypointGraph, inliers: Mapping[tuple[int, int], int]) -> str:
    matched = {pair: len(matches) for pair, matches in graph.pairs.items() if i in pair and len(matches)}
    if not matched:
        return "It has no matches with any other image."
    verified = {pair: inliers[pair] for pair in matched if inliers.get(pair, 0) > 0}
    if not verified:
        most = max(matched.values())
        return f"No pair of it ({len(matched)}, with at most {most} matches) agrees with one motion of the camera."
    return (
        f"Matches with other images were verified ({len(verified)} pairs, with at most {max(verified.values())}), "
        "but the mapper could not place it."
    )


def _colored(tracks: Tracks, pixels: Sequence[np.ndarray]) -> Tracks:
    """The tracks with the mean colour of the original pixels they were observed at."""
    total = np.zeros((len(tracks), 3))
    for i, picture in enumerate(pixels):
        here = tracks.image_index == i
        limit = (picture.shape[1] - 1, picture.shape[0] - 1)
        x, y = np.clip(np.rint(tracks.xy[here]).astype(int), 0, limit).T
        np.add.at(total, tracks.point_index[here], picture[y, x])
    mean = total / np.maximum(tracks.lengths, 1)[:, None]
    return replace(tracks, colors=np.rint(mean).astype(np.uint8))
