"""Robust estimators: right on clean and contaminated data, honest on useless data, repeatable."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from multiview.cameras import Camera
from multiview.metrics import relative_pose_error, rotation_error_deg, warp_points
from multiview.poses import Pose
from multiview.robust import (
    estimate_absolute_pose,
    estimate_fundamental,
    estimate_homography,
    estimate_relative_pose,
    estimate_shared_focal_fundamental,
)
from tests.multiview.synthetic_pair import rotation

K0 = Camera.from_focal(600.0, 640, 480).K
K1 = Camera.from_focal(550.0, 640, 480).K
POSE1 = Pose.from_rt(rotation((0.2, 1, 0.1), 15), np.array([0.8, -0.1, 0.2]))


def scene(n: int = 200, outliers: int = 0, noise: float = 0.0, seed: int = 0, K1: np.ndarray = K1):
    """Random points seen by both cameras; the last `outliers` matches are wrong."""
    rng = np.random.default_rng(seed)
    xy0 = rng.uniform((0, 0), (640, 480), (n, 2))
    points = Camera(K0, 640, 480).unproject(xy0, rng.uniform(2, 6, n))
    xy1 = Camera(K1, 640, 480).project(POSE1.inverse().apply(points))
    xy0, xy1 = xy0 + rng.normal(0, noise, (n, 2)), xy1 + rng.normal(0, noise, (n, 2))
    if outliers:
        xy1[-outliers:] = rng.uniform(0, 480, (outliers, 2))
    return xy0, xy1, points


@pytest.mark.parametrize(("outliers", "noise", "limit"), [(0, 0, 0.01), (0, 0.5, 0.5), (80, 0.3, 0.5), (140, 0.1, 0.5)])
def test_relative_pose(outliers, noise, limit):
    xy0, xy1, _ = scene(outliers=outliers, noise=noise)
    found = estimate_relative_pose(xy0, xy1, K0, K1)
    assert found.success
    error = relative_pose_error(found.R, found.t, POSE1.cam_from_world)
    assert error.max_deg < limit
    assert np.linalg.norm(found.t) == pytest.approx(1)
    assert found.t @ POSE1.cam_from_world[:3, 3] > 0, "points lie in front of both cameras"
    assert found.inliers[: 200 - outliers].mean() > 0.85
    assert found.inliers[200 - outliers :].sum() <= 0.1 * outliers
    assert found.pose1.relative(POSE1).angle_deg < limit


def test_same_seed_same_answer():
    xy0, xy1, points = scene(outliers=100, noise=0.5)
    first, second = (estimate_relative_pose(xy0, xy1, K0, K1, seed=7) for _ in "ab")
    np.testing.assert_array_equal(first.R, second.R)
    np.testing.assert_array_equal(first.inliers, second.inliers)
    poses = [estimate_absolute_pose(xy0, points, K0, seed=7).pose.world_from_cam for _ in "ab"]
    np.testing.assert_array_equal(*poses)


def test_homography():
    H = np.array([[1.1, 0.05, 12], [-0.03, 0.95, -8], [1e-4, -5e-5, 1]])
    rng = np.random.default_rng(0)
    xy0 = rng.uniform(0, 480, (150, 2))
    xy1 = warp_points(H, xy0) + rng.normal(0, 0.2, (150, 2))
    xy1[100:] = rng.uniform(0, 480, (50, 2))
    found = estimate_homography(xy0, xy1)
    assert found.success
    assert found.inliers[:100].all()
    assert found.H[2, 2] == 1
    assert np.abs(warp_points(found.H, xy0[:100]) - warp_points(H, xy0[:100])).max() < 0.5
    exact = estimate_homography(xy0[:4], warp_points(H, xy0[:4]))
    assert exact.success
    np.testing.assert_allclose(exact.H, H, rtol=1e-5, atol=1e-5)


def test_absolute_pose():
    _, xy1, points = scene(outliers=60, noise=0.3)
    found = estimate_absolute_pose(xy1, points, K1)
    assert found.success
    assert np.linalg.norm(found.pose.center - POSE1.center) < 0.02
    assert rotation_error_deg(found.pose.rotation, POSE1.rotation) < 0.3
    assert found.inliers[:140].mean() > 0.95


def test_golden_pnp(golden):
    fixture = golden("visloc")
    uv, points, K = (fixture.tensors[f"pnp.{name}"].numpy() for name in ("uv", "X", "K"))
    truth, official = (Pose(fixture.tensors[f"pnp.{name}"].numpy()) for name in ("gt", "pose"))
    found = estimate_absolute_pose(uv, points, K, threshold_px=fixture.meta["pnp"]["reproj"])
    assert found.success
    scale = np.linalg.norm(points - truth.center, axis=1).mean()
    for reference in (truth, official):
        assert np.linalg.norm(found.pose.center - reference.center) < 0.01 * scale
        assert rotation_error_deg(found.pose.rotation, reference.rotation) < 0.5


def epipolar_distance(F, xy0, xy1):
    """Distance of points of image 1 from the lines of those of image 0."""
    a, b = (np.concatenate([xy, np.ones((len(xy), 1))], axis=1) for xy in (xy0, xy1))
    lines = a @ F.T
    return np.abs((b * lines).sum(1)) / np.linalg.norm(lines[:, :2], axis=1)


def test_fundamental():
    xy0, xy1, _ = scene(outliers=60, noise=0.1)
    found = estimate_fundamental(xy0, xy1)
    assert found.success
    assert found.inliers[:140].mean() > 0.95
    assert np.median(epipolar_distance(found.F, xy0[:140], xy1[:140])) < 0.2


def test_fundamental_of_one_camera():
    """Its freedom less finds it among more wrong matches, and the best first sooner."""
    xy0, xy1, _ = scene(outliers=140, noise=0.1, K1=K0)
    order = np.r_[np.arange(20), np.random.default_rng(0).permutation(np.arange(20, 200))]
    found = estimate_shared_focal_fundamental(xy0, xy1, (319.5, 239.5))
    sooner = estimate_shared_focal_fundamental(
        xy0[order], xy1[order], (319.5, 239.5), best_first=True, max_iterations=300
    )
    for one in (found, sooner):
        assert one.success
        assert np.median(epipolar_distance(one.F, xy0[:60], xy1[:60])) < 0.2
    assert found.inliers[:60].mean() > 0.9


def test_few_right_matches_among_many_wrong_ones():
    """The right pose is found; whether it counts is the caller's choice."""
    xy0, xy1, _ = scene(n=29, outliers=20)
    careful, trusting = (estimate_relative_pose(xy0, xy1, K0, K1, accept=a) for a in ("beats_chance", "any"))
    assert not careful.success
    np.testing.assert_array_equal(careful.R, np.eye(3))
    assert trusting.success
    assert trusting.inliers[:9].all()
    assert relative_pose_error(trusting.R, trusting.t, POSE1.cam_from_world).max_deg < 1
    assert np.linalg.norm(trusting.t) == pytest.approx(1)


