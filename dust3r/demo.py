"""DUSt3R's page: photos in, one scene after global alignment out (`python -m dust3r.demo --model_name NAME`).

Gradio is imported when the page opens. What the page does is `align_photos` and `export_scene`.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from dust3r.cloud_opt import BasePCOptimizer, GlobalAlignerMode, global_aligner
from dust3r.image_pairs import make_pairs
from dust3r.inference import inference
from dust3r.model import AsymmetricCroCo3DStereo
from dust3r.utils.device import to_numpy
from dust3r.utils.image import load_images
from dust3r.utils.processes import resolve_device
from multiview.cameras import Camera
from multiview.export import CAMERA_COLORS, DrawnCamera, Surface, write_glb
from multiview.poses import Pose

__all__ = ["AlignOptions", "align_photos", "export_scene", "get_args_parser", "main_demo", "set_print_with_timestamp"]

_GRAPHS = ("complete", "swin-3", "logwin-3", "oneref-0")


@dataclass(frozen=True)
class AlignOptions:
    """How photos are aligned and shown.

    Attributes:
        scene_graph: Which pairs to look at, see `make_pairs`.
        schedule: Fall of the learning rate.
        niter: Steps of the alignment.
        lr: Learning rate at its beginning.
        min_conf_thr: Confidence, above 1, below which points are not shown.
        clean_depth: Lower the confidence of points in front of what other photos see.
        mask_sky: Leave out the sky.
        as_mesh: Show surfaces in place of points.
        camera_size: Length of the drawn cameras in scene units.
    """

    scene_graph: str = "complete"
    schedule: Literal["linear", "cosine"] = "linear"
    niter: int = 300
    lr: float = 0.01
    min_conf_thr: float = 3.0
    clean_depth: bool = True
    mask_sky: bool = False
    as_mesh: bool = False
    camera_size: float = 0.05


def get_args_parser() -> argparse.ArgumentParser:
    """The flags of DUSt3R's demo."""
    parser = argparse.ArgumentParser(description="A page that puts photos into one scene.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", help="file or folder of the weights")
    source.add_argument("--model_name", help="official checkpoint name or Hub id")
    parser.add_argument("--image_size", type=int, default=512, choices=[512, 224], help="long side of the input")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default %(default)s)")
    parser.add_argument("--local_network", action="store_true", help="let other machines open the page")
    parser.add_argument("--server_name", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--server_port", type=int, help="port (default: the first free one from 7860)")
    parser.add_argument("--tmp_dir", type=Path, help="folder for temporary files")
    parser.add_argument("--silent", action="store_true", help="say nothing but errors")
    return parser


def set_print_with_timestamp(time_format: str = "%Y-%m-%d %H:%M:%S") -> None:
    """Put the time before every message. The library speaks through `logging`; `print` is left alone.

    Args:
        time_format: As in `time.strftime`.
    """
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt=time_format, level=logging.INFO, force=True)


def align_photos(
    model: AsymmetricCroCo3DStereo,
    photos: Sequence[str | Path],
    device: str | torch.device,
    image_size: int = 512,
    *,
    options: AlignOptions | None = None,
    silent: bool = True,
) -> BasePCOptimizer:
    """Load, pair, infer and align photos.

    Args:
        model: A DUSt3R or MASt3R network.
        photos: Files; a single one is compared with itself.
        device: Where to compute.
        image_size: Long side of the input, see `load_images`.
        options: How to align.
        silent: Show no progress.

    Returns:
        The aligned scene.

    Raises:
        ValueError: If there is no photo or one cannot be read.
    """
    if not photos:
        raise ValueError("There is no photo; choose at least one.")
    options = options or AlignOptions()
    files = [str(path) for path in photos] * (2 if len(photos) == 1 else 1)
    images = load_images(files, size=image_size, verbose=not silent)
    pairs = make_pairs(images, scene_graph=options.scene_graph, prefilter=None, symmetrize=True)
    output = inference(pairs, model, device, batch_size=1, verbose=not silent)
    mode = GlobalAlignerMode.PointCloudOptimizer if len(images) > 2 else GlobalAlignerMode.PairViewer
    scene = global_aligner(output, device=device, mode=mode, verbose=not silent, min_conf_thr=options.min_conf_thr)
    if mode is GlobalAlignerMode.PointCloudOptimizer:
        scene.compute_global_alignment(init="mst", niter=options.niter, schedule=options.schedule, lr=options.lr)
    return scene


