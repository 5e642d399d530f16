"""What a flawless network would say about a rendered room: exact pointmaps and matches with ground truth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mast3r.cloud_opt.observations import PairObservation, ViewObservation
from tests.dust3r.room_scene import RoomView, room_views

SIZE = (96, 128)


@dataclass(frozen=True)
class SparseScene:
    """Views with ground truth and what is observed of them."""

    truth: list[RoomView]
    views: list[ViewObservation]
    pairs: list[PairObservation]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return [(view.points.shape[1], view.points.shape[0]) for view in self.truth]

    @property
    def poses(self) -> np.ndarray:
        return np.stack([view.pose for view in self.truth])

    @property
    def K(self) -> np.ndarray:
        return np.stack([view.K for view in self.truth])

    def without(self, edges: Iterable[tuple[int, int]]) -> SparseScene:
        """The scene with fewer pairs."""
        gone = {frozenset(edge) for edge in edges}
        views = [view for view in self.views if frozenset((view.image, view.partner)) not in gone]
        return SparseScene(self.truth, views, [p for p in self.pairs if frozenset((p.i, p.j)) not in gone])


def perfect_scene(
    count: int, *, size: tuple[int, int] = SIZE, seed: int = 0, edges: Iterable[tuple[int, int]] | None = None, **kw
) -> SparseScene:
    """Perfect observations of `count` views of the room; all pairs by default."""
    truth = room_views(count, size=size, seed=seed)
    edges = [(i, j) for i in range(count) for j in range(i + 1, count)] if edges is None else list(edges)
    return observe(truth, edges, **kw)


def observe(truth, edges, *, step: int = 4, rounded: bool = False, noise: float = 0.0, seed: int = 0) -> SparseScene:
    """Observations of some pairs; `noise` is relative error of depth and (in units of 100 px) of matches."""
    rng = np.random.default_rng(seed)
    views, pairs = [], []
    for i, j in edges:
        for a, b in ((i, j), (j, i)):
            views.append(_view_observation(truth, a, b, noise, rng))
        pairs.append(_pair_observation(truth, i, j, step, rounded, noise, rng))
    return SparseScene(truth, views, pairs)


def in_camera(view: RoomView, points: np.ndarray) -> np.ndarray:
    return (points - view.pose[:3, 3]) @ view.pose[:3, :3]


def _view_observation(truth, image, partner, noise, rng) -> ViewObservation:
    own, other = (in_camera(truth[image], truth[v].points) for v in (image, partner))
    scale = np.exp(noise * rng.normal())
    confidence = rng.uniform(2, 4, own.shape[:2])
    bumps = 1 + noise * rng.normal(size=own.shape[:2])[..., None]
    return ViewObservation(
        image, partner, scale * bumps * own, confidence, scale * other, rng.uniform(2, 4, other.shape[:2])
    )


def _pair_observation(truth, i, j, step, rounded, noise, rng) -> PairObservation:
    xy_i, xy_j = [], []
    for a, b, first, second in ((i, j, xy_i, xy_j), (j, i, xy_j, xy_i)):
        seen, xy = visible_in(truth[a], truth[b], step)
        first.append(seen)
        second.append(xy)
    xy_i, xy_j = np.concatenate(xy_i), np.concatenate(xy_j)
    xy_i, xy_j = (xy + 100 * noise * rng.normal(size=xy.shape) for xy in (xy_i, xy_j))
    if rounded:
        xy_i, xy_j = np.rint(xy_i), np.rint(xy_j)
    inside = _inside(xy_i, truth[i]) & _inside(xy_j, truth[j])
    return PairObservation(i, j, xy_i[inside], xy_j[inside], rng.uniform(1, 5, int(inside.sum())))


def visible_in(view: RoomView, other: RoomView, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Grid pixels of `view` that `other` sees too, and where."""
    height, width = view.points.shape[:2]
    x, y = (side.ravel() for side in np.meshgrid(np.arange(2, width, step), np.arange(2, height, step)))
    local = in_camera(other, view.points[y, x])
    front = local[:, 2] > 0.05
    x, y, local = x[front], y[front], local[front]
    pixel = local @ other.K.T
    pixel = pixel[:, :2] / pixel[:, 2:]
    inside = _inside(pixel, other)
    x, y, local, pixel = x[inside], y[inside], local[inside], pixel[inside]
    near = np.rint(pixel).astype(int)
    hit = in_camera(other, other.points[near[:, 1], near[:, 0]])
    visible = np.abs(hit[:, 2] / local[:, 2] - 1) < 0.02
    return np.stack([x, y], axis=1)[visible].astype(float), pixel[visible]


def _inside(xy: np.ndarray, view: RoomView) -> np.ndarray:
    height, width = view.points.shape[:2]
    return np.all((xy >= 0) & (xy <= (width - 1, height - 1)), axis=1)
