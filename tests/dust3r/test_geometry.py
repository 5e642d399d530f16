from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dust3r.post_process import estimate_focal_knowing_depth
from dust3r.utils import geometry
from dust3r.utils.geometry import (
    colmap_to_opencv_intrinsics,
    depthmap_to_absolute_camera_coordinates,
    depthmap_to_camera_coordinates,
    depthmap_to_pts3d,
    find_reciprocal_matches,
    geotrf,
    get_joint_pointcloud_center_scale,
    get_joint_pointcloud_depth,
    get_med_dist_between_poses,
    inv,
    normalize_pointcloud,
    opencv_to_colmap_intrinsics,
    xy_grid,
)

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31)
batches = st.lists(st.integers(1, 3), max_size=3).map(tuple)
BACKENDS = {"numpy64": np.float64, "numpy32": np.float32, "torch64": torch.float64, "torch32": torch.float32}


def as_backend(array, backend):
    dtype = BACKENDS[backend]
    return torch.from_numpy(array).to(dtype) if isinstance(dtype, torch.dtype) else array.astype(dtype)


def random_poses(rng, batch=()):
    pose = np.zeros((*batch, 4, 4))
    pose[..., :3, :3] = np.linalg.qr(rng.normal(size=(*batch, 3, 3)))[0]
    pose[..., :3, 3] = rng.normal(size=(*batch, 3))
    pose[..., 3, 3] = 1
    return pose


# ------------------------------------------------------------------------------------ golden numbers


def test_transforms_match_the_official_code(golden):
    g = golden("geometry")
    t = g.tensors
    g.close(geotrf(t["pose"], t["pts"]), "geotrf44")
    g.close(geotrf(t["pose"][..., :3, :3], t["pts"]), "geotrf33")
    g.close(geotrf(t["K"], t["pts_pos"].reshape(-1, 3), norm=1, ncol=2), "proj_norm")
    g.close(inv(t["pose"]), "inv")
    g.close(geotrf(t["pose"].numpy(), t["pts"].numpy()), "geotrf44")
    g.close(inv(t["pose"].numpy()), "inv")


def test_grids_match_the_official_code(golden):
    g = golden("geometry")
    H, W, _ = g.tensors["xy_grid_5x3"].shape
    g.close(xy_grid(W, H), "xy_grid_5x3")
    H, W, _ = g.tensors["xy_grid_origin"].shape
    g.close(xy_grid(W, H, origin=tuple(g.tensors["xy_grid_origin"][0, 0].tolist())), "xy_grid_origin")
    H, W, _ = g.tensors["xy_grid_homog"].shape
    g.close(xy_grid(W, H, homogeneous=True), "xy_grid_homog")


def focal_of(points, pp):
    """(fx, fy) that produced a point map: the fixture does not state it."""
    H, W = points.shape[1:3]
    grid = torch.as_tensor(xy_grid(W, H)) - pp.reshape(-1, 1, 1, 2)
    ratio = grid * points[..., 2:] / points[..., :2]
    return ratio.flatten(0, 2).nanmedian(dim=0).values


def test_unprojection_matches_the_official_code(golden):
    g = golden("geometry")
    t = g.tensors
    depth, pp = t["depth"], t["pp"]
    B, H, W = depth.shape
    centre = torch.tensor([(W - 1) / 2, (H - 1) / 2])
    f = focal_of(t["d2p_center"], centre)
    g.close(depthmap_to_pts3d(depth, float(f[0])), "d2p_center")
    f = focal_of(t["d2p_pp"], pp)
    for focal in (
        float(f[0]),
        f[:1].expand(B),
        f[0].expand(B, 1),
        f[0].expand(B, H, W),
        f[0].expand(B, 1, H, W),
    ):
        g.close(depthmap_to_pts3d(depth, focal, pp), "d2p_pp")
    f = focal_of(t["d2p_fxfy"], pp)
    for focal in (f.expand(B, 2), f[:, None, None].expand(B, 2, H, W)):
        g.close(depthmap_to_pts3d(depth, focal, pp), "d2p_fxfy")
    points, valid = depthmap_to_camera_coordinates(t["depth0"].numpy(), t["K"].numpy())
    g.close(points, "cam_pts")
    g.close(valid, "cam_valid")
    pose = t["pose"][0].numpy()
    points, _ = depthmap_to_absolute_camera_coordinates(t["depth0"].numpy(), t["K"].numpy(), pose)
    g.close(points, "abs_pts")


