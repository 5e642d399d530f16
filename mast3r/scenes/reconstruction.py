"""From a list of photos to cameras and points: read, encode, choose and infer pairs, align, adjust.

    model = mast3r.load("small")
    scene = mast3r.reconstruct(model, "photos/", cache_dir="cache/")
    scene.save("scene.glb")

With a `cache_dir` a run that was stopped, in whatever way, goes on where it was: what is in the folder is not
computed again.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias, get_args

import numpy as np
import torch

from dust3r.image_pairs import Edge
from mast3r.alignment import Alignment, AlignmentName, AlignmentProblem, align
from mast3r.cloud_opt.config import SparseConfig
from mast3r.loading import card_of
from mast3r.model import AsymmetricMASt3R
from mast3r.pairs.config import PairConfig
from mast3r.pairs.two_view import ModelInput, TokenCache
from mast3r.retrieval.pooled import token_similarity
from mast3r.scenes.adjustment import SHARED_FOCAL, adjusted, explained, may_map_again, with_tracks
from mast3r.scenes.graph import MAX_COMPLETE, GraphPlan, plan_graph
from mast3r.scenes.pair_cache import PairCache, weights_key
from mast3r.scenes.pair_cost import PairCost
from mast3r.scenes.pair_inference import (
    DEFAULT_MEMORY,
    TOKEN_SHARE,
    encode_images,
    infer_pairs,
)
from mast3r.scenes.pair_store import PairOptions, PairStore
from mast3r.scenes.photos import Photo, PhotoList, list_photos, read_photos
from mast3r.scenes.placed_pairs import placed_by_photos
from mast3r.scenes.stages import Progress, Stages
from mast3r.scenes.trusted_pairs import trusted_pairs
from multiview.cameras import Camera
from multiview.reconstruction import ReconstructedImage, Reconstruction, ScaleStatus
from multiview.tracks import Tracks
from multiview.views import ViewConstraints

logger = logging.getLogger(__name__)

OnPlan: TypeAlias = "Callable[[GraphPlan], None]"

STAGES = {
    "read": 4.0,
    "encode": 10.0,
    "graph": 1.0,
    "pairs": 45.0,
    "place": 20.0,
    "align": 25.0,
    "tracks": 5.0,
    "adjust": 10.0,
    "retry": 5.0,
}
"""Names of the stages, in order, and about how much of the time each takes; the keys of the result's timings."""

_ATTEMPTS = 3  # of COLMAP's mapper
_TOO_FEW = "There is no second readable photo to compare it with."


