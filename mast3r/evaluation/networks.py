"""A network as a `PairMatcher`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mast3r.matching import Resolution
from mast3r.model import AsymmetricMASt3R
from mast3r.predictor import PairConfig, match, predict_pair
from multiview.matches import Matches
from multiview.results import PairResult


@dataclass(eq=False)
class NetworkMatcher:
    """Matches by a MASt3R model.

    Attributes:
        model: what `mast3r.load` returned.
        name: name in tables.
        config: how a pair is processed.
        pointmaps: also give pointmaps and cameras, for depth and focal errors; False takes half the time.
        resolution: how matches are searched (see `mast3r.match`); "fine" gives matches alone, as pointmaps come
            at the network's resolution.
    """

    model: AsymmetricMASt3R
    name: str = "network"
    config: PairConfig = field(default_factory=PairConfig)
    pointmaps: bool = True
    resolution: Resolution = "coarse"

    def __call__(self, image0: Path, image1: Path) -> Matches | PairResult:
        """Everything the model says of two image files, or its matches alone."""
        if self.pointmaps and self.resolution == "coarse":
            return predict_pair(self.model, image0, image1, config=self.config)
        return match(self.model, image0, image1, resolution=self.resolution, config=self.config)
