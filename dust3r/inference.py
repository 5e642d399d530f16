"""Running a two-view network on pairs of images, and one training or test step.

Encoding an image is two thirds of the work of a pair, so `inference` encodes each image once, however many
pairs it takes part in; the numbers are those of calling the model on every pair.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from dust3r.utils.device import collate_with_cat, to_cpu, todevice
from dust3r.utils.geometry import depthmap_to_pts3d, geotrf
from dust3r.utils.misc import interleave

FEATURE_CACHE_BYTES = 1 << 30
"""Bound of the encoder features one `inference` call keeps, in bytes (a 512 px image of ViT-L takes 3 MB)."""

_HOST_KEYS = frozenset(("depthmap", "dataset", "label", "instance", "idx", "true_shape", "rng"))
_TOKEN_METHODS = ("_encode_image", "_decoder", "_downstream_head")
_WEISZFELD_ROUNDS = 10
_MIN_SCALE = 1e-3

View: TypeAlias = Mapping[str, Any]
Pair: TypeAlias = "tuple[View, View]"
Prediction: TypeAlias = "dict[str, Tensor]"
FitMode: TypeAlias = Literal["avg", "median", "weiszfeld", "avg_stop_grad", "median_stop_grad", "weiszfeld_stop_grad"]


@torch.no_grad()
def inference(
    pairs: Sequence[Pair],
    model: nn.Module,
    device: str | torch.device,
    batch_size: int = 8,
    verbose: bool = True,
) -> dict[str, Any]:
    """Predict the pointmaps of image pairs, in float32.

    Args:
        pairs: Pairs of views as `make_pairs` returns them; each view's `img` is (1, 3, H, W).
        model: A two-view network. If it offers `_encode_image`, `_decoder` and `_downstream_head`, every
            image is encoded once (images are told apart by tensor identity).
        device: Where the model is and the computation runs.
        batch_size: Pairs decoded together if all first images share one size and all second images another;
            else 1.
        verbose: Show a progress bar.

    Returns:
        `view1`, `view2`, `pred1`, `pred2` and `loss` (None), on the CPU. Tensors have the pairs along axis 0
        if sizes agree, else every entry is a list over pairs, its tensors without batch axis.

    Raises:
        ValueError: If there are no pairs or `batch_size` is not positive.
    """
    if not pairs:
        raise ValueError("inference() got no pairs; make_pairs() needs at least two images to form one.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    same_size = check_if_same_size(pairs)
    step = batch_size if same_size else 1
    predict = _pair_predictor(pairs, model, torch.device(device))
    results = []
    for start in tqdm(range(0, len(pairs), step), disable=not verbose, desc="pairs", leave=False):
        batch = [tuple(pair) for pair in pairs[start : start + step]]
        with torch.autocast(torch.device(device).type, enabled=False):
            pred1, pred2 = predict(batch)
        view1, view2 = collate_with_cat(batch)
        result = {"view1": view1, "view2": view2, "pred1": pred1, "pred2": pred2, "loss": None}
        results.append(to_cpu(result))
    return collate_with_cat(results, lists=not same_size)


def loss_of_one_batch(
    batch: tuple[View, View],
    model: nn.Module,
    criterion: Callable[..., Any] | None,
    device: str | torch.device,
    symmetrize_batch: bool = False,
    use_amp: bool | torch.dtype = False,
    ret: str | None = None,
) -> Any:
    """One forward pass and, with a criterion, its loss.

    Args:
        batch: The two views of a batch of pairs.
        model: A two-view network.
        criterion: Called as `criterion(view1, view2, pred1, pred2)` in float32, or None.
        device: Where to compute. Depth maps, labels, indices and shapes stay where they are.
        symmetrize_batch: Interleave each pair with its swap (see `make_batch_symmetric`).
        use_amp: Run the model under autocast: True for the device's default type, or a dtype.
        ret: Return only this entry of the result.

    Returns:
        `view1`, `view2`, `pred1`, `pred2`, `loss` (None without criterion), or the entry named by `ret`.
    """
    view1, view2 = (_view_to_device(view, device) for view in batch)
    if symmetrize_batch:
        view1, view2 = make_batch_symmetric((view1, view2))
    kind = torch.device(device).type
    dtype = use_amp if isinstance(use_amp, torch.dtype) else None
    with torch.autocast(kind, dtype=dtype, enabled=bool(use_amp)):
        pred1, pred2 = model(view1, view2)
    loss = None
    if criterion is not None:
        with torch.autocast(kind, enabled=False):
            loss = criterion(view1, view2, pred1, pred2)
    result = {"view1": view1, "view2": view2, "pred1": pred1, "pred2": pred2, "loss": loss}
    return result[ret] if ret else result


def make_batch_symmetric(batch: tuple[View, View]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Interleave a batch of pairs with their swaps: rows (a0, b0), (b0, a0), (a1, b1), (b1, a1), ...

    Args:
        batch: The two views; tensors of B rows, or lists of B entries.

    Returns:
        The two views with 2B rows.
    """
    view1, view2 = batch
    first, second = {}, {}
    for key, rows in view1.items():
        first[key], second[key] = _interleave(rows, view2[key])
    return first, second


