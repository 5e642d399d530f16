"""What the two stages of sparse alignment minimise (MASt3R-SfM, sections 4.2 and 4.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mast3r.cloud_opt.parameters import SceneState
from mast3r.cloud_opt.problem import FallbackRows, SparseProblem
from mast3r.cloud_opt.residuals import reprojection_cost, robust_distance_cost
from mast3r.cloud_opt.utils.losses import GammaLoss

Objective = Callable[[SceneState], Tensor]
"""From the present cameras and depth to a scalar."""


@dataclass(frozen=True, eq=False)
class CoarseObjective:
    """Mean distance between the two 3D points of each match.

    Intrinsics and the shape of the depth are frozen: points in their cameras are computed once, and a step only
    moves and scales them.

    Attributes:
        problem: The matches.
        loss: Cost of a distance in scene units.
        first: (C, 3, P) points of the first images at scale 1.
        second: (C, 3, P) points of the second images at scale 1.
    """

    problem: SparseProblem
    loss: GammaLoss
    first: Tensor
    second: Tensor

    @classmethod
    @torch.no_grad()
    def at(cls, problem: SparseProblem, state: SceneState, loss: GammaLoss) -> CoarseObjective:
        """With the intrinsics and depth of `state`."""
        rows = problem.matches
        first = state.local_points(rows.first) / state.scale[rows.first.image][:, None, None]
        second = state.local_points(rows.second) / state.scale[rows.second.image][:, None, None]
        return cls(problem, loss, first, second)

    def __call__(self, state: SceneState) -> Tensor:
        """The objective."""
        rows = self.problem.matches
        i, j = self.problem.pairs.unbind(dim=1)
        linear = state.world_from_cam[:, :3, :3] * state.scale[:, None, None]
        shift = (state.world_from_cam[i, :3, 3:] - state.world_from_cam[j, :3, 3:]).index_select(0, rows.pair)
        first = torch.baddbmm(shift, linear[i].index_select(0, rows.pair), self.first)
        residual = torch.baddbmm(first, linear[j].index_select(0, rows.pair), self.second, alpha=-1)
        return robust_distance_cost(residual, rows.weight, self.loss) / rows.total


@dataclass(frozen=True, eq=False)
class FineObjective:
    """Mean reprojection error in pixels of the matches, in both directions.

    Attributes:
        problem: The matches.
        loss: Cost of a distance in pixels.
    """

    problem: SparseProblem
    loss: GammaLoss

    def __call__(self, state: SceneState) -> Tensor:
        """The objective."""
        rows = self.problem.matches
        i, j = self.problem.pairs.unbind(dim=1)
        cost = state.depth.new_zeros(())
        for (source, target), (a, b) in zip(((i, j), (j, i)), ((rows.first, rows.second), (rows.second, rows.first))):
            linear, shift = _pixel_transfer(state, source, target)
            ray = torch.bmm(linear.index_select(0, rows.pair), a.pixel)
            projected = torch.addcmul(shift.index_select(0, rows.pair), ray, state.pixel_depth(a)[:, None])
            cost = cost + reprojection_cost(projected, b.pixel[:, :2], rows.weight, self.loss)
        return cost / (2 * rows.total)


@dataclass(frozen=True, eq=False)
class FallbackObjective:
    """Mean distance between points of an image and the network's points for the same pixels in another camera.

    Attributes:
        rows: The points.
        loss: Cost of a distance in scene units.
        weight: Factor on the mean.
        follow_scale: Whether predictions have the scale of the image in whose camera they are; the official code
            leaves them at the network's.
    """

    rows: FallbackRows
    loss: GammaLoss
    weight: float
    follow_scale: bool = True

    def __call__(self, state: SceneState) -> Tensor:
        """The objective."""
        rows = self.rows
        pose = state.world_from_cam[rows.other]
        scale = state.scale[rows.other][:, None, None] if self.follow_scale else 1.0
        predicted = torch.baddbmm(pose[:, :3, 3:], pose[:, :3, :3] * scale, rows.points)
        residual = state.world_points(rows.pixels) - predicted
        return self.weight * robust_distance_cost(residual, rows.weight, self.loss) / rows.total


def total(*objectives: Objective | None) -> Objective:
    """The sum of those that are there."""
    present = [objective for objective in objectives if objective is not None]
    return lambda state: torch.stack([objective(state) for objective in present]).sum()


def _pixel_transfer(state: SceneState, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """For each pair the (3, 3) and (3, 1) with which a pixel and its depth make a pixel of the other image.

    A point at depth d behind the homogeneous pixel p of the source projects to `linear @ p * d + shift`.
    """
    to_ray = torch.linalg.inv_ex(state.K).inverse
    R, t = state.world_from_cam[:, :3, :3], state.world_from_cam[:, :3, 3:]
    project = state.K[target] @ R[target].transpose(1, 2)
    return project @ (R[source] @ to_ray[source]), project @ (t[source] - t[target])
