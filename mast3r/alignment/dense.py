"""Alignment of whole pointmaps (DUSt3R)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dust3r.cloud_opt import global_aligner
from dust3r.image_pairs import Edge
from mast3r.alignment.problem import (
    NO_PAIR,
    WORLD,
    AlignedView,
    Alignment,
    AlignmentProblem,
    OnShare,
    components,
    verified_edges,
)
from multiview.pointmaps import Pointmap
from multiview.poses import Pose
from multiview.similarity import nearest_rotation
from multiview.views import Known, ViewConstraints

_STEPS = 300
_FLOATS = 40  # values a pixel and pair that are held, gradients included


def align_densely(problem: AlignmentProblem, *, on_share: OnShare | None = None) -> Alignment:
    """Align whole pointmaps (DUSt3R), one connected component after the other.

    Intrinsics and poses may be fixed and pixels masked; priors and depth are not supported.

    Args:
        problem: What is to be aligned.
        on_share: Told the share that is done.

    Raises:
        ValueError: If the constraints are not supported, or the pairs need more than `max_memory`.
    """
    _check_dense(problem)
    edges = verified_edges(problem)
    views = [AlignedView(NO_PAIR) for _ in problem.inputs]
    groups = components(len(problem.inputs), edges)
    for number, group in enumerate(groups):
        inside = [edge for edge in edges if edge[0] in group]
        for image, view in zip(group, _dense_component(problem, group, inside, number)):
            views[image] = view
        if on_share is not None:
            on_share((number + 1) / len(groups))
    return Alignment(tuple(views))


def _check_dense(problem: AlignmentProblem) -> None:
    for number, known in enumerate(problem.constraints):
        prior = any(value is not None and value.role == "prior" for value in (known.K, known.pose))
        if prior or known.depth is not None:
            raise ValueError(
                f"Dense alignment takes fixed intrinsics, fixed poses and masks; image {number} has a prior or "
                "depth, use alignment='sparse'."
            )
    pixels = sum(image.pixels.shape[0] * image.pixels.shape[1] for image in problem.inputs) / len(problem.inputs)
    needed = int(len(problem.edges) * 2 * pixels * _FLOATS)
    if problem.max_memory is not None and needed > problem.max_memory:
        raise ValueError(
            f"Dense alignment of {len(problem.edges)} pairs needs about {needed / 1e9:.1f} GB, more than max_memory; "
            "use alignment='sparse' or a smaller scene_graph."
        )


def _dense_component(
    problem: AlignmentProblem, group: Sequence[int], edges: Sequence[Edge], number: int
) -> list[AlignedView]:
    place = {image: k for k, image in enumerate(group)}
    scene = global_aligner(_dense_input(problem, edges, place), problem.device or torch.device("cpu"), verbose=False)
    known = [problem.constraints[image] for image in group]
    intrinsics = {k: _float32(c.K) for k, c in enumerate(known) if c.K is not None}
    poses = {k: _float32(c.pose) for k, c in enumerate(known) if c.pose is not None}
    if intrinsics:
        scene.preset_intrinsics(list(intrinsics.values()), list(intrinsics))
    if poses:
        scene.preset_pose(list(poses.values()), list(poses))
    everything = len(intrinsics) == len(poses) == len(group)
    scene.compute_global_alignment(init="known_poses" if everything else "mst", niter=_STEPS)
    scene.clean_pointcloud()
    # The optimiser fixes the mean scale of the pairs; back to the network's unit, unless poses set the unit.
    factor = 1.0 if poses else 1.0 / float(scene.get_pw_scale().detach().log().mean().exp())
    return _dense_views(scene, known, number, factor)


def _dense_views(scene: Any, known: Sequence[ViewConstraints], component: int, factor: float) -> list[AlignedView]:
    """Results of an aligned scene, in another unit; images that it could not locate have a reason instead."""
    K, poses = (values.detach().double().cpu().numpy() for values in (scene.get_intrinsics(), scene.get_im_poses()))
    poses[:, :3, 3] *= factor
    views = []
    for k, (points, confidence) in enumerate(zip(scene.get_pts3d(), scene.im_conf)):
        if k in scene.problems:
            views.append(AlignedView(scene.problems[k]))
            continue
        pointmap = Pointmap(factor * points.detach().cpu().numpy(), confidence.detach().cpu().numpy(), WORLD)
        fixed = known[k]
        views.append(
            AlignedView(
                "",
                K[k] if fixed.K is None else fixed.K.value,
                Pose(_rigid(poses[k]) if fixed.pose is None else fixed.pose.value),
                component,
                pointmap,
            )
        )
    return views


def _dense_input(problem: AlignmentProblem, edges: Sequence[Edge], place: Mapping[int, int]) -> dict[str, Any]:
    """Both orders of all pairs in the form of `dust3r.inference.inference`."""
    view1: dict[str, list] = {"idx": []}
    view2: dict[str, list] = {"idx": []}
    pred1: dict[str, list] = {"pts3d": [], "conf": []}
    pred2: dict[str, list] = {"pts3d_in_other_view": [], "conf": []}
    for i, j in edges:
        entry = problem.pair((i, j))
        for first, second, maps in ((i, j, entry.forward), (j, i, entry.backward)):
            view1["idx"].append(place[first])
            view2["idx"].append(place[second])
            pred1["pts3d"].append(torch.from_numpy(maps.points_first))
            pred1["conf"].append(_masked(maps.confidence_first, problem.constraints[first].mask))
            pred2["pts3d_in_other_view"].append(torch.from_numpy(maps.points_second))
            pred2["conf"].append(_masked(maps.confidence_second, problem.constraints[second].mask))
    return {"view1": view1, "view2": view2, "pred1": pred1, "pred2": pred2}


def _masked(confidence: np.ndarray, mask: np.ndarray | None) -> torch.Tensor:
    return torch.from_numpy(confidence if mask is None else np.where(mask, confidence, 0).astype(np.float32))


def _float32(known: Known) -> torch.Tensor:
    return torch.from_numpy(known.value).float()


def _rigid(matrix: np.ndarray) -> np.ndarray:
    """The pose with an exact rotation: float32 leaves it a little off."""
    clean = np.eye(4)
    clean[:3, :3], clean[:3, 3] = nearest_rotation(matrix[:3, :3]), matrix[:3, 3]
    return clean
