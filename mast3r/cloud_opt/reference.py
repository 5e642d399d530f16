"""The objectives of sparse alignment pair by pair, as the paper writes them: what the fast ones are held to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mast3r.cloud_opt.parameters import SceneState
from mast3r.cloud_opt.problem import AnchoredPair, ImageGeometry, PixelAnchors
from mast3r.cloud_opt.residuals import MAX_PIXEL, MIN_DEPTH, MIN_PIXEL
from mast3r.cloud_opt.utils.losses import GammaLoss


def plain_coarse(state: SceneState, images: ImageGeometry, pairs: Sequence[AnchoredPair], loss: GammaLoss) -> Tensor:
    """Mean distance between the two 3D points of each match; intrinsics and depth carry gradients too."""
    cost, weight = [], []
    for pair in pairs:
        first = world_points(state, images, pair.i, pair.first)
        second = world_points(state, images, pair.j, pair.second)
        cost.append((pair.weight * loss(first, second)).sum())
        weight.append(pair.weight.sum())
    return torch.stack(cost).sum() / torch.stack(weight).sum()


def plain_fine(state: SceneState, images: ImageGeometry, pairs: Sequence[AnchoredPair], loss: GammaLoss) -> Tensor:
    """Mean reprojection error of the matches in both directions."""
    cost, weight = [], []
    for pair in pairs:
        for (a, source), (b, target) in (
            ((pair.i, pair.first), (pair.j, pair.second)),
            ((pair.j, pair.second), (pair.i, pair.first)),
        ):
            pixels = project(state, b, world_points(state, images, a, source))
            cost.append((pair.weight * loss(pixels, target.xy.to(pixels))).sum())
            weight.append(pair.weight.sum())
    return torch.stack(cost).sum() / torch.stack(weight).sum()


def world_points(state: SceneState, images: ImageGeometry, image: int, pixels: PixelAnchors) -> Tensor:
    """(M, 3) world points of anchored pixels."""
    start = images.first_block[image]
    core = state.depth[start : start + images.blocks[image]]
    depth = core[pixels.anchor] * (1 + (pixels.offset.to(core) - 1) * state.slope[image])
    xy = pixels.xy.to(core)
    rays = torch.cat([xy, torch.ones_like(xy[:, :1])], dim=1) @ torch.linalg.inv(state.K[image]).T
    pose = state.world_from_cam[image]
    return (rays * depth[:, None]) @ pose[:3, :3].T + pose[:3, 3]


def project(state: SceneState, image: int, points: Tensor) -> Tensor:
    """(M, 2) pixels of world points, cut off as the objectives do."""
    cam_from_world = torch.linalg.inv(state.world_from_cam[image])
    local = points @ cam_from_world[:3, :3].T + cam_from_world[:3, 3]
    pixels = local @ state.K[image].T
    return (pixels[:, :2] / pixels[:, 2:].clamp(min=MIN_DEPTH)).clamp(MIN_PIXEL, MAX_PIXEL)
