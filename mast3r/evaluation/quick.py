"""The evaluation in small, to follow a training run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from mast3r.evaluation.datasets import LOW_CONFIDENCE, EvaluationScene, read_scenes
from mast3r.evaluation.networks import NetworkMatcher
from mast3r.evaluation.runner import EvaluationConfig, evaluate_scenes
from mast3r.model import AsymmetricMASt3R


def evaluate_real(
    model: nn.Module, folder: str | Path | Sequence[EvaluationScene], *, max_pairs_per_scene: int | None = 4
) -> dict[str, float]:
    """Measure a model on a few real photos of each scene, by its matches alone.

    Args:
        model: an `AsymmetricMASt3R` in evaluation mode.
        folder: data folder (see `datasets.read_scenes`), or scenes that have been read.
        max_pairs_per_scene: at most so many pairs of each scene, evenly spread; None takes all.

    Returns:
        `Report.headline`: auc5, auc10, auc20 (0..1), within_20deg (share), epipolar_precision, matches (per
        posed pair), homography_auc10px, points_maa, mean_scene_score; what the data does not offer is absent.

    Raises:
        TypeError: If the model is of another kind.
        DatasetError: If there is nothing to evaluate or the data is broken.
    """
    if not isinstance(model, AsymmetricMASt3R):
        raise TypeError(f"Only an AsymmetricMASt3R can be evaluated on photos, got {type(model).__name__}.")
    scenes = read_scenes(folder) if isinstance(folder, (str, Path)) else folder
    trusted = [scene for scene in scenes if scene.confidence != LOW_CONFIDENCE]
    matcher = NetworkMatcher(model, pointmaps=False)
    return evaluate_scenes(matcher, trusted, EvaluationConfig(max_pairs=max_pairs_per_scene)).headline()
