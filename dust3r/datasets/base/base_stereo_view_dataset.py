"""Base of data sets of posed images with depth: from what a folder holds to what a two-view network trains on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch

from dust3r.datasets.easy_dataset import EasyDataset, Index
from dust3r.datasets.utils.cropping import crop_image_depthmap, rescale_image_depthmap
from dust3r.datasets.utils.files import Frame
from dust3r.datasets.utils.transforms import ImgNorm
from dust3r.utils.geometry import depthmap_to_absolute_camera_coordinates

View = dict[str, Any]
Resolution = tuple[int, int]

_SQUARISH = (0.9, 1.1)  # H / W of images that may be shown upright or lying
_MAPS = ("depthmap", "pts3d", "valid_mask", "sky_mask")


class BaseStereoViewDataset(EasyDataset):
    """Pairs of views of a scene.

    A subclass reads the files: it implements `__len__` and `_get_views`, which calls
    `_crop_resize_if_necessary` on what it reads. This class adds points, masks and names, and lays portrait images
    on their side, so that all images of a batch have one shape.

    Args:
        split: Name of the part, such as 'train' or 'test'.
        resolution: Side of square images, one (W, H) with W >= H, or a list of them among which every batch has one.
        transform: From a PIL image to a (3, H, W) tensor in [-1, 1].
        aug_crop: Zoom in by a random number of pixels below this one; False for none.
        seed: Makes element i always the same; None draws anew each time, differently in every loading process.

    Raises:
        ValueError: If no resolution is given or one is portrait.
    """

    num_views = 2

    def __init__(
        self,
        *,
        split: str | None = None,
        resolution: int | Resolution | Sequence[int | Resolution] | None = None,
        transform: Callable[[Any], torch.Tensor] = ImgNorm,
        aug_crop: Any = False,
        seed: int | None = None,
    ) -> None:
        self.split = split
        self.transform = transform
        self.aug_crop = aug_crop
        self.seed = seed
        self._resolutions = _resolution_list(resolution)
        self._generator: np.random.Generator | None = None

    @abstractmethod
    def _get_views(self, idx: int, resolution: Resolution, rng: np.random.Generator) -> list[View]:
        """Read the views of pair `idx`.

        Args:
            idx: Position of the pair.
            resolution: (W, H) of the wanted landscape images, for `_crop_resize_if_necessary`.
            rng: Source of all random choices.

        Returns:
            `num_views` dicts with img (PIL), depthmap (H, W) float32 (0: unknown, < 0: sky), camera_pose (4, 4)
            float32 world_from_cam, camera_intrinsics (3, 3) float32, dataset, label and instance (text).
        """

    def set_epoch(self, epoch: int) -> None:
        """Draw anew in the next epoch."""
        self._generator = None

    def __getitem__(self, idx: Index) -> tuple[View, ...]:
        """The views of a pair, in the official form; see `docs/conventions.md`."""
        position, ratio = idx if isinstance(idx, tuple) else (idx, 0)
        if not 0 <= position < len(self):
            raise IndexError(f"index {position} is outside a data set of {len(self)} elements")
        rng = self._rng(position)
        views = self._pair(position, self._resolutions[ratio], rng)
        for number, view in enumerate(views):
            self._complete(view, (position, ratio, number))
            _lay_portrait_on_its_side(view)
            # tells whether two runs drew the same numbers
            view["rng"] = int.from_bytes(rng.bytes(4), "big")
        return tuple(views)

    def _pair(self, position: int, resolution: Resolution, rng: np.random.Generator) -> list[View]:
        """The views of a pair, cropped, with points and masks."""
        views = self._get_views(position, resolution, rng)
        for view in views:
            _check_view(view, type(self).__name__)
            self._add_points(view)
        return views

    def _rng(self, position: int) -> np.random.Generator:
        """Seeded by the position, or by torch's seed of this process."""
        if self.seed is not None:
            return np.random.default_rng(self.seed + position)
        if self._generator is None:
            worker = torch.utils.data.get_worker_info()
            self._generator = np.random.default_rng(torch.initial_seed() if worker is None else worker.seed)
        return self._generator

    def _add_points(self, view: View) -> None:
        """World points and validity from depth and camera."""
        points, valid = depthmap_to_absolute_camera_coordinates(
            view["depthmap"], view["camera_intrinsics"], view["camera_pose"]
        )
        view["pts3d"] = points
        view["valid_mask"] = valid & np.isfinite(points).all(axis=-1)

    def _complete(self, view: View, idx: tuple[int, int, int]) -> None:
        """Image as tensor, its size and its name."""
        width, height = view["img"].size
        view["idx"] = idx
        view["true_shape"] = np.array((height, width), dtype=np.int32)
        view["img"] = self.transform(view["img"])

    def _view(self, frame: Frame, resolution: Resolution, rng: np.random.Generator, *, label: str) -> View:
        """A frame cropped to the wanted resolution, in the form `_get_views` returns."""
        image, depthmap, K = self._crop_resize_if_necessary(
            frame.image, frame.depthmap, frame.K, resolution, rng=rng, info=frame.name
        )
        return {
            "img": image,
            "depthmap": depthmap.astype(np.float32),
            "camera_pose": frame.world_from_cam.astype(np.float32),
            "camera_intrinsics": K.astype(np.float32),
            "dataset": type(self).__name__,
            "label": label,
            "instance": frame.name,
        }

    def _crop_resize_if_necessary(
        self,
        image: PIL.Image.Image | np.ndarray,
        depthmap: np.ndarray,
        intrinsics: np.ndarray,
        resolution: Resolution,
        rng: np.random.Generator | None = None,
        info: object = None,
    ) -> tuple[PIL.Image.Image, np.ndarray, np.ndarray]:
        """Bring an image to the wanted resolution: window around the principal point, resize, centred crop.

        Args:
            image: RGB image.
            depthmap: (H, W) depth.
            intrinsics: (3, 3) K.
            resolution: (W, H), landscape; it is turned for portrait images.
            rng: Draws the orientation of squarish images and the zoom; without it they stay as they are.
            info: Name of the image for messages.

        Returns:
            Image, depth map and K.

        Raises:
            ValueError: If the principal point lies outside the image.
        """
        image = image if isinstance(image, PIL.Image.Image) else PIL.Image.fromarray(image)
        image, depthmap, K = _principal_window(image, depthmap, intrinsics, info)
        resolution = turned_resolution(image.size, resolution, rng)
        target = np.array(resolution)
        if self.aug_crop > 1 and rng is not None:
            target += int(rng.integers(0, self.aug_crop))
        image, depthmap, K = rescale_image_depthmap(image, depthmap, K, (int(target[0]), int(target[1])))
        return centre_crop(image, depthmap, K, resolution)

    def __repr__(self) -> str:
        text = f"{type(self).__name__}({len(self)} pairs, split={self.split!r}, resolution={self._resolutions}"
        return f"{text}, aug_crop={self.aug_crop!r}, seed={self.seed})"


