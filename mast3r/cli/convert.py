"""`mast3r convert`: weights to safetensors with a card; results to other file forms."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mast3r.cli.options import make_parser, names_of, set_up, tell
from mast3r.cli.pair import add_drop_option
from multiview.files import atomic_write

if TYPE_CHECKING:
    from torch import nn

    from multiview.reconstruction import Reconstruction
    from multiview.results import PairResult

_DTYPES = ("float32", "float16", "bfloat16")
_COLMAP_FILES = ("cameras.bin", "cameras.txt")
PAIR_FORMS = (".glb", ".ply", ".npz", ".json")
"""Forms of a pair; others hold scenes."""


def main(argv: Sequence[str], prog: str) -> int:
    """Run the command."""
    args = _parser(prog).parse_args(argv)
    set_up(args)
    source = Path(args.source).expanduser()
    is_result = source.suffix == ".npz" or any((source / name).is_file() for name in _COLMAP_FILES)
    data = convert_result(source, args) if is_result else convert_weights(args)
    tell(args, f"{data['what']}; wrote {names_of(data['files'])}", data)
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = make_parser(
        prog,
        "Weights (official .pth, Hub folder or id) to one .safetensors file with its card; results (.npz, COLMAP "
        "folder) to .glb, .ply, .npz, .tum, COLMAP or nerfstudio.",
        [
            "MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric.pth mast3r.safetensors --half",
            "scene.npz scene.glb colmap/ transforms.json",
            "colmap/ scene.npz",
        ],
    )
    parser.add_argument("source", help="weights or a result")
    parser.add_argument("out", nargs="+", type=Path, help="what to write; the ending chooses the form")
    weights = parser.add_argument_group("weights")
    weights.add_argument("--dtype", choices=_DTYPES, default="float32", help="how to store them (default %(default)s)")
    weights.add_argument("--half", action="store_const", const="float16", dest="dtype", help="short for float16")
    weights.add_argument("--licence", help="licence for the card, where it is not known already")
    results = parser.add_argument_group("results")
    results.add_argument("--mesh", action="store_true", help="write surfaces to the .glb in place of points")
    results.add_argument("--component", type=int, default=0, help="which part of a scene (default %(default)s)")
    add_drop_option(parser)
    return parser


# --- weights ---


def convert_weights(args: argparse.Namespace) -> dict[str, Any]:
    """Weights as our safetensors, and a card beside them.

    Raises:
        CheckpointError: If the source cannot be read.
        ValueError: If more or something else than one .safetensors file is wanted.
    """
    import torch

    from croco.checkpoint import LoadOptions, find_checkpoint, read_checkpoint, save_safetensors

    [target, *more] = args.out
    if more or target.suffix != ".safetensors":
        raise ValueError(f"weights are converted to one .safetensors file, got {names_of(args.out)}.")
    path = find_checkpoint(args.source, LoadOptions())
    model = _class_of(read_checkpoint(path).architecture, args.source).from_pretrained(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_safetensors(model, target, dtype=getattr(torch, args.dtype))
    card = _card(model, args, target)
    with atomic_write(target.with_suffix(".json")) as file:
        file.write(json.dumps(card, indent=2).encode())
    size = f"{card['parameters'] / 1e6:.1f} M weights as {args.dtype}"
    what = f"{card['architecture']}, {size}, licence: {card['licence']}"
    return {"what": what, "card": card, "files": [str(target), str(target.with_suffix(".json"))]}


def _class_of(architecture: str | None, source: str) -> Any:
    from croco.models.croco import CroCoNet
    from dust3r.model import AsymmetricCroCo3DStereo
    from mast3r.model import AsymmetricMASt3R

    classes = {cls.architecture: cls for cls in (AsymmetricMASt3R, AsymmetricCroCo3DStereo, CroCoNet)}
    if architecture not in classes:
        raise ValueError(f"{source} holds a network of class {architecture!r}; known are {', '.join(classes)}.")
    return classes[architecture]


def _card(model: nn.Module, args: argparse.Namespace, target: Path) -> dict[str, Any]:
    """What is known of the weights; the licence of the source goes with them."""
    from dust3r.training import model_expression
    from mast3r.loading import read_card

    known = read_card(args.source)
    licence = known.licence if known.licence != "unknown" else args.licence or known.licence
    return {
        "name": target.stem,
        "licence": licence,
        "scale_status": known.scale_status,
        "architecture": getattr(model, "architecture", type(model).__name__),
        "model": model_expression(model),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": args.dtype,
        "converted_from": known.name,
    }


# --- results ---


def convert_result(source: Path, args: argparse.Namespace) -> dict[str, Any]:
    """A pair or a scene in other file forms.

    Raises:
        ValueError: If the source is no result, or a form cannot hold it.
    """
    result = read_result(source)
    files = [_write(result, path, args) for path in args.out]
    return {"what": repr(result), "summary": result.summary(), "files": [str(path) for path in files]}


def read_result(source: Path) -> PairResult | Reconstruction:
    """The pair or scene of a .npz file, or the scene of a COLMAP folder.

    Raises:
        ValueError: If it is neither.
    """
    from multiview.files import read_npz
    from multiview.reconstruction import Reconstruction
    from multiview.results import PairResult

    if source.is_dir():
        return Reconstruction.from_colmap(source)
    try:
        form = json.loads(str(read_npz(source)["summary"]))["format"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{source} is no result of `mast3r pair` or `mast3r scene`.") from error
    return PairResult.load(source) if "PairResult" in form else Reconstruction.load(source)


def _write(result: PairResult | Reconstruction, path: Path, args: argparse.Namespace) -> Path:
    from multiview.results import PairResult

    options: dict[str, Any] = {"confidence_percentile": args.drop, "as_mesh": args.mesh}
    if isinstance(result, PairResult):
        if path.suffix.lower() in PAIR_FORMS and path.name != "transforms.json":
            return result.save(path, **options)
        result = result.to_reconstruction()
    return result.save(path, component=args.component, **options)
