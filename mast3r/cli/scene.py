"""`mast3r scene`: many photos, or a video, in one frame."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mast3r.cli.inputs import INPUT_HELP, FrameChoice, add_frame_options, collect_photos, has_video
from mast3r.cli.options import add_model_options, load_model, make_parser, names_of, progress_bar, set_up, tell
from mast3r.cli.pair import add_drop_option, intrinsics_of
from mast3r.pairs.options import add_pair_options

if TYPE_CHECKING:
    from mast3r.model import AsymmetricMASt3R
    from multiview.reconstruction import Reconstruction

logger = logging.getLogger(__name__)

_FORMS = (".glb", ".ply", ".npz", ".json", ".tum")
_VIDEO_FRAMES = 40
_UNITS = {"metric-predicted": "metres as predicted", "metric-given": "metres as given", "arbitrary": "arbitrary"}
_GRAPHS = "auto, complete, swin-W, logwin-W, oneref-K (W and K numbers; -noncyclic may follow), retrieval-NA-K"


def main(argv: Sequence[str], prog: str) -> int:
    """Run the command."""
    args = _parser(prog).parse_args(argv)
    set_up(args)
    outputs = [_checked(path) for path in args.out or [Path("scene.glb")]]
    folder = args.frames_dir or outputs[0].with_name(f"{outputs[0].stem}_frames")
    photos = collect_photos(args.photos, FrameChoice(args.frames, args.fps), folder)
    if len(photos) < 2:
        raise ValueError(f"at least two photos are needed, {len(photos)} were given.")

    from mast3r.loading import card_of

    model = load_model(args)
    scene = _reconstruct(model, photos, args)
    files = [_write(scene, path, args) for path in outputs]
    card = card_of(model)
    data = {**scene.summary(), "weights": {"name": card.name, "licence": card.licence}}
    tell(args, _told(scene, files), {**data, "files": [str(path) for path in files]})
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = make_parser(
        prog,
        "Cameras and 3D points of many photos or of a video.",
        [
            "photos/ --out scene.glb",
            "clip.mp4 --fps 2 --out scene.glb --out colmap/ --out transforms.json    # needs PyAV: mast3r[video]",
            "'hall/*.jpg' --intrinsics 1200,1200,960,540 --cache_dir cache/ --out scene.npz",
        ],
    )
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help=INPUT_HELP)
    parser.add_argument(
        "--out", type=Path, action="append", metavar="FILE",
        help=f"write {', '.join(_FORMS)}, transforms.json (nerfstudio) or a folder (COLMAP, needs pycolmap); "
        "may be repeated (default scene.glb)",
    )  # fmt: skip
    parser.add_argument("--scene_graph", default="auto", help=f"which pairs to look at: {_GRAPHS} (default auto)")
    parser.add_argument(
        "--alignment", choices=("sparse", "dense", "colmap"), default="sparse",
        help="MASt3R-SfM, DUSt3R's alignment of pointmaps, or COLMAP on the matches (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--adjust", action=argparse.BooleanOptionalAction, default=True,
        help="in the end adjust cameras and tracks to each other (bundle adjustment, needs pycolmap)",
    )  # fmt: skip
    parser.add_argument("--ordered", action="store_true", help="the photos are a sequence, as frames of a video are")
    parser.add_argument("--intrinsics", metavar="FX,FY,CX,CY", help="known intrinsics of all photos, in their pixels")
    parser.add_argument("--shared_intrinsics", action="store_true", help="one unknown camera took all photos")
    parser.add_argument(
        "--cache_dir", "--tmp_dir", type=Path, help="keep what was computed here: a broken-off run goes on from it"
    )
    parser.add_argument("--max_memory", type=float, metavar="GB", help="memory to stay within, beyond the weights")
    parser.add_argument("--retrieval_model", help="official retrieval weights: which photos look alike")
    parser.add_argument("--mesh", action="store_true", help="write surfaces to the .glb in place of points")
    parser.add_argument(
        "--level", action=argparse.BooleanOptionalAction, default=True, help="turn the scene so that y is vertical"
    )
    add_pair_options(parser, ["closer_look"])
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    add_drop_option(parser)
    add_model_options(parser)
    add_frame_options(parser, count=_VIDEO_FRAMES)
    return parser


def _reconstruct(model: AsymmetricMASt3R, photos: Sequence[Path], args: argparse.Namespace) -> Reconstruction:
    from mast3r.cloud_opt.config import SparseConfig
    from mast3r.scenes.reconstruction import ReconstructConfig, reconstruct
    from multiview.views import ViewConstraints, fixed

    config = ReconstructConfig(
        image_size=args.image_size,
        ordered=args.ordered or has_video(args.photos),
        alignment=args.alignment,
        adjust=args.adjust,
        sparse=SparseConfig(shared_intrinsics=True) if args.shared_intrinsics else None,
        closer_look=bool(args.closer_look),
        seed=args.seed,
    )
    K = intrinsics_of(args.intrinsics)
    known = None if K is None else [ViewConstraints(K=fixed(K))] * len(photos)
    options: dict[str, Any] = {"scene_graph": args.scene_graph, "views": known, "config": config}
    if args.retrieval_model:
        options["scene_graph"] = _retrieved_pairs(model, photos, args)
    if args.max_memory is not None:
        options["max_memory"] = int(args.max_memory * 1e9)
    with progress_bar(args) as show:
        scene = reconstruct(model, photos, cache_dir=args.cache_dir, progress=show, **options)
    if not scene.registered:
        reasons = "; ".join(f"{image.name}: {image.reason}" for image in scene.images[:3])
        raise ValueError(f"no photo could be placed ({reasons}).")
    return scene.align() if args.level else scene


def _retrieved_pairs(
    model: AsymmetricMASt3R, photos: Sequence[Path], args: argparse.Namespace
) -> tuple[tuple[int, int], ...]:
    """Pairs chosen by the official retrieval network."""
    from mast3r.retrieval.processor import Retriever
    from mast3r.scenes.graph import plan_graph

    similarity = Retriever(args.retrieval_model, backbone=model)(photos)
    return plan_graph(len(photos), args.scene_graph, similarity=similarity).edges


def _checked(path: Path) -> Path:
    if path.suffix and path.suffix.lower() not in _FORMS:
        raise ValueError(f"--out must end in {', '.join(_FORMS)}, or be a folder, got {str(path)!r}.")
    return path


def _write(scene: Reconstruction, path: Path, args: argparse.Namespace) -> Path:
    component = _largest(scene)
    return scene.save(path, confidence_percentile=args.drop, as_mesh=args.mesh, component=component)


def _largest(scene: Reconstruction) -> int:
    """The component of most images."""
    numbers = [scene.images[i].component for i in scene.registered]
    return max(sorted(set(numbers)), key=numbers.count)


def _told(scene: Reconstruction, files: Sequence[Path]) -> str:
    """The result in a few lines: one for all, one for each photo that failed."""
    failed = [f"  {image.name}: {image.reason}" for image in scene.images if not image.registered]
    parts = len(scene.components)
    apart = f" in {parts} parts that could not be connected; the largest was written" if parts > 1 else ""
    head = (
        f"{len(scene.registered)} of {len(scene)} photos placed{apart}, {len(scene.tracks)} tracked points, "
        f"unit: {_UNITS[scene.scale_status]}, {sum(scene.timings.values()):.1f} s; wrote {names_of(files)}"
    )
    return "\n".join([head, *failed])
