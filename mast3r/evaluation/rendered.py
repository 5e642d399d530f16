"""What the network alone has learned, on rendered pairs with exact ground truth: `mast3r evaluate rendered`.

Two fixed sets of pairs, wide and near, with textures that training never showed. Descriptors and pointmaps are judged
as they leave the network: nothing places, checks or corrects them. The second table tells which changes of viewpoint
are matched.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mast3r.evaluation.command import run_command, save_scores

if TYPE_CHECKING:
    from mast3r.validation import JudgedPair

SETS = {"wide": (0.2, 0.6), "near": (0.7, 0.95)}
"""Name -> range of the share of view 1 that view 2 sees."""

RADIUS_PX = 8.0

CHANGES: dict[str, tuple[float, ...]] = {
    "turned by degrees": (0, 10, 20, 45, 90),
    "scaled by": (0, 0.5, 0.7, 1.4, 2),
    "foreshortened by": (1, 1.3, 1.7, 2.2, 3),
}
"""Column of `mast3r.validation.view_changes` -> lower bounds of the classes told apart."""


@dataclass(frozen=True)
class ChangeScore:
    """Points of one class of viewpoint change.

    Attributes:
        kind: A key of `CHANGES`.
        low: Lower bound.
        high: Upper bound, not included; None for none.
        share: Share of all points, 0..1.
        within_8px: Share of these points matched within 8 px; None without a point.
    """

    kind: str
    low: float
    high: float | None
    share: float
    within_8px: float | None

    def __str__(self) -> str:
        """The class and how well it is matched, as a row of a table."""
        bounds = f"{self.low:g} or more" if self.high is None else f"{self.low:g} to {self.high:g}"
        hits = "-" if self.within_8px is None else f"{100 * self.within_8px:.0f} %"
        return f"{f'{self.kind} {bounds}':40s} {100 * self.share:13.0f} %  {hits:>7s}"


@dataclass(frozen=True)
class RenderedScore:
    """Quality on one set.

    Attributes:
        name: Its name and range of overlap.
        metrics: `mast3r.validation.SyntheticMetrics` by name.
        changes: The same points by how their surroundings change from view to view.
    """

    name: str
    metrics: dict[str, float]
    changes: tuple[ChangeScore, ...]


def score_pairs(name: str, judged: Sequence[JudgedPair]) -> RenderedScore:
    """Sum up the pairs of a set."""
    import torch

    from mast3r.validation import summarise

    right = torch.cat([pair.errors for pair in judged]) <= RADIUS_PX
    columns = torch.cat([pair.changes for pair in judged]).unbind(-1)
    changes = []
    for (kind, bounds), values in zip(CHANGES.items(), columns):
        for low, high in zip(bounds, (*bounds[1:], None)):
            inside = (values >= low) if high is None else (values >= low) & (values < high)
            hits = float(right[inside].float().mean()) if inside.any() else None
            changes.append(ChangeScore(kind, low, high, float(inside.float().mean()), hits))
    return RenderedScore(name, summarise(judged).as_dict(), tuple(changes))


def rendered_table(scores: Sequence[RenderedScore]) -> str:
    """Both tables, for the terminal."""
    lines = [f"{'rendered pairs':24s} points   2 px   4 px   8 px  16 px  pointmap error"]
    for score in scores:
        m = score.metrics
        shares = " ".join(f"{100 * m[f'within_{px}px']:4.1f} %" for px in (2, 4, 8, 16))
        lines.append(f"{score.name:24s} {m['points']:6.0f} {shares}  {m['pointmap_median']:14.3f}")
    for score in scores:
        lines += ["", f"{score.name + ', 8 px':42s} share of points  matched"]
        lines += [f"  {change}" for change in score.changes]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None, prog: str = "python -m mast3r.evaluation.rendered") -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog=prog, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", default="small", help="small, an official name, a path")
    parser.add_argument("--textures", type=Path, help="folder of photos; the tenth kept from training is shown")
    parser.add_argument("--exclude_textures", nargs="+", default=(), help="names of its sub-folders to leave out")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="default: all")
    parser.add_argument("--pairs", type=int, default=16, help="pairs of each set (default %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    args = parser.parse_args(argv)
    return run_command(lambda: _measured(args), rendered_table, save_scores, args.json)


def _measured(args: argparse.Namespace) -> list[RenderedScore]:
    from dust3r.datasets.synthetic import SceneEngine, SyntheticConfig, TextureConfig
    from dust3r.utils.processes import resolve_device
    from mast3r.loading import load
    from mast3r.training import Validation
    from mast3r.validation import judged_pairs

    if args.pairs < 1:
        raise ValueError(f"--pairs must be at least 1, got {args.pairs}.")
    device = resolve_device(args.device)
    model = load(args.weights, device=device)
    textures = TextureConfig(folder=args.textures, exclude=tuple(args.exclude_textures), split="test")
    engine = SceneEngine(SyntheticConfig(textures, compile=False), device)
    scores = []
    for name in args.sets:
        low, high = SETS[name]
        judged = judged_pairs(model, engine, **asdict(Validation(pairs=args.pairs, overlap=(low, high))))
        scores.append(score_pairs(f"{name}, overlap {low:g}-{high:g}", list(judged)))
    return scores


if __name__ == "__main__":
    sys.exit(main())
