"""Where a new photo was taken, in the world of a reconstruction.

    place = mast3r.localize(model, scene, "new.jpg")
    place.pose, place.camera, place.num_inliers

The photo is matched to the most similar photos of the reconstruction, the matches are lifted to 3-D by their
pointmaps, and the pose that explains most of them is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np

from mast3r.model import AsymmetricMASt3R
from mast3r.pairs.config import PairConfig
from mast3r.pairs.geometry import SeenMap, estimate_camera, model_pixel
from mast3r.pairs.map_matching import MapMatches, match_pairs
from mast3r.pairs.two_view import ModelInput, Seen, TokenCache, Tokens, decode, model_input
from mast3r.retrieval.pooled import PooledConfig, token_similarity
from mast3r.scenes.pair_inference import batch_that_fits, run_in_batches
from multiview.cameras import Camera
from multiview.focal_pose import estimate_pose_and_focal
from multiview.images import Image, ImageError, ImageSource, as_image
from multiview.poses import Pose
from multiview.reconstruction import ReconstructedImage, Reconstruction
from multiview.robust import estimate_absolute_pose

_BEYOND_CHANCE = 5.0  # times the inliers of one pose among random matches; RANSAC finds the best of many poses

LocalizedStatus = Literal["localized", "failed"]


@dataclass(frozen=True, eq=False)
class LocalizedImage:
    """Where a photo was taken, or why that is not known.

    Attributes:
        status: "localized", or "failed" with a reason.
        reason: Why it failed, one sentence.
        pose: world_from_cam in the world of `component`; None if failed.
        camera: Intrinsics in ORIGINAL pixels; None if failed.
        num_inliers: Number of matches that agree with the pose.
        num_matches: Number of matches that were lifted to 3-D.
        component: Component of the reconstruction whose world the pose is in.
        references: Names of the photos it was matched to, most similar first.
    """

    status: LocalizedStatus
    reason: str = ""
    pose: Pose | None = None
    camera: Camera | None = None
    num_inliers: int = 0
    num_matches: int = 0
    component: int = 0
    references: tuple[str, ...] = ()

    def __repr__(self) -> str:
        if self.status == "failed":
            return f"LocalizedImage(failed: {self.reason})"
        return f"LocalizedImage({self.pose}, {self.camera}, {self.num_inliers} of {self.num_matches} matches agree)"


@dataclass(frozen=True)
class LocalizeConfig:
    """How photos are localised.

    Attributes:
        references: To how many photos a new one is matched.
        unsure_percentile: Share of each pointmap's points that are not trusted, least confident first.
        ransac_px: Largest reprojection error of a match that agrees, in model pixels.
        min_inliers: Fewer matches that agree do not place a photo; nor do as few as random matches have.
        pairs: How matches are searched, and how the photo is resized (its `image_size` and `crop` should be
            those of the reconstruction).
        max_memory: Bytes to stay within, beyond the weights; None takes a default.

    Raises:
        ValueError: If a value is out of its range.
    """

    references: int = 5
    unsure_percentile: float = 20.0
    ransac_px: float = 4.0
    min_inliers: int = 12
    pairs: PairConfig = field(default_factory=PairConfig)
    max_memory: int | None = None

    def __post_init__(self) -> None:
        if self.references < 1 or self.min_inliers < 4 or not self.ransac_px > 0:
            raise ValueError(
                "references must be at least 1, min_inliers at least 4 and ransac_px positive, got "
                f"{self.references}, {self.min_inliers} and {self.ransac_px}."
            )
        if not 0 <= self.unsure_percentile < 100:
            raise ValueError(f"unsure_percentile must be in 0..100, got {self.unsure_percentile}.")


def localize(
    model: AsymmetricMASt3R,
    reconstruction: Reconstruction,
    image: ImageSource,
    *,
    K: np.ndarray | None = None,
    focal: float | None = None,
    config: LocalizeConfig | None = None,
) -> LocalizedImage:
    """Place a photo in a reconstruction.

    The reconstruction's photos are encoded at the first call and remembered with it.

    Args:
        model: What `mast3r.load` returned.
        reconstruction: Registered photos with pointmaps and colours.
        image: The new photo.
        K: (3, 3) its intrinsics in original pixels, if known.
        focal: Its focal length in original pixels, if only that is known; neither of both: it is estimated.
        config: Settings; default `LocalizeConfig()`.

    Returns:
        Pose and camera, or the status "failed" with a reason; a photo that cannot be read fails too.

    Raises:
        ValueError: If K or focal is wrong or both are given, or no photo of the reconstruction has a pointmap.
    """
    known = _localizers.setdefault(reconstruction, {})
    config = config or LocalizeConfig()
    if (id(model), config) not in known:
        known[id(model), config] = Localizer(model, reconstruction, config)
    return known[id(model), config].localize(image, K=K, focal=focal)


class Localizer:
    """Places photos in one reconstruction (see `localize`).

    Args:
        model: What `mast3r.load` returned.
        reconstruction: Registered photos with pointmaps and colours.
        config: Settings; default `LocalizeConfig()`.

    Raises:
        ValueError: If no photo of the reconstruction has a pointmap with colours.
    """

    def __init__(
        self, model: AsymmetricMASt3R, reconstruction: Reconstruction, config: LocalizeConfig | None = None
    ) -> None:
        self.model = model
        self.config = config or LocalizeConfig()
        self.references = [
            _Reference(image, self.config.unsure_percentile)
            for image in reconstruction.images
            if image.pointmap is not None and image.transform is not None and image.colors is not None
        ]
        if not self.references:
            raise ValueError("No photo of the reconstruction has a pointmap to localise against; align with 'sparse'.")
        self._tokens = TokenCache(model)

    def localize(
        self, image: ImageSource, *, K: np.ndarray | None = None, focal: float | None = None
    ) -> LocalizedImage:
        """Place a photo; see the function `localize`."""
        try:
            photo = as_image(image)
            query = model_input(self.model, photo, image_size=self.config.pairs.image_size, crop=self.config.pairs.crop)
        except ImageError as error:
            return LocalizedImage("failed", str(error))
        camera = _given_camera(photo, K, focal)
        similar = self._most_similar(query)
        names = tuple(reference.image.name for reference in similar)
        sights = self._sights(query, similar)
        found = [self._place(query, part, camera) for part in _by_component(sights)]
        best = max(found, key=lambda place: (place.status == "localized", place.num_inliers))
        return LocalizedImage(**{**vars(best), "references": names})

    def _most_similar(self, query: ModelInput) -> list[_Reference]:
        inputs = [query, *(reference.input for reference in self.references)]
        features = [features[0, :, : self.model.enc_embed_dim] for features, _ in self._encoded(inputs)]
        similarity = token_similarity(features, config=PooledConfig(pooling="mean"))[0, 1:]
        order = np.argsort(-similarity, kind="stable")
        return [self.references[k] for k in order[: self.config.references]]

    def _encoded(self, inputs: Sequence[ModelInput]) -> list[Tokens]:
        return self._tokens.encode(inputs, batch_size=self.config.pairs.batch_size)

    def _sights(self, query: ModelInput, references: Sequence[_Reference]) -> list[_Sight]:
        """Decode the photo with each reference, and match; as many at a time as memory allows."""
        sights: list[_Sight] = []

        def run(batch: list[_Reference]) -> None:
            inputs = [query, *(reference.input for reference in batch)]
            orders = [order for k in range(1, len(inputs)) for order in ((k, 0), (0, k))]
            passes = decode(
                self.model, self._encoded(inputs), [x.shape for x in inputs], orders, batch_size=len(orders)
            )
            pairs = list(zip(passes[::2], passes[1::2]))
            found = match_pairs(pairs, self.config.pairs)
            sights.extend(_Sight(ref, m, back[0]) for ref, m, (_, back) in zip(batch, found, pairs))

        shapes = (query.shape, references[0].input.shape)
        run_in_batches(references, batch_that_fits(self.model, shapes, self.config.max_memory), run)
        return sights

    def _place(self, query: ModelInput, sights: Sequence[_Sight], camera: Camera | None) -> LocalizedImage:
        """The pose from the references of one component."""
        lifted = [sight.reference.lift(sight.matches) for sight in sights]
        xy, points = (np.concatenate(column) for column in zip(*lifted))
        xy = query.transform.inverse().apply(xy)
        threshold = self.config.ransac_px * model_pixel(query.transform)
        seed = self.config.pairs.seed
        if camera is None:
            guesses = [estimate_camera(SeenMap(s.own.pointmap("camera"), query.transform)).focal[0] for s in sights]
            found = estimate_pose_and_focal(
                xy,
                points,
                query.transform.size_from,
                guess=float(np.median(guesses)),
                threshold_px=threshold,
                seed=seed,
            )
            camera = found.camera
        else:
            found = estimate_absolute_pose(xy, points, camera.K, threshold_px=threshold, seed=seed)
        inliers = int(found.inliers.sum())
        component = sights[0].reference.image.component
        width, height = query.size
        chance = _BEYOND_CHANCE * np.pi * self.config.ransac_px**2 / (width * height) * len(xy)
        if not found.success or inliers < max(self.config.min_inliers, chance):
            reason = f"Only {inliers} of {len(xy)} matches agree with one pose."
            return LocalizedImage("failed", reason, None, None, inliers, len(xy), component)
        return LocalizedImage("localized", "", found.pose, camera, inliers, len(xy), component)


@dataclass(frozen=True, eq=False)
class _Reference:
    """A photo of the reconstruction."""

    image: ReconstructedImage
    unsure_percentile: float

    @cached_property
    def input(self) -> ModelInput:
        """The photo as the network sees it."""
        if self.image.colors is None or self.image.transform is None:
            raise ValueError(f"Image {self.image.name!r} has no colours to match against.")
        return ModelInput(self.image.colors, self.image.transform)

    @cached_property
    def sure(self) -> np.ndarray:
        """(H, W) bool: pixels with a trusted point."""
        if self.image.pointmap is None:
            return np.zeros(self.input.shape, dtype=bool)
        return self.image.pointmap.confident(self.unsure_percentile)

    def lift(self, matches: MapMatches) -> tuple[np.ndarray, np.ndarray]:
        """Model pixels of the photo (M, 2) and the points (M, 3) they show; matches go from this image to it."""
        height, width = self.sure.shape
        x, y = np.rint(matches.xy0).astype(np.int64).clip((0, 0), (width - 1, height - 1)).T
        kept = self.sure[y, x]
        points = np.zeros((0, 3)) if self.image.pointmap is None else self.image.pointmap.points[y[kept], x[kept]]
        return matches.xy1[kept].astype(np.float64), points.astype(np.float64)


@dataclass(frozen=True, eq=False)
class _Sight:
    """A photo beside a reference: matches from the reference to it, and what is seen of it in its own frame."""

    reference: _Reference
    matches: MapMatches
    own: Seen


_localizers: WeakKeyDictionary[Reconstruction, dict[tuple[int, LocalizeConfig], Localizer]] = WeakKeyDictionary()


def _by_component(sights: Sequence[_Sight]) -> list[list[_Sight]]:
    groups: dict[int, list[_Sight]] = {}
    for sight in sights:
        groups.setdefault(sight.reference.image.component, []).append(sight)
    return list(groups.values())


def _given_camera(photo: Image, K: np.ndarray | None, focal: float | None) -> Camera | None:
    if K is not None and focal is not None:
        raise ValueError("Give either K or focal, not both.")
    if focal is not None and not (np.isfinite(focal) and focal > 0):
        raise ValueError(f"focal must be a positive number of pixels, got {focal}.")
    if K is not None:
        return Camera(K, photo.width, photo.height)
    return None if focal is None else Camera.from_focal(focal, photo.width, photo.height)
