"""Curves of training runs that went on from each other: `python benchmarks/plot_training.py RUN... --out curves.png`.

Each RUN is the --output_dir of a run; its log.jsonl is read. Time and pairs add up over the runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np


@dataclass(frozen=True)
class Curve:
    """Values of one quantity in one run.

    Attributes:
        hours: (N,) time since the first run began.
        values: (N,) the quantity.
    """

    hours: np.ndarray
    values: np.ndarray


def read_run(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's log, each with the seconds of the training lines before it."""
    rows, seconds = [], 0.0
    for line in (folder / "log.jsonl").read_text().splitlines():
        row = json.loads(line)
        seconds = row.get("seconds", seconds) if row["kind"] == "train" else seconds
        rows.append({**row, "seconds": seconds})
    return rows


def curves(runs: Sequence[Path], kind: str, name: str) -> list[Curve]:
    """One quantity of the lines of one kind, a curve per run."""
    found, begin = [], 0.0
    for run in runs:
        rows = read_run(run)
        chosen = [row for row in rows if row["kind"] == kind and name in row]
        hours = begin + np.array([row["seconds"] for row in chosen]) / 3600
        found.append(Curve(hours, np.array([row[name] for row in chosen])))
        begin += rows[-1]["seconds"] / 3600
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("curves.png"))
    args = parser.parse_args()
    panels = (
        ("train", "MatchingLoss", "matching loss of the training pairs", "."),
        ("eval", "within_8px", "share within 8 px, wide rendered pairs", "o-"),
        ("eval", "pointmap_median", "pointmap error, wide rendered pairs", "o-"),
    )
    figure, axes = plt.subplots(1, len(panels), figsize=(13, 3.4), constrained_layout=True)
    for axis, (kind, name, title, style) in zip(axes, panels):
        for run, curve in zip(args.runs, curves(args.runs, kind, name)):
            axis.plot(curve.hours, curve.values, style, label=run.name, ms=4)
        axis.set(title=title, xlabel="hours of training")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(args.out, dpi=80)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