def turned_resolution(size: tuple[int, int], resolution: Resolution, rng: np.random.Generator | None) -> Resolution:
    """(W, H) for an image of a size: turned if it is portrait, by chance if it is nearly square."""
    aspect, turned = size[1] / size[0], (resolution[1], resolution[0])
    if aspect > _SQUARISH[1]:
        return turned
    if aspect > _SQUARISH[0] and resolution[0] != resolution[1] and rng is not None and rng.integers(2):
        return turned
    return resolution


def centre_crop(
    image: PIL.Image.Image, depthmap: np.ndarray, K: np.ndarray, resolution: Resolution
) -> tuple[PIL.Image.Image, np.ndarray, np.ndarray]:
    """Cut a window of size (W, H) out of the middle of the image."""
    left, top = (image.width - resolution[0]) // 2, (image.height - resolution[1]) // 2
    return crop_image_depthmap(image, depthmap, K, (left, top, left + resolution[0], top + resolution[1]))


def _principal_window(
    image: PIL.Image.Image, depthmap: np.ndarray, K: np.ndarray, info: object
) -> tuple[PIL.Image.Image, np.ndarray, np.ndarray]:
    """The largest window that has the principal point in its middle."""
    cx, cy = (round(float(c)) for c in K[:2, 2])
    half_width, half_height = min(cx, image.width - cx), min(cy, image.height - cy)
    if half_width < 1 or half_height < 1:
        where = f" of {info}" if info is not None else ""
        raise ValueError(f"the principal point ({cx}, {cy}){where} lies outside its {image.width}x{image.height} image")
    box = (cx - half_width, cy - half_height, cx + half_width, cy + half_height)
    return crop_image_depthmap(image, depthmap, K, box)


def _lay_portrait_on_its_side(view: View) -> None:
    """Swap the two image axes of a portrait view: image, maps, pixels and the rows of K."""
    height, width = view["true_shape"]
    if width >= height:
        return
    view["img"] = view["img"].swapaxes(1, 2)
    for name in _MAPS:
        if name in view:
            view[name] = view[name].swapaxes(0, 1)
    if "corres" in view:
        view["corres"] = view["corres"][:, [1, 0]]
    view["camera_intrinsics"] = view["camera_intrinsics"][[1, 0, 2]]


def _check_view(view: View, name: str) -> None:
    missing = {"img", "depthmap", "camera_intrinsics", "dataset", "label", "instance"} - view.keys()
    if missing or "pts3d" in view or "valid_mask" in view:
        problem = f"lacks {sorted(missing)}" if missing else "already has pts3d or valid_mask"
        raise ValueError(f"a view of {name} {problem}; _get_views returns what is on disk, points are added later")
    if view.get("camera_pose") is None:
        view["camera_pose"] = np.full((4, 4), np.nan, dtype=np.float32)
    elif not np.isfinite(view["camera_pose"]).all():
        raise ValueError(f"the camera pose of {view['instance']} in {name} is not finite; leave such images out")


def _resolution_list(resolution: int | Resolution | Sequence[int | Resolution] | None) -> list[Resolution]:
    if resolution is None:
        raise ValueError("a data set needs resolution: an int, (W, H), or a list of (W, H)")
    several = isinstance(resolution, list) or (isinstance(resolution, tuple) and isinstance(resolution[0], tuple))
    pairs: list[Resolution] = []
    for item in resolution if several else [resolution]:  # pyright: ignore[reportGeneralTypeIssues]
        width, height = (item, item) if isinstance(item, int) else item  # pyright: ignore[reportGeneralTypeIssues]
        if not isinstance(width, int) or not isinstance(height, int) or not 0 < height <= width:
            raise ValueError(f"resolutions are (W, H) in pixels with W >= H > 0, got {item!r}")
        pairs.append((width, height))
    return pairs