def test_normalisation_matches_the_official_code(golden):
    g = golden("geometry")
    t = g.tensors
    modes = [k.removeprefix("norm.").removesuffix(".factor") for k in g.keys("norm.") if k.endswith(".factor")]
    assert modes
    for mode in modes:
        args = t["pts"], t["pts2"], mode, t["valid1"], t["valid2"]
        one, two, factor = normalize_pointcloud(*args, ret_factor=True)
        g.close(one, f"norm.{mode}.1")
        g.close(two, f"norm.{mode}.2")
        g.close(factor, f"norm.{mode}.factor")


def test_joint_statistics_match_the_official_code(golden):
    g = golden("geometry")
    t = g.tensors
    masks = t["valid1"], t["valid2"]
    depths = t["pts"][..., 2], t["pts2"][..., 2]
    for key in g.keys("joint_depth"):
        quantile = int(key.removeprefix("joint_depth_q")) / 100 if "_q" in key else 0.5
        g.close(get_joint_pointcloud_depth(*depths, *masks, quantile=quantile), key)
    for suffix, options in {"": {}, "_zonly": {"z_only": True}, "_nocenter": {"center": False}}.items():
        centre, scale = get_joint_pointcloud_center_scale(t["pts"], t["pts2"], *masks, **options)
        g.close(scale, f"joint_scale{suffix}")
        if f"joint_center{suffix}" in t:
            g.close(centre, f"joint_center{suffix}")


def test_focals_match_the_official_code(golden):
    g = golden("geometry")
    cases = [k.removesuffix(".pts") for k in g.keys("focal") if k.endswith(".pts")]
    assert cases
    for case in cases:
        points, pp = g.tensors[f"{case}.pts"][None], g.tensors[f"{case}.pp"]
        for mode in ("median", "weiszfeld"):
            g.close(estimate_focal_knowing_depth(points, pp, focal_mode=mode), f"{case}.{mode}")


def test_reciprocal_matches_match_the_official_code(golden):
    g = golden("geometry")
    mask, nearest, count = find_reciprocal_matches(g.tensors["rm_P1"].numpy(), g.tensors["rm_P2"].numpy())
    g.close(mask, "rm_mask2")
    g.close(nearest, "rm_nn2in1")
    assert count == int(g.tensors["rm_mask2"].sum())


# ---------------------------------------------------------------------------------------------- laws


@few
@given(seeds, batches, batches, st.sampled_from(list(BACKENDS)))
def test_inverse_undoes_a_transform(seed, batch, inner, backend):
    rng = np.random.default_rng(seed)
    pose = as_backend(random_poses(rng, batch), backend)
    points = as_backend(rng.normal(size=(*batch, *inner, 5, 3)), backend)
    back = geotrf(inv(pose), geotrf(pose, points))
    assert type(back) is type(points)
    assert back.dtype == points.dtype
    np.testing.assert_allclose(np.asarray(back), np.asarray(points), atol=1e-10 if "64" in backend else 1e-4)


@few
@given(seeds, batches)
def test_transforms_compose(seed, batch):
    rng = np.random.default_rng(seed)
    a, b = random_poses(rng, batch), random_poses(rng, batch)
    points = rng.normal(size=(*batch, 4, 3))
    np.testing.assert_allclose(geotrf(a @ b, points), geotrf(a, geotrf(b, points)), atol=1e-12)


@few
@given(seeds)
def test_geotrf_equals_homogeneous_matrix_products(seed):
    rng = np.random.default_rng(seed)
    H, xy = rng.normal(size=(3, 3)), rng.normal(size=(7, 2))
    expected = np.concatenate([xy, np.ones((7, 1))], axis=1) @ H.T
    np.testing.assert_allclose(geotrf(H, xy, norm=True), (expected / expected[:, 2:])[:, :2])
    np.testing.assert_allclose(geotrf(H, xy, norm=2.0, ncol=3), expected / expected[:, 2:] * 2)
    np.testing.assert_allclose(geotrf(H, xy, ncol=3), expected)


