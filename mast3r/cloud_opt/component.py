"""Aligning the images of one connected component.

Inside, the unit of length is chosen such that the typical depth is 1: learning rates and robust losses then
mean the same for a table and for a town.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from mast3r.cloud_opt.canonical import CanonicalView
from mast3r.cloud_opt.config import SparseConfig
from mast3r.cloud_opt.depth_start import bent_depths
from mast3r.cloud_opt.initialise import FirstGuess, LocalMatches, first_guess
from mast3r.cloud_opt.kinematics import kinematic_tree
from mast3r.cloud_opt.motion_guess import PixelMatches, agreement, guess_from_motions
from mast3r.cloud_opt.objectives import CoarseObjective, FallbackObjective, FineObjective, Objective, total
from mast3r.cloud_opt.optimise import StageResult, run_stage
from mast3r.cloud_opt.parameters import (
    GivenCameras,
    ParameterOptions,
    SceneParameters,
    SceneState,
    StartValues,
    shared_start,
)
from mast3r.cloud_opt.priors import PriorObjective
from mast3r.cloud_opt.problem import (
    AnchoredPair,
    Fallback,
    ImageGeometry,
    PixelAnchors,
    SparseProblem,
    pack_problem,
)
from multiview.views import Known, ViewConstraints

_MIN_GAIN = 0.02  # share of matches that must agree more with cameras that are not laid onto pointmaps

OnStage = Callable[[float, str], None]
"""Told the share of the work that is done and the name of the present stage."""


@dataclass(frozen=True, eq=False)
class ComponentInput:
    """Connected images.

    Attributes:
        views: Merged view of each of the N images; of known depth where `constraints` give one.
        known_blocks: (blocks,) bool per image, anchors of known depth.
        constraints: What is known of each image.
        pairs: Matches between anchored pixels.
        fallbacks: What stands in for poor pairs.
        scores: (N, N) strength of the links.
        K: (N, 3, 3) intrinsics to start with: the known ones, else approximate ones.
    """

    views: Sequence[CanonicalView]
    known_blocks: Sequence[Tensor]
    constraints: Sequence[ViewConstraints]
    pairs: Sequence[AnchoredPair]
    fallbacks: Sequence[Fallback]
    scores: np.ndarray
    K: np.ndarray

    @property
    def count(self) -> int:
        """N."""
        return len(self.views)

    def known(self, name: str) -> dict[int, Known]:
        """The images of which `name` ("K", "pose" or "depth") is known."""
        values = {i: getattr(constraint, name) for i, constraint in enumerate(self.constraints)}
        return {i: value for i, value in values.items() if value is not None}

    @property
    def scaled(self) -> list[bool]:
        """Per image, whether its depth is in the world's unit."""
        return [bool(blocks.any()) for blocks in self.known_blocks]

    @property
    def fixed_scale(self) -> bool:
        """Whether what is known tells the world's unit of length."""
        centers = {tuple(np.round(pose.value[:3, 3], 9)) for pose in self.known("pose").values()}
        return len(centers) > 1 or any(self.scaled)


@dataclass(frozen=True, eq=False)
class ComponentResult:
    """Aligned images.

    Attributes:
        world_from_cam: (N, 4, 4) float64.
        K: (N, 3, 3) float64 in pixels.
        core_depth: (blocks,) float64 depth of the anchors of each image, in the world's unit.
        slope: (N,) factor on (offset - 1) of each image.
        losses: Objective of each stage that ran.
    """

    world_from_cam: np.ndarray
    K: np.ndarray
    core_depth: list[np.ndarray]
    slope: np.ndarray
    losses: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class _Units:
    """Lengths outside per length inside.

    Attributes:
        world: World units per internal unit.
        image: (N,) units of each image's points per internal unit.
    """

    world: float
    image: np.ndarray