def check_if_same_size(pairs: Sequence[Pair]) -> bool:
    """Whether all first images share one size and all second images share one size."""
    first = {tuple(view1["img"].shape[-2:]) for view1, _ in pairs}
    second = {tuple(view2["img"].shape[-2:]) for _, view2 in pairs}
    return len(first) == 1 and len(second) == 1


def get_pred_pts3d(gt: View, pred: Mapping[str, Tensor], use_pose: bool = False) -> Tensor:
    """The pointmap of one view's prediction.

    Args:
        gt: The view; its `camera_intrinsics` give the principal point when points come from depth.
        pred: `pts3d`, or `pts3d_in_other_view`, or `depth` with `pseudo_focal`.
        use_pose: Move the points by `pred["camera_pose"]` (world_from_cam), unless they are already in the
            other view.

    Returns:
        (B, H, W, 3) points: in the camera's frame, or with `use_pose` in the frame the pose leads to.

    Raises:
        ValueError: If the prediction holds no points, or no pose where one is asked for.
    """
    if "pts3d_in_other_view" in pred:
        return pred["pts3d_in_other_view"]
    if "depth" in pred and "pseudo_focal" in pred:
        intrinsics = gt.get("camera_intrinsics")
        principal_point = None if intrinsics is None else intrinsics[..., :2, 2]
        points = depthmap_to_pts3d(pred["depth"], pred["pseudo_focal"], pp=principal_point)
    elif "pts3d" in pred:
        points = pred["pts3d"]
    else:
        raise ValueError(f"A prediction needs pts3d, pts3d_in_other_view or depth with pseudo_focal, got {list(pred)}.")
    if not use_pose:
        return points
    if "camera_pose" not in pred:
        raise ValueError(f"use_pose=True needs a prediction with camera_pose, got {list(pred)}.")
    return geotrf(pred["camera_pose"], points)


def find_opt_scaling(
    gt_pts1: Tensor,
    gt_pts2: Tensor | None,
    pr_pts1: Tensor,
    pr_pts2: Tensor | None = None,
    fit_mode: FitMode = "weiszfeld_stop_grad",
    valid1: Tensor | None = None,
    valid2: Tensor | None = None,
) -> Tensor:
    """The factor per sample by which predicted points best fit the true ones, over both views.

    Args:
        gt_pts1: (B, H, W, 3) true points of view 1.
        gt_pts2: The same of view 2, or None.
        pr_pts1: (B, H, W, 3) predicted points of view 1, same frame.
        pr_pts2: The same of view 2, or None.
        fit_mode: `avg` least squares, `median` median of the per-point factors, `weiszfeld` least sum of
            distances; with `_stop_grad` no gradient flows through the factor.
        valid1: (B, H, W) bool, pixels of view 1 to use (default: all).
        valid2: The same of view 2.

    Returns:
        (B,) factors, at least 1e-3.

    Raises:
        ValueError: If the mode is unknown.
    """
    method = fit_mode.removesuffix("_stop_grad")
    if method not in ("avg", "median", "weiszfeld"):
        raise ValueError(f"fit_mode must be avg, median or weiszfeld (optionally with _stop_grad), got {fit_mode!r}.")
    true, known = _joint_points(gt_pts1, gt_pts2, valid1, valid2)
    predicted, finite = _joint_points(pr_pts1, pr_pts2, valid1, valid2)
    weight = known * finite
    dot_pg = (predicted * true).sum(dim=-1)
    dot_pp = predicted.square().sum(dim=-1)
    if method == "median":
        factors = torch.where(weight > 0, dot_pg / dot_pp, torch.nan)
        scale = factors.nanmedian(dim=1).values
    else:
        scale = _weighted_ratio(dot_pg, dot_pp, weight)
    if method == "weiszfeld":
        for _ in range(_WEISZFELD_ROUNDS):
            distance = (true - scale[:, None, None] * predicted).norm(dim=-1)
            scale = _weighted_ratio(dot_pg, dot_pp, weight / distance.clamp(min=1e-8))
    scale = scale.detach() if fit_mode.endswith("_stop_grad") else scale
    return scale.clamp(min=_MIN_SCALE)


