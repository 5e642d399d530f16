"""Metrics against the golden numbers of the published evaluation code, and simple cases done by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiview.metrics import (
    absolute_pose_error,
    depth_error,
    epipolar_errors,
    epipolar_precision,
    homography_corner_error,
    pose_auc,
    relative_pose_error,
    rotation_error_deg,
    translation_error_deg,
)
from multiview.poses import Pose
from tests.multiview.synthetic_pair import rotation


def test_golden_auc(golden):
    data = golden("metrics").meta["pose_auc"]
    errors = [np.inf if error is None else error for error in data["errors_with_inf"]]
    np.testing.assert_allclose(pose_auc(errors), data["auc_5_10_20"], rtol=1e-12)
    with_nan = [np.nan if error is None else error for error in data["errors_with_inf"]]
    assert pose_auc(with_nan) == pose_auc(errors)


def test_golden_pose_error(golden):
    data = golden("metrics").meta["pose_error"]
    error = relative_pose_error(np.array(data["R_est"]), np.array(data["t_est"]), np.array(data["T_0to1"]))
    assert error.rotation_deg == pytest.approx(data["R_err_deg"], abs=1e-5)
    assert error.translation_deg == pytest.approx(data["t_err_deg"], abs=1e-5)
    assert error.max_deg == max(error.rotation_deg, error.translation_deg)


def test_golden_epipolar_errors(golden):
    meta = golden("metrics").meta
    data = meta["epipolar"]
    args = [np.array(data[name]) for name in ("kpts0", "kpts1", "K0", "K1")]
    T = np.array(data.get("T_0to1", meta["pose_error"]["T_0to1"]))
    errors = epipolar_errors(*args, T)
    np.testing.assert_allclose(errors, data["superglue_squared_symmetric"], rtol=1e-6)
    limit = float(np.median(errors))
    assert epipolar_precision(*args, T, threshold=limit) == pytest.approx(np.mean(errors < limit))


def test_golden_corner_error(golden):
    data = golden("metrics").meta["homography"]
    size = tuple(data["image_size_wh"])
    H_est, H_gt = np.array(data["H_est"]), np.array(data["H_gt"])
    assert homography_corner_error(H_est, H_gt, size) == pytest.approx(data["corner_error"], rel=1e-6)
    pixel = homography_corner_error(H_est, H_gt, size, corners="pixel")
    assert pixel != homography_corner_error(H_est, H_gt, size)
    assert pixel == pytest.approx(data["corner_error"], rel=0.02)


def test_auc_by_hand():
    # Two pairs, one failed: recall rises from 0 to 1/2 at 2 degrees and stays there.
    assert pose_auc([2, np.inf], [4]) == pytest.approx(((2 * 0.5 / 2 + 2 * 0.5) / 4,))
    assert pose_auc([np.inf], [5, 10]) == (0, 0)
    assert pose_auc([0, 0], [5]) == pytest.approx((1,))
    # An error equal to the threshold is cut off.
    assert pose_auc([5], [5]) == (0,)
    with pytest.raises(ValueError, match="at least one"):
        pose_auc([])


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30))
def test_auc_laws(errors):
    aucs = pose_auc(errors, (5, 10, 20, 90))
    assert all(0 <= auc <= 1 for auc in aucs)
    assert pose_auc([*errors, np.inf], (10,))[0] <= pose_auc(errors, (10,))[0] + 1e-12
    assert pose_auc(errors[::-1], (5, 10, 20, 90)) == aucs


def test_angles():
    assert rotation_error_deg(rotation((1, 2, 3), 40), np.eye(3)) == pytest.approx(40)
    assert translation_error_deg(np.array([1, 0, 0]), np.array([-5, 0, 0])) == pytest.approx(0)
    assert translation_error_deg(np.array([1, 1, 0]), np.array([-1, 0, 0])) == pytest.approx(45)
    assert translation_error_deg(np.zeros(3), np.ones(3)) == 90
    assert np.isnan(translation_error_deg(np.ones(3), np.zeros(3)))
    still = np.eye(4)
    assert relative_pose_error(rotation((0, 0, 1), 3), np.ones(3), still).max_deg == pytest.approx(3)
    moved = Pose.from_rt(rotation((0, 1, 0), 20), np.array([3, 4, 0]))
    assert absolute_pose_error(moved, Pose.identity()) == pytest.approx((5, 20))


def test_exact_matches_have_no_epipolar_error():
    rng = np.random.default_rng(0)
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = rotation((0, 1, 0), 10), (1, 0.2, 0)
    points = rng.uniform(-1, 1, (50, 3)) + np.array([0, 0, 4])
    K = np.array([[500, 0, 320], [0, 500, 240], [0, 0, 1.0]])
    seen = [(p[:, :2] / p[:, 2:]) * 500 + (320, 240) for p in (points, points @ T[:3, :3].T + T[:3, 3])]
    assert epipolar_errors(*seen, K, K, T).max() < 1e-20
    assert epipolar_precision(*seen, K, K, T) == 1
    assert epipolar_precision(np.zeros((0, 2)), np.zeros((0, 2)), K, K, T) == 0


def test_corner_error_at_infinity():
    H = np.array([[1, 0, 0], [0, 1, 0], [-1 / 640, 0, 1.0]])
    assert homography_corner_error(H, np.eye(3), (640, 480)) == np.inf
    with pytest.raises(ValueError, match="corners"):
        homography_corner_error(H, H, (640, 480), corners="inner")


def test_depth_error():
    truth = np.array([[1.0, 2, 3], [4, 0, np.nan]])
    exact = depth_error(truth * 0.5, truth)
    assert (exact.abs_rel, exact.delta1, exact.num_pixels) == (0, 1, 4)
    assert exact.scale == pytest.approx(2)
    raw = depth_error(truth * 0.5, truth, align="none")
    assert raw.abs_rel == pytest.approx(0.5)
    assert (raw.delta1, raw.delta2, raw.delta3) == (0, 0, 0)
    assert depth_error(truth * 1.3, truth, align="none").delta2 == 1
    hole = np.array([[1.0, np.nan, 3], [4, 1, 1]])
    assert depth_error(hole, truth).delta1 == 0.75
    assert depth_error(hole, truth).abs_rel == pytest.approx(0.25)
    assert depth_error(-truth, truth).abs_rel == 1
    assert depth_error(truth, truth, np.array([[True, False, False], [False] * 3])).num_pixels == 1
    with pytest.raises(ValueError, match="shape"):
        depth_error(truth, truth.T)
    with pytest.raises(ValueError, match="no pixel"):
        depth_error(truth, np.zeros_like(truth))
    with pytest.raises(ValueError, match="align"):
        depth_error(truth, truth, align="mean")
