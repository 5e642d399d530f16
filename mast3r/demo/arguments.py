"""Flags of the demo: our own and the official ones."""

from __future__ import annotations

import argparse
from pathlib import Path

from mast3r.pairs.options import add_pair_options

PAIR_FLAGS = ("max_matches", "subsample", "seed", "photometric", "closer_look", "refine", "crop")
DEFAULT_OUT = Path("scene.glb")


def get_args_parser() -> argparse.ArgumentParser:
    """The parser of `demo.py`."""
    parser = argparse.ArgumentParser(
        prog="demo.py",
        description="3D points, matches and cameras of two photos. Without photos it serves a page.",
    )
    parser.add_argument("photos", nargs="*", type=Path, metavar="PHOTO", help="two photos, or none for the page")
    _add_output(parser.add_argument_group("result of two photos"))
    _add_model(parser.add_argument_group("model"))
    _add_page(parser.add_argument_group("page"))
    return parser


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--out", type=Path, default=DEFAULT_OUT, help=".glb, .ply or .npz file to write (default %(default)s)"
    )
    group.add_argument("--mesh", action="store_true", help="write a surface to the .glb in place of points")
    group.add_argument(
        "--drop", type=float, default=20.0, metavar="PERCENT",
        help="leave out this share of the points, least confident first (default %(default)g)",
    )  # fmt: skip
    add_pair_options(group, PAIR_FLAGS)


def _add_model(group: argparse._ArgumentGroup) -> None:
    source = group.add_mutually_exclusive_group()
    source.add_argument(
        "--weights", default="small", help="'small' (shipped), or a file or folder (default %(default)s)"
    )
    source.add_argument("--model_name", help="official checkpoint name or Hub id")
    add_pair_options(group, ["image_size"])
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default %(default)s)")
    group.add_argument("--retrieval_model", help="retrieval weights; a pair of photos does not need them")


def _add_page(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--local_network", action="store_true", help="let other machines open the page")
    group.add_argument("--server_name", help="address to listen on (default 127.0.0.1)")
    group.add_argument("--server_port", type=int, help="port (default: the first free one from 7860)")
    group.add_argument("--share", action="store_true", help="make a public link through Gradio's servers")
    group.add_argument("--tmp_dir", type=Path, help="folder for temporary files")
    group.add_argument("--silent", action="store_true", help="say nothing but errors")
    group.add_argument(
        "--gradio_delete_cache", type=int, default=3600, metavar="SECONDS",
        help="remove a visitor's files after so long (default %(default)s)",
    )  # fmt: skip
