"""From photos to 3D points, matches and cameras: the user's side of the network.

The model sees tensors only. What stands before it (reading, resizing) is in `mast3r.pairs.two_view`, what stands after
it in `mast3r.pairs.map_matching` (matches) and `mast3r.pairs.geometry` (cameras); here they come together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from mast3r.loading import card_of, load
from mast3r.matching import match, most_confident, placed, token_cache
from mast3r.model import AsymmetricMASt3R
from mast3r.pairs.config import PairConfig
from mast3r.pairs.focal_priors import focal_prior
from mast3r.pairs.geometry import PairPose, SeenMap, estimate_camera, estimate_pose
from mast3r.pairs.map_matching import in_original_pixels, match_pairs
from mast3r.pairs.refinement import ViewEvidence, refine_pair
from mast3r.pairs.two_view import ModelInput, Seen, TokenCache, decode, fit_whole_image, model_input
from multiview.cameras import Camera
from multiview.images import Image, ImageSource, as_image
from multiview.matches import Matches
from multiview.pointmaps import Pointmap
from multiview.results import PairResult

__all__ = ["PairConfig", "TokenCache", "fit_whole_image", "load", "match", "predict_pair", "predict_pairs"]

STEPS = ("read", "encode", "decode", "match", "pose")
"""Names of the steps of `predict_pair`, in order; the keys of `PairResult.timings`."""

OnStep = Callable[[float, str], None]
"""Told before each step: the share of steps that are done, and the name of the next one."""


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
    cache: TokenCache | None = None,
    on_step: OnStep | None = None,
) -> PairResult:
    """3D points, matches and cameras of two photos.

    Each photo is encoded once; the pair is decoded in both orders, and matches of both orders are joined. Where
    the matches allow it they correct focal lengths, pose and the depth of the pointmaps, with the EXIF focal
    lengths of the photos as a guide (`PairConfig.refine_geometry`).

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
        cache: Keeps the tokens of photos between calls, so that none is encoded twice.
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
    cache = token_cache(model, cache)
    clock = _Clock(on_step)
    with clock.step("read"):
        photos = [_photo(model, source, K, config) for source, K in ((a, K0), (b, K1))]
    [result] = _predict_together(model, photos, [(0, 1)], cache, config, clock)
    return result


def predict_pairs(
    model: AsymmetricMASt3R,
    images: Sequence[ImageSource],
    pairs: Sequence[tuple[int, int]],
    *,
    intrinsics: Sequence[np.ndarray | None] | None = None,
    config: PairConfig | None = None,
    cache: TokenCache | None = None,
    on_pair: Callable[[int, int], None] | None = None,
) -> list[PairResult]:
    """`predict_pair` for many pairs of some photos: every photo is read and encoded once.

    Photos may differ in size and orientation; pairs of equal sizes share batches. The results hold all maps
    (16 bytes per pixel and map, three maps per pair): for thousands of pairs call it on parts of them with a
    common `cache`.

    Args:
        model: What `mast3r.load` returned.
        images: Photos: paths, PIL images, arrays or `Image`s.
        pairs: (i, j) positions in `images`; the camera of i defines the frame of the pair's result.
        intrinsics: (3, 3) of each photo in pixels of the upright original, None where unknown.
        config: Settings; default `PairConfig()`.
        cache: Keeps tokens between calls.
        on_pair: Told the numbers of finished and of all pairs after each batch.

    Returns:
        One result per pair, in order. `timings` share the time of a batch equally among its pairs.

    Raises:
        ImageError: If a photo cannot be read or is too elongated.
        ValueError: If a pair names no photo, or an option or intrinsics are wrong.
    """
    config, cache = config or PairConfig(), token_cache(model, cache)
    _check_pairs(pairs, len(images))
    known = [None] * len(images) if intrinsics is None else list(intrinsics)
    if len(known) != len(images):
        raise ValueError(f"intrinsics needs one entry per image ({len(images)}), got {len(known)}.")
    clock = _Clock()
    with clock.step("read"):
        used = {i for pair in pairs for i in pair}
        photos = {i: _photo(model, images[i], known[i], config) for i in sorted(used)}
    read = clock.seconds["read"] / max(1, len(pairs))
    found: dict[int, PairResult] = {}
    for rows in _batches_of_pairs(pairs, photos, config):
        batch = [pairs[row] for row in rows]
        members = sorted({i for pair in batch for i in pair})
        place = {i: k for k, i in enumerate(members)}
        clock = _Clock(seconds={"read": read * len(batch)})
        together = [(place[i], place[j]) for i, j in batch]
        found.update(zip(rows, _predict_together(model, [photos[i] for i in members], together, cache, config, clock)))
        if on_pair is not None:
            on_pair(len(found), len(pairs))
    return [found[row] for row in range(len(pairs))]


def _check_pairs(pairs: Sequence[tuple[int, int]], count: int) -> None:
    for pair in pairs:
        if len(pair) != 2 or not all(0 <= i < count for i in pair):
            raise ValueError(f"pairs must be (i, j) with positions below {count}, got {tuple(pair)}.")


