"""Every numbered example runs; those about many photos with a stand-in for a flawless network."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import dust3r.datasets.synthetic
import mast3r
from croco.checkpoint import save_safetensors
from dust3r.datasets.synthetic import TextureConfig
from mast3r.model import AsymmetricMASt3R
from mast3r.training import PRESETS
from tests.mast3r.perfect_model import PerfectModel, pixels_of, views_of_room

EXAMPLES = Path(__file__).parents[1] / "examples"
SIZE = (80, 96)
EXECUTED = {"01", "02", "03", "04", "05", "06", "07", "08", "09", "10", "11"}


@pytest.fixture(scope="module")
def views():
    return views_of_room(5, size=SIZE)


@pytest.fixture(scope="module")
def photos(views, tmp_path_factory) -> Path:
    """Four views of a room as photos, and a fifth one beside them."""
    folder = tmp_path_factory.mktemp("room")
    (folder / "photos").mkdir()
    for i, view in enumerate(views):
        place = folder / "new.png" if i == 2 else folder / "photos" / f"{i}.png"
        PIL.Image.fromarray(pixels_of(view)).save(place)
    return folder


@pytest.fixture
def flawless(views, monkeypatch) -> None:
    """`mast3r.load` gives a network that knows the room."""
    monkeypatch.setattr(mast3r, "load", lambda *_, **__: PerfectModel(views, side=96))


@pytest.fixture
def few_textures(monkeypatch) -> None:
    """Rendered scenes wear few and small textures."""

    def config(folder=None, **options) -> TextureConfig:
        return TextureConfig(folder, size=64, procedural=4, **options)

    monkeypatch.setattr(dust3r.datasets.synthetic, "TextureConfig", config)


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs an example in an empty folder; returns what it said."""
    monkeypatch.chdir(tmp_path)

    def execute(number: str, *arguments: object) -> str:
        [path] = EXAMPLES.glob(f"{number}_*.py")
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    return execute


def test_every_example_is_executed_here():
    assert {path.name[:2] for path in EXAMPLES.glob("*.py")} == EXECUTED


def test_pair(run, tmp_path):
    assert "PairResult(" in run("01")
    assert (tmp_path / "scene.glb").read_bytes()[:4] == b"glTF"
    assert (tmp_path / "scene.npz").is_file()


def test_matches(run, tmp_path, photos):
    """Small photos: full resolution costs as much as there are pixels."""
    said = run("02", photos / "photos" / "0.png", photos / "photos" / "1.png")
    assert all(f"{kind}:" in said for kind in ("coarse", "masked", "keypoints", "fine"))
    assert PIL.Image.open(tmp_path / "matches.jpg").width > 100


@pytest.mark.usefixtures("flawless")
def test_many_photos(run, tmp_path, photos):
    said = run("03", photos / "photos", "--cache", tmp_path / "cache")
    assert "4 of 4 images registered" in said
    assert all((tmp_path / name).is_file() for name in ("scene.glb", "scene.npz", "scene.jpg"))
    assert any((tmp_path / "cache").iterdir())


@pytest.mark.usefixtures("few_textures")
def test_scene_engine(run, tmp_path):
    run("04", "sheet.jpg", "--pairs", 1, "--size", 32)
    assert PIL.Image.open(tmp_path / "sheet.jpg").size == (64, 6 * 32)


@pytest.mark.usefixtures("flawless")
@pytest.mark.parametrize("flags", [[], ["--unsure"]])
def test_known_intrinsics(run, photos, views, flags):
    said = run("05", photos / "photos", "--focal", views[1].K[0, 0], *flags)
    assert ("focal %.1f px" % views[1].K[0, 0] in said) == (not flags)  # noqa: UP031


@pytest.mark.usefixtures("flawless")
def test_export_for_gaussian_splatting(run, tmp_path, photos):
    pycolmap = pytest.importorskip("pycolmap")
    assert "4 cameras" in run("06", photos / "photos")
    model = pycolmap.Reconstruction(str(tmp_path / "dataset" / "sparse" / "0"))
    frames = json.loads((tmp_path / "dataset" / "transforms.json").read_text())["frames"]
    assert {image.name for image in model.images.values()} == {Path(f["file_path"]).name for f in frames}
    assert all((tmp_path / "dataset" / frame["file_path"]).is_file() for frame in frames)


@pytest.mark.usefixtures("flawless")
def test_localisation(run, photos, tmp_path):
    said = run("07", photos / "photos", photos / "new.png")
    assert "new.png: at [" in said
    assert run("07", photos / "photos", photos / "new.png").splitlines()[-1] == said.splitlines()[-1]


@pytest.mark.usefixtures("few_textures")
def test_fine_tuning(run, tmp_path):
    torch.manual_seed(0)
    save_safetensors(AsymmetricMASt3R(**PRESETS["tiny"].model), tmp_path / "tiny.safetensors")
    said = run("08", "--weights", "tiny.safetensors", "--steps", 1, "--batch_size", 1, "--size", 64)
    assert "step 0: loss" in said
    before, after = (mast3r.load(tmp_path / f"{name}.safetensors", device="cpu") for name in ("tiny", "tuned"))
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters()))


@pytest.mark.usefixtures("flawless")
def test_video(run, tmp_path, views, monkeypatch):
    """The frames are read losslessly, as the flawless network wants its photos."""
    av = pytest.importorskip("av")
    landscape = [pixels_of(view) for view in views if view.image.shape[1:] == SIZE]
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=2)
        stream.height, stream.width = SIZE
        stream.pix_fmt = "bgr0"
        for pixels in landscape:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    said = run("09", "clip.mkv", "--frames", len(landscape))
    assert f"{len(landscape)} of {len(landscape)} images registered" in said
    assert len((tmp_path / "scene.tum").read_text().splitlines()) >= len(landscape)


@pytest.mark.usefixtures("flawless")
def test_measuring(run, tmp_path, photos):
    run("03", photos / "photos")
    pixels = ("0.png", "20,20", "0.png", "60,50")
    assert "metric-given" in (said := run("10", "scene.npz", "--known", *pixels, "2.5", "--ask", *pixels))
    assert said.splitlines()[-1].startswith("2.5000 ")


def test_official_names(run, photos):
    assert "matches in resized pixels" in run("11")


def test_sample_photos_are_there():
    for path in (EXAMPLES / "pair").iterdir():
        assert np.asarray(PIL.Image.open(path)).ndim == 3
