"""Alignment where matches are good and pointmaps are bad: motions of pairs, focal lengths, bent depth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mast3r.cloud_opt.alignment import align_sparse
from mast3r.cloud_opt.config import SparseConfig, Stage
from mast3r.cloud_opt.focal_search import search_focals
from mast3r.cloud_opt.observations import PairObservation, ViewObservation
from mast3r.cloud_opt.utils.losses import GammaLoss
from mast3r.evaluation.scenes import robust_similarity
from multiview.metrics import rotation_error_deg
from multiview.poses import Pose
from tests.mast3r.sparse_scene import SparseScene, perfect_scene

NO_STEPS = {"coarse": Stage(0.02, 0, GammaLoss(1.5)), "fine": Stage(0.003, 0, GammaLoss(0.5))}


@pytest.fixture(scope="module")
def scene() -> SparseScene:
    return perfect_scene(8)


def warped(scene: SparseScene, *, strength: float = 0.35, zoom: float = 1.0) -> list[ViewObservation]:
    """Pointmaps with smooth errors of depth of about a third, and of a focal length that is off."""
    rng = np.random.default_rng(0)

    def warp(view: ViewObservation) -> ViewObservation:
        height, width = view.confidence.shape
        y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
        a = strength * rng.normal(size=4)
        bump = np.exp(a[0] * x + a[1] * y + a[2] * np.sin(3 * x) + a[3] * np.cos(3 * y))[..., None]
        return replace(view, points=(view.points * bump * (1, 1, zoom)).astype(np.float32))

    return [warp(view) for view in scene.views]


def errors(scene: SparseScene, world_from_cam: np.ndarray) -> tuple[float, float]:
    """Median rotation error in degrees and largest centre error after a similarity."""
    found, truth = ([Pose(pose) for pose in poses] for poses in (world_from_cam, scene.poses))
    similarity = robust_similarity(found, truth)
    assert similarity is not None
    moved = [similarity.apply_pose(pose) for pose in found]
    turned = [rotation_error_deg(a.rotation, b.rotation) for a, b in zip(moved, truth)]
    return float(np.median(turned)), max(float(np.linalg.norm(a.center - b.center)) for a, b in zip(moved, truth))


def test_motions_place_cameras_that_bad_pointmaps_do_not(scene):
    views = warped(scene)
    results = {}
    for name in ("registration", "best"):
        config = SparseConfig(initialization=name, search_focals=False, **NO_STEPS)  # pyright: ignore[reportArgumentType]
        results[name] = errors(scene, align_sparse(views, scene.pairs, scene.sizes, config=config).world_from_cam)
    assert results["registration"][0] > 5
    assert results["best"][0] < 0.3
    assert results["best"][1] < 0.05


def test_perfect_pointmaps_stay_perfect(scene):
    found = align_sparse(scene.views, scene.pairs, scene.sizes, config=SparseConfig())
    turned, off = errors(scene, found.world_from_cam)
    assert turned < 0.1
    assert off < 0.01


def one_camera(count: int = 5) -> tuple[list[PairObservation], np.ndarray]:
    """Noisy matches between views of a cloud by one camera, and its intrinsics."""
    rng = np.random.default_rng(0)
    K = np.array([[140.0, 0, 63.5], [0, 140.0, 47.5], [0, 0, 1]])
    cloud = rng.uniform(-1, 1, (400, 3)) * (1.2, 0.9, 1.0)
    pixels = []
    for k in range(count):
        angle = 0.25 * (k - count / 2)
        turn = np.array([[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0], [np.sin(angle), 0, np.cos(angle)]])
        local = (cloud @ turn.T + (0, 0.1 * k, 3.5)) @ K.T
        pixels.append(local[:, :2] / local[:, 2:] + rng.normal(0, 0.2, (400, 2)))
    edges = [(i, j) for j in range(count) for i in range(j)]
    return [PairObservation(i, j, pixels[i], pixels[j], np.ones(400)) for i, j in edges], K


def test_a_wrong_focal_length_of_all_pointmaps_is_found_by_the_matches():
    pairs, K = one_camera()
    wrong = np.stack([K] * 5)
    wrong[:, :2, :2] *= np.array([1.5, 1.6, 1.7, 1.6, 1.55])[:, None, None]
    found, new = search_focals(pairs, [(128, 96)] * 5, wrong, [False] * 5)
    assert new.all()
    np.testing.assert_allclose(found[:, 0, 0] / K[0, 0], 1, atol=0.1)
    np.testing.assert_array_equal(found[:, :2, 2], wrong[:, :2, 2])


def test_focals_that_explain_the_matches_stay(scene):
    """The room is seen by cameras of different focal lengths: no common one is better than the true ones."""
    found, new = search_focals(scene.pairs, scene.sizes, scene.K, [False] * len(scene.K))
    assert not new.any()
    np.testing.assert_array_equal(found, scene.K)


def test_known_focals_stay(scene):
    K = scene.K.copy()
    K[:, :2, :2] *= 1.6
    for pairs, known in ((scene.pairs, True), (scene.pairs[:2], False)):
        found, new = search_focals(pairs, scene.sizes, K, [known] * len(K))
        np.testing.assert_array_equal(found, K)
        assert not new.any()


def test_bent_depth_agrees_with_the_scene(scene):
    """Before any step the depth of the anchors is right, where matches tell it."""
    config = SparseConfig(search_focals=False, **NO_STEPS)  # pyright: ignore[reportArgumentType]
    found = align_sparse(warped(scene), scene.pairs, scene.sizes, config=config)
    spread = []
    for image, view in enumerate(scene.truth):
        xy, points = found.sparse_points(image)
        x, y = np.rint(xy).astype(int).T
        depth = ((points - found.world_from_cam[image, :3, 3]) @ found.world_from_cam[image, :3, :3])[:, 2]
        true = ((view.points[y, x] - view.pose[:3, 3]) @ view.pose[:3, :3])[:, 2]
        ratio = np.log(depth / true)
        spread.append(float(np.median(np.abs(ratio - np.median(ratio)))))
    assert np.median(spread) < 0.05  # 0.2 before
