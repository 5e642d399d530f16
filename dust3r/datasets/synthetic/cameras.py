"""Cameras of the scene engine: intrinsics, look-at poses, and rays."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dust3r.datasets.synthetic.rng import Rng


@dataclass(frozen=True)
class Cameras:
    """N pinhole cameras.

    Attributes:
        K: (N, 3, 3) pixels, pixel centres at integers.
        world_from_cam: (N, 4, 4), OpenCV axes, metres.
    """

    K: Tensor
    world_from_cam: Tensor

    def to(self, device: torch.device) -> Cameras:
        """The same cameras on another device."""
        return Cameras(self.K.to(device, non_blocking=True), self.world_from_cam.to(device, non_blocking=True))

    def select(self, index: Tensor) -> Cameras:
        """Cameras at the given positions."""
        return Cameras(self.K[index], self.world_from_cam[index])

    @property
    def centre(self) -> Tensor:
        """(N, 3) camera centres."""
        return self.world_from_cam[:, :3, 3]


def look_at(eye: Tensor, target: Tensor, roll: Tensor) -> Tensor:
    """World-from-camera matrices (N, 4, 4) at `eye` (N, 3) looking at `target`, rolled by `roll` (N,) radians."""
    forward = torch.nn.functional.normalize(target - eye, dim=-1)
    up = torch.tensor([0.0, 0.0, 1.0]).expand_as(forward)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up) + torch.tensor([1e-6, 0, 0]), dim=-1)
    down = torch.linalg.cross(forward, right)
    c, s = roll.cos()[:, None], roll.sin()[:, None]
    pose = torch.eye(4).repeat(len(eye), 1, 1)
    pose[:, :3, 0], pose[:, :3, 1] = c * right + s * down, c * down - s * right
    pose[:, :3, 2], pose[:, :3, 3] = forward, eye
    return pose


def draw_intrinsics(rng: Rng, fov_degrees: Tensor, height: int, width: int) -> Tensor:
    """Intrinsics (N, 3, 3) with fields of view (N,) along the longer side, principal point near the centre."""
    count = len(fov_degrees)
    focal = 0.5 * max(height, width) / torch.tan(torch.deg2rad(fov_degrees) / 2)
    K = torch.zeros(count, 3, 3)
    K[:, 0, 0], K[:, 1, 1], K[:, 2, 2] = focal, focal * rng.uniform(0.99, 1.01, count), 1
    K[:, 0, 2] = (width - 1) / 2 + rng.normal(0.01, count) * width
    K[:, 1, 2] = (height - 1) / 2 + rng.normal(0.01, count) * height
    return K


def ray_directions(cameras: Cameras, height: int, width: int) -> Tensor:
    """World directions (N, 3, H * W) with unit camera depth, so that the ray parameter is the depth."""
    y, x = torch.meshgrid(
        torch.arange(height, device=cameras.K.device),
        torch.arange(width, device=cameras.K.device),
        indexing="ij",
    )
    K = cameras.K
    u = (x.flatten() - K[:, 0, 2, None]) / K[:, 0, 0, None]
    v = (y.flatten() - K[:, 1, 2, None]) / K[:, 1, 1, None]
    return cameras.world_from_cam[:, :3, :3] @ torch.stack([u, v, torch.ones_like(u)], 1)


def project(cameras: Cameras, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pixel coordinates x, y and depth z, each (N, M), of world points (N, 3, M)."""
    R, t = cameras.world_from_cam[:, :3, :3], cameras.world_from_cam[:, :3, 3:]
    x, y, z = (R.transpose(1, 2) @ (points - t)).unbind(1)
    safe = z.clamp(min=1e-6)
    K = cameras.K
    return x / safe * K[:, 0, 0, None] + K[:, 0, 2, None], y / safe * K[:, 1, 1, None] + K[:, 1, 2, None], z
