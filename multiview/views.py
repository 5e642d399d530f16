"""What a user knows about an image before a reconstruction, and how firmly: fixed, prior or free.

    View("hall.jpg", ViewConstraints(K=fixed(K), pose=prior(world_from_cam, weight=10.0)))

A FIXED value is kept as it is, a PRIOR pulls the estimate towards it, and what is None is FREE.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import numpy as np

from multiview.cameras import Camera, check_intrinsics
from multiview.images import ImageSource, ImageTransform
from multiview.poses import Pose

Role = Literal["fixed", "prior"]
"""How firmly a value is known; what is not known at all is None."""


@dataclass(frozen=True, eq=False)
class Known:
    """A value the user knows.

    Attributes:
        value: The value; its form is told where it is used.
        role: "fixed" is kept as it is, "prior" is only a strong hint.
        weight: Strength of a prior, above 0; 1 is about as strong as the network's own prediction. Ignored if
            fixed.

    Raises:
        ValueError: If the role is unknown or the weight is not positive.
    """

    value: np.ndarray
    role: Role = "fixed"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise ValueError(f"Known.role must be 'fixed' or 'prior' (leave out what is free), got {self.role!r}.")
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"Known.weight must be positive and finite, got {self.weight}.")

    def with_value(self, value: np.ndarray) -> Known:
        """Another value, known as firmly."""
        return Known(value, self.role, self.weight)

    def __repr__(self) -> str:
        weight = "" if self.role == "fixed" else f", weight {self.weight:g}"
        return f"Known({self.role} {np.shape(self.value)}{weight})"


KnownValue: TypeAlias = "np.ndarray | Camera | Pose | Sequence[Sequence[float]]"


def fixed(value: KnownValue) -> Known:
    """A value that must not change: an array, or a `Camera` (its K) or `Pose` (its world_from_cam)."""
    return Known(_plain(value), "fixed")


def prior(value: KnownValue, weight: float = 1.0) -> Known:
    """A value the estimate should stay near; `weight` as in `Known`."""
    return Known(_plain(value), "prior", weight)


@dataclass(frozen=True, eq=False)
class ViewConstraints:
    """What is known about one image. None means free: it is estimated.

    The pixels are those of the image the constraints belong to: the upright ORIGINAL where a user writes them,
    the model's input after `transformed`.

    Attributes:
        K: (3, 3) intrinsics in pixels.
        pose: (4, 4) world_from_cam. Images with fixed poses define the world.
        depth: (h, w) z depth in the world's unit; not finite or not positive means unknown there. Any
            resolution, as long as it covers the whole image.
        mask: (h, w) bool, True where the image may be used; likewise.

    Raises:
        ValueError: If a value has a wrong shape or is no intrinsics or rigid pose.
    """

    K: Known | None = None
    pose: Known | None = None
    depth: Known | None = None
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.K is not None:
            object.__setattr__(self, "K", self.K.with_value(check_intrinsics(self.K.value)))
        if self.pose is not None:
            object.__setattr__(self, "pose", self.pose.with_value(Pose(self.pose.value).world_from_cam))
        if self.depth is not None:
            object.__setattr__(self, "depth", self.depth.with_value(_map_of(self.depth.value, np.float32, "depth")))
        if self.mask is not None:
            object.__setattr__(self, "mask", _map_of(self.mask, np.bool_, "mask"))

    @property
    def is_free(self) -> bool:
        """Whether nothing is known."""
        return self.K is None and self.pose is None and self.depth is None and self.mask is None

    def transformed(self, transform: ImageTransform) -> ViewConstraints:
        """The same knowledge about the resized or cropped image.

        Args:
            transform: Map from this image's pixels to the new ones, without turn or shear.

        Returns:
            Constraints in pixels of the new image; depth and mask are sampled at its pixel centres, unknown
            and False outside.
        """
        K = self.K
        if K is not None:
            camera = Camera(K.value, *transform.size_from).transformed(transform)
            K = K.with_value(camera.K)
        depth = self.depth
        if depth is not None:
            depth = depth.with_value(_sampled(depth.value, transform, np.nan))
        mask = None if self.mask is None else _sampled(self.mask, transform, False)
        return ViewConstraints(K, self.pose, depth, mask)


@dataclass(frozen=True, eq=False)
class View:
    """An image and what is known about it.

    Attributes:
        image: A path, PIL image, array or `Image`.
        constraints: What is known; default nothing.
        name: How results call it; default the file's name, or "image 3".
    """

    image: ImageSource
    constraints: ViewConstraints = field(default_factory=ViewConstraints)
    name: str | None = None


def as_view(source: ImageSource | View) -> View:
    """An image as a view of which nothing is known; a view stays as it is."""
    return source if isinstance(source, View) else View(source)


def _plain(value: KnownValue) -> np.ndarray:
    if isinstance(value, Camera):
        return value.K
    if isinstance(value, Pose):
        return value.world_from_cam
    return np.asarray(value)


def _map_of(value: np.ndarray, dtype: type[np.generic], name: str) -> np.ndarray:
    value = np.asarray(value)
    if value.ndim != 2 or not value.size:
        raise ValueError(f"ViewConstraints.{name} must be an (h, w) array, got shape {value.shape}.")
    return value.astype(dtype)


def _sampled(values: np.ndarray, transform: ImageTransform, outside: float | bool) -> np.ndarray:
    """A map of the source image at the pixel centres of the target image, from the nearest entry."""
    height, width = values.shape
    to_map = transform.inverse().compose(ImageTransform.resize(transform.size_from, (width, height)))
    columns, rows = np.meshgrid(*(np.arange(side) for side in transform.size_to))
    xy = np.rint(to_map.apply(np.stack([columns, rows], axis=-1))).astype(np.int64)
    inside = np.all((xy >= 0) & (xy < (width, height)), axis=-1)
    x, y = np.moveaxis(xy.clip((0, 0), (width - 1, height - 1)), -1, 0)
    return np.where(inside, values[y, x], np.asarray(outside, dtype=values.dtype))
