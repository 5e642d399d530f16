"""MASt3R-SfM under its official names: a thin layer over `mast3r.cloud_opt.alignment`'s parts.

scene = sparse_global_alignment(paths, pairs, "cache", model, device="cpu")
scene.get_im_poses(), scene.get_dense_pts3d()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from dust3r.cloud_opt.cleaning import clean_pointcloud
from dust3r.utils.image import rgb
from mast3r.cloud_opt.canonical import CanonicalView
from mast3r.cloud_opt.condense import (
    Anchors,
    anchor_depth_offsets,
    canonical_view,
    compute_min_spanning_tree,
    condense_data,
    make_pts3d,
    prepare_canonical_data,
)
from mast3r.cloud_opt.dense import dense_depth, unproject
from mast3r.cloud_opt.kinematics import KinematicMode, kinematic_tree
from mast3r.cloud_opt.pair_forward import (
    View,
    extract_correspondences,
    forward_mast3r,
    named_pairs,
    symmetric_inference,
)
from mast3r.cloud_opt.scene_optimizer import SceneEstimate, sparse_scene_optimizer
from mast3r.cloud_opt.utils.losses import gamma_loss

__all__ = [
    "SparseGA",
    "anchor_depth_offsets",
    "canonical_view",
    "compute_min_spanning_tree",
    "condense_data",
    "extract_correspondences",
    "forward_mast3r",
    "gamma_loss",
    "make_pts3d",
    "prepare_canonical_data",
    "sparse_global_alignment",
    "sparse_scene_optimizer",
    "symmetric_inference",
]


@dataclass(frozen=True, eq=False)
class SceneSource:
    """What a scene was aligned from.

    Attributes:
        img_paths: Names of the images.
        imgs: (H, W, 3) float32 colours in 0..1 of each.
        views: Merged pointmap of each.
        anchors: Matched pixels of each.
        base_focals: (N,) focals of the merged pointmaps.
    """

    img_paths: list[str]
    imgs: list[np.ndarray]
    views: list[CanonicalView]
    anchors: Anchors
    base_focals: Tensor


class SparseGA:
    """An aligned scene of N images.

    Args:
        source: What was aligned.
        estimate: The outcome.
        coarse: The outcome of the first stage.

    Attributes:
        img_paths: Names of the images.
        imgs: (H, W, 3) float32 colours in 0..1.
        intrinsics: (N, 3, 3) in model pixels.
        cam2w: (N, 4, 4) world_from_cam.
        depthmaps: (blocks,) depth of the anchors of each image.
        pts3d: (M, 3) points of the matched pixels of each image.
    """

    def __init__(self, source: SceneSource, estimate: SceneEstimate, coarse: SceneEstimate | None = None) -> None:
        self.source = source
        self.estimate = estimate
        self.coarse = coarse or estimate
        self.img_paths = source.img_paths
        self.imgs = source.imgs
        self.intrinsics = estimate.intrinsics
        self.cam2w = estimate.cam2w
        self.depthmaps = estimate.depthmaps
        self.pts3d = estimate.pts3d

    @property
    def n_imgs(self) -> int:
        """Number of images."""
        return len(self.img_paths)

    @property
    def pts3d_colors(self) -> list[np.ndarray]:
        """(M, 3) colours in 0..1 of the matched pixels of each image."""
        return self.get_pts3d_colors()

    def get_focals(self) -> Tensor:
        """(N,) focals in pixels."""
        return self.intrinsics[:, 0, 0]

    def get_principal_points(self) -> Tensor:
        """(N, 2) principal points in pixels."""
        return self.intrinsics[:, :2, 2]

    def get_im_poses(self) -> Tensor:
        """(N, 4, 4) world_from_cam."""
        return self.cam2w

    def get_depthmaps(self) -> list[Tensor]:
        """(blocks,) depth of the anchors of each image."""
        return self.depthmaps

    def get_sparse_pts3d(self) -> list[Tensor]:
        """(M, 3) world points of the matched pixels of each image."""
        return self.pts3d

    def get_pts3d_colors(self) -> list[np.ndarray]:
        """(M, 3) colours in 0..1 of the matched pixels of each image."""
        colors = []
        for image, (pixels, _, _) in sorted(self.source.anchors.items()):
            x, y = pixels[:, 0].long().cpu().numpy(), pixels[:, 1].long().cpu().numpy()
            colors.append(self.imgs[image][y, x])
        return colors

    def get_masks(self) -> list[slice]:
        """Selections that keep every point of each image."""
        return [slice(None) for _ in range(self.n_imgs)]

    @torch.no_grad()
    def get_dense_pts3d(
        self, clean_depth: bool = True, subsample: int = 8
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """A point for every pixel.

        Args:
            clean_depth: Set the confidence of points to 0 that float in front of surer ones of other images.
            subsample: Side of the blocks; must be that of the alignment.

        Returns:
            Per image (H W, 3) world points, (H W,) depths and (H, W) confidences.

        Raises:
            ValueError: If `subsample` is another than the scene was aligned with.
        """
        self._check_subsample(subsample)
        depths = self.dense_depths()
        points = [unproject(depth, K, pose) for depth, K, pose in zip(depths, self.intrinsics, self.cam2w)]
        confidences = [view.confidence for view in self.source.views]
        if clean_depth:
            confidences = self.clean(confidences, depths, points)
        return [p.reshape(-1, 3) for p in points], [d.flatten() for d in depths], confidences

    def dense_depths(self) -> list[Tensor]:
        """(H, W) z depth of every pixel of each image."""
        slopes = self.source.base_focals.to(self.intrinsics) / self.get_focals()
        return [dense_depth(*values) for values in zip(self.source.views, self.depthmaps, slopes)]

    def clean(self, confidences: list[Tensor], depths: list[Tensor], points: list[Tensor]) -> list[Tensor]:
        """(H, W) confidences, 0 where a point hides a surer one of another image."""
        cameras = torch.linalg.inv(self.cam2w)
        return clean_pointcloud(confidences, self.intrinsics, cameras, depths, points)

    def _check_subsample(self, subsample: int) -> None:
        own = self.source.views[0].grid.subsample
        if subsample != own:
            raise ValueError(f"This scene was aligned with subsample={own}, got {subsample}; pass the same.")

    def show(self, show_cams: bool = True) -> Any:
        """Open a window with the points and cameras; returns the `SceneViz`."""
        viz = self.draw(show_cams=show_cams)
        viz.show()
        return viz

    def draw(self, *, show_cams: bool = True) -> Any:
        """The `dust3r.viz.SceneViz` that `show` opens."""
        from dust3r.viz import CAM_COLORS, SceneViz, auto_cam_size  # drawing is not needed to align

        viz = SceneViz()
        for points, colors in zip(self.pts3d, self.pts3d_colors):
            viz.add_pointcloud(points.cpu().numpy(), colors)
        if show_cams:
            poses = self.cam2w.cpu().numpy()
            viz.add_cameras(
                poses,
                self.get_focals().cpu().numpy(),
                images=self.imgs,
                colors=CAM_COLORS,
                cam_size=auto_cam_size(poses),
            )
        return viz


def sparse_global_alignment(
    imgs: Sequence[str],
    pairs_in: Sequence[tuple[View, View]],
    cache_path: str | Path,
    model: Any,
    subsample: int = 8,
    desc_conf: str = "desc_conf",
    kinematic_mode: KinematicMode = "hclust-ward",
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    shared_intrinsics: bool = False,
    **kw: Any,
) -> SparseGA:
    """Align images (MASt3R-SfM).

    Args:
        imgs: Name (path) of each image.
        pairs_in: Pairs of views as `make_pairs` gives them; a pair and its reverse count once.
        cache_path: Folder where predictions of pairs are kept; entries follow the images' content and the
            model's weights.
        model: A MASt3R model.
        subsample: Side in pixels of the blocks that share one depth.
        desc_conf: Which map tells the confidence of descriptors.
        kinematic_mode: Spanning tree along which cameras are chained.
        device: Where to compute; None takes the model's device.
        dtype: Precision of the alignment.
        shared_intrinsics: One focal for all images.
        **kw: Options of `sparse_scene_optimizer`.

    Returns:
        The aligned scene.

    Raises:
        ValueError: If names repeat, an image is in no pair, or an option is wrong.
    """
    imgs = [str(name) for name in imgs]
    place = next(model.parameters()).device if device is None else torch.device(device)
    pairs = named_pairs(imgs, pairs_in)
    entries, folder = forward_mast3r(pairs, model, cache_path, desc_conf=desc_conf, device=place, subsample=subsample)
    entries, scores, views, paths, preds = prepare_canonical_data(
        imgs, entries, subsample, cache_path=folder, device=place
    )
    tree = kinematic_tree(scores.numpy(), kinematic_mode, blocks=[len(views[name].view.grid) for name in imgs])
    data = condense_data(imgs, entries, views, preds, dtype)
    _, coarse, fine = sparse_scene_optimizer(
        imgs,
        subsample,
        *data,
        paths,
        (tree.root, list(tree.edges)),
        folder,
        shared_intrinsics=shared_intrinsics,
        device=place,
        dtype=dtype,
        focal_weights=torch.stack([views[name].view.confidence.mean() for name in imgs]),
        **kw,
    )
    source = SceneSource(imgs, _colors(imgs, pairs), [views[name].view for name in imgs], data[4], data[2])
    return SparseGA(source, fine or coarse, coarse)


def _colors(imgs: Sequence[str], pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[np.ndarray]:
    images = {view["instance"]: view["img"] for pair in pairs for view in pair}
    return [cast(np.ndarray, rgb(images[name]))[0] for name in imgs]