def solve_component(data: ComponentInput, config: SparseConfig, on_stage: OnStage | None = None) -> ComponentResult:
    """Align the images of one component.

    Args:
        data: The images and their matches.
        config: Settings.
        on_stage: Told the progress.

    Returns:
        Cameras and depth. The frame is that of the known poses, else of the first image.
    """
    K = data.K
    tree = kinematic_tree(data.scores, config.kinematic_mode, blocks=[len(view.grid) for view in data.views])
    guess, units = _guess(data, config, K, tree.root)
    images = _image_geometry(data, units, config, bent=_bent_depths(data, K, guess))
    fallbacks = [replace(f, points=f.points / float(units.image[f.j])) for f in data.fallbacks]
    problem = pack_problem(images, data.pairs, fallbacks)
    fixed_poses = [i for i, pose in data.known("pose").items() if pose.role == "fixed"]
    scene = SceneParameters(
        images,
        tree.parents(data.count, fixed_poses),
        _start_values(data, config, images, K, guess, units),
        given=_given(data, units, images),
        options=ParameterOptions(config.depth_mode, config.exp_depth, free_roots=bool(data.known("pose"))),
    )
    if guess is not None and guess.from_motions:  # the coarse stage would lay the cameras by the predicted depth
        config = replace(config, coarse=replace(config.coarse, niter=0))
    stages = _run_stages(scene, problem, _priors(data, units, images), config, on_stage)
    final = stages[-1][1].state if stages else _present(scene)
    losses = {name: result.loss for name, result in stages}
    return _result(data, final, units, losses)


def default_intrinsics(view: CanonicalView) -> np.ndarray:
    """(3, 3) intrinsics that a pointmap suggests."""
    x, y = view.center
    return np.array([[view.focal, 0, x], [0, view.focal, y], [0, 0, 1.0]])


# --- the first guess and the units ---


def _guess(data: ComponentInput, config: SparseConfig, K: np.ndarray, root: int) -> tuple[FirstGuess | None, _Units]:
    """Where to begin, in the world's unit, and the internal units."""
    poses = data.known("pose")
    if config.initialization == "common_point" and not poses and not any(data.scaled):
        return None, _Units(1.0, np.ones(data.count))
    local = [_local_matches(data, K, pair) for pair in data.pairs]
    local += [_local_fallback(data, K, fallback) for fallback in data.fallbacks]
    scaled = data.scaled
    guess = first_guess(
        data.count,
        root,
        local,
        known_pose=[poses[i].value if i in poses else None for i in range(data.count)],
        known_scale=[1.0 if own else None for own in scaled],
    )
    if config.initialization == "best" and not poses and not any(scaled) and data.pairs:
        guess = _better_guess(data, K, guess, local)
    depth = np.array([float(view.core_depth.median()) for view in data.views])
    world = float(np.median(guess.scale * depth))
    network = world / float(np.median(guess.scale))
    return guess, _Units(world, np.where(scaled, world, network))


def _better_guess(
    data: ComponentInput, K: np.ndarray, registered: FirstGuess, local: Sequence[LocalMatches]
) -> FirstGuess:
    """The guess from the motions of pairs, if matches agree with it better than with the registered one."""
    pixels = [_pixel_matches(pair, points) for pair, points in zip(data.pairs, local)]
    moved = guess_from_motions(K, pixels, local)
    if moved is None or agreement(moved, K, pixels) < agreement(registered, K, pixels) + _MIN_GAIN:
        return registered
    return moved


def _pixel_matches(pair: AnchoredPair, points: LocalMatches) -> PixelMatches:
    xy_i, xy_j = (side.xy.double().cpu().numpy() for side in (pair.first, pair.second))
    weight = pair.weight.double().cpu().numpy()
    return PixelMatches(pair.i, pair.j, xy_i, xy_j, points.first[:, 2], points.second[:, 2], weight)


def _local_points(view: CanonicalView, K: np.ndarray, pixels: PixelAnchors, keep_shape: bool) -> np.ndarray:
    """(M, 3) points of pixels in their camera; where K and the pointmap disagree, depth follows K."""
    slope = 1.0 if keep_shape else view.focal / np.sqrt(K[0, 0] * K[1, 1])
    xy = pixels.xy.double().cpu().numpy()
    rays = np.concatenate([xy, np.ones_like(xy[:, :1])], axis=1) @ np.linalg.inv(K).T
    middle = float(view.core_depth.median())
    core = view.core_depth.double().cpu().numpy()[pixels.anchor.cpu().numpy()]
    depth = (core + middle * (1 / slope - 1)) * (1 + (pixels.offset.double().cpu().numpy() - 1) * slope)
    return rays * depth[:, None]


