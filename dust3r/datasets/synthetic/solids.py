"""Solids of a scene and their ray intersections.

A scene is a fixed number of slots (quads, boxes, ellipsoids, cylinders: affine images of a unit shape) plus one height
field, so that every scene of a batch has the same tensors and one compiled kernel renders them all. World axes: x, y
horizontal, z up, metres.

Planar layout: rays are (N, 3, M) with M pixels last, so that the inner loop of the kernel is contiguous.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

SLOTS = {"quad": 14, "box": 24, "ellipsoid": 8, "cylinder": 8}
FIELD = sum(SLOTS.values())  # what a ray hit: the index of a solid's slot, or one of these two
SKY = FIELD + 1
WAVES = 6
NEAR, FAR = 0.05, 400.0


@dataclass(frozen=True)
class Solids:
    """The geometry of B scenes with P slots (quads, boxes, ellipsoids, cylinders, as many as `SLOTS` says).

    Attributes:
        rotation: (B, P, 3, 3) columns are the object's axes in the world.
        centre: (B, P, 3) metres.
        half: (B, P, 3) half extents in metres (a quad ignores the third).
        present: (B, P) bool, false for unused slots.
        wave_frequency: (B, WAVES, 2) radians a metre of the height field's waves.
        wave_phase: (B, WAVES) radians.
        wave_height: (B, WAVES) metres.
        ground_level: (B,) mean height of the field in metres; very low where a scene has none.
    """

    rotation: Tensor
    centre: Tensor
    half: Tensor
    present: Tensor
    wave_frequency: Tensor
    wave_phase: Tensor
    wave_height: Tensor
    ground_level: Tensor

    def to(self, device: torch.device) -> Solids:
        """The same solids on another device."""
        return Solids(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))

    @property
    def has_field(self) -> Tensor:
        """(B,) bool: the scene has a height field."""
        return self.wave_height.abs().sum(1) > 0

    def select(self, rows: Tensor) -> Solids:
        """The scenes at the given positions."""
        return Solids(*(getattr(self, f.name)[rows] for f in fields(self)))

    def split(self, size: int) -> list[Solids]:
        """Blocks of `size` scenes."""
        columns = [getattr(self, f.name).split(size) for f in fields(self)]
        return [Solids(*block) for block in zip(*columns)]

    def repeat(self, views: int) -> Solids:
        """Repeat each scene for `views` cameras: (B, ...) becomes (B * views, ...)."""
        return Solids(*(getattr(self, f.name).repeat_interleave(views, 0) for f in fields(self)))


def concatenate(parts: list[Solids]) -> Solids:
    """Join batches of scenes."""
    return Solids(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Solids)))


def height(solids: Solids, x: Tensor, y: Tensor) -> Tensor:
    """Height of the field at (x, y), both (..., N, M)."""
    total = solids.ground_level[:, None].expand(x.shape)
    for k in range(WAVES):
        fx, fy = solids.wave_frequency[:, k, :1], solids.wave_frequency[:, k, 1:]
        total = total + solids.wave_height[:, k, None] * torch.sin(fx * x + fy * y + solids.wave_phase[:, k, None])
    return total


def height_normal(solids: Solids, x: Tensor, y: Tensor) -> Tensor:
    """Unit upward normal (N, 3, M) of the field at (x, y)."""
    slope_x, slope_y = torch.zeros_like(x), torch.zeros_like(x)
    for k in range(WAVES):
        fx, fy = solids.wave_frequency[:, k, :1], solids.wave_frequency[:, k, 1:]
        c = solids.wave_height[:, k, None] * torch.cos(fx * x + fy * y + solids.wave_phase[:, k, None])
        slope_x, slope_y = slope_x + c * fx, slope_y + c * fy
    normal = torch.stack([-slope_x, -slope_y, torch.ones_like(x)], 1)
    return normal / normal.norm(dim=1, keepdim=True)


def intersect_height_field(solids: Solids, origin: Tensor, direction: Tensor, steps: int = 24) -> Tensor:
    """First ray parameter (N, M) at which a ray dives below the height field, or FAR.

    Geometric steps find the sign change, secant steps refine it. Origins (N, 3, 1) or (N, 3, M).
    """
    ox, oy, oz = origin.unbind(1)
    dx, dy, dz = direction.unbind(1)

    def clearance(t: Tensor) -> Tensor:
        return oz + t * dz - height(solids, ox + t * dx, oy + t * dy)

    ratio = (FAR / NEAR) ** (1 / steps)
    scale = torch.arange(steps + 1, device=dx.device)
    above = clearance((NEAR * ratio**scale)[:, None, None]) >= 0  # step axis first, so that it broadcasts
    crossing = above[:-1] & ~above[1:]
    first = torch.where(crossing, scale[:-1, None, None], steps).amin(0)
    low = NEAR * ratio**first
    high = low * ratio
    gap_low, gap_high = clearance(low), clearance(high)
    for _ in range(4):
        t = low + (high - low) * (gap_low / (gap_low - gap_high).clamp(min=1e-6)).clamp(0.02, 0.98)
        gap = clearance(t)
        above = gap >= 0
        low, gap_low = torch.where(above, t, low), torch.where(above, gap, gap_low)
        high, gap_high = torch.where(above, high, t), torch.where(above, gap_high, gap)
    return torch.where(first < steps, 0.5 * (low + high), FAR)


def _interval(offset: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Ray parameters where offset + t * slope enters and leaves [-1, 1]."""
    inverse = 1 / torch.where(slope.abs() < 1e-9, 1e-9, slope)
    middle, reach = -offset * inverse, inverse.abs()
    return middle - reach, middle + reach


