"""Two images without optimisation."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from dust3r.cloud_opt.base_opt import BasePCOptimizer
from dust3r.cloud_opt.init_im_poses import confident_pixels, estimate_focal, positive_depth
from dust3r.cloud_opt.pnp import fast_pnp
from dust3r.utils.geometry import geotrf, inv

logger = logging.getLogger(__name__)

_PNP_ROUNDS = 100


class PairViewer(BasePCOptimizer):
    """Cameras and depths of two images, read off both directions of their pair.

    Focals come from each image's own point map, the relative pose by PnP in the surer of the two directions,
    whose first camera is the world.

    Args:
        *args: `view1, view2, pred1, pred2` of `inference` for the pairs (0, 1) and (1, 0).
        **kwargs: See `BasePCOptimizer._init_from_views`.

    Raises:
        ValueError: If the pairs are not exactly (0, 1) and (1, 0).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if sorted(self.edges) != [(0, 1), (1, 0)]:
            raise ValueError(
                f"PairViewer needs the pairs (0, 1) and (1, 0) of two images, got {self.edges}; symmetrise "
                "the pairs or use PointCloudOptimizer."
            )
        if len(args) > 1:
            self._read_cameras()

    @torch.no_grad()
    def _read_cameras(self) -> None:
        centers = self.get_principal_points()
        edges = {i: e for e, (i, _) in enumerate(self.edges)}
        focals = [estimate_focal(self.edge_points(edges[i], 0), centers[i]) for i in (0, 1)]
        scores = self.edge_scores()
        root = 0 if scores[edges[0]] > scores[edges[1]] else 1
        other, e = 1 - root, edges[root]
        mask = confident_pixels(self.im_conf[other], self.min_conf_thr)
        found = fast_pnp(self.edge_points(e, 1), focals[other], mask, self.device, centers[other], _PNP_ROUNDS)
        if found is None:
            self.problems[other] = "no camera pose explains its points (PnP failed); it is left at the other's"
            logger.warning("Image %d: %s.", other, self.problems[other])
        identity = torch.eye(4, device=self.device)
        relative = identity if found is None else found[1]
        depths: dict[int, Tensor] = {
            root: self.edge_points(e, 0)[..., 2],
            other: geotrf(inv(relative), self.edge_points(e, 1))[..., 2],
        }
        self._fixed_poses.set(root, identity)
        self._fixed_poses.set(other, relative)
        for image in (0, 1):
            self._set_pose(self.im_poses, image, relative if image == other else identity)
            self._set_focal(image, focals[image])
            self._set_depthmap(image, positive_depth(depths[image]))
        self.requires_grad_(False)

    def forward(self, ret_details: bool = False) -> Any:
        """NaN: there is nothing to optimise."""
        loss = self.pw_poses.new_tensor(float("nan"))
        return (loss, loss.expand(2, 2)) if ret_details else loss

    def compute_global_alignment(self, init: Any = None, niter_PnP: int = 10, **kw: Any) -> float:
        """Nothing to do; returns NaN."""
        return float("nan")
