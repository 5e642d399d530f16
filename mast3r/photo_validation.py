"""What a two-view network has learned, measured on real photos with ground truth.

A data folder holds scenes, each with a `gt.json` that lists pairs of images with a relative pose and
intrinsics, a homography, or annotated points. Matches are reciprocal best descriptors, in pixels of the
stored images.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dust3r.utils.image import ImgNorm
from mast3r.fast_nn import index_to_xy, match_reciprocal
from mast3r.validation import best_matches
from multiview.images import ImageTransform, fit_for_model, read_image
from multiview.metrics import epipolar_precision, pose_auc, relative_pose_error, warp_points
from multiview.robust import estimate_relative_pose

logger = logging.getLogger(__name__)

RADIUS_PX = 8.0  # in pixels of the network's input, as for rendered pairs
RANSAC_PX = 1.5  # in pixels of the network's input
_TRUTHS = ("K0", "K1", "T_0to1", "H_0to1", "corrs")


@dataclass(frozen=True)
class TrueCameras:
    """Cameras of a pair.

    Attributes:
        K0: (3, 3) intrinsics of image 0.
        K1: (3, 3) intrinsics of image 1.
        T_0to1: (4, 4) x_cam1 = T_0to1 @ x_cam0.
    """

    K0: np.ndarray
    K1: np.ndarray
    T_0to1: np.ndarray


@dataclass(frozen=True)
class PhotoPair:
    """Two photos and what is known about them. Pixels are those of the stored files.

    Attributes:
        image0: file of image 0.
        image1: file of image 1.
        cameras: intrinsics and relative pose, or None.
        H_0to1: (3, 3) homography, or None.
        points: (N, 4) annotated correspondences x0 y0 x1 y1, or None.
    """

    image0: Path
    image1: Path
    cameras: TrueCameras | None = None
    H_0to1: np.ndarray | None = None
    points: np.ndarray | None = None

    @property
    def has_truth(self) -> bool:
        """Whether anything is known about the pair."""
        return not (self.cameras is None and self.H_0to1 is None and self.points is None)


@dataclass(frozen=True)
class PhotoMetrics:
    """Quality on real photos; None where the data has no pair of that kind.

    Attributes:
        pose_auc10: area under the recall curve of the relative pose error up to 10 degrees, 0 .. 1.
        pose_auc20: the same up to 20 degrees.
        epipolar_precision: share of matches that satisfy the true epipolar geometry, mean over posed pairs.
        homography_within_8px: share of matches within 8 px of the true homography, mean over such pairs.
        points_within_8px: share of annotated points whose best match lies within 8 px, mean over such pairs.
        matches: matches per pair.
        pairs: number of pairs.
    """

    pose_auc10: float | None
    pose_auc20: float | None
    epipolar_precision: float | None
    homography_within_8px: float | None
    points_within_8px: float | None
    matches: float
    pairs: int

    def as_dict(self) -> dict[str, float]:
        """Name → value, for logs; without what could not be measured."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass
class _Tally:
    """Values of the pairs seen so far, by the kind of their ground truth."""

    pose: list[float] = field(default_factory=list)
    epipolar: list[float] = field(default_factory=list)
    homography: list[float] = field(default_factory=list)
    points: list[float] = field(default_factory=list)
    matches: list[int] = field(default_factory=list)

    def metrics(self) -> PhotoMetrics:
        auc10, auc20 = pose_auc(self.pose, (10, 20)) if self.pose else (None, None)
        means = (float(np.mean(v)) if v else None for v in (self.epipolar, self.homography, self.points))
        matches = float(np.mean(self.matches)) if self.matches else 0.0
        return PhotoMetrics(auc10, auc20, *means, matches=matches, pairs=len(self.matches))


def read_pairs(
    folder: str | Path, *, per_scene: int | None = None, confidence: Sequence[str] = ("high", "medium")
) -> list[PhotoPair]:
    """Pairs with ground truth below `folder`: a scene with a `gt.json`, or a folder of such scenes.

    Args:
        folder: where to look.
        per_scene: at most so many pairs of each scene, evenly spread; None takes all.
        confidence: accepted values of `gt_confidence`.

    Raises:
        ValueError: when there is no pair with ground truth.
    """
    folder = Path(folder)
    pairs: list[PhotoPair] = []
    for file in sorted([*folder.glob("gt.json"), *folder.glob("*/gt.json")]):
        scene = json.loads(file.read_text())
        if scene.get("gt_confidence", "high") not in confidence:
            continue
        listed = [_pair(file.parent, entry) for entry in scene.get("pairs", ())]
        known = [pair for pair in listed if pair.has_truth]
        count = len(known) if per_scene is None else min(per_scene, len(known))
        pairs += [known[round(i)] for i in np.linspace(0, len(known) - 1, count)] if known else []
    if not pairs:
        raise ValueError(
            f"no pair with ground truth in {folder}: expected SCENE/gt.json files that list pairs"
        )
    return pairs


