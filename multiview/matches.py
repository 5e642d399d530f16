"""Point correspondences between two images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multiview.display import matches_html
from multiview.files import read_npz, write_npz
from multiview.images import ImageSource
from multiview.keypoint_graph import KeypointGraph
from multiview.match_files import write_colmap_lists, write_hloc
from multiview.plots import draw_matches

if TYPE_CHECKING:
    import PIL.Image

_SIZES = ("size0", "size1", "model_size0", "model_size1")
_INDICES = ("index0", "index1")


@dataclass(frozen=True, eq=False)
class Matches:
    """Corresponding points of two images, in ORIGINAL (upright, full resolution) pixels.

    Attributes:
        xy0: (N, 2) float32 pixels in image 0.
        xy1: (N, 2) float32 pixels in image 1; row i matches row i of `xy0`.
        confidence: (N,) float32, larger is better; MASt3R's descriptor confidence exp(c) is above 0 and
            unbounded.
        size0: (width, height) of image 0.
        size1: (width, height) of image 1.
        model_size0: (width, height) at which the network saw image 0, if one did.
        model_size1: The same of image 1.
        index0: (N,) int64 position of each `xy0` in the list of keypoints of image 0 that was to be matched;
            None for matches of any pixels.
        index1: The same of image 1.

    Raises:
        ValueError: If the arrays differ in length or have wrong shapes.
    """

    xy0: np.ndarray
    xy1: np.ndarray
    confidence: np.ndarray
    size0: tuple[int, int]
    size1: tuple[int, int]
    model_size0: tuple[int, int] | None = None
    model_size1: tuple[int, int] | None = None
    index0: np.ndarray | None = None
    index1: np.ndarray | None = None

    def __post_init__(self) -> None:
        xy0, xy1 = (np.asarray(xy, dtype=np.float32).reshape(-1, 2) for xy in (self.xy0, self.xy1))
        confidence = np.asarray(self.confidence, dtype=np.float32).reshape(-1)
        if not len(xy0) == len(xy1) == len(confidence):
            raise ValueError(
                "Matches needs xy0, xy1 and confidence of one length, "
                f"got {len(xy0)}, {len(xy1)} and {len(confidence)}."
            )
        for name, value in (("xy0", xy0), ("xy1", xy1), ("confidence", confidence)):
            object.__setattr__(self, name, value)
        for name in _INDICES:
            self._check_index(name)
        for name in _SIZES:
            size = getattr(self, name)
            object.__setattr__(self, name, None if size is None else (int(size[0]), int(size[1])))

    def _check_index(self, name: str) -> None:
        if getattr(self, name) is None:
            return
        index = np.asarray(getattr(self, name), dtype=np.int64).reshape(-1)
        if len(index) != len(self.confidence):
            raise ValueError(f"Matches.{name} must have one entry per match, got {len(index)} for {len(self)}.")
        object.__setattr__(self, name, index)

    def __len__(self) -> int:
        return len(self.confidence)

    def filter(self, mask: np.ndarray) -> Matches:
        """The matches chosen by a mask or by indices.

        Args:
            mask: (N,) bool, or (M,) integer positions.

        Raises:
            ValueError: If a mask is not as long as the matches, or positions are out of range.
        """
        mask = np.asarray(mask)
        if mask.dtype == bool and mask.shape != (len(self),):
            raise ValueError(f"The mask must have shape ({len(self)},), got {mask.shape}.")
        if mask.dtype != bool:
            mask = mask.astype(np.int64).reshape(-1)
            if mask.size and (mask.min() < -len(self) or mask.max() >= len(self)):
                raise ValueError(f"Positions must be below {len(self)}, got up to {mask.max()}.")
        index0, index1 = (None if index is None else index[mask] for index in (self.index0, self.index1))
        return replace(
            self,
            xy0=self.xy0[mask],
            xy1=self.xy1[mask],
            confidence=self.confidence[mask],
            index0=index0,
            index1=index1,
        )

    def masked(self, mask0: np.ndarray | None = None, mask1: np.ndarray | None = None) -> Matches:
        """The matches whose ends both lie on pixels that may match.

        Args:
            mask0: (H0, W0) bool at the size of image 0, True = may match; None allows all pixels.
            mask1: The same of image 1.

        Raises:
            ValueError: If a mask has another size than its image.
        """
        kept = np.ones(len(self), dtype=bool)
        sides = ((mask0, self.xy0, self.size0, "mask0"), (mask1, self.xy1, self.size1, "mask1"))
        for mask, xy, (width, height), name in sides:
            if mask is None:
                continue
            mask = np.asarray(mask)
            if mask.shape != (height, width):
                raise ValueError(f"{name} must have the image's shape {(height, width)}, got {mask.shape}.")
            column, row = np.rint(xy).astype(np.int64).clip(0, (width - 1, height - 1)).T
            kept &= mask[row, column].astype(bool)
        return self.filter(kept)

    def top(self, n: int) -> Matches:
        """The n most confident matches, best first; all of them if there are fewer."""
        if n < 0:
            raise ValueError(f"n must not be negative, got {n}.")
        return self.filter(np.argsort(-self.confidence, kind="stable")[:n])

    def swapped(self) -> Matches:
        """The same matches with the roles of the images exchanged."""
        return Matches(
            self.xy1,
            self.xy0,
            self.confidence,
            size0=self.size1,
            size1=self.size0,
            model_size0=self.model_size1,
            model_size1=self.model_size0,
            index0=self.index1,
            index1=self.index0,
        )

    def save(self, path: str | os.PathLike[str], *, names: tuple[str, str] | None = None) -> Path:
        """Write the matches; the suffix chooses the form. Files appear complete or not at all.

        Args:
            path: `.npz`: everything, see `load`. `.h5`: keypoints and matches as hloc reads them, in one file.
                `.txt`: COLMAP's list of raw matches, with a folder `features` of keypoint files beside it.
            names: Names of both images, needed for .h5 and .txt.

        Returns:
            The path.

        Raises:
            ValueError: If the suffix is none of these, or names are missing or equal.
            ImportError: If h5py, which .h5 needs, is not installed.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix == ".npz":
            sizes = {name: getattr(self, name) or (0, 0) for name in _SIZES}
            indices = {name: getattr(self, name) for name in _INDICES if getattr(self, name) is not None}
            return write_npz(path, xy0=self.xy0, xy1=self.xy1, confidence=self.confidence, **sizes, **indices)
        writer = {".h5": write_hloc, ".txt": write_colmap_lists}.get(suffix)
        if writer is None:
            raise ValueError(f"Matches are saved as .npz, .h5 or .txt, got {path.name!r}.")
        if names is None or names[0] == names[1]:
            raise ValueError(f"Matches in a {suffix} file need names=(name of image 0, name of image 1), got {names}.")
        return writer(path, KeypointGraph.of_pair(names, self.xy0, self.xy1, self.confidence))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Matches:
        """Read what `save` wrote.

        Raises:
            ValueError: If the file is no such file.
            FileNotFoundError: If there is none.
        """
        data = read_npz(path)
        try:
            rest: dict[str, Any] = {name: _size(data[name]) for name in _SIZES}
            rest.update((name, data[name]) for name in _INDICES if name in data)
            return cls(data["xy0"], data["xy1"], data["confidence"], **rest)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a file written by Matches.save ({error}).") from error

    def plot(
        self, image0: ImageSource | None = None, image1: ImageSource | None = None, **kwargs: Any
    ) -> PIL.Image.Image:
        """Both images side by side with lines between the matches.

        Args:
            image0: Image 0; without it the points are drawn on an empty canvas.
            image1: Image 1.
            **kwargs: Options of `multiview.plots.draw_matches`.

        Returns:
            A PIL image.
        """
        return draw_matches(self, image0, image1, **kwargs)

    def _repr_html_(self) -> str:
        return matches_html(self)

    def __repr__(self) -> str:
        (w0, h0), (w1, h1) = self.size0, self.size1
        spread = ""
        if len(self):
            low, high = np.percentile(self.confidence, (5, 95))
            spread = f", confidence {low:.3g}..{high:.3g} (5-95 %)"
        return f"Matches({len(self)} between {w0}x{h0} and {w1}x{h1}{spread})"


def concatenated(found: Sequence[Matches]) -> Matches:
    """All matches of several sets between the same images, one set after the other, without positions of keypoints.

    Args:
        found: At least one set. The network's sizes are those of the largest.
    """
    columns = {name: np.concatenate([getattr(m, name) for m in found]) for name in ("xy0", "xy1", "confidence")}
    return replace(max(found, key=len), **columns, index0=None, index1=None)


def _size(value: np.ndarray) -> tuple[int, int] | None:
    width, height = (int(side) for side in value)
    return (width, height) if width else None
