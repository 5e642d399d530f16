"""Matches correct cameras and pointmaps of a pair; where they cannot, nothing changes."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch

import mast3r
from mast3r.model import AsymmetricMASt3R
from mast3r.pairs.focal_priors import ORDINARY_FOCAL, FocalPrior, focal_prior
from mast3r.pairs.geometry import SeenMap
from mast3r.pairs.refinement import RefinedPair, ViewEvidence, refine_pair
from mast3r.predictor import PairConfig
from mast3r.training import PRESETS
from multiview.cameras import Camera
from multiview.images import Image, ImageTransform, as_image
from multiview.matches import Matches
from multiview.metrics import relative_pose_error
from multiview.pointmaps import Pointmap
from tests.mast3r.perfect_model import PerfectModel, pixels_of, views_of_room
from tests.multiview.two_view_scene import TwoViewScene


@pytest.fixture(scope="module")
def scene() -> TwoViewScene:
    return TwoViewScene(degrees=-25.0, center1=(2.2, 0.5, 0.9))


def distorted_map(scene: TwoViewScene, i: int, *, scale: float = 1.0, strength: float = 0.3) -> SeenMap:
    """What a mediocre network says: wrong depth, and points on rays of a wrong focal length."""
    width, height = scene.size
    x, y = np.moveaxis(scene.pixels() / np.array(scene.size), -1, 0)
    depth = scene.depth_map(i) * scale * np.exp(strength * np.sin(2 * x + y))
    wrong = Camera.from_focal(1.3 * scene.cameras[i].focal[0], width, height)
    points = wrong.unproject(scene.pixels(), depth)
    confidence = 1 + np.arange(width * height, dtype=float).reshape(height, width)
    return SeenMap(Pointmap(points, confidence, f"camera {i}"), ImageTransform.identity(scene.size))


def evidence(scene: TwoViewScene, *, known: bool = False, factor: float = 1.2) -> tuple[ViewEvidence, ViewEvidence]:
    views = []
    for i in (0, 1):
        camera = scene.cameras[i]
        guess = Camera.from_focal(factor * camera.focal[0], *scene.size)
        prior = FocalPrior(camera, 0.0) if known else FocalPrior(guess, 0.4)
        views.append(ViewEvidence(distorted_map(scene, i, scale=1 + i), prior, scene.colors(i)))
    return views[0], views[1]


def depth_errors(found: RefinedPair, scene: TwoViewScene) -> list[float]:
    """Median relative errors of both depth maps in their own cameras, after one common scale."""
    depths = [found.maps[0].points[..., 2], found.own1.points[..., 2]]
    ratios = [depth / scene.depth_map(i) for i, depth in enumerate(depths)]
    scale = np.median(np.concatenate([ratio.ravel() for ratio in ratios]))
    return [float(np.median(np.abs(ratio / scale - 1))) for ratio in ratios]


def test_exact_matches_and_cameras_make_depth_right(scene):
    found = refine_pair(scene.matches(1500), evidence(scene, known=True))
    assert found is not None
    assert max(depth_errors(found, scene)) < 0.01
    for camera, given in zip(found.cameras, scene.cameras):
        np.testing.assert_array_equal(camera.K, given.K)
    assert found.pose.pose1 is not None
    error = relative_pose_error(*_Rt(found), scene.pose1.cam_from_world)
    assert error.max_deg < 0.2
    assert found.pose.num_inliers > 1400


def _Rt(found: RefinedPair) -> tuple[np.ndarray, np.ndarray]:
    assert found.pose.pose1 is not None
    transform = found.pose.pose1.cam_from_world
    return transform[:3, :3], transform[:3, 3]


def test_focal_lengths_are_found(scene):
    found = refine_pair(scene.matches(1500, noise=0.2), evidence(scene))
    assert found is not None
    for camera, true in zip(found.cameras, scene.cameras):
        assert abs(camera.focal[0] / true.focal[0] - 1) < 0.1
    assert max(depth_errors(found, scene)) < 0.05


def test_noise_and_outliers(scene):
    found = refine_pair(scene.matches(1500, noise=0.5, outliers=0.3), evidence(scene, known=True))
    assert found is not None
    assert max(depth_errors(found, scene)) < 0.03


def test_both_maps_lie_in_one_frame_and_meet_at_matches(scene):
    matches = scene.matches(800)
    views = evidence(scene, known=True)
    found = refine_pair(matches, views)
    assert found is not None
    assert found.pose.pose1 is not None
    moved = found.own1.moved(found.pose.pose1, "camera 0")
    np.testing.assert_allclose(found.maps[1].points, moved.points, rtol=1e-5)
    assert [m.frame for m in (*found.maps, found.own1)] == ["camera 0", "camera 0", "camera 1"]
    identity = ImageTransform.identity(scene.size)
    ends = [SeenMap(m, identity).sample(xy) for m, xy in zip(found.maps, (matches.xy0, matches.xy1))]
    gap = np.linalg.norm(ends[0] - ends[1], axis=1) / np.linalg.norm(ends[0], axis=1)
    assert np.median(gap) < 0.01
    for refined, view in zip((found.maps[0], found.own1), views):
        np.testing.assert_array_equal(refined.confidence, view.own.pointmap.confidence)
    projected = found.cameras[0].project(found.maps[0].points)
    np.testing.assert_allclose(projected, scene.pixels(), atol=1e-2)


def test_the_unit_of_length_stays_the_networks(scene):
    views = evidence(scene, known=True)
    larger = tuple(
        replace(v, own=replace(v.own, pointmap=Pointmap(10 * v.own.pointmap.points, v.own.pointmap.confidence, "x")))
        for v in views
    )
    matches = scene.matches(800)
    small, large = refine_pair(matches, views), refine_pair(matches, (larger[0], larger[1]))
    assert small is not None
    assert large is not None
    np.testing.assert_allclose(large.maps[0].points, 10 * small.maps[0].points, rtol=1e-3)


def test_points_that_are_not_finite_stay(scene):
    views = evidence(scene, known=True)
    points = views[0].own.pointmap.points.copy()
    points[:30], points[30:40] = np.nan, (0.0, 0.0, -1.0)
    pointmap = Pointmap(points, views[0].own.pointmap.confidence, "camera 0")
    spoiled = replace(views[0], own=SeenMap(pointmap, views[0].own.transform))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = refine_pair(scene.matches(1500), (spoiled, views[1]))
    assert found is not None
    assert np.isnan(found.maps[0].points[:30]).all()
    np.testing.assert_array_equal(found.maps[0].points[30:40], points[30:40])
    assert np.isfinite(found.maps[0].points[40:]).all()


# --- nothing to go by ---


def unrelated(scene: TwoViewScene, count: int) -> Matches:
    rng = np.random.default_rng(1)
    xy0, xy1 = rng.uniform(0, np.array(scene.size) - 1, (2, count, 2))
    return Matches(xy0, xy1, np.ones(count), scene.size, scene.size)


def flat() -> TwoViewScene:
    return TwoViewScene(degrees=-25.0, center1=(2.2, 0.5, 0.9), balls=())


def turned() -> TwoViewScene:
    return TwoViewScene(degrees=-20.0, center1=(0.0, 0.0, 0.0))


@pytest.mark.parametrize(
    "make",
    [
        lambda scene: (scene, unrelated(scene, 0)),
        lambda scene: (scene, unrelated(scene, 1000)),
        lambda scene: (scene, scene.matches(10)),
        lambda scene: (scene, replace(scene.matches(300), xy1=scene.matches(300).xy0)),
        lambda _: (flat(), flat().matches(800)),
        lambda _: (turned(), turned().matches(800, noise=0.3)),
    ],
    ids=["no matches", "wrong matches", "ten matches", "equal images", "a plane", "a turn on the spot"],
)
@pytest.mark.parametrize("known", [True, False])
def test_nothing_changes_without_evidence(scene, make, known):
    where, matches = make(scene)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert refine_pair(matches, evidence(where, known=known)) is None


def test_maps_without_depth_change_nothing(scene):
    views = evidence(scene, known=True)
    nothing = Pointmap(np.full((*scene.size[::-1], 3), np.nan), np.ones(scene.size[::-1]), "camera 0")
    blind = replace(views[0], own=SeenMap(nothing, views[0].own.transform))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert refine_pair(scene.matches(500), (blind, views[1])) is None


# --- what is known of a focal length ---


def photo(size=(320, 240), focal_35mm: float | None = None) -> Image:
    return Image(np.zeros((size[1], size[0], 3), np.uint8), focal_35mm=focal_35mm)


def own_map(focal: float, *, noise: float = 0.0) -> SeenMap:
    size = (64, 48)
    transform = ImageTransform.resize((320, 240), size)
    pixels = np.stack(np.meshgrid(np.arange(64), np.arange(48)), axis=-1)
    points = Camera.from_focal(focal, 320, 240).unproject(transform.inverse().apply(pixels), 2.0)
    points += noise * np.random.default_rng(0).normal(size=points.shape)
    return SeenMap(Pointmap(points, np.ones((48, 64)), "camera 0"), transform)


def test_a_given_camera_is_the_prior():
    camera = Camera.from_focal(123.0, 320, 240)
    assert focal_prior(photo(focal_35mm=50.0), own_map(300.0), camera) == FocalPrior(camera, 0.0)


def test_exif_tells_the_focal_length():
    prior = focal_prior(photo(focal_35mm=43.27), own_map(150.0))
    assert prior.camera.focal[0] == pytest.approx(400, rel=1e-3)  # as long as the diagonal
    assert 0 < prior.deviation < 0.1


def test_a_pinhole_pointmap_is_believed_more_than_a_crooked_one():
    focal = 150.0
    clear, crooked = focal_prior(photo(), own_map(focal)), focal_prior(photo(), own_map(focal, noise=0.4))
    assert clear.camera.focal[0] == pytest.approx(focal, rel=0.05)
    assert clear.deviation < crooked.deviation
    ordinary = ORDINARY_FOCAL * 320
    assert abs(np.log(crooked.camera.focal[0] / ordinary)) < abs(np.log(clear.camera.focal[0] / ordinary))


@pytest.mark.filterwarnings("error")
def test_without_points_a_camera_is_ordinary():
    nothing = SeenMap(
        Pointmap(np.full((48, 64, 3), np.nan), np.ones((48, 64)), "x"), ImageTransform.resize((320, 240), (64, 48))
    )
    assert focal_prior(photo(), nothing).camera.focal[0] == pytest.approx(ORDINARY_FOCAL * 320)


# --- through predict_pair ---


@pytest.fixture(scope="module")
def room():
    views = views_of_room(2, seed=3)
    return PerfectModel(views), [as_image(pixels_of(view)) for view in views], views


def test_predict_pair_refines_and_can_leave_it(room):
    model, photos, views = room
    K = views[0].K, views[1].K
    whole = PairConfig(closer_look=False)  # this network knows whole photos only
    refined = mast3r.predict_pair(model, *photos, K0=K[0], K1=K[1], config=whole)
    raw = mast3r.predict_pair(model, *photos, K0=K[0], K1=K[1], config=replace(whole, refine_geometry=False))
    for result in (refined, raw):
        for i in (0, 1):
            np.testing.assert_array_equal(result.cameras[i].K, K[i])
    np.testing.assert_array_equal(refined.matches.xy0, raw.matches.xy0)
    truth = np.linalg.inv(views[0].pose)
    truth = views[0].points @ truth[:3, :3].T + truth[:3, 3]
    np.testing.assert_allclose(raw.pointmaps[0].points, truth, rtol=1e-4, atol=1e-4)
    for a, b in zip(refined.pointmaps, raw.pointmaps):
        np.testing.assert_array_equal(a.confidence, b.confidence)
        distance = np.linalg.norm(a.points - b.points, axis=-1) / np.linalg.norm(b.points, axis=-1)
        assert np.median(distance) < 0.03
    [again] = mast3r.predict_pairs(model, photos, [(0, 1)], intrinsics=list(K), config=whole)
    np.testing.assert_array_equal(again.pointmaps[1].points, refined.pointmaps[1].points)


def test_an_untrained_network_gives_its_own_maps(tmp_path):
    torch.manual_seed(0)
    model = AsymmetricMASt3R(**PRESETS["tiny"].model).eval()
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 256, (96, 128, 3), dtype=np.uint8) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refined = mast3r.predict_pair(model, *photos)
    raw = mast3r.predict_pair(model, *photos, config=PairConfig(refine_geometry=False))
    for a, b in zip(refined.pointmaps, raw.pointmaps):
        np.testing.assert_array_equal(a.points, b.points)


def test_exif_focal_length_of_a_file_is_used(tmp_path):
    torch.manual_seed(0)
    model = AsymmetricMASt3R(**PRESETS["tiny"].model).eval()
    rng = np.random.default_rng(0)
    exif = PIL.Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 50
    paths = []
    for k in range(2):
        paths.append(tmp_path / f"{k}.jpg")
        PIL.Image.fromarray(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)).save(paths[k], exif=exif)
    result = mast3r.predict_pair(model, *paths)
    assert result.cameras[0].focal[0] == pytest.approx(50 / 43.27 * 160, rel=0.01)
