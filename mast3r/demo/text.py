"""What a result says, in words."""

from __future__ import annotations

from typing import Any

from mast3r.demo.markup import Fact
from mast3r.loading import WeightsCard
from multiview.results import PairResult, ScaleStatus

SCALE_WORDS: dict[ScaleStatus, tuple[str, str]] = {
    "metric-predicted": ("metres, predicted", "the network guesses them"),
    "metric-given": ("metres", "as given"),
    "arbitrary": ("arbitrary", "only proportions mean something"),
}
"""In short, and what it means."""


def summary_line(result: PairResult) -> str:
    """The result in one line."""
    focals = " and ".join(f"{camera.focal[0]:.0f}" for camera in result.cameras)
    seconds = sum(result.timings.values())
    return f"{len(result.matches)} matches, {_motion(result)}, focal lengths {focals} px, {seconds:.2f} s"


def pair_facts(result: PairResult) -> list[Fact]:
    """The numbers of a pair."""
    focals = [camera.focal[0] for camera in result.cameras]
    angles = [camera.fov_deg[0] for camera in result.cameras]
    times = result.timings
    return [
        Fact("Matches", f"{len(result.matches):,}", f"{result.num_inliers:,} agree with the cameras"),
        Fact("Camera 1 to camera 2", *_motion_fact(result)),
        Fact("Focal lengths", f"{focals[0]:.0f} / {focals[1]:.0f} px", f"{angles[0]:.0f}° and {angles[1]:.0f}° wide"),
        Fact("Scale", *SCALE_WORDS[result.scale_status]),
        Fact("Time", duration(sum(times.values())), ", ".join(f"{name} {value:.2f}" for name, value in times.items())),
    ]


def summary_json(result: PairResult, card: WeightsCard) -> dict[str, Any]:
    """The result as plain JSON values."""
    pose = result.pose1
    return {
        **result.summary(),
        "focal_px": [camera.focal[0] for camera in result.cameras],
        "rotation_deg": None if pose is None else pose.angle_deg,
        "seconds": sum(result.timings.values()),
        "weights": {"name": card.name, "licence": card.licence},
    }


def model_words(card: WeightsCard) -> str:
    """The licence of a model's weights, in a few words."""
    return f"Weights {card.licence}"


def duration(seconds: float) -> str:
    """Seconds in words, as exactly as one wants to know."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def unit_of(scale: ScaleStatus) -> str:
    """The unit of lengths behind a space, or nothing."""
    return "" if scale == "arbitrary" else " m"


def _motion(result: PairResult) -> str:
    if result.pose1 is None:
        return "no relative pose found"
    unit = unit_of(result.scale_status)
    return f"rotated by {result.pose1.angle_deg:.1f}°, moved by {result.baseline:.3g}{unit}"


def _motion_fact(result: PairResult) -> tuple[str, str]:
    if result.pose1 is None:
        return "not found", "too few matches agree with any motion"
    unit = unit_of(result.scale_status)
    return f"{result.baseline:.2g}{unit}, {result.pose1.angle_deg:.0f}°", f"moved{_direction(result)} and rotated"


def _direction(result: PairResult) -> str:
    """Where camera 2 stands, its largest movement first."""
    if result.pose1 is None or not result.baseline:
        return ""
    x, y, z = result.pose1.center / result.baseline
    words = (("right", "left"), ("down", "up"), ("forward", "back"))
    parts = [(abs(value), pair[int(value < 0)]) for value, pair in zip((x, y, z), words) if abs(value) > 0.3]
    names = [name for _, name in sorted(parts, reverse=True)]
    return f" {' and '.join(names)}" if len(names) < 3 else f" {', '.join(names[:2])} and {names[2]}"