def _batches_of_pairs(
    pairs: Sequence[tuple[int, int]], photos: dict[int, _Photo], config: PairConfig
) -> list[list[int]]:
    """Positions of pairs of equal sizes in groups; both orders of a group fill one batch of the decoder."""
    groups: dict[frozenset[tuple[int, int]], list[int]] = {}
    for row, pair in enumerate(pairs):
        groups.setdefault(frozenset(photos[i].input.shape for i in pair), []).append(row)
    step = max(1, config.batch_size // 2)
    return [rows[k : k + step] for rows in groups.values() for k in range(0, len(rows), step)]


@dataclass(frozen=True, eq=False)
class _Photo:
    """A photo, what the network sees of it, and its camera if known."""

    image: Image
    input: ModelInput
    camera: Camera | None


def _photo(model: AsymmetricMASt3R, source: ImageSource, K: np.ndarray | None, config: PairConfig) -> _Photo:
    image = as_image(source)
    known = None if K is None else Camera(K, image.width, image.height)
    return _Photo(image, model_input(model, image, image_size=config.image_size, crop=config.crop), known)


@torch.inference_mode()
def _predict_together(
    model: AsymmetricMASt3R,
    photos: Sequence[_Photo],
    pairs: Sequence[tuple[int, int]],
    cache: TokenCache,
    config: PairConfig,
    clock: _Clock,
) -> list[PairResult]:
    """All steps after reading, for pairs of some photos at once."""
    inputs = [photo.input for photo in photos]
    with clock.step("encode"):
        tokens = cache.encode(inputs, batch_size=config.batch_size)
    with clock.step("decode"):
        orders = [order for i, j in pairs for order in ((i, j), (j, i))]
        seen = decode(model, tokens, [x.shape for x in inputs], orders, batch_size=config.batch_size)
        both = [(seen[2 * k], seen[2 * k + 1]) for k in range(len(pairs))]
    with clock.step("match"):
        ends = [(inputs[i], inputs[j]) for i, j in pairs]
        found = [in_original_pixels(m, x) for m, x in zip(match_pairs(both, config), ends)]
        found = [placed(m, (photos[i].image, photos[j].image), cache, config) for (i, j), m in zip(pairs, found)]
        matches = [most_confident(m, config) for m in found]
    with clock.step("pose"):
        posed = [_posed((photos[i], photos[j]), o, m, config) for (i, j), o, m in zip(pairs, both, matches)]
    seconds = {name: value / len(pairs) for name, value in clock.seconds.items()}
    status = card_of(model).scale_status
    return [
        PairResult(
            images=(photos[i].image, photos[j].image),
            transforms=(inputs[i].transform, inputs[j].transform),
            pointmaps=p.maps,
            matches=m,
            cameras=p.cameras,
            pose1=p.pose.pose1,
            num_inliers=p.pose.num_inliers,
            scale_status=status,
            own_pointmap1=p.own1,
            timings=seconds,
        )
        for (i, j), m, p in zip(pairs, matches, posed)
    ]


@dataclass(frozen=True, eq=False)
class _Posed:
    """Geometry of a pair: maps of both images in camera 0's frame, that of image 1 in its own, cameras, pose."""

    maps: tuple[Pointmap, Pointmap]
    own1: Pointmap
    cameras: tuple[Camera, Camera]
    pose: PairPose


def _posed(
    photos: tuple[_Photo, _Photo],
    orders: tuple[tuple[Seen, Seen], tuple[Seen, Seen]],
    matches: Matches,
    config: PairConfig,
) -> _Posed:
    """Both cameras, estimated where not given, the pose of camera 1, and the maps, refined if that is wanted."""
    maps = (orders[0][0].pointmap("camera 0"), orders[0][1].pointmap("camera 0"))
    own1 = orders[1][0].pointmap("camera 1")
    transforms = [photo.input.transform for photo in photos]
    own = (SeenMap(maps[0], transforms[0]), SeenMap(own1, transforms[1]))
    if config.refine_geometry:
        view0, view1 = (_evidence(photo, seen) for photo, seen in zip(photos, own))
        refined = refine_pair(matches, (view0, view1), threshold_px=config.ransac_px, seed=config.seed)
        if refined is not None:
            return _Posed(refined.maps, refined.own1, refined.cameras, refined.pose)
        cameras = view0.prior.camera, view1.prior.camera
    else:
        camera0, camera1 = (photo.camera or estimate_camera(seen) for photo, seen in zip(photos, own))
        cameras = camera0, camera1
    other = SeenMap(maps[1], transforms[1])
    pose = estimate_pose(matches, cameras, own, other, threshold_px=config.ransac_px, seed=config.seed)
    return _Posed(maps, own1, cameras, pose)


def _evidence(photo: _Photo, own: SeenMap) -> ViewEvidence:
    return ViewEvidence(own, focal_prior(photo.image, own, photo.camera), photo.input.pixels)


class _Clock:
    """Seconds per step; tells a listener when a step begins."""

    def __init__(self, on_step: OnStep | None = None, *, seconds: dict[str, float] | None = None) -> None:
        self.seconds: dict[str, float] = seconds or {}
        self._on_step = on_step

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        if self._on_step is not None:
            self._on_step(STEPS.index(name) / len(STEPS), name)
        start = time.perf_counter()
        yield
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self.seconds[name] = time.perf_counter() - start
