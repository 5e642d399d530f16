"""Epipolar distances: exact on exact matches, derivatives by finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multiview.epipolar import NUM_PARAMETERS, EpipolarGeometry, cross_matrix, rotation_from_vector, tangents
from tests.multiview.two_view_scene import TwoViewScene


def rays_of(scene: TwoViewScene, matches) -> tuple[np.ndarray, np.ndarray]:
    ends = ((matches.xy0, scene.cameras[0]), (matches.xy1, scene.cameras[1]))
    rays0, rays1 = (np.column_stack([xy - camera.principal_point, np.ones(len(xy))]) for xy, camera in ends)
    return rays0, rays1


def geometry_of(scene: TwoViewScene) -> EpipolarGeometry:
    return EpipolarGeometry(scene.R, scene.t, np.log([camera.focal[0] for camera in scene.cameras]))


def test_exact_matches_have_no_distance_and_exact_depth():
    scene = TwoViewScene(focals=(250.0, 340.0))
    matches = scene.matches(300)
    rays = rays_of(scene, matches)
    geometry = geometry_of(scene)
    assert np.abs(geometry.distances(*rays)).max() < 1e-3  # matches are float32
    depth0, depth1, angle = geometry.depths(*rays)
    baseline = np.linalg.norm(scene.pose1.center)
    np.testing.assert_allclose(baseline * depth0, scene.depth(0, matches.xy0), rtol=1e-3)
    np.testing.assert_allclose(baseline * depth1, scene.depth(1, matches.xy1), rtol=1e-3)
    assert (np.degrees(angle) > 5).all()


def test_points_behind_a_camera_have_no_positive_depth():
    scene = TwoViewScene()
    geometry = geometry_of(scene)
    turned = EpipolarGeometry(geometry.R, -geometry.t, geometry.log_focals)
    depth0, depth1, _ = turned.depths(*rays_of(scene, scene.matches(50)))
    assert (depth0 < 0).all()
    assert (depth1 < 0).all()


@given(seed=st.integers(0, 10**6), error=st.floats(0.0, 0.2))
@settings(max_examples=40, deadline=None)
def test_derivatives_are_those_of_finite_differences(seed, error):
    rng = np.random.default_rng(seed)
    t = rng.normal(size=3)
    t /= np.linalg.norm(t)
    geometry = EpipolarGeometry(rotation_from_vector(rng.normal(size=3) * 0.4), t, np.log(rng.uniform(100, 900, 2)))
    rays0, rays1 = (np.column_stack([rng.uniform(-150, 150, (20, 2)), np.ones(20)]) for _ in range(2))
    rays1[:, :2] += error * rng.normal(size=(20, 2))
    found = geometry.derivatives(rays0, rays1)
    step = 1e-6
    for k, direction in enumerate(np.eye(NUM_PARAMETERS)):
        ends = [geometry.moved(sign * step * direction).distances(rays0, rays1) for sign in (1, -1)]
        expected = (ends[0] - ends[1]) / (2 * step)
        scale = 1 + np.abs(expected).max()
        np.testing.assert_allclose(found[:, k], expected, atol=2e-4 * scale)


@given(v=st.tuples(*[st.floats(-3, 3)] * 3))
@settings(max_examples=50, deadline=None)
def test_rotations_are_rotations(v):
    R = rotation_from_vector(np.array(v))
    np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(R) == pytest.approx(1)
    np.testing.assert_allclose(R @ np.array(v), v, atol=1e-9)


@given(v=st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda v: np.linalg.norm(v) > 1e-3))
@settings(max_examples=50, deadline=None)
def test_tangents_are_orthonormal(v):
    t = np.array(v) / np.linalg.norm(v)
    frame = np.stack([t, *tangents(t)])
    np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(cross_matrix(t) @ frame[1], np.cross(t, frame[1]), atol=1e-12)
