"""What an evaluation found: scores of all pairs, their aggregates, a table and a JSON form."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mast3r.evaluation.datasets import LOW_CONFIDENCE
from mast3r.evaluation.scores import PairScore, Thresholds
from multiview.files import atomic_write
from multiview.metrics import pose_auc

FORMAT = "mast3r.evaluation/1"
AUC_THRESHOLDS = (5, 10, 20)
"""Degrees of a pose error, pixels of a homography's corner error."""
WITHIN_DEG = 20.0

Truth = Literal["pose", "homography", "points", "none"]


@dataclass(frozen=True)
class SceneInfo:
    """A scene as the report remembers it.

    Attributes:
        name: name of the scene.
        confidence: high, medium or low (left out of totals).
        metric: whether its lengths are metres.
    """

    name: str
    confidence: str = "high"
    metric: bool = False


@dataclass(frozen=True)
class Summary:
    """Aggregates over pairs; None for what no pair offers. Shares and areas are in 0..1.

    Attributes:
        name: scene, or what else was summed up.
        truth: what `auc` is about: pose errors in degrees, or else corner errors of homographies in pixels.
        pairs: number of pairs.
        matches: mean number of matches.
        precision: mean share of correct matches.
        auc: areas under the recall curve of the errors up to 5, 10 and 20.
        within_20: share of errors below 20.
        maa: mean accuracy of annotated points under the estimated fundamental matrix.
        points_within_px: mean share of annotated points carried over to within 2, 4, 8 and 16 px.
        abs_rel: mean scale-aligned relative depth error.
        delta1: mean share of depths within a factor of 1.25, scale-aligned.
        metric_abs_rel: mean relative depth error in metres.
        pointmap: mean of the pairs' median relative pointmap errors, scale-aligned.
        focal_error: mean relative error of the focal length.
        seconds: mean time of the matcher.
    """

    name: str
    truth: Truth
    pairs: int
    matches: float
    precision: float | None
    auc: tuple[float, float, float] | None
    within_20: float | None
    maa: float | None
    points_within_px: tuple[float, ...] | None
    abs_rel: float | None
    delta1: float | None
    metric_abs_rel: float | None
    pointmap: float | None
    focal_error: float | None
    seconds: float

    @property
    def score(self) -> float | None:
        """The one number of a scene, 0..1: the area up to 20, or for annotated points their accuracy."""
        return self.maa if self.auc is None else self.auc[2]


