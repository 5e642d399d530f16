"""From two photos to 3D points, matches and cameras: the user's side of the network.

The model sees tensors only. Everything before it (reading, resizing) and after it (matching, pixels of the
original photos, cameras) happens here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dust3r.utils.image import ImgNorm
from mast3r.fast_nn import extract_correspondences_nonsym
from mast3r.loading import card_of, load
from mast3r.model import AsymmetricMASt3R
from mast3r.pair_geometry import PairPose, SeenMap, estimate_camera, estimate_pose
from mast3r.subpixel import refine_matches
from multiview.cameras import Camera
from multiview.images import (
    Image,
    ImageError,
    ImageSource,
    ImageTransform,
    as_image,
    fit_for_model,
    resample,
)
from multiview.matches import Matches
from multiview.pointmaps import Pointmap
from multiview.results import PairResult

__all__ = ["PairConfig", "fit_whole_image", "load", "match", "predict_pair"]

STEPS = ("read", "encode", "decode", "match", "pose")
"""Names of the steps of `predict_pair`, in order; the keys of `PairResult.timings`."""

OnStep = Callable[[float, str], None]
"""Told before each step: the share of steps that are done, and the name of the next one."""

_AREA_WEIGHT = 0.3  # how much a change of the number of patches costs, against a change of the aspect ratio
_MAX_ASPECT = 8.0


@dataclass(frozen=True)
class PairConfig:
    """How a pair is processed.

    Attributes:
        subsample: Spacing in model pixels of the grid from which matches are searched; smaller finds more.
        max_matches: Keep at most so many matches, the most confident ones; None keeps all.
        min_confidence_percentile: Share of the matches to drop, least confident first; 0..100.
        border_px: Drop matches nearer than this to a border of the model's input, where context is missing.
        subpixel: Place matches between the model's pixels.
        image_size: Size of the model's input; None takes the size it was trained at.
        crop: True resizes and crops as the official code does. False keeps the whole image, resized to about
            the number of pixels of a square of that size. None crops above 224 px only, where the crop is
            less than a patch.
        ransac_px: Largest epipolar distance of a match that agrees with the pose, in model pixels.
        seed: Seed of the pose estimation.

    Raises:
        ValueError: If a value is out of its range.
    """

    subsample: int = 8
    max_matches: int | None = None
    min_confidence_percentile: float = 0.0
    border_px: int = 3
    subpixel: bool = True
    image_size: int | None = None
    crop: bool | None = None
    ransac_px: float = 1.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.subsample < 1:
            raise ValueError(f"subsample must be at least 1 pixel, got {self.subsample}.")
        if self.max_matches is not None and self.max_matches < 0:
            raise ValueError(f"max_matches must be None or not negative, got {self.max_matches}.")
        if not 0 <= self.min_confidence_percentile <= 100:
            raise ValueError(f"min_confidence_percentile must be in 0..100, got {self.min_confidence_percentile}.")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size must be None or a positive number of pixels, got {self.image_size}.")
        if self.border_px < 0 or not self.ransac_px > 0:
            raise ValueError(
                f"border_px must not be negative and ransac_px positive, got {self.border_px} and {self.ransac_px}."
            )

    def changed(self, **options: Any) -> PairConfig:
        """This configuration with the options that are not None."""
        return replace(self, **{name: value for name, value in options.items() if value is not None})


@dataclass(frozen=True, eq=False)
class _Input:
    """One photo as the model sees it."""

    image: Image
    transform: ImageTransform
    tensor: Tensor  # (1, 3, H, W) in [-1, 1]

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the tensor."""
        return self.tensor.shape[-2], self.tensor.shape[-1]


@dataclass(frozen=True, eq=False)
class _Seen:
    """What the network says about one image in one order of the pair: maps (H, W, ...) float32."""

    points: Tensor
    confidence: Tensor
    desc: Tensor
    desc_confidence: Tensor

    def pointmap(self, frame: str) -> Pointmap:
        return Pointmap(self.points.cpu().numpy(), self.confidence.cpu().numpy(), frame)


_Order = tuple[_Seen, _Seen]  # of the first and the second image of that order; points in the first one's frame
_Tokens = tuple[Tensor, Tensor]  # features (1, N, C) and positions (1, N, 2)


