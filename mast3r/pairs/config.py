"""How a pair of photos is processed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, get_args

from mast3r.pairs.subpixel import Method


@dataclass(frozen=True)
class PairConfig:
    """How a pair is processed.

    Attributes:
        subsample: Spacing in model pixels of the grid from which matches are searched; smaller finds more.
        max_matches: Keep at most so many matches, the most confident ones; None keeps all.
        min_confidence_percentile: Share of the matches to drop, least confident first; 0..100.
        border_px: Drop matches nearer than this to a border of the model's input, where context is missing.
        subpixel: Place matches between the model's pixels: True for the default way, the name of another one
            (see `mast3r.pairs.subpixel`), or False to keep whole pixels.
        photometric: Let the photos themselves place dense matches to a fraction of their pixels and drop those that
            look unlike at both ends (see `multiview.photometric`). False gives what the network says.
        closer_look: Where the photos confirm few of these matches, match parts of the photos, which takes 10 to 60
            seconds of a CPU core (see `mast3r.pairs.closer_look`). Needs `photometric`.
        keypoint_tolerance_px: A given keypoint is matched if its match leads back to less than this distance
            from it, in model pixels.
        image_size: Size of the model's input; None takes the size it was trained at.
        crop: True resizes and crops as the official code does. False keeps the whole image, resized to about
            the number of pixels of a square of that size. None crops above 224 px only, where the crop is
            less than a patch.
        ransac_px: Largest epipolar distance of a match that agrees with the pose, in model pixels.
        seed: Seed of the pose estimation.
        batch_size: Images, orders of a pair or tiles in one call of the network.
        refine_geometry: Let the matches correct focal lengths, pose and pointmaps (see `mast3r.pairs.refinement`);
            needs matches that mostly agree with one pose and do not lie on a plane. False gives the network's own
            pointmaps, and the focal lengths that fit these. `match` does not look at it.

    Raises:
        ValueError: If a value is out of its range.
    """

    subsample: int = 8
    max_matches: int | None = None
    min_confidence_percentile: float = 0.0
    border_px: int = 3
    subpixel: bool | Method = True
    photometric: bool = True
    closer_look: bool = True
    keypoint_tolerance_px: float = 5.0
    image_size: int | None = None
    crop: bool | None = None
    ransac_px: float = 1.5
    seed: int = 0
    batch_size: int = 8
    refine_geometry: bool = True

    def __post_init__(self) -> None:
        if self.subsample < 1:
            raise ValueError(f"subsample must be at least 1 pixel, got {self.subsample}.")
        if self.max_matches is not None and self.max_matches < 0:
            raise ValueError(f"max_matches must be None or not negative, got {self.max_matches}.")
        if not 0 <= self.min_confidence_percentile <= 100:
            raise ValueError(f"min_confidence_percentile must be in 0..100, got {self.min_confidence_percentile}.")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size must be None or a positive number of pixels, got {self.image_size}.")
        if self.border_px < 0 or not self.ransac_px > 0 or not self.keypoint_tolerance_px > 0:
            raise ValueError(
                "border_px must not be negative, ransac_px and keypoint_tolerance_px must be positive, got "
                f"{self.border_px}, {self.ransac_px} and {self.keypoint_tolerance_px}."
            )
        if not isinstance(self.subpixel, bool) and self.subpixel not in get_args(Method):
            raise ValueError(f"subpixel must be True, False or one of {get_args(Method)}, got {self.subpixel!r}.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")

    @property
    def refinement(self) -> Method | None:
        """How matches are placed between pixels; None if they are not."""
        if isinstance(self.subpixel, bool):
            return "descriptor" if self.subpixel else None
        return self.subpixel

    def changed(self, **options: Any) -> PairConfig:
        """This configuration with the options that are not None."""
        return replace(self, **{name: value for name, value in options.items() if value is not None})
