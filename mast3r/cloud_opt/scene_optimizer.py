"""Alignment in the official call form: dictionaries of anchors in, cameras and depths out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from mast3r.cloud_opt.condense import Anchors, Correspondences, PairSlice, Points, make_pts3d
from mast3r.cloud_opt.config import DepthMode
from mast3r.cloud_opt.kinematics import Edge, KinematicTree
from mast3r.cloud_opt.objectives import CoarseObjective, FallbackObjective, FineObjective, Objective, total
from mast3r.cloud_opt.optimise import StageResult, run_stage
from mast3r.cloud_opt.parameters import (
    GivenCameras,
    ParameterOptions,
    SceneParameters,
    SceneState,
    StartValues,
    separate_start,
    shared_start,
)
from mast3r.cloud_opt.problem import AnchoredPair, Fallback, ImageGeometry, PixelAnchors, pack_problem
from mast3r.cloud_opt.utils.losses import GammaLoss, gamma_loss
from mast3r.cloud_opt.utils.schedules import cosine_schedule


@dataclass(frozen=True, eq=False)
class SceneEstimate:
    """Cameras and depth after a stage; indexable by the official names.

    Attributes:
        intrinsics: (N, 3, 3) in pixels.
        cam2w: (N, 4, 4) world_from_cam.
        depthmaps: (blocks,) depth of the anchors of each image.
        pts3d: (M, 3) points of the matched pixels of each image.
        loss: The objective.
    """

    intrinsics: Tensor
    cam2w: Tensor
    depthmaps: list[Tensor]
    pts3d: list[Tensor]
    loss: float

    def __getitem__(self, name: str) -> Any:
        """The attribute `name`."""
        if name not in self.__dataclass_fields__:
            raise KeyError(name)
        return getattr(self, name)


@dataclass(frozen=True, eq=False)
class SceneData:
    """What is aligned, see `mast3r.cloud_opt.condense.condense_data`.

    Attributes:
        imsizes: (N, 2) width and height.
        pps: (N, 2) principal points to start from.
        base_focals: (N,) focals that agree with the depths.
        core_depth: (blocks,) depth of the anchors of each image.
        anchors: Matched pixels of each image.
        corres: The matches.
        preds_21: Image 1 -> image 2 -> points of the matched pixels of image 2 in camera 1.
        mst: Root and (parent, child) edges of the kinematic tree.
        known: Image -> what is known of it: `intrinsics` (3, 3) and `depth` (blocks,) to start from, `cam2w`
            (4, 4) to keep.
        focal_weights: (N,) how much each image's focal counts for the shared one; None for all alike.
    """

    imsizes: Tensor
    pps: Tensor
    base_focals: Tensor
    core_depth: Sequence[Tensor]
    anchors: Anchors
    corres: Correspondences
    preds_21: Mapping[int, Mapping[int, Points]]
    mst: tuple[int, Sequence[Edge]]
    known: Mapping[int, Mapping[str, Any]]
    focal_weights: Tensor | None = None


@dataclass(frozen=True)
class SceneOptions:
    """How it is aligned.

    Attributes:
        lr1: Learning rate of the first stage: poses and scales, distances of 3D points.
        niter1: Its steps.
        loss1: Its cost of a distance.
        lr2: Learning rate of the second stage: also intrinsics and depth, reprojection errors.
        niter2: Its steps; 0 leaves it out.
        loss2: Its cost of a distance.
        lossd: Cost of a distance where the network's points stand in for matches.
        opt_pp: Refine principal points.
        opt_depth: Refine depth.
        schedule: Learning rate as a function of (share done, first, last rate).
        depth_mode: Whether refined depth adds to the image's scale or multiplies it.
        exp_depth: Refine the logarithm of the depth.
        shared_intrinsics: One focal and one relative principal point for all images.
        dtype: Precision.
        matching_conf_thr: Pairs whose best match is not above this take part through `preds_21` instead.
        loss_dust3r_w: Weight of those.
        verbose: Show progress.
    """

    lr1: float
    niter1: int
    loss1: GammaLoss
    lr2: float
    niter2: int
    loss2: GammaLoss
    lossd: GammaLoss
    opt_pp: bool
    opt_depth: bool
    schedule: Callable[[float, float, float], float]
    depth_mode: DepthMode
    exp_depth: bool
    shared_intrinsics: bool
    dtype: torch.dtype
    matching_conf_thr: float
    loss_dust3r_w: float
    verbose: bool

    def __post_init__(self) -> None:
        for name in ("loss1", "loss2", "lossd"):
            if not isinstance(getattr(self, name), GammaLoss):
                raise ValueError(f"{name} must be made by gamma_loss(...), got {getattr(self, name)!r}.")


def sparse_scene_optimizer(
    imgs: Sequence[str],
    subsample: int,
    imsizes: Tensor,
    pps: Tensor,
    base_focals: Tensor,
    core_depth: Sequence[Tensor],
    anchors: Anchors,
    corres: Correspondences,
    corres2d: Any,
    preds_21: Mapping[int, Mapping[int, Points]],
    canonical_paths: Any,
    mst: tuple[int, Sequence[Edge]],
    cache_path: Any = None,
    lr1: float = 0.07,
    niter1: int = 300,
    loss1: GammaLoss = gamma_loss(1.5),  # noqa: B008  # a frozen value
    lr2: float = 0.01,
    niter2: int = 300,
    loss2: GammaLoss = gamma_loss(0.5),  # noqa: B008
    lossd: GammaLoss = gamma_loss(1.1),  # noqa: B008
    opt_pp: bool = True,
    opt_depth: bool = True,
    schedule: Callable[[float, float, float], float] = cosine_schedule,
    depth_mode: DepthMode = "add",
    exp_depth: bool = False,
    lora_depth: bool = False,
    shared_intrinsics: bool = False,
    init: Mapping[str, Mapping[str, Any]] | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    matching_conf_thr: float = 5.0,
    loss_dust3r_w: float = 0.01,
    verbose: bool = True,
    dbg: Any = (),
    *,
    focal_weights: Tensor | None = None,
) -> tuple[Sequence[str], SceneEstimate, SceneEstimate | None]:
    """Align images in two stages (official form of `mast3r.cloud_opt.alignment.align_sparse`).

    `SceneData` and `SceneOptions` document the arguments; `init` tells what is known by image name. Computation
    happens where the inputs are; `subsample`, `corres2d`, `canonical_paths`, `cache_path`, `device` and `dbg` are
    accepted and not needed.

    Returns:
        The names, the state after the first stage and that after the second (None without steps).

    Raises:
        ValueError: If `lora_depth` is asked for or nothing connects the images.
    """
    if lora_depth:
        raise ValueError("lora_depth is not available: leave it False, anchors are refined one by one.")
    known = {place: (init or {}).get(name, {}) for place, name in enumerate(imgs)}
    data = SceneData(imsizes, pps, base_focals, core_depth, anchors, corres, preds_21, mst, known, focal_weights)
    rates = (lr1, niter1, loss1, lr2, niter2, loss2, lossd)
    forms = (opt_pp, opt_depth, schedule, depth_mode, exp_depth, shared_intrinsics, dtype)
    options = SceneOptions(*rates, *forms, matching_conf_thr, loss_dust3r_w, verbose)
    return imgs, *optimize_scene(data, options)


def optimize_scene(data: SceneData, options: SceneOptions) -> tuple[SceneEstimate, SceneEstimate | None]:
    """The state after the first stage and that after the second; None without steps."""
    images = _image_geometry(data, options.dtype)
    pairs, fallbacks = split_pairs(data.anchors, data.corres, data.preds_21, options.matching_conf_thr)
    problem = pack_problem(images, pairs, fallbacks)
    scene = _scene_parameters(data, options, images)
    fallback = None
    if problem.fallback is not None:
        fallback = FallbackObjective(problem.fallback, options.lossd, options.loss_dust3r_w, follow_scale=False)
    moving = [scene.quaternion, scene.translation, scene.log_scale]

    def run(name: str, objective: Objective, lr: float, niter: int) -> SceneEstimate:
        with tqdm(total=niter, disable=not options.verbose, desc=name, leave=False) as bar:
            result = run_stage(
                scene,
                total(objective, fallback),
                moving,
                lr=lr,
                niter=niter,
                schedule=options.schedule,
                on_step=lambda _: _advance(bar),
            )
        return _estimate(result, images, data.anchors, options.dtype)

    coarse = run("coarse", CoarseObjective.at(problem, scene(), options.loss1), options.lr1, options.niter1)
    if not options.niter2:
        return coarse, None
    moving += [scene.log_focal] + [scene.center] * options.opt_pp + [scene.core] * options.opt_depth
    return coarse, run("fine", FineObjective(problem, options.loss2), options.lr2, options.niter2)


def _advance(bar: tqdm) -> None:
    bar.update()


def _image_geometry(data: SceneData, dtype: torch.dtype) -> ImageGeometry:
    depth = [
        torch.as_tensor(data.known[i].get("depth", core), dtype=dtype).flatten()
        for i, core in enumerate(data.core_depth)
    ]
    return ImageGeometry.of(data.imsizes.to(depth[0]), data.base_focals.to(dtype), depth)


def _scene_parameters(data: SceneData, options: SceneOptions, images: ImageGeometry) -> SceneParameters:
    given = _given_cameras(images, data.known)
    root, edges = data.mst
    anchored = torch.nonzero(given.has_pose).flatten().tolist()
    return SceneParameters(
        images,
        KinematicTree(root, tuple(edges)).parents(len(images.size), anchored),
        _start(images, data, shared=options.shared_intrinsics),
        given=given,
        options=ParameterOptions(options.depth_mode, options.exp_depth),
    )


def split_pairs(
    anchors: Anchors,
    corres: Correspondences,
    preds_21: Mapping[int, Mapping[int, Points]],
    matching_conf_thr: float,
) -> tuple[list[AnchoredPair], list[Fallback]]:
    """Pairs with trusted matches, and what stands in for the others; each unordered pair counts once."""
    pairs, fallbacks = [], []
    seen: set[frozenset[int]] = set()
    for pair in corres.slices:
        edge = frozenset((pair.img1, pair.img2))
        if edge in seen:
            continue
        seen.add(edge)
        if len(pair.confs) and bool(pair.confs.max() > matching_conf_thr):
            pairs.append(_anchored(anchors, pair))
        else:
            fallbacks += _fallbacks(anchors, pair.img1, pair.img2, preds_21)
    return pairs, fallbacks


def _anchored(anchors: Anchors, pair: PairSlice) -> AnchoredPair:
    first, second = (_pixels(anchors[i], part) for i, part in ((pair.img1, pair.slice1), (pair.img2, pair.slice2)))
    return AnchoredPair(pair.img1, pair.img2, first, second, pair.confs)


def _pixels(anchor: tuple[Tensor, Tensor, Tensor], part: slice = slice(None)) -> PixelAnchors:
    pixels, index, offset = anchor
    return PixelAnchors(pixels[part, :2].to(offset), index[part], offset[part])


def _fallbacks(anchors: Anchors, img1: int, img2: int, preds_21: Mapping[int, Mapping[int, Points]]) -> list[Fallback]:
    result = []
    for i, j in ((img1, img2), (img2, img1)):
        points, confidence = preds_21[j][i]
        result.append(Fallback(i, j, _pixels(anchors[i]), points, confidence))
    return result


def _given_cameras(images: ImageGeometry, known: Mapping[int, Mapping[str, Any]]) -> GivenCameras:
    given = GivenCameras.none(images)
    pose, has_pose = given.pose.double(), given.has_pose.clone()
    for image, values in known.items():
        if "cam2w" in values:
            pose[image] = torch.as_tensor(np.asarray(values["cam2w"])).to(pose)
            has_pose[image] = True
    return GivenCameras(
        pose,
        has_pose,
        given.K.double(),
        given.has_intrinsics,
        given.has_depth,
        given.knows_scale,
        fixed_scale=int(has_pose.sum()) > 1,
    )


def _start(images: ImageGeometry, data: SceneData, *, shared: bool) -> StartValues:
    if shared:
        weights = data.focal_weights
        return shared_start(images, torch.ones_like(images.base_focal) if weights is None else weights.to(images.size))
    start = separate_start(images)
    focal, center = start.focal.clone(), data.pps.to(images.size) / images.size
    for image, values in data.known.items():
        if "intrinsics" in values:
            K = torch.as_tensor(np.asarray(values["intrinsics"])).to(images.size)
            focal[image], center[image] = K[0, 0], K[:2, 2] / images.size[image]
    return StartValues(focal, center, start.aspect)


def _estimate(result: StageResult, images: ImageGeometry, anchors: Anchors, dtype: torch.dtype) -> SceneEstimate:
    state: SceneState = result.state
    depth = list(state.depth.split(images.blocks))
    points = make_pts3d(
        {i: (uv, index, offset.to(state.depth)) for i, (uv, index, offset) in anchors.items()},
        state.K,
        state.world_from_cam,
        depth,
        base_focals=images.base_focal.to(state.depth),
    )
    return SceneEstimate(
        state.K.to(dtype),
        state.world_from_cam.to(dtype),
        [value.to(dtype) for value in depth],
        [value.to(dtype) for value in points],
        result.loss,
    )
