"""The pairwise predictions of a scene, padded to one size so that all edges are one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dust3r.cloud_opt.commons import Edge

Shape = tuple[int, int]


@dataclass(frozen=True, eq=False)
class PackedPairs:
    """Point maps and confidences of all edges.

    Attributes:
        edges: (i, j) image numbers of each of the E edges.
        shapes: (height, width) of each of the N images.
        points: (E, 2, 3, P) float32: the maps of image i and of image j, both in the camera frame of image i,
            row-major, coordinates first, zero-padded to the largest image's P pixels.
        conf: (E, 2, P) float32 confidences; 0 in the padding and where a prediction is not finite.
    """

    edges: tuple[Edge, ...]
    shapes: tuple[Shape, ...]
    points: Tensor
    conf: Tensor


def pack_pairs(
    view1: Mapping[str, Any], view2: Mapping[str, Any], pred1: Mapping[str, Any], pred2: Mapping[str, Any]
) -> PackedPairs:
    """Pack the output of `dust3r.inference.inference`.

    Args:
        view1: First views, with `idx`.
        view2: Second views, with `idx`.
        pred1: `pts3d` (E, H, W, 3) or a list of (H, W, 3), and `conf`.
        pred2: The same with `pts3d_in_other_view`.

    Raises:
        ValueError: If there are no pairs, a pair joins an image to itself, numbers leave gaps, or an image
            changes its size.
    """
    edges = _edges(view1["idx"], view2["idx"])
    sides = [(pred1["pts3d"], pred1["conf"]), (pred2["pts3d_in_other_view"], pred2["conf"])]
    shapes = _image_shapes(edges, [conf for _, conf in sides])
    area = max(height * width for height, width in shapes)
    device = sides[0][0][0].device
    points = torch.zeros(len(edges), 2, 3, area, device=device)
    conf = torch.zeros(len(edges), 2, area, device=device)
    for side, (point_maps, conf_maps) in enumerate(sides):
        for e in range(len(edges)):
            xyz = point_maps[e].detach().reshape(-1, 3).float().T
            points[e, side, :, : xyz.shape[1]] = xyz
            conf[e, side, : xyz.shape[1]] = conf_maps[e].detach().flatten().float()
    # A network in half precision may overflow: such pixels take no part.
    usable = points.isfinite().all(dim=2) & conf.isfinite()
    conf = torch.where(usable, conf, 0)
    return PackedPairs(edges, shapes, torch.where(usable[:, :, None], points, 0), conf)


def _edges(first: Sequence[Any], second: Sequence[Any]) -> tuple[Edge, ...]:
    edges = tuple((int(i), int(j)) for i, j in zip(first, second))
    if not edges:
        raise ValueError("Global alignment got no pairs; run inference() on the output of make_pairs().")
    numbers = {number for edge in edges for number in edge}
    if numbers != set(range(len(numbers))):
        raise ValueError(
            f"Image numbers (idx) must be 0..n-1 without gaps, got {sorted(numbers)}; renumber the images "
            "that take part in a pair."
        )
    if any(i == j for i, j in edges):
        raise ValueError("A pair joins an image to itself; remove it, it holds no relative pose.")
    if len(set(edges)) != len(edges):
        raise ValueError("A pair (i, j) appears twice; give each ordered pair once.")
    return edges


def _image_shapes(edges: Sequence[Edge], confs: Sequence[Any]) -> tuple[Shape, ...]:
    found: dict[int, Shape] = {}
    for side, maps in enumerate(confs):
        for e, edge in enumerate(edges):
            shape = (int(maps[e].shape[0]), int(maps[e].shape[1]))
            if found.setdefault(edge[side], shape) != shape:
                raise ValueError(
                    f"Image {edge[side]} has size {found[edge[side]]} in one pair and {shape} in another; "
                    "predict all pairs of an image at one size."
                )
    return tuple(found[image] for image in range(len(found)))
