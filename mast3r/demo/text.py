"""What a result says, in words."""

from __future__ import annotations

from typing import Any

import numpy as np

from mast3r.loading import WeightsCard
from multiview.results import PairResult

_SCALE = {
    "metric-predicted": "metres, as the network guesses them",
    "metric-given": "metres, as given",
    "arbitrary": "arbitrary: only proportions mean something",
}


def summary_line(result: PairResult) -> str:
    """The result in one line."""
    focals = " and ".join(f"{camera.focal[0]:.0f}" for camera in result.cameras)
    seconds = sum(result.timings.values())
    return f"{len(result.matches)} matches, {_motion(result)}, focal lengths {focals} px, {seconds:.2f} s"


def summary_table(result: PairResult, card: WeightsCard) -> str:
    """The result as a Markdown table."""
    rows = [("Matches", f"{len(result.matches)}, of which {result.num_inliers} agree with the pose")]
    for i, (image, camera) in enumerate(zip(result.images, result.cameras)):
        across, down = camera.fov_deg
        rows.append(
            (
                f"Photo {i + 1}",
                f"{image.width} by {image.height} px, focal length {camera.focal[0]:.0f} px, "
                f"sees {across:.0f}° by {down:.0f}°",
            )
        )
    rows += [
        ("Camera 2 seen from camera 1", _motion(result) + _direction(result)),
        ("Unit of length", _SCALE[result.scale_status]),
        ("Time", ", ".join(f"{name} {value:.2f} s" for name, value in result.timings.items())),
        ("Weights", f"{card.name}, licence: {card.licence}"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| **{name}** | {value} |" for name, value in rows)])


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


def _motion(result: PairResult) -> str:
    if result.pose1 is None:
        return "no relative pose found"
    unit = "" if result.scale_status == "arbitrary" else " m"
    return f"rotated by {result.pose1.angle_deg:.1f}°, moved by {result.baseline:.3g}{unit}"


def _direction(result: PairResult) -> str:
    """Where camera 2 stands: its largest movement first."""
    if result.pose1 is None or not result.baseline:
        return ""
    x, y, z = result.pose1.center / result.baseline
    words = (("right", "left"), ("down", "up"), ("forward", "back"))
    parts = [(abs(value), pair[int(value < 0)]) for value, pair in zip((x, y, z), words) if abs(value) > 0.3]
    names = [name for _, name in sorted(parts, reverse=True)]
    angles = np.degrees(np.arccos(np.clip(z, -1, 1)))
    return f" ({' and '.join(names)}; {angles:.0f}° off the viewing direction)"
