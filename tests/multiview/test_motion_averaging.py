"""Cameras from relative motions: exact ones, wrong ones among them, laws."""

from __future__ import annotations

import numpy as np
import pytest

from multiview.metrics import rotation_error_deg
from multiview.motion_averaging import RelativeMotion, average_rotations, solve_centers
from multiview.poses import Pose
from multiview.similarity import umeyama
from tests.multiview.synthetic_pair import rotation

COUNT = 12


def cameras(seed: int = 0) -> list[Pose]:
    rng = np.random.default_rng(seed)
    return [Pose.from_rt(rotation(rng.normal(size=3), rng.uniform(0, 3)), rng.normal(size=3)) for _ in range(COUNT)]


def motion(truth: list[Pose], i: int, j: int, rng: np.random.Generator, noise: float) -> RelativeMotion:
    """The motion of a pair with errors of `noise` radians, and of 20 times that in the logarithm of its length."""
    moved = truth[j].inverse().compose(truth[i])
    turn = rotation(rng.normal(size=3), noise)
    length = float(np.linalg.norm(moved.center))
    t = turn @ moved.center / length
    return RelativeMotion(i, j, turn @ moved.rotation, t, rng.uniform(1, 2), length * np.exp(20 * noise * rng.normal()))


def motions(truth: list[Pose], *, noise: float = 0.0, wrong: float = 0.0, seed: int = 0) -> list[RelativeMotion]:
    rng = np.random.default_rng(seed)
    found = [motion(truth, i, j, rng, noise) for j in range(COUNT) for i in range(j)]
    return [motion(cameras(100 + k), m.i, m.j, rng, 0) if rng.random() < wrong else m for k, m in enumerate(found)]


def errors(truth: list[Pose], found: list[RelativeMotion]) -> tuple[np.ndarray, np.ndarray]:
    """Rotation errors in degrees, and errors of centres, after the best similarity."""
    R = average_rotations(COUNT, found)
    centers = solve_centers(R, found)
    turn = truth[0].rotation @ R[0]
    turned = np.array([rotation_error_deg(turn @ R[k].T, pose.rotation) for k, pose in enumerate(truth)])
    target = np.array([pose.center for pose in truth])
    return turned, np.linalg.norm(umeyama(centers, target).apply(centers) - target, axis=1)


def test_exact_motions_give_exact_cameras():
    truth = cameras()
    turned, off = errors(truth, motions(truth))
    assert turned.max() < 1e-4
    assert off.max() < 1e-6


def test_wrong_motions_are_outvoted():
    truth = cameras(1)
    turned, off = errors(truth, motions(truth, noise=0.01, wrong=0.25))
    assert turned.max() < 2
    assert np.median(off) < 0.1


def test_lengths_decide_along_a_row_of_cameras():
    """All directions are alike: only the lengths say how far the cameras stand apart."""
    place = np.cumsum([0.0, 1, 2, 1, 3, 1, 1, 2, 4, 1, 1, 2])
    truth = [Pose.from_rt(np.eye(3), np.array([x, 0, 0])) for x in place]
    found = motions(truth)
    centers = solve_centers(average_rotations(COUNT, found), found)
    np.testing.assert_allclose(centers[:, 0], place, atol=1e-6)
    np.testing.assert_allclose(centers[:, 1:], 0, atol=1e-6)


def test_the_first_camera_is_the_origin_whatever_the_order():
    truth = cameras(2)
    found = motions(truth, noise=0.02)
    R = average_rotations(COUNT, found)
    shuffled = average_rotations(COUNT, found[::-1])
    turn = R[0].T @ shuffled[0]
    np.testing.assert_allclose(shuffled, R @ turn, atol=1e-3)
    np.testing.assert_array_equal(solve_centers(R, found)[0], 0)


def test_unconnected_images_are_refused():
    truth = cameras()
    apart = [m for m in motions(truth) if (m.i < 6) == (m.j < 6)]
    with pytest.raises(ValueError, match="connect only 6 of 12"):
        average_rotations(COUNT, apart)
