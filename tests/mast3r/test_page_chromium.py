"""The page in headless Chromium, as a visitor sees it.

Needs a Chromium (Debian's package `chromium`) and `pip install playwright`; Playwright's own browsers are not needed.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from mast3r.demo.line import StoppedError
from mast3r.model import AsymmetricMASt3R
from mast3r.scenes.reconstruction import ReconstructConfig, reconstruct
from mast3r.training import PRESETS
from multiview.matches import Matches
from multiview.results import PairResult
from tests.mast3r.perfect_model import PerfectModel, pixels_of, views_of_room

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytest.importorskip("gradio", reason="the page needs Gradio")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")

WIDE, PHONE = {"width": 1400, "height": 900}, {"width": 390, "height": 844}
PATIENCE = 60_000  # milliseconds; other tests may keep the machine busy
INSTANTLY = 10_000  # milliseconds; only tells acting at once from asking the network again


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[str]:
    """Three photos of one textured plane, shifted, and their names."""
    folder = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    plane = PIL.Image.fromarray(noise).resize((480, 288), PIL.Image.Resampling.BICUBIC)
    paths = []
    for i in range(3):
        plane.crop((40 * i, 10 * i, 40 * i + 320, 10 * i + 240)).save(folder / f"view{i}.jpg")
        paths.append(str(folder / f"view{i}.jpg"))
    return paths


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("broken") / "broken.jpg"
    path.write_bytes(b"\xff\xd8\xff no photo")
    return str(path)


class Served:
    """The page with a tiny model, and what a test needs to know of the server's side."""

    def __init__(self, root: Path, photos: list[str]):
        from mast3r.demo.line import WorkLine
        from mast3r.demo.options import PageOptions
        from mast3r.demo.page import build_page
        from mast3r.demo.serve import launch

        torch.manual_seed(0)
        model = AsymmetricMASt3R(**PRESETS["tiny"].model).eval()
        options = PageOptions(silent=True, samples=(Path(photos[0]), Path(photos[1])), scene_samples=root)
        self.root = root
        self.line = WorkLine()
        self.page = build_page(model, root, options, self.line)
        self.address, _ = launch(self.page, options, root, wait=False)


@pytest.fixture(scope="module")
def served(tmp_path_factory, photos) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("visits"), photos)
    yield served
    served.page.close()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]  # WebGL without a GPU
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, served):
    """Opens the page as a new visitor; in the end no visitor may have asked another server or met an error."""
    contexts, asked, errors = [], [], []

    def open_page(size=None, scheme: str = "light"):
        context = browser.new_context(viewport=size or WIDE, color_scheme=scheme)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(served.address)
        page.locator("#pair-run").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []
    assert [url for url in asked if not url.startswith((served.address, "data:", "blob:"))] == []


def choose_pair(page, a: str, b: str) -> None:
    for i, path in enumerate((a, b)):
        page.locator(f"#photo-{i + 1} input[type=file]").set_input_files(path)
        page.locator(f"#photo-{i + 1} img").wait_for(state="attached")


def run_pair(page) -> None:
    page.locator("#pair-run").click()
    page.locator("#pair-status .done").wait_for()


def milliseconds_until(page, change: str, seen: str) -> float:
    """Time from an input event in the page until what it should change has been drawn."""
    return page.evaluate(
        f"""async () => {{
            const begin = performance.now();
            ({change})();
            while (!({seen})()) {{
                if (performance.now() - begin > 20000) return Infinity;
                await new Promise(requestAnimationFrame);
            }}
            return performance.now() - begin;
        }}"""
    )


def drag(slider: str, value: int) -> str:
    """A script that moves a slider."""
    return f"""() => {{
        const input = document.querySelector('#{slider} input[type=range]');
        Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(input, {value});
        input.dispatchEvent(new Event('input', {{bubbles: true}}));
    }}"""


def acts_instantly(page, slider: str, values: list[int], seen: str) -> bool:
    """Whether a slider acts in time in one of several tries; a busy machine is given more time."""
    crowd = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    return any(
        milliseconds_until(page, drag(slider, value), seen.replace("VALUE", str(value))) < INSTANTLY * crowd
        for value in values
    )


def download(page, button: str, folder: Path) -> Path:
    page.locator(f"#{button}:not([disabled])").wait_for()
    with page.expect_download() as arriving:
        page.locator(f"#{button}").click()
    path = folder / arriving.value.suggested_filename
    arriving.value.save_as(path)
    return path


