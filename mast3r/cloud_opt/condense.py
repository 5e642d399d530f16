"""From predictions of pairs to what alignment needs, in official call forms.

The work is done by `canonical`, `kinematics` and `problem`; here it meets images by name and pairs in dictionaries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mast3r.cloud_opt.canonical import BlockGrid, CanonicalBuilder, CanonicalView, RelativeDepth
from mast3r.cloud_opt.kinematics import Edge, kinematic_tree
from mast3r.cloud_opt.pair_forward import PairPrediction

NamePair: TypeAlias = "tuple[str, str]"
Anchors: TypeAlias = "dict[int, tuple[Tensor, Tensor, Tensor]]"
"""Image -> homogeneous pixels (M, 3), anchor of each (M,) and ratio of its depth to the anchor's (M,)."""

Points: TypeAlias = "tuple[Tensor, Tensor]"
"""(M, 3) points and (M,) confidence."""


@dataclass(frozen=True, eq=False)
class CanonicalImage:
    """An image and its matched pixels.

    Attributes:
        view: Pointmap merged from all pairs.
        pixels: Partner -> (M, 2) int64 matched pixels and (M,) confidence.
        anchors: Partner -> (M,) anchor of each of them.
        offsets: Partner -> (M,) ratio of its depth to the anchor's.
    """

    view: CanonicalView
    pixels: dict[str, tuple[Tensor, Tensor]]
    anchors: dict[str, Tensor]
    offsets: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class PairSlice:
    """Where the matches of an ordered pair lie among the matched pixels of its images.

    Attributes:
        img1: First image.
        img2: Second image.
        slice1: Its pixels among all matched pixels of image 1.
        slice2: Its pixels among those of image 2.
        confs: (M,) confidence.
    """

    img1: int
    img2: int
    slice1: slice
    slice2: slice
    confs: Tensor

    @property
    def confs_sum(self) -> float:
        """Summed confidence."""
        return float(self.confs.sum())


@dataclass(frozen=True, eq=False)
class Correspondences:
    """All matches.

    Attributes:
        all_confs: (sum of M,) confidences, pair after pair.
        slices: One per ordered pair.
    """

    all_confs: Tensor
    slices: list[PairSlice]


