"""Matches between two photos of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch

from mast3r.model import AsymmetricMASt3R
from mast3r.pairs.closer_look import checked_or_closer
from mast3r.pairs.config import PairConfig
from mast3r.pairs.map_matching import in_original_pixels, match_keypoints, match_orders, whole_size
from mast3r.pairs.two_view import Described, ModelInput, TokenCache, describe, model_input
from mast3r.tiling.matching import (
    Keypoints,
    match_coarse_to_fine,
    match_keypoints_coarse_to_fine,
    pyramid_levels,
    pyramid_scales,
)
from mast3r.tiling.network import NetworkTiles
from mast3r.utils.coarse_to_fine import WindowConfig
from multiview.images import Image, ImageSource, as_image
from multiview.matches import Matches
from multiview.photometric import MatchPlacer, checked_matches

Resolution = Literal["coarse", "fine"]
"""At which resolution photos are matched: that of the network's input, or their own."""

Masks = tuple[np.ndarray | None, np.ndarray | None]


def match(
    model: AsymmetricMASt3R,
    a: ImageSource,
    b: ImageSource,
    *,
    resolution: Resolution = "coarse",
    max_matches: int | None = None,
    min_confidence_percentile: float | None = None,
    mask_a: np.ndarray | None = None,
    mask_b: np.ndarray | None = None,
    keypoints_a: np.ndarray | None = None,
    keypoints_b: np.ndarray | None = None,
    max_image_size: int | None = None,
    subsample: int | None = None,
    crop: bool | None = None,
    config: PairConfig | None = None,
    cache: TokenCache | None = None,
) -> Matches:
    """Matches between two photos, from one decoding of the pair (half the decoding work of `predict_pair`).

    Args:
        model: What `mast3r.load` returned.
        a: Photo 0: a path, PIL image, array or `Image`.
        b: Photo 1.
        resolution: "coarse" matches the photos as resized for the network. "fine" then goes on in windows, in
            steps of at most 4 in resolution, until every pixel of the originals has been seen; its work grows with
            the area of the photos, its memory by 35 MB for each megapixel.
        max_matches: Overrides the field of `config` of that name, as do the next and the last two.
        min_confidence_percentile: See `PairConfig`.
        mask_a: (H, W) bool at the size of upright photo 0, True = may match; matches that end on other pixels
            are dropped.
        mask_b: The same for photo 1.
        keypoints_a: (K, 2) pixels of upright photo 0. Given keypoints are matched instead of any pixels: at most
            one match for each, exactly at its place; `Matches.index0` says which.
        keypoints_b: The same for photo 1 (`Matches.index1`). With both, keypoints match keypoints.
        max_image_size: "fine" treats photos with a longer side above this as reduced to it.
        subsample: See `PairConfig`.
        crop: See `PairConfig`.
        config: Settings; default `PairConfig()`.
        cache: Keeps the tokens of whole photos between calls.

    Returns:
        Matches in pixels of the upright original photos, best first.

    Raises:
        ImageError: If a photo cannot be read or is too elongated.
        ValueError: If an option is wrong or the model has no descriptors.
    """
    if resolution not in get_args(Resolution):
        raise ValueError(f"resolution must be one of {get_args(Resolution)}, got {resolution!r}.")
    config = (config or PairConfig()).changed(
        max_matches=max_matches,
        min_confidence_percentile=min_confidence_percentile,
        subsample=subsample,
        crop=crop,
    )
    job = _Job(
        images=(as_image(a), as_image(b)),
        keypoints=(_checked_keypoints(keypoints_a, "keypoints_a"), _checked_keypoints(keypoints_b, "keypoints_b")),
        masks=(mask_a, mask_b),
        config=config,
    )
    cache = token_cache(model, cache)
    inputs, seen = _see(cache, job)
    if resolution == "fine":
        matches = _match_fine(cache, job, inputs, seen, max_image_size)
    elif job.has_keypoints:
        matches = _match_keypoints(job, inputs, seen)
    else:
        matches = _match_pixels(cache, job, inputs, seen)
    return most_confident(matches, config)


@dataclass(frozen=True, eq=False)
class _Job:
    """What is to be matched."""

    images: tuple[Image, Image]
    keypoints: Keypoints  # ORIGINAL pixels
    masks: Masks
    config: PairConfig

    @property
    def has_keypoints(self) -> bool:
        return any(xy is not None for xy in self.keypoints)


def _checked_keypoints(xy: np.ndarray | None, name: str) -> np.ndarray | None:
    if xy is None:
        return None
    xy = np.asarray(xy, dtype=np.float64)
    xy = xy.reshape(0, 2) if xy.size == 0 else xy
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise ValueError(f"{name} must have shape (K, 2), one (x, y) per keypoint, got {xy.shape}.")
    return xy


