"""The settings of a pair as flags of a command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mast3r.pairs.config import PairConfig

FIELDS = {
    "subsample": "subsample",
    "max_matches": "max_matches",
    "image_size": "image_size",
    "crop": "crop",
    "seed": "seed",
    "photometric": "photometric",
    "closer_look": "closer_look",
    "refine": "refine_geometry",
}
"""Flags, without their dashes, and the fields of `PairConfig` that they set."""

_SWITCHES = {
    "crop": "resize and crop as the official code does, or keep whole photos",
    "photometric": "let the photos place and check the matches, or take the network's",
    "closer_look": "match parts of photos where the check finds few right matches; slow",
    "refine": "let matches correct focal lengths, pose and depth, or take the network's",
}
_NUMBERS = {
    "subsample": "grid spacing of the search for matches in model pixels (default 8)",
    "max_matches": "keep at most so many matches",
    "image_size": "input size of the model (default: as trained)",
    "seed": "seed of the pose estimation (default 0)",
}


def positive_int(text: str) -> int:
    """A whole number above 0, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def add_pair_options(parser: Any, flags: Sequence[str]) -> None:
    """Add some of the flags in `FIELDS` to a parser or to a group of one; what is not given stays None."""
    for flag in flags:
        if flag in _SWITCHES:
            parser.add_argument(f"--{flag}", action=argparse.BooleanOptionalAction, help=_SWITCHES[flag])
        else:
            parser.add_argument(f"--{flag}", type=int if flag == "seed" else positive_int, help=_NUMBERS[flag])


def pair_config(args: argparse.Namespace, flags: Sequence[str]) -> PairConfig:
    """The settings that such flags ask for."""
    from mast3r.pairs.config import PairConfig  # here: a help text need not wait for torch

    return PairConfig().changed(**{FIELDS[flag]: getattr(args, flag) for flag in flags})
