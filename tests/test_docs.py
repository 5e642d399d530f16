"""What the documentation says is so: its code runs, its flags, names and sentences exist.

`make docs` builds the pages and fails on warnings; nothing here needs Sphinx.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import runpy
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import mast3r
from croco.checkpoint import OFFICIAL_NAMES
from mast3r import cli
from mast3r.cloud_opt.config import SparseConfig
from mast3r.loading import shipped_weights
from mast3r.model import AsymmetricMASt3R

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
EXECUTED = [DOCS / "quickstart.md", DOCS / "conventions.md", *sorted((DOCS / "recipes").glob("*.md"))]
PACKAGES = ("croco", "dust3r", "mast3r", "multiview")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the package it needs, its first line (from 0) and its lines."""

    language: str
    needs: str
    start: int
    lines: tuple[str, ...]


def blocks(page: Path) -> Iterator[Block]:
    needs, opened = "", None
    lines = page.read_text().splitlines()
    for number, line in enumerate(lines):
        if opened is None and line.startswith("```"):
            opened = (line[3:].strip(), number + 1)
        elif opened is not None and line.startswith("```"):
            yield Block(opened[0], needs, opened[1], tuple(lines[opened[1] : number]))
            needs, opened = "", None
        elif opened is None and line.startswith("% needs: "):
            needs = line.removeprefix("% needs: ").strip()


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


# --- code ---


def as_script(page: Path) -> str:
    """The Python blocks of a page, each line at its own number; those that need missing packages are left out."""
    script = [""] * len(page.read_text().splitlines())
    for block in blocks(page):
        if block.language == "python" and (not block.needs or is_installed(block.needs)):
            script[block.start : block.start + len(block.lines)] = block.lines
    return "\n".join(script) + "\n"


@pytest.fixture(scope="module")
def scenes() -> dict:
    """The scene of the photos, once a page made it; all pages and folders have the same photos."""
    return {}


@pytest.fixture
def desk(tmp_path, monkeypatch, scenes) -> Path:
    """A folder with photos and a video, where official weights are the shipped ones."""
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.jpg"):
        for target in (tmp_path, tmp_path / "photos"):
            shutil.copy(ROOT / "examples" / "pair" / name, target)
    shutil.copy(tmp_path / "b.jpg", tmp_path / "new.jpg")
    if is_installed("av"):
        write_video(tmp_path / "clip.mp4", [tmp_path / "a.jpg", tmp_path / "b.jpg"])
    monkeypatch.chdir(tmp_path)
    load, reconstruct = AsymmetricMASt3R.from_pretrained, mast3r.reconstruct

    def from_pretrained(name, **options):
        return load(shipped_weights("small") if str(name).removeprefix("naver/") in OFFICIAL_NAMES else name, **options)

    def reconstruct_quickly(model, images, **options):
        config = replace(options.pop("config", None) or mast3r.ReconstructConfig(), sparse=few_steps())
        if not isinstance(images, str) or options:
            return reconstruct(model, images, config=config, **options)
        if not scenes:
            scenes["photos"] = reconstruct(model, images, config=config)
        return scenes["photos"]

    monkeypatch.setattr(AsymmetricMASt3R, "from_pretrained", staticmethod(from_pretrained))
    monkeypatch.setattr(mast3r, "reconstruct", reconstruct_quickly)
    return tmp_path


def few_steps() -> SparseConfig:
    """The alignment of a scene, broken off early."""
    usual = SparseConfig()
    return replace(usual, coarse=replace(usual.coarse, niter=20), fine=replace(usual.fine, niter=20))


def write_video(path: Path, photos: list[Path]) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width, stream.height = PIL.Image.open(photos[0]).size
        stream.pix_fmt = "yuv420p"
        for photo in photos:
            pixels = np.asarray(PIL.Image.open(photo))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize("page", EXECUTED, ids=lambda page: page.stem)
def test_code_runs(page, desk):
    script = desk / f"{page.stem}.py"
    script.write_text(as_script(page))
    runpy.run_path(str(script))


def test_what_is_left_out_is_said():
    """Only extras of the package excuse a block from running."""
    needs = {block.needs for page in EXECUTED for block in blocks(page)} - {""}
    assert needs <= {"av", "h5py", "pycolmap"}


# --- flags, names, sentences ---


def commands() -> list[tuple[str, str, str]]:
    """(page, command, arguments) of every call of ours in the pages."""
    found = []
    for page in sorted(DOCS.rglob("*.md")):
        for block in blocks(page):
            text = "\n".join(block.lines).replace("\\\n", " ")
            for name, rest in re.findall(r"^\$ mast3r (\w+)(.*)$", text, re.MULTILINE):
                found.append((page.name, name, rest))
            for rest in re.findall(r"^.*\btrain\.py\b(.*)$", text, re.MULTILINE):
                found.append((page.name, "train", rest))
    return found


def test_flags_exist(capsys):
    helps = {}
    for page, name, arguments in commands():
        if name not in helps:
            with pytest.raises(SystemExit):
                cli.main([name, "--help"])
            helps[name] = set(re.findall(r"--\w+", capsys.readouterr().out))
        wrong = set(re.findall(r"--\w+", arguments)) - helps[name]
        assert not wrong, f"{page}: mast3r {name} has no {', '.join(wrong)}"
    assert helps


def documented_names() -> list[str]:
    pages = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    return re.findall(r"^\.\. auto\w+:: (\S+)$", pages, re.MULTILINE)


def test_names_exist():
    missing = [name for name in documented_names() if not exists(name)]
    assert not missing
    assert {f"mast3r.{name}" for name in mast3r.__all__ if not name.startswith("_")} <= set(documented_names())


def exists(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    return hasattr(importlib.import_module(module), attribute)


def sentences() -> list[str]:
    """The first column of the tables of the troubleshooting page."""
    return re.findall(r"^\| `(.+?)` \|", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)


def texts_of_code() -> set[str]:
    """All texts in the packages; a value within one is a zero byte."""
    found = set()
    for path in (path for name in PACKAGES for path in (ROOT / name).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.add("".join(str(v.value) if isinstance(v, ast.Constant) else "\0" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def test_sentences_are_those_of_the_code():
    texts = texts_of_code()
    assert len(sentences()) > 30
    for sentence in sentences():
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in sentence.split("…")), re.DOTALL)
        assert any(pattern.search(text) for text in texts), sentence


def test_no_page_speaks_of_a_place_that_is_not_there():
    for page in DOCS.rglob("*.md"):
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
