"""Focal lengths and pose from matches, held by priors."""

from __future__ import annotations

import numpy as np
import pytest

from multiview.cameras import Camera
from multiview.metrics import relative_pose_error
from multiview.self_calibration import Calibration, calibrate
from tests.multiview.two_view_scene import TwoViewScene


def guessed(scene: TwoViewScene, factor: float) -> tuple[Camera, Camera]:
    camera0, camera1 = (Camera.from_focal(factor * camera.focal[0], *scene.size) for camera in scene.cameras)
    return camera0, camera1


def focal_errors(found: Calibration, scene: TwoViewScene) -> np.ndarray:
    return np.array([abs(f.focal[0] / c.focal[0] - 1) for f, c in zip(found.cameras, scene.cameras)])


def pose_error(found: Calibration, scene: TwoViewScene) -> float:
    return relative_pose_error(found.geometry.R, found.geometry.t, scene.pose1.cam_from_world).max_deg


@pytest.fixture(scope="module")
def scene() -> TwoViewScene:
    """Cameras that look at one another's place from far apart: matches tell the focal lengths."""
    return TwoViewScene(degrees=-25.0, center1=(2.2, 0.5, 0.9))


@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_exact_matches_tell_focal_lengths_and_pose(scene, factor):
    matches = scene.matches(1000)
    found = calibrate(matches.xy0, matches.xy1, guessed(scene, factor), (0.5, 0.5), noise_px=0.1, threshold_px=1.0)
    assert found.success
    assert focal_errors(found, scene).max() < 0.02
    assert pose_error(found, scene) < 0.5
    assert found.support > 0.95
    assert (found.distances < 0.5).all()


def test_noise_and_outliers(scene):
    matches = scene.matches(1200, noise=0.5, outliers=0.4)
    found = calibrate(matches.xy0, matches.xy1, guessed(scene, 0.75), (0.4, 0.4))
    assert focal_errors(found, scene).max() < 0.15
    assert pose_error(found, scene) < 5
    assert 0.4 < found.support < 0.7


def test_given_focal_lengths_stay_and_give_the_pose(scene):
    matches = scene.matches(500, noise=0.3)
    found = calibrate(matches.xy0, matches.xy1, scene.cameras, (0.0, 0.0))
    for camera, given in zip(found.cameras, scene.cameras):
        np.testing.assert_array_equal(camera.K, given.K)
    assert pose_error(found, scene) < 0.5


def test_one_given_focal_length(scene):
    matches = scene.matches(500)
    cameras = (scene.cameras[0], Camera.from_focal(0.7 * scene.cameras[1].focal[0], *scene.size))
    found = calibrate(matches.xy0, matches.xy1, cameras, (0.0, 0.5), noise_px=0.1, threshold_px=1.0)
    np.testing.assert_array_equal(found.cameras[0].K, cameras[0].K)
    assert focal_errors(found, scene)[1] < 0.05


def test_a_sure_focal_length_beyond_the_range_is_kept():
    scene = TwoViewScene(focals=(2500.0, 2500.0), degrees=-8, center1=(0.7, 0.0, 0.1))
    matches = scene.matches(400)
    assert len(matches) > 50
    found = calibrate(matches.xy0, matches.xy1, scene.cameras, (0.05, 0.05))
    assert focal_errors(found, scene).max() < 0.06


def test_the_prior_holds_where_matches_are_silent():
    forward = TwoViewScene(degrees=0.0, center1=(0.0, 0.0, 0.6))
    matches = forward.matches(800, noise=0.5)
    cameras = guessed(forward, 1.3)
    found = calibrate(matches.xy0, matches.xy1, cameras, (0.1, 0.1))
    change = np.log([found.cameras[i].focal[0] / cameras[i].focal[0] for i in (0, 1)])
    assert np.abs(change).max() < 0.2
    assert np.sqrt(found.covariance[5, 5]) > 0.03


def test_covariance_is_one(scene):
    matches = scene.matches(300, noise=0.5)
    covariance = calibrate(matches.xy0, matches.xy1, guessed(scene, 1.0), (0.3, 0.3)).covariance
    np.testing.assert_allclose(covariance, covariance.T, atol=1e-12)
    assert (np.linalg.eigvalsh(covariance) > -1e-12).all()
    assert covariance[5, 5] < 0.3**2


@pytest.mark.parametrize("count", [0, 4, 300])
def test_unrelated_matches_change_nothing(scene, count):
    rng = np.random.default_rng(0)
    xy0, xy1 = rng.uniform(0, 230, (2, count, 2))
    cameras = guessed(scene, 1.2)
    found = calibrate(xy0, xy1, cameras, (0.3, 0.3))
    if found.success:
        assert found.support < 0.2
    else:
        assert found.cameras == cameras
        assert np.isinf(found.distances).all()


def test_equal_images_have_no_pose(scene):
    xy = scene.matches(200).xy0
    assert not calibrate(xy, xy, guessed(scene, 1.0), (0.3, 0.3)).success


def test_matches_that_are_not_finite_are_left_out(scene):
    matches = scene.matches(300)
    xy0 = matches.xy0.copy()
    xy0[::7] = np.nan
    found = calibrate(xy0, matches.xy1, scene.cameras, (0.0, 0.0))
    assert found.success
    assert np.isinf(found.distances[::7]).all()
    assert np.isfinite(found.distances).sum() == len(xy0) - len(xy0[::7])


@pytest.mark.parametrize("options", [{"deviations": (-0.1, 0.3)}, {"deviations": (0.1, 0.3), "noise_px": 0.0}])
def test_wrong_options_are_refused(scene, options):
    matches = scene.matches(20)
    with pytest.raises(ValueError, match="must not be negative and noise_px must be positive"):
        calibrate(matches.xy0, matches.xy1, scene.cameras, **options)
