"""How good are reconstructions of many photos: `mast3r evaluate scenes DATA_DIR`.

DATA_DIR holds scenes with a `gt.json` whose images have world poses. The network's reconstructions are measured side
by side with what a user would pick instead: COLMAP with SIFT features. They get the photos only, unless
`--known_intrinsics` gives them the intrinsics too.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from mast3r.evaluation.command import run_command
from mast3r.evaluation.datasets import GT_FILE, LOW_CONFIDENCE, DatasetError
from mast3r.pairs.options import add_pair_options
from multiview.files import atomic_write
from multiview.metrics import pose_auc, rotation_error_deg, translation_error_deg
from multiview.poses import Pose
from multiview.similarity import Similarity, similarity_from_poses
from multiview.views import ViewConstraints, fixed

if TYPE_CHECKING:
    from mast3r.alignment import AlignmentName
    from mast3r.model import AsymmetricMASt3R

logger = logging.getLogger(__name__)

FORMAT = "mast3r.evaluation.scenes/1"
AUC_DEG = 30.0
"""Bound of the errors in the area under the curve over pairs."""

_TRIPLES = 200
_FAILED_DEG = 180.0
_EPSILON = 1e-9


@dataclass(frozen=True, eq=False)
class PosedScene:
    """Photos with known poses.

    Attributes:
        name: Name of the scene.
        paths: Files of the photos.
        poses: World_from_cam of each.
        K: (3, 3) intrinsics of each; None where unknown.
        confidence: How far the truth can be trusted: high, medium, or low (left out of the total).
        metric: Whether lengths are metres.
    """

    name: str
    paths: tuple[Path, ...]
    poses: tuple[Pose, ...]
    K: tuple[np.ndarray | None, ...]
    confidence: str = "high"
    metric: bool = False


@dataclass(frozen=True)
class SceneScore:
    """How well the cameras of a scene were found. Photos that were not placed count as failed.

    Attributes:
        scene: Name of the scene.
        images: Number of photos.
        registered: Number of photos placed in the largest component.
        rotation_deg: Median rotation error after a robust similarity alignment; None without alignment.
        center: Median error of the camera centres after it, as a share of the cameras' extent.
        center_metres: The same in metres, where the truth is metric.
        auc: Area under the recall curve up to 30 degrees of the larger of rotation and translation direction
            error, over all pairs of photos; pairs with a failed photo have failed.
        seconds: Time taken.
        confidence: Of the truth.
        components: Number of parts with a world each.
        timings: Seconds of each stage, where the method tells.
    """

    scene: str
    images: int
    registered: int
    rotation_deg: float | None
    center: float | None
    center_metres: float | None
    auc: float
    seconds: float
    confidence: str = "high"
    components: int = 1
    timings: Mapping[str, float] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, eq=False)
class FoundCameras:
    """What a method says of a scene.

    Attributes:
        poses: World_from_cam of the photos in the largest component, by position in the scene.
        components: Number of parts with a world each.
        timings: Seconds of each stage.
    """

    poses: Mapping[int, Pose]
    components: int = 1
    timings: Mapping[str, float] = field(default_factory=dict)


Method: TypeAlias = "Callable[[PosedScene], FoundCameras]"
"""From a scene, of which it may use photos and intrinsics, to cameras."""


@dataclass(frozen=True)
class ScenesReport:
    """What was measured of one method.

    Attributes:
        method: Its name.
        scores: One per scene.
    """

    method: str
    scores: tuple[SceneScore, ...] = field(repr=False)

    def total(self) -> SceneScore | None:
        """Means over scenes with trustworthy truth; None without any."""
        kept = [score for score in self.scores if score.confidence != LOW_CONFIDENCE]
        if not kept:
            return None
        return SceneScore(
            "mean",
            sum(score.images for score in kept),
            sum(score.registered for score in kept),
            _mean([score.rotation_deg for score in kept]),
            _mean([score.center for score in kept]),
            _mean([score.center_metres for score in kept]),
            float(np.mean([score.auc for score in kept])),
            sum(score.seconds for score in kept),
            components=sum(score.components for score in kept),
        )


def read_posed_scene(folder: str | Path) -> PosedScene | None:
    """The photos with poses of the `gt.json` in a folder; None if fewer than three have one.

    Raises:
        DatasetError: If the file is missing or broken.
    """
    folder = Path(folder)
    try:
        content = json.loads((folder / GT_FILE).read_text(encoding="utf-8"))
        posed = {name: entry for name, entry in content["images"].items() if "T_w2c" in entry}
        poses = [_pose(entry["T_w2c"]) for entry in posed.values()]
        intrinsics = [np.array(entry["K"], dtype=float) if "K" in entry else None for entry in posed.values()]
    except OSError as error:
        raise DatasetError(f"{folder / GT_FILE} cannot be read ({error}).") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{folder / GT_FILE} is not in the gt.json format ({error}).") from error
    if len(posed) < 3:
        return None
    return PosedScene(
        folder.resolve().name,
        tuple(folder / name for name in posed),
        tuple(poses),
        tuple(intrinsics),
        str(content.get("gt_confidence", "high")),
        bool(content.get("metric", False)),
    )


def read_posed_scenes(folder: str | Path, names: Sequence[str] | None = None) -> list[PosedScene]:
    """All scenes with poses in a data folder, or the one in `folder` itself.

    Args:
        folder: Folder of `SCENE/gt.json`, or a scene.
        names: Scenes to keep; None keeps all.

    Raises:
        DatasetError: If there are none, or a name is unknown.
    """
    files = sorted([*Path(folder).glob(GT_FILE), *Path(folder).glob(f"*/{GT_FILE}")])
    found = {file.parent.resolve().name: file.parent for file in files}
    unknown = sorted(set(names or ()) - set(found))
    if unknown:
        raise DatasetError(f"No scene {', '.join(unknown)} in {folder}; there are {', '.join(found)}.")
    read = [read_posed_scene(found[name]) for name in found if names is None or name in names]
    scenes = [scene for scene in read if scene is not None]
    if not scenes:
        raise DatasetError(f"No scene with at least three posed images in {folder}.")
    return scenes


def judge_scene(scene: PosedScene, found: Mapping[int, Pose], seconds: float = 0.0) -> SceneScore:
    """Compare poses in an unknown world with the truth.

    Args:
        scene: The truth.
        found: Poses by position in the scene, all in one world.
        seconds: Time they took.
    """
    placed = sorted(found)
    extent = _extent(np.array([pose.center for pose in scene.poses]))
    similarity = robust_similarity([found[k] for k in placed], [scene.poses[k] for k in placed])
    rotation = center = None
    if similarity is not None:
        moved = [similarity.apply_pose(found[k]) for k in placed]
        truth = [scene.poses[k] for k in placed]
        rotation = float(np.median([rotation_error_deg(a.rotation, b.rotation) for a, b in zip(moved, truth)]))
        center = float(np.median([np.linalg.norm(a.center - b.center) for a, b in zip(moved, truth)]))
    return SceneScore(
        scene.name,
        len(scene.paths),
        len(placed),
        rotation,
        None if center is None else center / max(extent, _EPSILON),
        center if scene.metric else None,
        pair_auc(scene, found),
        seconds,
        scene.confidence,
    )


def robust_similarity(source: Sequence[Pose], target: Sequence[Pose], *, seed: int = 0) -> Similarity | None:
    """The similarity with the smallest median error, found from triples of cameras and refined.

    The error of a camera is that of its centre, as a share of the extent of all, and of its rotation in radians,
    together: centres alone leave the turn about a row of cameras open.

    Args:
        source: Poses in one world.
        target: The same cameras in another one.
        seed: Seed of the choice of triples.

    Returns:
        The similarity; None with fewer than two distinct cameras.
    """
    if len(source) < 2:
        return None
    rng = np.random.default_rng(seed)
    size = min(3, len(source))
    candidates = [_fit(source, target, rng.choice(len(source), size, replace=False)) for _ in range(_TRIPLES)]
    candidates.append(_fit(source, target, np.arange(len(source))))
    fits = [fit for fit in candidates if fit is not None]
    if not fits:
        return None
    medians = [float(np.median(_camera_errors(fit, source, target))) for fit in fits]
    best = fits[int(np.argmin(medians))]
    errors = _camera_errors(best, source, target)
    refined = _fit(source, target, np.flatnonzero(errors <= 3 * np.median(errors) + _EPSILON))
    if refined is None or np.median(_camera_errors(refined, source, target)) > np.median(errors):
        return best
    return refined


def _camera_errors(fit: Similarity, source: Sequence[Pose], target: Sequence[Pose]) -> np.ndarray:
    """(N,) error of each camera, see `robust_similarity`."""
    rotations = np.stack([fit.apply_pose(pose).rotation for pose in source])
    truth = np.stack([pose.rotation for pose in target])
    cosine = (np.einsum("nij,nij->n", rotations, truth) - 1) / 2
    centers = np.array([pose.center for pose in target])
    off = np.linalg.norm(fit.apply(np.array([pose.center for pose in source])) - centers, axis=1)
    return np.hypot(off / max(_extent(centers), _EPSILON), np.arccos(np.clip(cosine, -1, 1)))


def pair_auc(scene: PosedScene, found: Mapping[int, Pose]) -> float:
    """Area under the recall curve of relative pose errors over all pairs of photos, up to 30 degrees, 0..1."""
    errors = []
    for j in range(len(scene.poses)):
        for i in range(j):
            if i not in found or j not in found:
                errors.append(_FAILED_DEG)
                continue
            estimate, truth = found[i].relative(found[j]), scene.poses[i].relative(scene.poses[j])
            turned = rotation_error_deg(estimate.rotation, truth.rotation)
            errors.append(max(turned, translation_error_deg(estimate.center, truth.center)))
    return float(pose_auc(errors, (AUC_DEG,))[0])


def evaluate_method(name: str, method: Method, scenes: Sequence[PosedScene]) -> ScenesReport:
    """Run a method on scenes; one that raises on a scene has placed none of its photos."""
    scores = []
    for scene in scenes:
        started = time.perf_counter()
        try:
            found = method(scene)
        except (ValueError, RuntimeError) as error:
            logger.warning("%s failed on %s: %s", name, scene.name, error)
            found = FoundCameras({}, components=0)
        score = judge_scene(scene, found.poses, time.perf_counter() - started)
        scores.append(replace(score, components=found.components, timings=dict(found.timings)))
        logger.info("%s: %s", name, scores[-1])
    return ScenesReport(name, tuple(scores))


def sift_sfm(scene: PosedScene, *, known_intrinsics: bool = False) -> FoundCameras:
    """Cameras by COLMAP with SIFT features, exhaustive matching and its incremental mapper.

    Args:
        scene: The photos.
        known_intrinsics: Whether it is told the true intrinsics (of the first photo, if they are all the same).

    Returns:
        Cameras of the largest model.

    Raises:
        ImportError: If pycolmap is not installed.
    """
    from multiview.colmap_model import our_pose, quiet, require_pycolmap  # here: pycolmap is optional

    pycolmap = require_pycolmap()
    timings: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, quiet():
        images, database = Path(folder) / "images", Path(folder) / "database.db"
        images.mkdir()
        names = [f"{k:06d}{path.suffix}" for k, path in enumerate(scene.paths)]
        for name, path in zip(names, scene.paths):
            (images / name).symlink_to(path.resolve())
        with _timed(timings, "features"):
            pycolmap.extract_features(database, images, image_names=names)
        if known_intrinsics:
            _tell_intrinsics(database, scene)
        with _timed(timings, "pairs"):
            pycolmap.match_exhaustive(database)
        options = pycolmap.IncrementalPipelineOptions()
        options.ba_refine_focal_length = options.ba_refine_extra_params = not known_intrinsics
        with _timed(timings, "align"):
            models = pycolmap.incremental_mapping(database, images, Path(folder), options)
        if not models:
            return FoundCameras({}, 0, timings)
        largest = max(models.values(), key=lambda model: model.num_reg_images())
        placed = (largest.images[number] for number in largest.reg_image_ids())
        poses = {int(Path(image.name).stem): our_pose(image.cam_from_world()) for image in placed}
    return FoundCameras(poses, len(models), timings)


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    timings[stage] = time.perf_counter() - started


def _tell_intrinsics(database: Path, scene: PosedScene) -> None:
    """Put the true intrinsics in place of COLMAP's guesses."""
    from multiview.cameras import Camera
    from multiview.colmap_model import pycolmap_camera, require_pycolmap

    store = require_pycolmap().Database.open(str(database))
    try:
        for image in store.read_all_images():
            K = scene.K[int(Path(image.name).stem)]
            guess = store.read_camera(image.camera_id)
            if K is None:
                continue
            camera = pycolmap_camera(Camera(K, guess.width, guess.height), image.camera_id)
            camera.has_prior_focal_length = True
            store.update_camera(camera)
    finally:
        store.close()


