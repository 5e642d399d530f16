"""Dense global alignment: one depth map and one camera per image that agree with all pairwise predictions.

Every edge e = (i, j) predicts the points of both images in one frame; a similarity per edge moves them to
the world, where they should meet the points that the images' depth maps and cameras give (DUSt3R, section
3.4). All edges are one padded batch: an optimiser step has no Python loop over edges or images.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from dust3r.cloud_opt.cleaning import clean_pointcloud
from dust3r.cloud_opt.commons import (
    PRINCIPAL_POINT_STEP,
    AlignmentConfig,
    ScheduleName,
    edge_str,
    get_conf_trf,
    learning_rate,
    raw_to_rigid,
    rigid_to_raw,
    to_homogeneous,
)
from dust3r.cloud_opt.fixed import FixedRows, Selection, image_numbers, value_rows
from dust3r.cloud_opt.init_im_poses import init_from_known_poses, init_minimum_spanning_tree
from dust3r.cloud_opt.pairs import PackedPairs, pack_pairs
from dust3r.cloud_opt.residuals import weighted_distances
from dust3r.utils.geometry import inv
from dust3r.utils.image import rgb

__all__ = ["BasePCOptimizer", "clean_pointcloud", "global_alignment_loop"]

InitName = Literal["mst", "msp", "known_poses"]
_ADAM_BETAS = (0.9, 0.9)


class BasePCOptimizer(nn.Module):
    """A scene of N images and E ordered pairs to align.

    Args:
        *args: The four dictionaries `view1, view2, pred1, pred2` of `inference`, or another aligner to copy.
        **kwargs: See `_init_from_views`.

    Attributes:
        config: The settings.
        edges: E pairs (i, j).
        imshapes: N (height, width).
        imgs: N (H, W, 3) float images in 0..1, or None if the views hold none.
        im_conf: N (H, W) confidences, the largest over the edges.
        min_conf_thr: Confidence above which pixels are shown and used for PnP.
        conf_trf: The function from confidence to weight.
        problems: Reason per image that could not be located.
    """

    points: Tensor
    weights: Tensor
    conf: Tensor
    conf_trf: Callable[[Tensor], Tensor]
    _edge_images: Tensor  # (E, 2)
    _edge_share: Tensor  # (E,) part of each edge in the mean log scale
    _areas: Tensor  # (N,) pixels per image
    _grid: Tensor  # (N, 2, P) pixel coordinates
    _centers: Tensor  # (N, 2) centres of the images

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        if len(args) == 1 and isinstance(args[0], BasePCOptimizer) and not kwargs:
            self.__dict__.update(copy.deepcopy(args[0].__dict__))
        else:
            self._init_from_views(*args, **kwargs)

    def _init_from_views(
        self,
        view1: Mapping[str, Any],
        view2: Mapping[str, Any],
        pred1: Mapping[str, Any],
        pred2: Mapping[str, Any],
        dist: str = "l1",
        conf: str = "log",
        min_conf_thr: float = 3,
        base_scale: float = 0.5,
        allow_pw_adaptors: bool = False,
        pw_break: float = 20,
        rand_pose: Callable[[int], Tensor] = torch.randn,
        iterationsCount: int | None = None,
        verbose: bool = True,
        **more: Any,
    ) -> None:
        """Set up a scene from pairwise predictions.

        Args:
            view1: First views: `idx`, optionally `img`.
            view2: Second views.
            pred1: `pts3d` and `conf`.
            pred2: `pts3d_in_other_view` and `conf`.
            dist: See `AlignmentConfig`.
            conf: See `AlignmentConfig`.
            min_conf_thr: See `AlignmentConfig`.
            base_scale: See `AlignmentConfig`.
            allow_pw_adaptors: See `AlignmentConfig`.
            pw_break: See `AlignmentConfig`.
            rand_pose: Makes the raw start values of a pose from their number.
            iterationsCount: Ignored; kept for callers that pass it.
            verbose: Show a progress bar.
            **more: Further fields of `AlignmentConfig`.

        Raises:
            ValueError: If the settings or the pairs are not usable (see `pack_pairs`).
        """
        unknown = set(more) - {field.name for field in fields(AlignmentConfig)}
        if unknown:
            raise ValueError(f"Unknown alignment settings {sorted(unknown)}; see AlignmentConfig.")
        self.config = AlignmentConfig(  # type: ignore[arg-type]
            dist=dist,  # pyright: ignore[reportArgumentType]  checked by the dataclass
            conf=conf,  # pyright: ignore[reportArgumentType]
            min_conf_thr=min_conf_thr,
            base_scale=base_scale,
            allow_pw_adaptors=allow_pw_adaptors,
            pw_break=pw_break,
            **more,
        )
        self.min_conf_thr, self.verbose = float(min_conf_thr), verbose
        self.conf_trf = get_conf_trf(conf)
        self.problems: dict[int, str] = {}
        pairs = pack_pairs(view1, view2, pred1, pred2)
        self._register_pairs(pairs)
        self._make_parameters(rand_pose, pairs.points.device)
        self.imgs = _collect_images(self.edges, self.n_imgs, view1, view2)

    def _register_pairs(self, pairs: PackedPairs) -> None:
        self.edges, self.imshapes = list(pairs.edges), list(pairs.shapes)
        area = pairs.conf.shape[-1]
        self.register_buffer("points", pairs.points, persistent=False)
        self.register_buffer("conf", pairs.conf, persistent=False)
        weights = self.conf_trf(pairs.conf).nan_to_num(nan=0.0).clamp(min=0) * (pairs.conf > 0)
        self.register_buffer("weights", weights, persistent=False)
        self.register_buffer("_edge_images", torch.tensor(self.edges, device=weights.device), persistent=False)
        # An edge without weight must not pull at the others through the common scale.
        live = (weights.sum(dim=(1, 2)) > 0).float()
        live = live if bool(live.any()) else torch.ones_like(live)
        self.register_buffer("_edge_share", live / live.sum(), persistent=False)
        areas = torch.tensor([h * w for h, w in self.imshapes], device=weights.device, dtype=torch.float32)
        self.register_buffer("_areas", areas, persistent=False)
        grid = torch.zeros(self.n_imgs, 2, area, device=weights.device)
        for image, (height, width) in enumerate(self.imshapes):
            pixel = torch.arange(height * width, device=weights.device)
            grid[image, :, : height * width] = torch.stack([pixel % width, pixel // width])
        self.register_buffer("_grid", grid, persistent=False)
        best = torch.zeros(self.n_imgs, area, device=weights.device)
        rows = self._edge_images.flatten()[:, None].expand(-1, area)
        best.scatter_reduce_(0, rows, pairs.conf.flatten(0, 1), reduce="amax")
        maps = [self._cut(best[image], image).clone() for image in range(self.n_imgs)]
        self.im_conf = nn.ParameterList([nn.Parameter(conf, requires_grad=False) for conf in maps])

    def _make_parameters(self, rand_pose: Callable[[int], Tensor], device: torch.device) -> None:
        def poses(count: int, columns: int) -> nn.Parameter:
            rows = [rand_pose(columns) for _ in range(count)]
            return nn.Parameter(torch.stack(rows).to(device, torch.float32))

        n, config = self.n_imgs, self.config
        self.pw_poses = poses(self.n_edges, 8)
        adaptors = torch.zeros(self.n_edges, 2, device=device)
        self.pw_adaptors = nn.Parameter(adaptors, requires_grad=config.allow_pw_adaptors)
        self.im_poses = poses(n, 7)
        self.im_depthmaps = nn.Parameter(torch.randn(n, self._grid.shape[-1], device=device) / 10 - 3)
        sides = torch.tensor([[max(shape)] for shape in self.imshapes], device=device)
        self.im_focals = nn.Parameter((config.focal_break * sides.float().log()).repeat(1, 1 + config.fx_and_fy))
        self.im_pp = nn.Parameter(torch.zeros(n, 2, device=device), requires_grad=config.optimize_pp)
        centers = [[width / 2, height / 2] for height, width in self.imshapes]
        self.register_buffer("_centers", torch.tensor(centers, device=device), persistent=False)
        self._fixed_poses = FixedRows(torch.zeros(n, 4, 4, device=device))
        self._fixed_focals = FixedRows(torch.zeros(n, 2, device=device))
        self._fixed_pp = FixedRows(torch.zeros(n, 2, device=device))
        self._fixed_depths = FixedRows(self.im_depthmaps.detach())

    # ------------------------------------------------------------------------------ sizes and predictions

    @property
    def n_imgs(self) -> int:
        """Number of images."""
        return len(self.imshapes)

    @property
    def n_edges(self) -> int:
        """Number of ordered pairs."""
        return len(self.edges)

    @property
    def str_edges(self) -> list[str]:
        """Names `i_j` of the edges."""
        return [edge_str(i, j) for i, j in self.edges]

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.pw_poses.device

    @property
    def pred_i(self) -> dict[str, Tensor]:
        """(H, W, 3) predicted points of image i in its own frame, per edge name."""
        return {name: self.edge_points(e, 0) for e, name in enumerate(self.str_edges)}

    @property
    def pred_j(self) -> dict[str, Tensor]:
        """(H, W, 3) predicted points of image j in the frame of image i, per edge name."""
        return {name: self.edge_points(e, 1) for e, name in enumerate(self.str_edges)}

    @property
    def conf_i(self) -> dict[str, Tensor]:
        """(H, W) confidence of image i, per edge name."""
        return {name: self.edge_conf(e, 0) for e, name in enumerate(self.str_edges)}

    @property
    def conf_j(self) -> dict[str, Tensor]:
        """(H, W) confidence of image j, per edge name."""
        return {name: self.edge_conf(e, 1) for e, name in enumerate(self.str_edges)}

    def edge_points(self, e: int, side: int) -> Tensor:
        """(H, W, 3) points that edge `e` predicts for its image i (side 0) or j (side 1)."""
        return self._cut(self.points[e, side].T, self.edges[e][side])

    def edge_conf(self, e: int, side: int) -> Tensor:
        """(H, W) confidence of `edge_points`."""
        return self._cut(self.conf[e, side], self.edges[e][side])

    def edge_scores(self) -> Tensor:
        """(E,) mean confidence of image i times that of image j."""
        return (self.conf.sum(dim=-1) / self._areas[self._edge_images]).prod(dim=1)

    def _cut(self, padded: Tensor, image: int) -> Tensor:
        """A row (P, ...) without its padding, as an image (H, W, ...)."""
        height, width = self.imshapes[image]
        return padded[: height * width].reshape(height, width, *padded.shape[1:])

    # ------------------------------------------------------------------------------ cameras and points

    def get_im_poses(self) -> Tensor:
        """(N, 4, 4) world_from_cam."""
        return self._fixed_poses.fill(to_homogeneous(*raw_to_rigid(self.im_poses)))

    def get_focals(self) -> Tensor:
        """(N, 1) focals in pixels; (N, 2) (fx, fy) with `fx_and_fy`."""
        focals = self._focals_xy()
        return focals if self.config.fx_and_fy else focals.mean(dim=1, keepdim=True)

    def _focals_xy(self) -> Tensor:
        free = (self.im_focals / self.config.focal_break).exp()
        return self._fixed_focals.fill(free.expand(-1, 2))

    def get_principal_points(self) -> Tensor:
        """(N, 2) principal points in pixels."""
        return self._fixed_pp.fill(self._centers + PRINCIPAL_POINT_STEP * self.im_pp)

    def get_intrinsics(self) -> Tensor:
        """(N, 3, 3) K in pixels."""
        K = torch.diag_embed(nn.functional.pad(self._focals_xy(), (0, 1), value=1.0))
        center = nn.functional.pad(self.get_principal_points(), (0, 1))
        return K + nn.functional.pad(center[:, :, None], (2, 0))

    def _raw_depth(self) -> Tensor:
        return self._fixed_depths.fill(self.im_depthmaps.exp())

    def get_depthmaps(self, raw: bool = False) -> Any:
        """List of (H, W) depth maps; with `raw` the padded (N, P)."""
        depth = self._raw_depth()
        return depth if raw else [self._cut(row, image) for image, row in enumerate(depth)]

    def _world_points(self) -> Tensor:
        """(N, 3, P) world points of all images, padded."""
        depth = self._raw_depth()
        rays = (self._grid - self.get_principal_points()[:, :, None]) / self._focals_xy()[:, :, None]
        local = torch.cat([rays * depth[:, None], depth[:, None]], dim=1)
        pose = self.get_im_poses()
        return torch.baddbmm(pose[:, :3, 3:], pose[:, :3, :3], local)

    def get_pts3d(self, raw: bool = False) -> Any:
        """List of (H, W, 3) world points; with `raw` the padded (N, P, 3)."""
        points = self._world_points().transpose(1, 2)
        return points if raw else [self._cut(row, image) for image, row in enumerate(points)]

    def depth_to_pts3d(self) -> list[Tensor]:
        """The same as `get_pts3d`."""
        return self.get_pts3d()

    def get_masks(self) -> list[Tensor]:
        """(H, W) bool masks of the pixels above `min_conf_thr`."""
        return [conf.detach() > self.min_conf_thr for conf in self.im_conf]

    def get_conf(self, mode: str | None = None) -> list[Tensor]:
        """(H, W) confidences after the transform `mode` (default that of the scene)."""
        transform = self.conf_trf if mode is None else get_conf_trf(mode)
        return [transform(conf.detach()) for conf in self.im_conf]

    # ------------------------------------------------------------------------------ edges

    @property
    def norm_pw_scale(self) -> bool:
        """Whether the geometric mean of the edge scales is held; not where fixed values give the scale."""
        return self._fixed_poses.count < 2 and not self._fixed_depths.count

    def get_pw_norm_scale_factor(self) -> Tensor:
        """The factor that gives the edge scales the geometric mean `base_scale`."""
        if not self.norm_pw_scale:
            return self.pw_poses.new_tensor(1.0)
        mean = (self._edge_share * self.pw_poses[:, 7]).sum()
        return (math.log(self.config.base_scale) - mean).exp()

    def get_pw_scale(self) -> Tensor:
        """(E,) scale of each edge."""
        return self.pw_poses[:, 7].exp() * self.get_pw_norm_scale_factor()

    def get_pw_poses(self) -> Tensor:
        """(E, 4, 4) similarities from the frame of each edge to the world: scale times (R | t)."""
        R, t = raw_to_rigid(self.pw_poses)
        scale = self.get_pw_scale()[:, None]
        return to_homogeneous(scale[:, :, None] * R, scale * t)

    def get_adaptors(self) -> Tensor:
        """(E, 3) factors on x, y, z of each edge's predictions, of geometric mean 1."""
        stretch = self.pw_adaptors[:, [0, 0, 1]]
        return ((stretch - stretch.mean(dim=1, keepdim=True)) / self.config.pw_break).exp()

    def pixel_losses(self) -> Tensor:
        """(E, 2) weighted residuals of the points of both images of each edge, summed over pixels."""
        edge = self.get_pw_poses()
        linear = edge[:, :3, :3] * self.get_adaptors()[:, None, :]
        aligned = linear[:, None] @ self.points + edge[:, None, :3, 3:]
        residual = self._world_points()[self._edge_images] - aligned
        if self.config.dist == "l2":
            return (self.weights * residual.square().sum(dim=2)).sum(dim=-1)
        return weighted_distances(residual, self.weights)

    def forward(self, ret_details: bool = False) -> Any:
        """The objective; with `ret_details` also the (N, N) losses per edge, -1 where there is none."""
        losses = self.pixel_losses()
        loss = self.reduce_losses(losses)
        if not ret_details:
            return loss
        per_edge = (losses / self._areas[self._edge_images]).sum(dim=1).detach()
        details = per_edge.new_full((self.n_imgs, self.n_imgs), -1.0)
        details[self._edge_images[:, 0], self._edge_images[:, 1]] = per_edge
        return loss, details

    def reduce_losses(self, losses: Tensor) -> Tensor:
        """The objective of `pixel_losses` (E, 2): mean over pixels of first images plus that of second."""
        return (losses.sum(dim=0) / self._areas[self._edge_images].sum(dim=0)).sum()

    # ------------------------------------------------------------------------------ fixed values

    def get_known_pose_mask(self) -> Tensor:
        """(N,) bool: images whose pose is fixed."""
        return self._fixed_poses.known

    def get_known_focal_mask(self) -> Tensor:
        """(N,) bool: images whose focal is fixed."""
        return self._fixed_focals.known

    def get_known_depth_mask(self) -> Tensor:
        """(N,) bool: images whose depth is fixed."""
        return self._fixed_depths.known

    def preset_pose(self, known_poses: Any, pose_msk: Selection = None) -> None:
        """Fix poses; they come back exactly.

        Args:
            known_poses: (4, 4) world_from_cam, one per selected image.
            pose_msk: Image numbers, bool mask or slice; default all.
        """
        for image, pose in self._selected(known_poses, pose_msk, (4, 4), "poses"):
            self._fixed_poses.set(image, pose)
            self._set_pose(self.im_poses, image, pose)
        self.im_poses.requires_grad_(not self._fixed_poses.all)

    def preset_focal(self, known_focals: Any, msk: Selection = None) -> None:
        """Fix focals in pixels, one number (or fx, fy) per selected image."""
        focals = value_rows(known_focals)
        focals = [focal.flatten().expand(2) if focal.numel() == 1 else focal for focal in focals]
        for image, focal in self._selected(focals, msk, (2,), "focals"):
            if not bool((focal > 0).all()):
                raise ValueError(f"A focal must be positive, got {focal.tolist()} for image {image}.")
            self._fixed_focals.set(image, focal)
            self._set_focal(image, float(focal.mean()))
        self.im_focals.requires_grad_(not self._fixed_focals.all)

    def preset_principal_point(self, known_pp: Any, msk: Selection = None) -> None:
        """Fix principal points (2,) in pixels, one per selected image."""
        for image, center in self._selected(known_pp, msk, (2,), "principal points"):
            self._fixed_pp.set(image, center)
            with torch.no_grad():
                self.im_pp[image] = (center.to(self.im_pp) - self._centers[image]) / PRINCIPAL_POINT_STEP
        self.im_pp.requires_grad_(self.config.optimize_pp and not self._fixed_pp.all)

    def preset_intrinsics(self, known_intrinsics: Any, msk: Selection = None) -> None:
        """Fix focals and principal points from K (3, 3), one per selected image."""
        selected = list(self._selected(known_intrinsics, msk, (3, 3), "intrinsics"))
        images = [image for image, _ in selected]
        self.preset_focal([K.diagonal()[:2] for _, K in selected], images)
        self.preset_principal_point([K[:2, 2] for _, K in selected], images)

    def preset_depthmap(self, known_depths: Any, msk: Selection = None) -> None:
        """Fix positive (H, W) z depths, one per selected image; they also fix the scale of the scene."""
        for image, depth in self._selected(known_depths, msk, None, "depth maps"):
            if tuple(depth.shape) != tuple(self.imshapes[image]) or not bool((depth > 0).all()):
                raise ValueError(
                    f"The depth of image {image} must be positive of size {self.imshapes[image]}, got "
                    f"{tuple(depth.shape)} with minimum {float(depth.min())}; fill unknown pixels first."
                )
            self._set_depthmap(image, depth)
            self._fixed_depths.set(image, self.im_depthmaps[image].detach().exp())
            self._fixed_depths.value[image, : depth.numel()] = depth.flatten()
        self.im_depthmaps.requires_grad_(not self._fixed_depths.all)

    def _selected(
        self, values: Any, selection: Selection, shape: tuple[int, ...] | None, what: str
    ) -> Iterable[tuple[int, Tensor]]:
        """Pairs (image, value on the scene's device)."""
        images = image_numbers(selection, self.n_imgs)
        rows = value_rows(values)
        if len(rows) != len(images):
            raise ValueError(f"Got {len(rows)} {what} for {len(images)} selected images; give one each.")
        for image, value in zip(images, rows):
            if (shape and tuple(value.shape) != shape) or not bool(value.isfinite().all()):
                raise ValueError(f"Fixed {what} must be finite of shape {shape}, got {value} for image {image}.")
            yield image, value.to(self.device)

    @torch.no_grad()
    def _set_pose(
        self, poses: Tensor, row: int, R: Tensor, T: Tensor | None = None, scale: Tensor | float | None = None
    ) -> None:
        """Write a raw row from a (4, 4) rigid pose, or R, T and (edges) the scale of x -> scale R x + T."""
        if T is None:
            R, T = R[:3, :3], R[:3, 3]
        if scale is not None:
            factor = torch.as_tensor(scale, dtype=poses.dtype, device=poses.device)
            poses[row, 7] = factor.log()
            T = T / factor
        poses[row, :7] = rigid_to_raw(R.to(poses), T.to(poses))

    @torch.no_grad()
    def _set_focal(self, image: int, focal: float) -> None:
        self.im_focals[image] = self.config.focal_break * math.log(focal)

    @torch.no_grad()
    def _set_depthmap(self, image: int, depth: Tensor) -> None:
        self.im_depthmaps[image, : depth.numel()] = depth.flatten().to(self.im_depthmaps).log()

    # ------------------------------------------------------------------------------ running

    def compute_global_alignment(self, init: InitName | None = None, niter_PnP: int = 10, **kw: Any) -> float:
        """Initialise and optimise.

        Args:
            init: None to go on from the present parameters, `mst` (or `msp`) to start from a spanning tree of
                the pairs, `known_poses` if all poses and focals are fixed.
            niter_PnP: RANSAC rounds of the initialisation.
            **kw: `lr`, `niter`, `schedule`, `lr_min` of `global_alignment_loop`.

        Returns:
            The objective before the last step.

        Raises:
            ValueError: If `init` is unknown or lacks known cameras.
        """
        if init in ("mst", "msp"):
            init_minimum_spanning_tree(self, niter_PnP=niter_PnP)
        elif init == "known_poses":
            init_from_known_poses(self, niter_PnP=niter_PnP)
        elif init is not None:
            raise ValueError(f"init must be None, 'mst' or 'known_poses', got {init!r}.")
        return global_alignment_loop(self, **kw)

    @torch.no_grad()
    def clean_pointcloud(self, tol: float = 0.001, max_bad_conf: float = 0, dbg: Any = ()) -> BasePCOptimizer:
        """Lower `im_conf` of floating points (see `cleaning.clean_pointcloud`); returns itself."""
        confs = clean_pointcloud(
            list(self.im_conf),
            self.get_intrinsics(),
            inv(self.get_im_poses()),
            self.get_depthmaps(),
            self.get_pts3d(),
            tol=tol,
            bad_conf=max_bad_conf,
            dbg=dbg,
        )
        for current, conf in zip(self.im_conf, confs):
            current.data.copy_(conf)
        return self

    @torch.no_grad()
    def mask_sky(self) -> BasePCOptimizer:
        """A copy in which the pixels of the sky have confidence 0.

        Raises:
            ValueError: If the views held no images.
        """
        from dust3r.viz import segment_sky  # here: drawing is not needed to align

        images = self._need_images()
        scene = copy.deepcopy(self)
        for conf, image in zip(scene.im_conf, images):
            sky = torch.from_numpy(segment_sky(image)).to(conf.device)
            conf.data[sky] = 0
        return scene

    def show(self, show_pw_cams: bool = False, cam_size: float | None = None, **kw: Any) -> Any:
        """Open a window with the masked points and the cameras; returns the `SceneViz`.

        Args:
            show_pw_cams: Also draw the frame of every edge.
            cam_size: Length of the drawn cameras in scene units.
            **kw: Passed to `SceneViz.show`.
        """
        viz = self.draw(show_pw_cams=show_pw_cams, cam_size=cam_size)
        viz.show(**kw)
        return viz

    @torch.no_grad()
    def draw(self, *, show_pw_cams: bool = False, cam_size: float | None = None) -> Any:
        """The `dust3r.viz.SceneViz` that `show` opens."""
        from dust3r.viz import CAM_COLORS, SceneViz, auto_cam_size

        viz, poses = SceneViz(), self.get_im_poses()
        length = auto_cam_size(poses) if cam_size is None else cam_size
        for image, (points, mask) in enumerate(zip(self.get_pts3d(), self.get_masks())):
            color = CAM_COLORS[image % len(CAM_COLORS)]
            viz.add_pointcloud(points, color if self.imgs is None else self.imgs[image], mask=mask)
        focals = self.get_focals().mean(dim=1)
        sizes = [(width, height) for height, width in self.imshapes]
        viz.add_cameras(poses, focals, images=self.imgs, imsizes=sizes, colors=CAM_COLORS, cam_size=length)
        if show_pw_cams:
            frames = to_homogeneous(raw_to_rigid(self.pw_poses)[0], self.get_pw_poses()[:, :3, 3])
            viz.add_cameras(frames, colors=[(192, 0, 192)], cam_size=length)
        return viz

    def _need_images(self) -> list[np.ndarray]:
        if self.imgs is None:
            raise ValueError("The scene holds no images: the views given to it had no 'img'.")
        return self.imgs


