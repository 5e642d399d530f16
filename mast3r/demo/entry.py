"""Choose between the command line and the page."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from dust3r.utils.processes import resolve_device
from mast3r.demo.arguments import PAIR_FLAGS, get_args_parser
from mast3r.demo.headless import run_headless
from mast3r.demo.text import summary_line
from mast3r.loading import load
from mast3r.model import AsymmetricMASt3R
from mast3r.pairs.options import pair_config
from mast3r.predictor import PairConfig

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo.

    Args:
        argv: Arguments; default those of the process.

    Returns:
        Exit code: 0, or 1 after an error that was told in one sentence on stderr.
    """
    parser = get_args_parser()
    args = parser.parse_args(argv)
    if len(args.photos) not in (0, 2):
        parser.error(f"give two photos, or none to open the page; got {len(args.photos)}")
    _set_up_logging(silent=args.silent)
    try:
        (_run_photos if args.photos else _run_page)(args)
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"demo.py: {error}\n")
        return 1
    return 0


def main_demo(
    tmp_dir: str | Path | None,
    model: nn.Module,
    retrieval_model: str | None,
    device: str | torch.device,
    image_size: int | None,
    server_name: str | None,
    server_port: int | None,
    silent: bool = False,
    share: bool = False,
    gradio_delete_cache: int | bool = False,
) -> None:
    """Open the page for a model that is already loaded; returns when the page is closed.

    Args:
        tmp_dir: Folder for temporary files.
        model: A MASt3R model.
        retrieval_model: Not needed for pairs of photos.
        device: Where to compute.
        image_size: Input size of the model; None takes the one it was trained at.
        server_name: Address to listen on; None is this machine only.
        server_port: Port; None takes the first free one from 7860.
        silent: Say nothing but errors.
        share: Make a public link through Gradio's servers.
        gradio_delete_cache: Seconds after which a visitor's files are removed; False for an hour.
    """
    try:
        from mast3r.demo.options import PageOptions
        from mast3r.demo.serve import serve_page
        from mast3r.demo.shelf import ModelShelf, models_here
    except ImportError as error:
        if error.name is None or error.name.split(".")[0] not in ("gradio", "starlette"):
            raise
        raise ImportError("the page needs Gradio 6: pip install 'mast3r[demo]'.") from error

    del retrieval_model
    if not isinstance(model, AsymmetricMASt3R):
        raise ValueError(f"The demo needs an AsymmetricMASt3R, got {type(model).__name__}.")
    options = PageOptions(
        config=PairConfig(image_size=image_size),
        tmp_dir=None if tmp_dir is None else Path(tmp_dir),
        server_name=server_name or "127.0.0.1",
        server_port=server_port,
        share=share,
        silent=silent,
        keep_seconds=int(gradio_delete_cache) or 3600,
    )
    serve_page(ModelShelf(model.to(device), models_here(device)), options)


def _run_photos(args: argparse.Namespace) -> None:
    config = pair_config(args, ["image_size", *PAIR_FLAGS])
    written = run_headless(
        lambda: _load(args), args.photos[0], args.photos[1], args.out,
        config=config, drop_percent=args.drop, as_mesh=args.mesh,
    )  # fmt: skip
    names = ", ".join(str(path) for path in written.files)
    sys.stdout.write(f"{summary_line(written.result)}; wrote {names}\n")


def _run_page(args: argparse.Namespace) -> None:
    if args.retrieval_model:
        logger.warning("--retrieval_model is not used: the page chooses pairs of photos without it")
    _import_pycolmap()
    signal.signal(signal.SIGTERM, _stop)
    main_demo(
        args.tmp_dir,
        _load(args),
        args.retrieval_model,
        _device(args.device),
        args.image_size,
        args.server_name or ("0.0.0.0" if args.local_network else "127.0.0.1"),
        args.server_port,
        silent=args.silent,
        share=args.share,
        gradio_delete_cache=args.gradio_delete_cache,
    )


def _load(args: argparse.Namespace) -> AsymmetricMASt3R:
    return load(args.model_name or args.weights, device=_device(args.device))


def _device(name: str) -> torch.device:
    """The device, after a try: what is missing shows only when it is used."""
    try:
        device = resolve_device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the device {name!r} cannot be used here ({reason}); try --device auto.") from error
    return device


def _import_pycolmap() -> None:
    """Import it before the page's own signal handler is set: it sets one that ends the program on the spot."""
    with contextlib.suppress(ImportError):
        importlib.import_module("pycolmap")


def _stop(*_: object) -> None:
    """On SIGTERM leave as on Ctrl-C, so that temporary files go."""
    raise SystemExit(0)


def _set_up_logging(*, silent: bool) -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for name in ("mast3r", "dust3r", "multiview"):
        logging.getLogger(name).setLevel(logging.ERROR if silent else logging.INFO)