def _first_of_interval(enter: Tensor, leave: Tensor) -> Tensor:
    """First positive hit of a convex solid (its inner side when the ray starts inside), or FAR."""
    hit = torch.where(enter > NEAR, enter, leave)
    return torch.where((enter < leave) & (hit > NEAR), hit, FAR)


def _hit_quad(o: list[Tensor], d: list[Tensor]) -> Tensor:
    t = -o[2] / torch.where(d[2].abs() < 1e-9, 1e-9, d[2])
    inside = ((o[0] + t * d[0]).abs() <= 1) & ((o[1] + t * d[1]).abs() <= 1) & (t > NEAR)
    return torch.where(inside, t, FAR)


def _hit_box(o: list[Tensor], d: list[Tensor]) -> Tensor:
    (x0, x1), (y0, y1), (z0, z1) = (_interval(a, b) for a, b in zip(o, d))
    return _first_of_interval(torch.maximum(torch.maximum(x0, y0), z0), torch.minimum(torch.minimum(x1, y1), z1))


def _dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
    total = a[0] * b[0]
    for x, y in zip(a[1:], b[1:]):
        total = total + x * y
    return total


def _round_interval(o: list[Tensor], d: list[Tensor]) -> tuple[Tensor, Tensor]:
    a = _dot(d, d) + 1e-12
    b = _dot(o, d)
    discriminant = b * b - a * (_dot(o, o) - 1)
    root = discriminant.clamp(min=0).sqrt()
    miss = discriminant <= 0
    return torch.where(miss, FAR, (-b - root) / a), torch.where(miss, -FAR, (-b + root) / a)


def _hit_ellipsoid(o: list[Tensor], d: list[Tensor]) -> Tensor:
    return _first_of_interval(*_round_interval(o, d))


def _hit_cylinder(o: list[Tensor], d: list[Tensor]) -> Tensor:
    enter, leave = _round_interval(o[:2], d[:2])
    z0, z1 = _interval(o[2], d[2])
    return _first_of_interval(torch.maximum(enter, z0), torch.minimum(leave, z1))


_HIT = {"quad": _hit_quad, "box": _hit_box, "ellipsoid": _hit_ellipsoid, "cylinder": _hit_cylinder}


def object_from_world(solids: Solids) -> Tensor:
    """(B, P, 3, 3) linear maps from world to unit-shape coordinates."""
    return solids.rotation.transpose(-1, -2) / solids.half[..., None]


def _hits(solids: Solids, origin: Tensor, direction: Tensor) -> Iterator[tuple[int, Tensor]]:
    """For each kind of solid its first slot and the first hits (N, slots of the kind, M)."""
    maps = object_from_world(solids)
    x, y, z = (c[:, None] for c in direction.unbind(1))
    start = 0
    for kind, count in SLOTS.items():
        block = slice(start, start + count)
        rel = [r[:, None] - solids.centre[:, block, k, None] for k, r in enumerate(origin.unbind(1))]
        m = maps[:, block, :, :, None]
        o = [m[:, :, k, 0] * rel[0] + m[:, :, k, 1] * rel[1] + m[:, :, k, 2] * rel[2] for k in range(3)]
        d = [m[:, :, k, 0] * x + m[:, :, k, 1] * y + m[:, :, k, 2] * z for k in range(3)]
        yield start, torch.where(solids.present[:, block, None], _HIT[kind](o, d), FAR)
        start += count


def first_hit(solids: Solids, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest intersection of every ray with a solid (not with the height field).

    Args:
        solids: N scenes (one a view).
        origin: (N, 3, 1) or (N, 3, M) world metres.
        direction: (N, 3, M), not necessarily unit length.

    Returns:
        t (N, M): ray parameter, FAR where nothing is hit; slot (N, M) int32: index of the solid, `SKY` for none.
    """
    best = torch.full_like(direction[:, 0], FAR)
    slot = torch.full_like(best, SKY, dtype=torch.int32)
    for start, hits in _hits(solids, origin, direction):
        # Positive floats order like their bits, so the slot rides in the lowest six bits of a minimum: compiled
        # code vectorises this, and not an argmin.
        index = torch.arange(hits.shape[1], device=hits.device, dtype=torch.int32)[:, None]
        key = ((hits.view(torch.int32) & ~63) | index).amin(1)
        t = hits.amin(1)
        closer = t < best
        best, slot = torch.where(closer, t, best), torch.where(closer, start + (key & 63), slot)
    return best, slot


def occluded(solids: Solids, origin: Tensor, target: Tensor) -> Tensor:
    """Whether a solid (not the height field) stands between `origin` (N, 3, M) and `target` (N, 3, 1)."""
    direction = target - origin
    length = direction.norm(dim=1)
    nearest = torch.full_like(length, FAR)
    for _, hits in _hits(solids, origin, direction / length[:, None]):
        nearest = torch.minimum(nearest, hits.amin(1))
    return nearest < length - NEAR
