"""Similarities between worlds: laws of the estimators, and what does not determine one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multiview.poses import Pose
from multiview.similarity import Similarity, rotation_between, similarity_from_poses, umeyama
from tests.multiview.synthetic_pair import rotation

SEEDS = st.integers(0, 10_000)


def random_similarity(rng: np.random.Generator) -> Similarity:
    R = rotation(rng.normal(size=3), rng.uniform(0, 180))
    return Similarity(float(np.exp(rng.normal())), R, rng.normal(size=3) * 5)


def random_poses(rng: np.random.Generator, centers: np.ndarray) -> list[Pose]:
    return [Pose.from_rt(rotation(rng.normal(size=3), rng.uniform(0, 180)), center) for center in centers]


def check_equal(found: Similarity, truth: Similarity, tolerance: float = 1e-6) -> None:
    assert found.scale == pytest.approx(truth.scale, rel=tolerance)
    np.testing.assert_allclose(found.R, truth.R, atol=tolerance)
    np.testing.assert_allclose(found.t, truth.t, atol=10 * tolerance)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(3, 12))
def test_umeyama_finds_exact_maps(seed: int, count: int):
    rng = np.random.default_rng(seed)
    truth, points = random_similarity(rng), rng.normal(size=(count, 3))
    check_equal(umeyama(points, truth.apply(points)), truth)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from(["two", "line", "spread"]))
def test_poses_determine_it_even_on_a_line(seed: int, kind: str):
    rng = np.random.default_rng(seed)
    truth = random_similarity(rng)
    direction = rng.normal(size=3)
    steps = {"two": [0.0, 1.0], "line": [0.0, 1.0, 2.5, 4.0], "spread": [0.0, 1.0, 2.0, 3.0]}[kind]
    centers = np.outer(steps, direction) + (rng.normal(size=(4, 3)) if kind == "spread" else 0)
    poses = random_poses(rng, centers)
    check_equal(similarity_from_poses(poses, [truth.apply_pose(pose) for pose in poses]), truth)


def test_two_cameras_trust_the_line_of_their_centres():
    """Noise in the rotations must not tilt the baseline, which is known."""
    rng = np.random.default_rng(3)
    poses = random_poses(rng, np.array([[0.0, 0, 0], [2, 0, 0]]))
    noisy = [Pose.from_rt(rotation((0, 0, 1), 10) @ pose.rotation, 3 * pose.center) for pose in poses]
    found = similarity_from_poses(poses, noisy)
    np.testing.assert_allclose(found.apply(poses[1].center), noisy[1].center, atol=1e-9)
    assert found.scale == pytest.approx(3)


def test_what_determines_no_similarity():
    rng = np.random.default_rng(0)
    same = random_poses(rng, np.ones((3, 3)))
    with pytest.raises(ValueError, match="different places"):
        similarity_from_poses(same, same)
    with pytest.raises(ValueError, match="same cameras"):
        similarity_from_poses(same, same[:2])
    with pytest.raises(ValueError, match="one line"):
        umeyama(np.outer(np.arange(4), [1, 2, 3]), np.outer(np.arange(4), [1, 2, 3]))
    for scale, R in ((0, np.eye(3)), (1, 2 * np.eye(3)), (np.nan, np.eye(3)), (1, np.diag([1, 1, -1]))):
        with pytest.raises(ValueError, match="Similarity"):
            Similarity(scale, R, np.zeros(3))


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_rotation_between_directions(seed: int):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 3))
    for target in (b, -a, a):
        R = rotation_between(a, target)
        np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-9)
        np.testing.assert_allclose(R @ a / np.linalg.norm(a), target / np.linalg.norm(target), atol=1e-6)
        assert np.linalg.det(R) > 0
