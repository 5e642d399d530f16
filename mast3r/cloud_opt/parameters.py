"""Cameras and depths of aligned images, and the raw parameters behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from dust3r.cloud_opt.commons import to_homogeneous
from mast3r.cloud_opt.config import DepthMode
from mast3r.cloud_opt.problem import ImageGeometry, PixelRows

_FOCAL_RANGE = (0.25, 10.0)  # of the image diagonal


@dataclass(frozen=True, eq=False)
class SceneState:
    """Cameras and depth of N images at one moment.

    Attributes:
        K: (N, 3, 3) intrinsics in pixels.
        world_from_cam: (N, 4, 4).
        depth: (B,) depth of all anchors of all images, in the world's unit.
        slope: (N,) factor on (offset - 1): wider lenses flatten what a block holds.
        scale: (N,) world units per unit of the network, of each image.
    """

    K: Tensor
    world_from_cam: Tensor
    depth: Tensor
    slope: Tensor
    scale: Tensor

    def pixel_depth(self, rows: PixelRows) -> Tensor:
        """(C, P) depth of pixels."""
        anchor = self.depth.index_select(0, rows.anchor.flatten()).reshape(rows.anchor.shape)
        return anchor * (1 + rows.slope * self.slope[rows.image][:, None])

    def local_points(self, rows: PixelRows) -> Tensor:
        """(C, 3, P) points of pixels in their own camera."""
        to_ray = torch.linalg.inv_ex(self.K).inverse[rows.image]
        return (to_ray @ rows.pixel) * self.pixel_depth(rows)[:, None]

    def world_points(self, rows: PixelRows) -> Tensor:
        """(C, 3, P) points of pixels in the world."""
        pose = self.world_from_cam[rows.image]
        return torch.baddbmm(pose[:, :3, 3:], pose[:, :3, :3], self.local_points(rows))


@dataclass(frozen=True, eq=False)
class GivenCameras:
    """What does not move. Everything is in the internal unit of length.

    Attributes:
        pose: (N, 4, 4) fixed world_from_cam; any value where `has_pose` is False.
        has_pose: (N,) bool.
        K: (N, 3, 3) fixed intrinsics; any value where `has_intrinsics` is False.
        has_intrinsics: (N,) bool.
        has_depth: (B,) bool: anchors whose depth is not refined.
        knows_scale: (N,) bool: depth is in the world's unit, so the image has no scale of its own and its
            depth does not follow the focal.
        fixed_scale: Whether the world's unit is given; otherwise the smallest image scale is held at 1.
    """

    pose: Tensor
    has_pose: Tensor
    K: Tensor
    has_intrinsics: Tensor
    has_depth: Tensor
    knows_scale: Tensor
    fixed_scale: bool

    @classmethod
    def none(cls, images: ImageGeometry) -> GivenCameras:
        """Nothing is given."""
        count, like = len(images.size), images.size
        none = torch.zeros(count, dtype=torch.bool, device=like.device)
        pose, K = torch.eye(4).to(like).repeat(count, 1, 1), torch.eye(3).to(like).repeat(count, 1, 1)
        return cls(pose, none, K, none, torch.zeros_like(images.depth, dtype=torch.bool), none, False)

    def to(self, dtype: torch.dtype) -> GivenCameras:
        """In another precision."""
        return replace(self, pose=self.pose.to(dtype), K=self.K.to(dtype))


@dataclass(frozen=True)
class ParameterOptions:
    """Form of the parameters.

    Attributes:
        depth_mode: Whether refined depth adds to the image's scale or multiplies it.
        exp_depth: Whether the parameter is the logarithm of the depth.
        free_roots: Whether the camera at the root of the tree moves.
    """

    depth_mode: DepthMode = "add"
    exp_depth: bool = False
    free_roots: bool = False


@dataclass(frozen=True, eq=False)
class StartValues:
    """Where the optimisation begins.

    Attributes:
        focal: (N,) in pixels, (1,) if shared.
        center: (N, 2) principal point as a share of width and height, (1, 2) if shared.
        aspect: (N,) fy / fx.
        pose: (N, 4, 4) world_from_cam, or None for cameras that all look at one point.
        log_scale: (N,) logarithm of the scale of each image.
    """

    focal: Tensor
    center: Tensor
    aspect: Tensor
    pose: Tensor | None = None
    log_scale: Tensor | None = None


class SceneParameters(nn.Module):
    """The raw parameters of N images; calling it gives the `SceneState`.

    A camera turns about the point on its axis at the median depth of its image, not about its centre, and its
    scale moves it towards or away from that point: what it looks at stays put, which makes the steps of the
    optimiser independent of each other.

    Args:
        images: What is known of each image.
        parents: (N,) parent of each image in the kinematic forest; roots are their own.
        start: Where to begin.
        given: What does not move.
        options: Form of the parameters.
    """

    def __init__(
        self,
        images: ImageGeometry,
        parents: np.ndarray | Sequence[int],
        start: StartValues,
        *,
        given: GivenCameras | None = None,
        options: ParameterOptions | None = None,
    ) -> None:
        super().__init__()
        parents = np.asarray(parents)
        exact = given or GivenCameras.none(images)
        self._made_of = (images, parents, start, exact)
        self.images = images
        self.given = exact.to(images.depth.dtype)
        self.options = options or ParameterOptions()
        self._aspect = start.aspect
        self._block_image = images.block_image
        self._root = torch.from_numpy(parents == np.arange(len(parents))).to(images.size.device)
        self._parent = torch.from_numpy(parents).to(images.size.device)
        self._ancestors = [table.to(images.size.device) for table in _ancestor_tables(parents)]
        count, like = len(images.size), images.depth
        self.quaternion = nn.Parameter(like.new_tensor([0.0, 0.0, 0.0, 1.0]).repeat(count, 1))
        self.translation = nn.Parameter(like.new_zeros(count, 3))
        self.log_scale = nn.Parameter(like.new_zeros(count) if start.log_scale is None else start.log_scale.clone())
        self.log_focal = nn.Parameter(start.focal.log())
        self.center = nn.Parameter(start.center.clone())
        self.core = nn.Parameter(images.depth.log() if self.options.exp_depth else images.depth.clone())
        if start.pose is not None:
            self.set_poses(start.pose)

    def forward(self) -> SceneState:
        """The present cameras and depth."""
        images, given = self.images, self.given
        K, focal = self._intrinsics()
        slope = torch.where(given.knows_scale, 1.0, images.base_focal / focal)
        unit, scale = self._scales()
        middle = self._own_scale() * images.median_depth / slope
        world_from_cam = self._poses(K, unit, middle)
        depth = unit * self._core_depth(middle)
        return SceneState(K, world_from_cam, depth, slope, scale)

    def in_float64(self) -> SceneParameters:
        """The same scene in float64, at the start."""
        images, parents, start, given = self._made_of
        double = torch.float64
        start = StartValues(start.focal.to(double), start.center.to(double), start.aspect.to(double))
        return SceneParameters(images.to(double), parents, start, given=given.to(double), options=self.options)

    def normalize_(self) -> None:
        """Bring the quaternions back to unit length."""
        with torch.no_grad():
            self.quaternion /= self.quaternion.norm(dim=1, keepdim=True)

    @torch.no_grad()
    def set_poses(self, pose: Tensor) -> None:
        """Set the parameters such that the cameras stand at (N, 4, 4) world_from_cam."""
        import roma  # here: it loads the machinery of torch.compile, a second of work

        K, focal = self._intrinsics()
        slope = torch.where(self.given.knows_scale, 1.0, self.images.base_focal / focal)
        unit, _ = self._scales()
        middle = self._own_scale() * self.images.median_depth / slope
        tree = self._tree_poses(pose.to(K), K, unit, middle)
        relative = torch.where(self._root[:, None, None], tree, _rigid_inverse(tree[self._parent]) @ tree)
        self.quaternion.copy_(roma.rotmat_to_unitquat(relative[:, :3, :3]))
        self.translation.copy_(relative[:, :3, 3])

    # --------------------------------------------------------------------------------- parts of the state

    def _intrinsics(self) -> tuple[Tensor, Tensor]:
        """(N, 3, 3) K and (N,) focal."""
        size = self.images.size
        diagonal = size.norm(dim=1)
        focal = self.log_focal.exp().clamp(_FOCAL_RANGE[0] * diagonal, _FOCAL_RANGE[1] * diagonal)
        center = self.center * size
        root = self._aspect.sqrt()
        zero, one = torch.zeros_like(focal), torch.ones_like(focal)
        rows = (focal / root, zero, center[:, 0], zero, focal * root, center[:, 1], zero, zero, one)
        K = torch.stack(rows, dim=-1).reshape(-1, 3, 3)
        given = self.given.K
        K = torch.where(self.given.has_intrinsics[:, None, None], given, K)
        return K, torch.where(self.given.has_intrinsics, (given[:, 0, 0] * given[:, 1, 1]).abs().sqrt(), focal)

    def _own_scale(self) -> Tensor:
        """(N,) scale of each image before the common unit."""
        return torch.where(self.given.knows_scale, 1.0, self.log_scale.exp())

    def _scales(self) -> tuple[Tensor, Tensor]:
        """The common factor () that fixes the free unit of the scene, and the (N,) scales after it."""
        scale = self._own_scale()
        unit = torch.ones_like(scale[0]) if self.given.fixed_scale else scale.min().reciprocal()
        return unit, unit * scale

    def _core_depth(self, middle: Tensor) -> Tensor:
        """(B,) depth of the anchors before the common factor."""
        images, owner = self.images, self._block_image
        core = self.core.exp() if self.options.exp_depth else self.core
        core = torch.where(self.given.has_depth, images.depth, core)
        if self.options.depth_mode == "mul":
            return middle[owner] * core
        return middle[owner] + (core - 1) * (images.median_depth * self._own_scale())[owner]

    def _look_at(self, K: Tensor, middle: Tensor) -> Tensor:
        """(N, 3) point of each camera's frame about which it turns: the middle of the image at median depth."""
        focal = torch.stack([K[:, 0, 0], K[:, 1, 1]], dim=1)
        plane = (self.images.size / 2 - K[:, :2, 2]) / focal
        return torch.cat([plane, torch.ones_like(plane[:, :1])], dim=1) * middle[:, None]

    def _poses(self, K: Tensor, unit: Tensor, middle: Tensor) -> Tensor:
        """(N, 4, 4) world_from_cam."""
        import roma

        relative = to_homogeneous(
            roma.unitquat_to_rotmat(nn.functional.normalize(self.quaternion, dim=1)), self.translation
        )
        if not self.options.free_roots:
            relative = torch.where(self._root[:, None, None], relative.detach(), relative)
        given = self.given
        fixed = given.has_pose[:, None, None]
        relative = torch.where(fixed, self._tree_poses(given.pose, K, unit, middle), relative)
        tree = self._chained(relative)
        R = tree[:, :3, :3]
        shift = (R @ self._look_at(K, middle)[:, :, None])[..., 0]
        pose = to_homogeneous(R, unit * (tree[:, :3, 3] - shift))
        return torch.where(fixed, given.pose, pose)

    def _tree_poses(self, pose: Tensor, K: Tensor, unit: Tensor, middle: Tensor) -> Tensor:
        """(N, 4, 4) poses of the points the cameras turn about."""
        R = pose[:, :3, :3]
        return to_homogeneous(R, pose[:, :3, 3] / unit + (R @ self._look_at(K, middle)[:, :, None])[..., 0])

    def _chained(self, relative: Tensor) -> Tensor:
        """Absolute poses (N, 4, 4) of poses relative to the parent: products along the path to the root.

        After round k each entry holds the product of up to 2^k steps of its path, so that N images in a row
        need log2 N rounds.
        """
        identity = torch.eye(4).to(relative)[None]
        for ancestor in self._ancestors:
            relative = torch.cat([relative, identity])[ancestor] @ relative
        return relative


