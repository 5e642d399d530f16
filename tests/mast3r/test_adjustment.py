"""Large photos know the cameras better than the network that saw small ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from dust3r.image_pairs import Edge
from mast3r.alignment import Alignment, AlignmentName, AlignmentProblem, align
from mast3r.scenes.adjustment import SHARED_FOCAL
from mast3r.scenes.pair_store import PlacedPair
from mast3r.scenes.placed_pairs import placed_by_photos
from mast3r.scenes.reconstruction import ReconstructConfig, reconstruct
from multiview.bundle_adjustment import BundleConfig, bundle_adjust, with_shared_cameras
from multiview.poses import Pose
from multiview.reconstruction import Reconstruction
from multiview.views import View, ViewConstraints, fixed
from tests.dust3r.room_scene import RoomView, pose_errors
from tests.mast3r.perfect_model import PerfectModel, views_of_room
from tests.mast3r.test_reconstruction import CONFIG, SIZE

COUNT, TIMES = 6, 4


def painted(view: RoomView) -> np.ndarray:
    """The room with surfaces of fine texture, (H, W, 3) uint8."""
    rng = np.random.default_rng(7)
    waves, phase = rng.normal(0, 1, (3, 90)) * np.repeat([4.0, 12.0, 30.0], 30), rng.uniform(0, 6, 90)
    grey = np.sin(np.asarray(view.points, dtype=np.float64) @ waves + phase).mean(-1)
    return np.repeat((127 + 900 * grey).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


class KnowingModel(PerfectModel):
    """Knows small views by large photos of them."""

    def __init__(self, views: list[RoomView], photos: list[np.ndarray]) -> None:
        super().__init__(views, side=max(SIZE))
        self._small = [torch.from_numpy(photo[..., 0].copy()).float() / 127.5 - 1 for photo in photos]

    def _number(self, image: torch.Tensor) -> int:
        height, width = image.shape[1:]
        means = [
            photo.unflatten(0, (height, TIMES)).unflatten(2, (width, TIMES)).mean((1, 3))
            if photo.shape == (TIMES * height, TIMES * width)
            else torch.full((height, width), torch.inf)
            for photo in self._small
        ]
        return int(torch.stack([(mean - image[0]).abs().mean() for mean in means]).argmin())


@pytest.fixture(scope="module")
def large() -> list[RoomView]:
    return views_of_room(COUNT, size=(TIMES * SIZE[0], TIMES * SIZE[1]))


def found(large: list[RoomView], config: ReconstructConfig, known: dict[int, ViewConstraints] | None = None):
    photos = [painted(view) for view in large]
    images = [View(photo, (known or {}).get(k, ViewConstraints())) for k, photo in enumerate(photos)]
    return reconstruct(KnowingModel(views_of_room(COUNT, size=SIZE), photos), images, config=config)


def poses(scene: Reconstruction) -> np.ndarray:
    return np.stack([image.pose.world_from_cam for image in scene.images if image.pose])


def errors(scene: Reconstruction, large: list[RoomView]) -> tuple[float, float]:
    angles, centers = pose_errors(poses(scene), np.stack([view.pose for view in large]))
    return float(angles.max()), float(centers.max())


@pytest.fixture(scope="module")
def adjusted(large) -> Reconstruction:
    pytest.importorskip("pycolmap")
    return found(large, CONFIG)


def test_adjusted_cameras_are_closer_to_the_truth(large, adjusted):
    aligned = errors(found(large, replace(CONFIG, adjust=False)), large)
    assert errors(adjusted, large)[0] < 0.15
    assert errors(adjusted, large)[0] < 0.5 * aligned[0]
    assert errors(adjusted, large)[1] < 0.5 * aligned[1]
    for image, view in zip(adjusted.images, large):
        assert image.camera.focal == pytest.approx((view.K[0, 0], view.K[1, 1]), rel=5e-3)


def test_nothing_is_adjusted_twice(large, monkeypatch):
    pytest.importorskip("pycolmap")
    starts = []

    def noted(scene: Reconstruction, config: BundleConfig) -> Reconstruction:
        shared = with_shared_cameras(scene.images, config.shared_focal)
        starts.append([image.camera.K.tolist() for image in shared if image.camera] + poses(scene).tolist())
        return bundle_adjust(scene, config)

    monkeypatch.setattr("multiview.bundle_adjustment.bundle_adjust", noted)
    monkeypatch.setattr("mast3r.scenes.adjustment._HELD_TOGETHER", SHARED_FOCAL)
    found(large, CONFIG)
    assert len(starts) >= 2
    assert all(starts[k] not in starts[:k] for k in range(len(starts)))


def test_tracks_run_through_many_photos(large, adjusted):
    loose = found(large, replace(CONFIG, photometric=False)).tracks
    assert adjusted.tracks.lengths.mean() > max(3.0, loose.lengths.mean())


def test_pointmaps_follow_the_cameras(adjusted):
    for image in adjusted.images:
        seen = image.camera.transformed(image.transform)
        own = image.pose.inverse().apply(image.pointmap.points.astype(np.float64))
        xy = (own @ seen.K.T)[..., :2] / own[..., 2:]
        y, x = np.mgrid[: own.shape[0], : own.shape[1]]
        assert np.median(np.abs(xy - np.stack([x, y], axis=-1))) < 0.05


def test_known_intrinsics_and_poses_stay(large):
    pytest.importorskip("pycolmap")
    known = {k: ViewConstraints(K=fixed(large[k].K), pose=fixed(large[k].pose)) for k in (0, 1, 2)}
    scene = found(large, CONFIG, known)
    for k in known:
        camera = scene.images[k].camera
        assert camera is not None
        np.testing.assert_array_equal(camera.K, large[k].K)
        np.testing.assert_allclose(poses(scene)[k], large[k].pose, atol=1e-6)
    assert errors(scene, large)[0] < 0.3


def test_no_pycolmap_no_adjustment(large, monkeypatch):
    monkeypatch.setattr("mast3r.scenes.adjustment.find_spec", lambda name: None)
    left, never = found(large, CONFIG), found(large, replace(CONFIG, adjust=False))
    np.testing.assert_allclose(poses(left), poses(never), atol=1e-9)


@pytest.fixture
def ways(monkeypatch) -> list[str]:
    """How scenes were aligned; cameras look the wrong way, unless COLMAP aligns them."""
    used = []

    def confused(problem: AlignmentProblem, way: AlignmentName = "sparse", **options: Any) -> Alignment:
        used.append(way)
        right = align(problem, "colmap")
        if way == "colmap":
            return right
        turn = np.random.default_rng(0)
        return replace(right, views=tuple(replace(view, pose=turned(view.pose, turn)) for view in right.views))

    monkeypatch.setattr("mast3r.scenes.reconstruction.align", confused)
    pytest.importorskip("pycolmap")
    return used


def test_the_mapper_has_a_second_try_where_little_is_explained(large, ways):
    scene = found(large, CONFIG)
    assert ways == ["sparse", "colmap"]
    assert errors(scene, large)[0] < 0.3
    ways.clear()
    left = found(large, replace(CONFIG, retry=False))
    assert ways == ["sparse"]
    assert errors(left, large)[0] > 5


def test_the_mapper_is_asked_again_with_other_seeds(large, monkeypatch):
    pytest.importorskip("pycolmap")
    asked = []

    def lucky_once(problem: AlignmentProblem, way: AlignmentName = "sparse", **options: Any) -> Alignment:
        asked.append((way, problem.seed))
        right, turn = align(problem, "colmap"), np.random.default_rng(len(asked))
        if problem.seed == 1:
            return right
        return replace(right, views=tuple(replace(view, pose=turned(view.pose, turn)) for view in right.views))

    monkeypatch.setattr("mast3r.scenes.reconstruction.align", lucky_once)
    scene = found(large, CONFIG)
    assert asked == [("sparse", 0), ("colmap", 0), ("colmap", 1)]
    assert errors(scene, large)[0] < 0.3


def test_no_second_try_with_many_photos(large, ways, monkeypatch):
    monkeypatch.setattr("mast3r.scenes.adjustment._MOST_MAPPED", COUNT - 1)
    found(large, CONFIG)
    assert ways == ["sparse"]


def test_no_second_try_where_photos_cannot_place_matches_better_than_the_network(large, ways, monkeypatch):
    monkeypatch.setattr("mast3r.scenes.adjustment.FINER", TIMES + 1)
    found(large, CONFIG)
    assert ways == ["sparse"]


def turned(pose: Pose | None, rng: np.random.Generator) -> Pose | None:
    if pose is None:
        return None
    return Pose.from_rt(Rotation.from_rotvec(rng.normal(0, 0.5, 3)).as_matrix() @ pose.rotation, pose.center)


def test_pairs_that_the_photos_do_not_confirm_are_not_aligned(large, monkeypatch):
    seen = []

    def unsure(photos, problem: AlignmentProblem, **options: Any) -> dict[Edge, PlacedPair]:
        placed = placed_by_photos(photos, problem, **options)
        return {edge: replace(pair, believed=0.05 if edge == (0, 5) else 0.9) for edge, pair in placed.items()}

    def noted(problem: AlignmentProblem, way: AlignmentName = "sparse", **options: Any) -> Alignment:
        seen.append(set(problem.edges))
        return align(problem, way, **options)

    monkeypatch.setattr("mast3r.scenes.reconstruction.placed_by_photos", unsure)
    monkeypatch.setattr("mast3r.scenes.reconstruction.align", noted)
    for least in (ReconstructConfig().least_believed, 0.0):
        found(large, replace(CONFIG, least_believed=least, adjust=False))
    assert seen[1] - seen[0] == {(0, 5)}
    with pytest.raises(ValueError, match=r"least_believed must be in 0\.\.1, got 2"):
        ReconstructConfig(least_believed=2)
