"""The demo on the command line; the page has test_page.py and test_page_chromium.py."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from dust3r.checkpoint import save_safetensors
from mast3r.demo import get_args_parser, main, main_demo
from mast3r.demo import headless as headless_module
from mast3r.demo.headless import run_headless
from mast3r.demo.text import model_words, pair_facts, summary_line
from mast3r.loading import WeightsCard
from mast3r.model import AsymmetricMASt3R
from mast3r.predictor import predict_pair
from mast3r.training import PRESETS
from multiview.results import PairResult

ROOT = Path(__file__).parents[2]
FILES = ("scene.glb", "scene.json", "scene_depth.png", "scene_matches.png")


@pytest.fixture(scope="module")
def model() -> AsymmetricMASt3R:
    torch.manual_seed(0)
    return AsymmetricMASt3R(**PRESETS["tiny"].model).eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    """A folder with weights and two photos of odd sizes."""
    path = tmp_path_factory.mktemp("demo")
    save_safetensors(model, path / "tiny.safetensors")
    rng = np.random.default_rng(0)
    for name, shape in (("a.jpg", (75, 101, 3)), ("b.png", (120, 83, 4))):
        PIL.Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path / name)
    return path


@pytest.fixture(autouse=True)
def _log_levels_as_before():
    names = ("mast3r", "dust3r", "multiview")
    levels = [logging.getLogger(name).level for name in names]
    yield
    for name, level in zip(names, levels):
        logging.getLogger(name).setLevel(level)


def arguments(folder: Path, out: Path, *more: str) -> list[str]:
    photos = [str(folder / "a.jpg"), str(folder / "b.png")]
    return [
        *photos,
        "--weights",
        str(folder / "tiny.safetensors"),
        "--device",
        "cpu",
        "--out",
        str(out),
        *more,
    ]


# --- command line ---


def test_two_photos_to_files(folder, tmp_path, capsys):
    out = tmp_path / "new" / "scene.glb"
    assert main(arguments(folder, out, "--silent")) == 0
    assert sorted(path.name for path in out.parent.iterdir()) == sorted(FILES)
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "matches" in said
    assert str(out) in said
    summary = json.loads((out.parent / "scene.json").read_text())
    assert len(summary["focal_px"]) == 2
    assert summary["weights"] == {"name": "tiny", "licence": "unknown"}
    assert {"num_matches", "pose1_world_from_cam", "scale_status", "timings"} <= set(summary)
    assert summary["views"][0]["size"] == [101, 75]
    assert out.read_bytes()[:4] == b"glTF"
    with PIL.Image.open(out.parent / "scene_matches.png") as picture:
        assert picture.height == 640
    with PIL.Image.open(out.parent / "scene_depth.png") as picture:
        assert picture.width > picture.height / 2


@pytest.mark.parametrize("suffix", [".ply", ".npz"])
def test_other_forms(folder, tmp_path, suffix, model):
    written = run_headless(lambda: model, folder / "a.jpg", folder / "b.png", tmp_path / f"x{suffix}")
    assert [path.name for path in written.files] == [f"x{suffix}", "x_matches.png", "x_depth.png", "x.json"]
    if suffix == ".npz":
        assert len(PairResult.load(written.files[0]).matches) == len(written.result.matches)


def test_files_are_replaced_together(folder, tmp_path, model, monkeypatch):
    out = tmp_path / "scene.glb"
    run_headless(lambda: model, folder / "a.jpg", folder / "b.png", out)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(headless_module, "maps_picture", fail)
    with pytest.raises(OSError, match="no space"):
        run_headless(lambda: model, folder / "b.png", folder / "a.jpg", out)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({0: "missing.jpg"}, "missing.jpg"),
        ({3: "missing.safetensors"}, "no weights"),
        ({7: "scene.obj"}, ".glb, .ply, .npz"),
        ({5: "abacus"}, "abacus"),
    ],
)
def test_errors_are_one_sentence_and_leave_nothing(folder, tmp_path, capsys, change, words):
    argv = arguments(folder, tmp_path / "scene.glb", "--silent")
    for position, value in change.items():
        argv[position] = str(tmp_path / value) if "." in value else value
    assert main(argv) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
    assert said.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_wrong_numbers_of_photos_are_refused(folder):
    with pytest.raises(SystemExit) as stop:
        main([str(folder / "a.jpg")])
    assert stop.value.code == 2


def test_official_flags_are_accepted():
    flags = (
        "--model_name X --image_size 224 --device cuda --local_network --server_name h --server_port 1 "
        "--tmp_dir t --silent --share --gradio_delete_cache 9 --retrieval_model r"
    )
    args = get_args_parser().parse_args(flags.split())
    assert (args.model_name, args.image_size, args.device, args.server_port) == ("X", 224, "cuda", 1)
    assert args.photos == []


def test_the_script_runs():
    done = subprocess.run(
        [sys.executable, str(ROOT / "demo.py"), "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "--out" in done.stdout


def test_main_demo_refuses_other_models():
    pytest.importorskip("gradio")
    with pytest.raises(ValueError, match="AsymmetricMASt3R"):
        main_demo(None, torch.nn.Linear(1, 1), None, "cpu", None, None, None)


def test_texts(model, folder):
    result = predict_pair(model, folder / "a.jpg", folder / "b.png")
    assert "\n" not in summary_line(result)
    facts = {fact.name: fact.value for fact in pair_facts(result)}
    assert facts["Matches"] == f"{len(result.matches):,}"
    assert facts["Focal lengths"].endswith(" px")
    assert "Apache-2.0" in model_words(WeightsCard("w", "Apache-2.0"))
