"""DUSt3R's page without a browser: what its button does, and its official names."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from dust3r.demo import (
    AlignOptions,
    align_photos,
    build_page,
    export_scene,
    get_args_parser,
    main,
    set_print_with_timestamp,
)
from dust3r.model import AsymmetricCroCo3DStereo

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model() -> AsymmetricCroCo3DStereo:
    torch.manual_seed(0)
    sizes = {"enc_embed_dim": 32, "enc_depth": 1, "enc_num_heads": 2}
    sizes |= {"dec_embed_dim": 32, "dec_depth": 2, "dec_num_heads": 2}
    network = AsymmetricCroCo3DStereo(pos_embed="RoPE100", img_size=(64, 64), landscape_only=False, **sizes)
    return network.eval()


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(3):
        small = PIL.Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        small.resize((96, 72), PIL.Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_photos_become_a_scene_file(model, photos, tmp_path, count):
    options = AlignOptions(niter=3, min_conf_thr=1.0, camera_size=0.1, as_mesh=count == 2, mask_sky=count == 1)
    scene = align_photos(model, photos[:count], "cpu", 64, options=options)
    assert len(scene.imgs) == max(count, 2)
    path = export_scene(scene, tmp_path / "scene.glb", options=options)
    assert path.read_bytes()[:4] == b"glTF"


def test_nothing_to_show_is_told(model, photos):
    with pytest.raises(ValueError, match="no photo"):
        align_photos(model, [], "cpu")
    scene = align_photos(model, photos[:2], "cpu", 64)
    with pytest.raises(ValueError, match="no point"):
        export_scene(scene, "never.glb", options=AlignOptions(min_conf_thr=1e9))


def test_page_runs_a_scene(model, photos, tmp_path):
    gradio = pytest.importorskip("gradio")
    page = build_page(model, "cpu", 64, tmp_path, silent=True)
    [button] = [fn for fn in page.fns.values() if fn.fn is not None]
    inputs = [[str(path) for path in photos[:2]], "complete", 1, 1.0, False, True, False, 0.1]
    assert Path(button.fn(*inputs)).is_file()
    with pytest.raises(gradio.Error, match="no photo"):
        button.fn(None, *inputs[1:])


def test_official_flags(tmp_path, capsys):
    args = get_args_parser().parse_args(["--model_name", "x", "--image_size", "224", "--server_port", "1", "--silent"])
    assert (args.image_size, args.server_port, args.silent, args.local_network) == (224, 1, True, False)
    with pytest.raises(SystemExit):
        get_args_parser().parse_args([])
    assert main(["--weights", str(tmp_path / "none.pth")]) == 1
    assert "none.pth" in capsys.readouterr().err


def test_importing_needs_no_gradio_and_print_stays():
    code = "import sys, dust3r.demo as d; d.set_print_with_timestamp(); print('gradio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "False\n"


def test_messages_carry_the_time(capsys):
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        set_print_with_timestamp("%Y")
        logging.getLogger("dust3r.x").info("hello")
        assert capsys.readouterr().err.split()[1:] == ["hello"]
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