def predict_pair(
    model: AsymmetricMASt3R,
    a: ImageSource,
    b: ImageSource,
    *,
    K0: np.ndarray | None = None,
    K1: np.ndarray | None = None,
    max_matches: int | None = None,
    min_confidence_percentile: float | None = None,
    subsample: int | None = None,
    crop: bool | None = None,
    seed: int | None = None,
    config: PairConfig | None = None,
    on_step: OnStep | None = None,
) -> PairResult:
    """3D points, matches and cameras of two photos.

    Each photo is encoded once; the pair is decoded in both orders, and matches of both orders are joined.

    Args:
        model: What `mast3r.load` returned.
        a: Photo 0: a path, PIL image, array or `Image`. Its camera defines the frame of the result.
        b: Photo 1.
        K0: (3, 3) intrinsics of photo 0 in pixels of the upright original, if known; else estimated.
        K1: The same of photo 1.
        max_matches: Overrides the field of `config` of that name, as do the next four.
        min_confidence_percentile: See `PairConfig`.
        subsample: See `PairConfig`.
        crop: See `PairConfig`.
        seed: See `PairConfig`.
        config: Settings; default `PairConfig()`.
        on_step: Called before each step, for progress bars.

    Returns:
        The result; matches and cameras are in pixels of the original photos.

    Raises:
        ImageError: If a photo cannot be read or is too elongated.
        ValueError: If an option or intrinsics are wrong, or the model has no descriptors.
    """
    config = (config or PairConfig()).changed(
        max_matches=max_matches,
        min_confidence_percentile=min_confidence_percentile,
        subsample=subsample,
        crop=crop,
        seed=seed,
    )
    clock = _Clock(STEPS, on_step)
    with clock.step("read"):
        inputs = (_read(model, a, config), _read(model, b, config))
        given = tuple(_given_camera(K, x.image) for K, x in zip((K0, K1), inputs))
    with torch.inference_mode():
        with clock.step("encode"):
            tokens = _encode(model, inputs)
        with clock.step("decode"):
            orders = _decode(model, inputs, tokens, ((0, 1), (1, 0)))
        with clock.step("match"):
            matches = _matches(inputs, orders, config)
    with clock.step("pose"):
        maps = (orders[0][0].pointmap("camera 0"), orders[0][1].pointmap("camera 0"))
        own1 = orders[1][0].pointmap("camera 1")
        cameras, pose = _cameras(inputs, given, matches, maps, own1, config)
    return PairResult(
        images=(inputs[0].image, inputs[1].image),
        transforms=(inputs[0].transform, inputs[1].transform),
        pointmaps=maps,
        matches=matches,
        cameras=cameras,
        pose1=pose.pose1,
        num_inliers=pose.num_inliers,
        scale_status=card_of(model).scale_status,
        own_pointmap1=own1,
        timings=clock.seconds,
    )


def match(
    model: AsymmetricMASt3R,
    a: ImageSource,
    b: ImageSource,
    *,
    max_matches: int | None = None,
    min_confidence_percentile: float | None = None,
    subsample: int | None = None,
    crop: bool | None = None,
    config: PairConfig | None = None,
) -> Matches:
    """Matches between two photos, from one decoding of the pair (half the decoding work of `predict_pair`).

    Args:
        model: What `mast3r.load` returned.
        a: Photo 0: a path, PIL image, array or `Image`.
        b: Photo 1.
        max_matches: Overrides the field of `config` of that name, as do the next three.
        min_confidence_percentile: See `PairConfig`.
        subsample: See `PairConfig`.
        crop: See `PairConfig`.
        config: Settings; default `PairConfig()`.

    Returns:
        Matches in pixels of the upright original photos.

    Raises:
        ImageError: If a photo cannot be read or is too elongated.
        ValueError: If an option is wrong or the model has no descriptors.
    """
    config = (config or PairConfig()).changed(
        max_matches=max_matches,
        min_confidence_percentile=min_confidence_percentile,
        subsample=subsample,
        crop=crop,
    )
    inputs = (_read(model, a, config), _read(model, b, config))
    with torch.inference_mode():
        orders = _decode(model, inputs, _encode(model, inputs), ((0, 1),))
        return _matches(inputs, orders, config)


