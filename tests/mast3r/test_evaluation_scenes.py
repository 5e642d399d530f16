"""Measuring reconstructions: reading the truth, comparing poses, the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from mast3r.evaluation import scenes as module
from mast3r.evaluation.datasets import DatasetError
from mast3r.evaluation.scenes import (
    FoundCameras,
    PosedScene,
    ScenesReport,
    evaluate_method,
    judge_scene,
    main,
    pair_auc,
    read_posed_scene,
    read_posed_scenes,
    robust_similarity,
    save_scenes,
    scenes_table,
    sift_sfm,
)
from multiview.poses import Pose
from multiview.similarity import Similarity
from tests.mast3r.perfect_model import pixels_of, views_of_room
from tests.multiview.synthetic_pair import rotation


def truth(count: int = 8, seed: int = 0, **options) -> PosedScene:
    rng = np.random.default_rng(seed)
    poses = [Pose.from_rt(rotation(rng.normal(size=3), 0.6), rng.normal(size=3)) for _ in range(count)]
    paths = tuple(Path(f"{k}.jpg") for k in range(count))
    return PosedScene("hall", paths, tuple(poses), (None,) * count, **options)


def moved(scene: PosedScene, noise: float = 0.0) -> dict[int, Pose]:
    """The truth in another world."""
    rng = np.random.default_rng(1)
    map_ = Similarity(2.5, rotation((1.0, 2.0, 0.5), 1.1), np.array([4.0, -1.0, 2.0]))
    poses = [map_.apply_pose(pose) for pose in scene.poses]
    return {k: Pose.from_rt(p.rotation, p.center + rng.normal(0, noise, 3)) for k, p in enumerate(poses)}


def test_the_truth_in_another_world_has_no_error():
    scene = truth(metric=True)
    score = judge_scene(scene, moved(scene), seconds=2.0)
    assert (score.images, score.registered, score.seconds) == (8, 8, 2.0)
    assert score.rotation_deg == pytest.approx(0, abs=1e-5)
    assert score.center == pytest.approx(0, abs=1e-8)
    assert score.center_metres == pytest.approx(0, abs=1e-8)
    assert score.auc == pytest.approx(1.0, abs=1e-4)


def test_wild_cameras_do_not_spoil_the_alignment():
    scene = truth(12)
    found = moved(scene)
    for k in (0, 1, 2):
        found[k] = Pose.from_rt(found[k].rotation, found[k].center + 100)
    score = judge_scene(scene, found)
    assert score.center == pytest.approx(0, abs=1e-6)
    assert score.auc < 0.8


def test_a_median_error_is_a_share_of_the_extent():
    scene = truth(30, metric=True)
    score = judge_scene(scene, moved(scene, noise=0.25))  # a tenth of a unit in the world of the truth
    assert score.center_metres is not None
    assert 0.05 < score.center_metres < 0.25
    centers = np.array([pose.center for pose in scene.poses])
    extent = np.linalg.norm(centers - centers.mean(axis=0), axis=1).max()
    assert score.center == pytest.approx(score.center_metres / extent)


def test_failed_photos_count_against_the_pairs():
    scene = truth(6)
    found = moved(scene)
    del found[0], found[1]
    score = judge_scene(scene, found)
    assert score.registered == 4
    assert score.rotation_deg == pytest.approx(0, abs=1e-5)
    assert score.auc == pytest.approx(6 / 15, abs=1e-3)
    nothing = judge_scene(scene, {})
    assert (nothing.registered, nothing.rotation_deg, nothing.center, nothing.auc) == (0, None, None, 0.0)
    assert judge_scene(scene, {3: scene.poses[3]}).rotation_deg is None


def test_one_place_for_all_cameras_has_no_similarity():
    scene = truth(4)
    still = [Pose.from_rt(pose.rotation, np.zeros(3)) for pose in scene.poses]
    assert robust_similarity(still, scene.poses) is None
    assert pair_auc(scene, dict(enumerate(still))) <= 1


@pytest.fixture
def data(tmp_path):
    """Two scenes on disk: the room, and one without poses."""
    views = views_of_room(4, size=(80, 96))
    folder = tmp_path / "room"
    (folder / "images").mkdir(parents=True)
    images = {}
    for k, view in enumerate(views):
        PIL.Image.fromarray(pixels_of(view)).save(folder / "images" / f"{k}.png")
        images[f"images/{k}.png"] = {"K": view.K.tolist(), "T_w2c": np.linalg.inv(view.pose).tolist()}
    (folder / "gt.json").write_text(json.dumps({"images": images, "metric": True, "gt_confidence": "medium"}))
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "gt.json").write_text(json.dumps({"images": {"a.png": {}}}))
    return tmp_path


def test_posed_scenes_are_read_and_others_left_out(data):
    scene = read_posed_scene(data / "room")
    assert scene is not None
    assert (scene.name, scene.metric, scene.confidence, len(scene.paths)) == ("room", True, "medium", 4)
    np.testing.assert_allclose(scene.poses[1].world_from_cam, views_of_room(4, size=(80, 96))[1].pose, atol=1e-9)
    assert [found.name for found in read_posed_scenes(data)] == ["room"]
    assert read_posed_scene(data / "pairs") is None


def test_broken_data_is_told_in_one_sentence(data, tmp_path):
    with pytest.raises(DatasetError, match="No scene nowhere"):
        read_posed_scenes(data, ["nowhere"])
    with pytest.raises(DatasetError, match="at least three posed"):
        read_posed_scenes(data, ["pairs"])
    with pytest.raises(DatasetError, match="cannot be read"):
        read_posed_scene(tmp_path / "nothing")
    (data / "pairs" / "gt.json").write_text('{"images": [1]}')
    with pytest.raises(DatasetError, match="format"):
        read_posed_scene(data / "pairs")


def test_a_method_that_raises_has_placed_nothing(data):
    def broken(scene):
        raise ValueError("no features")

    report = evaluate_method("broken", broken, read_posed_scenes(data))
    assert report.scores[0].registered == 0
    assert report.scores[0].auc == 0


def test_tables_and_files_hold_all_methods(data, tmp_path):
    scene = read_posed_scenes(data)[0]
    reports = [
        evaluate_method("exact", lambda scene: FoundCameras(dict(enumerate(scene.poses))), [scene]),
        evaluate_method("half", lambda scene: FoundCameras(dict(list(enumerate(scene.poses))[:2])), [scene]),
    ]
    table = scenes_table(reports)
    rows = [line.split()[:2] for line in table.splitlines()[1:]]
    assert rows == [["room", "exact"], ["room", "half"], ["mean", "exact"], ["mean", "half"]]
    assert "4/4" in table
    assert "2/4" in table
    save_scenes(tmp_path / "numbers.json", reports)
    content = json.loads((tmp_path / "numbers.json").read_text())
    assert content["methods"]["exact"][0]["auc"] == pytest.approx(1.0)
    assert ScenesReport("x", ()).total() is None


def test_the_command_measures_what_it_is_asked_for(data, tmp_path, monkeypatch, capsys):
    def exact(scene, **_):
        return FoundCameras(dict(enumerate(scene.poses)), timings={"align": 1.0})

    monkeypatch.setattr(module, "sift_sfm", exact)
    assert main([str(data), "--weights", "none", "--baseline", "--json", str(tmp_path / "n.json")]) == 0
    assert "sift + colmap" in capsys.readouterr().out
    assert (tmp_path / "n.json").exists()
    assert main([str(data), "--weights", "none"]) == 2
    assert "Nothing to measure" in capsys.readouterr().err
    assert main([str(tmp_path / "nothing"), "--weights", "none", "--baseline"]) == 2


def test_colmap_that_finds_no_features_places_nothing(data):
    pytest.importorskip("pycolmap")
    scene = read_posed_scenes(data)[0]  # the room is painted in smooth colours
    for known in (False, True):
        found = sift_sfm(scene, known_intrinsics=known)
        assert set(found.poses) <= set(range(4))
        assert "features" in found.timings
