"""Flags that several commands share, and what they lead to."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mast3r.pairs.options import add_pair_options

if TYPE_CHECKING:
    from mast3r.model import AsymmetricMASt3R
    from mast3r.scenes.stages import Progress

_PACKAGES = ("croco", "dust3r", "mast3r", "multiview")


def make_parser(prog: str, description: str, examples: Sequence[str]) -> argparse.ArgumentParser:
    """A parser whose help ends with examples; it has the flags every command has.

    Args:
        prog: Name of the program.
        description: What the command does.
        examples: Command lines, without the program's name.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description)
    add_examples(parser, examples)
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="answer with one JSON object on stdout")
    group.add_argument("--quiet", "--silent", action="store_true", help="no progress and no messages but errors")
    group.add_argument("--debug", action="store_true", help="show the trace of an error")
    return parser


def add_examples(parser: argparse.ArgumentParser, examples: Sequence[str]) -> None:
    """End the help of a parser with command lines, given without the program's name."""
    lines = "\n".join(f"  {parser.prog} {example}".rstrip() for example in examples)
    parser.epilog = f"examples:\n{lines}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The choice of a model; the official flags among them."""
    group = parser.add_argument_group("model")
    source = group.add_mutually_exclusive_group()
    source.add_argument(
        "--weights", default="small", help="'small' (shipped), or a file or folder (default %(default)s)"
    )
    source.add_argument("--model_name", help="official checkpoint name or Hub id, see `mast3r models`")
    add_pair_options(group, ["image_size"])
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default %(default)s)")


def set_up(args: argparse.Namespace) -> None:
    """Messages of the library on stderr, unless they are unwanted."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    for name in _PACKAGES:
        logging.getLogger(name).setLevel(logging.ERROR if args.quiet else logging.INFO)


def load_model(args: argparse.Namespace) -> AsymmetricMASt3R:
    """The model the flags ask for.

    Raises:
        ValueError: If the device or the weights cannot be used.
    """
    import torch

    from dust3r.utils.processes import resolve_device
    from mast3r.loading import load

    try:
        device = resolve_device(args.device)
        torch.zeros(1, device=device)  # what is missing shows only when it is used
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the device {args.device!r} cannot be used here ({reason}); try --device auto.") from error
    return load(args.model_name or args.weights, device=device)


@contextmanager
def progress_bar(args: argparse.Namespace) -> Iterator[Progress]:
    """A listener (share done, name of the step) that draws a bar on stderr, if that is a terminal."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    form = "{desc:<10} {percentage:3.0f}% |{bar}| {elapsed}<{remaining}"
    options: dict[str, Any] = {"file": sys.stderr, "disable": args.quiet or None, "bar_format": form, "leave": False}
    with tqdm(total=1.0, **options) as bar, logging_redirect_tqdm():

        def show(share: float, name: str) -> None:
            bar.set_description_str(name, refresh=False)
            bar.update(share - bar.n)

        yield show


def tell(args: argparse.Namespace, text: str, data: Mapping[str, Any]) -> None:
    """The answer of a command on stdout: `text` for people, `data` with --json."""
    sys.stdout.write((json.dumps(data) if args.json else text) + "\n")
    sys.stdout.flush()


def names_of(paths: Sequence[str | os.PathLike[str]]) -> str:
    """Paths as people read them."""
    return ", ".join(map(str, paths))