# --- photos to tensors ---


def fit_whole_image(image: Image, side: int, patch_size: int = 16) -> tuple[np.ndarray, ImageTransform]:
    """Resize a whole image to about the number of pixels of a square, without cutting its borders.

    Both sides become multiples of the patch, chosen so that the aspect ratio hardly changes (4:3 and 3:2 stay
    exact at 224 px).

    Args:
        image: The image.
        side: Side of the square in pixels, a multiple of the patch.
        patch_size: Patch side of the network in pixels.

    Returns:
        The (h, w, 3) uint8 pixels and the map from original to model pixels.

    Raises:
        ImageError: If the image is more elongated than 8 to 1.
        ValueError: If `side` is smaller than a patch.
    """
    if side < patch_size:
        raise ValueError(f"side must be at least one patch of {patch_size} px, got {side}.")
    aspect = image.width / image.height
    if not 1 / _MAX_ASPECT <= aspect <= _MAX_ASPECT:
        raise ImageError(
            f"A {image.width}x{image.height} image is more elongated than {_MAX_ASPECT:.0f} to 1; crop it."
        )
    patches = side // patch_size
    count = np.arange(1, 4 * patches + 1)
    columns, rows = count[None], count[:, None]
    area = columns * rows / patches**2
    cost = np.abs(np.log(columns / rows / aspect)) + _AREA_WEIGHT * np.abs(np.log(area))
    row, column = divmod(int(cost.argmin()), len(count))
    size = (int(count[column]) * patch_size, int(count[row]) * patch_size)
    transform = ImageTransform.resize(image.size, size)
    return resample(image, transform), transform


def _read(model: AsymmetricMASt3R, source: ImageSource, config: PairConfig) -> _Input:
    image = as_image(source)
    trained: Any = model.config["img_size"]
    size = config.image_size or (trained if isinstance(trained, int) else max(trained))
    crop = size > 224 if config.crop is None else config.crop
    pixels, transform = (fit_for_model if crop else fit_whole_image)(image, size, model.patch_size)
    weight = next(model.parameters())
    return _Input(image, transform, ImgNorm(pixels)[None].to(weight.device, weight.dtype))


def _given_camera(K: np.ndarray | None, image: Image) -> Camera | None:
    return None if K is None else Camera(K, image.width, image.height)


# --- the network ---


def _encode(model: AsymmetricMASt3R, inputs: tuple[_Input, _Input]) -> tuple[_Tokens, _Tokens]:
    """Features and positions of both images; in one batch if their sizes agree."""
    shapes = [torch.tensor([x.shape]) for x in inputs]
    if inputs[0].shape == inputs[1].shape:
        features, positions, _ = model._encode_image(torch.cat([x.tensor for x in inputs]), torch.cat(shapes))
        return (features[:1], positions[:1]), (features[1:], positions[1:])
    first, second = (model._encode_image(x.tensor, shape)[:2] for x, shape in zip(inputs, shapes))
    return first, second


def _decode(
    model: AsymmetricMASt3R,
    inputs: tuple[_Input, _Input],
    tokens: tuple[_Tokens, _Tokens],
    orders: tuple[tuple[int, int], ...],
) -> list[_Order]:
    """Decode the pair in the given orders; in one batch if the images' sizes agree."""
    if inputs[0].shape == inputs[1].shape:
        return _decode_together(model, inputs, tokens, orders)
    return [_decode_together(model, inputs, tokens, (order,))[0] for order in orders]


def _decode_together(
    model: AsymmetricMASt3R,
    inputs: tuple[_Input, _Input],
    tokens: tuple[_Tokens, _Tokens],
    orders: tuple[tuple[int, int], ...],
) -> list[_Order]:
    first, second = ([tokens[order[k]] for order in orders] for k in (0, 1))
    arguments = [torch.cat(parts) for side in (first, second) for parts in zip(*side)]
    decoded = model._decoder(*arguments)
    shapes = [inputs[i].shape for i in orders[0]]
    maps = [model._downstream_head(k + 1, decoded[k], shapes[k]) for k in (0, 1)]
    return [(_seen(maps[0], i), _seen(maps[1], i)) for i in range(len(orders))]