def global_alignment_loop(
    net: BasePCOptimizer,
    lr: float = 0.01,
    niter: int = 300,
    schedule: ScheduleName = "cosine",
    lr_min: float = 1e-6,
) -> float:
    """Minimise the objective of an aligner with Adam.

    Args:
        net: The aligner.
        lr: First learning rate.
        niter: Number of steps.
        schedule: `cosine` or `linear` from `lr` to `lr_min`.
        lr_min: Last learning rate.

    Returns:
        The objective before the last step, or the present one without free parameters or steps.
    """
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    learning_rate(schedule, 0, lr, lr_min)
    if not parameters or niter < 1:
        with torch.no_grad():
            return float(net())
    optimizer = torch.optim.Adam(parameters, lr=lr, betas=_ADAM_BETAS)
    loss = torch.tensor(math.nan)
    for step in tqdm(range(niter), disable=not net.verbose, desc="global alignment", leave=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(schedule, step / niter, lr, lr_min)
        optimizer.zero_grad()
        loss = net()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def _collect_images(
    edges: Sequence[tuple[int, int]], count: int, view1: Mapping[str, Any], view2: Mapping[str, Any]
) -> list[np.ndarray] | None:
    if "img" not in view1 or "img" not in view2:
        return None
    images: dict[int, Any] = {}
    for e, (i, j) in enumerate(edges):
        images.setdefault(i, view1["img"][e])
        images.setdefault(j, view2["img"][e])
    return rgb([images[image] for image in range(count)])
