"""The scene engine: batches of rendered image pairs with exact geometry, on any device, deterministic by seed."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dust3r.datasets.synthetic.builder import CameraPlan, Scenes, join
from dust3r.datasets.synthetic.cameras import Cameras, draw_intrinsics, look_at, project, ray_directions
from dust3r.datasets.synthetic.families import FAMILIES
from dust3r.datasets.synthetic.photometric import develop, draw_photometry
from dust3r.datasets.synthetic.rng import Rng
from dust3r.datasets.synthetic.shading import draw_lights, shade
from dust3r.datasets.synthetic.solids import FAR, FIELD, Solids, first_hit, intersect_height_field, occluded
from dust3r.datasets.synthetic.textures import TextureConfig, build_bank

logger = logging.getLogger(__name__)

_PROBE = 14  # side of the coarse renderings that choose cameras
_FIRST, _SECOND = 5, 10  # candidates for the first and the second camera
_TRIES = 4  # correspondences tried for each one wanted
_SEEN_TOLERANCE = 0.02  # relative depth difference up to which a point counts as visible
# Without these the compiler writes intermediate intersections to memory: five times slower on a CPU.
_FUSE_ALL = {
    "realize_opcount_threshold": 10_000,
    "realize_reads_threshold": 1_000,
    "realize_acc_reads_threshold": 1_000,
}


@dataclass(frozen=True)
class SyntheticConfig:
    """What the engine renders.

    Attributes:
        textures: the texture bank.
        families: names and relative frequencies of the scene families.
        fov_degrees: range of the field of view along the longer side.
        roll_degrees: standard deviation of the cameras' roll.
        turned: share of pairs, 0 to 1, one of whose cameras is rolled by any angle.
        photometric: strength of the camera response's variation, 0 to 1.
        compile: compile the renderer (needs a C++ compiler on a CPU; falls back to eager without one).
    """

    textures: TextureConfig = field(default_factory=TextureConfig)
    families: tuple[tuple[str, float], ...] = (
        ("room", 0.3),
        ("street", 0.15),
        ("terrain", 0.1),
        ("objects", 0.2),
        ("planar", 0.1),
        ("clutter", 0.15),
    )
    fov_degrees: tuple[float, float] = (35.0, 100.0)
    roll_degrees: float = 8.0
    turned: float = 0.0
    photometric: float = 1.0
    compile: bool = True


@dataclass(frozen=True)
class Rendering:
    """N rendered views.

    Attributes:
        image: (N, 3, H, W) in [-1, 1].
        depth: (N, H, W) metres along the optical axis, 0 in the sky.
        points: (N, H, W, 3) world metres.
    """

    image: Tensor
    depth: Tensor
    points: Tensor


def _compiled(function: Callable, wanted: bool, options: dict | None = None) -> Callable:
    if not wanted or (not torch.cuda.is_available() and not (shutil.which("g++") or shutil.which("clang++"))):
        return function
    return torch.compile(function, dynamic=False, options=options)


class SceneEngine:
    """Renders training pairs.

    Args:
        config: what to render.
        device: where to render; scenes themselves are drawn on the CPU, so a seed means the same scene everywhere.
    """

    def __init__(self, config: SyntheticConfig | None = None, device: torch.device | str = "cpu"):
        self.config = config or SyntheticConfig()
        self.device = torch.device(device)
        self.bank = build_bank(self.config.textures)
        self._device_bank = self.bank.to(self.device)
        self._first_hit = _compiled(first_hit, self.config.compile, _FUSE_ALL)
        self._occluded = _compiled(occluded, self.config.compile, _FUSE_ALL)
        self._shade = _compiled(shade, self.config.compile)
        self._develop = _compiled(develop, self.config.compile)

    @torch.no_grad()
    def pairs(
        self,
        seed: int,
        batch_size: int,
        *,
        height: int = 224,
        width: int = 224,
        overlap: tuple[float, float] = (0.05, 0.95),
        n_corres: int = 512,
        difficulty: float = 1.0,
    ) -> tuple[dict, dict]:
        """Render a batch of pairs.

        Args:
            seed: the same seed gives the same batch.
            batch_size: number of pairs B.
            height: image height, a multiple of 16.
            width: image width, a multiple of 16.
            overlap: range of the share of view 1 that view 2 sees; the nearest candidate camera is taken.
            n_corres: number N of pixel correspondences; where fewer exist, the rest are marked invalid.
            difficulty: scales what else differs between views: roll, focal length, lighting, camera response.

        Returns:
            Two views in the official form: img, true_shape, depthmap, camera_pose, camera_intrinsics, pts3d (world),
            valid_mask, sky_mask, is_metric_scale, corres, valid_corres, idx, instance, dataset, label.

        Raises:
            ValueError: if a side is not a multiple of 16.
        """
        if height % 16 or width % 16:
            raise ValueError(f"height and width must be multiples of 16, got {height} x {width}: round them to 16")
        rng = Rng(seed)
        scenes, indoor = self._draw_scenes(rng, batch_size)
        first, second = self._draw_cameras(rng, scenes, overlap, difficulty, height, width)
        both = Cameras(
            torch.stack([first.K, second.K], 1).flatten(0, 1),
            torch.stack([first.world_from_cam, second.world_from_cam], 1).flatten(0, 1),
        )
        rendering = self._render(rng, scenes, both, indoor, difficulty, height, width)
        on_device = both.to(self.device)
        corres, matched = self._correspondences(rng, rendering, on_device, n_corres)
        metric = scenes.plan.metric.to(self.device)
        return tuple(  # type: ignore[return-value]
            self._view(v, seed, rendering, on_device, corres[v], matched, metric) for v in range(2)
        )

    def _draw_scenes(self, rng: Rng, count: int) -> tuple[Scenes, Tensor]:
        """Scenes of the wanted families, and which of them are indoors."""
        names, weights = zip(*self.config.families)
        counts = rng.split(count, weights)
        parts = [FAMILIES[name](k, rng, self.bank) for name, k in zip(names, counts) if k]
        indoor = torch.cat([torch.full((k,), name in ("room", "clutter")) for name, k in zip(names, counts)])
        return join(parts), indoor

    def _trace(
        self, solids: Solids, fields: Tensor, origin: Tensor, direction: Tensor, block: int
    ) -> tuple[Tensor, Tensor]:
        """Depth and slot (N, M) of first hits; `fields` (N,) bool on the CPU: which scenes have a height field.

        Views go through `block` at a time: compiled code is made for one number of views, and that takes long.
        """
        hits = [self._first_hit(*part) for part in zip(*(x.split(block) for x in (solids, origin, direction)))]
        t, slot = (torch.cat(column) for column in zip(*hits))
        rows = fields.nonzero()[:, 0].to(self.device)
        if len(rows):
            ground = intersect_height_field(solids.select(rows), origin[rows], direction[rows])
            closer = ground < t[rows]
            t = t.index_copy(0, rows, torch.where(closer, ground, t[rows]))
            slot = slot.index_copy(0, rows, torch.where(closer, FIELD, slot[rows]).int())
        return t, slot.long()

    def _draw_cameras(
        self,
        rng: Rng,
        scenes: Scenes,
        overlap: tuple[float, float],
        difficulty: float,
        height: int,
        width: int,
    ) -> tuple[Cameras, Cameras]:
        """Choose among candidates the first camera with the clearest view, then the second with the wanted overlap."""
        plan, n = scenes.plan, len(scenes.plan.reach)
        fov = rng.uniform(*self.config.fov_degrees, n, 1)
        turns = _draw_turns(rng, n, self.config.turned)
        eye, target = _draw_eyes(rng, plan, _FIRST)
        roll = rng.normal(self.config.roll_degrees * difficulty, n, _FIRST) + turns[0][:, None]
        first = self._candidates(rng, eye, target, fov.expand(n, _FIRST), roll, height, width)
        depth, _ = self._probe(scenes.solids, first, _FIRST, height, width)
        pick = _clearest(depth.cpu(), plan.metric)
        rows = torch.arange(n)
        chosen = first.select(rows * _FIRST + pick)
        eye, target = _move_eyes(rng, plan, eye[rows, pick], target[rows, pick], _SECOND)
        other_fov = torch.where(
            rng.chance(1 - 0.5 * difficulty, n, 1), fov, rng.uniform(*self.config.fov_degrees, n, 1)
        )
        roll = rng.normal(self.config.roll_degrees * difficulty, n, _SECOND) + turns[1][:, None]
        second = self._candidates(rng, eye, target, other_fov.expand(n, _SECOND), roll, height, width)
        seen, clear = self._overlaps(scenes.solids, chosen, second, height, width)
        wanted = rng.uniform(*overlap, n, 1)
        cost = (seen.cpu() - wanted).abs() + 2.0 * (~clear.cpu()).float()
        return chosen, second.select(rows * _SECOND + cost.argmin(1))

    def _candidates(
        self, rng: Rng, eye: Tensor, target: Tensor, fov: Tensor, roll: Tensor, height: int, width: int
    ) -> Cameras:
        """Cameras (B * k) at `eye` that look at `target` (B, k, 3), with field of view and `roll` (B, k) in degrees."""
        pose = look_at(eye.flatten(0, 1), target.flatten(0, 1), torch.deg2rad(roll.flatten()))
        return Cameras(draw_intrinsics(rng, fov.flatten(), height, width), pose)

    def _probe(self, solids: Solids, cameras: Cameras, k: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Coarse depth (B, k, M) of k cameras a scene, and world points (B * k, 3, M)."""
        small = _shrunk(cameras, height, width).to(self.device)
        direction = ray_directions(small, _PROBE, _PROBE)
        solids = solids.repeat(k)
        depth, _ = self._trace(
            solids.to(self.device), solids.has_field, small.centre[..., None], direction, len(solids.present) // k
        )
        points = small.centre[..., None] + depth[:, None] * direction
        return depth.unflatten(0, (-1, k)), points

    def _overlaps(
        self, solids: Solids, first: Cameras, second: Cameras, height: int, width: int
    ) -> tuple[Tensor, Tensor]:
        """Share (B, k) of the first camera's points that each second camera sees, and whether its view is clear."""
        n, k = len(first.K), len(second.K) // len(first.K)
        depth, points = self._probe(solids, first, 1, height, width)
        hit = (depth[:, 0] < 0.9 * FAR).repeat_interleave(k, 0)
        points = points.repeat_interleave(k, 0)
        there = second.to(self.device)
        x, y, z = project(there, points)
        inside = (x > 0) & (x < width - 1) & (y > 0) & (y < height - 1) & (z > 0.05)
        repeated, centre = solids.repeat(k), there.centre[..., None]
        t, _ = self._trace(repeated.to(self.device), repeated.has_field, centre, points - centre, n)
        visible = hit & inside & (t > 1 - _SEEN_TOLERANCE)
        seen = visible.sum(1) / hit.sum(1).clamp(min=1)
        probe, _ = self._probe(solids, second, k, height, width)
        clear = (probe.flatten(0, 1).quantile(0.05, dim=1) > 0.2) & (hit.sum(1) > 0)
        return seen.view(n, k), clear.view(n, k)

    def _render(
        self,
        rng: Rng,
        scenes: Scenes,
        cameras: Cameras,
        indoor: Tensor,
        difficulty: float,
        height: int,
        width: int,
    ) -> Rendering:
        n = len(indoor)
        around = cameras.centre.view(n, 2, 3).mean(1)
        lights = draw_lights(rng, n, 2, indoor, around, difficulty).to(self.device)
        camera_response = draw_photometry(rng, 2 * n, self.config.photometric * difficulty).to(self.device)
        noise_seed = int(rng.integers(2**31, 1))
        fields = scenes.solids.has_field.repeat_interleave(2)
        solids, materials = (
            scenes.solids.to(self.device).repeat(2),
            scenes.materials.to(self.device).repeat(2),
        )
        cameras = cameras.to(self.device)
        direction, origin = ray_directions(cameras, height, width), cameras.centre[..., None].contiguous()
        t, slot = self._trace(solids, fields, origin, direction, len(origin))
        lifted = origin + (t * (1 - 2e-3))[:, None] * direction
        shadowed = self._occluded(solids, lifted, lights.position[..., None])
        focal = cameras.K[:, 0, 0].contiguous()
        bank = self._device_bank
        image = self._shade(bank, solids, materials, lights, origin, direction, t, slot, shadowed, focal)
        generator = torch.Generator(self.device).manual_seed(noise_seed)
        noise = torch.randn(2 * n, 3, height, width, generator=generator, device=self.device)
        image = self._develop(image.view(2 * n, 3, height, width), camera_response, noise)
        points = (origin + t[:, None] * direction).transpose(1, 2).reshape(2 * n, height, width, 3)
        depth = torch.where(t < 0.9 * FAR, t, 0.0).view(2 * n, height, width)
        return Rendering(image * 2 - 1, depth, points)

    def _correspondences(
        self, rng: Rng, rendering: Rendering, cameras: Cameras, count: int
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Random pixels of view 1 with their pixel in view 2: two (B, N, 2) int64 tensors, and which are true.

        More pixels than asked for are tried, so that views with little overlap still fill their share.
        """
        n, height, width = len(rendering.depth) // 2, *rendering.depth.shape[1:]
        tried = rng.integers(height * width, n, _TRIES * count).to(self.device)
        column, row, seen = self._transfer(rendering, cameras, tried)
        order = seen.int().argsort(dim=1, descending=True, stable=True)[:, :count]
        tried, column, row = (x.gather(1, order) for x in (tried, column, row))
        here = torch.stack([tried % width, tried // width], -1)
        return (here, torch.stack([column, row], -1)), seen.gather(1, order)

    def _transfer(self, rendering: Rendering, cameras: Cameras, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The pixel (x, y) in view 2 of flat pixel indices (B, T) of view 1, clamped, and whether it is seen there."""
        _, height, width = rendering.depth.shape
        points = rendering.points[0::2].flatten(1, 2).gather(1, pixels[..., None].expand(-1, -1, 3)).transpose(1, 2)
        depth1 = rendering.depth[0::2].flatten(1).gather(1, pixels)
        x, y, z = project(Cameras(cameras.K[1::2], cameras.world_from_cam[1::2]), points)
        column, row = x.round().clamp(0, width - 1).long(), y.round().clamp(0, height - 1).long()
        inside = (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5) & (z > 0)
        there = rendering.depth[1::2].flatten(1).gather(1, row * width + column)
        seen = inside & (depth1 > 0) & (there > 0) & ((there - z).abs() < _SEEN_TOLERANCE * z)
        return column, row, seen

    def _view(
        self,
        v: int,
        seed: int,
        rendering: Rendering,
        cameras: Cameras,
        corres: Tensor,
        matched: Tensor,
        metric: Tensor,
    ) -> dict:
        image, depth = rendering.image[v::2].contiguous(), rendering.depth[v::2]
        n, _, height, width = image.shape
        return {
            "img": image,
            "true_shape": torch.tensor([[height, width]], device=self.device).expand(n, 2),
            "depthmap": depth,
            "camera_pose": cameras.world_from_cam[v::2],
            "camera_intrinsics": cameras.K[v::2],
            "pts3d": rendering.points[v::2],
            "valid_mask": depth > 0,
            "sky_mask": depth == 0,
            "is_metric_scale": metric,
            "corres": corres,
            "valid_corres": matched,
            "idx": list(range(n)),
            "instance": [f"{seed}-{i}-{v}" for i in range(n)],
            "dataset": ["synthetic"] * n,
            "label": [str(seed)] * n,
        }


def _shrunk(cameras: Cameras, height: int, width: int) -> Cameras:
    """The same cameras with `_PROBE` x `_PROBE` pixels."""
    sx, sy = _PROBE / width, _PROBE / height
    scale = torch.tensor([[sx, 1, sx], [1, sy, sy], [1, 1, 1]])
    shift = torch.zeros(3, 3)
    shift[0, 2], shift[1, 2] = 0.5 * sx - 0.5, 0.5 * sy - 0.5
    return Cameras(cameras.K * scale + shift, cameras.world_from_cam)


def _draw_turns(rng: Rng, n: int, share: float) -> Tensor:
    """Roll (2, n) in degrees, any angle for one camera of a `share` of the pairs; nothing is drawn for a share of 0."""
    if not share:
        return torch.zeros(2, n)
    angle = torch.where(rng.chance(share, n), rng.uniform(-180, 180, n), 0.0)
    is_first = rng.chance(0.5, n)
    return torch.stack([torch.where(is_first, angle, 0.0), torch.where(is_first, 0.0, angle)])


def _draw_eyes(rng: Rng, plan: CameraPlan, k: int) -> tuple[Tensor, Tensor]:
    """K random centres and targets (B, k, 3) a scene."""
    n = len(plan.reach)
    eye = plan.eye_low[:, None] + (plan.eye_high - plan.eye_low)[:, None] * rng.uniform(0, 1, n, k, 3)
    target = plan.target_low[:, None] + (plan.target_high - plan.target_low)[:, None] * rng.uniform(0, 1, n, k, 3)
    return eye, target


def _move_eyes(rng: Rng, plan: CameraPlan, eye: Tensor, target: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """K second cameras for a first one, from a small step to the plan's whole reach; some circle the target."""
    n = len(eye)
    amount = rng.log_uniform(0.04, 1.0, n, k)
    step = torch.nn.functional.normalize(rng.normal(1, n, k, 3) * torch.tensor([1.0, 1.0, 0.4]), dim=-1)
    shifted = eye[:, None] + step * (amount * plan.reach[:, None])[..., None]
    arm = (eye - target)[:, None].expand(n, k, 3)
    angle = amount * rng.uniform(-2.2, 2.2, n, k)
    c, s = angle.cos(), angle.sin()
    turned = torch.stack([c * arm[..., 0] - s * arm[..., 1], s * arm[..., 0] + c * arm[..., 1], arm[..., 2]], -1)
    turned = target[:, None] + turned * torch.exp(amount * rng.normal(0.35, n, k))[..., None]
    moved = torch.where((plan.orbit[:, None] | rng.chance(0.4, n, k))[..., None], turned, shifted)
    moved = torch.maximum(torch.minimum(moved, plan.eye_high[:, None]), plan.eye_low[:, None])
    _, other = _draw_eyes(rng, plan, k)
    wander = amount * rng.uniform(0, 0.7, n, k)
    return moved, target[:, None] + wander[..., None] * (other - target[:, None])


def _clearest(depth: Tensor, metric: Tensor) -> Tensor:
    """Index (B,) of the candidate that looks at most surface without anything right before the lens."""
    hit = depth < 0.9 * FAR
    near = torch.where(hit, depth, FAR).quantile(0.05, dim=-1)
    score = hit.float().mean(-1).clamp(max=0.7) + (near / torch.where(metric, 0.6, 0.25)[:, None]).clamp(max=1)
    return score.argmax(1)