def scenes_table(reports: Sequence[ScenesReport]) -> str:
    """One row per scene and method."""
    rows = [("scene", "method", "placed", "parts", "rotation", "centre", "centre, m", "AUC@30", "time")]
    names = list(dict.fromkeys(score.scene for report in reports for score in report.scores))
    for name in [*names, "mean"]:
        for report in reports:
            total = report.total()
            scores = [*report.scores, *([] if total is None else [total])]
            rows += [_row(report.method, score) for score in scores if score.scene == name]
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join(lines)


def save_scenes(path: str | Path, reports: Sequence[ScenesReport]) -> None:
    """Write all numbers as JSON."""
    content = {
        "format": FORMAT,
        "methods": {report.method: [asdict(score) for score in report.scores] for report in reports},
    }
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=1).encode())


def get_args_parser(prog: str = "python -m mast3r.evaluation.scenes") -> argparse.ArgumentParser:
    """Flags of the command.

    Args:
        prog: Name of the program in its help.
    """
    parser = argparse.ArgumentParser(prog=prog, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of SCENE/gt.json, or one such scene")
    parser.add_argument("--scenes", nargs="+", help="names of scenes (default: all with poses)")
    parser.add_argument("--weights", default="small", help="small, an official name, a path; none: only the baseline")
    parser.add_argument("--alignment", nargs="+", default=["sparse"], choices=["sparse", "dense", "colmap"])
    parser.add_argument("--known_intrinsics", action="store_true", help="tell all methods the true intrinsics")
    parser.add_argument("--unadjusted", action="store_true", help="also measure all without the final adjustment")
    parser.add_argument("--scene_graph", default="auto", help="which pairs: auto, complete, swin-5, ...")
    parser.add_argument("--image_size", type=int, help="size of the network's input (default: as trained)")
    add_pair_options(parser, ["closer_look"])
    parser.add_argument("--baseline", action="store_true", help="also measure COLMAP with SIFT features")
    parser.add_argument("--cache", type=Path, help="folder that keeps what the network says")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "python -m mast3r.evaluation.scenes") -> int:
    """Run the command; returns its exit status."""
    args = get_args_parser(prog).parse_args(argv)
    return run_command(lambda: _measured(args), scenes_table, save_scenes, args.json)


