"""Dense global alignment: the official numbers, exact scenes, fixed values, bad images, speed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dust3r.cloud_opt import (
    AlignmentConfig,
    GlobalAlignerMode,
    ModularPointCloudOptimizer,
    PairViewer,
    PointCloudOptimizer,
    global_aligner,
)
from dust3r.cloud_opt.base_opt import clean_pointcloud, global_alignment_loop
from dust3r.cloud_opt.init_im_poses import (
    align_multiple_poses,
    estimate_focal,
    fast_pnp,
    init_minimum_spanning_tree,
    maximum_spanning_forest,
    rigid_points_registration,
    sRT_to_4x4,
)
from dust3r.cloud_opt.residuals import weighted_distances
from dust3r.utils.geometry import inv
from tests.dust3r.room_scene import complete_edges, perfect_output, pose_errors, room_views

RAW = ("pw_poses", "pw_adaptors", "im_depthmaps", "im_poses", "im_focals", "im_pp")
MODES = (GlobalAlignerMode.PointCloudOptimizer, GlobalAlignerMode.ModularPointCloudOptimizer)
SIZE = (12, 16)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


# ------------------------------------------------------------------------------------ official numbers


@pytest.fixture
def ga(golden):
    return golden("dust3r_ga")


def fixture_output(ga, prefix="in.", edges=None):
    edges = [tuple(edge) for edge in edges or ga.meta["edges"]]

    def maps(name):
        return [ga.tensors[f"{prefix}{i}_{j}.{name}"] for i, j in edges]

    def view(side):
        images = [ga.tensors.get(f"in.img{edge[side]}") for edge in edges]
        return {"idx": [edge[side] for edge in edges], "img": images}

    return {
        "view1": view(0),
        "view2": view(1),
        "pred1": {"pts3d": maps("pts_i"), "conf": maps("conf_i")},
        "pred2": {"pts3d_in_other_view": maps("pts_j"), "conf": maps("conf_j")},
    }


def numbered(ga, prefix):
    return [ga.tensors[key] for key in sorted(ga.keys(prefix)) if key.removeprefix(prefix).isdigit()]


def explicit_scene(ga, mode=MODES[0], **options):
    scene = global_aligner(fixture_output(ga), "cpu", mode, verbose=False, **options)
    for name in RAW:
        getattr(scene, name).data.copy_(ga.tensors[f"explicit.{name}"])
    return scene


def check_state(ga, scene, prefix):
    ga.close(scene.get_im_poses(), f"{prefix}.poses")
    ga.close(scene.get_focals(), f"{prefix}.focals")
    ga.close(scene.get_principal_points(), f"{prefix}.pp")
    ga.close(scene.get_intrinsics(), f"{prefix}.K")
    ga.close(scene.get_pw_poses(), f"{prefix}.pw_poses4x4")
    ga.close(scene.get_pw_scale(), f"{prefix}.pw_scale")
    maps = zip(scene.get_depthmaps(), scene.get_pts3d(), scene.get_masks())
    for i, (depth, points, mask) in enumerate(maps):
        ga.close(depth, f"{prefix}.depth{i}")
        ga.close(points, f"{prefix}.pts3d{i}")
        assert torch.equal(mask, ga.tensors[f"{prefix}.mask{i}"])


def test_explicit_state_objective_and_gradients(ga):
    scene = explicit_scene(ga, optimize_pp=True, allow_pw_adaptors=True)
    check_state(ga, scene, "explicit")
    ga.close(scene.get_adaptors(), "explicit.adaptors")
    loss = scene()
    ga.close(loss.detach(), "explicit.loss")
    loss.backward()
    for key in ga.keys("explicit.grad."):
        ga.close(getattr(scene, key.removeprefix("explicit.grad.")).grad, key)


def test_explicit_objective_variants(ga):
    squared = explicit_scene(ga, dist="l2", conf="sqrt")
    ga.close(squared().detach(), "explicit.loss_l2_sqrt")
    loss, details = explicit_scene(ga, MODES[1])(ret_details=True)
    ga.close(loss.detach(), "explicit.loss_modular")
    ga.close(details, "explicit.modular_details")


def test_tree_and_initial_state(ga):
    scene = global_aligner(fixture_output(ga), "cpu", verbose=False)
    scores = scene.edge_scores()
    for name, score in zip(scene.str_edges, scores.tolist()):
        assert score == pytest.approx(ga.meta["meta"]["edge_scores"][name], rel=1e-4)
    tree = maximum_spanning_forest(scene.edges, scores.tolist(), scene.n_imgs)
    assert sorted(list(scene.edges[e]) for e in tree) == sorted(ga.meta["meta"]["mst_edges"])
    init_minimum_spanning_tree(scene)
    check_state(ga, scene, "mst_init")  # the fixture's raw mst_init.* rows are those after the optimisation


@pytest.mark.parametrize("run", ["mst_cosine", "mst_linear"])
def test_optimised_runs(ga, run):
    scene = global_aligner(fixture_output(ga), "cpu", verbose=False)
    init_minimum_spanning_tree(scene)
    ga.close(scene().detach(), f"{run}.init_loss")
    last = scene.compute_global_alignment(init="mst", **ga.meta["meta"][run])
    ga.close(last, f"{run}.last_loss", rtol=0.05)
    ga.close(scene().detach(), f"{run}.final_loss", rtol=0.05)
    if f"{run}.poses" in ga.tensors:
        ga.close(scene.get_focals().detach(), f"{run}.focals", rtol=0.01)
        angles, centers = pose_errors(scene.get_im_poses().detach(), ga.tensors[f"{run}.poses"])
        assert angles.max() < 0.5
        assert centers.max() < 0.005
        for conf, expected in zip(scene.im_conf, numbered(ga, f"{run}.im_conf")):
            torch.testing.assert_close(conf.data, expected)


def test_clean_pointcloud(ga):
    confs, depths, points = (numbered(ga, f"mst_cosine.{name}") for name in ("im_conf", "depth", "pts3d"))
    K, cams = ga.tensors["mst_cosine.K"], inv(ga.tensors["mst_cosine.poses"])
    cleaned = clean_pointcloud(confs, K, cams, depths, points)
    for conf, expected in zip(cleaned, numbered(ga, "mst_cosine.clean_conf")):
        torch.testing.assert_close(conf, expected)
    # Surfaces moved back leave all points in free space; only less sure ones may go.
    farther = [1.25 * depth for depth in depths]
    cleaned = clean_pointcloud(confs, K, cams, farther, points, bad_conf=0.5)
    for conf, expected in zip(cleaned, numbered(ga, "mst_cosine.clean_conf_shift")):
        assert (conf != expected).float().mean() < 0.05


def test_pair_viewer(ga):
    edges = [edge for edge in ga.meta["edges"] if max(edge) < 2]
    scene = global_aligner(fixture_output(ga, edges=edges), "cpu", GlobalAlignerMode.PairViewer, verbose=False)
    ga.close(scene.get_im_poses(), "pv.poses")
    ga.close(scene.get_focals().flatten(), "pv.focals")
    ga.close(scene.get_intrinsics(), "pv.K")
    for i, (depth, points, mask) in enumerate(zip(scene.get_depthmaps(), scene.get_pts3d(), scene.get_masks())):
        ga.close(depth, f"pv.depth{i}")
        ga.close(points, f"pv.pts3d{i}")
        assert torch.equal(mask, ga.tensors[f"pv.mask{i}"])
    assert np.isnan(scene.compute_global_alignment(init="mst"))


def test_pnp_and_registrations(ga):
    points, conf = ga.tensors["in.0_1.pts_j"], ga.tensors["in.0_1.conf_j"]
    for key, focal in (("pnp", float(ga.tensors["pnp.focal"])), ("pnp_nofocal", None)):
        solution = fast_pnp(points, focal, conf > 2, "cpu")
        assert solution is not None
        ga.close(solution[0], f"{key}.focal")
        ga.close(solution[1], f"{key}.pose")
    similarity = rigid_points_registration(ga.tensors["reg.src"], ga.tensors["reg.tgt"], ga.tensors["reg.w"])
    for name, value in zip(("scale", "R", "T"), similarity):
        ga.close(value, f"reg.{name}")
    ga.close(sRT_to_4x4(*similarity, "cpu"), "reg.4x4")
    aligned = align_multiple_poses(ga.tensors["align.src"], ga.tensors["align.tgt"])
    for name, value in zip(("scale", "R", "T"), aligned):
        ga.close(value, f"align.{name}")


@pytest.mark.parametrize("mode", MODES)
def test_known_cameras(ga, mode):
    # The reference starts from the focal of the wrong image, so its loss is an upper bound.
    scene = global_aligner(fixture_output(ga, "known.in."), "cpu", mode, verbose=False)
    scene.preset_pose(numbered(ga, "known.in.cam"))
    scene.preset_focal([K[0, 0] for K in numbered(ga, "known.in.K")])
    scene.compute_global_alignment(init="known_poses", niter=60)
    assert float(scene().detach()) <= 1.05 * float(ga.tensors["known.final_loss"])
    ga.close(scene.get_im_poses(), "known.poses", rtol=0, atol=1e-6)
    ga.close(scene.get_focals(), "known.focals", rtol=1e-6)


def test_partly_known_cameras(ga):
    true, cameras = numbered(ga, "gt.cam"), ga.tensors["modular_mst.poses"]
    fixed = [i for i, pose in enumerate(true) if torch.allclose(cameras[i].double(), pose, atol=1e-5)]
    scene = global_aligner(fixture_output(ga), "cpu", MODES[1], verbose=False)
    scene.preset_pose([true[i] for i in fixed], fixed)
    scene.preset_focal([ga.tensors["gt.K0"][0, 0]], [0])
    scene.compute_global_alignment(init="mst", niter=60)
    assert float(scene().detach()) <= 1.05 * float(ga.tensors["modular_mst.loss"])
    torch.testing.assert_close(scene.get_im_poses().detach(), cameras, rtol=0, atol=0.06)
    ga.close(scene.get_focals().detach(), "modular_mst.focals", rtol=0.01)


# ------------------------------------------------------------------------------------ exact scenes


def aligned_scene(views, edges, mode=MODES[0], *, niter=150, **options):
    scene = global_aligner(perfect_output(views, edges), "cpu", mode, verbose=False, **options)
    scene.compute_global_alignment(init="mst", niter=niter)
    return scene


def true_poses(views):
    return np.stack([view.pose for view in views])


@pytest.mark.parametrize("mode", MODES)
def test_twelve_perfect_views(mode):
    views = room_views(12, size=SIZE)
    scene = aligned_scene(views, complete_edges(12), mode, niter=300)
    angles, centers = pose_errors(scene.get_im_poses().detach().numpy(), true_poses(views))
    assert angles.max() < 0.1
    assert centers.max() < 1e-3
    focals = [view.K[0, 0] for view in views]
    np.testing.assert_allclose(scene.get_focals()[:, 0].detach(), focals, rtol=5e-3)
    assert not scene.problems


def test_pairs_in_one_direction():
    views = room_views(5, size=SIZE)
    edges = [(i, j) for i, j in complete_edges(5) if i < j]
    scene = aligned_scene(views, edges, niter=0)
    angles, centers = pose_errors(scene.get_im_poses().detach().numpy(), true_poses(views))
    # The last image never is the frame of a pair: its focal comes from its points in others' frames.
    assert angles.max() < 0.1
    assert centers.max() < 1e-3


def test_separate_groups_are_all_placed():
    views = room_views(4, size=SIZE)
    scene = aligned_scene(views, [(0, 1), (1, 0), (2, 3), (3, 2)], niter=20)
    for pair in ([0, 1], [2, 3]):
        relative = inv(scene.get_im_poses().detach()[pair[0]]) @ scene.get_im_poses().detach()[pair[1]]
        true = np.linalg.inv(views[pair[0]].pose) @ views[pair[1]].pose
        np.testing.assert_allclose(relative[:3, :3], true[:3, :3], atol=0.02)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("init", ["mst", "known_poses"])
def test_fixed_cameras_come_back_and_the_cloud_holds(mode, init):
    views = room_views(4, size=SIZE)
    poses, K = true_poses(views), np.stack([view.K for view in views])
    scene = global_aligner(perfect_output(views, complete_edges(4)), "cpu", mode, verbose=False)
    scene.preset_pose(list(poses))
    scene.preset_intrinsics(list(K))
    scene.compute_global_alignment(init=init, niter=60)
    np.testing.assert_allclose(scene.get_im_poses().detach(), poses, rtol=0, atol=1e-6)
    np.testing.assert_allclose(scene.get_intrinsics().detach(), K, rtol=1e-6)
    for points, view in zip(scene.get_pts3d(), views):
        assert np.linalg.norm(points.detach().numpy() - view.points, axis=-1).max() < 0.02


def test_partly_fixed_values_stay_through_optimisation():
    views = room_views(4, size=SIZE)
    scene = global_aligner(perfect_output(views, complete_edges(4)), "cpu", optimize_pp=True, verbose=False)
    pose = 100 * np.eye(4) + views[2].pose  # a far camera: raw parameters would round its centre
    pose[:3, :3], pose[3] = views[2].pose[:3, :3], (0, 0, 0, 1)
    pose[:3, 3] = (100.123456, -33.3, 7.77)
    scene.preset_pose([pose], [2])
    scene.preset_focal([views[1].K[0, 0]], [False, True, False, False])
    scene.preset_principal_point([views[3].K[:2, 2]], slice(3, 4))
    scene.compute_global_alignment(init="mst", niter=100)
    np.testing.assert_allclose(scene.get_im_poses()[2].detach(), pose.astype(np.float32), rtol=0, atol=1e-6)
    assert scene.get_focals()[1].item() == pytest.approx(views[1].K[0, 0], rel=1e-6)
    assert scene.get_principal_points()[3].tolist() == pytest.approx(list(views[3].K[:2, 2]), abs=1e-6)
    assert scene.norm_pw_scale
    assert scene.get_known_focal_mask().tolist() == [False, True, False, False]
    angles, centers = pose_errors(scene.get_im_poses().detach().numpy(), true_poses(views))
    assert angles.max() < 0.5
    assert centers.max() < 0.01


def test_two_focals_and_unequal_fixed_focals():
    views = room_views(3, size=SIZE)
    output = perfect_output(views, complete_edges(3))
    scene = ModularPointCloudOptimizer(
        *(output[key] for key in ("view1", "view2", "pred1", "pred2")), fx_and_fy=True, verbose=False
    )
    assert scene.get_focals().shape == (3, 2)
    K = views[0].K.copy()
    K[1, 1] *= 1.1
    scene.preset_intrinsics([K], [0])
    scene.compute_global_alignment(init="mst", niter=5)
    np.testing.assert_allclose(scene.get_intrinsics()[0].detach(), K, rtol=1e-6)


def test_fixed_depth_gives_the_scale():
    views = room_views(3, size=SIZE)
    scene = global_aligner(perfect_output(views, complete_edges(3)), "cpu", verbose=False)
    cam_from_world = np.linalg.inv(views[1].pose)
    depth = (views[1].points @ cam_from_world[:3, :3].T + cam_from_world[:3, 3])[..., 2]
    scene.preset_depthmap([depth], [1])
    scene.compute_global_alignment(init="mst", niter=60)
    np.testing.assert_allclose(scene.get_depthmaps()[1].detach(), depth, rtol=1e-6)
    centers = scene.get_im_poses().detach()[:, :3, 3]
    true = torch.from_numpy(true_poses(views)[:, :3, 3]).float()
    assert float((centers[0] - centers[2]).norm() / (true[0] - true[2]).norm()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("kind", ["unsure", "overconfident", "not finite"])
@pytest.mark.parametrize("bad", [0, 3])
def test_one_bad_image_does_not_spoil_the_others(bad, kind):
    count = 6
    views = room_views(count, size=SIZE)
    output = spoil(perfect_output(views, complete_edges(count)), bad, kind)
    scene = global_aligner(output, "cpu", verbose=False)
    loss = scene.compute_global_alignment(init="mst", niter=150)
    good = [i for i in range(count) if i != bad]
    angles, centers = pose_errors(scene.get_im_poses().detach().numpy()[good], true_poses(views)[good])
    limit = 1.0 if kind == "overconfident" else 0.1
    assert angles.max() < limit
    assert centers.max() < limit / 100
    assert np.isfinite(loss)
    assert all(bool(points.isfinite().all()) for points in scene.get_pts3d())
    assert set(scene.problems) <= {bad}
    if kind == "not finite":
        assert bad in scene.problems


def spoil(output, bad, kind):
    """Noise in place of all pairs of one image."""
    generator = torch.Generator().manual_seed(1)
    edges = zip(output["view1"]["idx"], output["view2"]["idx"])
    for e, edge in enumerate(edges):
        if bad in edge:
            for pred, key in ((output["pred1"], "pts3d"), (output["pred2"], "pts3d_in_other_view")):
                noise = torch.randn(pred[key][e].shape, generator=generator) + torch.tensor([0, 0, 3.0])
                pred[key][e] = noise * (float("nan") if kind == "not finite" else 1)
                if kind == "unsure":
                    pred["conf"][e] = torch.full_like(pred["conf"][e], 1.1)
    return output


# ------------------------------------------------------------------------------------ plain reference, speed


def plain_objective(scene):
    """The objective edge by edge, as section 3.4 of the paper states it."""
    points, poses, adaptors = scene.get_pts3d(), scene.get_pw_poses(), scene.get_adaptors()
    predicted = scene.pred_i, scene.pred_j
    confs = scene.conf_i, scene.conf_j
    total = [0.0, 0.0]
    pixels = [0, 0]
    for e, (edge, name) in enumerate(zip(scene.edges, scene.str_edges)):
        for side, image in enumerate(edge):
            moved = (predicted[side][name] * adaptors[e]) @ poses[e, :3, :3].T + poses[e, :3, 3]
            distance = (points[image] - moved).norm(dim=-1)
            total[side] = total[side] + (confs[side][name].log() * distance).sum()
            pixels[side] += distance.numel()
    return total[0] / pixels[0] + total[1] / pixels[1]


def gradients(scene, objective):
    scene.zero_grad()
    objective.backward()
    return [parameter.grad.clone() for parameter in scene.parameters() if parameter.grad is not None]


def test_batched_objective_equals_the_plain_loop():
    views = room_views(10, size=SIZE)
    scene = global_aligner(perfect_output(views, complete_edges(10)), "cpu", verbose=False)
    init_minimum_spanning_tree(scene)
    for parameter in scene.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter) * parameter.requires_grad
    plain, fast = plain_objective(scene), scene()
    torch.testing.assert_close(plain, fast, rtol=1e-5, atol=0)
    for a, b in zip(gradients(scene, plain), gradients(scene, fast)):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_weighted_distances_gradient():
    residual = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(2, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda r: weighted_distances(r, weights), (residual,))
    zero = torch.zeros(1, 3, 4, requires_grad=True)
    weighted_distances(zero, torch.ones(1, 4)).sum().backward()
    assert zero.grad is not None
    assert not zero.grad.any()


# ------------------------------------------------------------------------------------ interface


def small_scene(**options):
    views = room_views(3, size=SIZE)
    return global_aligner(perfect_output(views, complete_edges(3)), "cpu", verbose=False, **options)


def test_attributes_scripts_use():
    scene = small_scene(min_conf_thr=9)
    assert isinstance(scene, PointCloudOptimizer)
    assert (scene.n_imgs, scene.n_edges) == (3, 6)
    assert scene.imgs[0].shape == (*scene.imshapes[0], 3)
    assert 0 <= scene.imgs[0].min() <= scene.imgs[0].max() <= 1
    assert scene.pred_i["0_1"].shape == scene.pred_j["1_0"].shape == (*scene.imshapes[0], 3)
    for conf, weight, mask in zip(scene.im_conf, scene.get_conf(), scene.get_masks()):
        torch.testing.assert_close(weight, conf.data.log())
        assert torch.equal(mask, conf.data > 9)
    torch.testing.assert_close(scene.get_conf("id")[0], scene.im_conf[0].data)
    scene.min_conf_thr = float(scene.conf_trf(torch.tensor(3.0)))
    assert scene.min_conf_thr == pytest.approx(np.log(3))
    assert scene.get_pts3d(raw=True).shape[:2] == scene.get_depthmaps(raw=True).shape


def test_batched_predictions_of_inference():
    views = [view for view in room_views(6, size=SIZE) if view.points.shape[:2] == SIZE][:2]
    output = perfect_output(views, [(0, 1), (1, 0)])
    stacked = {
        name: {key: torch.stack(maps) if key != "idx" else maps for key, maps in part.items()}
        for name, part in output.items()
    }
    losses = [float(_start(scene)) for scene in (output, stacked)]
    assert losses[0] == losses[1] < 1e-3


def _start(output):
    scene = global_aligner(output, "cpu", verbose=False)
    init_minimum_spanning_tree(scene)
    return scene().detach()


def test_going_on_copying_and_moving():
    scene = small_scene()
    scene.compute_global_alignment(init="mst", niter=10)
    copy = PointCloudOptimizer(scene)
    assert torch.equal(copy.get_im_poses(), scene.get_im_poses())
    before = float(scene().detach())
    assert scene.compute_global_alignment(niter=0) == pytest.approx(before)
    global_alignment_loop(scene, lr=0.001, niter=20)
    assert float(copy().detach()) == pytest.approx(before)
    assert scene.to(torch.device("cpu")).device == torch.device("cpu")


def test_cleaning_keeps_an_exact_scene_and_drops_a_floating_point():
    scene = small_scene()
    scene.compute_global_alignment(init="mst", niter=0)
    before = [conf.data.clone() for conf in scene.im_conf]
    assert scene.clean_pointcloud(tol=0.1) is scene
    kept = [(conf.data > 0).float().mean() for conf in scene.im_conf]
    assert min(kept) > 0.9
    row, column = SIZE[0] // 2, SIZE[1] // 2
    for conf, value in zip(scene.im_conf, before):
        conf.data.copy_(value)
    scene.im_conf[1].data[row, column] = 1.0
    scene.im_depthmaps.data[1, row * scene.imshapes[1][1] + column] -= 0.7
    scene.clean_pointcloud(tol=0.1, max_bad_conf=0.5)
    assert float(scene.im_conf[1][row, column]) == 0.5


def test_focal_of_a_pointmap_in_its_own_frame():
    view = room_views(1, size=SIZE)[0]
    cam_from_world = np.linalg.inv(view.pose)
    local = torch.from_numpy(view.points @ cam_from_world[:3, :3].T + cam_from_world[:3, 3]).float()
    assert estimate_focal(local) == pytest.approx(view.K[0, 0], rel=1e-4)
    assert fast_pnp(local, None, torch.zeros(local.shape[:2], dtype=torch.bool), "cpu") is None


def test_pair_viewer_finds_the_exact_relative_pose():
    views = room_views(2, size=SIZE)
    output = perfect_output(views, [(0, 1), (1, 0)])
    scene = global_aligner(output, "cpu", GlobalAlignerMode.PairViewer, verbose=False)
    assert isinstance(scene, PairViewer)
    relative = inv(scene.get_im_poses()[0]) @ scene.get_im_poses()[1]
    true = np.linalg.inv(views[0].pose) @ views[1].pose
    np.testing.assert_allclose(relative[:3, :3], true[:3, :3], atol=1e-4)


def broken(change):
    output = perfect_output(room_views(3, size=SIZE), complete_edges(3))
    change(output)
    return output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o["view1"].update(idx=[5 if i == 2 else i for i in o["view1"]["idx"]]), "without gaps"),
        (lambda o: o["view1"].update(idx=o["view2"]["idx"]), "itself"),
        (lambda o: (o["view1"].update(idx=[]), o["view2"].update(idx=[])), "no pairs"),
        (lambda o: o["pred1"]["conf"].__setitem__(0, torch.ones(5, 5)), "one size"),
    ],
)
def test_unusable_pairs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        global_aligner(broken(change), "cpu", verbose=False)


def test_wrong_settings_are_refused():
    scene = small_scene()
    for call in (
        lambda: small_scene(dist="l3"),
        lambda: small_scene(conf="square"),
        lambda: small_scene(colour=1),
        lambda: AlignmentConfig(base_scale=0),
        lambda: global_aligner({}, "cpu", "PairViewer"),  # type: ignore[arg-type]
        lambda: scene.compute_global_alignment(init="tree"),
        lambda: scene.compute_global_alignment(schedule="step"),
        lambda: scene.compute_global_alignment(init="known_poses"),
        lambda: scene.preset_focal([10.0, 11.0], [0]),
        lambda: scene.preset_focal([-1.0], [0]),
        lambda: scene.preset_focal([10.0], [7]),
        lambda: scene.preset_pose([np.full((4, 4), np.nan)], [0]),
        lambda: scene.preset_depthmap([np.ones((3, 3))], [0]),
        lambda: small_scene().preset_pose(np.eye(4)[None], [True]),
        lambda: PairViewer(*perfect_output(room_views(3, size=SIZE), complete_edges(3)).values()),
        lambda: align_multiple_poses(torch.eye(4)[None], torch.eye(4)[None]),
        lambda: clean_pointcloud([], torch.zeros(1, 3, 3), torch.zeros(1, 4, 4), [], []),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            call()
