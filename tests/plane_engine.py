"""Views of a tilted plane, computed in closed form: a stand-in for the scene engine, exact and instant."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def camera(yaw: float, centre: tuple[float, float, float]) -> Tensor:
    """(4, 4) world_from_cam: turned about the vertical axis by `yaw` radians."""
    c, s = math.cos(yaw), math.sin(yaw)
    x, y, z = centre
    return torch.tensor([[c, 0, s, x], [0, 1, 0, y], [-s, 0, c, z], [0, 0, 0, 1.0]])


FIRST_POSE = camera(0.3, (0.2, -0.1, -0.3))
NORMAL, DISTANCE = torch.tensor([0.2, -0.1, 1.0]), 4.0


class PlaneEngine:
    """`SceneEngine` for the plane `NORMAL . X = DISTANCE`; the image shows world coordinates."""

    def __init__(self, *options):
        self.calls = 0

    def pairs(self, seed, batch_size, *, height, width, overlap=(0, 1), n_corres=1, difficulty=1.0):
        self.calls += 1
        generator = torch.Generator().manual_seed(seed % 2**62)
        draws = torch.rand(batch_size, 3, generator=generator) - 0.5
        second = [camera(0.3 + 0.4 * a, (0.2 + b, -0.1 + c, -0.3)) for a, b, c in draws.tolist()]
        views = [plane_view(pose, height, width) for pose in (FIRST_POSE.expand(batch_size, 4, 4), torch.stack(second))]
        xy = torch.randint(0, min(height, width), (batch_size, n_corres, 2), generator=generator)
        for view in views:  # not true matches; enough to run a loss on
            view["corres"], view["valid_corres"] = xy, torch.ones(batch_size, n_corres, dtype=torch.bool)
        return views[0], views[1]


def plane_view(pose: Tensor, height: int, width: int) -> dict:
    """View of the plane from (B, 4, 4) world_from_cam."""
    rows = len(pose)
    K = torch.tensor([[0.8 * width, 0, width / 2], [0, 0.8 * width, height / 2], [0, 0, 1.0]])
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rays = torch.stack([xs, ys, torch.ones_like(xs)], -1).float() @ torch.linalg.inv(K).T
    directions = torch.einsum("bij,hwj->bhwi", pose[:, :3, :3], rays)
    centre = pose[:, None, None, :3, 3]
    depth = (DISTANCE - centre @ NORMAL) / (directions @ NORMAL)
    points = centre + depth[..., None] * directions
    return {
        "img": (points / 10).permute(0, 3, 1, 2).contiguous(),
        "true_shape": torch.tensor([[height, width]]).expand(rows, 2),
        "depthmap": depth,
        "camera_pose": pose.contiguous(),
        "camera_intrinsics": K.expand(rows, 3, 3),
        "pts3d": points,
        "valid_mask": torch.ones(rows, height, width, dtype=torch.bool),
        "sky_mask": torch.zeros(rows, height, width, dtype=torch.bool),
        "is_metric_scale": torch.ones(rows, dtype=torch.bool),
        "instance": [str(i) for i in range(rows)],
        "label": ["plane"] * rows,
    }
