"""Matches in other tools' forms, read back as those tools read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from multiview.match_files import write_colmap_lists, write_hloc
from multiview.matches import Matches
from multiview.track_building import link_matches
from tests.multiview.synthetic_scene import make_matches, make_scene

NAMES = ("day/a 1.jpg", "night/b.jpg")


def some_matches(n: int = 10) -> Matches:
    rng = np.random.default_rng(0)
    return Matches(rng.uniform(0, 90, (n, 2)), rng.uniform(0, 90, (n, 2)), rng.uniform(1, 9, n), (100, 90), (95, 91))


def read_hloc(path: Path, features: Path, name0: str, name1: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matched points and scores, by hloc's rules."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(features) as file:
        keypoints = [file[name]["keypoints"][()] for name in (name0, name1)]
    with h5py.File(path) as file:
        group = file["/".join(name.replace("/", "-") for name in (name0, name1))]
        matches, scores = group["matches0"][()], group["matching_scores0"][()]
    assert matches.dtype.kind == "i"
    assert matches.shape == scores.shape == keypoints[0].shape[:1]
    first = np.flatnonzero(matches != -1)
    return keypoints[0][first], keypoints[1][matches[first]], scores[first]


@pytest.mark.parametrize("n", [0, 1, 10])
def test_pair_for_hloc(tmp_path: Path, n: int):
    pytest.importorskip("h5py")
    matches = some_matches(n)
    path = matches.save(tmp_path / "deep" / "pair.h5", names=NAMES)
    xy0, xy1, scores = read_hloc(path, path, *NAMES)
    np.testing.assert_array_equal(xy0, matches.xy0)
    np.testing.assert_array_equal(xy1, matches.xy1)
    np.testing.assert_array_equal(scores, matches.confidence)
    assert [file.name for file in path.parent.iterdir()] == ["pair.h5"]


def test_many_pairs_for_hloc(tmp_path: Path):
    pytest.importorskip("h5py")
    scene = make_scene(4)
    found = make_matches(scene)
    graph = link_matches(scene.names, found)
    path = write_hloc(tmp_path / "matches.h5", graph, features_path=tmp_path / "features.h5")
    for (name0, name1), matches in found.items():
        xy0, xy1, _ = read_hloc(path, tmp_path / "features.h5", name0, name1)
        order = [np.lexsort(xy.T) for xy in (xy0, matches.xy0)]
        np.testing.assert_allclose(xy0[order[0]], matches.xy0[order[1]], atol=1e-4)
        np.testing.assert_allclose(xy1[order[0]], matches.xy1[order[1]], atol=1e-4)
    clash = link_matches(["a/b", "a-b", "c"], {(n, "c"): some_matches_between(9) for n in ("a/b", "a-b")})
    with pytest.raises(ValueError, match="share one name"):
        write_hloc(tmp_path / "clash.h5", clash)


def some_matches_between(n: int) -> Matches:
    matches = some_matches(n)
    return Matches(matches.xy0, matches.xy1, matches.confidence, (99, 99), (99, 99))


def read_lists(path: Path) -> tuple[dict, dict]:
    """COLMAP's raw match list and the keypoint files beside it."""
    blocks = [block.splitlines() for block in path.read_text().split("\n\n") if block.strip()]
    pairs = {
        tuple(head.split(" ")): np.array([line.split() for line in lines], dtype=int).reshape(-1, 2)
        for head, *lines in blocks
    }
    keypoints = {}
    for name in {name for pair in pairs for name in pair}:
        head, *lines = (path.parent / "features" / f"{name}.txt").read_text().splitlines()
        count, size = map(int, head.split())
        assert (count, size) == (len(lines), 128)
        numbers = np.array([line.split() for line in lines], dtype=float).reshape(-1, 4 + size)
        np.testing.assert_array_equal(numbers[:, 2:4], np.tile([1.0, 0.0], (count, 1)))
        keypoints[name] = numbers[:, :2]
    return pairs, keypoints


def test_pair_for_colmap(tmp_path: Path):
    matches = some_matches()
    names = ("day/a.jpg", "night/b.jpg")
    pairs, keypoints = read_lists(matches.save(tmp_path / "out" / "list.txt", names=names))
    numbers = pairs[names]
    for side, (name, xy) in enumerate(zip(names, (matches.xy0, matches.xy1))):
        np.testing.assert_allclose(keypoints[name][numbers[:, side]] - 0.5, xy, atol=1e-5)


def test_many_pairs_for_colmap(tmp_path: Path):
    scene = make_scene(4)
    found = make_matches(scene)
    (tmp_path / "note").write_text("mine")
    pairs, keypoints = read_lists(write_colmap_lists(tmp_path / "list.txt", link_matches(scene.names, found)))
    assert set(pairs) == set(found)
    for pair, matches in found.items():
        assert len(pairs[pair]) == len(matches)
        distance = np.linalg.norm(keypoints[pair[0]][pairs[pair][:, 0], None] - 0.5 - matches.xy0, axis=-1)
        assert distance.min(axis=1).max() < 1e-3
    assert (tmp_path / "note").read_text() == "mine"


def test_refusals(tmp_path: Path):
    matches = some_matches()
    for suffix in (".h5", ".txt"):
        for names in (None, ("a", "a")):
            with pytest.raises(ValueError, match="names="):
                matches.save(tmp_path / f"x{suffix}", names=names)
    with pytest.raises(ValueError, match="space"):
        matches.save(tmp_path / "x.txt", names=NAMES)
    for bad in ("../b.jpg", "/b.jpg"):
        with pytest.raises(ValueError, match="inside the folder"):
            matches.save(tmp_path / "x.txt", names=("a.jpg", bad))
    assert list(tmp_path.iterdir()) == []