def _see(cache: TokenCache, job: _Job) -> tuple[list[ModelInput], tuple[Described, Described]]:
    """Both photos as the network sees them whole, decoded in order (0, 1)."""
    model, config = cache.model, job.config
    inputs = [model_input(model, image, image_size=config.image_size, crop=config.crop) for image in job.images]
    return inputs, describe(model, cache.encode(inputs), [x.shape for x in inputs], [(0, 1)])[0]


def token_cache(model: AsymmetricMASt3R, cache: TokenCache | None) -> TokenCache:
    """The given cache, or a new one.

    Raises:
        ValueError: If the cache belongs to another model.
    """
    if cache is not None and cache.model is not model:
        raise ValueError("The cache holds tokens of another model; make one for each model: TokenCache(model).")
    return TokenCache(model) if cache is None else cache


@torch.inference_mode()
def _match_pixels(
    cache: TokenCache, job: _Job, inputs: Sequence[ModelInput], seen: tuple[Described, Described]
) -> Matches:
    """Coarse matches of any pixels, placed by the photos."""
    found = in_original_pixels(match_orders([seen], job.config), inputs)
    return placed(found, job.images, cache, job.config).masked(*job.masks)


@torch.inference_mode()
def _match_keypoints(job: _Job, inputs: Sequence[ModelInput], seen: tuple[Described, Described]) -> Matches:
    """Coarse matches of the given keypoints, exactly at their places."""
    given = [None if xy is None else x.transform.apply(xy) for xy, x in zip(job.keypoints, inputs)]
    found = in_original_pixels(match_keypoints(*seen, given[0], given[1], job.config), inputs)
    for name, index, xy in (("xy0", found.index0, job.keypoints[0]), ("xy1", found.index1, job.keypoints[1])):
        if index is not None and xy is not None:
            found = replace(found, **{name: xy[index]})
    return found.masked(*job.masks)


def _match_fine(
    cache: TokenCache,
    job: _Job,
    inputs: Sequence[ModelInput],
    seen: tuple[Described, Described],
    max_image_size: int | None,
) -> Matches:
    """Window by window, each level of resolution led by the matches of the one before."""
    if max_image_size is not None and max_image_size < 1:
        raise ValueError(f"max_image_size must be None or a positive number of pixels, got {max_image_size}.")
    config, tiles = job.config, NetworkTiles(cache.model, job.config)
    seen_sizes = [whole_size(x) for x in inputs]
    sizes = [image.size for image in job.images]
    levels = max(pyramid_levels(size, whole, max_image_size) for size, whole in zip(sizes, seen_sizes))
    if levels == 0 and job.has_keypoints:
        return _match_keypoints(job, inputs, seen)
    matches = _match_pixels(cache, job, inputs, seen)
    windows = WindowConfig(size=tiles.side)
    scales = [pyramid_scales(size, whole, levels, max_image_size) for size, whole in zip(sizes, seen_sizes)]
    for level, scale in enumerate(zip(*scales)):
        if job.has_keypoints and level == levels - 1:
            step = partial(match_keypoints_coarse_to_fine, keypoints=job.keypoints)
        else:
            step = match_coarse_to_fine
        matches = step(
            tiles,
            *job.images,
            coarse_matches=matches,
            config=windows,
            batch_size=config.batch_size,
            border=config.border_px,
            scale=scale,
        ).masked(*job.masks)
    unchecked = config.photometric and levels > 0 and not job.has_keypoints
    return checked_matches(matches, *job.images, device=_device(cache)) if unchecked else matches


# --- what is kept ---


def placed(matches: Matches, images: tuple[Image, Image], cache: TokenCache, config: PairConfig) -> Matches:
    """Dense matches of two whole photos, placed and checked by the photos if the configuration says so.

    Where the photos confirm few of them, parts of the photos are matched instead (`mast3r.pairs.closer_look`).
    """
    if not config.photometric:
        return matches
    placer = MatchPlacer(*images, device=_device(cache))
    if config.closer_look:
        return checked_or_closer(cache, images, placer.place(matches), placer, config)
    return placer.check(matches)


def _device(cache: TokenCache) -> torch.device:
    return next(cache.model.parameters()).device


def most_confident(matches: Matches, config: PairConfig) -> Matches:
    """What the configuration keeps, best first."""
    if config.min_confidence_percentile and len(matches):
        limit = np.percentile(matches.confidence, config.min_confidence_percentile)
        matches = matches.filter(matches.confidence >= limit)
    return matches.top(len(matches) if config.max_matches is None else config.max_matches)
