"""Two cameras before a wall with balls in front of it: exact depth, exact matches."""

from __future__ import annotations

import numpy as np

from multiview.cameras import Camera
from multiview.matches import Matches
from multiview.poses import Pose
from tests.multiview.synthetic_pair import rotation

BALLS = (((0.3, 0.1, 3.5), 0.8), ((-1.2, -0.4, 4.2), 0.7), ((1.5, 0.7, 4.6), 0.6), ((-0.5, 0.8, 2.6), 0.3))
WALL = 5.5
_HIDDEN = 1e-3


class TwoViewScene:
    """The wall is slanted, the cameras look at it from two sides.

    Args:
        focals: Focal lengths in pixels.
        size: (width, height) of both images.
        degrees: Turn of camera 1.
        center1: Where camera 1 stands.
        balls: (centre, radius) of each; without any the scene is a plane.
    """

    def __init__(self, focals=(300.0, 300.0), size=(320, 240), degrees=-12.0, center1=(1.1, 0.1, 0.2), balls=BALLS):
        self.size = size
        self.balls = balls
        self.cameras = (Camera.from_focal(focals[0], *size), Camera.from_focal(focals[1], *size))
        self.pose1 = Pose.from_rt(rotation((0.1, 1.0, 0.05), degrees), np.array(center1))

    @property
    def poses(self) -> tuple[Pose, Pose]:
        return Pose.identity(), self.pose1

    def points(self, i: int, xy: np.ndarray) -> np.ndarray:
        """World points that camera i sees at (..., 2) pixels."""
        center = self.poses[i].center
        rays = self.cameras[i].unproject(xy) @ self.poses[i].rotation.T
        slant = np.array([0.2, 0.1, 1.0])
        length = (WALL - center @ slant) / (rays @ slant)
        for middle, radius in self.balls:
            offset = center - middle
            a, b, c = (rays**2).sum(-1), rays @ offset, offset @ offset - radius**2
            root = b**2 - a * c
            near = (-b - np.sqrt(np.maximum(root, 0))) / a
            length = np.where((root > 0) & (near > 0), np.minimum(length, near), length)
        return center + rays * length[..., None]

    def depth(self, i: int, xy: np.ndarray) -> np.ndarray:
        """Depths in camera i at (..., 2) pixels."""
        return self.poses[i].inverse().apply(self.points(i, xy))[..., 2]

    def depth_map(self, i: int) -> np.ndarray:
        """(H, W) exact depth."""
        return self.depth(i, self.pixels())

    def pixels(self) -> np.ndarray:
        """(H, W, 2) pixels of an image."""
        width, height = self.size
        return np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)

    def colors(self, i: int) -> np.ndarray:
        """(H, W, 3) uint8: every thing has a colour of its own."""
        points = self.points(i, self.pixels())
        picture = np.full(points.shape, 200, np.uint8)
        for k, (middle, radius) in enumerate(self.balls):
            on = np.linalg.norm(points - middle, axis=-1) < 1.01 * radius
            picture[on] = (50 * k, 255 - 50 * k, 90)
        return picture

    def matches(self, count=1000, *, noise=0.0, outliers=0.0, seed=0) -> Matches:
        """Random places that both cameras see, some replaced by wrong ones."""
        rng = np.random.default_rng(seed)
        limit = np.array(self.size) - 1
        xy0 = rng.uniform(0, limit, (6 * count, 2))
        points = self.points(0, xy0)
        local = self.pose1.inverse().apply(points)
        xy1 = self.cameras[1].project(local)
        inside = np.asarray(np.isfinite(xy1).all(1) & (xy1 >= 0).all(1) & (xy1 <= limit).all(1))
        inside[inside] &= np.abs(self.depth(1, xy1[inside]) - local[inside, 2]) < _HIDDEN
        chosen = np.flatnonzero(inside)[:count]
        xy0 = xy0[chosen] + noise * rng.normal(size=(len(chosen), 2))
        xy1 = xy1[chosen] + noise * rng.normal(size=(len(chosen), 2))
        wrong = rng.random(len(chosen)) < outliers
        xy1[wrong] = rng.uniform(0, limit, (wrong.sum(), 2))
        return Matches(xy0, xy1, np.ones(len(chosen)), self.size, self.size)

    @property
    def R(self) -> np.ndarray:
        """Camera 1 from camera 0."""
        return self.pose1.cam_from_world[:3, :3]

    @property
    def t(self) -> np.ndarray:
        """Unit translation of camera 1 from camera 0."""
        t = self.pose1.cam_from_world[:3, 3]
        return t / np.linalg.norm(t)
