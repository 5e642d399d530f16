"""What a two-view network has learned, measured on rendered pairs with exact ground truth.

Two questions: does the descriptor of a pixel find its partner among *all* pixels of the other view, and how
far are the predicted pointmaps from the truth once their common scale is removed?
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dust3r.utils.geometry import geotrf, inv

View = dict[str, Any]

RADII_PX = (2.0, 4.0, 8.0, 16.0)
DEPTH_TOLERANCE = 0.03


class PairEngine(Protocol):
    """A source of training pairs that is deterministic in its seed (`SceneEngine`)."""

    def pairs(
        self,
        seed: int,
        batch_size: int,
        *,
        height: int,
        width: int,
        overlap: tuple[float, float],
        n_corres: int,
        difficulty: float = 1.0,
    ) -> tuple[View, View]:
        """Two training views of `batch_size` rows."""
        ...


@dataclass(frozen=True)
class SyntheticMetrics:
    """Quality on a set of rendered pairs.

    Attributes:
        within_2px: share (0 .. 1) of visible grid points whose best match in view 2 lies within 2 px.
        within_4px: the same within 4 px.
        within_8px: the same within 8 px.
        within_16px: the same within 16 px.
        pointmap_median: relative error |s X - X_gt| / |X_gt| of the scale-aligned pointmaps of both views,
            median over a pair's valid pixels, mean over the pairs.
        pointmap_mean: the same with the mean over a pair's valid pixels.
        points: number of grid points that were judged.
        pairs: number of pairs.
    """

    within_2px: float
    within_4px: float
    within_8px: float
    within_16px: float
    pointmap_median: float
    pointmap_mean: float
    points: int
    pairs: int

    def as_dict(self) -> dict[str, float]:
        """Name → value, for logs."""
        return asdict(self)


@dataclass(frozen=True)
class JudgedPair:
    """One rendered pair as a network saw it.

    Attributes:
        errors: (N,) distance in pixels between best and true match of each visible grid point of view 1.
        changes: (N, 3) how the surroundings of these points change from view 1 to view 2, see `view_changes`.
        pointmap: (M,) relative error of each valid pixel of both views, see `pointmap_errors`.
    """

    errors: Tensor
    changes: Tensor
    pointmap: Tensor


def evaluate_synthetic(model: nn.Module, engine: PairEngine, **request: Any) -> SyntheticMetrics:
    """Measure `model` on the fixed set of pairs that `engine` renders; arguments as in `judged_pairs`."""
    return summarise(list(judged_pairs(model, engine, **request)))


def summarise(judged: Sequence[JudgedPair]) -> SyntheticMetrics:
    """The quality of all pairs together."""
    distances = torch.cat([pair.errors for pair in judged])
    shares = [(distances <= radius).float().mean() for radius in RADII_PX]
    medians = torch.stack([pair.pointmap.median() for pair in judged])
    means = torch.stack([pair.pointmap.mean() for pair in judged])
    values = torch.stack([*shares, medians.nanmean(), means.nanmean()]).tolist()
    return SyntheticMetrics(*values, points=len(distances), pairs=len(judged))


@torch.no_grad()
def judged_pairs(
    model: nn.Module,
    engine: PairEngine,
    *,
    seed: int,
    pairs: int,
    height: int,
    width: int,
    overlap: tuple[float, float],
    batch_size: int = 8,
    grid_step: int = 8,
) -> Iterator[JudgedPair]:
    """Render the pairs of a set and judge what `model` says of them.

    Args:
        model: two-view network in evaluation mode that returns `pts3d`, `pts3d_in_other_view` and `desc`.
        engine: renders the pairs, on the model's device.
        seed: number of the test set; batch k is rendered with `seed + k`.
        pairs: size of the set.
        height: image height in pixels.
        width: image width in pixels.
        overlap: (lowest, highest) share of view 1 that view 2 sees.
        batch_size: pairs rendered and predicted at once; belongs to the set, as each batch has a seed.
        grid_step: spacing of the judged points of view 1, in pixels.
    """
    for view1, view2 in _batches(engine, seed, pairs, batch_size, height=height, width=width, overlap=overlap):
        keys = ("img", "true_shape")
        pred1, pred2 = model(*({k: view[k] for k in keys if k in view} for view in (view1, view2)))
        rows = zip(
            match_errors(view1, view2, pred1["desc"], pred2["desc"], grid_step=grid_step),
            view_changes(view1, view2, grid_step=grid_step),
            pointmap_errors(view1, view2, pred1["pts3d"], pred2["pts3d_in_other_view"]),
        )
        for row in rows:
            yield JudgedPair(*row)


def _batches(engine: PairEngine, seed: int, pairs: int, batch_size: int, **request: Any) -> Iterator[tuple[View, View]]:
    for number, start in enumerate(range(0, pairs, batch_size)):
        rows = min(batch_size, pairs - start)
        yield engine.pairs(seed + number, rows, n_corres=1, **request)


def match_errors(view1: View, view2: View, desc1: Tensor, desc2: Tensor, *, grid_step: int = 8) -> list[Tensor]:
    """Distance in pixels between best and true match of each visible grid point, one 1-D tensor per pair.

    Args:
        view1: training view; its `pts3d` and `valid_mask` define the points.
        view2: training view with camera and depth, into which they are projected.
        desc1: (B, H, W, D) descriptors of view 1.
        desc2: (B, H, W, D) descriptors of view 2.
        grid_step: spacing of the points in pixels.
    """
    target, visible, queries = (_on_grid(x, grid_step) for x in (*true_targets(view1, view2), desc1))
    errors = []
    for row in range(len(desc1)):
        best = best_matches(queries[row][visible[row]], desc2[row])
        errors.append((best - target[row][visible[row]]).norm(dim=-1))
    return errors


def view_changes(view1: View, view2: View, *, grid_step: int = 8) -> list[Tensor]:
    """How the surroundings of each visible grid point change from view 1 to view 2, one (N, 3) tensor per pair.

    The columns are the turn in the image plane in degrees (0 .. 180), the change of scale (2 is twice as large in view
    2) and the foreshortening (1 none, 2 half as wide along one direction): the polar decomposition of the map of
    neighbouring pixels. Points beside an edge of depth, whose neighbours lie on something else, have chance values.

    Args:
        view1: training view, as in `match_errors`.
        view2: training view.
        grid_step: spacing of the points in pixels.
    """
    target, visible = true_targets(view1, view2)
    across, down = target.new_zeros(target.shape), target.new_zeros(target.shape)
    across[:, :, 1:-1] = (target[:, :, 2:] - target[:, :, :-2]) / 2
    down[:, 1:-1] = (target[:, 2:] - target[:, :-2]) / 2
    maps, visible = (_on_grid(x, grid_step) for x in (torch.stack([across, down], dim=-1), visible))
    return [_polar(maps[row][visible[row]]) for row in range(len(maps))]


def _polar(maps: Tensor) -> Tensor:
    """Turn in degrees, scale and foreshortening (N, 3) of linear maps (N, 2, 2)."""
    left, stretch, right = torch.linalg.svd(maps)
    rotation = left @ right
    turn = torch.rad2deg(torch.atan2(rotation[:, 1, 0], rotation[:, 0, 0]).abs())
    large, small = stretch.clamp(min=1e-6).unbind(-1)
    return torch.stack([turn, (large * small).sqrt(), large / small], dim=-1)


def _on_grid(maps: Tensor, step: int) -> Tensor:
    """Every `step`-th pixel of (B, H, W, ...) maps, along both axes, half a step from the border."""
    return maps[:, step // 2 :: step, step // 2 :: step]


def true_targets(view1: View, view2: View) -> tuple[Tensor, Tensor]:
    """Where each pixel of view 1 lies in view 2, and whether view 2 sees it.

    Returns:
        (B, H, W, 2) pixel xy in view 2 and a (B, H, W) mask of points that have depth, project into view 2
        and agree with its depth map within 3 %.
    """
    camera = geotrf(inv(view2["camera_pose"].float()), view1["pts3d"].float())
    depth = camera[..., 2]
    K = view2["camera_intrinsics"].float()
    in_front = view1["valid_mask"] & (depth > 1e-6)
    pixels = torch.einsum("bij,bhwj->bhwi", K, camera / depth.clamp(min=1e-6)[..., None])[..., :2]
    pixels = torch.where(in_front[..., None], pixels, -1e6)
    seen_depth, inside = _nearest(view2["depthmap"].float(), pixels)
    agrees = (seen_depth - depth).abs() <= DEPTH_TOLERANCE * seen_depth
    return pixels, in_front & inside & (seen_depth > 0) & agrees


def _nearest(image: Tensor, xy: Tensor) -> tuple[Tensor, Tensor]:
    """Values of (B, H, W) `image` at the pixels nearest to (B, h, w, 2) `xy`, and which of those exist."""
    height, width = image.shape[1:]
    x, y = xy[..., 0].round(), xy[..., 1].round()
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    index = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).long()
    return image.flatten(1).gather(1, index.flatten(1)).view_as(x), inside


def best_matches(queries: Tensor, descriptors: Tensor, *, block: int = 256) -> Tensor:
    """(N, 2) xy of the pixel of the (H, W, D) map with the largest dot product for each of (N, D) queries."""
    width = descriptors.shape[1]
    table = descriptors.flatten(0, 1).float().T.contiguous()
    parts = [(part @ table).argmax(dim=1) for part in queries.float().split(block)]
    index = torch.cat(parts) if parts else queries.new_zeros(0, dtype=torch.long)
    return torch.stack((index % width, index // width), dim=-1).float()


def pointmap_errors(view1: View, view2: View, pred1: Tensor, pred2: Tensor) -> list[Tensor]:
    """Relative error |s X - X_gt| / |X_gt| of each valid pixel of both views, one 1-D tensor per pair.

    Points are in camera 1's frame. The scale s is the median over the pair's valid pixels of |X_gt| / |X|.
    """
    camera1_from_world = inv(view1["camera_pose"].float())
    truths = [geotrf(camera1_from_world, view["pts3d"].float()) for view in (view1, view2)]
    errors = []
    for row in range(len(pred1)):
        masks = [view["valid_mask"][row] for view in (view1, view2)]
        truth = torch.cat([truth[row][mask] for truth, mask in zip(truths, masks)])
        pred = torch.cat([pred[row][mask].float() for pred, mask in zip((pred1, pred2), masks)])
        distance = truth.norm(dim=-1).clamp(min=1e-6)
        scale = (distance / pred.norm(dim=-1).clamp(min=1e-9)).median()
        errors.append((scale * pred - truth).norm(dim=-1) / distance)
    return errors
