"""Dense depth that many views agree on, by a truncated signed distance along each pixel's ray."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mast3r.cloud_opt.dense import unproject
from mast3r.cloud_opt.sparse_ga import SparseGA

SAMPLES = 200
"""Depths tried per pixel. Evenly spaced in share, they cover the ray as 1000 random ones do."""

_FLAT = 1e-6  # a ray along which the distance does not change says nothing about the depth


class TSDFPostProcess:
    """An aligned scene whose dense depth is moved to where most views see a surface.

    Args:
        optimizer: The aligned scene.
        subsample: Side of its blocks.
        TSDF_thresh: Distance in scene units, behind a surface, up to which a view has a say; 0 leaves the depth as
            it is.
        TSDF_batchsize: Points looked up at once, which bounds the memory.

    Raises:
        ValueError: If the threshold is negative or the batch size not positive.
    """

    def __init__(
        self,
        optimizer: SparseGA,
        subsample: int = 8,
        TSDF_thresh: float = 0.0,
        TSDF_batchsize: int = 10_000_000,
    ) -> None:
        if not TSDF_thresh >= 0 or int(TSDF_batchsize) < 1:
            raise ValueError(
                f"TSDF_thresh must not be negative and TSDF_batchsize at least 1, got {TSDF_thresh} and "
                f"{TSDF_batchsize}."
            )
        self.optimizer = optimizer
        self.subsample = subsample
        self.TSDF_thresh = TSDF_thresh
        self.TSDF_batchsize = int(TSDF_batchsize)
        self._depths = optimizer.dense_depths()
        self._confidences = [view.confidence for view in optimizer.source.views]

    def __getattr__(self, name: str) -> Any:
        """What the scene offers: poses, focals, images, sparse points."""
        if name in ("optimizer", "__setstate__"):
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    @torch.no_grad()
    def get_dense_pts3d(
        self, clean_depth: bool = True, subsample: int | None = None
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """A point for every pixel, after moving it along its ray (see `SparseGA.get_dense_pts3d`)."""
        scene = self.optimizer
        if not self.TSDF_thresh > 0:
            return scene.get_dense_pts3d(clean_depth, self.subsample if subsample is None else subsample)
        depths = [self.refined_depth(image) for image in range(scene.n_imgs)]
        points = [unproject(depth, K, pose) for depth, K, pose in zip(depths, scene.intrinsics, scene.cam2w)]
        confidences = list(self._confidences)
        if clean_depth:
            confidences = scene.clean(confidences, depths, points)
        return [p.reshape(-1, 3) for p in points], [d.flatten() for d in depths], confidences

    @torch.no_grad()
    def refined_depth(self, image: int) -> Tensor:
        """(H, W) depth of an image, each where the signed distance along the ray is closest to zero."""
        depth = self._depths[image]
        scene = self.optimizer
        direction = unproject(torch.ones_like(depth), scene.intrinsics[image], scene.cam2w[image])
        center = scene.cam2w[image, :3, 3]
        rays = (direction - center).reshape(-1, 3)
        steps = self._steps(depth)
        best = []
        for part in torch.arange(len(rays), device=rays.device).split(max(1, self.TSDF_batchsize // len(steps))):
            candidates = depth.flatten()[part, None] + steps
            points = center + rays[part, None] * candidates[..., None]
            value, known = self.query(points.reshape(-1, 3))
            chosen = _closest_to_surface(candidates, value.view_as(candidates), known.view_as(candidates))
            best.append(torch.where(chosen.isfinite(), chosen, depth.flatten()[part]))
        return torch.cat(best).reshape(depth.shape)

    @torch.no_grad()
    def query(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distance of points to the surface the views see, positive in front of it.

        Args:
            points: (M, 3) in the world.

        Returns:
            (M,) mean of the views' distances, weighted by exp(confidence), 0 where no view has a say, and (M,)
            bool: whether one has.
        """
        scene = self.optimizer
        total, weights = points.new_zeros(len(points)), points.new_zeros(len(points))
        for K, pose, depth, confidence in zip(scene.intrinsics, scene.cam2w, self._depths, self._confidences):
            distance, pixel, known = _distance_to_depth(points, K, pose, depth)
            known &= distance >= -self.TSDF_thresh
            weight = confidence.flatten()[pixel].to(total).exp() * known
            total += weight * distance
            weights += weight
        return total / weights.clamp(min=torch.finfo(weights.dtype).tiny), weights > 0

    def _steps(self, like: Tensor) -> Tensor:
        """Offsets from the depth at which it is tried: spread as a normal distribution, most in front of it.

        Evenly spaced quantiles in place of random draws: the same density, and the same result every time.
        """
        share = (torch.arange(SAMPLES, dtype=torch.float64) + 0.5) / SAMPLES
        return (self.TSDF_thresh * (torch.special.ndtri(share) - 1)).to(like)


def _distance_to_depth(points: Tensor, K: Tensor, pose: Tensor, depth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How far points (M, 3) lie in front of a depth map, the pixel they fall on and whether they do."""
    height, width = depth.shape
    local = (points - pose[:3, 3]) @ pose[:3, :3]
    z = local[:, 2]
    xy = (local @ K.T)[:, :2] / z[:, None]
    x, y = xy.nan_to_num(-1.0, -1.0, -1.0).clamp(-1, max(height, width)).round().long().unbind(dim=1)
    inside = (z > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    pixel = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    return depth.flatten()[pixel] - z, pixel, inside


def _closest_to_surface(candidates: Tensor, value: Tensor, known: Tensor) -> Tensor:
    """(P,) depth among candidates (P, S) with the value closest to 0; NaN for a ray that says nothing."""
    distance = torch.where(known, value.abs(), torch.inf)
    chosen = candidates.gather(1, distance.argmin(dim=1, keepdim=True))[:, 0]
    highest = torch.where(known, value, -torch.inf).amax(dim=1)
    lowest = torch.where(known, value, torch.inf).amin(dim=1)
    says_something = known.any(dim=1) & (highest - lowest > _FLAT)
    return torch.where(says_something, chosen, torch.nan)
