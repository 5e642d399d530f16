"""Pointmaps, matches and pair results: selection, round trips, atomic files."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from multiview.files import atomic_write, write_npz
from multiview.images import ImageTransform
from multiview.matches import Matches
from multiview.pointmaps import Pointmap
from multiview.poses import Pose
from multiview.results import PairResult
from tests.multiview.synthetic_pair import make_pair


@pytest.fixture
def pair() -> PairResult:
    """The synthetic pair."""
    return make_pair()


def some_matches(n: int = 10) -> Matches:
    rng = np.random.default_rng(0)
    return Matches(rng.uniform(0, 90, (n, 2)), rng.uniform(0, 90, (n, 2)), rng.uniform(1, 9, n), (100, 90), (95, 91))


def test_filter_and_top():
    matches = some_matches()
    mask = matches.confidence > 4
    kept = matches.filter(mask)
    assert len(kept) == mask.sum()
    np.testing.assert_array_equal(kept.xy1, matches.xy1[mask])
    assert kept.size1 == (95, 91)
    top = matches.top(3)
    assert (np.diff(top.confidence) <= 0).all()
    assert top.confidence.min() >= np.sort(matches.confidence)[-3]
    assert len(matches.top(99)) == 10
    assert len(matches.top(0)) == 0
    np.testing.assert_array_equal(matches.filter([3, 1]).xy0, matches.xy0[[3, 1]])


def test_matches_refusals():
    matches = some_matches()
    with pytest.raises(ValueError, match="mask"):
        matches.filter(np.ones(3, bool))
    with pytest.raises(ValueError, match="below 10"):
        matches.filter([10])
    with pytest.raises(ValueError, match="negative"):
        matches.top(-1)
    with pytest.raises(ValueError, match="one length"):
        Matches(np.zeros((2, 2)), np.zeros((3, 2)), np.zeros(2), (9, 9), (9, 9))
    with pytest.raises(ValueError, match="npz"):
        matches.save("matches.csv")


@pytest.mark.parametrize("n", [0, 1, 10])
def test_matches_round_trip(tmp_path, n):
    matches = some_matches(n)
    loaded = Matches.load(matches.save(tmp_path / "deep" / "matches.npz"))
    for name in ("xy0", "xy1", "confidence"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(matches, name))
        assert getattr(loaded, name).dtype == np.float32
    assert (loaded.size0, loaded.size1, loaded.model_size0) == ((100, 90), (95, 91), None)
    assert f"Matches({n} between 100x90 and 95x91" in repr(loaded)


def test_matches_swapped():
    matches = some_matches()
    assert matches.swapped().size0 == matches.size1
    np.testing.assert_array_equal(matches.swapped().swapped().xy0, matches.xy0)


def test_loading_other_files_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("text")
    np.savez(tmp_path / "other.npz", a=np.zeros(2))
    np.savez(tmp_path / "pickled.npz", xy0=np.array([{}], dtype=object))
    np.save(tmp_path / "single.npz.npy", np.zeros(3))
    for name in ("text.npz", "other.npz", "pickled.npz", "single.npz.npy"):
        for kind in (Matches, PairResult):
            with pytest.raises(ValueError, match=name):
                kind.load(tmp_path / name)
    for kind in (Matches, PairResult):
        with pytest.raises(FileNotFoundError):
            kind.load(tmp_path / "none.npz")


def test_pointmap():
    points = np.ones((4, 5, 3), np.float64)
    points[0, 0] = np.nan
    pointmap = Pointmap(points, np.arange(20).reshape(4, 5), "camera 0")
    assert pointmap.points.dtype == np.float32
    assert pointmap.size == (5, 4)
    assert pointmap.valid.sum() == 19
    assert pointmap.confident(0).sum() == 19
    assert pointmap.confident(50).sum() == 10
    moved = pointmap.moved(Pose.from_rt(np.eye(3), np.array([1, 0, 0])), "world")
    assert moved.points[1, 1].tolist() == [2, 1, 1]
    assert moved.frame == "world"
    assert "5x4" in repr(pointmap)
    with pytest.raises(ValueError, match="percentile"):
        pointmap.confident(101)
    with pytest.raises(ValueError, match="Pointmap needs"):
        Pointmap(points, np.zeros((5, 4)), "x")
    assert not Pointmap(np.full((2, 2, 3), np.nan), np.ones((2, 2)), "x").confident(10).any()


def test_a_confidence_that_tells_nothing_drops_nothing():
    """What float32 leaves of 1 + exp(-15) differs by rounding only."""
    rounding = np.float32(1) + np.arange(20, dtype=np.float32).reshape(4, 5) * np.float32(1e-7)
    assert Pointmap(np.ones((4, 5, 3)), rounding, "x").confident(50).all()
    heavy = np.geomspace(1.01, 1e6, 20).reshape(4, 5)
    assert Pointmap(np.ones((4, 5, 3)), heavy, "x").confident(50).sum() == 10


def test_pair_result_facts(pair):
    assert "metric-predicted" in repr(pair)
    assert "baseline 0.415 m" in repr(pair)
    assert pair.colors(0).shape == pair.pointmaps[0].points.shape
    np.testing.assert_allclose(pair.depth(0), 2, atol=1e-5)
    np.testing.assert_allclose(make_pair(own=False).depth(1), pair.depth(1), atol=1e-5)
    assert pair.poses[0].world_from_cam.tolist() == np.eye(4).tolist()
    assert pair.confidences[1] is pair.pointmaps[1].confidence


def test_pair_without_pose_is_honest(tmp_path):
    pair = make_pair(own=False, pose=False)
    assert "no pose" in repr(pair)
    assert pair.baseline is None
    with pytest.raises(ValueError, match="pose"):
        pair.depth(1)
    assert PairResult.load(pair.save(tmp_path / "pair.npz")).pose1 is None
    for suffix in ("glb", "ply", "json"):
        assert pair.save(tmp_path / f"pair.{suffix}").stat().st_size


def test_pair_result_checks_sizes(pair):
    kwargs = {name: getattr(pair, name) for name in pair.__dataclass_fields__}
    with pytest.raises(ValueError, match="scale_status"):
        PairResult(**kwargs | {"scale_status": "metric"})
    with pytest.raises(ValueError, match="original size"):
        PairResult(**kwargs | {"cameras": pair.cameras[::-1]})
    identity = ImageTransform.identity(pair.images[0].size)
    with pytest.raises(ValueError, match="Pointmap 0"):
        PairResult(**kwargs | {"transforms": (identity, pair.transforms[1])})


@pytest.mark.parametrize("own", [True, False])
def test_npz_round_trip(tmp_path, own):
    pair = make_pair(own=own)
    loaded = PairResult.load(pair.save(tmp_path / "pair.npz"))
    for i in (0, 1):
        np.testing.assert_array_equal(loaded.images[i].pixels, pair.images[i].pixels)
        np.testing.assert_array_equal(loaded.pointmaps[i].points, pair.pointmaps[i].points)
        np.testing.assert_array_equal(loaded.confidences[i], pair.confidences[i])
        np.testing.assert_array_equal(loaded.cameras[i].K, pair.cameras[i].K)
        np.testing.assert_array_equal(loaded.transforms[i].matrix, pair.transforms[i].matrix)
    np.testing.assert_array_equal(loaded.matches.xy1, pair.matches.xy1)
    np.testing.assert_array_equal(loaded.pose1.world_from_cam, pair.pose1.world_from_cam)
    assert loaded.timings == pair.timings
    assert (loaded.own_pointmap1 is not None) == own
    assert repr(loaded) == repr(pair)


def test_json(tmp_path, pair):
    data = json.loads(pair.save(tmp_path / "pair.json").read_text())
    assert data["scale_status"] == "metric-predicted"
    assert data["num_matches"] == len(pair.matches)
    np.testing.assert_allclose(data["pose1_world_from_cam"], pair.pose1.world_from_cam)
    assert data["views"][1]["size"] == [100, 120]


@pytest.mark.parametrize("name", ["pair.obj", "pair", "pair.npz.txt"])
def test_unknown_suffix(tmp_path, pair, name):
    with pytest.raises(ValueError, match=r"\.glb, \.ply, \.npz or \.json"):
        pair.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_atomic_write_replaces_or_leaves_alone(tmp_path):
    path = tmp_path / "new" / "file.bin"
    with atomic_write(path) as file:
        file.write(b"first")
        assert not path.exists()
    assert path.read_bytes() == b"first"

    def interrupted():
        with atomic_write(path) as file:
            file.write(b"half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        interrupted()
    assert path.read_bytes() == b"first"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["pair.glb", "pair.ply", "pair.npz", "pair.json"])
def test_failed_save_leaves_nothing(tmp_path, pair, name, monkeypatch):
    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        pair.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_npz_refuses_objects(tmp_path):
    with pytest.raises(ValueError, match="'a'"):
        write_npz(tmp_path / "x.npz", a=object())
    assert list(tmp_path.iterdir()) == []


def test_import_is_light():
    code = (
        "import sys, multiview, multiview.export, multiview.plots, multiview.robust, multiview.metrics;"
        "heavy = {'matplotlib', 'trimesh', 'poselib', 'torch', 'scipy', 'cv2'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