def _measured(args: argparse.Namespace) -> list[ScenesReport]:
    scenes = read_posed_scenes(args.data, args.scenes)
    return [evaluate_method(name, method, scenes) for name, method in _methods(args).items()]


def _methods(args: argparse.Namespace) -> dict[str, Method]:
    methods: dict[str, Method] = {}
    if args.weights != "none":
        methods.update(_network_methods(args))
    if args.baseline:
        methods["sift + colmap"] = lambda scene: sift_sfm(scene, known_intrinsics=args.known_intrinsics)
    if not methods:
        raise ValueError("Nothing to measure: --weights none needs --baseline.")
    return methods


def _network_methods(args: argparse.Namespace) -> dict[str, Method]:
    # here: the baseline alone runs without torch
    from dust3r.utils.processes import resolve_device
    from mast3r.loading import card_of, load

    model = load(args.weights, device=resolve_device(args.device))
    name = card_of(model).name
    methods = {f"{name} {way}": _network_method(model, way, args) for way in args.alignment}
    if args.unadjusted:
        methods |= {
            f"{name} {way} unadjusted": _network_method(model, way, args, adjust=False) for way in args.alignment
        }
    return methods


def _network_method(
    model: AsymmetricMASt3R, way: AlignmentName, args: argparse.Namespace, *, adjust: bool = True
) -> Method:
    """Reconstruction by the network."""
    from mast3r.scenes.reconstruction import ReconstructConfig, reconstruct

    config = ReconstructConfig(
        image_size=args.image_size, alignment=way, adjust=adjust, closer_look=bool(args.closer_look)
    )

    def run(scene: PosedScene) -> FoundCameras:
        """Cameras of the largest part of the scene."""
        views = [ViewConstraints(K=fixed(K)) if args.known_intrinsics and K is not None else None for K in scene.K]
        found = reconstruct(
            model, scene.paths, scene_graph=args.scene_graph, views=views, config=config, cache_dir=args.cache
        )
        largest = _largest(found.components, [found.images[k].component for k in found.registered])
        placed = ((k, found.images[k]) for k in found.registered)
        poses = {k: image.pose for k, image in placed if image.pose is not None and image.component == largest}
        return FoundCameras(poses, len(found.components), dict(found.timings))

    return run