def test_taken_at_its_word_ransac_solves_unrelated_matches():
    rng = np.random.default_rng(3)
    a, b = rng.uniform(0, 480, (2, 40, 2))
    points = rng.uniform(1, 2, (40, 3))
    for careful, trusting in (
        [estimate_relative_pose(a, b, K0, K1, accept=accept) for accept in ("beats_chance", "any")],
        [estimate_homography(a, b, accept=accept) for accept in ("beats_chance", "any")],
        [estimate_fundamental(a, b, accept=accept) for accept in ("beats_chance", "any")],
        [estimate_absolute_pose(a, points, K0, accept=accept) for accept in ("beats_chance", "any")],
    ):
        assert not careful.success
        assert not careful.inliers.any()
        assert trusting.success
        assert trusting.inliers.sum() >= 4


def test_taken_at_its_word_ransac_needs_as_many_matches_as_the_model():
    xy0, xy1, points = scene(n=12)
    assert estimate_relative_pose(xy0[:5], xy1[:5], K0, K1, accept="any").success
    assert not estimate_relative_pose(xy0[:4], xy1[:4], K0, K1, accept="any").success
    assert estimate_homography(xy0[:4], xy1[:4], accept="any").success
    assert not estimate_homography(xy0[:3], xy1[:3], accept="any").success
    assert estimate_fundamental(xy0[:7], xy1[:7], accept="any").success
    assert not estimate_fundamental(xy0[:6], xy1[:6], accept="any").success
    assert estimate_absolute_pose(xy0[:5], points[:5], K0, accept="any").success
    assert not estimate_absolute_pose(xy0[:3], points[:3], K0, accept="any").success


