"""`mast3r match`: the same places in two or more photos."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mast3r.cli.inputs import INPUT_HELP, FrameChoice, add_frame_options, collect_photos
from mast3r.cli.options import add_model_options, load_model, make_parser, names_of, progress_bar, set_up, tell
from mast3r.pairs.options import add_pair_options, pair_config
from multiview.files import atomic_write

if TYPE_CHECKING:
    from mast3r.model import AsymmetricMASt3R
    from mast3r.scenes.stages import Progress
    from multiview.matches import Matches

_FORMS = (".npz", ".txt")
_FLAGS = ("max_matches", "subsample", "crop", "photometric", "closer_look")


def main(argv: Sequence[str], prog: str) -> int:
    """Run the command."""
    args = _parser(prog).parse_args(argv)
    set_up(args)
    base = args.out or Path("matches.npz")
    folder = args.frames_dir or base.with_name(f"{base.stem}_frames")
    photos = collect_photos(args.photos, FrameChoice(args.frames, args.fps), folder)
    _check(args, photos)

    from mast3r.loading import card_of

    model = load_model(args)
    card = card_of(model)
    with progress_bar(args) as show:
        found = _match_all(model, photos, args, show)
    rows = [_told(args, photos, pair, matches) for pair, matches in found.items()]
    files = [file for row in rows for file in row["files"]]
    total = sum(len(matches) for matches in found.values())
    pairs = "" if len(found) == 1 else f" in {len(found)} pairs of {len(photos)} photos"
    text = f"{total} matches{pairs}" + (f"; wrote {names_of(files)}" if files else "")
    tell(args, text, {"pairs": rows, "weights": {"name": card.name, "licence": card.licence}})
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = make_parser(
        prog,
        "Points of two photos that show the same place, in pixels of the photos; of more photos, for each pair.",
        [
            "a.jpg b.jpg --out matches.npz --picture matches.jpg",
            "a.jpg b.jpg --json --quiet | jq '.pairs[0].matches[0]'    # [x0, y0, x1, y1, confidence]",
            "a.jpg b.jpg --resolution fine --max_matches 5000",
            "photos/ --out matches/ --scene_graph swin-3-noncyclic",
        ],
    )
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help=INPUT_HELP)
    parser.add_argument("--out", type=Path, help="write .npz or .txt (x0 y0 x1 y1 confidence); pairs: a folder")
    parser.add_argument("--picture", type=Path, help="draw the matches into this file; pairs: a folder")
    parser.add_argument(
        "--resolution", choices=("coarse", "fine"), default="coarse",
        help="match as the network sees the photos, or go on to every pixel of the originals (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--mask_a", type=Path, help="picture of the first photo's size, black where it must not match")
    parser.add_argument("--mask_b", type=Path, help="the same for the second photo")
    parser.add_argument("--scene_graph", default="complete", help="pairs of more photos, see `mast3r scene --help`")
    add_pair_options(parser, _FLAGS)
    add_model_options(parser)
    add_frame_options(parser, count=2)
    return parser


def _check(args: argparse.Namespace, photos: Sequence[Path]) -> None:
    if len(photos) < 2:
        raise ValueError(f"at least two photos are needed, {len(photos)} were given.")
    if len(photos) > 2 and (args.mask_a or args.mask_b):
        raise ValueError("--mask_a and --mask_b go with two photos.")
    if args.out and (len(photos) == 2) != bool(args.out.suffix):
        form = f"end in {' or '.join(_FORMS)}" if len(photos) == 2 else "be a folder, for one file per pair"
        raise ValueError(f"--out must {form}, got {str(args.out)!r}.")
    if args.out and args.out.suffix and args.out.suffix.lower() not in _FORMS:
        raise ValueError(f"--out must end in {' or '.join(_FORMS)}, got {str(args.out)!r}.")


def _match_all(
    model: AsymmetricMASt3R, photos: Sequence[Path], args: argparse.Namespace, show: Progress
) -> dict[tuple[int, int], Matches]:
    """Matches of the chosen pairs; each photo is encoded once."""
    from mast3r.matching import match
    from mast3r.pairs.two_view import TokenCache
    from multiview.images import read_image

    config = pair_config(args, ["image_size", *_FLAGS])
    mask_a, mask_b = _mask(args.mask_a), _mask(args.mask_b)
    pairs, cache = _pairs(model, photos, args.scene_graph), TokenCache(model)
    found = {}
    for done, (i, j) in enumerate(pairs):
        show(done / len(pairs), "match")
        images = read_image(photos[i]), read_image(photos[j])
        found[i, j] = match(
            model, *images, resolution=args.resolution, mask_a=mask_a, mask_b=mask_b, config=config, cache=cache
        )
    return found


def _pairs(model: AsymmetricMASt3R, photos: Sequence[Path], scene_graph: str) -> tuple[tuple[int, int], ...]:
    if len(photos) == 2:
        return ((0, 1),)

    from mast3r.retrieval.pooled import image_similarity
    from mast3r.scenes.graph import plan_graph

    return plan_graph(len(photos), scene_graph, similarity=lambda: image_similarity(model, photos)).edges


def _mask(path: Path | None) -> np.ndarray | None:
    from multiview.images import read_image

    return None if path is None else read_image(path).pixels.max(axis=-1) > 0


def _told(args: argparse.Namespace, photos: Sequence[Path], pair: tuple[int, int], matches: Matches) -> dict[str, Any]:
    """Write the matches of one pair; what --json says of it."""
    alone = len(photos) == 2
    a, b = (photos[i] for i in pair)
    name = f"{a.stem}-{b.stem}"
    files = []
    if args.out:
        files.append(_write(matches, args.out if alone else args.out / f"{name}.npz"))
    if args.picture:
        files.append(_draw(matches, (a, b), args.picture if alone else args.picture / f"{name}.jpg"))
    told: dict[str, Any] = {"image0": str(a), "image1": str(b), "size0": matches.size0, "size1": matches.size1}
    told |= {"num_matches": len(matches), "files": [str(path) for path in files]}
    if not args.out:
        told["matches"] = np.round(_rows(matches), 3).tolist()
    return told


def _rows(matches: Matches) -> np.ndarray:
    """(N, 5) x0, y0, x1, y1, confidence."""
    return np.concatenate([matches.xy0, matches.xy1, matches.confidence[:, None]], axis=1).astype(np.float64)


def _write(matches: Matches, path: Path) -> Path:
    if path.suffix.lower() == ".npz":
        return matches.save(path)
    with atomic_write(path) as file:
        np.savetxt(file, _rows(matches), fmt="%.3f", header="x0 y0 x1 y1 confidence")
    return path


def _draw(matches: Matches, photos: tuple[Path, Path], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    matches.plot(*photos).save(path)
    return path