def overflow(page) -> int:
    """How many pixels the page is wider than the screen."""
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


def test_a_pair_from_upload_to_download(visit, photos, tmp_path, monkeypatch):
    page = visit()
    choose_pair(page, *photos[:2])
    run_pair(page)
    page.locator("#pair-scene .viewer[data-drop='20']").wait_for()
    facts = page.locator("#pair-facts").inner_text()
    assert all(name in facts for name in ("Matches", "Camera 1 to camera 2", "Focal lengths", "Scale", "Time"))

    def no_inference(*args, **kwargs):
        raise AssertionError("a slider ran the network")

    monkeypatch.setattr("mast3r.demo.pair_callbacks.predict_pair", no_inference)
    drawn = "() => document.querySelector('#pair-scene .viewer').dataset.drop === 'VALUE'"
    assert acts_instantly(page, "pair-scene-drop", [50, 60, 70], drawn)
    page.get_by_label("Surface").check()
    page.locator("#pair-scene .viewer[data-kind='surface']").wait_for()

    page.get_by_role("tab", name="Matches").click()
    page.locator("#pair-matches .matches[data-drawn]").wait_for()
    counted = "() => Number(document.querySelector('#pair-matches .matches').dataset.drawn) <= VALUE"
    assert acts_instantly(page, "match-count", [70, 50, 30], counted)
    page.get_by_role("tab", name="Depth").click()
    assert page.locator("#pair-maps img").count() == 6
    page.wait_for_function("() => [...document.querySelectorAll('#pair-maps img')].every((i) => i.naturalWidth > 0)")

    assert download(page, "pair-glb", tmp_path).read_bytes()[:4] == b"glTF"
    assert download(page, "pair-ply", tmp_path).read_bytes()[:3] == b"ply"
    result = PairResult.load(download(page, "pair-npz", tmp_path))
    assert len(Matches.load(download(page, "pair-matches-npz", tmp_path))) == len(result.matches)
    assert b"frames" in download(page, "pair-transforms-json", tmp_path).read_bytes()


def test_the_viewer_starts_where_the_first_camera_stood_and_can_be_moved(visit):
    page = visit()
    page.get_by_role("button", name="Try the sample photos").first.click()  # one click, and it runs
    page.locator("#pair-status .done").wait_for()
    canvas = page.locator("#pair-scene canvas")
    page.locator("#pair-scene .viewer[data-drop]").wait_for()
    page.wait_for_timeout(1500)  # the flight to the first view
    state = """() => {
        const {yaw, pitch, roll} = window.mast3r.shown.get('pair-scene').orbit.state;
        return [yaw, pitch, roll];
    }"""
    np.testing.assert_allclose(page.evaluate(state), [0, 0, 0], atol=1e-9)  # camera 1's axes are the world's
    corners = page.evaluate(
        """() => {
            const viewer = window.mast3r.shown.get('pair-scene');
            const camera = viewer.scene.cameras[0];
            viewer.orbit.state = viewer.viewOf(0, 0);
            return camera.corners.map(([x, y]) => window.mast3r.math.project(viewer.clip(), camera.place([x, y, 1])));
        }"""
    )
    xy = np.array([(corner["x"], corner["y"]) for corner in corners])
    np.testing.assert_array_equal(np.sign(xy), [(-1, 1), (1, 1), (1, -1), (-1, -1)])
    assert 0.85 < np.abs(xy).max() < 0.97  # its photo would fill the picture, but for a margin
    canvas.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate(state)[0] > 0.01
    page.keyboard.press("Home")
    page.wait_for_function(f"() => Math.abs(({state})()[0]) < 1e-9")
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 100, steps=3)
    page.mouse.up()
    assert abs(page.evaluate(state)[0]) > 0.1


def test_errors_are_sentences(visit, photos, broken):
    page = visit()
    page.locator("#pair-run").click()
    alert = page.locator("#pair-status [role=alert]")
    alert.wait_for()
    assert alert.inner_text() == "Choose two photos first."
    page.locator("#photo-1 input[type=file]").set_input_files(broken)
    page.get_by_text("Photo 1 is").first.wait_for()  # as soon as it has arrived
    page.locator("#photo-2 input[type=file]").set_input_files(photos[0])
    page.locator("#photo-2 img").wait_for(state="attached")
    page.locator("#pair-run").click()
    page.locator("#pair-status [role=alert]", has_text="Photo 1 is").wait_for()
    shown = page.locator("body").inner_text()
    assert "Traceback" not in shown
    assert "/broken.jpg" not in shown