def _local_matches(data: ComponentInput, K: np.ndarray, pair: AnchoredPair) -> LocalMatches:
    first, second = (
        _local_points(data.views[i], K[i], pixels, data.scaled[i])
        for i, pixels in ((pair.i, pair.first), (pair.j, pair.second))
    )
    # The error of a point grows with its depth.
    middle = np.median(first[:, 2]) * np.median(second[:, 2]) if len(first) else 1.0
    weight = pair.weight.double().cpu().numpy() * middle / np.maximum(first[:, 2] * second[:, 2], 1e-6 * middle)
    return LocalMatches(pair.i, pair.j, first, second, weight)


def _local_fallback(data: ComponentInput, K: np.ndarray, fallback: Fallback) -> LocalMatches:
    first = _local_points(data.views[fallback.i], K[fallback.i], fallback.pixels, data.scaled[fallback.i])
    second = fallback.points.double().cpu().numpy()
    return LocalMatches(fallback.i, fallback.j, first, second, fallback.weight.double().cpu().numpy())


# --- tensors for the optimiser ---


def _bent_depths(data: ComponentInput, K: np.ndarray, guess: FirstGuess | None) -> list[np.ndarray] | None:
    """Depth that agrees with the cameras of a guess from motions; None if depth is to be left alone."""
    if guess is None or not guess.from_motions:
        return None
    return bent_depths(guess, K, data.views, data.pairs)


def _image_geometry(
    data: ComponentInput, units: _Units, config: SparseConfig, *, bent: list[np.ndarray] | None
) -> ImageGeometry:
    like = data.views[0].core_depth
    size = torch.tensor([(view.grid.width, view.grid.height) for view in data.views], device=like.device)
    focal = torch.tensor([view.focal for view in data.views], device=like.device)
    cores = [view.core_depth.double() for view in data.views]
    if bent is not None:  # bent at the focals of the guess
        cores = [torch.from_numpy(core).to(like.device) for core in bent]
        focal = torch.from_numpy(np.sqrt(data.K[:, 0, 0] * data.K[:, 1, 1])).to(like.device)
    depth = [core / unit for core, unit in zip(cores, units.image)]
    return ImageGeometry.of(size.double(), focal.double(), depth).to(config.dtype)


def _start_values(
    data: ComponentInput,
    config: SparseConfig,
    images: ImageGeometry,
    K: np.ndarray,
    guess: FirstGuess | None,
    units: _Units,
) -> StartValues:
    confidence = torch.stack([view.confidence.mean() for view in data.views]).to(images.size)
    intrinsics = torch.from_numpy(K).to(images.size)
    focal = (intrinsics[:, 0, 0] * intrinsics[:, 1, 1]).sqrt()
    center = intrinsics[:, :2, 2] / images.size
    if config.shared_intrinsics:
        start = shared_start(replace(images, base_focal=focal), confidence)
        focal, center = start.focal, start.center
    aspect = torch.from_numpy(K[:, 1, 1] / K[:, 0, 0]).to(images.size)
    if guess is None:
        return StartValues(focal, center, aspect)
    pose = guess.world_from_cam.copy()
    pose[:, :3, 3] /= units.world
    scale = torch.from_numpy(np.log(guess.scale * units.image / units.world)).to(images.size)
    return StartValues(focal, center, aspect, torch.from_numpy(pose).to(images.size), scale)


def _given(data: ComponentInput, units: _Units, images: ImageGeometry) -> GivenCameras:
    pose, K = np.tile(np.eye(4), (data.count, 1, 1)), np.tile(np.eye(3), (data.count, 1, 1))
    has_pose, has_intrinsics = np.zeros((2, data.count), dtype=bool)
    for target, has, known in ((pose, has_pose, data.known("pose")), (K, has_intrinsics, data.known("K"))):
        for image, value in known.items():
            target[image], has[image] = value.value, value.role == "fixed"
    pose[:, :3, 3] /= units.world
    fixed_depth = [
        blocks & (constraint.depth is not None and constraint.depth.role == "fixed")
        for blocks, constraint in zip(data.known_blocks, data.constraints)
    ]
    device = images.size.device
    return GivenCameras(
        torch.from_numpy(pose).to(device),
        torch.from_numpy(has_pose).to(device),
        torch.from_numpy(K).to(device),
        torch.from_numpy(has_intrinsics).to(device),
        torch.cat(fixed_depth).to(device),
        torch.tensor(data.scaled, device=device),
        data.fixed_scale,
    )


