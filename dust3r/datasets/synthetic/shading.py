"""Colour of ray hits: textures, lights that differ between views, shadows, highlights, haze and sky."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dust3r.datasets.synthetic.builder import Materials
from dust3r.datasets.synthetic.rng import Rng
from dust3r.datasets.synthetic.solids import FIELD, SLOTS, Solids, height_normal
from dust3r.datasets.synthetic.textures import TextureBank, sample


@dataclass(frozen=True)
class Lights:
    """One light a view.

    Attributes:
        position: (N, 3) metres, far away for the sun.
        colour: (N, 3) of the direct light; ambient: (N, 3).
        shadow: (N,) share of direct light that a shadow removes.
        haze: (N,) extinction per metre, mixed towards the sky's colour.
    """

    position: Tensor
    colour: Tensor
    ambient: Tensor
    shadow: Tensor
    haze: Tensor

    def to(self, device: torch.device) -> Lights:
        """The same lights on another device."""
        values = (self.position, self.colour, self.ambient, self.shadow, self.haze)
        return Lights(*(v.to(device, non_blocking=True) for v in values))


def draw_lights(rng: Rng, scenes: int, views: int, indoor: Tensor, around: Tensor, difference: float = 1.0) -> Lights:
    """Lights of every view, (scenes * views) in all: mostly similar within a scene, sometimes quite different.

    `indoor` (scenes,) bool puts the lamp near the cameras' centre `around` (scenes, 3), otherwise the sun far away.
    `difference`, 0 to 1, scales how much the lights of a scene's views differ.
    """
    n = scenes * views

    def both(common: Tensor, own: Tensor) -> Tensor:
        """A value of the scene, moved towards one of each view."""
        return common + difference * (own - common)

    spread = difference * torch.where(rng.chance(0.5, scenes, 1, 1), 0.05, 1.0)
    direction = rng.normal(1, scenes, 1, 3) + spread * rng.normal(1, scenes, views, 3)
    direction[..., 2] = direction[..., 2].abs() + 0.4
    direction = torch.nn.functional.normalize(direction, dim=-1)
    distance = torch.where(indoor, rng.uniform(0.6, 1.4, scenes), 1e3)[:, None, None]
    warmth = both(rng.normal(0.12, scenes, 1, 1), rng.normal(0.12, scenes, views, 1)) * torch.tensor([1.0, 0.1, -1.0])
    strength = both(rng.uniform(0.3, 1.0, scenes, 1, 1), rng.uniform(0.3, 1.0, scenes, views, 1))
    ambient = both(rng.uniform(0.25, 0.65, scenes, 1, 1), rng.uniform(0.25, 0.65, scenes, views, 1))
    ambient = ambient * (1 - 0.5 * warmth)
    haze = torch.where(rng.chance(0.3, scenes), rng.log_uniform(0.002, 0.03, scenes), 0.0)
    return Lights(
        (around[:, None] + direction * distance).reshape(n, 3),
        (strength * (1 + warmth)).reshape(n, 3),
        ambient.reshape(n, 3),
        rng.uniform(0, 1, n),
        torch.where(indoor, 0.0, haze).repeat_interleave(views),
    )


def _gather(table: Tensor, slot: Tensor) -> list[Tensor]:
    """Columns of a per-slot table (N, P, C) at every pixel's slot (N, M): C tensors (N, M)."""
    return [table[..., c].gather(1, slot) for c in range(table.shape[-1])]


