"""Measuring retrieval and localisation: what counts, and the commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from mast3r.cli import main as command
from mast3r.evaluation import localization, retrieval
from mast3r.evaluation.localization import judge_places, left_out, places_table
from mast3r.evaluation.retrieval import judge_neighbours, retrieval_table, shared_points
from mast3r.evaluation.scenes import PosedScene, read_posed_scene
from mast3r.scenes.localization import LocalizedImage
from multiview.poses import Pose
from tests.mast3r.perfect_model import PerfectModel, pixels_of, views_of_room

TWO_SCENES = np.array([0, 0, 0, 1, 1, 1])


def overlapping() -> np.ndarray:
    same = TWO_SCENES[:, None] == TWO_SCENES
    return same & ~np.eye(6, dtype=bool)


def test_perfect_and_blind_similarities():
    perfect = judge_neighbours("perfect", overlapping().astype(float), TWO_SCENES, overlapping(), k=2)
    assert (perfect.same_scene, perfect.overlap, perfect.first, perfect.photos) == (1, 1, 1, 6)
    wrong = judge_neighbours("wrong", 1.0 - overlapping(), TWO_SCENES, overlapping(), k=2)
    assert (wrong.same_scene, wrong.overlap, wrong.first) == (0, 0, 0)
    assert "perfect" in retrieval_table([perfect, wrong])


def test_photos_that_overlap_with_none_are_not_counted():
    lonely = overlapping()
    lonely[0] = lonely[:, 0] = False
    score = judge_neighbours("x", overlapping().astype(float), TWO_SCENES, lonely, k=1)
    assert score.overlap == pytest.approx(3 / 5)  # photos 1 and 2 look at photo 0 first


def test_places_are_judged_in_the_world_of_the_truth():
    poses = tuple(Pose.from_rt(np.eye(3), np.array([float(k), 0, 0])) for k in range(5))
    scene = PosedScene("row", tuple(Path(f"{k}.jpg") for k in range(5)), poses, (None,) * 5)
    found = [
        LocalizedImage("localized", pose=Pose.from_rt(np.eye(3), np.array([1.0, 0.2, 0]))),
        LocalizedImage("failed", "Nothing fits."),
    ]
    score = judge_places(scene, [1, 3], found, intrinsics=True)
    assert (score.photos, score.localized, score.reasons) == (2, 1, ("Nothing fits.",))
    assert score.rotation_deg == pytest.approx(0, abs=1e-5)
    assert score.center == pytest.approx(0.1)
    nothing = judge_places(scene, [3], found[1:], intrinsics=False)
    assert nothing.center is None
    assert "1/2" in places_table([score, nothing])


def test_left_out_photos_are_spread_and_inside():
    assert left_out(11, 4) == [2, 4, 6, 8]
    assert left_out(3, 1) == [1]
    assert all(0 < k < 7 for k in left_out(8, 20))


@pytest.fixture
def room(tmp_path):
    """A scene on disk, and its views."""
    views = views_of_room(6)
    (tmp_path / "room" / "images").mkdir(parents=True)
    images = {}
    for k, view in enumerate(views):
        PIL.Image.fromarray(pixels_of(view)).save(tmp_path / "room" / "images" / f"{k}.png")
        images[f"images/{k}.png"] = {"K": view.K.tolist(), "T_w2c": np.linalg.inv(view.pose).tolist()}
    tracks = {
        "xyz": np.zeros((4, 3)),
        "obs_image": np.array([0, 0, 1, 2, 2, 2, 2]),
        "obs_point": np.array([0, 1, 1, 0, 1, 2, 3]),
        "image_names": np.array([f"images/{k}.png" for k in range(6)]),
    }
    np.savez(tmp_path / "room" / "points.npz", **tracks)
    content = {"images": images, "metric": True, "points": "points.npz"}
    (tmp_path / "room" / "gt.json").write_text(json.dumps(content))
    return tmp_path, views


def test_shared_points_are_counted_from_both_sides(room):
    scene = read_posed_scene(room[0] / "room")
    assert scene is not None
    shared = shared_points(room[0] / "room", scene)
    assert shared is not None
    assert shared[0].tolist() == [1, 0.5, 1, 0, 0, 0]
    assert shared[2].tolist() == [0.5, 0.25, 1, 0, 0, 0]


def test_a_perfect_network_localises(room, monkeypatch, capsys):
    folder, views = room
    monkeypatch.setattr("mast3r.loading.load", lambda *_, **__: PerfectModel(views))
    output = folder / "places.json"
    assert command(["evaluate", "localization", str(folder), "--queries", "2", "--json", str(output)]) == 0
    known, unknown = json.loads(output.read_text())
    assert (known["localized"], unknown["localized"]) == (2, 2)
    assert known["rotation_deg"] < 0.5
    assert known["center"] < 0.01
    assert "room" in capsys.readouterr().out


def test_retrieval_command(room, capsys):
    folder, _ = room
    assert command(["evaluate", "retrieval", str(folder), "--k", "2", "--json", str(folder / "r.json")]) == 0
    assert "words (default)" in capsys.readouterr().out
    assert len(json.loads((folder / "r.json").read_text())) == 3


def test_unknown_data_is_told(tmp_path, capsys):
    assert retrieval.main([str(tmp_path)]) == 2
    assert localization.main([str(tmp_path)]) == 2
    assert "error: " in capsys.readouterr().err
