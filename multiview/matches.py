"""Point correspondences between two images."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multiview.files import read_npz, write_npz

if TYPE_CHECKING:
    import PIL.Image

    from multiview.images import ImageSource

_SIZES = ("size0", "size1", "model_size0", "model_size1")


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
        for name in _SIZES:
            size = getattr(self, name)
            object.__setattr__(self, name, None if size is None else (int(size[0]), int(size[1])))

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
        return replace(self, xy0=self.xy0[mask], xy1=self.xy1[mask], confidence=self.confidence[mask])

    def top(self, n: int) -> Matches:
        """The n most confident matches, best first; all of them if there are fewer."""
        if n < 0:
            raise ValueError(f"n must not be negative, got {n}.")
        return self.filter(np.argsort(-self.confidence, kind="stable")[:n])

    def swapped(self) -> Matches:
        """The same matches with the roles of the images exchanged."""
        return Matches(self.xy1, self.xy0, self.confidence, self.size1, self.size0, self.model_size1, self.model_size0)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a .npz file that `Matches.load` reads back.

        Raises:
            ValueError: If the path does not end in .npz.
        """
        path = Path(path)
        if path.suffix.lower() != ".npz":
            raise ValueError(f"Matches are saved as .npz, got {path.name!r}.")
        sizes = {name: getattr(self, name) or (0, 0) for name in _SIZES}
        return write_npz(path, xy0=self.xy0, xy1=self.xy1, confidence=self.confidence, **sizes)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Matches:
        """Read what `save` wrote.

        Raises:
            ValueError: If the file is no such file.
            FileNotFoundError: If there is none.
        """
        data = read_npz(path)
        try:
            sizes: dict[str, Any] = {name: _size(data[name]) for name in _SIZES}
            return cls(data["xy0"], data["xy1"], data["confidence"], **sizes)
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
        from multiview.plots import draw_matches

        return draw_matches(self, image0, image1, **kwargs)

    def __repr__(self) -> str:
        (w0, h0), (w1, h1) = self.size0, self.size1
        spread = ""
        if len(self):
            low, high = np.percentile(self.confidence, (5, 95))
            spread = f", confidence {low:.3g}..{high:.3g} (5-95 %)"
        return f"Matches({len(self)} between {w0}x{h0} and {w1}x{h1}{spread})"


def _size(value: np.ndarray) -> tuple[int, int] | None:
    width, height = (int(side) for side in value)
    return (width, height) if width else None
