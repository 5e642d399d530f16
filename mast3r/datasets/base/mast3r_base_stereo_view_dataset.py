"""Base of data sets that train matching: pairs with pixel correspondences and zoom towards what both views show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch

from dust3r.datasets.base.base_stereo_view_dataset import (
    BaseStereoViewDataset,
    Resolution,
    View,
    centre_crop,
    turned_resolution,
)
from dust3r.datasets.utils.cropping import rescale_image_depthmap
from dust3r.datasets.utils.transforms import ImgNorm
from mast3r.datasets.utils.cropping import extract_correspondences_from_pts3d
from mast3r.datasets.utils.pair_augmentation import crop_pair, renew_points, turn_view

_SWAP_PROBABILITY = 0.5


class MASt3RBaseStereoViewDataset(BaseStereoViewDataset):
    """Pairs of views with correspondences.

    Args:
        split: See `BaseStereoViewDataset`, as the next three.
        resolution: See there.
        transform: See there.
        aug_crop: Zoom in by random crops, "auto" or a number of pixels as in `gen_random_crops`; False for none.
        aug_swap: Exchange the two views half of the time.
        aug_monocular: Probability of showing the same view twice.
        aug_portrait_or_landscape: Show squarish images in either orientation.
        aug_rot90: Turn both views by the same multiple of 90 degrees ('same') or each by its own ('diff').
        n_corres: Number of correspondences; 0 for none.
        nneg: Share of them that is wrong on purpose.
        n_tentative_crops: Crops tried for each view.
        seed: See `BaseStereoViewDataset`.

    Raises:
        ValueError: If an option is unknown.
    """

    is_metric_scale: bool = False
    """Whether depth and poses are in metres."""

    def __init__(
        self,
        *,
        split: str | None = None,
        resolution: int | Resolution | Sequence[int | Resolution] | None = None,
        transform: Callable[[Any], torch.Tensor] = ImgNorm,
        aug_crop: float | Literal["auto", False] = False,
        aug_swap: bool = False,
        aug_monocular: float = False,
        aug_portrait_or_landscape: bool = True,
        aug_rot90: Literal["same", "diff", False] = False,
        n_corres: int = 0,
        nneg: float = 0,
        n_tentative_crops: int = 4,
        seed: int | None = None,
    ) -> None:
        super().__init__(split=split, resolution=resolution, transform=transform, aug_crop=aug_crop, seed=seed)
        if aug_rot90 not in ("same", "diff", False):
            raise ValueError(f"aug_rot90 must be 'same', 'diff' or False, got {aug_rot90!r}")
        if not 0 <= aug_monocular <= 1 or not 0 <= nneg <= 1 or n_corres < 0 or n_tentative_crops < 1:
            raise ValueError(
                "aug_monocular and nneg lie in 0..1, n_corres is not negative, n_tentative_crops at least 1"
            )
        self.aug_swap = aug_swap
        self.aug_monocular = aug_monocular
        self.aug_portrait_or_landscape = aug_portrait_or_landscape
        self.aug_rot90 = aug_rot90
        self.n_corres = n_corres
        self.nneg = nneg
        self.n_tentative_crops = n_tentative_crops

    def _pair(self, position: int, resolution: Resolution, rng: np.random.Generator) -> list[View]:
        views = super()._pair(position, resolution, rng)
        sizes = [self._resolution_of(view["img"].size, resolution, rng) for view in views]
        if self.aug_crop is False:
            views = [self._fit(view, size) for view, size in zip(views, sizes)]
        else:
            options = {"aug_crop": self.aug_crop, "tentative": self.n_tentative_crops, "rng": rng}
            views = crop_pair(views, sizes, **options)
        for view in views:
            view["sky_mask"] = view["depthmap"] < 0
            view["is_metric_scale"] = self.is_metric_scale
        views = self._swapped(views, rng)
        self._add_correspondences(views, rng)
        return self._turned(views, rng)

    def _resolution_of(
        self, size: tuple[int, int], resolution: Resolution, rng: np.random.Generator | None
    ) -> Resolution:
        return turned_resolution(size, resolution, rng if self.aug_portrait_or_landscape else None)

    def _fit(self, view: View, size: Resolution) -> View:
        """A view at its final size; nothing to do where the loader has cropped it."""
        if view["img"].size == size:
            return view
        image, depthmap, K = _cover_and_crop(view["img"], view["depthmap"], view["camera_intrinsics"], size)
        return renew_points({**view, "img": image, "depthmap": depthmap, "camera_intrinsics": K})

    def _swapped(self, views: list[View], rng: np.random.Generator) -> list[View]:
        if self.aug_swap and rng.random() < _SWAP_PROBABILITY:
            views = views[::-1]
        if self.aug_monocular and rng.random() < self.aug_monocular:
            views = [views[0], dict(views[0])]
        return views

    def _add_correspondences(self, views: list[View], rng: np.random.Generator) -> None:
        if self.n_corres == 0:
            return
        xy1, xy2, valid = extract_correspondences_from_pts3d(views[0], views[1], self.n_corres, rng, nneg=self.nneg)
        for view, xy in zip(views, (xy1, xy2)):
            view["corres"], view["valid_corres"] = xy, valid

    def _turned(self, views: list[View], rng: np.random.Generator) -> list[View]:
        if self.aug_rot90 is False:
            return views
        count = 1 if self.aug_rot90 == "same" else len(views)
        quarters = [int(rng.integers(4)) for _ in range(count)] * (len(views) // count)
        return [turn_view(view, k) for view, k in zip(views, quarters)]

    def _crop_resize_if_necessary(
        self,
        image: PIL.Image.Image | np.ndarray,
        depthmap: np.ndarray,
        intrinsics: np.ndarray,
        resolution: Resolution,
        rng: np.random.Generator | None = None,
        info: object = None,
    ) -> tuple[PIL.Image.Image, np.ndarray, np.ndarray]:
        """As in `BaseStereoViewDataset`, but the principal point may end up anywhere, and without zoom."""
        image = image if isinstance(image, PIL.Image.Image) else PIL.Image.fromarray(image)
        return _cover_and_crop(image, depthmap, intrinsics, self._resolution_of(image.size, resolution, rng))


def _cover_and_crop(
    image: PIL.Image.Image, depthmap: np.ndarray, K: np.ndarray, size: Resolution
) -> tuple[PIL.Image.Image, np.ndarray, np.ndarray]:
    """Resize to cover (W, H), then cut its middle."""
    return centre_crop(*rescale_image_depthmap(image, depthmap, K, size), size)
