"""Runs a matcher over scenes."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from mast3r.evaluation.datasets import EvaluationPair, EvaluationScene, evenly, read_scenes
from mast3r.evaluation.report import Report, SceneInfo
from mast3r.evaluation.scores import PairScore, Thresholds, judge_pair
from multiview.images import read_image
from multiview.matches import Matches
from multiview.plots import draw_matches
from multiview.results import PairResult

logger = logging.getLogger(__name__)


class PairMatcher(Protocol):
    """Anything that matches two photos.

    Attributes:
        name: name in tables.
    """

    name: str

    def __call__(self, image0: Path, image1: Path) -> Matches | PairResult:
        """Matches in original (upright) pixels, or all that a model says of the pair."""
        ...


@dataclass(frozen=True)
class EvaluationConfig:
    """What is evaluated, and how.

    Attributes:
        scenes: names of the scenes; None takes all.
        max_pairs: at most so many pairs of each scene, evenly spread; None takes all.
        max_matches: judge only so many most confident matches of a pair; None takes all.
        thresholds: when what counts as right.
        pictures: folder for a picture of the matches of each pair.
    """

    scenes: Sequence[str] | None = None
    max_pairs: int | None = None
    max_matches: int | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    pictures: Path | None = None

    def __post_init__(self) -> None:
        for name in ("max_pairs", "max_matches"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")


def evaluate_folder(matcher: PairMatcher, folder: str | Path, config: EvaluationConfig | None = None) -> Report:
    """Measure a matcher on a data folder or pair list (see `datasets.read_scenes`).

    Args:
        matcher: what is measured.
        folder: where the scenes lie.
        config: what is evaluated, and how.

    Raises:
        DatasetError: If there is nothing to evaluate or the data is broken.
    """
    config = config or EvaluationConfig()
    return evaluate_scenes(matcher, read_scenes(folder, config.scenes), config)


def evaluate_scenes(
    matcher: PairMatcher, scenes: Sequence[EvaluationScene], config: EvaluationConfig | None = None
) -> Report:
    """Measure a matcher on scenes that have been read (arguments as in `evaluate_folder`)."""
    config = config or EvaluationConfig()
    scores: list[PairScore] = []
    for scene in scenes:
        chosen = evenly(scene.pairs, config.max_pairs)
        started = time.perf_counter()
        scores += [_measure(matcher, scene, pair, config) for pair in chosen]
        seconds = time.perf_counter() - started
        logger.info("%s: %d pairs of %s in %.1f s", matcher.name, len(chosen), scene.name, seconds)
    infos = tuple(SceneInfo(scene.name, scene.confidence, scene.metric) for scene in scenes)
    return Report(matcher.name, infos, tuple(scores), config.thresholds)


def _measure(matcher: PairMatcher, scene: EvaluationScene, pair: EvaluationPair, config: EvaluationConfig) -> PairScore:
    """Match one pair and judge it."""
    started = time.perf_counter()
    prediction = matcher(pair.image0, pair.image1)
    seconds = time.perf_counter() - started
    prediction = _limited(prediction, config.max_matches)
    if config.pictures is not None:
        _draw(prediction, scene, pair, Path(config.pictures) / matcher.name)
    return judge_pair(scene.name, pair, prediction, seconds=seconds, metric=scene.metric, thresholds=config.thresholds)


def _limited(prediction: Matches | PairResult, limit: int | None) -> Matches | PairResult:
    if limit is None:
        return prediction
    if isinstance(prediction, Matches):
        return prediction.top(limit)
    return replace(prediction, matches=prediction.matches.top(limit))


def _draw(prediction: Matches | PairResult, scene: EvaluationScene, pair: EvaluationPair, folder: Path) -> None:
    matches = prediction.matches if isinstance(prediction, PairResult) else prediction
    picture = draw_matches(matches, read_image(pair.image0), read_image(pair.image1))
    name0, name1 = (Path(name).with_suffix("").as_posix().replace("/", "-") for name in (pair.name0, pair.name1))
    target = folder / scene.name / f"{name0}__{name1}.jpg"
    target.parent.mkdir(parents=True, exist_ok=True)
    picture.save(target, quality=90)
