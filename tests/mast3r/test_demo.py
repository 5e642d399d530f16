"""The demo: files from the command line, and the page without a browser."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from dust3r.checkpoint import save_safetensors
from mast3r.demo import get_args_parser, main, main_demo
from mast3r.demo import headless as headless_module
from mast3r.demo.callbacks import POINTS, SURFACE, PairCallbacks, read_upload
from mast3r.demo.headless import run_headless
from mast3r.demo.text import summary_line, summary_table
from mast3r.loading import WeightsCard
from mast3r.model import AsymmetricMASt3R
from mast3r.training import PRESETS
from multiview.images import ImageError
from multiview.matches import Matches
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


@pytest.fixture
def visits(tmp_path) -> Path:
    path = tmp_path / "visits"
    path.mkdir()
    return path


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


# --- what the page does ---


def test_callbacks(model, folder, visits):
    act = PairCallbacks(model, visits)
    steps: list[str] = []
    visit = act.predict(str(folder / "a.jpg"), str(folder / "b.png"), None, lambda share, name: steps.append(name))
    assert steps[0] == "read"
    assert visit.folder.parent == visits
    few, none = (np.asarray(act.matches(visit, count, 0)) for count in (300, 0))
    assert few.shape == none.shape
    assert [picture.mode for picture in act.maps(visit)] == ["RGB"] * 4
    scenes = [act.scene(visit, drop, POINTS) for drop in (0, 90)]
    sizes = [Path(scene).stat().st_size for scene in scenes]
    assert scenes[0] != scenes[1]
    assert sizes[1] < sizes[0]
    assert Path(act.scene(visit, 0, SURFACE)).read_bytes()[:4] == b"glTF"
    assert Path(act.points_file(visit, 20)).read_bytes()[:3] == b"ply"
    assert len(Matches.load(act.matches_file(visit, 0))) == len(visit.result.matches)
    assert len(PairResult.load(act.everything_file(visit)).matches) == len(visit.result.matches)
    assert "focal length" in act.summary(visit)


def test_a_new_run_removes_the_files_of_the_last(model, folder, visits):
    act = PairCallbacks(model, visits)
    photos = str(folder / "a.jpg"), str(folder / "b.png")
    first = act.predict(*photos)
    act.scene(first, 20, POINTS)
    act.predict(*photos, first)
    assert not first.folder.exists()
    assert len(list(visits.iterdir())) == 1


def test_visitors_have_folders_of_their_own(model, folder, visits):
    act = PairCallbacks(model, visits)
    first, second = (act.predict(str(folder / "a.jpg"), str(folder / "b.png")) for _ in range(2))
    assert first.folder != second.folder


def test_page_errors_are_sentences(model, folder, visits, tmp_path):
    act = PairCallbacks(model, visits)
    with pytest.raises(ValueError, match="Choose two photos"):
        act.predict(str(folder / "a.jpg"), None)
    with pytest.raises(ValueError, match="Run a pair"):
        act.summary(None)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not a photo")
    with pytest.raises(ImageError, match="Photo 1 is not an image") as told:
        act.predict(str(broken), str(folder / "a.jpg"))
    assert str(tmp_path) not in str(told.value)


def test_too_many_pixels_are_refused_before_decoding(folder, monkeypatch):
    monkeypatch.setattr("mast3r.demo.callbacks.MAX_PIXELS", 100)
    with pytest.raises(ImageError, match="million pixels"):
        read_upload(str(folder / "a.jpg"), "Photo 1")


def test_texts(model, folder, visits):
    result = PairCallbacks(model, visits).predict(str(folder / "a.jpg"), str(folder / "b.png")).result
    assert "\n" not in summary_line(result)
    table = summary_table(result, WeightsCard("w", "Apache-2.0"))
    assert "Apache-2.0" in table
    assert "101 by 75" in table


# --- the page itself ---


@pytest.fixture
def page(model, visits, folder):
    pytest.importorskip("gradio")
    from mast3r.demo.page import PageOptions, build_page

    return build_page(model, visits, PageOptions(samples=(folder / "a.jpg", folder / "b.png")))


def callback(page, name: str):
    return next(fn.fn for fn in page.fns.values() if fn.name == name)


def test_page_callbacks_run_without_a_browser(page, folder):
    photos = str(folder / "a.jpg"), str(folder / "b.png")
    shown = callback(page, "run")(*photos, None, 200, 0, 20, SURFACE)
    visit, scene = shown[0], shown[1]
    assert Path(scene).suffix == ".glb"
    assert len(shown) == 9
    again, download = callback(page, "rebuild")(visit, 50, POINTS)
    assert again != scene
    assert download["value"] == again
    assert callback(page, "redraw")(visit, 10, 0).mode == "RGB"
    offers = [fn.fn for fn in page.fns.values() if fn.name == "offer"]
    assert len(offers) == 8


def test_page_errors_reach_the_visitor_as_sentences(page, folder, caplog):
    import gradio as gr

    with pytest.raises(gr.Error, match="Choose two photos"):
        callback(page, "run")(None, None, None, 200, 0, 20, SURFACE)
    from mast3r.demo.page import told_in_one_sentence

    @told_in_one_sentence
    def fail():
        raise RuntimeError("secret detail")

    with pytest.raises(gr.Error) as told:
        fail()
    assert "secret" not in str(told.value)
    assert "secret detail" in caplog.text


def test_sliders_before_a_run_do_nothing(page):
    import gradio as gr

    assert callback(page, "redraw")(None, 10, 0) == gr.skip()


def test_page_without_samples_has_no_button(model, visits, tmp_path):
    gr = pytest.importorskip("gradio")
    from mast3r.demo.page import PageOptions, build_page

    options = PageOptions(samples=(tmp_path / "a.jpg", tmp_path / "b.jpg"))
    built = build_page(model, visits, options)
    labels = [str(getattr(block, "value", "")) for block in built.blocks.values() if isinstance(block, gr.Button)]
    assert "Reconstruct" in labels
    assert not any("sample" in label for label in labels)


def test_page_is_served_to_this_machine_only(page, visits):
    from mast3r.demo.page import PageOptions
    from mast3r.demo.serve import launch

    try:
        local, public = launch(page, PageOptions(silent=True), visits, wait=False)
        assert public is None
        assert "127.0.0.1" in local
        with urllib.request.urlopen(local, timeout=30) as answer:
            assert answer.status == 200
            assert "default-src 'self'" in answer.headers["content-security-policy"]
        config = json.loads(urllib.request.urlopen(f"{local}config", timeout=30).read())
        assert config["analytics_enabled"] is False
    finally:
        page.close()
