"""The families of scenes: rooms, streets, terrain, objects, flat photos and floating clutter.

Each function draws `count` scenes at once. Lengths in metres, z up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dust3r.datasets.synthetic.builder import CameraPlan, SceneBuilder, Scenes, facing, tumbled, turned
from dust3r.datasets.synthetic.rng import Rng
from dust3r.datasets.synthetic.solids import WAVES, Solids, height
from dust3r.datasets.synthetic.textures import TextureBank


def _stack(*columns: Tensor | float) -> Tensor:
    """Stack coordinates on a new last axis, broadcasting numbers."""
    tensors = [c for c in columns if isinstance(c, Tensor)]
    shape = torch.broadcast_shapes(*(t.shape for t in tensors))
    return torch.stack([torch.as_tensor(c, dtype=torch.float32).expand(shape) for c in columns], -1)


def _plan(
    low: Tensor, high: Tensor, target_low: Tensor, target_high: Tensor, reach: Tensor, *, orbit: bool, metric: bool
) -> CameraPlan:
    n = len(reach)
    return CameraPlan(
        low.expand(n, 3),
        high.expand(n, 3),
        target_low.expand(n, 3),
        target_high.expand(n, 3),
        reach,
        torch.full((n,), orbit),
        torch.full((n,), metric),
    )


def room(count: int, rng: Rng, bank: TextureBank) -> Scenes:
    """A furnished room seen from inside."""
    b = SceneBuilder(count, rng, bank)
    size = _stack(rng.uniform(1.6, 4.5, count), rng.uniform(1.6, 4.5, count), rng.uniform(1.15, 2.0, count))
    _add_shell(b, size)
    _add_posters(b, size, 6)
    for _ in range(2):
        _add_table(b, size)
    _add_shelf(b, size)
    _add_cabinets(b, size, 6)
    floor_xy = rng.uniform(-0.8, 0.8, count, 8, 2) * size[:, None, :2]
    half = rng.log_uniform(0.06, 0.35, count, 8, 3)
    b.add(
        "ellipsoid",
        _stack(floor_xy[..., 0], floor_xy[..., 1], half[..., 2] + rng.uniform(0, 0.9, count, 8)),
        half,
    )
    xy = rng.uniform(-0.8, 0.8, count, 6, 2) * size[:, None, :2]
    radius, tall = rng.log_uniform(0.03, 0.3, count, 6), rng.log_uniform(0.1, 0.9, count, 6)
    b.add("cylinder", _stack(xy[..., 0], xy[..., 1], tall), _stack(radius, radius, tall))
    low, high = size * torch.tensor([-0.85, -0.85, 0.35]), size * torch.tensor([0.85, 0.85, 1.6])
    target = size * torch.tensor([0.95, 0.95, 1.3])
    target_low = target * torch.tensor([-1.0, -1.0, 0.1])
    return b.finish(_plan(low, high, target_low, target, size[:, :2].amin(1) * 1.4, orbit=False, metric=True))


def _add_shell(b: SceneBuilder, size: Tensor) -> None:
    """Floor, ceiling and four walls of half size (B, 3), the floor at z = 0."""
    x, y, z = size.unbind(-1)
    flat = torch.stack([torch.zeros_like(size), _stack(0.0, 0.0, 2 * z)], 1)
    b.add("quad", flat, _stack(x, y, 1.0)[:, None].expand(-1, 2, 3), surface="material")
    normals = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
    centres = normals * size[:, None] + _stack(0.0, 0.0, z)[:, None]
    halves = torch.stack([_stack(y, z, 1.0), _stack(y, z, 1.0), _stack(x, z, 1.0), _stack(x, z, 1.0)], 1)
    rotation = facing(-normals).expand(b.count, 4, 3, 3)
    photo_walls = b.rng.integers(3)
    surfaces = ("material", "photo", "photo") if photo_walls else ("material", "material", "photo")
    b.add("quad", centres[:, :2], halves[:, :2], rotation[:, :2], surface=surfaces[1])  # type: ignore[arg-type]
    b.add("quad", centres[:, 2:], halves[:, 2:], rotation[:, 2:], surface=surfaces[0])  # type: ignore[arg-type]


def _add_posters(b: SceneBuilder, size: Tensor, k: int) -> None:
    """Pictures, windows and screens just off the walls."""
    rng, n = b.rng, b.count
    wall = rng.integers(4, n, k)
    normal = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])[wall]
    along = torch.stack([-normal[..., 1], normal[..., 0], torch.zeros(n, k)], -1)
    shift = rng.uniform(-0.7, 0.7, n, k, 1) * along * size[:, None]
    centre = normal * (size[:, None] - 0.02 * rng.uniform(1, 3, n, k, 1)) + shift
    centre = centre + _stack(0.0, 0.0, rng.uniform(0.5, 1.5, n, k) * size[:, None, 2])
    half = _stack(rng.log_uniform(0.15, 1.0, n, k), rng.log_uniform(0.15, 0.8, n, k), 1.0)
    b.add("quad", centre, half, facing(-normal), present=rng.chance(0.8, n, k), surface="fitted photo")


def _add_table(b: SceneBuilder, size: Tensor) -> None:
    """A top on four legs, turned at random."""
    rng, n = b.rng, b.count
    xy, yaw = rng.uniform(-0.7, 0.7, n, 2) * size[:, :2], rng.uniform(0, torch.pi, n)
    half, tall = rng.uniform(0.25, 0.9, n, 2), rng.uniform(0.2, 0.55, n)
    thick, leg = rng.uniform(0.01, 0.04, n), rng.uniform(0.02, 0.05, n)
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]) * (half - leg[:, None])[:, None]
    legs = _stack(corners[..., 0], corners[..., 1], 0.0)
    local = torch.cat([torch.zeros(n, 1, 3), legs], 1)
    rotation = turned(yaw)[:, None].expand(n, 5, 3, 3)
    height_ = torch.cat([(2 * tall + thick)[:, None], tall[:, None].expand(n, 4)], 1)
    centre = (rotation @ local[..., None])[..., 0] + _stack(xy[:, None, 0], xy[:, None, 1], height_)
    top, foot = (
        _stack(half[:, 0], half[:, 1], thick)[:, None],
        _stack(leg, leg, tall)[:, None].expand(n, 4, 3),
    )
    present = rng.chance(0.85, n, 1).expand(n, 5)
    b.add("box", centre, torch.cat([top, foot], 1), rotation, present=present)


def _add_shelf(b: SceneBuilder, size: Tensor) -> None:
    """Two sides and three boards against a wall."""
    rng, n = b.rng, b.count
    width, deep, tall = rng.uniform(0.3, 1.0, n), rng.uniform(0.12, 0.25, n), rng.uniform(0.4, 1.0, n)
    x, y = (
        rng.uniform(-0.8, 0.8, n) * (size[:, 0] - width),
        (size[:, 1] - deep) * (2.0 * rng.chance(0.5, n) - 1),
    )
    sides = torch.stack([_stack(x - width, y, tall), _stack(x + width, y, tall)], 1)
    levels = torch.linspace(0.1, 1.9, 3) * tall[:, None]
    boards = _stack(x[:, None].expand(n, 3), y[:, None].expand(n, 3), levels)
    half_side, half_board = _stack(0.02 + 0 * deep, deep, tall)[:, None], _stack(width, deep, 0.02)[:, None]
    half = torch.cat([half_side.expand(n, 2, 3), half_board.expand(n, 3, 3)], 1)
    b.add("box", torch.cat([sides, boards], 1), half)


def _add_cabinets(b: SceneBuilder, size: Tensor, k: int) -> None:
    """Cupboards, beds and crates standing on the floor."""
    rng, n = b.rng, b.count
    half = _stack(rng.log_uniform(0.15, 1.0, n, k), rng.log_uniform(0.15, 0.8, n, k), rng.log_uniform(0.1, 1.0, n, k))
    xy = rng.uniform(-1, 1, n, k, 2).sign() * rng.uniform(0.3, 1, n, k, 2).sqrt() * (size[:, None, :2] - half[..., :2])
    yaw = torch.where(rng.chance(0.6, n, k), rng.integers(2, n, k) * (torch.pi / 2), rng.uniform(0, 3, n, k))
    b.add("box", _stack(xy[..., 0], xy[..., 1], half[..., 2]), half, turned(yaw), present=rng.chance(0.75, n, k))


def street(count: int, rng: Rng, bank: TextureBank) -> Scenes:
    """A street between two rows of houses, with cars, trees and posts under the sky."""
    b = SceneBuilder(count, rng, bank)
    b.add("quad", torch.zeros(count, 1, 3), torch.full((count, 1, 3), 150.0), surface="ground")
    gap = rng.uniform(5, 14, count)
    _add_houses(b, gap)
    _add_cars(b, gap)
    _add_trees(b, _stack(rng.uniform(-25, 25, count, 6), rng.uniform(-1, 1, count, 6) * gap[:, None], 0.0), 6)
    x, side = rng.uniform(-25, 25, count, 2), 2.0 * rng.chance(0.5, count, 2) - 1
    tall = rng.uniform(1.5, 4, count, 2)
    b.add("cylinder", _stack(x, side * 0.7 * gap[:, None], tall), _stack(0.06, 0.08, tall))
    centre = _stack(
        rng.uniform(-20, 20, count, 5),
        rng.uniform(-0.9, 0.9, count, 5) * gap[:, None],
        rng.uniform(1, 4, count, 5),
    )
    normal = turned(rng.uniform(0, 6.3, count, 5))[..., 0]
    half = _stack(rng.uniform(0.3, 2, count, 5), rng.uniform(0.3, 1.5, count, 5), 1.0)
    b.add("quad", centre, half, facing(normal), present=rng.chance(0.5, count, 5), surface="fitted photo")
    g = gap[:, None]
    low = torch.cat([-18 + 0 * g, -0.7 * g, 1.0 + 0 * g], 1)
    high = torch.cat([18 + 0 * g, 0.7 * g, rng.log_uniform(1.8, 10, count, 1)], 1)
    target_low, target_high = (
        torch.cat([-30 + 0 * g, -1.2 * g, 0 * g], 1),
        torch.cat([30 + 0 * g, 1.2 * g, 8 + 0 * g], 1),
    )
    return b.finish(_plan(low, high, target_low, target_high, 1.2 * gap, orbit=False, metric=True))


def _add_houses(b: SceneBuilder, gap: Tensor) -> None:
    rng, n = b.rng, b.count
    half = _stack(rng.uniform(3, 8, n, 10), rng.uniform(3, 7, n, 10), rng.uniform(2.5, 11, n, 10))
    side = torch.tensor([-1.0] * 5 + [1.0] * 5)
    x = torch.linspace(-28, 28, 5).repeat(2) + rng.normal(2, n, 10)
    y = side * (gap[:, None] + half[..., 1] + rng.uniform(0, 3, n, 10))
    centre = _stack(x, y, half[..., 2])
    b.add("box", centre, half, turned(rng.normal(0.05, n, 10)), surface="photo", present=rng.chance(0.9, n, 10))
    end = _stack(torch.tensor([-48.0, 48.0]).expand(n, 2), rng.normal(5, n, 2), rng.uniform(3, 9, n, 2))
    b.add(
        "box",
        end,
        _stack(3.0, rng.uniform(8, 20, n, 2), end[..., 2]),
        surface="photo",
        present=rng.chance(0.7, n, 2),
    )


def _add_cars(b: SceneBuilder, gap: Tensor) -> None:
    rng, n = b.rng, b.count
    x, y = (
        rng.uniform(-22, 22, n, 6),
        (2.0 * rng.chance(0.5, n, 6) - 1) * rng.uniform(0.2, 0.8, n, 6) * gap[:, None],
    )
    rotation = turned(rng.normal(0.1, n, 6))
    long, tall = rng.uniform(1.7, 2.4, n, 6), rng.uniform(0.35, 0.5, n, 6)
    present = rng.chance(0.7, n, 6)
    b.add("box", _stack(x, y, tall + 0.2), _stack(long, 0.9, tall), rotation, present=present)
    b.add("box", _stack(x, y, 2 * tall + 0.5), _stack(0.6 * long, 0.8, 0.3), rotation, present=present)


def _add_trees(b: SceneBuilder, foot: Tensor, k: int) -> None:
    """Trunks with round crowns at the points `foot` (B, k, 3)."""
    rng, n = b.rng, b.count
    radius, tall = rng.uniform(0.08, 0.25, n, k), rng.uniform(0.7, 2.2, n, k)
    crown = rng.uniform(0.7, 1.0, n, k, 3) * rng.uniform(0.6, 2.2, n, k, 1)
    present = rng.chance(0.6, n, k)
    up = torch.tensor([0.0, 0.0, 1.0])
    b.add("cylinder", foot + tall[..., None] * up, _stack(radius, radius, tall), present=present)
    b.add("ellipsoid", foot + (2 * tall + 0.7 * crown[..., 2])[..., None] * up, crown, present=present)


def terrain(count: int, rng: Rng, bank: TextureBank) -> Scenes:
    """Hills with boulders, trees and huts under the sky."""
    b = SceneBuilder(count, rng, bank)
    length = torch.cat([rng.log_uniform(9, 60, count, 3), rng.log_uniform(1.5, 8, count, WAVES - 3)], 1)
    angle = rng.uniform(0, 6.3, count, WAVES)
    frequency = 2 * torch.pi / length[..., None] * torch.stack([angle.cos(), angle.sin()], -1)
    amplitude = length * rng.log_uniform(0.008, 0.06, count, WAVES)
    phase, level = rng.uniform(0, 6.3, count, WAVES), torch.zeros(count)
    b.add_height_field(frequency, phase, amplitude, level)

    def ground(x: Tensor, y: Tensor) -> Tensor:
        empty = torch.zeros(count, 0)
        return height(Solids(empty, empty, empty, empty, frequency, phase, amplitude, level), x, y)

    def place(k: int, reach: float) -> Tensor:
        xy = rng.uniform(-reach, reach, count, k, 2)
        return _stack(xy[..., 0], xy[..., 1], ground(xy[..., 0], xy[..., 1]))

    b.add("ellipsoid", place(4, 12), rng.log_uniform(0.2, 1.6, count, 4, 3), tumbled(rng, count, 4))
    _add_trees(b, place(4, 15), 4)
    half = rng.uniform(0.5, 2.5, count, 5, 3)
    b.add(
        "box",
        place(5, 18),
        half,
        turned(rng.uniform(0, 3, count, 5)),
        present=rng.chance(0.5, count, 5),
        surface="photo",
    )
    stones = rng.log_uniform(0.15, 0.8, count, 8, 3)
    b.add("box", place(8, 10), stones, tumbled(rng, count, 8), present=rng.chance(0.7, count, 8))
    top = amplitude.sum(1)
    low = _stack(torch.full((count,), -14.0), -14.0, top + 0.8)
    high = _stack(torch.full((count,), 14.0), 14.0, top + rng.log_uniform(1.2, 12, count))
    target_high = torch.tensor([10.0, 10.0, 1.5])
    return b.finish(_plan(low, high, -target_high, target_high, rng.uniform(4, 12, count), orbit=False, metric=True))


def objects(count: int, rng: Rng, bank: TextureBank) -> Scenes:
    """Objects on a ground plane or table, seen from around."""
    b = SceneBuilder(count, rng, bank)
    scale = rng.log_uniform(0.12, 1.5, count, 1, 1)
    ground_half = scale * rng.log_uniform(2, 12, count, 1, 3)
    b.add("quad", torch.zeros(count, 1, 3), ground_half, turned(rng.uniform(0, 3, count, 1)), surface="material")
    normal = turned(rng.uniform(0, 6.3, count, 4))[..., 0]
    wall = _stack(rng.uniform(3, 12, count, 4), rng.uniform(2, 6, count, 4), 1.0) * scale
    centre = -normal * scale * rng.uniform(3, 9, count, 4, 1)
    b.add("quad", centre, wall, facing(normal), present=rng.chance(0.6, count, 4), surface="photo")
    for kind, k in (("box", 8), ("ellipsoid", 5), ("cylinder", 5)):
        half = scale * rng.log_uniform(0.12, 0.8, count, k, 3)
        xy = scale[..., 0] * rng.normal(0.8, 2, count, k)
        stand = _stack(xy[0], xy[1], half[..., 2] + scale[..., 0] * rng.uniform(-0.6, 0.9, count, k).clamp(min=0))
        rotation = torch.where(
            rng.chance(0.3, count, k, 1, 1), tumbled(rng, count, k), turned(rng.uniform(0, 6, count, k))
        )
        surface = "photo" if kind == "box" else "material"
        b.add(kind, stand, half, rotation, present=rng.chance(0.7, count, k), surface=surface)
    s = scale[:, 0]
    low, high = torch.tensor([-3.2, -3.2, 0.3]) * s, torch.tensor([3.2, 3.2, 3.0]) * s
    target_low, target_high = torch.tensor([-0.6, -0.6, 0.0]) * s, torch.tensor([0.6, 0.6, 0.9]) * s
    return b.finish(_plan(low, high, target_low, target_high, 3 * s[:, 0], orbit=True, metric=False))


def planar(count: int, rng: Rng, bank: TextureBank) -> Scenes:
    """A single flat photo: the views are related by a homography."""
    b = SceneBuilder(count, rng, bank)
    ratio = rng.uniform(0.65, 1.5, count)
    normal = torch.tensor([1.0, 0.0, 0.0]).expand(count, 1, 3)
    half = _stack(1.6 * ratio.sqrt(), 1.6 / ratio.sqrt(), 1.0)[:, None]
    b.add("quad", _stack(torch.zeros(count), 0.0, 1.5)[:, None], half, facing(normal), surface="fitted photo")
    low, high = torch.tensor([1.0, -1.6, 0.3]), torch.tensor([2.8, 1.6, 2.7])
    target_low, target_high = torch.tensor([0.0, -0.5, 1.0]), torch.tensor([0.0, 0.5, 2.0])
    reach = rng.uniform(1.5, 3, count)
    return b.finish(_plan(low, high, target_low, target_high, reach, orbit=False, metric=False))


def clutter(count: int, rng: Rng, bank: TextureBank) -> Scenes:
    """Solids of all kinds floating in a box of photos: strong parallax and occlusion."""
    b = SceneBuilder(count, rng, bank)
    size = rng.uniform(3, 7, count, 1).expand(count, 3) * torch.tensor([1.0, 1.0, 0.5])
    _add_shell(b, size)
    for kind, k in (("quad", 8), ("box", 14), ("ellipsoid", 6), ("cylinder", 6)):
        centre = rng.normal(0.4, count, k, 3) * size[:, None] + _stack(0.0, 0.0, size[:, 2])[:, None]
        half = rng.log_uniform(0.08, 0.9, count, k, 3)
        surface = "fitted photo" if kind == "quad" else "photo" if kind == "box" else "material"
        b.add(kind, centre, half, tumbled(rng, count, k), present=rng.chance(0.7, count, k), surface=surface)
    low, high = size * torch.tensor([-0.9, -0.9, 0.3]), size * torch.tensor([0.9, 0.9, 1.7])
    target = size * torch.tensor([0.4, 0.4, 1.4])
    target_low = target * torch.tensor([-1.0, -1.0, 0.3])
    return b.finish(_plan(low, high, target_low, target, 0.9 * size[:, 0], orbit=False, metric=False))


FAMILIES = {
    "room": room,
    "street": street,
    "terrain": terrain,
    "objects": objects,
    "planar": planar,
    "clutter": clutter,
}