@dataclass(frozen=True)
class Report:
    """All that was measured of one matcher.

    Attributes:
        matcher: its name.
        scenes: the scenes, in order.
        pairs: scores of all pairs, scene by scene.
        thresholds: when what counted as right.
    """

    matcher: str
    scenes: tuple[SceneInfo, ...]
    pairs: tuple[PairScore, ...] = field(repr=False)
    thresholds: Thresholds = field(default_factory=Thresholds)

    def scene_summaries(self) -> list[Summary]:
        """One summary per scene."""
        return [summarise(info.name, self._of(info.name)) for info in self.scenes]

    def totals(self) -> list[Summary]:
        """Over all pairs with a pose, all with a homography, and all with annotated points.

        Scenes whose truth has low confidence are left out.
        """
        trusted = {info.name for info in self.scenes if info.confidence != LOW_CONFIDENCE}
        pairs = [pair for pair in self.pairs if pair.scene in trusted]
        kinds = {
            "all posed pairs": [replace(p, homography=None) for p in pairs if p.pose],
            "all homographies": [replace(p, pose=None) for p in pairs if p.homography],
            "all annotated pairs": [replace(p, homography=None) for p in pairs if p.points and not p.homography],
        }
        return [summarise(name, chosen) for name, chosen in kinds.items() if chosen]

    def headline(self) -> dict[str, float]:
        """Name -> value of what one compares; scenes whose truth has low confidence are left out.

        `mean_scene_score` is the mean over scenes of `Summary.score`.
        """
        numbers: dict[str, float | None] = {}
        for total in self.totals():
            if total.truth == "pose" and total.auc is not None:
                numbers |= {f"auc{t}": value for t, value in zip(AUC_THRESHOLDS, total.auc)}
                numbers |= {"within_20deg": total.within_20, "epipolar_precision": total.precision}
                numbers |= {"matches": total.matches, "focal_error": total.focal_error}
                numbers |= {"depth_abs_rel": total.abs_rel, "depth_delta1": total.delta1}
            elif total.truth == "homography" and total.auc is not None:
                numbers["homography_auc10px"] = total.auc[1]
            else:
                numbers["points_maa"] = total.maa
        scores = [s.score for s in self.scene_summaries() if self._trusted(s.name) and s.score is not None]
        numbers["mean_scene_score"] = float(np.mean(scores)) if scores else None
        return {name: value for name, value in numbers.items() if value is not None}

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the summaries."""
        summaries = [asdict(summary) for summary in (*self.scene_summaries(), *self.totals())]
        return {**asdict(self), "headline": self.headline(), "summaries": summaries}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Report:
        """Inverse of `as_dict`; the summaries are computed anew."""
        return cls(
            values["matcher"],
            tuple(SceneInfo(**info) for info in values["scenes"]),
            tuple(PairScore.from_dict(pair) for pair in values["pairs"]),
            Thresholds(**values["thresholds"]),
        )

    def _of(self, scene: str) -> list[PairScore]:
        return [pair for pair in self.pairs if pair.scene == scene]

    def _trusted(self, scene: str) -> bool:
        return any(info.name == scene and info.confidence != LOW_CONFIDENCE for info in self.scenes)


def summarise(name: str, pairs: Sequence[PairScore]) -> Summary:
    """Aggregates of pairs; failures count as infinite errors.

    Args:
        name: name of the summary.
        pairs: scores of one kind of truth; where some have a pose, areas are about poses only.
    """
    poses = [p.pose for p in pairs if p.pose]
    homographies = [p.homography for p in pairs if p.homography]
    points = [p.points for p in pairs if p.points]
    depths = [p.depth for p in pairs if p.depth]
    errors = [p.max_deg for p in poses] or [h.corner_error_px for h in homographies]
    finite = np.array([np.inf if error is None else error for error in errors])
    shares = np.array([p.within_px for p in points])
    return Summary(
        name=name,
        truth=_kind(bool(poses), bool(homographies), bool(points)),
        pairs=len(pairs),
        matches=_mean(p.matches for p in pairs) or 0.0,
        precision=_mean(s.precision for s in poses or homographies),
        auc=_three(pose_auc(finite, AUC_THRESHOLDS)) if errors else None,
        within_20=float(np.mean(finite < WITHIN_DEG)) if errors else None,
        maa=_mean(p.maa for p in points),
        points_within_px=tuple(shares.mean(axis=0).tolist()) if points else None,
        abs_rel=_mean(d.abs_rel for d in depths),
        delta1=_mean(d.delta1 for d in depths),
        metric_abs_rel=_mean(d.metric_abs_rel for d in depths),
        pointmap=_mean(d.pointmap for d in depths),
        focal_error=_mean(p.focal_error for p in pairs),
        seconds=_mean(p.seconds for p in pairs) or 0.0,
    )


def save_reports(path: str | Path, reports: Sequence[Report]) -> Path:
    """Write reports as one JSON file, atomically."""
    content = {"format": FORMAT, "reports": [report.as_dict() for report in reports]}
    text = json.dumps(content, indent=1, allow_nan=False)
    with atomic_write(path) as file:
        file.write(text.encode())
    return Path(path)


def load_reports(path: str | Path) -> list[Report]:
    """Read what `save_reports` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, expected {FORMAT!r}")
        known = {f: None for f in Report.__dataclass_fields__}
        return [Report.from_dict({key: report[key] for key in known}) for report in content["reports"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not a file written by save_reports ({error}).") from error


# --- the table ---

_COLUMNS = (
    "scene", "matcher", "truth", "pairs", "matches", "prec", "@5", "@10", "@20", "<20",
    "mAA", "pts8", "absrel", "d1.25", "metric", "focal", "s/pair",
)  # fmt: skip

LEGEND = (
    "prec: matches within 5e-4 of the true epipolar geometry, or 3 px of the true homography, %. "
    "@t: area under the recall curve of the pose error up to t degrees, or corner error up to t px, %. "
    "<20: share of errors below 20, %. mAA: annotated points within 1..20 px of the found epipolar lines, %. "
    "pts8: annotated points carried over to within 8 px, %. absrel, d1.25: scale-aligned depth, %; "
    "metric: absrel in metres, %; focal: relative error, %. * low-confidence truth, not in the totals."
)


def table(reports: Sequence[Report]) -> str:
    """A plain text table: scenes, then totals; one row per matcher each."""
    rows = [_COLUMNS]
    for info in reports[0].scenes if reports else ():
        mark = "*" if info.confidence == LOW_CONFIDENCE else ""
        for report in reports:
            of_scene = [s for s in report.scene_summaries() if s.name == info.name]
            rows += [_row(info.name + mark, report.matcher, summary) for summary in of_scene]
    totals = [(total.name, report.matcher, total) for report in reports for total in report.totals()]
    order = {name: i for i, name in enumerate(dict.fromkeys(name for name, _, _ in totals))}
    body = len(rows)
    rows += [_row(*total) for total in sorted(totals, key=lambda total: order[total[0]])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = ["  ".join(_padded(cell, width, i) for i, (cell, width) in enumerate(zip(row, widths))) for row in rows]
    rule = "-" * max(len(line) for line in lines)
    return "\n".join([lines[0], rule, *lines[1:body], rule, *lines[body:], "", *_scores(reports), LEGEND])


def _scores(reports: Iterable[Report]) -> list[str]:
    """A line per matcher with the mean over scenes."""
    means = [(report.matcher, report.headline().get("mean_scene_score")) for report in reports]
    return [
        f"{name}: mean over scenes of @20 (mAA for annotated points) {100 * mean:.1f}"
        for name, mean in means
        if mean is not None
    ]


def _row(scene: str, matcher: str, s: Summary) -> tuple[str, ...]:
    areas = s.auc or (None, None, None)
    points8 = None if s.points_within_px is None else s.points_within_px[2]
    depths = (s.abs_rel, s.delta1, s.metric_abs_rel)
    shares = (s.precision, *areas, s.within_20, s.maa, points8, *depths, s.focal_error)
    cells = ["-" if share is None else f"{100 * share:.1f}" for share in shares]
    return (scene, matcher, s.truth, str(s.pairs), f"{s.matches:.0f}", *cells, f"{s.seconds:.2f}")


def _padded(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column < 3 else cell.rjust(width)


def _kind(poses: bool, homographies: bool, points: bool) -> Truth:
    if poses:
        return "pose"
    if homographies:
        return "homography"
    return "points" if points else "none"


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    return values[0], values[1], values[2]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
