"""`mast3r train`: the flags of `train.py`, the official ones among them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from mast3r.cli.options import add_examples

_EXAMPLES = (
    "--preset small-224 --minutes 60 --textures PHOTOS/ --output_dir runs/small --export small.safetensors",
    "--model 'AsymmetricMASt3R(...)' --train_dataset '1000 @ Co3d(...)' --train_criterion 'ConfLoss(...)'",
)


def main(argv: Sequence[str], prog: str) -> int:
    """Run the command."""
    from mast3r.training import get_args_parser, train  # slow import

    parser = get_args_parser()
    parser.prog = prog
    add_examples(parser, _EXAMPLES)
    parser.add_argument("--debug", action="store_true", help="show the trace of an error")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    train(args)
    return 0