class FeatureCache:
    """Encoder features per image, at most `max_bytes` of them; the least recently used leave first."""

    def __init__(self, model: Any, device: torch.device, *, max_bytes: int = FEATURE_CACHE_BYTES) -> None:
        self._model = model
        self._device = device
        self._max_bytes = max_bytes
        self._features: OrderedDict[tuple, tuple[Tensor, Tensor]] = OrderedDict()
        self._bytes = 0

    def encode(self, views: Sequence[View]) -> list[tuple[Tensor, Tensor]]:
        """Features (1, N, C) and token positions (1, N, 2) of each view; one model call per image size."""
        wanted = {_image_key(view): view for view in views}
        found = {key: self._features[key] for key in wanted if key in self._features}
        groups: dict[tuple, list[tuple]] = {}
        for key in wanted:
            if key in found:
                self._features.move_to_end(key)
            else:
                groups.setdefault(tuple(wanted[key]["img"].shape[1:]), []).append(key)
        for keys in groups.values():
            found.update(zip(keys, self._encode([wanted[key] for key in keys])))
        for keys in groups.values():
            for key in keys:
                self._store(key, found[key])
        return [found[_image_key(view)] for view in views]

    def _encode(self, views: list[View]) -> list[tuple[Tensor, Tensor]]:
        images = torch.cat([view["img"] for view in views]).to(self._device)
        shapes = torch.cat([_true_shape(view) for view in views])
        features, positions = self._model._encode_image(images, shapes)[:2]
        # Copies, so that one cached image does not keep the whole batch alive.
        return [(features[i : i + 1].clone(), positions[i : i + 1].clone()) for i in range(len(views))]

    def _store(self, key: tuple, entry: tuple[Tensor, Tensor]) -> None:
        self._features[key] = entry
        self._bytes += _nbytes(entry)
        while self._bytes > self._max_bytes and self._features:
            self._bytes -= _nbytes(self._features.popitem(last=False)[1])


def _pair_predictor(
    pairs: Sequence[Pair], model: Any, device: torch.device
) -> Callable[[list], tuple[Prediction, Prediction]]:
    """A function from a batch of pairs to the two predictions, through cached features where possible."""
    single = all(view["img"].shape[0] == 1 for pair in pairs for view in pair)
    if not single or not all(hasattr(model, name) for name in _TOKEN_METHODS):
        return lambda batch: model(*(_view_to_device(view, device) for view in collate_with_cat(batch)))
    cache = FeatureCache(model, device)
    return lambda batch: _decode_pairs(model, cache, batch)


def _decode_pairs(model: Any, cache: FeatureCache, batch: list[Pair]) -> tuple[Prediction, Prediction]:
    """Decoder and heads on cached features: the second half of the model's forward pass."""
    views1, views2 = [view1 for view1, _ in batch], [view2 for _, view2 in batch]
    features = cache.encode([*views1, *views2])
    inputs = []
    for part in (features[: len(batch)], features[len(batch) :]):
        inputs += [torch.cat([feature for feature, _ in part]), torch.cat([position for _, position in part])]
    tokens1, tokens2 = model._decoder(*inputs)
    shape1, shape2 = (torch.cat([_true_shape(view) for view in views]) for views in (views1, views2))
    pred1 = model._downstream_head(1, tokens1, shape1)
    pred2 = dict(model._downstream_head(2, tokens2, shape2))
    pred2["pts3d_in_other_view"] = pred2.pop("pts3d")
    return pred1, pred2


def _image_key(view: View) -> tuple:
    """Identity of an image within one call: the tensor object (kept alive by its pair) and its true shape."""
    return id(view["img"]), *_true_shape(view).flatten().tolist()


def _true_shape(view: View) -> Tensor:
    """(B, 2) height and width of a view's images."""
    if "true_shape" in view:
        return torch.as_tensor(view["true_shape"]).reshape(-1, 2)
    return torch.tensor([view["img"].shape[-2:]] * view["img"].shape[0])


def _nbytes(entry: tuple[Tensor, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in entry)


def _view_to_device(view: View, device: str | torch.device) -> dict[str, Any]:
    return {
        key: value if key in _HOST_KEYS else todevice(value, device, non_blocking=True) for key, value in view.items()
    }


def _interleave(first: Any, second: Any) -> tuple[Any, Any]:
    """`interleave` for tensors and for lists."""
    if isinstance(first, Tensor):
        return interleave(first, second)
    pairs = list(zip(first, second))
    return [item for a, b in pairs for item in (a, b)], [item for a, b in pairs for item in (b, a)]


def _joint_points(
    pts1: Tensor, pts2: Tensor | None, valid1: Tensor | None, valid2: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Points (B, N, 3) of both views, zero where invalid, and their weights (B, N) 0 or 1."""
    points, weights = [], []
    for pts, valid in ((pts1, valid1), (pts2, valid2)):
        if pts is None:
            continue
        flat = pts.flatten(1, -2)
        usable = flat.isfinite().all(dim=-1)
        usable = usable if valid is None else usable & valid.flatten(1)
        points.append(torch.where(usable[..., None], flat, 0.0))
        weights.append(usable.to(flat.dtype))
    return torch.cat(points, dim=1), torch.cat(weights, dim=1)


def _weighted_ratio(dot_pg: Tensor, dot_pp: Tensor, weight: Tensor) -> Tensor:
    return (weight * dot_pg).sum(dim=1) / (weight * dot_pp).sum(dim=1).clamp(min=1e-12)
