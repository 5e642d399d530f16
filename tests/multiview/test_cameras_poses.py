"""Cameras and poses: group laws, projection and its inverse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from multiview.cameras import Camera
from multiview.images import ImageTransform
from multiview.poses import Pose

numbers = st.floats(-10, 10, allow_nan=False)
vectors = st.tuples(numbers, numbers, numbers).map(np.array)


@st.composite
def poses(draw):
    return Pose.from_rt(Rotation.from_rotvec(draw(vectors)).as_matrix(), draw(vectors))


@given(poses(), poses(), poses(), vectors)
def test_group_laws(a, b, c, point):
    close = dict(rtol=0, atol=1e-8)
    np.testing.assert_allclose(a.compose(b).apply(point), a.apply(b.apply(point)), **close)
    np.testing.assert_allclose(a.compose(b).compose(c).world_from_cam, a.compose(b.compose(c)).world_from_cam, **close)
    np.testing.assert_allclose(a.compose(a.inverse()).world_from_cam, np.eye(4), **close)
    np.testing.assert_allclose(a.compose(a.relative(b)).world_from_cam, b.world_from_cam, **close)
    np.testing.assert_allclose(a.cam_from_world @ a.world_from_cam, np.eye(4), **close)


@given(poses())
def test_constructors_agree(pose):
    inverse = pose.inverse()
    same = Pose.from_cam_from_world(inverse.rotation, inverse.center)
    np.testing.assert_allclose(same.world_from_cam, pose.world_from_cam, atol=1e-8)


@given(st.floats(0, 180))
def test_angle(degrees):
    pose = Pose.from_rt(Rotation.from_euler("z", degrees, degrees=True).as_matrix(), np.zeros(3))
    assert pose.angle_deg == pytest.approx(degrees, abs=1e-6)


def test_float32_rotations_are_accepted_and_others_are_not():
    R = Rotation.from_rotvec([0.1, 0.2, 0.3]).as_matrix().astype(np.float32)
    assert Pose.from_rt(R, np.zeros(3)).world_from_cam.dtype == np.float64
    bad = (
        2 * np.eye(4),
        np.diag([1, 1, -1, 1.0]),
        np.full((4, 4), np.nan),
        np.eye(3),
        np.eye(4) + np.eye(4)[::-1],
    )
    for matrix in bad:
        with pytest.raises(ValueError, match="world_from_cam"):
            Pose(matrix)


def test_pose_is_immutable_and_tells_itself():
    pose = Pose.identity()
    with pytest.raises(ValueError, match="read-only"):
        pose.world_from_cam[0, 3] = 1
    assert "0.00 deg" in repr(pose)


cameras = st.builds(Camera.from_focal, st.floats(50, 2000), st.integers(32, 2000), st.integers(32, 2000))


@given(cameras, st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4), st.floats(0.1, 100))
def test_unproject_then_project_is_the_identity(camera, shares, depth):
    xy = np.array(shares) * (camera.width, camera.height)
    points = camera.unproject(xy, depth)
    np.testing.assert_allclose(points[:, 2], depth)
    np.testing.assert_allclose(camera.project(points), xy, atol=1e-6)


def test_distortion_round_trip():
    plain = Camera.from_focal(500.0, 640, 480)
    lens = Camera(plain.K, 640, 480, "OPENCV", (-0.1, 0.02, 0.001, -0.002))
    ys, xs = np.mgrid[0:480:40, 0:640:40]
    xy = np.stack([xs, ys], axis=-1).astype(float)
    np.testing.assert_allclose(lens.project(lens.unproject(xy)), xy, atol=1e-6)
    assert np.abs(lens.unproject(xy) - plain.unproject(xy)).max() > 0.01
    half = ImageTransform.resize((640, 480), (320, 240))
    np.testing.assert_allclose(lens.transformed(half).project(lens.unproject(xy)), half.apply(xy), atol=1e-6)


def test_distortion_is_opencvs():
    cv2 = pytest.importorskip("cv2")
    lens = Camera(Camera.from_focal(500.0, 640, 480).K, 640, 480, "OPENCV", (-0.1, 0.02, 0.001, -0.002))
    points = np.random.default_rng(0).uniform(-1, 1, (20, 3)) + np.array([0, 0, 3])
    expected, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), lens.K, np.array(lens.distortion))
    np.testing.assert_allclose(lens.project(points), expected[:, 0], atol=1e-6)


def test_points_behind_the_camera_are_nan():
    camera = Camera.from_focal(100.0, 64, 48)
    out = camera.project(np.array([[0, 0, 1.0], [0, 0, -1], [0, 0, 0]]))
    np.testing.assert_array_equal(out[0], camera.principal_point)
    assert np.isnan(out[1:]).all()


def test_shapes_and_facts():
    camera = Camera.from_focal(100.0, 64, 48, principal_point=(30, 20))
    assert camera.unproject(np.zeros((2, 3, 2)), np.ones((2, 3))).shape == (2, 3, 3)
    assert camera.focal == (100, 100)
    assert camera.principal_point == (30, 20)
    assert camera.fov_deg[0] == pytest.approx(2 * np.degrees(np.arctan(0.32)))
    assert "64x48" in repr(camera)


def test_refusals():
    K = Camera.from_focal(100.0, 64, 48).K
    for bad in (np.eye(4), -K, np.full((3, 3), np.nan), K + np.eye(3)[::-1]):
        with pytest.raises(ValueError, match="K must be"):
            Camera(bad, 64, 48)
    with pytest.raises(ValueError, match="positive width"):
        Camera(K, 0, 48)
    with pytest.raises(ValueError, match="model"):
        Camera(K, 64, 48, "FISHEYE")
    with pytest.raises(ValueError, match="distortion"):
        Camera(K, 64, 48, "OPENCV")
    camera = Camera(K, 64, 48)
    with pytest.raises(ValueError, match="size"):
        camera.transformed(ImageTransform.identity((10, 10)))
    with pytest.raises(ValueError, match="turned"):
        camera.transformed(ImageTransform.turn((64, 48), 3))