def test_geotrf_and_inv_refuse_other_shapes_and_types():
    with pytest.raises(ValueError, match="columns"):
        geotrf(np.eye(5), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="batch"):
        geotrf(np.zeros((2, 3, 4, 4)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="list"):
        inv([[1.0]])


@few
@given(st.integers(1, 6), st.integers(1, 6), st.booleans(), st.sampled_from([None, 0, -1]))
def test_grid_axes(W, H, homogeneous, unsqueeze):
    for device in (None, "cpu"):
        grid = xy_grid(W, H, device=device, homogeneous=homogeneous)
        assert tuple(grid.shape) == (H, W, 3 if homogeneous else 2)
        assert (grid[..., 0] == grid[:1, :, 0]).all()
        maps = xy_grid(W, H, device=device, cat_dim=None, unsqueeze=unsqueeze)
        assert len(maps) == 2
        assert maps[0].shape == maps[1].shape
        assert maps[0].ndim == (2 if unsqueeze is None else 3)
    assert xy_grid(W, H, dtype=np.float32).dtype == np.float32
    assert xy_grid(W, H, device="cpu", dtype=torch.float32).dtype == torch.float32


@few
@given(seeds)
def test_unprojection_reprojects_onto_the_pixel_grid(seed):
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.5, 9, size=(4, 6))
    K = np.array([[50.0, 0, 3.1], [0, 48, 1.7], [0, 0, 1]])
    pose = random_poses(rng)
    points, valid = depthmap_to_absolute_camera_coordinates(depth, K, pose)
    assert points.dtype == np.float32
    assert valid.all()
    pixels = geotrf(K, geotrf(inv(pose), points.astype(np.float64)), norm=1, ncol=2)
    np.testing.assert_allclose(pixels, xy_grid(6, 4), atol=1e-3)


def test_unprojection_edge_cases():
    depth = np.array([[1.0, 0.0, np.nan, np.inf, -1.0]])
    assert depthmap_to_camera_coordinates(depth, np.eye(3))[1].tolist() == [[True, False, False, False, False]]
    points, _ = depthmap_to_absolute_camera_coordinates(depth[:, :1], np.eye(3), None)
    assert points.tolist() == [[[0, 0, 1]]]
    twice, _ = depthmap_to_camera_coordinates(depth[:, :1] * 2, np.eye(3), pseudo_focal=np.full((1, 1), 5.0))
    assert twice.tolist() == [[[0, 0, 2]]]
    with pytest.raises(ValueError, match="skew"):
        depthmap_to_camera_coordinates(depth, np.array([[1.0, 0.1, 0], [0, 1, 0], [0, 0, 1]]))
    with pytest.raises(ValueError, match="B,H,W"):
        depthmap_to_pts3d(torch.ones(3, 4), 1.0)


def test_intrinsics_conventions_are_half_a_pixel_apart():
    K = np.array([[5.0, 0, 2], [0, 6, 3], [0, 0, 1]])
    np.testing.assert_array_equal(opencv_to_colmap_intrinsics(K)[:2, 2], [2.5, 3.5])
    np.testing.assert_array_equal(colmap_to_opencv_intrinsics(opencv_to_colmap_intrinsics(K)), K)
    assert K[0, 2] == 2


MODES = [f"{r}_{d}" for r in ("avg", "median", "sqrt") for d in ("dis", "log1p", "warp-log1p")]


@few
@given(seeds, st.floats(0.01, 100), st.sampled_from(["avg_dis", "median_dis", "sqrt_dis"]))
def test_normalised_points_do_not_depend_on_the_unit(seed, unit, mode):
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(2, 3, 4, 3, generator=g, dtype=torch.float64) for _ in range(2))
    for once, scaled in zip(normalize_pointcloud(a, b, mode), normalize_pointcloud(unit * a, unit * b, mode)):
        torch.testing.assert_close(once, scaled)