@dataclass(frozen=True)
class ReconstructConfig:
    """How photos are reconstructed.

    Attributes:
        image_size: Size of the model's input; None takes the size it was trained at.
        crop: True resizes and crops as the official code does, False keeps whole photos; None crops above
            224 px only.
        ordered: Whether the photos are a sequence, such as frames of a video; for scene_graph "auto".
        pairs: What is computed and stored for every pair.
        alignment: "sparse", "dense" or "colmap", see `mast3r.alignment`.
        sparse: Settings of the sparse alignment; None takes its defaults and `seed`.
        batch_size: Photos or pairs given to the network at once; None takes what the memory allows.
        align_device: Where to align; None takes the model's device.
        photometric: Let the full-size photos place and check the matches, see `multiview.photometric`.
        closer_look: Match parts of photos where the photos confirm few matches, 10 to 60 seconds of a CPU core for each
            such pair (see `mast3r.pairs.closer_look`). Needs `photometric`.
        least_believed: Pairs of which the photos confirm a smaller share of the matches are not aligned, unless photos
            would be lost without them (see `mast3r.scenes.trusted_pairs`). 0 aligns all. Needs `photometric`.
        tracks: Whether to join matches into tracks.
        adjust: Whether to adjust cameras and tracks to each other in the end (bundle adjustment by pycolmap, if it is
            installed). Needs `photometric` and `tracks`; left out where constraints are priors or depth.
        retry: Let COLMAP's mapper align the same matches, three times at most, where adjusted cameras leave many of
            them unexplained, and keep what explains more; of 60 photos at most.
        seed: Seed of everything random.

    Raises:
        ValueError: If the alignment is unknown, a size is not positive or a share is not in 0..1.
    """

    image_size: int | None = None
    crop: bool | None = None
    ordered: bool = False
    pairs: PairOptions = field(default_factory=PairOptions)
    alignment: AlignmentName = "sparse"
    sparse: SparseConfig | None = None
    batch_size: int | None = None
    align_device: torch.device | str | None = None
    photometric: bool = True
    closer_look: bool = False
    least_believed: float = 0.33
    tracks: bool = True
    adjust: bool = True
    retry: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.alignment not in get_args(AlignmentName):
            raise ValueError(f"alignment must be one of {get_args(AlignmentName)}, got {self.alignment!r}.")
        for name in ("image_size", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be None or positive, got {value}.")
        if not 0 <= self.least_believed <= 1:
            raise ValueError(f"least_believed must be in 0..1, got {self.least_believed}.")


def reconstruct(
    model: AsymmetricMASt3R,
    images: PhotoList,
    *,
    scene_graph: str | Iterable[Edge] = "auto",
    views: Sequence[ViewConstraints | None] | None = None,
    config: ReconstructConfig | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    max_memory: int | None = None,
    progress: Progress | None = None,
    on_plan: OnPlan | None = None,
) -> Reconstruction:
    """Cameras and points of many photos.

    A photo that cannot be read or placed gets the status "failed" and a reason; the others go on. Photos that
    show different places come out as components with a world each.

    Args:
        model: What `mast3r.load` returned.
        images: Photos (paths, PIL images, arrays, `Image`s or `View`s), or a folder of photos.
        scene_graph: Which pairs to look at: "auto", a graph of `mast3r.image_pairs.make_pairs`, or pairs of
            positions in `images`.
        views: What is known about each photo (intrinsics, pose, depth, mask), in original pixels; `View`s
            among the images may say it instead.
        config: Settings; default `ReconstructConfig()`.
        cache_dir: Folder for what the network says of photos and pairs. It makes a second run quick and a
            broken-off one resumable. None takes a temporary folder, removed in the end.
        max_memory: Bytes to stay within, beyond the weights; default 2 GiB for the network's part.
        progress: Told the share that is done, 0..1, and the stage.
        on_plan: Told which pairs were chosen, with estimates of time and memory, before they are computed.

    Returns:
        The reconstruction; `timings` holds the seconds of every stage.

    Raises:
        ValueError: If there are no photos, or an option or constraint is wrong.
        MemoryError: If the network does not fit into memory with a single pair.
    """
    config = config or ReconstructConfig()
    stages = Stages(STAGES, progress)
    listed = list_photos(images, views)
    with stages.stage("read") as report:
        counted = _counted(report)
        photos = read_photos(model, listed, image_size=config.image_size, crop=config.crop, on_done=counted)
    usable = [k for k, photo in enumerate(photos) if photo.input is not None]
    if len(usable) < 2:
        return _result(model, photos, (), Alignment(()), stages)
    with _cache(cache_dir) as cache:
        run = _Run(model, config, stages, cache, max_memory)
        edges = run.choose([photos[k] for k in usable], _renumbered(scene_graph, usable, len(photos)), on_plan)
        problem = run.infer([photos[k] for k in usable], edges)
        problem = run.place([photos[k] for k in usable], problem)
        with stages.stage("align") as report:
            alignment = align(problem, config.alignment, sparse=config.sparse, on_share=report)
        scene = _result(model, photos, usable, alignment, stages)
        adjust = config.tracks and config.adjust
        focals = 1.0 if config.sparse is not None and config.sparse.shared_intrinsics else SHARED_FOCAL
        with stages.stage("tracks"):
            scene = with_tracks(scene, problem, usable) if config.tracks else scene
        with stages.stage("adjust"):
            scene = adjusted(scene, problem, usable, shared_focal=focals) if adjust else scene
        with stages.stage("retry"):
            for attempt in range(_ATTEMPTS if adjust and config.retry else 0):
                if not may_map_again(scene, problem, usable):
                    break
                again = replace(problem, seed=problem.seed + attempt)  # the mapper begins with a pair drawn by chance
                mapped = _result(model, photos, usable, align(again, "colmap"), stages)
                mapped = adjusted(with_tracks(mapped, problem, usable), problem, usable, shared_focal=focals)
                scene = max(scene, mapped, key=lambda each: explained(each, problem, usable))
    return replace(scene, timings=dict(stages.seconds))


class _Run:
    """The network's part of a reconstruction."""

    def __init__(
        self,
        model: AsymmetricMASt3R,
        config: ReconstructConfig,
        stages: Stages,
        cache: PairCache,
        max_memory: int | None,
    ) -> None:
        self.model, self.config, self.stages, self.max_memory = model, config, stages, max_memory
        token_bytes = int(TOKEN_SHARE * (DEFAULT_MEMORY if max_memory is None else max_memory))
        self.store = PairStore(cache, weights_key(model), config.pairs, token_bytes=token_bytes)

    def choose(
        self, photos: Sequence[Photo], scene_graph: str | Iterable[Edge], on_plan: OnPlan | None
    ) -> tuple[Edge, ...]:
        """Encode all photos, and choose the pairs by what the encoder says of them."""
        inputs = {photo.input.key: photo.input for photo in photos if photo.input is not None}
        with self.stages.stage("encode") as report:
            encode_images(
                self.model,
                inputs,
                self.store,
                max_memory=self.max_memory,
                batch_size=self.config.batch_size,
                on_done=_counted(report),
            )
        with self.stages.stage("graph"):
            keys = [photo.input.key for photo in photos if photo.input is not None]
            plan = plan_graph(
                len(photos),
                scene_graph,
                similarity=lambda: token_similarity(self.store.features(keys, self.model.enc_embed_dim)),
                ordered=self.config.ordered,
                cost=self._cost(inputs.values()) if on_plan is not None or len(photos) > MAX_COMPLETE else None,
            )
        logger.info("%s", plan)
        if on_plan is not None:
            on_plan(plan)
        return plan.edges

    def _cost(self, inputs: Iterable[ModelInput]) -> PairCost:
        """What photos of the most common size cost; takes a second or two to find out."""
        common, _ = Counter(image.size for image in inputs).most_common(1)[0]
        return PairCost.of(self.model, common)

    def infer(self, photos: Sequence[Photo], edges: Sequence[Edge]) -> AlignmentProblem:
        """Make sure that the store has all pairs."""
        inputs = tuple(photo.input for photo in photos if photo.input is not None)
        with self.stages.stage("pairs") as report:
            infer_pairs(
                self.model,
                {image.key: image for image in inputs},
                [(inputs[i].key, inputs[j].key) for i, j in edges],
                self.store,
                max_memory=self.max_memory,
                batch_size=self.config.batch_size,
                on_done=_counted(report),
            )
        constraints = tuple(photo.constraints for photo in photos)
        device = torch.device(self.config.align_device or next(self.model.parameters()).device)
        seed = self.config.seed
        return AlignmentProblem(inputs, constraints, tuple(edges), self.store, seed, self.max_memory, device)

    def place(self, photos: Sequence[Photo], problem: AlignmentProblem) -> AlignmentProblem:
        """Let the full-size photos place and check the matches of all pairs, if the configuration says so."""
        with self.stages.stage("place") as report:
            if not self.config.photometric:
                return problem
            device = next(self.model.parameters()).device
            options = PairConfig(image_size=self.config.image_size, crop=self.config.crop)
            closer = (TokenCache(self.model), options) if self.config.closer_look else None
            placed = placed_by_photos(photos, problem, closer=closer, device=device, on_done=_counted(report))
            believed = {edge: pair.believed for edge, pair in placed.items()}
            trusted = trusted_pairs(problem.edges, believed, self.config.least_believed)
            logger.info("%d of %d pairs are aligned", len(trusted), len(problem.edges))
            return replace(problem, edges=trusted, placed={edge: pair.matches for edge, pair in placed.items()})


@contextmanager
def _cache(folder: str | os.PathLike[str] | None) -> Iterator[PairCache]:
    if folder is not None:
        yield PairCache(Path(folder))
        return
    with tempfile.TemporaryDirectory(prefix="mast3r-pairs-", ignore_cleanup_errors=True) as temporary:
        yield PairCache(temporary)


def _counted(report: Callable[[float], None]) -> Callable[[int, int], None]:
    return lambda done, total: report(done / max(total, 1))


def _renumbered(scene_graph: str | Iterable[Edge], usable: Sequence[int], count: int) -> str | list[Edge]:
    """Pairs of positions among all photos as pairs among the usable ones; others are dropped."""
    if isinstance(scene_graph, str):
        return scene_graph
    pairs = [(int(i), int(j)) for i, j in scene_graph]
    for pair in pairs:
        if not all(0 <= k < count for k in pair):
            raise ValueError(f"scene_graph has the pair {pair}, but positions of {count} images are 0..{count - 1}.")
    place = {k: n for n, k in enumerate(usable)}
    return [(place[i], place[j]) for i, j in pairs if i in place and j in place]


# --- the result ---


def _result(
    model: AsymmetricMASt3R,
    photos: Sequence[Photo],
    usable: Sequence[int],
    alignment: Alignment,
    stages: Stages,
) -> Reconstruction:
    """All photos with what is known of them; `usable` tells which photos the views of the alignment are."""
    place = {k: n for n, k in enumerate(usable)}
    images = [_image(photo, alignment, place.get(k)) for k, photo in enumerate(photos)]
    status = _scale_status(model, [photo.known for photo in photos])
    return Reconstruction(tuple(images), Tracks.empty(), status, dict(stages.seconds))


def _image(photo: Photo, alignment: Alignment, number: int | None) -> ReconstructedImage:
    if photo.input is None or number is None:
        return ReconstructedImage(photo.name, photo.size, "failed", photo.reason or _TOO_FEW, photo.path)
    view, seen = alignment.views[number], photo.input
    if view.K is None or view.pose is None:
        return ReconstructedImage(photo.name, photo.size, "failed", view.reason, photo.path)
    camera = Camera(view.K, *seen.size).transformed(seen.transform.inverse())
    if photo.known.K is not None and photo.known.K.role == "fixed":
        camera = Camera(photo.known.K.value, *photo.size)  # without the rounding of the way there and back
    return ReconstructedImage(
        photo.name,
        photo.size,
        "registered",
        view.reason,
        photo.path,
        camera,
        view.pose,
        view.component,
        view.pointmap,
        seen.transform,
        seen.pixels,
    )


def _scale_status(model: AsymmetricMASt3R, known: Sequence[ViewConstraints]) -> ScaleStatus:
    """Given if the user's poses or depth fix the unit of length, else what the weights promise."""
    centers = [c.pose.value[:3, 3] for c in known if c.pose is not None and c.pose.role == "fixed"]
    distinct = len(np.unique(np.round(np.array(centers).reshape(-1, 3), 9), axis=0)) > 1
    depth = any(c.depth is not None and c.depth.role == "fixed" for c in known)
    return "metric-given" if distinct or depth else card_of(model).scale_status
