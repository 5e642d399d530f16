"""`mast3r evaluate`: matchers on photos with ground truth."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from mast3r.cli.options import add_examples
from mast3r.evaluate import answer, get_args_parser, run

_EXAMPLES = (
    "DATA/ --weights small --baseline rootsift --max_pairs 4",
    "DATA/ --json",
    "pairs.txt --images PHOTOS/ --json numbers.json --pictures drawn/",
)


def main(argv: Sequence[str], prog: str) -> int:
    """Run the command; its flags are those of `python -m mast3r.evaluate`."""
    parser = get_args_parser(prog)
    add_examples(parser, _EXAMPLES)
    parser.add_argument("--debug", action="store_true", help="show the trace of an error")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    sys.stdout.write(answer(args, run(args)) + "\n")
    return 0