def export_scene(scene: BasePCOptimizer, path: str | Path, *, options: AlignOptions | None = None) -> Path:
    """Write an aligned scene as .glb.

    Args:
        scene: What `align_photos` returned.
        path: The file.
        options: What to show.

    Raises:
        ValueError: If no point is confident enough, or the scene has no images.
    """
    options = options or AlignOptions()
    if scene.imgs is None:
        raise ValueError("The scene has no images to colour its points with.")
    shown: Any = scene.clean_pointcloud() if options.clean_depth else scene
    shown = shown.mask_sky() if options.mask_sky else shown
    masks = [to_numpy(conf.detach() > options.min_conf_thr) for conf in shown.im_conf]
    poses = [Pose(pose) for pose in to_numpy(scene.get_im_poses().detach().double())]
    intrinsics = to_numpy(scene.get_intrinsics().detach().double())
    surfaces, cameras = [], []
    parts = zip(scene.imgs, to_numpy([p.detach() for p in scene.get_pts3d()]), masks)
    for i, (image, points, mask) in enumerate(parts):
        colors = np.rint(np.asarray(image) * 255).astype(np.uint8)
        surfaces.append(Surface(points, colors, mask, poses[i].center))
        camera = Camera(intrinsics[i], image.shape[1], image.shape[0])
        cameras.append(DrawnCamera(camera, poses[i], CAMERA_COLORS[i % len(CAMERA_COLORS)]))
    return write_glb(path, surfaces, cameras, as_mesh=options.as_mesh, camera_size=options.camera_size)


def main_demo(
    tmp_dir: str | Path | None,
    model: AsymmetricCroCo3DStereo,
    device: str | torch.device,
    image_size: int,
    server_name: str | None,
    server_port: int | None,
    silent: bool = False,
) -> None:
    """Open the page for a loaded model; returns when the page is closed.

    Args:
        tmp_dir: Folder for the scenes; None takes a temporary one.
        model: A DUSt3R or MASt3R network.
        device: Where to compute.
        image_size: Long side of the input.
        server_name: Address to listen on; None is this machine only.
        server_port: Port; None takes the first free one from 7860.
        silent: Say nothing but errors.

    Raises:
        ImportError: If Gradio is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="dust3r-page-", dir=tmp_dir) as folder:
        page = build_page(model.to(device), device, image_size, Path(folder), silent=silent)
        page.launch(
            server_name=server_name or "127.0.0.1", server_port=server_port, quiet=silent, allowed_paths=[folder]
        )


def build_page(
    model: AsymmetricCroCo3DStereo, device: str | torch.device, image_size: int, folder: Path, *, silent: bool = False
) -> Any:
    """The page as a `gradio.Blocks`, not yet served.

    Args:
        model: A DUSt3R or MASt3R network on its device.
        device: That device.
        image_size: Long side of the input.
        folder: Existing folder for the scenes.
        silent: Show no progress on the terminal.
    """
    gr = _require_gradio()
    run = _Run(model, device, image_size, folder, silent, gr.Error)
    defaults = AlignOptions()
    with gr.Blocks(title="DUSt3R", analytics_enabled=False) as page:
        files = gr.File(file_count="multiple", file_types=["image"], label="Photos")
        with gr.Row():
            graph = gr.Dropdown(list(_GRAPHS), value=defaults.scene_graph, label="Pairs", allow_custom_value=True)
            niter = gr.Number(defaults.niter, label="Steps", precision=0, minimum=0, maximum=5000)
            confidence = gr.Slider(1.0, 20.0, defaults.min_conf_thr, label="Least confidence")
            size = gr.Slider(0.001, 0.5, defaults.camera_size, label="Camera size")
        with gr.Row():
            mesh = gr.Checkbox(defaults.as_mesh, label="Surfaces")
            clean = gr.Checkbox(defaults.clean_depth, label="Clean")
            sky = gr.Checkbox(defaults.mask_sky, label="No sky")
        button = gr.Button("Run")
        scene = gr.Model3D(label="Scene")
        button.click(run, [files, graph, niter, confidence, mesh, clean, sky, size], scene)
    return page


@dataclass(frozen=True, eq=False)
class _Run:
    """What the page's button does."""

    model: AsymmetricCroCo3DStereo
    device: str | torch.device
    image_size: int
    folder: Path
    silent: bool
    error: Callable[..., Exception]

    def __call__(
        self,
        files: list[str] | None,
        scene_graph: str,
        niter: float,
        min_conf_thr: float,
        as_mesh: bool,
        clean_depth: bool,
        mask_sky: bool,
        camera_size: float,
    ) -> str:
        options = AlignOptions(
            scene_graph=scene_graph,
            niter=int(niter),
            min_conf_thr=min_conf_thr,
            as_mesh=as_mesh,
            clean_depth=clean_depth,
            mask_sky=mask_sky,
            camera_size=camera_size,
        )
        try:
            scene = align_photos(
                self.model, files or [], self.device, self.image_size, options=options, silent=self.silent
            )
            return str(export_scene(scene, self.folder / f"{uuid.uuid4().hex}.glb", options=options))
        except ValueError as error:
            raise self.error(str(error), print_exception=False) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the flags, load the model, open the page; returns the exit code."""
    args = get_args_parser().parse_args(argv)
    try:
        device = resolve_device(args.device)
        model = AsymmetricCroCo3DStereo.from_pretrained(args.weights or args.model_name, device=device)
        name = args.server_name or ("0.0.0.0" if args.local_network else "127.0.0.1")
        main_demo(args.tmp_dir, model, device, args.image_size, name, args.server_port, silent=args.silent)
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"dust3r.demo: {error}\n")
        return 1
    return 0


def _require_gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise ImportError("The page needs Gradio 6: pip install 'mast3r[demo]'.") from error
    return gradio


if __name__ == "__main__":
    sys.exit(main())
