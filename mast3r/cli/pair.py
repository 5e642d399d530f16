"""`mast3r pair`: two photos in one frame."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mast3r.cli.inputs import INPUT_HELP, FrameChoice, add_frame_options, collect_photos
from mast3r.cli.options import (
    add_model_options,
    load_model,
    make_parser,
    names_of,
    progress_bar,
    set_up,
    tell,
)
from mast3r.pairs.options import add_pair_options, pair_config

if TYPE_CHECKING:
    from multiview.results import PairResult

_FORMS = (".glb", ".ply", ".npz", ".json")
_FLAGS = ("max_matches", "subsample", "crop", "photometric", "closer_look", "refine", "seed")


def main(argv: Sequence[str], prog: str) -> int:
    """Run the command."""
    args = _parser(prog).parse_args(argv)
    set_up(args)
    outputs = [_checked(path) for path in args.out or [Path("scene.glb")]]
    photos = two_photos(args, outputs[0])
    intrinsics = [intrinsics_of(text) for text in (args.K0, args.K1)]

    from mast3r.demo.text import summary_json, summary_line
    from mast3r.loading import card_of
    from mast3r.predictor import predict_pair
    from multiview.images import read_image

    images = [read_image(path) for path in photos]
    model = load_model(args)
    config = pair_config(args, ["image_size", *_FLAGS])
    with progress_bar(args) as show:
        result = predict_pair(model, *images, K0=intrinsics[0], K1=intrinsics[1], config=config, on_step=show)
    files = [*(_write(result, path, args) for path in outputs)]
    if args.picture:
        files.append(_picture(result, args.picture))
    text = f"{summary_line(result)}; wrote {names_of(files)}"
    tell(args, text, {**summary_json(result, card_of(model)), "files": [str(path) for path in files]})
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = make_parser(
        prog,
        "3D points, matches and cameras of two photos, in the frame of the first one.",
        ["a.jpg b.jpg --out scene.glb", "a.jpg b.jpg --out scene.npz --out points.ply --picture all.png --json"],
    )
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help=f"two {INPUT_HELP}")
    parser.add_argument(
        "--out", type=Path, action="append", metavar="FILE",
        help=f"write {', '.join(_FORMS)} or a COLMAP folder; may be repeated (default scene.glb)",
    )  # fmt: skip
    parser.add_argument("--picture", type=Path, help="write a picture of matches, depth and confidence")
    parser.add_argument("--mesh", action="store_true", help="write a surface to the .glb in place of points")
    add_drop_option(parser)
    add_pair_options(parser, _FLAGS)
    parser.add_argument("--K0", metavar="FX,FY,CX,CY", help="known intrinsics of the first photo, in its pixels")
    parser.add_argument("--K1", metavar="FX,FY,CX,CY", help="the same of the second")
    add_model_options(parser)
    add_frame_options(parser, count=2)
    return parser


def add_drop_option(parser: argparse.ArgumentParser) -> None:
    """How many points exports leave out."""
    parser.add_argument(
        "--drop", type=float, default=20.0, metavar="PERCENT",
        help="leave out this share of the points, least confident first (default %(default)g)",
    )  # fmt: skip


def two_photos(args: argparse.Namespace, out: Path) -> list[Path]:
    """The two photos that were given.

    Raises:
        ValueError: If they are not two.
    """
    folder = args.frames_dir or out.with_name(f"{out.stem}_frames")
    photos = collect_photos(args.photos, FrameChoice(args.frames, args.fps), folder)
    if len(photos) != 2:
        raise ValueError(f"two photos are needed, {len(photos)} were given; `mast3r scene` takes more.")
    return photos


def intrinsics_of(text: str | None) -> np.ndarray | None:
    """(3, 3) intrinsics from "FX,FY,CX,CY".

    Raises:
        ValueError: If the text is anything else.
    """
    if text is None:
        return None
    try:
        fx, fy, cx, cy = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"intrinsics are four numbers FX,FY,CX,CY in pixels, got {text!r}.") from None
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def _checked(path: Path) -> Path:
    if path.suffix and path.suffix.lower() not in _FORMS:
        raise ValueError(f"--out must end in {', '.join(_FORMS)}, or be a folder, got {str(path)!r}.")
    return path


def _write(result: PairResult, path: Path, args: argparse.Namespace) -> Path:
    if not path.suffix:
        return result.to_colmap(path)
    options: dict[str, Any] = {"confidence_percentile": args.drop, "as_mesh": args.mesh}
    return result.save(path, **options)


def _picture(result: PairResult, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    result.plot().save(path)
    return path