def surface_normal(solids: Solids, slot: Tensor, points: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Geometry at hits.

    Returns:
        world normal (N, 3, M), unit, not yet turned to the camera; local metric coordinates (three (N, M)); local
        normal (three (N, M)).
    """
    solid = slot.clamp(max=FIELD - 1)
    rotation = _gather(solids.rotation.flatten(2), solid)
    half, centre = _gather(solids.half, solid), _gather(solids.centre, solid)
    rel = [p - c for p, c in zip(points.unbind(1), centre)]
    local = [rotation[c] * rel[0] + rotation[3 + c] * rel[1] + rotation[6 + c] * rel[2] for c in range(3)]
    unit = [x / h for x, h in zip(local, half)]
    boxes, ellipsoids = SLOTS["quad"], SLOTS["quad"] + SLOTS["box"]
    is_quad, is_box = solid < boxes, (solid >= boxes) & (solid < ellipsoids)
    is_ellipsoid = (solid >= ellipsoids) & (solid < ellipsoids + SLOTS["ellipsoid"])
    size = [u.abs() for u in unit]
    largest = torch.maximum(torch.maximum(size[0], size[1]), size[2])
    cap = size[2] > 0.999
    one, zero = torch.ones_like(largest), torch.zeros_like(largest)
    normal = []
    for k in range(3):
        quad = one if k == 2 else zero
        box = torch.where(size[k] >= largest, unit[k].sign(), zero)
        round_ = unit[k] / half[k]
        side = torch.where(cap, unit[2].sign(), zero) if k == 2 else torch.where(cap, zero, round_)
        normal.append(torch.where(is_quad, quad, torch.where(is_box, box, torch.where(is_ellipsoid, round_, side))))
    length = (normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2).sqrt().clamp(min=1e-9)
    normal = [c / length for c in normal]
    rows = (rotation[0:3], rotation[3:6], rotation[6:9])
    world = torch.stack([r[0] * normal[0] + r[1] * normal[1] + r[2] * normal[2] for r in rows], 1)
    return world, local, normal


def _surface_uv(local: list[Tensor], normal: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Metres along the two axes across the dominant axis of the local normal, and a different part for every face."""
    a = [c.abs() for c in normal]
    on_x, on_y = (a[0] > a[1]) & (a[0] >= a[2]), (a[1] >= a[0]) & (a[1] >= a[2])
    u = torch.where(on_x, local[1], local[0])
    v = torch.where(on_x | on_y, -local[2], local[1])
    face = torch.where(on_x, 1.3 * normal[0].sign(), torch.where(on_y, 2.9 * normal[1].sign(), 0.0))
    return u + face, v


def _albedo(bank: TextureBank, materials: Materials, slot: Tensor, u: Tensor, v: Tensor, pixel: Tensor) -> list[Tensor]:
    """Colour of the surfaces: the base texture, its tint and contrast, and the detail texture."""
    mapping = _gather(materials.mapping, slot)
    tu, tv = mapping[0] * u + mapping[1] * v + mapping[2], mapping[3] * u + mapping[4] * v + mapping[5]
    scale = (mapping[0] ** 2 + mapping[1] ** 2).sqrt()
    base = sample(bank, materials.texture.gather(1, slot), tu, tv, scale * pixel)
    times = materials.detail_scale.gather(1, slot)
    detail = sample(bank, materials.detail_texture.gather(1, slot), tu * times, tv * times, scale * times * pixel)
    strength = materials.detail_strength.gather(1, slot)
    bump = 1 + strength * (2 / 3 * (detail[0] + detail[1] + detail[2]) - 1)
    contrast, tint = materials.contrast.gather(1, slot), _gather(materials.tint, slot)
    return [(((c - 0.5) * contrast + 0.5) * t * bump).clamp(0, 1) for c, t in zip(base, tint)]


def _sky(bank: TextureBank, materials: Materials, direction: Tensor) -> list[Tensor]:
    """Colour of the panorama in the given directions."""
    x, y, z = (direction / direction.norm(dim=1, keepdim=True)).unbind(1)
    u = torch.atan2(y, x) / (2 * torch.pi) + 0.5 + materials.sky_turn[:, None]
    v = 0.5 - torch.asin(z.clamp(-0.999, 0.999)) / torch.pi
    texture = materials.sky_texture[:, None].expand_as(u)
    return sample(bank, texture, u, v, torch.full_like(u, 0.004))


def shade(
    bank: TextureBank,
    solids: Solids,
    materials: Materials,
    lights: Lights,
    origin: Tensor,
    direction: Tensor,
    t: Tensor,
    slot: Tensor,
    shadowed: Tensor,
    focal: Tensor,
) -> Tensor:
    """Linear-light image of the hits.

    Args:
        bank: the textures.
        solids: geometry of N scenes, one a view.
        materials: their surfaces.
        lights: their lights.
        origin: (N, 3, 1) camera centres.
        direction: (N, 3, M) rays with unit camera depth.
        t: (N, M) depth of the hits.
        slot: (N, M) what was hit (see `solids.first_hit`).
        shadowed: (N, M) bool, a solid hides the light.
        focal: (N,) focal length in pixels.

    Returns:
        (N, 3, M) colours, about [0, 1.5].
    """
    points = origin + t[:, None] * direction
    on_field, is_sky = slot == FIELD, slot > FIELD
    surface = slot.clamp(max=FIELD)
    normal, local, local_normal = surface_normal(solids, surface, points)
    field_normal = height_normal(solids, points[:, 0], points[:, 1])
    normal = torch.where(on_field[:, None], field_normal, normal)
    u, v = _surface_uv(local, local_normal)
    u, v = torch.where(on_field, points[:, 0], u), torch.where(on_field, points[:, 1], v)

    view = -direction / direction.norm(dim=1, keepdim=True)
    cosine = (normal * view).sum(1)
    normal, cosine = normal * cosine.sign()[:, None], cosine.abs()
    albedo = _albedo(bank, materials, surface, u, v, t / focal[:, None] / cosine.clamp(min=0.2).sqrt())

    to_light = lights.position[:, :, None] - points
    to_light = to_light / to_light.norm(dim=1, keepdim=True)
    lit = 1 - lights.shadow[:, None] * shadowed.float()
    diffuse = (normal * to_light).sum(1).clamp(min=0) * lit
    half_way = to_light + view
    half_way = half_way / half_way.norm(dim=1, keepdim=True)
    shine = materials.gloss.gather(1, surface) * (normal * half_way).sum(1).clamp(min=0) ** 24 * lit
    sky = _sky(bank, materials, direction)
    clear = torch.exp(-lights.haze[:, None] * t)
    image = []
    for c in range(3):
        colour = albedo[c] * (lights.ambient[:, c, None] + lights.colour[:, c, None] * diffuse) + shine
        colour = clear * colour + (1 - clear) * lights.ambient[:, c, None]
        image.append(torch.where(is_sky, sky[c], colour))
    return torch.stack(image, 1)