@pytest.mark.parametrize("mode", MODES)
def test_normalisation_ignores_invalid_points(mode):
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 3, 4, 3, generator=g) for _ in range(2))
    valid = torch.rand(2, 3, 4, generator=g) < 0.5
    valid[:, 0, 0] = True
    _, _, factor = normalize_pointcloud(a, b, mode, valid, valid, ret_factor=True)
    a[~valid], b[~valid] = torch.nan, torch.inf
    one, _, same = normalize_pointcloud(a, b, mode, valid, valid, ret_factor=True)
    assert torch.equal(factor, same)
    assert torch.isfinite(one[valid]).all()
    single, alone = normalize_pointcloud(a, None, mode, valid, ret_factor=True)
    assert single.shape == a.shape
    assert alone.shape == (2, 1, 1, 1)
    assert normalize_pointcloud(a, None, mode, valid).shape == a.shape
    empty = normalize_pointcloud(a, b, mode, valid & False, valid & False, ret_factor=True)[2]
    assert torch.allclose(empty, torch.full_like(empty, 1e-8))


def test_warped_points_keep_their_direction():
    points = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 4.0]])
    warped = geometry.warp_log1p(points)
    assert warped[0].tolist() == [0, 0, 0]
    torch.testing.assert_close(warped[1].norm(), torch.tensor(6.0).log())
    torch.testing.assert_close(warped[1] / warped[1].norm(), points[1] / 5)


def test_joint_statistics_without_valid_points_are_zero():
    points, none = torch.ones(1, 2, 2, 3), torch.zeros(1, 2, 2, dtype=torch.bool)
    assert get_joint_pointcloud_depth(points[..., 2], None, none).tolist() == [0]
    assert get_joint_pointcloud_depth(points[..., 2], None, none, quantile=0.3).tolist() == [0]
    centre, scale = get_joint_pointcloud_center_scale(points, None, none)
    assert centre.abs().sum() == 0
    assert scale.abs().sum() == 0


@few
@given(seeds, st.floats(20, 200), st.sampled_from(["median", "weiszfeld"]))
def test_focal_is_recovered(seed, focal, mode):
    depth = 1 + torch.rand(1, 9, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    pp = torch.tensor([6.0, 4.5], dtype=torch.float64)
    points = depthmap_to_pts3d(depth, focal, pp)
    assert float(estimate_focal_knowing_depth(points, pp, mode)) == pytest.approx(focal, rel=1e-6)
    unit = 12 / (2 * np.tan(np.deg2rad(30)))
    clipped = estimate_focal_knowing_depth(points, pp, mode, min_focal=0.5, max_focal=1.5)
    assert float(clipped) == pytest.approx(np.clip(focal, 0.5 * unit, 1.5 * unit), rel=1e-6)


def test_focal_is_robust_and_survives_zero_depth():
    depth = torch.ones(1, 10, 10, dtype=torch.float64)
    pp = torch.tensor([4.5, 4.5], dtype=torch.float64)
    points = depthmap_to_pts3d(depth, 80.0, pp)
    points[:, :2] *= torch.tensor([3.0, -2.0, 1.0], dtype=torch.float64)
    points[:, 5, 5] = 0
    for mode in ("median", "weiszfeld"):
        assert float(estimate_focal_knowing_depth(points, pp, mode)) == pytest.approx(80, rel=0.1)
    with pytest.raises(ValueError, match="focal_mode"):
        estimate_focal_knowing_depth(points, pp, "mean")


@few
@given(seeds)
def test_reciprocal_matches_of_a_permutation(seed):
    rng = np.random.default_rng(seed)
    P1 = rng.normal(size=(20, 3))
    order = rng.permutation(20)
    mask, nearest, count = find_reciprocal_matches(P1, P1[order])
    assert mask.all()
    assert count == 20
    np.testing.assert_array_equal(nearest, order)


def test_median_distance_between_poses():
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, 0, 3] = [0, 1, 3]
    assert get_med_dist_between_poses(poses) == 2
    assert get_med_dist_between_poses(list(torch.from_numpy(poses))) == 2