def _seen(maps: dict[str, Tensor], row: int) -> _Seen:
    """Row `row` of a head's output."""
    if "desc" not in maps:
        raise ValueError(f"This model predicts {', '.join(maps)} but no descriptors to match; load a MASt3R model.")
    desc_confidence = maps.get("desc_conf", maps["conf"])
    return _Seen(*(m[row].float() for m in (maps["pts3d"], maps["conf"], maps["desc"], desc_confidence)))


# --- matches ---


def _matches(inputs: tuple[_Input, _Input], orders: list[_Order], config: PairConfig) -> Matches:
    """Matches of all orders in original pixels."""
    found = []
    for i, (first, second) in enumerate(orders):
        found.append(_match_maps(*((first, second) if i == 0 else (second, first)), config))
    pixel0, pixel1, refined1, confidence = (torch.cat(column).cpu().numpy() for column in zip(*found))
    _, first_seen = np.unique(np.concatenate([pixel0, pixel1], axis=1), axis=0, return_index=True)
    inside = _away_from_border(pixel0, inputs[0].shape, config.border_px)
    inside &= _away_from_border(pixel1, inputs[1].shape, config.border_px)
    kept = first_seen[inside[first_seen]]
    matches = Matches(
        inputs[0].transform.inverse().apply(pixel0[kept]),
        inputs[1].transform.inverse().apply(refined1[kept]),
        confidence[kept],
        size0=inputs[0].image.size,
        size1=inputs[1].image.size,
        model_size0=inputs[0].transform.size_to,
        model_size1=inputs[1].transform.size_to,
    )
    return _most_confident(matches, config)


def _match_maps(seen0: _Seen, seen1: _Seen, config: PairConfig) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Matches of one order: pixels in image 0, in image 1, refined ones in image 1, confidence."""
    xy0, xy1, _ = extract_correspondences_nonsym(
        seen0.desc, seen1.desc, seen0.desc_confidence, seen1.desc_confidence, subsample=config.subsample
    )
    confidence0, confidence1 = (seen.desc_confidence[xy[:, 1], xy[:, 0]] for seen, xy in ((seen0, xy0), (seen1, xy1)))
    refined = refine_matches(seen0.desc, seen1.desc, xy0, xy1) if config.subpixel and len(xy0) else xy1.float()
    return xy0, xy1, refined, (confidence0 * confidence1).sqrt()


def _away_from_border(xy: np.ndarray, shape: tuple[int, int], border: int) -> np.ndarray:
    """(N,) bool: at least `border` pixels from the left and top, and more from the right and bottom."""
    height, width = shape
    return np.all((xy >= border) & (xy < np.array([width, height]) - border), axis=1)


def _most_confident(matches: Matches, config: PairConfig) -> Matches:
    """What the configuration keeps, best first."""
    if config.min_confidence_percentile and len(matches):
        limit = np.percentile(matches.confidence, config.min_confidence_percentile)
        matches = matches.filter(matches.confidence >= limit)
    return matches.top(len(matches) if config.max_matches is None else config.max_matches)


# --- cameras ---


def _cameras(
    inputs: tuple[_Input, _Input],
    given: tuple[Camera | None, ...],
    matches: Matches,
    maps: tuple[Pointmap, Pointmap],
    own1: Pointmap,
    config: PairConfig,
) -> tuple[tuple[Camera, Camera], PairPose]:
    """Both cameras, estimated where not given, and the pose of camera 1."""
    own = (SeenMap(maps[0], inputs[0].transform), SeenMap(own1, inputs[1].transform))
    camera0, camera1 = (known or estimate_camera(seen) for known, seen in zip(given, own))
    pose = estimate_pose(
        matches,
        (camera0, camera1),
        own,
        SeenMap(maps[1], inputs[1].transform),
        threshold_px=config.ransac_px,
        seed=config.seed,
    )
    return (camera0, camera1), pose


class _Clock:
    """Seconds per step; tells a listener when a step begins."""

    def __init__(self, names: tuple[str, ...], on_step: OnStep | None) -> None:
        self.seconds: dict[str, float] = {}
        self._names = names
        self._on_step = on_step

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        if self._on_step is not None:
            self._on_step(self._names.index(name) / len(self._names), name)
        start = time.perf_counter()
        yield
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self.seconds[name] = time.perf_counter() - start
