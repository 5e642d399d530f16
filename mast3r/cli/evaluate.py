"""`mast3r evaluate`: matchers on photos with ground truth; `scenes`, `retrieval` and `localization` as its first word
measure what is made of many photos, `rendered` the network alone on rendered pairs.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence

from mast3r.cli.options import add_examples
from mast3r.evaluate import answer, get_args_parser, run

OTHERS = ("scenes", "retrieval", "localization", "rendered")
"""First words that measure something else than pairs of photos; each is the module `mast3r.evaluation.NAME`."""

_EXAMPLES = (
    "DATA/ --weights small --baseline rootsift --max_pairs 4",
    "DATA/ --json",
    "scenes DATA/ --baseline    # reconstructions; also: retrieval DATA/, localization DATA/; each has --help",
    "rendered --textures PHOTOS/    # the network alone, on rendered pairs",
    "pairs.txt --images PHOTOS/ --json numbers.json --pictures drawn/",
)


def main(argv: Sequence[str], prog: str) -> int:
    """Run the command; its flags are those of `python -m mast3r.evaluate`, or of one of `OTHERS`."""
    if argv and argv[0] in OTHERS:
        module = importlib.import_module(f"mast3r.evaluation.{argv[0]}")
        return module.main(argv[1:], f"{prog} {argv[0]}")
    parser = get_args_parser(prog)
    add_examples(parser, _EXAMPLES)
    parser.add_argument("--debug", action="store_true", help="show the trace of an error")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    sys.stdout.write(answer(args, run(args)) + "\n")
    return 0
