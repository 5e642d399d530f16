"""Collects the solids of a batch of scenes family by family and gives every surface a material."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from dust3r.datasets.synthetic.rng import Rng
from dust3r.datasets.synthetic.solids import SLOTS, WAVES, Solids
from dust3r.datasets.synthetic.textures import TextureBank

Surface = Literal["photo", "fitted photo", "material", "ground"]
_SURFACES: tuple[Surface, ...] = ("photo", "fitted photo", "material", "ground")


@dataclass(frozen=True)
class Materials:
    """Appearance of the P + 1 surfaces (the last one is the height field) of B scenes, and of the sky.

    Attributes:
        texture: (B, P + 1) int64 index in the bank.
        mapping: (B, P + 1, 6) rows of the 2 x 3 affine map from metres on the surface to texture units.
        tint: (B, P + 1, 3) multiplies the texture's colour.
        contrast: (B, P + 1) around mid grey.
        gloss: (B, P + 1) strength of the highlight.
        detail_texture, detail_scale, detail_strength: (B, P + 1) a second texture that modulates the first.
        sky_texture: (B,) int64; sky_turn: (B,) rotation in turns.
    """

    texture: Tensor
    mapping: Tensor
    tint: Tensor
    contrast: Tensor
    gloss: Tensor
    detail_texture: Tensor
    detail_scale: Tensor
    detail_strength: Tensor
    sky_texture: Tensor
    sky_turn: Tensor

    def to(self, device: torch.device) -> Materials:
        """The same materials on another device."""
        return Materials(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))

    def repeat(self, views: int) -> Materials:
        """Repeat each scene for `views` cameras."""
        return Materials(*(getattr(self, f.name).repeat_interleave(views, 0) for f in fields(self)))


@dataclass(frozen=True)
class CameraPlan:
    """Where the cameras of B scenes may stand and look.

    Attributes:
        eye_low, eye_high: (B, 3) box of camera centres.
        target_low, target_high: (B, 3) box of points looked at.
        reach: (B,) largest baseline in metres.
        orbit: (B,) bool, second cameras circle around the target instead of shifting.
        metric: (B,) bool, objects have the size they have in the world.
    """

    eye_low: Tensor
    eye_high: Tensor
    target_low: Tensor
    target_high: Tensor
    reach: Tensor
    orbit: Tensor
    metric: Tensor


@dataclass(frozen=True)
class Scenes:
    """B scenes: geometry, appearance and camera regions, drawn on the CPU."""

    solids: Solids
    materials: Materials
    plan: CameraPlan


def join(parts: list[Scenes]) -> Scenes:
    """Join batches of scenes into one."""

    def cat(kind, group):
        return kind(*(torch.cat([getattr(p, f.name) for p in group]) for f in fields(kind)))

    return Scenes(
        cat(Solids, [p.solids for p in parts]),
        cat(Materials, [p.materials for p in parts]),
        cat(CameraPlan, [p.plan for p in parts]),
    )


def turned(yaw: Tensor) -> Tensor:
    """Rotations (..., 3, 3) about the vertical axis by `yaw` (...) radians."""
    c, s, zero, one = yaw.cos(), yaw.sin(), torch.zeros_like(yaw), torch.ones_like(yaw)
    return torch.stack([c, -s, zero, s, c, zero, zero, zero, one], -1).unflatten(-1, (3, 3))


def facing(normal: Tensor) -> Tensor:
    """Rotations (..., 3, 3) of upright quads with horizontal `normal` (..., 3): texture upright, v downwards."""
    down = torch.zeros_like(normal)
    down[..., 2] = -1
    return torch.stack([torch.linalg.cross(down, normal), down, normal], -1)


def tumbled(rng: Rng, *shape: int) -> Tensor:
    """Uniformly random rotations (*shape, 3, 3)."""
    q = torch.nn.functional.normalize(rng.normal(1, *shape, 4), dim=-1)
    w, x, y, z = q.unbind(-1)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]
    rows += [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]
    rows += [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


class SceneBuilder:
    """Adds solids, k at a time, to each of `count` scenes."""

    def __init__(self, count: int, rng: Rng, bank: TextureBank):
        self.count, self.rng, self.bank = count, rng, bank
        self._parts: dict[str, list[tuple[Tensor, ...]]] = {kind: [] for kind in SLOTS}
        self._waves = (torch.zeros(count, WAVES, 2), torch.zeros(count, WAVES), torch.zeros(count, WAVES))
        self._level = torch.full((count,), -1e4)

    def add(
        self,
        kind: str,
        centre: Tensor,
        half: Tensor,
        rotation: Tensor | None = None,
        *,
        present: Tensor | None = None,
        surface: Surface = "material",
    ) -> None:
        """Add k solids to every scene: centre, half (B, k, 3), rotation (B, k, 3, 3), present (B, k) bool."""
        n, k = centre.shape[:2]
        rotation = torch.eye(3).expand(n, k, 3, 3) if rotation is None else rotation
        present = torch.ones(n, k, dtype=torch.bool) if present is None else present
        code = torch.full((n, k), _SURFACES.index(surface))
        self._parts[kind].append((rotation, centre, half.clamp(min=1e-3), present, code))

    def add_height_field(self, frequency: Tensor, phase: Tensor, amplitude: Tensor, level: Tensor) -> None:
        """Give the scenes a height field (see `Solids`)."""
        self._waves, self._level = (frequency, phase, amplitude), level

    def finish(self, plan: CameraPlan) -> Scenes:
        """Pad every kind to its slots and draw the materials."""
        columns = [self._padded(kind) for kind in SLOTS]
        rotation, centre, half, present, code = (torch.cat(c, 1) for c in zip(*columns))
        solids = Solids(rotation, centre, half, present, *self._waves, self._level)
        ground = torch.full((self.count, 1), _SURFACES.index("ground"))
        return Scenes(solids, self._materials(half, torch.cat([code, ground], 1)), plan)

    def _padded(self, kind: str) -> tuple[Tensor, ...]:
        missing = SLOTS[kind] - sum(part[1].shape[1] for part in self._parts[kind])
        if missing < 0:
            raise ValueError(f"a scene has {-missing} {kind} solids too many: raise the slots in solids.py")
        if missing:
            nothing = torch.zeros(self.count, missing, 3)
            absent = torch.zeros(self.count, missing, dtype=torch.bool)
            self.add(kind, nothing, nothing + 1, present=absent)
        return tuple(torch.cat(column, 1) for column in zip(*self._parts[kind]))

    def _materials(self, half: Tensor, code: Tensor) -> Materials:
        rng, bank, (n, p) = self.rng, self.bank, code.shape
        as_photo = code <= 1
        as_photo |= (code == 2) & rng.chance(0.5, n, p)
        texture = torch.where(as_photo, rng.pick(bank.photos, n, p), rng.pick(bank.materials, n, p))
        grey = rng.uniform(0.75, 1.25, n, p, 1)
        return Materials(
            texture=texture,
            mapping=self._mapping(half, code, as_photo),
            tint=grey * rng.uniform(0.8, 1.2, n, p, 3),
            contrast=rng.uniform(0.7, 1.3, n, p),
            gloss=torch.where(rng.chance(0.2, n, p), rng.uniform(0.05, 0.4, n, p), 0.0),
            # Over a photo something finer; over a repeating material a large photo, so that no two places look alike.
            detail_texture=torch.where(as_photo, rng.pick(bank.materials, n, p), rng.pick(bank.photos, n, p)),
            detail_scale=torch.where(as_photo, rng.log_uniform(3, 8, n, p), rng.log_uniform(0.15, 0.6, n, p)),
            detail_strength=torch.where(as_photo, rng.uniform(-0.3, 0.8, n, p), rng.uniform(0.2, 1.0, n, p)).clamp(
                min=0
            ),
            sky_texture=rng.pick(bank.skies, n),
            sky_turn=rng.uniform(0, 1, n),
        )

    def _mapping(self, half: Tensor, code: Tensor, as_photo: Tensor) -> Tensor:
        """Affine map of every surface: a photo spans the face about once, a material repeats by the metre."""
        rng, (n, p) = self.rng, code.shape
        half = torch.cat([half, torch.ones(n, 1, 3)], 1)
        extent = half.amax(-1)
        scale = torch.where(as_photo, rng.uniform(0.4, 1.1, n, p) / extent, rng.log_uniform(0.3, 2.5, n, p))
        scale = torch.where(code == 3, rng.log_uniform(0.06, 0.5, n, p), scale)
        quarter = rng.integers(4, n, p) * (torch.pi / 2)
        angle = torch.where(as_photo, rng.normal(0.03, n, p), quarter + rng.normal(0.1, n, p))
        c, s = scale * angle.cos(), scale * angle.sin()
        mapping = torch.stack([c, -s, rng.uniform(0, 7, n, p), s, c, rng.uniform(0, 7, n, p)], -1)
        zero, mid = torch.zeros(n, p), torch.full((n, p), 0.5)
        fitted = torch.stack([0.5 / half[..., 0], zero, mid, zero, 0.5 / half[..., 1], mid], -1)
        return torch.where((code == 1)[..., None], fitted, mapping)