def test_a_phone_needs_no_sideways_scrolling(visit, photos):
    page = visit(PHONE)
    assert overflow(page) <= 0
    choose_pair(page, *photos[:2])
    run_pair(page)
    for tab in ("Matches", "Depth", "3D"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(100)
        assert overflow(page) <= 0, tab
    page.get_by_role("tab", name="Scene").click()
    page.locator("#scene-run").wait_for()
    assert overflow(page) <= 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_light_or_dark_as_the_visitor_likes(visit, scheme):
    page = visit(scheme=scheme)
    red, green, blue = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (red + green + blue > 384) == (scheme == "light")


def test_a_scene_says_what_became_of_each_photo(visit, broken, tmp_path, monkeypatch):
    views = views_of_room(3, size=(80, 96))
    files = [str(tmp_path / f"view{i}.png") for i in range(3)]
    for file, view in zip(files, views):
        PIL.Image.fromarray(pixels_of(view)).save(file)
    config = ReconstructConfig(image_size=96, crop=False)

    def flawless(model, images, **options):  # an untrained network places photos by chance only
        return reconstruct(PerfectModel(views, side=96), images, **{**options, "config": config})

    monkeypatch.setattr("mast3r.demo.scene_callbacks.reconstruct", flawless)
    page = visit()
    page.get_by_role("tab", name="Scene").click()
    page.locator("#scene-files input[type=file]").set_input_files([*files, broken])
    page.locator("#scene-photos li").nth(3).wait_for()
    assert page.locator("#scene-photos li.failed").count() == 1
    page.locator("#scene-run").click()
    page.locator("#scene-status .done").wait_for()
    assert "3 of 4 photos placed" in page.locator("#scene-status").inner_text()
    page.wait_for_function("() => !document.querySelector('#scene-photos li.ready')")
    assert "broken.jpg is" in page.locator("#scene-photos li.failed").last.inner_text()
    assert download(page, "scene-npz", tmp_path).stat().st_size > 0


def test_a_second_visitor_is_told_to_wait(visit, served, photos):
    free, busy = threading.Event(), threading.Event()

    def occupy() -> None:
        run = served.line.run(lambda on_step: (busy.set(), free.wait(60)))
        for _ in run:
            pass

    other = threading.Thread(target=occupy)
    other.start()
    try:
        assert busy.wait(30)
        page = visit()
        choose_pair(page, *photos[:2])
        page.locator("#pair-run").click()
        page.locator("#pair-status .waiting", has_text="another visitor").wait_for()
    finally:
        free.set()
        other.join()
    page.locator("#pair-status .done").wait_for()


@pytest.mark.parametrize("way", ["stop", "leave"])
def test_stopping_or_leaving_ends_the_run(visit, photos, monkeypatch, way):
    begun, ended = threading.Event(), threading.Event()

    def endless(*args, progress, **kwargs):
        try:
            while True:
                progress(0.3, "pairs")
                begun.set()
                time.sleep(0.05)
        except StoppedError:
            ended.set()
            raise

    monkeypatch.setattr("mast3r.demo.scene_callbacks.reconstruct", endless)
    page = visit()
    page.get_by_role("tab", name="Scene").click()
    page.locator("#scene-files input[type=file]").set_input_files(photos[:2])
    page.locator("#scene-photos li").nth(1).wait_for()
    page.locator("#scene-run").click()
    page.locator("#scene-status .running").wait_for()
    assert begun.wait(30)
    if way == "stop":
        page.locator("#scene-stop").click()
        page.locator("#scene-status .done", has_text="Stopped").wait_for()
    else:
        page.close()
    assert ended.wait(30)


def test_a_new_run_removes_the_files_of_the_last(visit, served, photos):
    page = visit()
    choose_pair(page, *photos[:2])
    before = set(served.root.iterdir())
    run_pair(page)
    first = set(served.root.iterdir()) - before
    assert len(first) == 1
    page.locator("#pair-transforms-json:not([disabled])").wait_for()  # all files are written
    page.locator("#pair-run").click()
    page.wait_for_function("() => document.querySelector('#pair-status .running, #pair-status .waiting')")
    page.locator("#pair-status .done").wait_for()
    page.locator("#pair-transforms-json:not([disabled])").wait_for()
    assert first.isdisjoint(served.root.iterdir())
