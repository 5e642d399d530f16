"""A room with balls, ray-cast exactly: perfect pointmaps and cameras to test alignment with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

_BALLS = np.array([(0.6, 0.3, 2.2, 0.5), (-0.9, 0.5, 2.8, 0.6), (0.2, -0.6, 3.2, 0.4), (1.3, -0.2, 3.0, 0.45)])
_ROOM = np.array([(-2.5, -1.5, -2.0), (2.5, 1.5, 4.5)])


@dataclass(frozen=True)
class RoomView:
    """One exact view: K, world_from_cam, (H, W, 3) world points and (3, H, W) image in [-1, 1]."""

    K: np.ndarray
    pose: np.ndarray
    points: np.ndarray
    image: np.ndarray


def room_views(count: int, *, size: tuple[int, int] = (24, 32), seed: int = 0) -> list[RoomView]:
    """Views from an arc looking at the balls; every third image stands upright."""
    rng = np.random.default_rng(seed)
    views = []
    for i in range(count):
        height, width = size if i % 3 else size[::-1]
        focal = max(size) * rng.uniform(0.8, 1.1)
        K = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
        angle = np.linspace(-0.6, 0.6, count)[i] if count > 1 else 0.0
        center = np.array([2.2 * np.sin(angle), 0.3 * np.cos(5 * angle), 0.4 - 1.2 * np.cos(angle)])
        pose = _look_at(center, np.array([0.1, 0.0, 2.6]) + rng.normal(0, 0.1, 3))
        views.append(_render(K, pose, height, width))
    return views


def _look_at(center: np.ndarray, target: np.ndarray) -> np.ndarray:
    z = (target - center) / np.linalg.norm(target - center)
    x = np.cross([0.0, 1.0, 0.0], z)
    x /= np.linalg.norm(x)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([x, np.cross(z, x), z], axis=1)
    pose[:3, 3] = center
    return pose


def _render(K: np.ndarray, pose: np.ndarray, height: int, width: int) -> RoomView:
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([columns, rows, np.ones_like(columns)], axis=-1)
    direction = pixels @ np.linalg.inv(K).T @ pose[:3, :3].T
    origin = pose[:3, 3]
    with np.errstate(divide="ignore"):
        walls = np.where(direction > 0, _ROOM[1] - origin, _ROOM[0] - origin) / direction
    distance = walls.min(axis=-1)
    for *middle, radius in _BALLS:
        offset = origin - middle
        a, b = (direction**2).sum(-1), direction @ offset
        root = b**2 - a * (offset @ offset - radius**2)
        hit = (-b - np.sqrt(np.where(root > 0, root, np.nan))) / a
        distance = np.where((root > 0) & (hit > 0) & (hit < distance), hit, distance)
    points = origin + distance[..., None] * direction
    return RoomView(K, pose, points, np.sin(2 * points).transpose(2, 0, 1))


def perfect_output(views: list[RoomView], edges: list[tuple[int, int]], *, seed: int = 0, conf: float = 10.0) -> dict:
    """What `inference` would return for a flawless network: exact points, each edge at a scale of its own."""
    rng = np.random.default_rng(seed)
    points: tuple[list, list] = ([], [])
    confs: tuple[list, list] = ([], [])
    images: tuple[list, list] = ([], [])
    for edge in edges:
        scale = np.exp(rng.normal(0, 0.3))
        cam_from_world = np.linalg.inv(views[edge[0]].pose)
        for side, image in enumerate(edge):
            local = views[image].points @ cam_from_world[:3, :3].T + cam_from_world[:3, 3]
            points[side].append(torch.from_numpy(scale * local).float())
            noise = rng.uniform(0.8, 1.2, local.shape[:2])
            confs[side].append(torch.from_numpy(conf * noise).float())
            images[side].append(torch.from_numpy(views[image].image).float())
    return {
        "view1": {"idx": [i for i, _ in edges], "img": images[0]},
        "view2": {"idx": [j for _, j in edges], "img": images[1]},
        "pred1": {"pts3d": points[0], "conf": confs[0]},
        "pred2": {"pts3d_in_other_view": points[1], "conf": confs[1]},
    }


def complete_edges(count: int) -> list[tuple[int, int]]:
    """All ordered pairs."""
    return [(i, j) for i in range(count) for j in range(count) if i != j]


def pose_errors(poses: np.ndarray, true: np.ndarray, *, align: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Rotation errors in degrees and centre errors as a share of the scene's size, after a similarity."""
    poses, true = np.asarray(poses, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if align:
        turn = np.einsum("nij,nkj->ik", true[:, :3, :3], poses[:, :3, :3])
        u, _, vt = np.linalg.svd(turn)
        R = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
        source, target = (p[:, :3, 3] - p[:, :3, 3].mean(0) for p in (poses, true))
        moved = source @ R.T
        scale = (moved * target).sum() / (moved**2).sum()
        centers = scale * moved + true[:, :3, 3].mean(0)
        rotations = R @ poses[:, :3, :3]
    else:
        centers, rotations = poses[:, :3, 3], poses[:, :3, :3]
    sine = np.linalg.norm(rotations - true[:, :3, :3], axis=(1, 2)) / np.sqrt(8)
    angles = np.degrees(2 * np.arcsin(np.clip(sine, 0, 1)))
    size = np.linalg.norm(_ROOM[1] - _ROOM[0])
    return angles, np.linalg.norm(centers - true[:, :3, 3], axis=1) / size