def _priors(data: ComponentInput, units: _Units, images: ImageGeometry) -> PriorObjective | None:
    given = _given(data, units, images).to(images.depth.dtype)
    weights = {
        name: [known[i].weight if i in known and known[i].role == "prior" else 0.0 for i in range(data.count)]
        for name, known in ((name, data.known(name)) for name in ("K", "pose", "depth"))
    }
    if not any(any(values) for values in weights.values()):
        return None
    K, pose, depth = (images.depth.new_tensor(weights[name]) for name in ("K", "pose", "depth"))
    owner = images.block_image
    target = images.depth * images.median_depth[owner]
    known_blocks = torch.cat(list(data.known_blocks)).to(owner.device)
    return PriorObjective(given.K, K, given.pose, pose, target, depth[owner] * known_blocks)


# --- running ---


def _run_stages(
    scene: SceneParameters,
    problem: SparseProblem,
    priors: PriorObjective | None,
    config: SparseConfig,
    on_stage: OnStage | None,
) -> list[tuple[str, StageResult]]:
    """The stages that have steps, in order."""
    fallback = None
    if problem.fallback is not None:
        fallback = FallbackObjective(problem.fallback, config.fallback_loss, config.fallback_weight)
    results: list[tuple[str, StageResult]] = []
    steps = max(1, config.coarse.niter + config.fine.niter)
    done = 0
    for name, stage in (("coarse", config.coarse), ("fine", config.fine)):
        if not stage.niter:
            continue
        objective: Objective = (
            CoarseObjective.at(problem, scene(), stage.loss) if name == "coarse" else FineObjective(problem, stage.loss)
        )
        result = run_stage(
            scene,
            total(objective, fallback, priors),
            moving_parameters(scene, config, fine=name == "fine"),
            lr=stage.lr,
            niter=stage.niter,
            schedule=config.schedule,
            on_step=_progress(on_stage, name, done / steps, stage.niter / steps),
        )
        results.append((name, result))
        done += stage.niter
    return results


def moving_parameters(scene: SceneParameters, config: SparseConfig, *, fine: bool) -> list[nn.Parameter]:
    """What a stage optimises."""
    parameters = [scene.quaternion, scene.translation, scene.log_scale]
    if fine:
        parameters += [scene.log_focal] * config.opt_focal + [scene.center] * config.opt_pp
        parameters += [scene.core] * config.opt_depth
    return parameters


def _progress(on_stage: OnStage | None, name: str, start: float, share: float) -> Callable[[float], None] | None:
    return None if on_stage is None else lambda done: on_stage(start + share * done, name)


@torch.no_grad()
def _present(scene: SceneParameters) -> SceneState:
    exact = scene.in_float64()
    exact.load_state_dict(scene.state_dict())
    return exact()


# --- back to the world ---


def _result(data: ComponentInput, state: SceneState, units: _Units, losses: Mapping[str, float]) -> ComponentResult:
    pose, K, depth, slope = (
        value.double().cpu().numpy() for value in (state.world_from_cam, state.K, state.depth, state.slope)
    )
    known = data.known("pose")
    factor = units.world
    counts = np.cumsum([len(view.grid) for view in data.views])[:-1]
    if not data.fixed_scale:
        # The network's unit, as most images see it.
        predicted = [view.core_depth.double().cpu().numpy() for view in data.views]
        grown = [np.median(now / before) for now, before in zip(np.split(depth, counts), predicted)]
        factor = 1 / float(np.median(grown))
    pose = _placed(pose, factor, units.world, next(iter(known.values())).value if known else None, list(known)[:1])
    for image, value in known.items():
        if value.role == "fixed":
            pose[image] = value.value
    for image, value in data.known("K").items():
        if value.role == "fixed":
            K[image] = value.value
    return ComponentResult(pose, K, np.split(depth * factor, counts), slope, losses)


def _placed(
    pose: np.ndarray, factor: float, world: float, known: np.ndarray | None, known_image: list[int]
) -> np.ndarray:
    """Poses in the world's unit and frame, from internal ones."""
    pose = pose.copy()
    if known is None:
        pose = np.linalg.inv(pose[0]) @ pose
        pose[:, :3, 3] *= factor
        return pose
    # The internal frame is that of the known poses; only the unit may differ, about the first of them.
    center = pose[known_image[0], :3, 3].copy()
    pose[:, :3, 3] = center * world + factor * (pose[:, :3, 3] - center)
    return pose