def shared_start(images: ImageGeometry, weight: Tensor) -> StartValues:
    """One focal for all images, the weighted mean of theirs.

    Args:
        images: The images.
        weight: (N,) how much each image's own focal counts.
    """
    focal = (weight * images.base_focal).sum() / weight.sum()
    return StartValues(focal[None], focal.new_full((1, 2), 0.5), torch.ones_like(images.base_focal))


def separate_start(images: ImageGeometry) -> StartValues:
    """Every image at the focal of its own pointmap and with its principal point in the middle."""
    count = len(images.base_focal)
    center = images.base_focal.new_full((count, 2), 0.5)
    return StartValues(images.base_focal, center, torch.ones_like(images.base_focal))


def _ancestor_tables(parents: np.ndarray) -> list[Tensor]:
    """For k = 0, 1, ...: the 2^k-th ancestor of each image, N where its path is shorter."""
    count = len(parents)
    roots = parents == np.arange(count)
    table = np.append(np.where(roots, count, parents), count)
    tables = []
    for _ in range(max(1, math.ceil(math.log2(count))) + 1):
        if (table == count).all():
            break
        tables.append(torch.from_numpy(table[:count].copy()))
        table = table[table]
    return tables


def _rigid_inverse(pose: Tensor) -> Tensor:
    R = pose[:, :3, :3].transpose(1, 2)
    return to_homogeneous(R, -(R @ pose[:, :3, 3:])[..., 0])
