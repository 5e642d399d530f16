"""The page without a browser: its line, its callbacks, its files and how it is served."""

from __future__ import annotations

import json
import struct
import threading
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from mast3r.demo import pair_callbacks, uploads
from mast3r.demo.exports import Choices
from mast3r.demo.line import BusyError, StoppedError, Update, WorkLine, follow
from mast3r.demo.markup import Fact, PhotoNote, error_html, facts_html, photos_html, status_html
from mast3r.demo.pair_callbacks import PairCallbacks
from mast3r.demo.pictures import fitting, match_rows
from mast3r.demo.scene_callbacks import SEQUENCE, SceneCallbacks, unique_names
from mast3r.demo.scene_file import MAX_POINTS, ShownScene, confidence_ranks, pair_scene, write_scene_file
from mast3r.demo.shelf import ModelShelf, models_here
from mast3r.demo.uploads import read_upload
from mast3r.demo.visits import address
from mast3r.loading import WeightsCard
from mast3r.model import AsymmetricMASt3R
from mast3r.training import PRESETS
from multiview.images import ImageError
from multiview.matches import Matches
from multiview.pointmaps import Pointmap
from multiview.reconstruction import Reconstruction
from multiview.results import PairResult


@pytest.fixture(scope="module")
def model() -> AsymmetricMASt3R:
    torch.manual_seed(0)
    return AsymmetricMASt3R(**PRESETS["tiny"].model).eval()


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[str]:
    """Three photos of odd sizes."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    paths = []
    for name, shape in (("a.jpg", (75, 101, 3)), ("b.png", (120, 83, 4)), ("c.jpg", (90, 90, 3))):
        PIL.Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
        paths.append(str(folder / name))
    return paths


@pytest.fixture
def visits(tmp_path) -> Path:
    path = tmp_path / "visits"
    path.mkdir()
    return path


@pytest.fixture
def broken(tmp_path) -> str:
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"not a photo")
    return str(path)


@pytest.fixture
def pair(model, visits) -> PairCallbacks:
    return PairCallbacks(ModelShelf(model), visits)


@pytest.fixture(scope="module")
def pair_visit(model, photos, tmp_path_factory):
    act = PairCallbacks(ModelShelf(model), tmp_path_factory.mktemp("visits"))
    return act.predict(act.read(*photos[:2]))


@pytest.fixture(scope="module")
def scene_visit(model, photos, tmp_path_factory):
    act = SceneCallbacks(ModelShelf(model), tmp_path_factory.mktemp("visits"))
    seen = act.look(photos)
    return act, seen, act.reconstruct(seen)


# --- the line ---


def test_the_line_computes_and_tells_steps():
    def work(on_step):
        on_step(0.5, "half")
        return 7

    told = []
    line = follow(WorkLine().run(work), told.append)
    assert result_of(line) == 7
    assert told == [Update("half", 0.5)]


def test_a_second_visitor_waits_and_is_told():
    line, free, started = WorkLine(), threading.Event(), threading.Event()

    def slow(on_step):
        started.set()
        on_step(0.0, "slow")
        assert free.wait(20)

    first = line.run(slow)
    assert next(first).text == "slow"
    assert started.wait(20)
    second, third = line.run(lambda on_step: 2), line.run(lambda on_step: 3)
    assert "another visitor" in next(second).text
    assert "2 runs" in next(third).text
    free.set()
    with pytest.raises(StopIteration):
        next(first)
    assert result_of(second) == 2
    assert result_of(third) == 3


def result_of(updates):
    """What a generator returns."""
    while True:
        try:
            next(updates)
        except StopIteration as end:
            return end.value


def test_the_line_is_bounded():
    line, free = WorkLine(length=1), threading.Event()
    first = line.run(lambda on_step: (on_step(0.0, ""), free.wait(20)))
    next(first)
    second = line.run(lambda on_step: 2)
    next(second)
    with pytest.raises(BusyError, match="try again"):
        next(line.run(lambda on_step: 3))
    second.close()  # a visitor who leaves makes room
    third = line.run(lambda on_step: 3)
    next(third)
    free.set()
    assert result_of(third) == 3


def test_work_that_nobody_waits_for_stops():
    line, stopped = WorkLine(), threading.Event()

    def work(on_step):
        try:
            while True:
                on_step(0.1, "again")
                time.sleep(0.01)
        except StoppedError:
            stopped.set()
            raise

    run = line.run(work)
    next(run)
    run.close()
    assert stopped.wait(20)
    assert result_of(line.run(lambda on_step: 5)) == 5


def test_errors_leave_the_line():
    line = WorkLine()

    def fail(on_step):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        result_of(line.run(fail))
    assert result_of(line.run(lambda on_step: 1)) == 1


# --- pair ---


def test_pair_callbacks(pair, photos):
    steps: list[str] = []
    visit = pair.predict(pair.read(*photos[:2]), None, lambda share, name: steps.append(name))
    assert steps[0] == "Preparing the photos"
    assert len(steps) == len(pair_callbacks.STEP_WORDS)
    shown = pair.matches(visit)
    assert [(photo["width"], photo["height"]) for photo in shown["photos"]] == [(101, 75), (83, 120)]
    assert len(shown["rows"]) == len(visit.result.matches)
    json.dumps(shown)
    maps = pair.maps(visit)
    assert maps.count("<img") == 6
    assert "Focal lengths" in pair.facts(visit)
    assert pair.scene(visit)["url"].endswith("scene.bin")
    visit.end()
    assert not visit.folder.exists()


def test_visitors_have_folders_of_their_own(pair, photos):
    first, second = (pair.predict(pair.read(*photos[:2])) for _ in range(2))
    assert first.folder != second.folder
    assert first.fresh("x") != first.fresh("x")
    assert address(first.folder / "a b.jpg").endswith("a%20b.jpg")


def test_page_errors_are_sentences(pair, photos, broken, tmp_path):
    with pytest.raises(ValueError, match="Choose two photos"):
        pair.read(photos[0], None)
    with pytest.raises(ImageError, match="Photo 1 is not an image") as told:
        pair.read(broken, photos[0])
    assert str(tmp_path) not in str(told.value)


def test_too_many_pixels_are_refused_before_decoding(photos, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_PIXELS", 100)
    with pytest.raises(ImageError, match="million pixels"):
        read_upload(photos[0], "Photo 1")


def test_files_do_not_tell_where_uploads_are_kept(pair_visit, photos):
    files = [export.write(pair_visit, Choices()) for export in PairCallbacks.exports]
    for path in files:
        assert str(Path(photos[0]).parent).encode() not in path.read_bytes()


def test_match_rows_start_everywhere(pair_visit):
    rows = np.array(match_rows(pair_visit.result))
    matches = pair_visit.result.matches
    assert len(rows) == len(matches)
    if len(rows):
        assert rows[:, 4].min() >= 0
        assert rows[:, 4].max() < 100
        assert rows[:, 5].sum() == min(pair_visit.result.num_inliers, len(rows)) == fitting(pair_visit.result).sum()
        cells = {(int(x * 8 / matches.size0[0]), int(y * 8 / matches.size0[1])) for x, y in rows[:, :2]}
        first = {(int(x * 8 / matches.size0[0]), int(y * 8 / matches.size0[1])) for x, y in rows[: len(cells), :2]}
        assert first == cells


def read_scene_file(path: Path):
    content = path.read_bytes()
    assert content[:4] == b"MV3D"
    (size,) = struct.unpack("<I", content[4:8])
    header, at, maps = json.loads(content[8 : 8 + size]), 8 + size, []
    assert at % 4 == 0
    for entry in header["maps"]:
        count = entry["width"] * entry["height"]
        points = np.frombuffer(content, "<f4", 3 * count, at).reshape(-1, 3)
        colors = np.frombuffer(content, np.uint8, 4 * count, at + 12 * count).reshape(-1, 4)
        maps.append((points, colors))
        at += 16 * count
    assert at == len(content)
    return header, maps


def test_scene_file(pair_visit, tmp_path):
    result = pair_visit.result
    header, maps = read_scene_file(write_scene_file(tmp_path / "s.bin", pair_scene(result)))
    for (points, colors), pointmap, i in zip(maps, result.pointmaps, (0, 1)):
        np.testing.assert_array_equal(points, pointmap.points.reshape(-1, 3))
        np.testing.assert_array_equal(colors[:, :3], result.colors(i).reshape(-1, 3))
    assert header["cameras"][0]["name"] == "Photo 1"
    assert header["cameras"][0]["map"] == 0
    small, thinned = read_scene_file(write_scene_file(tmp_path / "t.bin", pair_scene(result), max_points=100))
    assert sum(len(points) for points, _ in thinned) <= 200 < MAX_POINTS
    assert small["maps"][0]["spacing"] > header["maps"][0]["spacing"]
    with pytest.raises(ValueError, match="no photo"):
        write_scene_file(tmp_path / "u.bin", ShownScene((), ()))


def test_confidence_ranks_are_percentiles():
    points = np.ones((10, 11, 3), np.float32)
    points[0, 0] = np.nan
    confidence = np.random.default_rng(0).permutation(110).reshape(10, 11).astype(np.float32)
    ranks = confidence_ranks(Pointmap(points, confidence, "world"))
    assert ranks[0, 0] == 0
    assert ranks.max() == 255
    for percent in (0, 20, 50, 90):
        kept = (ranks >= max(1, 1 + 254 * percent / 100)).sum()
        assert abs(kept - 109 * (1 - percent / 100)) <= 2


def test_pair_exports(pair_visit):
    files = {export.label: export.write(pair_visit, Choices(20.0, True)) for export in PairCallbacks.exports}
    assert files["GLB"].read_bytes()[:4] == b"glTF"
    assert files["PLY"].read_bytes()[:3] == b"ply"
    assert len(Matches.load(files["Matches"])) == len(pair_visit.result.matches)
    assert len(PairResult.load(files["NPZ"]).matches) == len(pair_visit.result.matches)
    frames = json.loads(files["transforms.json"].read_text())["frames"]
    assert frames[0]["file_path"].endswith("a.jpg")
    if "COLMAP" in files:
        with zipfile.ZipFile(files["COLMAP"]) as archive:
            assert any(name.startswith("sparse/0/cameras") for name in archive.namelist())
    full, half = (PairCallbacks.exports[1].write(pair_visit, Choices(drop)).stat().st_size for drop in (0.0, 50.0))
    assert half < full


# --- scene ---


def test_scene_callbacks(scene_visit):
    act, seen, visit = scene_visit
    notes = act.notes(visit, seen)
    assert [note.name for note in notes] == ["a.jpg", "b.png", "c.jpg"]
    assert all(note.state == "placed" or (note.state == "failed" and note.note) for note in notes)
    assert f"{len(visit.result.registered)} of 3" in act.facts(visit, seen)
    assert all(image.path is None for image in visit.result.images)
    scene = act.scene(visit)
    assert "url" in scene or "message" in scene
    groups = [component for _, component in act.groups(visit)]
    assert groups == list(visit.result.components)


def test_scene_exports(scene_visit):
    act, _, visit = scene_visit
    exports = {export.label: export for export in act.exports}
    assert len(Reconstruction.load(exports["NPZ"].write(visit, Choices())).images) == 3
    if visit.result.registered:
        for component in visit.result.components:
            text = exports["transforms.json"].write(visit, Choices(group=component)).read_text()
            assert json.loads(text)["frames"]


def test_a_broken_photo_does_not_stop_the_others(model, visits, photos, broken):
    act = SceneCallbacks(ModelShelf(model), visits)
    seen = act.look([photos[0], broken, photos[2]])
    steps = []
    visit = act.reconstruct(seen, SEQUENCE, None, lambda share, words: steps.append(words))
    note = act.notes(visit, seen)[1]
    assert (note.state, note.name) == ("failed", "broken.jpg")
    assert "not an image" in note.note
    assert len(visit.result.images) == 2
    assert any("pairs of photos" in step for step in steps)
    assert [path.name for path in visits.iterdir()] == [visit.folder.name]  # the cache of pairs is gone


def test_scene_refuses_too_few_and_too_many(model, visits, photos):
    act = SceneCallbacks(ModelShelf(model), visits, max_photos=2)
    with pytest.raises(ValueError, match="at least two"):
        act.reconstruct(act.look(photos[:1]))
    with pytest.raises(ValueError, match="up to 2"):
        act.look(photos)


def test_names_are_made_unique():
    assert unique_names(["image.jpg", "b.jpg", "image.jpg"]) == ("image.jpg", "b.jpg", "image (2).jpg")


# --- models and markup ---


def test_shelf(model):
    calls = []

    def load():
        calls.append(1)
        return model

    shelf = ModelShelf(model, {"other": (WeightsCard("other", "MIT"), load)})
    assert shelf.names[1:] == ["other"]
    assert shelf.card("other").licence == "MIT"
    assert shelf.model() is model
    assert shelf.model("other") is shelf.model("other")
    assert calls == [1]
    with pytest.raises(ValueError, match="no model"):
        shelf.model("none")


def test_models_here_are_not_downloaded():
    for card, _ in models_here("cpu").values():
        assert card.licence


def test_markup_escapes():
    bad = "<script>'\"&"
    shown = [
        status_html(Update(bad, 0.5)),
        error_html(bad),
        facts_html([Fact(bad, bad, bad)]),
        photos_html([PhotoNote(bad, "", "failed", bad, 0)]),
    ]
    for html in shown:
        assert "<script" not in html
        assert "&lt;script" in html


# --- the page itself ---


@pytest.fixture
def page(model, visits, photos):
    pytest.importorskip("gradio")
    from mast3r.demo.options import PageOptions
    from mast3r.demo.page import build_page

    return build_page(model, visits, PageOptions(samples=(Path(photos[0]), Path(photos[1]))))


def test_page_errors_reach_the_visitor_as_sentences(caplog):
    gr = pytest.importorskip("gradio")
    from mast3r.demo.guard import told_in_one_sentence

    @told_in_one_sentence
    def fail():
        raise RuntimeError("secret detail")

    with pytest.raises(gr.Error) as told:
        fail()
    assert "secret" not in str(told.value)
    assert "secret detail" in caplog.text


def test_page_without_samples_has_no_button(model, visits, tmp_path):
    gr = pytest.importorskip("gradio")
    from mast3r.demo.options import PageOptions
    from mast3r.demo.page import build_page

    options = PageOptions(samples=(tmp_path / "a.jpg", tmp_path / "b.jpg"), scene_samples=tmp_path)
    built = build_page(model, visits, options)
    labels = [str(getattr(block, "value", "")) for block in built.blocks.values() if isinstance(block, gr.Button)]
    assert labels.count("Reconstruct") == 2
    assert not any("sample" in label for label in labels)


def test_page_is_served_to_this_machine_only(page, visits):
    from mast3r.demo.options import PageOptions
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
        assert config["run_history"] is False
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{local}gradio_api/file={Path(__file__)}", timeout=30)
    finally:
        page.close()
