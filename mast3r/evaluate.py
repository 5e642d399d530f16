"""Measure matchers on photos with ground truth: `python -m mast3r.evaluate DATA_DIR --baseline rootsift`.

DATA_DIR holds scenes with a `gt.json`, or is a .txt pair list in SuperGlue's or glue-factory's form. The
table goes to the terminal; `--json FILE` keeps the numbers of every pair (`--json` alone prints them in place of the
table), `--pictures` a picture of its matches.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from mast3r.evaluation.baselines import RootSift
from mast3r.evaluation.datasets import EvaluationScene, read_pair_list, read_scenes
from mast3r.evaluation.report import Report, save_reports, table
from mast3r.evaluation.runner import EvaluationConfig, PairMatcher, evaluate_scenes
from mast3r.evaluation.scores import Thresholds
from mast3r.pairs.options import add_pair_options, pair_config

_FLAGS = ("subsample", "photometric", "closer_look", "refine")
STDOUT = Path("-")
"""Takes the place of a file's name where the numbers go to the terminal."""


def get_args_parser(prog: str = "python -m mast3r.evaluate") -> argparse.ArgumentParser:
    """Flags of the command.

    Args:
        prog: Name of the program in its help.
    """
    parser = argparse.ArgumentParser(prog=prog, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of SCENE/gt.json, one such scene, or a .txt pair list")
    parser.add_argument("--weights", default="small", help="small, an official name, a path; none: only the baseline")
    parser.add_argument("--baseline", choices=["rootsift"], nargs="?", const="rootsift", help="also measure this")
    parser.add_argument("--scenes", nargs="+", help="names of scenes (default: all with ground truth)")
    parser.add_argument("--images", type=Path, help="folder of the images of a .txt pair list")
    parser.add_argument("--max_pairs", type=int, help="at most so many pairs of each scene, evenly spread")
    parser.add_argument("--max_matches", type=int, help="judge so many most confident matches of a pair")
    add_pair_options(parser, _FLAGS)
    parser.add_argument(
        "--resolution", choices=["coarse", "fine"], default="coarse",
        help="fine matches the photos window by window at full size, no depth and focal length (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--matches_only", action="store_true", help="no depth and focal length: half the time")
    parser.add_argument("--pose_px", type=float, default=1.0, help="RANSAC threshold of poses, stored pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of RANSAC")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--json", type=Path, nargs="?", const=STDOUT, help="write all numbers to this file; without one, print them"
    )
    parser.add_argument("--pictures", type=Path, help="draw the matches of each pair into this folder")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    args = get_args_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        reports = run(args)
    except (ValueError, OSError, ImportError) as error:  # what is wrong with the user's data or set-up
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(answer(args, reports) + "\n")
    return 0


def answer(args: argparse.Namespace, reports: Sequence[Report]) -> str:
    """What goes to the terminal: a table, or JSON if `--json` stands alone."""
    if args.json == STDOUT:
        return json.dumps({"reports": [report.as_dict() for report in reports]})
    return table(reports)


def run(args: argparse.Namespace) -> list[Report]:
    """Measure what the flags ask for; the JSON file grows with every matcher."""
    config = EvaluationConfig(
        max_pairs=args.max_pairs,
        max_matches=args.max_matches,
        thresholds=Thresholds(pose_px=args.pose_px, seed=args.seed),
        pictures=args.pictures,
    )
    scenes = _scenes(args)
    reports: list[Report] = []
    for matcher in _matchers(args):
        reports.append(evaluate_scenes(matcher, scenes, config))
        if args.json not in (None, STDOUT):
            save_reports(args.json, reports)
    return reports


def _scenes(args: argparse.Namespace) -> list[EvaluationScene]:
    if args.images is not None:
        return [read_pair_list(args.data, args.images)]
    return read_scenes(args.data, args.scenes)


def _matchers(args: argparse.Namespace) -> list[PairMatcher]:
    """The network and the baseline, as asked for."""
    matchers: list[PairMatcher] = []
    if args.weights != "none":
        matchers.append(_network(args))
    if args.baseline == "rootsift":
        matchers.append(RootSift())
    if not matchers:
        raise ValueError("Nothing to measure: --weights none needs a --baseline.")
    return matchers


def _network(args: argparse.Namespace) -> PairMatcher:
    # here: the baseline alone runs without torch
    from dust3r.utils.processes import resolve_device
    from mast3r.evaluation.networks import NetworkMatcher
    from mast3r.loading import card_of, load

    model = load(args.weights, device=resolve_device(args.device))
    config = pair_config(args, _FLAGS)
    name = card_of(model).name + ("-fine" if args.resolution == "fine" else "")
    return NetworkMatcher(model, name, config, pointmaps=not args.matches_only, resolution=args.resolution)


if __name__ == "__main__":
    sys.exit(main())