def _pair(folder: Path, entry: Mapping[str, Any]) -> PhotoPair:
    """The pair that an entry of the scene in `folder` describes."""
    known = {
        key: np.asarray(value, float) for key, value in entry.items() if key in _TRUTHS and value is not None
    }
    posed = known.keys() >= {"K0", "K1", "T_0to1"}
    return PhotoPair(
        folder / entry["image0"],
        folder / entry["image1"],
        cameras=TrueCameras(known["K0"], known["K1"], known["T_0to1"]) if posed else None,
        H_0to1=known.get("H_0to1"),
        points=known.get("corrs"),
    )


@torch.no_grad()
def evaluate_photos(model: nn.Module, pairs: Sequence[PhotoPair], *, size: int = 224) -> PhotoMetrics:
    """Measure `model` on real photos.

    Args:
        model: two-view network in evaluation mode that returns `desc`.
        pairs: what `read_pairs` found.
        size: resolution of the network's input in pixels (224: square centre crop; else the long side).
    """
    device = next(model.parameters()).device
    tally = _Tally()
    for pair in pairs:
        (view0, to0), (view1, to1) = (_view(path, size, device) for path in (pair.image0, pair.image1))
        pred0, pred1 = model(view0, view1)
        _judge(tally, pair, pred0["desc"][0], pred1["desc"][0], (to0, to1))
    return tally.metrics()


def _view(path: Path, size: int, device: torch.device) -> tuple[dict[str, Tensor], ImageTransform]:
    pixels, transform = fit_for_model(read_image(path), size)
    return {"img": ImgNorm(pixels)[None].to(device)}, transform


def _judge(
    tally: _Tally,
    pair: PhotoPair,
    desc0: Tensor,
    desc1: Tensor,
    to_model: tuple[ImageTransform, ImageTransform],
) -> None:
    found = match_reciprocal(desc0, desc1)
    model0, model1 = (
        index_to_xy(index, desc.shape[1]).cpu().numpy().astype(float)
        for index, desc in ((found.index0, desc0), (found.index1, desc1))
    )
    xy0, xy1 = to_model[0].inverse().apply(model0), to_model[1].inverse().apply(model1)
    tally.matches.append(len(xy0))
    if pair.cameras is not None:
        truth = pair.cameras
        tally.epipolar.append(epipolar_precision(xy0, xy1, truth.K0, truth.K1, truth.T_0to1))
        pixel = float(1 / to_model[1].matrix[0, 0])  # side of a model pixel in pixels of the stored image
        tally.pose.append(_pose_error(truth, xy0, xy1, threshold_px=RANSAC_PX * pixel))
    if pair.H_0to1 is not None:
        errors = np.linalg.norm(to_model[1].apply(warp_points(pair.H_0to1, xy0)) - model1, axis=1)
        tally.homography.append(float(np.mean(errors <= RADIUS_PX)) if len(errors) else 0.0)
    if pair.points is not None:
        share = _points_found(pair.points, desc0, desc1, to_model)
        tally.points += [] if share is None else [share]


def _pose_error(truth: TrueCameras, xy0: np.ndarray, xy1: np.ndarray, *, threshold_px: float) -> float:
    """Larger of rotation and translation error in degrees; infinite when no pose is found."""
    pose = estimate_relative_pose(xy0, xy1, truth.K0, truth.K1, threshold_px=threshold_px)
    return relative_pose_error(pose.R, pose.t, truth.T_0to1).max_deg if pose.success else float("inf")


def _points_found(
    points: np.ndarray, desc0: Tensor, desc1: Tensor, to_model: tuple[ImageTransform, ImageTransform]
) -> float | None:
    """Share of annotated points, visible in both inputs, whose best match is near; None without any."""
    here, there = to_model[0].apply(points[:, :2]), to_model[1].apply(points[:, 2:])
    height0, width0 = desc0.shape[:2]
    height1, width1 = desc1.shape[:2]
    inside = (here >= 0).all(1) & (here <= (width0 - 1, height0 - 1)).all(1)
    inside &= (there >= 0).all(1) & (there <= (width1 - 1, height1 - 1)).all(1)
    if not inside.any():
        return None
    x, y = torch.from_numpy(here[inside].round().astype(np.int64)).to(desc0.device).unbind(1)
    best = best_matches(desc0[y, x], desc1).cpu().numpy()
    return float(np.mean(np.linalg.norm(best - there[inside], axis=1) <= RADIUS_PX))
