"""Where a dense alignment starts: from a spanning tree of the pairs, or from known cameras.

The tree is grown along the surest pairs; each new image is attached by a similarity between two predictions
of the image it shares with the tree (DUSt3R, section 3.4).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dust3r.cloud_opt.commons import Edge
from dust3r.cloud_opt.pnp import fast_pnp, fit_focal
from dust3r.cloud_opt.registration import (
    Similarity,
    align_multiple_poses,
    move_points,
    move_pose,
    registration_error,
    rigid_points_registration,
    sRT_to_4x4,
)
from dust3r.post_process import estimate_focal_knowing_depth
from dust3r.utils.geometry import geotrf, inv

if TYPE_CHECKING:
    from dust3r.cloud_opt.base_opt import BasePCOptimizer

__all__ = [
    "align_multiple_poses",
    "estimate_focal",
    "fast_pnp",
    "init_from_known_poses",
    "init_from_pts3d",
    "init_minimum_spanning_tree",
    "maximum_spanning_forest",
    "rigid_points_registration",
    "sRT_to_4x4",
]

logger = logging.getLogger(__name__)

_FOCAL_RANGE = (0.5, 3.5)  # in units of the focal that sees the longer side under 60 degrees
_MIN_CONFIDENT_PIXELS = 16
_MAX_DISAGREEMENT = 0.5  # of both directions of a pair: good predictions stay below 0.1, noise is near 1
_JUDGED_PIXELS = 4096  # of each image: enough to tell agreement from noise
_DISTRUST = 1e-3  # factor on the score of a pair that contradicts itself
_NEAREST_SHARE = 1e-3  # depths behind or at the camera become this share of the median depth


def estimate_focal(pts3d_i: Tensor, pp: Tensor | None = None) -> float:
    """Focal in pixels of one (H, W, 3) point map in its own camera frame (Weiszfeld).

    Args:
        pts3d_i: The point map.
        pp: (2,) principal point in pixels; default (W / 2, H / 2).
    """
    height, width, _ = pts3d_i.shape
    center = pts3d_i.new_tensor([width / 2, height / 2]) if pp is None else pp
    low, high = _FOCAL_RANGE
    focal = estimate_focal_knowing_depth(pts3d_i[None], center[None], "weiszfeld", low, high)
    return float(focal)


@dataclass(eq=False)
class _Placement:
    """Images placed so far: world points (H, W, 3) and, where an edge told it, world_from_cam."""

    points: list[Tensor | None]
    poses: list[Tensor | None]


@torch.no_grad()
def init_minimum_spanning_tree(scene: BasePCOptimizer, niter_PnP: int = 10) -> None:
    """Set all parameters of `scene` from its pairwise predictions.

    Args:
        scene: The aligner. Fixed focals, poses, principal points and depths are used and kept.
        niter_PnP: RANSAC rounds for images whose pose no tree edge gives.
    """
    ranking = rank_edges(scene)
    placement = _grow_forest(scene, ranking)
    points = [map_ for map_ in placement.points if map_ is not None]
    focals = _own_focals(scene, ranking)
    poses: list[Tensor] = []
    for image in range(scene.n_imgs):
        pose = placement.poses[image]
        if pose is None or focals[image] is None:
            focal, found = _resect(scene, image, points[image], focals[image], niter_PnP)
            focals[image] = focal
            pose = found if pose is None else pose
        poses.append(pose)
    init_from_pts3d(scene, points, [float(focal or 0) for focal in focals], poses)


def maximum_spanning_forest(edges: Sequence[Edge], scores: Sequence[float], n_images: int) -> list[int]:
    """Positions of the edges of a maximum spanning forest, best first (Kruskal 1956)."""
    group = list(range(n_images))

    def find(image: int) -> int:
        while group[image] != image:
            group[image] = image = group[group[image]]
        return image

    chosen = []
    for e in sorted(range(len(edges)), key=lambda e: -scores[e]):
        first, second = (find(image) for image in edges[e])
        if first != second:
            group[first] = second
            chosen.append(e)
    return chosen


@dataclass(frozen=True)
class EdgeRanking:
    """How far to rely on each edge.

    Attributes:
        scores: Mean confidence of image i times that of j, lowered for edges not trusted.
        trusted: Whether the edge has usable predictions that the pair's other direction does not contradict.
    """

    scores: list[float]
    trusted: list[bool]


def rank_edges(scene: BasePCOptimizer) -> EdgeRanking:
    """Rank edges by confidence, those that the pair's other direction contradicts last.

    An overconfident prediction of unrelated images would otherwise become a branch of the tree, or its root.
    """
    position = {edge: e for e, edge in enumerate(scene.edges)}
    trusted = [True] * scene.n_edges
    for e, (i, j) in enumerate(scene.edges):
        reverse = position.get((j, i))
        if reverse is None:
            trusted[e] = bool(scene.edge_conf(e, 0).any() and scene.edge_conf(e, 1).any())
        elif i < j:  # one judgement for both directions
            trusted[e] = _directions_disagree(scene, e, reverse) <= _MAX_DISAGREEMENT
            trusted[reverse] = trusted[e]
    scores = scene.edge_scores().tolist()
    return EdgeRanking([s if good else _DISTRUST * s for s, good in zip(scores, trusted)], trusted)


def _directions_disagree(scene: BasePCOptimizer, forward: int, backward: int) -> float:
    """How far the two directions of a pair are from being one cloud (see `registration_error`)."""
    clouds: list[tuple[Tensor, Tensor, Tensor]] = []
    for side in (0, 1):
        source, target = scene.edge_points(forward, side), scene.edge_points(backward, 1 - side)
        conf = scene.edge_conf(forward, side) * scene.edge_conf(backward, 1 - side)
        step = -(-conf.numel() // _JUDGED_PIXELS)
        clouds.append((source.reshape(-1, 3)[::step], target.reshape(-1, 3)[::step], conf.flatten()[::step]))
    return registration_error(*(torch.cat(parts) for parts in zip(*clouds)))


def _grow_forest(scene: BasePCOptimizer, ranking: EdgeRanking) -> _Placement:
    """Place the point maps of all images, one frame per connected component."""
    queue = maximum_spanning_forest(scene.edges, ranking.scores, scene.n_imgs)
    components = scene.n_imgs - len(queue)
    if components > 1:
        logger.warning("The pairs form %d separate groups; each is placed in its own frame.", components)
    placement = _Placement([None] * scene.n_imgs, [None] * scene.n_imgs)
    while queue:
        attachable = (e for e in queue if any(placement.points[image] is not None for image in scene.edges[e]))
        e = next(attachable, None)
        if e is None:
            e = queue[0]
            _plant(scene, placement, e)
        else:
            _attach(scene, placement, e, tells_pose=ranking.trusted[e])
        queue.remove(e)
    return placement


def _plant(scene: BasePCOptimizer, placement: _Placement, e: int) -> None:
    i, j = scene.edges[e]
    placement.points[i], placement.points[j] = scene.edge_points(e, 0), scene.edge_points(e, 1)
    placement.poses[i] = torch.eye(4, device=scene.device)


def _attach(scene: BasePCOptimizer, placement: _Placement, e: int, *, tells_pose: bool) -> None:
    """Move both maps of an edge by the similarity that its shared image gives."""
    i, j = scene.edges[e]
    side, image, other = (0, i, j) if placement.points[i] is not None else (1, j, i)
    target = placement.points[image]
    if target is None:
        raise ValueError(f"edge {i}-{j} touches no placed image: attach edges along the spanning tree")
    similarity = rigid_points_registration(scene.edge_points(e, side), target, scene.edge_conf(e, side))
    placement.points[other] = move_points(similarity, scene.edge_points(e, 1 - side))
    if tells_pose and placement.poses[i] is None:  # the predictions of an edge are in the frame of its first image
        placement.poses[i] = sRT_to_4x4(1.0, similarity[1], similarity[2], scene.device)


def _own_focals(scene: BasePCOptimizer, ranking: EdgeRanking) -> list[float | None]:
    """Given focals, else those of the surest edge in whose frame an image is; None without such an edge."""
    focals: list[float | None] = [None] * scene.n_imgs
    known, values = scene.get_known_focal_mask(), scene.get_focals().mean(dim=1)
    centers = scene.get_principal_points()
    for e in sorted(range(scene.n_edges), key=lambda e: -ranking.scores[e]):
        i = scene.edges[e][0]
        if focals[i] is None and not known[i]:
            focal = estimate_focal(scene.edge_points(e, 0), centers[i])
            focals[i] = focal if math.isfinite(focal) else None
    return [float(values[i]) if known[i] else focal for i, focal in enumerate(focals)]


def _resect(
    scene: BasePCOptimizer, image: int, points: Tensor, focal: float | None, rounds: int
) -> tuple[float, Tensor]:
    """Focal and pose of an image from its world points; a failure is recorded and gives the identity."""
    mask = confident_pixels(scene.im_conf[image], scene.min_conf_thr)
    center = scene.get_principal_points()[image]
    solution = fast_pnp(points, focal, mask, scene.device, center, rounds)
    if solution is not None and focal is None:
        return fit_focal(points, mask, solution[1], center, scene.device)
    if solution is not None:
        return solution
    scene.problems[image] = "no camera pose explains its points (PnP failed); it starts at the origin"
    logger.warning("Image %d: %s.", image, scene.problems[image])
    return focal or float(max(scene.imshapes[image])), torch.eye(4, device=scene.device)


def confident_pixels(conf: Tensor, threshold: float) -> Tensor:
    """Pixels above a confidence, or the surer half if those are too few to locate a camera by."""
    mask = conf > threshold
    return mask if int(mask.sum()) >= _MIN_CONFIDENT_PIXELS else (conf >= conf.median()) & (conf > 0)


@torch.no_grad()
def init_from_pts3d(
    scene: BasePCOptimizer, pts3d: Sequence[Tensor], im_focals: Sequence[float], im_poses: Sequence[Tensor]
) -> None:
    """Set all parameters of `scene` from world points and cameras.

    Args:
        scene: The aligner; what was fixed before stays as it is and defines the frame and the scale.
        pts3d: (H, W, 3) world points per image.
        im_focals: Focal in pixels per image.
        im_poses: (4, 4) world_from_cam per image.
    """
    frame = _common_frame(scene, pts3d, im_poses)
    points = [move_points(frame, map_) for map_ in pts3d]
    for image, pose in enumerate(im_poses):
        scene._set_pose(scene.im_poses, image, move_pose(frame, pose))
        scene._set_focal(image, im_focals[image])
    cameras = inv(scene.get_im_poses())
    for image, map_ in enumerate(points):
        scene._set_depthmap(image, positive_depth(geotrf(cameras[image], map_)[..., 2]))
    for e, (i, _) in enumerate(scene.edges):
        scale, R, T = rigid_points_registration(scene.edge_points(e, 0), points[i], scene.edge_conf(e, 0))
        scene._set_pose(scene.pw_poses, e, R, T, scale)


def positive_depth(depth: Tensor) -> Tensor:
    """Depth with what is behind or at the camera moved closely in front of it."""
    front = depth[depth > 0]
    nearest = _NEAREST_SHARE * front.median() if len(front) else depth.new_tensor(1.0)
    return depth.clamp(min=float(nearest))


def _common_frame(scene: BasePCOptimizer, points: Sequence[Tensor], poses: Sequence[Tensor]) -> Similarity:
    """The similarity from the frame of the tree to that of the fixed cameras, or to the base scale."""
    known = scene.get_known_pose_mask().nonzero().flatten().tolist()
    fixed = scene.get_im_poses()
    if len(known) >= 2:
        return align_multiple_poses(torch.stack([poses[i] for i in known]), fixed[known])
    scale = _scene_scale(scene, points, poses)
    R, T = torch.eye(3, device=scene.device), torch.zeros(3, device=scene.device)
    if known:
        source, target = poses[known[0]], fixed[known[0]]
        R = target[:3, :3] @ source[:3, :3].T
        T = target[:3, 3] - scale * (R @ source[:3, 3])
    return scale, R, T


def _scene_scale(scene: BasePCOptimizer, points: Sequence[Tensor], poses: Sequence[Tensor]) -> Tensor:
    """The factor that gives fixed depths their size, or else the edges the geometric mean `base_scale`."""
    known = scene.get_known_depth_mask().nonzero().flatten().tolist()
    if known:
        depths = scene.get_depthmaps()
        ratios = [depths[i] / positive_depth(geotrf(inv(poses[i]), points[i])[..., 2]) for i in known]
        return torch.cat([ratio.flatten() for ratio in ratios]).median()
    edges = enumerate(scene.edges)
    scales = [
        rigid_points_registration(scene.edge_points(e, 0), points[i], scene.edge_conf(e, 0))[0] for e, (i, _) in edges
    ]
    return scene.config.base_scale / (scene._edge_share * torch.stack(scales).log()).sum().exp()


@torch.no_grad()
def init_from_known_poses(scene: BasePCOptimizer, niter_PnP: int = 10) -> None:
    """Set edge poses and depths of a scene whose poses and focals are all fixed.

    Each edge's own relative pose (PnP) is aligned with the known one, which gives the edge its scale; the
    depth of an image comes from its surest edge.

    Args:
        scene: The aligner.
        niter_PnP: RANSAC rounds per edge.

    Raises:
        ValueError: If a pose or a focal is not fixed.
    """
    for what, known in (("poses", scene.get_known_pose_mask()), ("focals", scene.get_known_focal_mask())):
        if not known.all():
            missing = (~known).nonzero().flatten().tolist()
            raise ValueError(
                f"init='known_poses' needs the {what} of all images, but images {missing} have none; preset "
                "them or use init='mst'."
            )
    best: dict[int, tuple[float, Tensor]] = {}
    for e, (i, j) in enumerate(scene.edges):
        relative, (scale, R, T) = _edge_from_known(scene, e, niter_PnP)
        scene._set_pose(scene.pw_poses, e, R, T, scale)
        in_j = geotrf(inv(relative), scene.edge_points(e, 1))
        for side, image, local in ((0, i, scene.edge_points(e, 0)), (1, j, in_j)):
            # A map in its own camera's frame is surer than the same one seen from elsewhere.
            score = float(scene.edge_conf(e, side).mean()) if side == 0 else 0.0
            if image not in best or score > best[image][0]:
                best[image] = score, scale * local[..., 2]
    for image, (_, depth) in best.items():
        scene._set_depthmap(image, positive_depth(depth))


def _edge_from_known(scene: BasePCOptimizer, e: int, rounds: int) -> tuple[Tensor, Similarity]:
    """Pose of image j in the edge's frame, and the similarity from that frame to the world."""
    i, j = scene.edges[e]
    known, identity = scene.get_im_poses(), torch.eye(4, device=scene.device)
    mask = confident_pixels(scene.im_conf[j], scene.min_conf_thr)
    focal, center = scene.get_focals()[j].mean(), scene.get_principal_points()[j]
    solution = fast_pnp(scene.edge_points(e, 1), focal, mask, scene.device, center, rounds)
    if solution is None:
        scene.problems.setdefault(j, f"PnP failed for pair {(i, j)}; the known relative pose is used unscaled")
        logger.warning("Image %d: %s.", j, scene.problems[j])
        return inv(known[i]) @ known[j], (known.new_tensor(1.0), known[i, :3, :3], known[i, :3, 3])
    poses = torch.stack([identity, solution[1]])
    return solution[1], align_multiple_poses(poses, known[[i, j]])
