"""Pose and focal length from 2-D to 3-D matches."""

from __future__ import annotations

import numpy as np
import pytest

from multiview.cameras import Camera
from multiview.focal_pose import estimate_pose_and_focal, reprojection_errors
from multiview.poses import Pose
from tests.multiview.synthetic_pair import rotation

SIZE = (640, 480)


def sight(focal: float, *, count: int = 800, noise: float = 0.5, outliers: float = 0.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    pose = Pose.from_rt(rotation((0.2, 1.0, -0.1), 0.4), np.array([0.5, -0.2, 0.3]))
    camera = Camera.from_focal(focal, *SIZE)
    xy = rng.uniform((0, 0), SIZE, (count, 2))
    points = pose.apply(camera.unproject(xy, rng.uniform(2, 6, count)))
    xy = xy + rng.normal(0, noise, xy.shape)
    wrong = int(outliers * count)
    xy[:wrong] = rng.uniform((0, 0), SIZE, (wrong, 2))
    return pose, camera, xy, points


@pytest.mark.parametrize("focal", [300.0, 620.0, 1500.0])
@pytest.mark.parametrize("outliers", [0.0, 0.5])
def test_pose_and_focal_are_found(focal, outliers):
    pose, _, xy, points = sight(focal, outliers=outliers)
    found = estimate_pose_and_focal(xy, points, SIZE, threshold_px=4.0)
    assert found.success
    assert found.camera.focal[0] == pytest.approx(focal, rel=0.005)
    assert pose.relative(found.pose).angle_deg < 0.1
    assert found.inliers[int(outliers * len(xy)) :].mean() > 0.99


def test_a_guess_is_tried_beyond_the_range():
    _, _, xy, points = sight(6000.0)
    found = estimate_pose_and_focal(xy, points, SIZE, guess=5500.0)
    assert found.success
    assert found.camera.focal[0] == pytest.approx(6000.0, rel=0.05)


@pytest.mark.parametrize("count", [0, 3, 5])
def test_too_few_matches_fail(count):
    _, _, xy, points = sight(600.0, count=max(count, 1))
    found = estimate_pose_and_focal(xy[:count], points[:count], SIZE)
    assert not found.success
    assert len(found.inliers) == count


def test_unrelated_points_fail():
    rng = np.random.default_rng(0)
    found = estimate_pose_and_focal(rng.uniform(0, 480, (500, 2)), rng.normal(size=(500, 3)), SIZE)
    assert not found.success


def test_points_that_are_not_finite_are_ignored():
    _, camera, xy, points = sight(600.0)
    points[::7] = np.nan
    found = estimate_pose_and_focal(xy, points, SIZE)
    assert found.success
    assert not found.inliers[::7].any()
    assert found.camera.focal[0] == pytest.approx(camera.focal[0], rel=0.01)


def test_points_behind_the_camera_have_no_error_to_speak_of():
    errors = reprojection_errors(
        np.zeros((1, 2)), np.array([[0.0, 0, -1]]), Pose.identity(), Camera.from_focal(100, *SIZE)
    )
    assert np.isinf(errors).all()