def canonical_view(
    ptmaps11: Tensor, confs11: Tensor, subsample: int, mode: RelativeDepth = "avg-angle"
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the pointmaps of one image (see `mast3r.cloud_opt.canonical`).

    Args:
        ptmaps11: (P, H, W, 3) pointmaps of the image in its own camera, one per pair.
        confs11: (P, H, W) their confidence.
        subsample: Side of the blocks in pixels.
        mode: How ratios of depth are averaged.

    Returns:
        (H, W, 3) points, (H, W) ratio of each pixel's depth to its anchor's, (H, W) confidence.
    """
    height, width = confs11[0].shape
    builder = CanonicalBuilder((width, height), subsample=subsample, mode=mode, device=confs11[0].device)
    for points, confidence in zip(ptmaps11, confs11):
        builder.add(points, confidence)
    view = builder.build()
    return view.points, view.relative, view.confidence


def anchor_depth_offsets(
    canon_depth: Tensor, pixels: Mapping[Any, tuple[Tensor, Any]], subsample: int = 8
) -> tuple[dict[Any, Tensor], dict[Any, Tensor]]:
    """Anchors of pixels and the ratio of their depth to the anchor's.

    Args:
        canon_depth: (H, W) depth, up to a factor per block.
        pixels: Partner -> (M, 2) integer pixels (x, y) and anything else.
        subsample: Side of the blocks in pixels.

    Returns:
        Partner -> (M,) int64 anchors; partner -> (M,) ratios.
    """
    height, width = canon_depth.shape
    grid = BlockGrid(width, height, subsample)
    ratio = canon_depth / grid.spread(grid.at_centers(canon_depth))
    anchors, offsets = {}, {}
    for partner, (xy, _) in pixels.items():
        anchors[partner] = grid.index(xy.long())
        offsets[partner] = ratio[xy[:, 1].long(), xy[:, 0].long()]
    return anchors, offsets


def compute_min_spanning_tree(pws: Any) -> tuple[int, list[Edge]]:
    """Root and (parent, child) edges of the maximum spanning tree of pair scores (N, N)."""
    scores = pws.detach().cpu().numpy() if isinstance(pws, Tensor) else np.asarray(pws)
    tree = kinematic_tree(scores, "mst", blocks=())
    return tree.root, list(tree.edges)


def prepare_canonical_data(
    imgs: Sequence[str],
    tmp_pairs: Mapping[NamePair, Any],
    subsample: int,
    order_imgs: bool = False,
    min_conf_thr: float = 0,
    cache_path: Any = None,
    device: str | torch.device = "cpu",
    **kw: Any,
) -> tuple[Mapping[NamePair, Any], Tensor, dict[str, CanonicalImage], None, dict[str, dict[str, Points]]]:
    """Merge the predictions of all pairs per image; every pair is read once.

    Args:
        imgs: Names of the images.
        tmp_pairs: Ordered pair of names -> entry with a `load` method (see `forward_mast3r`).
        subsample: Side of the blocks in pixels.
        order_imgs: Accepted; the order of `imgs` stays.
        min_conf_thr: Pixels less confident than this are ignored.
        cache_path: Accepted; merged views are made anew, which costs less than reading them.
        device: Where to compute.
        **kw: `mode` of `canonical_view`.

    Returns:
        The pairs, (N, N) scores (number of matches), merged images by name, None in place of their cache paths,
        and image 1 -> image 2 -> points of image 2 in camera 1 at the first pixel of each block.

    Raises:
        ValueError: If an image is in no pair.
    """
    builders: dict[str, CanonicalBuilder] = {}
    pixels: dict[str, dict[str, tuple[Tensor, Tensor]]] = {name: {} for name in imgs}
    preds: dict[str, dict[str, Points]] = {name: {} for name in imgs}
    scores = torch.zeros(len(imgs), len(imgs))
    place = {name: i for i, name in enumerate(imgs)}
    for (name1, name2), prediction in _each_pair_once(tmp_pairs):
        for name, points, conf in ((name1, prediction.X11, prediction.C11), (name2, prediction.X22, prediction.C22)):
            builder = builders.setdefault(name, _builder(conf, subsample, device, **kw))
            builder.add(points, torch.where(conf >= min_conf_thr, conf, 0.0))
        preds[name1][name2] = _block_corners(prediction.X21, prediction.C21, subsample, device)
        preds[name2][name1] = _block_corners(prediction.X12, prediction.C12, subsample, device)
        pixels[name1][name2] = (prediction.xy1.to(device), prediction.conf.to(device))
        pixels[name2][name1] = (prediction.xy2.to(device), prediction.conf.to(device))
        i, j = place[name1], place[name2]
        scores[i, j] = scores[j, i] = prediction.score[2]
    missing = [name for name in imgs if name not in builders]
    if missing:
        raise ValueError(f"These images are in no pair, so nothing is known of them: {', '.join(missing)}.")
    images = {name: _canonical_image(builders[name].build(), pixels[name], imgs) for name in imgs}
    return tmp_pairs, scores, images, None, preds


def condense_data(
    imgs: Sequence[str],
    tmp_paths: Mapping[NamePair, Any],
    canonical_views: Mapping[str, CanonicalImage],
    preds_21: Mapping[str, Mapping[str, Points]],
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], Anchors, Correspondences, list[Any], dict[int, dict[int, Points]]]:
    """Number the images and join the matched pixels of each.

    Args:
        imgs: Names of the images.
        tmp_paths: Ordered pairs of names, see `forward_mast3r`.
        canonical_views: Merged images by name.
        preds_21: Image 1 -> image 2 -> points of image 2 in camera 1 per block.
        dtype: Precision of the results.

    Returns:
        What `sparse_scene_optimizer` takes: (N, 2) int64 width and height, (N, 2) principal points, (N,) focals,
        depth of the anchors per image, anchors, matches, per image the matches that fall on it, and image 1 ->
        image 2 -> points of the matched pixels of image 2 in camera 1.
    """
    views = [canonical_views[name].view for name in imgs]
    sizes = torch.tensor([(view.grid.width, view.grid.height) for view in views])
    anchors: Anchors = {}
    slices: dict[tuple[int, int], slice] = {}
    for i, name in enumerate(imgs):
        image = canonical_views[name]
        partners = [(j, other) for j, other in enumerate(imgs) if other in image.pixels]
        end = 0
        for j, other in partners:
            start, end = end, end + len(image.anchors[other])
            slices[i, j] = slice(start, end)
        xy = torch.cat([image.pixels[other][0] for _, other in partners])
        anchors[i] = (
            torch.cat([xy, torch.ones_like(xy[:, :1])], dim=1),
            torch.cat([image.anchors[other] for _, other in partners]),
            torch.cat([image.offsets[other] for _, other in partners]).to(dtype),
        )
    corres = _correspondences(imgs, tmp_paths, canonical_views, slices, dtype)
    corres2d = [[pair for pair in corres.slices if pair.img1 == i] for i in range(len(imgs))]
    picked = {
        i: {
            imgs.index(other): tuple(value[anchors[imgs.index(other)][1]].to(dtype) for value in points)
            for other, points in preds_21[name].items()
        }
        for i, name in enumerate(imgs)
    }
    focals = torch.tensor([view.focal for view in views], dtype=dtype)
    depth = [view.core_depth.to(dtype) for view in views]
    return sizes, sizes.to(dtype) / 2, focals, depth, anchors, corres, corres2d, picked  # pyright: ignore[reportReturnType]


def make_pts3d(
    anchors: Anchors,
    K: Tensor,
    cam2w: Tensor,
    depthmaps: Sequence[Tensor],
    base_focals: Tensor | None = None,
    ret_depth: bool = False,
) -> Any:
    """Points of anchored pixels in the world.

    Args:
        anchors: Pixels of each image.
        K: (N, 3, 3) intrinsics.
        cam2w: (N, 4, 4) world_from_cam.
        depthmaps: (blocks,) depth of the anchors of each image.
        base_focals: (N,) focals at which the depth ratios were measured; None leaves the ratios as they are.
        ret_depth: Also return the depths.

    Returns:
        List of (M, 3) points; with `ret_depth` that and the list of (M,) depths.
    """
    points, depths = [], []
    for image, (pixels, anchor, offset) in anchors.items():
        ratio = offset if base_focals is None else 1 + (offset - 1) * (base_focals[image] / K[image, 0, 0])
        depth = depthmaps[image].flatten()[anchor] * ratio
        local = (pixels.to(depth) @ torch.linalg.inv(K[image]).T) * depth[:, None]
        points.append(local @ cam2w[image, :3, :3].T + cam2w[image, :3, 3])
        depths.append(depth)
    return (points, depths) if ret_depth else points


def _each_pair_once(pairs: Mapping[NamePair, Any]) -> Any:
    """(names, prediction) of each unordered pair."""
    for names, entry in pairs.items():
        if names[::-1] not in pairs or names[0] < names[1]:
            prediction: PairPrediction = entry.load()
            yield names, prediction


def _builder(conf: Tensor, subsample: int, device: str | torch.device, **kw: Any) -> CanonicalBuilder:
    height, width = conf.shape
    return CanonicalBuilder((width, height), subsample=subsample, device=device, **kw)


def _block_corners(points: Tensor, confidence: Tensor, subsample: int, device: str | torch.device) -> Points:
    """Points (blocks, 3) and confidence (blocks,) at the first pixel of each block, as the official code samples."""
    step = slice(None, None, subsample)
    return points[step, step].reshape(-1, 3).to(device), confidence[step, step].flatten().to(device)


def _canonical_image(
    view: CanonicalView, pixels: dict[str, tuple[Tensor, Tensor]], order: Sequence[str]
) -> CanonicalImage:
    ordered = {name: pixels[name] for name in order if name in pixels}
    anchors, offsets = anchor_depth_offsets(view.relative, ordered, view.grid.subsample)
    return CanonicalImage(view, ordered, anchors, offsets)


def _correspondences(
    imgs: Sequence[str],
    pairs: Mapping[NamePair, Any],
    views: Mapping[str, CanonicalImage],
    slices: Mapping[tuple[int, int], slice],
    dtype: torch.dtype,
) -> Correspondences:
    place: Callable[[str], int] = list(imgs).index
    found = []
    for name1, name2 in pairs:
        i, j = place(name1), place(name2)
        confs = views[name1].pixels[name2][1].to(dtype)
        found.append(PairSlice(i, j, slices[i, j], slices[j, i], confs))
    return Correspondences(torch.cat([pair.confs for pair in found]), found)
