"""Sparse alignment of exact scenes: accuracy, known values, broken graphs, bad images, the plain reference."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mast3r.cloud_opt.alignment import SparseAlignment, align_sparse
from mast3r.cloud_opt.canonical import BlockGrid, CanonicalBuilder, canonical_views, fit_camera, with_known_depth
from mast3r.cloud_opt.config import PairCheck, SparseConfig, Stage
from mast3r.cloud_opt.initialise import robust_similarity
from mast3r.cloud_opt.kinematics import KinematicTree, components_of, kinematic_tree, score_matrix
from mast3r.cloud_opt.objectives import CoarseObjective, FineObjective
from mast3r.cloud_opt.observations import PairObservation, ViewObservation
from mast3r.cloud_opt.optimise import run_stage
from mast3r.cloud_opt.parameters import ParameterOptions, SceneParameters, separate_start
from mast3r.cloud_opt.problem import ROW, ImageGeometry, anchored_pairs, pack_problem
from mast3r.cloud_opt.reference import plain_coarse, plain_fine
from mast3r.cloud_opt.residuals import reprojection_cost, robust_distance_cost
from mast3r.cloud_opt.utils.losses import GammaLoss
from mast3r.cloud_opt.verification import consistent_matches
from multiview.views import ViewConstraints, fixed, prior
from tests.dust3r.room_scene import pose_errors, room_views
from tests.mast3r.sparse_scene import SparseScene, in_camera, observe, perfect_scene

SMALL = (48, 64)
QUICK = SparseConfig(coarse=Stage(0.02, 15, GammaLoss(1.5)), fine=Stage(0.003, 40, GammaLoss(0.5)))
NO_STEPS = replace(QUICK, coarse=Stage(0.02, 0, GammaLoss(1.5)), fine=Stage(0.01, 0, GammaLoss(0.5)))

# Another world: turned, far away and 37 times larger.
UNIT = 37.0
TURN = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
SHIFT = np.array([5.0, -3, 100])


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def scene() -> SparseScene:
    return perfect_scene(5, size=SMALL, step=3)


def aligned(scene: SparseScene, config: SparseConfig = QUICK, **kw) -> SparseAlignment:
    return align_sparse(scene.views, scene.pairs, scene.sizes, config=config, **kw)


def assert_accurate(found: SparseAlignment, scene: SparseScene, images=None, *, degrees=0.1, share=1e-3) -> None:
    images = found.registered if images is None else images
    angles, centers = pose_errors(found.world_from_cam[images], scene.poses[images])
    assert angles.max() < degrees
    assert centers.max() < share


def other_world(pose: np.ndarray) -> np.ndarray:
    moved = np.eye(4)
    moved[:3, :3] = TURN @ pose[:3, :3]
    moved[:3, 3] = UNIT * TURN @ pose[:3, 3] + SHIFT
    return moved


def absolute_errors(found: SparseAlignment, scene: SparseScene) -> tuple[float, float]:
    """Largest rotation entry and centre error (in units of the scene) in the other world."""
    expected = np.stack([other_world(pose) for pose in scene.poses])
    error = np.abs(found.world_from_cam - expected)
    return error[:, :3, :3].max(), error[:, :3, 3].max() / UNIT


def baseline(poses: np.ndarray) -> float:
    return float(np.linalg.norm(poses[-1, :3, 3] - poses[0, :3, 3]))


def true_depth(scene: SparseScene, image: int) -> np.ndarray:
    return in_camera(scene.truth[image], scene.truth[image].points)[..., 2]


# ------------------------------------------------------------------------------ accuracy


@pytest.fixture(scope="module")
def dozen() -> tuple[SparseScene, SparseAlignment]:
    scene = perfect_scene(12, step=8)
    return scene, align_sparse(scene.views, scene.pairs, scene.sizes)


def test_twelve_perfect_views(dozen):
    scene, found = dozen
    assert found.status == ("registered",) * 12
    assert found.component.tolist() == [0] * 12
    assert all(found.pairs_used)
    assert_accurate(found, scene)
    np.testing.assert_allclose(found.K[:, 0, 0], scene.K[:, 0, 0], rtol=2e-3)
    assert set(found.losses) == {"coarse", "fine"}


def test_world_is_the_first_camera_at_the_networks_scale(dozen):
    scene, found = dozen
    np.testing.assert_allclose(found.world_from_cam[0], np.eye(4), atol=1e-9)
    assert baseline(found.world_from_cam) == pytest.approx(baseline(scene.poses), rel=5e-3)


def test_poses_are_rigid_to_double_precision(dozen):
    _, found = dozen
    R = found.world_from_cam[:, :3, :3]
    np.testing.assert_allclose(R @ R.transpose(0, 2, 1), np.tile(np.eye(3), (12, 1, 1)), atol=1e-12)


def test_dense_points_lie_on_the_scene(dozen):
    scene, found = dozen
    first = np.linalg.inv(scene.poses[0])
    for image in (0, 7):
        dense = found.dense(image)
        expected = scene.truth[image].points @ first[:3, :3].T + first[:3, 3]
        error = np.linalg.norm(dense.points - expected, axis=-1)
        assert np.median(error) < 5e-3
        assert (dense.confidence > 0).mean() > 0.8
        assert (found.dense(image, clean=False).confidence > 0).all()
        np.testing.assert_allclose(dense.depth, true_depth(scene, image), rtol=0.05)


def test_matches_as_points(dozen):
    scene, found = dozen
    matches = found.match_points(3)
    assert len(matches.xy_i) == len(matches.points) == len(matches.error) <= len(scene.pairs[3])
    assert np.median(matches.error) < 0.1
    xy, points = found.sparse_points(scene.pairs[3].i)
    assert len(np.unique(xy, axis=0)) == len(xy) == len(points)
    pose, K = found.world_from_cam[scene.pairs[3].i], found.K[scene.pairs[3].i]
    pixels = (points - pose[:3, 3]) @ pose[:3, :3] @ K.T
    np.testing.assert_allclose(pixels[:, :2] / pixels[:, 2:], xy, atol=1e-3)


def test_integer_matches():
    scene = perfect_scene(6, size=(96, 128), step=6, rounded=True)
    assert_accurate(aligned(scene), scene, share=2e-3)


def test_official_start_and_stages():
    scene = perfect_scene(4, size=SMALL, step=3)
    config = SparseConfig(
        initialization="common_point",
        coarse=Stage(0.07, 150, GammaLoss(1.5)),
        fine=Stage(0.01, 100, GammaLoss(0.5)),
        fit_center=False,
        check=None,
    )
    assert_accurate(aligned(scene, config), scene, degrees=0.5, share=5e-3)


def test_deterministic(scene):
    first, second = aligned(scene), aligned(scene)
    assert np.array_equal(first.world_from_cam, second.world_from_cam)
    assert np.array_equal(first.K, second.K)
    assert np.array_equal(first.dense(1).points, second.dense(1).points)


def test_order_of_observations_does_not_matter(scene):
    backwards = align_sparse(iter(scene.views[::-1]), scene.pairs, scene.sizes, config=QUICK)
    assert_accurate(backwards, scene)


def test_reports_progress(scene):
    seen = []
    aligned(scene, on_step=lambda share, stage: seen.append((share, stage)))
    assert [share for share, _ in seen] == sorted(share for share, _ in seen)
    assert seen[-1] == (pytest.approx(1.0), "fine")
    assert {stage for _, stage in seen} == {"coarse", "fine"}


@pytest.mark.parametrize(
    "options",
    [
        {"depth_mode": "mul"},
        {"exp_depth": True},
        {"opt_depth": False},
        {"opt_focal": False},
        {"kinematic_mode": "mst"},
        {"schedule": "linear"},
        {"subsample": 5},
        {"relative_depth": "avg-reldepth"},
        {"dtype": torch.float64},
    ],
    ids=str,
)
def test_options(scene, options):
    assert_accurate(aligned(scene, replace(QUICK, **options)), scene, degrees=0.2, share=2e-3)


def test_shared_intrinsics():
    truth = room_views(5, size=SMALL)
    same = [view for view in truth if view.points.shape[0] == SMALL[0]]
    scene = observe(same, [(0, 1), (0, 2), (1, 2)], step=3)
    found = aligned(scene, replace(QUICK, shared_intrinsics=True))
    assert np.ptp(found.K[:, 0, 0]) == 0


def test_no_steps_leave_the_first_guess(scene):
    found = aligned(scene, NO_STEPS)
    assert found.losses == {}
    assert_accurate(found, scene)


# ------------------------------------------------------------------------------ known values


def constraints(scene: SparseScene, **known) -> list[ViewConstraints]:
    """For each name a function from image to what is known of it, or None."""
    return [ViewConstraints(**{name: of(i) for name, of in known.items()}) for i in range(len(scene.sizes))]


def test_fixed_cameras_come_back_unchanged_and_the_cloud_is_one(scene):
    poses = np.stack([other_world(pose) for pose in scene.poses])
    known = constraints(scene, pose=lambda i: fixed(poses[i]), K=lambda i: fixed(scene.K[i]))
    found = aligned(scene, constraints=known)
    np.testing.assert_allclose(found.world_from_cam, poses, atol=1e-6)
    np.testing.assert_allclose(found.K, scene.K, atol=1e-6)
    for image, view in enumerate(scene.truth):
        expected = UNIT * view.points @ TURN.T + SHIFT
        assert np.median(np.linalg.norm(found.dense(image).points - expected, axis=-1)) < 2e-3 * UNIT


@pytest.mark.parametrize("known", [(0, 3), (1,)])
def test_some_fixed_poses(scene, known):
    given = constraints(scene, pose=lambda i: fixed(other_world(scene.poses[i])) if i in known else None)
    found = aligned(scene, constraints=given)
    for i in known:
        np.testing.assert_allclose(found.world_from_cam[i], other_world(scene.poses[i]), atol=1e-6)
    assert_accurate(found, scene)
    if len(known) > 1:
        rotation, center = absolute_errors(found, scene)
        assert rotation < 2e-3
        assert center < 5e-3


def test_fixed_poses_of_images_that_share_no_pair(scene):
    cut = scene.without([(0, 4)])
    given = constraints(cut, pose=lambda i: fixed(other_world(cut.poses[i])) if i in (0, 4) else None)
    rotation, center = absolute_errors(aligned(cut, constraints=given), cut)
    assert rotation < 2e-3
    assert center < 5e-3


def test_prior_poses_place_the_scene(scene):
    rng = np.random.default_rng(0)
    poses = [other_world(pose) for pose in scene.poses]
    for pose in poses:
        pose[:3, 3] += 0.02 * UNIT * rng.normal(size=3)
    found = aligned(scene, constraints=constraints(scene, pose=lambda i: prior(poses[i], 0.1)))
    assert_accurate(found, scene, degrees=0.5, share=3e-3)
    rotation, center = absolute_errors(found, scene)
    assert rotation < 0.05
    assert center < 0.1


def test_prior_intrinsics_pull_with_their_weight(scene):
    wrong = scene.K * np.array([[1.02, 1, 1], [1, 1.02, 1], [1, 1, 1]])
    config = replace(QUICK, fine=Stage(0.01, 150, GammaLoss(0.5)))

    def focal_error(weight: float) -> float:
        known = constraints(scene, K=lambda i: prior(wrong[i], weight))
        return np.median(aligned(scene, config, constraints=known).K[:, 0, 0] / scene.K[:, 0, 0] - 1)

    assert abs(focal_error(1e-3)) < 0.01
    assert focal_error(1e3) == pytest.approx(0.02, abs=1e-3)


def test_fixed_intrinsics(scene):
    found = aligned(scene, constraints=constraints(scene, K=lambda i: fixed(scene.K[i])))
    assert np.array_equal(found.K, scene.K)
    assert_accurate(found, scene)


@pytest.mark.parametrize("make", [fixed, prior])
def test_known_depth_tells_the_scale(scene, make):
    given = constraints(scene, depth=lambda i: make(UNIT * true_depth(scene, i)) if i == 2 else None)
    found = aligned(scene, constraints=given)
    assert_accurate(found, scene)
    assert baseline(found.world_from_cam) == pytest.approx(UNIT * baseline(scene.poses), rel=0.01)
    if make is fixed:
        np.testing.assert_allclose(found.dense(2).depth, UNIT * true_depth(scene, 2), rtol=1e-5)


def test_sparse_known_depth(scene):
    depth = UNIT * true_depth(scene, 2)
    depth[np.random.default_rng(0).random(depth.shape) > 0.05] = np.nan
    found = aligned(scene, constraints=constraints(scene, depth=lambda i: fixed(depth) if i == 2 else None))
    assert baseline(found.world_from_cam) == pytest.approx(UNIT * baseline(scene.poses), rel=0.01)
    known = np.isfinite(depth)
    np.testing.assert_allclose(found.dense(2).depth[known], depth[known], rtol=1e-5)


def test_known_depth_and_pose_of_different_images(scene):
    given = [ViewConstraints()] * 5
    given[2] = ViewConstraints(depth=fixed(UNIT * true_depth(scene, 2)))
    given[4] = ViewConstraints(pose=fixed(other_world(scene.poses[4])))
    rotation, center = absolute_errors(aligned(scene, constraints=given), scene)
    assert rotation < 2e-3
    assert center < 5e-3


def test_mask_keeps_pixels_out(scene):
    mask = np.ones(scene.truth[0].points.shape[:2], dtype=bool)
    mask[:, : mask.shape[1] // 2] = False
    given = [ViewConstraints(mask=mask)] + [ViewConstraints()] * 4
    found = aligned(scene, constraints=given)
    assert not found.dense(0).confidence[~mask].any()
    for number, pair in enumerate(scene.pairs):
        if pair.i == 0:
            x, y = np.rint(found.match_points(number).xy_i).astype(int).T
            assert mask[y, x].all()
    assert_accurate(found, scene)


# ------------------------------------------------------------------------------ broken graphs


def test_two_groups_without_a_common_pair(scene):
    found = aligned(scene.without([(i, j) for i in (0, 1) for j in (2, 3, 4)]))
    assert found.component.tolist() == [0, 0, 1, 1, 1]
    assert_accurate(found, scene, [0, 1])
    assert_accurate(found, scene, [2, 3, 4])
    np.testing.assert_allclose(found.world_from_cam[[0, 2]], np.tile(np.eye(4), (2, 1, 1)), atol=1e-9)


def test_groups_of_known_poses_share_the_given_world(scene):
    cut = scene.without([(i, j) for i in (0, 1) for j in (2, 3, 4)])
    poses = [other_world(pose) for pose in cut.poses]
    found = aligned(cut, constraints=constraints(cut, pose=lambda i: fixed(poses[i])))
    assert found.component.tolist() == [0] * 5
    np.testing.assert_allclose(found.world_from_cam, poses, atol=1e-6)


def test_image_without_pairs_fails_with_a_reason(scene):
    found = aligned(scene.without([(4, j) for j in range(4)]))
    assert found.status[4] == "failed"
    assert found.component.tolist() == [0, 0, 0, 0, -1]
    assert found.reason[4].endswith(".")
    assert found.dense(4) is None
    assert np.isnan(found.world_from_cam[4]).all()
    assert len(found.sparse_points(4)[0]) == 0
    assert_accurate(found, scene, [0, 1, 2, 3])


def test_image_without_pairs_but_with_a_known_pose(scene):
    pose = other_world(scene.poses[4])
    given = [ViewConstraints()] * 4 + [ViewConstraints(pose=fixed(pose), K=fixed(scene.K[4]))]
    found = aligned(scene.without([(4, j) for j in range(4)]), constraints=given)
    assert found.status[4] == "registered"
    np.testing.assert_allclose(found.world_from_cam[4], pose)
    assert found.component[4] != found.component[0]
    assert found.dense(4) is None


def random_matches(pair: PairObservation, scene: SparseScene, rng) -> PairObservation:
    xy = [rng.uniform(0, np.subtract(scene.sizes[i], 1), (len(pair), 2)) for i in (pair.i, pair.j)]
    return PairObservation(pair.i, pair.j, *xy, pair.confidence)


def test_image_of_random_matches_does_not_spoil_the_others(scene):
    rng = np.random.default_rng(0)
    pairs = [random_matches(pair, scene, rng) if 2 in (pair.i, pair.j) else pair for pair in scene.pairs]
    found = align_sparse(scene.views, pairs, scene.sizes, config=QUICK)
    assert found.status == ("registered", "registered", "failed", "registered", "registered")
    assert "agree with one camera motion" in found.reason[2]
    assert [used for pair, used in zip(pairs, found.pairs_used) if 2 in (pair.i, pair.j)] == [False] * 4
    assert_accurate(found, scene, [0, 1, 3, 4])


def test_wrong_matches_among_right_ones(scene):
    rng = np.random.default_rng(0)
    pairs = []
    for pair in scene.pairs:
        wrong = random_matches(pair, scene, rng)
        bad = rng.random(len(pair)) < 0.3
        xy = [np.where(bad[:, None], a, b) for a, b in ((wrong.xy_i, pair.xy_i), (wrong.xy_j, pair.xy_j))]
        pairs.append(PairObservation(pair.i, pair.j, *xy, pair.confidence))
    found = align_sparse(scene.views, pairs, scene.sizes, config=QUICK)
    assert_accurate(found, scene, degrees=0.3, share=3e-3)


def test_points_stand_in_for_poor_matches(scene):
    pairs = [
        PairObservation(p.i, p.j, p.xy_i, p.xy_j, np.full(len(p), 0.5)) if 4 in (p.i, p.j) else p for p in scene.pairs
    ]
    config = replace(QUICK, matching_conf_thr=0.6, fallback_weight=1.0)
    found = align_sparse(scene.views, pairs, scene.sizes, config=config)
    assert found.status == ("registered",) * 5
    assert [used for p, used in zip(pairs, found.pairs_used) if 4 in (p.i, p.j)] == [False] * 4
    assert_accurate(found, scene, degrees=0.5, share=5e-3)


def test_only_poor_matches(scene):
    config = replace(QUICK, matching_conf_thr=1e9, fallback_weight=1.0)
    assert_accurate(aligned(scene, config), scene, degrees=1.0, share=1e-2)


# ------------------------------------------------------------------------------ user errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"pairs": [*s.pairs, s.pairs[0]]}, "given twice"),
        (lambda s: {"sizes": s.sizes[:4]}, "beyond the 4"),
        (lambda s: {"sizes": [(9, 9), *s.sizes[1:]]}, "outside image 0"),
        (lambda s: {"constraints": [None]}, "one entry"),
        (lambda s: {"constraints": [ViewConstraints(mask=np.ones((2, 2), bool))] + [None] * 4}, "mask"),
        (lambda s: {"constraints": [ViewConstraints(depth=fixed(np.ones((2, 2))))] + [None] * 4}, "Known depth"),
        (lambda s: {"views": [replace(s.views[0], points=np.ones((5, 5, 3)), confidence=np.ones((5, 5)))]}, "size"),
    ],
)
def test_unfit_arguments(scene, change, message):
    arguments = {"views": scene.views, "pairs": scene.pairs, "sizes": scene.sizes} | change(scene)
    views, pairs, sizes = (arguments.pop(name) for name in ("views", "pairs", "sizes"))
    with pytest.raises(ValueError, match=message):
        align_sparse(views, pairs, sizes, config=QUICK, **arguments)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ViewObservation(0, 0, np.ones((2, 2, 3)), np.ones((2, 2))),
        lambda: ViewObservation(0, 1, np.ones((2, 2)), np.ones((2, 2))),
        lambda: ViewObservation(0, 1, np.ones((2, 2, 3)), np.ones((2, 2)), np.ones((2, 2, 3))),
        lambda: PairObservation(1, 1, np.ones((3, 2)), np.ones((3, 2)), np.ones(3)),
        lambda: PairObservation(0, 1, np.ones((3, 2)), np.ones((2, 2)), np.ones(3)),
        lambda: PairObservation(0, 1, np.ones((3, 2)), np.ones((3, 2)), -np.ones(3)),
        lambda: SparseConfig(subsample=0),
        lambda: SparseConfig(depth_mode="sum"),  # pyright: ignore[reportArgumentType]
        lambda: SparseConfig(initialization="zero"),  # pyright: ignore[reportArgumentType]
        lambda: SparseConfig(schedule="step"),  # pyright: ignore[reportArgumentType]
        lambda: Stage(0.0, 1, GammaLoss(1.0)),
        lambda: PairCheck(min_share=2.0),
        lambda: GammaLoss(0.0),
    ],
)
def test_unfit_values(make):
    with pytest.raises(ValueError, match=r"got|belong"):
        make()


def test_nothing_to_align():
    found = align_sparse([], [], [(16, 16), (16, 16)])
    assert found.status == ("failed", "failed")
    assert found.dense_all() == [None, None]


def test_pixels_that_are_not_finite_are_ignored(scene):
    views = []
    for view in scene.views:
        points = view.points.copy()
        points[:10, :10] = np.nan
        views.append(replace(view, points=points))
    found = align_sparse(views, scene.pairs, scene.sizes, config=QUICK)
    assert np.isfinite(found.world_from_cam).all()
    assert not found.dense(0).confidence[:10, :10].any()
    assert_accurate(found, scene)


# ------------------------------------------------------------------------------ the plain reference


@pytest.fixture
def problem(scene):
    """The scene, its pairs and parameters somewhere."""
    views = [view for view in canonical_views(scene.views, scene.sizes) if view is not None]
    size = torch.tensor(scene.sizes, dtype=torch.float32)
    images = ImageGeometry.of(size, torch.tensor([view.focal for view in views]), [v.core_depth for v in views])
    pairs = anchored_pairs(views, scene.pairs)
    scores = score_matrix(5, [(pair.i, pair.j, len(pair.weight)) for pair in pairs])
    parents = kinematic_tree(scores, blocks=images.blocks).parents(5)
    return images, pairs, lambda: SceneParameters(images, parents, separate_start(images))


def test_fast_objectives_equal_the_plain_ones(problem):
    images, pairs, parameters = problem
    packed, scene = pack_problem(images, pairs), parameters()
    coarse, fine = GammaLoss(1.5), GammaLoss(0.5)
    fast = CoarseObjective.at(packed, scene(), coarse)
    for _ in range(3):
        state = scene()
        for value, plain in (
            (fast(state), plain_coarse(state, images, pairs, coarse)),
            (FineObjective(packed, fine)(state), plain_fine(state, images, pairs, fine)),
        ):
            assert value.item() == pytest.approx(plain.item(), rel=1e-5)
            for a, b in zip(gradients(value, scene), gradients(plain, scene)):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
        run_stage(scene, fast, [scene.quaternion, scene.translation, scene.log_scale], lr=0.07, niter=10)


def gradients(value: torch.Tensor, scene: SceneParameters) -> list[torch.Tensor]:
    found = torch.autograd.grad(
        value, [scene.quaternion, scene.translation, scene.log_scale], retain_graph=True, allow_unused=True
    )
    return [torch.zeros(()) if gradient is None else gradient for gradient in found]


def test_fast_and_plain_runs_end_at_the_same_losses(problem):
    images, pairs, parameters = problem
    packed = pack_problem(images, pairs)
    losses: dict[str, list[float]] = {}
    for way in ("fast", "plain"):
        scene = parameters()
        first, second = (
            (CoarseObjective.at(packed, scene(), GammaLoss(1.5)), FineObjective(packed, GammaLoss(0.5)))
            if way == "fast"
            else (
                lambda state: plain_coarse(state, images, pairs, GammaLoss(1.5)),
                lambda state: plain_fine(state, images, pairs, GammaLoss(0.5)),
            )
        )
        poses = [scene.quaternion, scene.translation, scene.log_scale]
        results = [
            run_stage(scene, first, poses, lr=0.07, niter=15),
            run_stage(scene, second, list(scene.parameters()), lr=0.01, niter=15),
        ]
        losses[way] = [result.loss for result in results]
    np.testing.assert_allclose(losses["fast"], losses["plain"], rtol=1e-3)


def test_padding_has_no_effect(problem):
    images, pairs, parameters = problem
    one = [replace(pairs[0], weight=pairs[0].weight[:1], first=part(pairs[0].first), second=part(pairs[0].second))]
    packed = pack_problem(images, one)
    assert packed.matches.weight.shape == (1, ROW)
    value = FineObjective(packed, GammaLoss(0.5))(parameters()())
    assert value.item() == pytest.approx(plain_fine(parameters()(), images, one, GammaLoss(0.5)).item(), rel=1e-5)
    with pytest.raises(ValueError, match="Nothing connects"):
        pack_problem(images, [])


def part(pixels):
    return replace(pixels, xy=pixels.xy[:1], anchor=pixels.anchor[:1], offset=pixels.offset[:1])


@pytest.mark.parametrize(
    "loss", [GammaLoss(0.5), GammaLoss(1.0), GammaLoss(1.5), GammaLoss(2.0, mul=3, clip=1.2)], ids=str
)
def test_closed_form_derivatives(loss):
    generator = torch.Generator().manual_seed(0)
    residual = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(2, 5, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda r: robust_distance_cost(r, weight, loss), residual)
    projected = residual.detach() + torch.tensor([0.0, 0.0, 4.0], dtype=torch.float64)[None, :, None]
    pixel = torch.randn(2, 2, 5, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: reprojection_cost(p, pixel, weight, loss), projected.requires_grad_())


def test_points_on_each_other_or_behind_the_camera_have_finite_gradients():
    residual = torch.zeros(1, 3, 2, requires_grad=True)
    robust_distance_cost(residual, torch.ones(1, 2), GammaLoss(0.5)).backward()
    assert not residual.grad.any()
    projected = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [-2.0, 0.0]]], requires_grad=True)
    cost = reprojection_cost(projected, torch.zeros(1, 2, 2), torch.ones(1, 2), GammaLoss(0.5))
    cost.backward()
    assert math.isfinite(cost.item())
    assert projected.grad.isfinite().all()


# ------------------------------------------------------------------------------ pieces


def test_set_poses_is_the_inverse_of_the_state(problem, scene):
    images, _, _ = problem
    parents = kinematic_tree(np.ones((5, 5)) - np.eye(5), "mst", blocks=images.blocks).parents(5)
    parameters = SceneParameters(images, parents, separate_start(images), options=ParameterOptions("mul"))
    poses = torch.from_numpy(scene.poses).float()
    parameters.set_poses(poses)
    torch.testing.assert_close(parameters().world_from_cam, poses, rtol=1e-4, atol=1e-5)


def test_forest_hangs_on_the_nearest_anchored_image():
    tree = KinematicTree(2, ((2, 1), (2, 3), (1, 0), (3, 4)))
    assert tree.parents(5).tolist() == [1, 2, 2, 2, 3]
    assert tree.parents(5, [0, 4]).tolist() == [0, 0, 1, 4, 4]


@pytest.mark.parametrize("count", [1, 2, 3, 6, 17])
def test_chained_poses_equal_products_along_the_path(count):
    images = ImageGeometry.of(torch.full((count, 2), 16.0), torch.full((count,), 20.0), [torch.ones(4)] * count)
    parents = np.maximum(np.arange(count) - 1, 0)
    scene = SceneParameters(images, parents, separate_start(images))
    with torch.no_grad():
        scene.quaternion.add_(0.2 * torch.randn(count, 4))
        scene.translation.add_(torch.randn(count, 3))
    relative = torch.eye(4).repeat(count, 1, 1)
    relative[:, :3, 3] = torch.randn(count, 3)
    expected = [relative[0]]
    for i in range(1, count):
        expected.append(expected[-1] @ relative[i])
    torch.testing.assert_close(scene._chained(relative), torch.stack(expected))


def test_components_are_numbered_by_first_image():
    assert components_of(6, [(4, 5), (1, 0), (0, 3)]).tolist() == [0, 0, 1, 0, 2, 2]


@pytest.mark.parametrize("mode", ["mst", "hclust-ward", "hclust-single", "hclust-average"])
def test_trees_span_all_images(mode):
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 100, (9, 9))
    scores = np.triu(scores, 1) + np.triu(scores, 1).T
    tree = kinematic_tree(scores, mode, blocks=[12] * 9)
    assert len(tree.edges) == 8
    assert (components_of(9, tree.edges) == 0).all()
    with pytest.raises(ValueError, match="kinematic_mode"):
        kinematic_tree(scores, "star", blocks=[12] * 9)  # pyright: ignore[reportArgumentType]


def test_robust_similarity_with_wrong_points():
    rng = np.random.default_rng(0)
    source = rng.normal(size=(60, 3))
    target = 2.5 * source @ TURN.T + SHIFT
    target[:24] = rng.normal(size=(24, 3))
    fit = robust_similarity(source, target, np.ones(60))
    assert fit.scale == pytest.approx(2.5, rel=1e-3)
    np.testing.assert_allclose(fit.R, TURN, atol=1e-3)
    assert robust_similarity(source[:2], target[:2], np.ones(2)).scale == 1


def test_matches_of_a_turning_camera_are_consistent():
    rng = np.random.default_rng(0)
    K = np.array([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]])
    angle = 0.2
    R = np.array([[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]])
    xy0 = rng.uniform((10, 0), (50, 48), (80, 2))
    moved = np.concatenate([xy0, np.ones((80, 1))], axis=1) @ np.linalg.inv(K).T @ R.T @ K.T
    xy1 = moved[:, :2] / moved[:, 2:]
    xy1[:20] = rng.uniform((0, 0), (64, 48), (20, 2))
    inliers = consistent_matches(xy0, xy1, K, K, threshold_px=1.0)
    assert inliers[20:].all()
    assert inliers[:20].sum() < 5


def test_focal_and_center_are_read_off_a_pointmap():
    K = np.array([[70.0, 0, 40], [0, 70, 20], [0, 0, 1]])
    y, x = np.mgrid[:48, :64]
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(K).T
    exact = torch.from_numpy(rays * np.random.default_rng(0).uniform(2, 3, (48, 64, 1))).float()
    focal, center = fit_camera(exact, fit_center=True)
    assert focal == pytest.approx(70, rel=1e-3)
    assert center == pytest.approx((40, 20), abs=0.05)
    assert fit_camera(exact, fit_center=False)[1] == (32, 24)
    noisy = exact + 0.05 * torch.randn(exact.shape)
    middle = torch.from_numpy(np.stack([x - 31.5, y - 23.5, np.full_like(x, 70)], -1) / 70.0).float()
    assert fit_camera(middle + 0.05 * torch.randn(middle.shape), fit_center=True)[1] == (31.5, 23.5)
    assert fit_camera(noisy, fit_center=True)[0] == pytest.approx(70, rel=0.2)
    assert math.isfinite(fit_camera(torch.full((4, 6, 3), torch.nan), fit_center=True)[0])


def test_offsets_between_pixels_follow_planes_but_not_edges():
    y, x = np.mgrid[:16, :16]
    rays = np.stack([(x - 8) / 20, (y - 8) / 20, np.ones_like(x)], -1)
    depth = 3 / (1 + 0.3 * rays[..., 0])
    depth[:, 12:] = 9
    builder = CanonicalBuilder((16, 16), subsample=8)
    builder.add(torch.from_numpy(rays * depth[..., None]), torch.full((16, 16), 2.0))
    view = builder.build()
    xy = torch.tensor([[3.4, 5.0], [6.7, 2.3], [11.4, 3.0]])
    anchor, offset = view.offsets_at(xy)
    found = view.core_depth[anchor] * offset
    assert found[:2].tolist() == pytest.approx([3 / (1 + 0.3 * (u - 8) / 20) for u in (3.4, 6.7)], rel=1e-5)
    assert found[2] == pytest.approx(depth[3, 11], rel=1e-5)
    assert BlockGrid(16, 16, 8).index(torch.tensor([[15, 0], [0, 15]])).tolist() == [1, 2]


def test_known_depth_fills_in_the_networks_shape():
    builder = CanonicalBuilder((16, 16), subsample=8)
    y, x = np.mgrid[:16, :16]
    points = torch.from_numpy(np.stack([(x - 8) / 20, (y - 8) / 20, np.ones_like(x)], -1) * 2.0)
    builder.add(points, torch.full((16, 16), 2.0))
    depth = torch.full((16, 16), torch.nan)
    depth[2, 3] = 6.0
    view, blocks = with_known_depth(builder.build(), depth)
    assert blocks.tolist() == [True, False, False, False]
    assert torch.allclose(view.points[..., 2], torch.tensor(6.0))
    unchanged, none = with_known_depth(builder.build(), torch.zeros(16, 16))
    assert not none.any()
    assert torch.allclose(unchanged.points[..., 2], torch.tensor(2.0))