def test_an_unknown_acceptance_is_refused():
    xy0, xy1, points = scene(n=12)
    for estimate in (
        lambda: estimate_relative_pose(xy0, xy1, K0, K1, accept="all"),  # type: ignore[arg-type]
        lambda: estimate_homography(xy0, xy1, accept="all"),  # type: ignore[arg-type]
        lambda: estimate_fundamental(xy0, xy1, accept="all"),  # type: ignore[arg-type]
        lambda: estimate_absolute_pose(xy0, points, K0, accept="all"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match="accept must be one of"):
            estimate()


@pytest.mark.parametrize("n", range(6))
def test_few_matches_fail_quietly(n):
    xy0, xy1, points = scene(n=n)
    relative = estimate_relative_pose(xy0, xy1, K0, K1)
    assert not relative.success
    assert relative.inliers.shape == (n,)
    assert not relative.inliers.any()
    np.testing.assert_array_equal(relative.R, np.eye(3))
    if n < 4:
        assert not estimate_homography(xy0, xy1).success
        assert not estimate_absolute_pose(xy0, points, K0).success


def test_degenerate_matches_fail_quietly():
    n = 50
    same = np.full((n, 2), 100.0)
    line = np.stack([np.linspace(0, 400, n), np.linspace(50, 300, n)], axis=1)
    spread = np.random.default_rng(0).uniform(0, 480, (n, 2))
    points = np.random.default_rng(0).uniform(1, 2, (n, 3))
    for xy0, xy1 in ((same, same), (line, line), (same, spread), (spread, line)):
        assert not estimate_relative_pose(xy0, xy1, K0, K1).success
        assert not estimate_homography(xy0, xy1).success
        assert not estimate_fundamental(xy0, xy1).success
        assert not estimate_shared_focal_fundamental(xy0, xy1, (320, 240)).success
    for xy, targets in (
        (same, points),
        (line, points),
        (spread, np.ones((n, 3))),
        (spread, np.linspace(0, 1, n)[:, None] * [1, 2, 3]),
    ):
        assert not estimate_absolute_pose(xy, targets, K0).success


def test_pure_rotation_has_no_translation():
    xy0, _, points = scene()
    turned = Pose.from_rt(POSE1.rotation, np.zeros(3))
    xy1 = Camera(K1, 640, 480).project(turned.inverse().apply(points))
    assert not estimate_relative_pose(xy0, xy1, K0, K1).success
    assert not estimate_relative_pose(xy0, xy0, K0, K0).success


@pytest.mark.parametrize("n", [10, 40, 400])
def test_unrelated_points_fail(n):
    rng = np.random.default_rng(3)
    a, b = rng.uniform(0, 480, (2, n, 2))
    assert not estimate_relative_pose(a, b, K0, K1).success
    assert not estimate_homography(a, b).success
    assert not estimate_absolute_pose(a, rng.uniform(1, 2, (n, 3)), K0).success


def test_non_finite_matches_are_outliers():
    xy0, xy1, _ = scene()
    xy0[3], xy1[5] = np.nan, np.inf
    found = estimate_relative_pose(xy0, xy1, K0, K1)
    assert found.success
    assert not found.inliers[[3, 5]].any()
    assert found.inliers.sum() == 198


anything = st.integers(0, 12).flatmap(
    lambda n: st.tuples(*(arrays(np.float64, (n, width), elements=st.floats(width=32)) for width in (2, 2, 3)))
)


@given(anything)
@settings(deadline=None, max_examples=40)
def test_never_raises_on_well_shaped_input(data):
    xy0, xy1, points = data
    for found in (
        estimate_relative_pose(xy0, xy1, K0, K1, max_iterations=50),
        estimate_homography(xy0, xy1, max_iterations=50),
        estimate_fundamental(xy0, xy1, max_iterations=50),
        estimate_fundamental(xy0, xy1, max_iterations=50, best_first=True, accept="any"),
        estimate_shared_focal_fundamental(xy0, xy1, (320, 240), max_iterations=50),
        estimate_shared_focal_fundamental(xy0, xy1, (320, 240), max_iterations=50, best_first=True, accept="any"),
        estimate_relative_pose(xy0, xy1, K0, K1, max_iterations=50, accept="any"),
        estimate_homography(xy0, xy1, max_iterations=50, accept="any"),
        estimate_fundamental(xy0, xy1, max_iterations=50, accept="any"),
        estimate_absolute_pose(xy0, points, K0, max_iterations=50, accept="any"),
        estimate_absolute_pose(xy0, points, K0, max_iterations=50),
    ):
        assert found.inliers.shape == (len(xy0),)


def test_wrong_shapes_are_refused():
    xy = np.zeros((10, 2))
    with pytest.raises(ValueError, match="Expected matches"):
        estimate_relative_pose(xy, xy[:5], K0, K1)
    with pytest.raises(ValueError, match="Expected matches"):
        estimate_homography(xy.T, xy)
    with pytest.raises(ValueError, match="K must be"):
        estimate_absolute_pose(xy, np.zeros((10, 3)), np.eye(4))
    assert not estimate_relative_pose([], [], K0, K1).success