def _largest(components: Sequence[int], of_images: Sequence[int]) -> int:
    return max(components, key=of_images.count, default=0)


def _fit(source: Sequence[Pose], target: Sequence[Pose], chosen: np.ndarray) -> Similarity | None:
    try:
        return similarity_from_poses([source[k] for k in chosen], [target[k] for k in chosen])
    except ValueError:  # these cameras stand at one place, or contradict each other
        return None


def _pose(T_w2c: Sequence[Sequence[float]]) -> Pose:
    matrix = np.array(T_w2c, dtype=float)
    return Pose.from_cam_from_world(matrix[:3, :3], matrix[:3, 3])


def _extent(centers: np.ndarray) -> float:
    """Largest distance of a camera from the middle of all."""
    return float(np.linalg.norm(centers - centers.mean(axis=0), axis=1).max())


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _row(method: str, score: SceneScore) -> tuple[str, ...]:
    return (
        score.scene,
        method,
        f"{score.registered}/{score.images}",
        str(score.components),
        "-" if score.rotation_deg is None else f"{score.rotation_deg:.2f} deg",
        "-" if score.center is None else f"{100 * score.center:.1f} %",
        "-" if score.center_metres is None else f"{score.center_metres:.3g}",
        f"{100 * score.auc:.1f}",
        f"{score.seconds:.0f} s",
    )


if __name__ == "__main__":
    sys.exit(main())
