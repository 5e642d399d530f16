"""What the user knows roughly, as an objective."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mast3r.cloud_opt.parameters import SceneState

STRENGTH = 10.0
"""Cost of a deviation of 1 (100 %, a radian) at weight 1: a focal off by 10 % costs as much as it adds, at typical
depths and overlaps, to the reprojection errors."""


@dataclass(frozen=True, eq=False)
class PriorObjective:
    """Squared relative deviations from what is known, in units of the scene.

    Attributes:
        K: (N, 3, 3) intrinsics; any valid ones where the weight is 0.
        K_weight: (N,).
        pose: (N, 4, 4) world_from_cam.
        pose_weight: (N,).
        depth: (B,) depth of the anchors.
        depth_weight: (B,).
    """

    K: Tensor
    K_weight: Tensor
    pose: Tensor
    pose_weight: Tensor
    depth: Tensor
    depth_weight: Tensor

    def __call__(self, state: SceneState) -> Tensor:
        """The objective; a scene unit is the typical depth."""
        focal = self.K.diagonal(dim1=1, dim2=2)[:, :2]
        focal_error = (state.K.diagonal(dim1=1, dim2=2)[:, :2] / focal - 1).square().mean(dim=1)
        center_error = ((state.K[:, :2, 2] - self.K[:, :2, 2]) / focal).square().sum(dim=1)
        # Half the squared Frobenius distance of two rotations is the squared angle between them, if small.
        turn = (state.world_from_cam[:, :3, :3] - self.pose[:, :3, :3]).square().sum(dim=(1, 2)) / 2
        shift = (state.world_from_cam[:, :3, 3] - self.pose[:, :3, 3]).square().sum(dim=1)
        depth = (state.depth / self.depth - 1).square()
        cost = (self.K_weight * (focal_error + center_error)).sum() + (self.pose_weight * (turn + shift)).sum()
        images = len(self.K_weight)
        return STRENGTH / images * (cost + images * (self.depth_weight * depth).mean())
