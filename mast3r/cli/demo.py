"""`mast3r demo`: what `demo.py` does, with its flags."""

from __future__ import annotations

from collections.abc import Sequence

from mast3r.cli.options import add_examples

_EXAMPLES = ("", "--server_port 7870 --local_network", "a.jpg b.jpg --out scene.glb")


def main(argv: Sequence[str], prog: str) -> int:
    """Run the command."""
    from mast3r.demo import get_args_parser  # slow import
    from mast3r.demo import main as run_demo

    arguments = [text for text in argv if text != "--debug"]
    parser = get_args_parser()
    parser.prog = prog
    add_examples(parser, _EXAMPLES)
    parser.parse_args(arguments)  # wrong usage is told under the name of this command
    return run_demo(arguments)
