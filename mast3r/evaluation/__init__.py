"""How well a matcher does on real photos with ground truth.

`evaluate_folder(matcher, folder)` runs any `PairMatcher` and gives a `Report`; `python -m mast3r.evaluate` is
the same on the command line.
"""

from __future__ import annotations

from mast3r.evaluation.baselines import RootSift
from mast3r.evaluation.datasets import (
    DatasetError,
    EvaluationPair,
    EvaluationScene,
    read_pair_list,
    read_scene,
    read_scenes,
)
from mast3r.evaluation.report import Report, Summary, load_reports, save_reports, table
from mast3r.evaluation.runner import EvaluationConfig, PairMatcher, evaluate_folder, evaluate_scenes
from mast3r.evaluation.scores import PairScore, Thresholds, judge_pair

__all__ = [
    "DatasetError",
    "EvaluationConfig",
    "EvaluationPair",
    "EvaluationScene",
    "PairMatcher",
    "PairScore",
    "Report",
    "RootSift",
    "Summary",
    "Thresholds",
    "evaluate_folder",
    "evaluate_scenes",
    "judge_pair",
    "load_reports",
    "read_pair_list",
    "read_scene",
    "read_scenes",
    "save_reports",
    "table",
]
