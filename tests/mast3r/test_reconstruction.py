"""Photos to a reconstruction: accuracy with a flawless network, and what goes wrong on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image
import pytest

from mast3r.alignment.problem import components
from mast3r.cloud_opt.config import SparseConfig, Stage
from mast3r.cloud_opt.utils.losses import GammaLoss
from mast3r.scenes.pair_cache import PairCache
from mast3r.scenes.photos import list_photos
from mast3r.scenes.reconstruction import STAGES, ReconstructConfig, reconstruct
from multiview.images import Image
from multiview.reconstruction import Reconstruction
from multiview.views import View, ViewConstraints, fixed
from tests.dust3r.room_scene import RoomView, pose_errors
from tests.mast3r.perfect_model import PerfectModel, pixels_of, views_of_room

SIZE = (80, 96)  # six by five patches
QUICK = SparseConfig(coarse=Stage(0.02, 40, GammaLoss(1.5)), fine=Stage(0.01, 60, GammaLoss(0.5)), opt_pp=False)
CONFIG = ReconstructConfig(image_size=96, crop=False, sparse=QUICK)


def perfect(views: list[RoomView], **options: Any) -> PerfectModel:
    return PerfectModel(views, side=96, **options)


def photos(views: list[RoomView]) -> list[np.ndarray]:
    return [pixels_of(view) for view in views]


def errors(scene: Reconstruction, views: list[RoomView], chosen: list[int]) -> tuple[float, float]:
    """Largest rotation error in degrees and centre error as a share of the room, after a similarity."""
    poses = [scene.images[k].pose for k in chosen]
    assert all(pose is not None for pose in poses)
    angles, centers = pose_errors(
        np.stack([pose.world_from_cam for pose in poses if pose]), np.stack([views[k].pose for k in chosen])
    )
    return float(angles.max()), float(centers.max())


@pytest.fixture(scope="module")
def views() -> list[RoomView]:
    return views_of_room(5, size=SIZE)


@pytest.fixture(scope="module")
def scene(views) -> Reconstruction:
    return reconstruct(perfect(views, scale_noise=0.1), photos(views), config=CONFIG)


def test_cameras_of_a_flawless_network_are_found(scene, views):
    assert scene.registered == tuple(range(5))
    assert scene.components == (0,)
    angle, center = errors(scene, views, [0, 1, 2, 3, 4])
    assert angle < 1.0
    assert center < 0.01
    for image, view in zip(scene.images, views):
        assert image.camera is not None
        assert image.camera.focal[0] == pytest.approx(view.K[0, 0], rel=0.05)
        assert image.size == image.colors.shape[1::-1]


def test_points_tracks_and_times_come_along(scene):
    points, colors = scene.points()
    assert len(points) == len(colors) > 0.5 * 5 * SIZE[0] * SIZE[1]
    assert len(scene.tracks) > 100
    assert scene.tracks.lengths.min() >= 2
    assert list(scene.timings) == list(STAGES)


def test_each_photo_is_encoded_once_and_a_second_run_only_reads(views, tmp_path, monkeypatch):
    model = perfect(views)
    first = reconstruct(model, photos(views), config=CONFIG, cache_dir=tmp_path)
    assert sorted(model.encoded) == [0, 1, 2, 3, 4]
    assert model.decoded == 2 * 10
    model.encoded.clear()
    model.decoded = 0
    monkeypatch.setattr("mast3r.scenes.placed_pairs.MatchPlacer", None)  # nothing is placed a second time
    again = reconstruct(model, photos(views), config=CONFIG, cache_dir=tmp_path)
    assert (model.encoded, model.decoded) == ([], 0)
    for one, other in zip(first.images, again.images):
        assert np.array_equal(one.pose.world_from_cam, other.pose.world_from_cam)


def test_little_memory_gives_the_same(views, scene):
    frugal = reconstruct(perfect(views, scale_noise=0.1), photos(views), config=CONFIG, max_memory=1)
    for one, other in zip(scene.images, frugal.images):
        np.testing.assert_allclose(one.pose.world_from_cam, other.pose.world_from_cam, atol=1e-3)


def test_a_bad_photo_fails_alone(views, tmp_path):
    paths = []
    for k, view in enumerate(views[:3]):
        paths.append(tmp_path / f"photo{k}.png")
        PIL.Image.fromarray(pixels_of(view)).save(paths[-1])
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    PIL.Image.fromarray(np.zeros((20, 400, 3), np.uint8)).save(tmp_path / "strip.png")
    images = [paths[0], tmp_path / "broken.jpg", paths[1], tmp_path / "missing.jpg", tmp_path / "strip.png", paths[2]]
    result = reconstruct(perfect(views[:3]), images, config=CONFIG)
    assert [image.name for image in result.images] == [path.name for path in images]
    assert [image.status for image in result.images] == [
        "registered",
        "failed",
        "registered",
        "failed",
        "failed",
        "registered",
    ]
    reasons = [image.reason for image in result.images]
    assert "not an image" in reasons[1]
    assert "missing.jpg" in reasons[3]
    assert "elongated" in reasons[4]
    assert result.images[2].path == paths[1]


@pytest.mark.parametrize("readable", [0, 1])
def test_too_few_readable_photos_are_no_crash(views, tmp_path, readable):
    images = [tmp_path / "missing.jpg", *photos(views)[:readable]]
    result = reconstruct(perfect(views), images, config=CONFIG)
    assert not result.registered
    assert all(image.reason for image in result.images)


def test_two_places_become_two_components():
    views = [*views_of_room(3, size=SIZE), *views_of_room(3, size=SIZE, seed=5)]
    model = perfect(views, worlds=[0, 0, 0, 1, 1, 1])
    result = reconstruct(model, photos(views), config=CONFIG)
    assert len(result.registered) == 6
    assert result.components == (0, 1)
    assert len({image.component for image in result.images[:3]}) == 1
    assert result.images[0].component != result.images[3].component
    for chosen in ([0, 1, 2], [3, 4, 5]):
        angle, center = errors(result, views, chosen)
        assert angle < 1.0
        assert center < 0.01


def test_a_photo_of_another_place_fails_with_a_reason():
    views = [*views_of_room(3, size=SIZE), *views_of_room(1, size=SIZE, seed=5)]
    result = reconstruct(perfect(views, worlds=[0, 0, 0, 1]), photos(views), config=CONFIG)
    assert result.registered == (0, 1, 2)
    assert result.images[3].reason


def test_known_cameras_come_back_exactly(views):
    known = [ViewConstraints(K=fixed(view.K), pose=fixed(view.pose)) for view in views[:2]]
    result = reconstruct(perfect(views), photos(views), views=[*known, None, None, None], config=CONFIG)
    for image, view in zip(result.images[:2], views):
        assert np.array_equal(image.camera.K, view.K)
        assert np.array_equal(image.pose.world_from_cam, view.pose)
    assert result.scale_status == "metric-given"
    poses = np.stack([image.pose.world_from_cam for image in result.images])
    angles, centers = pose_errors(poses, np.stack([view.pose for view in views]), align=False)
    assert angles.max() < 1.0
    assert centers.max() < 0.01


def test_constraints_follow_photos_that_are_resized(views):
    """The user's pixels are the original's."""
    large = [
        np.asarray(PIL.Image.fromarray(pixels_of(v)).resize((2 * v.image.shape[2], 2 * v.image.shape[1]), 0))
        for v in views
    ]
    K = views[0].K.copy()
    K[:2] *= 2
    K[:2, 2] += 0.5
    seen = []

    class Watching(PerfectModel):
        def _number(self, image):
            seen.append(tuple(image.shape))
            return len(seen) - 1

    images = [View(large[0], ViewConstraints(K=fixed(K))), *large[1:3]]
    # enlarged photos know no more than the small ones: they must not place matches
    result = reconstruct(Watching(views[:3], side=96), images, config=replace(CONFIG, photometric=False))
    assert np.array_equal(result.images[0].camera.K, K)
    assert result.images[0].size == (2 * views[0].image.shape[2], 2 * views[0].image.shape[1])
    assert result.images[1].camera.focal[0] == pytest.approx(2 * views[1].K[0, 0], rel=0.05)
    assert errors(result, views, [0, 1, 2])[0] < 1.0


@pytest.mark.parametrize("way", ["dense", "colmap"])
def test_other_alignments_find_the_same_cameras(views, way):
    if way == "colmap":
        pytest.importorskip("pycolmap")
    config = replace(CONFIG, alignment=way)
    result = reconstruct(perfect(views[:4], scale_noise=0.05), photos(views[:4]), config=config)
    assert result.registered == (0, 1, 2, 3)
    angle, center = errors(result, views, [0, 1, 2, 3])
    assert angle < 1.0
    assert center < 0.01
    first, last = (views[k].pose[:3, 3] for k in (0, 3))
    baseline = np.linalg.norm(result.images[0].pose.center - result.images[3].pose.center)
    assert baseline == pytest.approx(np.linalg.norm(first - last), rel=0.15)  # the network's unit of length
    assert all(image.pointmap is not None for image in result.images)


@pytest.mark.parametrize("way", ["dense", "colmap"])
def test_constraints_that_an_alignment_cannot_take_are_refused(views, way):
    depth = ViewConstraints(depth=fixed(np.ones(SIZE)))
    with pytest.raises(ValueError, match="use alignment='sparse'"):
        reconstruct(perfect(views[:2]), photos(views[:2]), views=[depth, None], config=replace(CONFIG, alignment=way))


def test_dense_alignment_that_does_not_fit_is_refused(views):
    config = replace(CONFIG, alignment="dense")
    with pytest.raises(ValueError, match="max_memory"):
        reconstruct(perfect(views[:3]), photos(views[:3]), config=config, max_memory=1000)


def test_progress_rises_and_the_plan_is_told_first(views):
    told: list[tuple[float, str]] = []
    plans = []
    reconstruct(
        perfect(views[:3]),
        photos(views[:3]),
        config=CONFIG,
        progress=lambda share, stage: told.append((share, stage)),
        on_plan=lambda plan: plans.append((plan, len(told))),
    )
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert shares[-1] == pytest.approx(1.0)
    assert list(dict.fromkeys(stage for _, stage in told)) == list(STAGES)
    plan, when = plans[0]
    assert plan.pairs == 3
    assert plan.seconds is not None
    assert "pairs" not in {stage for _, stage in told[:when]}


def test_given_pairs_count_all_photos_and_skip_bad_ones(views, tmp_path):
    model = perfect(views)
    images = [photos(views)[0], tmp_path / "missing.jpg", *photos(views)[1:3]]
    result = reconstruct(model, images, scene_graph=[(0, 1), (0, 2), (2, 3)], config=CONFIG)
    assert model.decoded == 2 * 2
    assert result.registered == (0, 2, 3)


def test_pairs_of_unreadable_photos_only_place_nothing(views, tmp_path):
    images = [photos(views)[0], tmp_path / "missing.jpg", photos(views)[1]]
    result = reconstruct(perfect(views), images, scene_graph=[(0, 1)], config=CONFIG)
    assert not result.registered
    with pytest.raises(ValueError, match=r"0\.\.2"):
        reconstruct(perfect(views), images, scene_graph=[(0, 3)], config=CONFIG)


def test_a_photo_given_twice_is_computed_once(views):
    model = perfect(views[:3])
    images = photos(views[:3])
    result = reconstruct(model, [*images, images[0]], config=CONFIG)
    assert sorted(model.encoded) == [0, 1, 2]
    assert result.registered == (0, 1, 2, 3)
    first, again = result.images[0].pose, result.images[3].pose
    assert first is not None
    assert again is not None
    assert first.relative(again).angle_deg < 1.0


def test_names_are_unique_and_tell_folders_apart(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        PIL.Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / folder / "x.png")
    inside = list_photos([tmp_path / "a" / "x.png", tmp_path / "b" / "x.png", tmp_path / "b" / "x.png"])
    assert [view.name for view in inside] == ["a/x.png", "b/x.png", "b/x.png (2)"]
    arrays = list_photos([np.zeros((32, 32, 3), np.uint8), View(Image(np.zeros((32, 32, 3), np.uint8)), name="hall")])
    assert [view.name for view in arrays] == ["image 0", "hall"]
    assert [view.name for view in list_photos(tmp_path / "a")] == ["x.png"]


def test_wrong_input_is_refused(tmp_path, views):
    model = perfect(views)
    with pytest.raises(ValueError, match="no images"):
        reconstruct(model, [])
    with pytest.raises(ValueError, match="holds no image"):
        reconstruct(model, tmp_path)
    with pytest.raises(NotADirectoryError, match="no folder"):
        reconstruct(model, str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="one each"):
        reconstruct(model, photos(views), views=[None])
    with pytest.raises(ValueError, match="alignment must be"):
        ReconstructConfig(alignment="magic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size"):
        ReconstructConfig(batch_size=0)


def test_components_are_sorted_by_size():
    assert components(7, [(0, 1), (2, 3), (3, 4)]) == [(2, 3, 4), (0, 1)]
    assert components(3, []) == []


WORKER = """
import sys
import numpy as np, torch
from mast3r.cloud_opt.config import SparseConfig, Stage
from mast3r.cloud_opt.utils.losses import GammaLoss
from mast3r.model import AsymmetricMASt3R
from mast3r.scenes.reconstruction import ReconstructConfig, reconstruct
from mast3r.training import PRESETS
torch.manual_seed(0)
model = AsymmetricMASt3R(**PRESETS["tiny"].model).eval()
decoded = 0
decode = model._decoder
def counting(f1, *rest):
    global decoded
    decoded += len(f1)
    return decode(f1, *rest)
model._decoder = counting
rng = np.random.default_rng(0)
photos = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(8)]
short = SparseConfig(coarse=Stage(0.02, 2, GammaLoss(1.5)), fine=Stage(0.01, 2, GammaLoss(0.5)))
config = ReconstructConfig(image_size=64, batch_size=1, sparse=short)
scene = reconstruct(model, photos, config=config, cache_dir=sys.argv[1])
assert len(scene.images) == 8
print(decoded)
"""


def test_a_killed_reconstruction_goes_on_and_noise_does_not_break_it(tmp_path):
    """Kill -9 between two pairs; the second run computes only what is missing. The network is untrained."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    cache = PairCache(tmp_path)
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    while sum(1 for _ in cache.keys()) < 8 + 10 and first.poll() is None:
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    first.wait()
    survived = sum(1 for _ in cache.keys()) - 8
    assert 0 < survived < 28
    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(second.stdout) == 2 * (28 - survived)
