from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dust3r.utils.geometry import depthmap_to_absolute_camera_coordinates, geotrf
from mast3r.datasets import crop_to_homography, extract_correspondences_from_pts3d, gen_random_crops

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31)


# ------------------------------------------------------------------------------------ golden numbers


def test_homographies_match_the_official_code(golden):
    fixture = golden("coarse_to_fine")
    for name, case in fixture.meta["homography"].items():
        t = {k.rpartition(".")[2]: fixture.tensors[k].numpy() for k in fixture.keys(f"homo{name}.")}
        size, K, R, H = crop_to_homography(t["K"], t["crop"], case["target_size"])
        np.testing.assert_array_equal(size, t["imsize"])
        for ours, key in ((K, "K2"), (R, "R"), (H, "H")):
            np.testing.assert_allclose(ours, t[key], rtol=1e-9, atol=1e-9)


def training_view(fixture, case, i):
    prefix = f"{case}.view{i}."
    return {k.removeprefix(prefix): fixture.tensors[k].numpy() for k in fixture.keys(prefix)}


def test_official_matches_are_matches(golden):
    fixture = golden("pair_augmentation")
    for case in fixture.meta["cases"]:
        view1, view2 = (training_view(fixture, case, i) for i in (0, 1))
        all1, all2 = extract_correspondences_from_pts3d(view1, view2, None)
        ours = {(*a, *b) for a, b in zip(all1.tolist(), all2.tolist())}
        rows = zip(view1["corres"].tolist(), view2["corres"].tolist(), view1["valid_corres"])
        assert all(((*a, *b) in ours) == valid for a, b, valid in rows)


def test_sampled_rows_match_the_official_code(golden):
    fixture = golden("pair_augmentation")
    # Without crop augmentation nothing else draws from the item's generator, seeded by seed + index.
    plain = {k: c for k, c in fixture.meta["cases"].items() if c["kwargs"]["aug_crop"] is False}
    assert plain
    for case, info in plain.items():
        view1, view2 = (training_view(fixture, case, i) for i in (0, 1))
        options = info["kwargs"]
        rng = np.random.default_rng(options["seed"] + info["index"])
        xy1, xy2, valid = extract_correspondences_from_pts3d(
            view1, view2, options["n_corres"], rng, nneg=options["nneg"]
        )
        np.testing.assert_array_equal(xy1, view1["corres"])
        np.testing.assert_array_equal(xy2, view2["corres"])
        np.testing.assert_array_equal(valid, view1["valid_corres"])


# ---------------------------------------------------------------------------------------------- laws


def plane_view(shift_px: int, *, W=20, H=14, depth=5.0, focal=25.0):
    """A wall seen by a camera moved sideways by `shift_px` pixels."""
    K = np.array([[focal, 0, W / 2], [0, focal, H / 2], [0, 0, 1]])
    pose = np.eye(4)
    pose[0, 3] = shift_px * depth / focal
    points, valid = depthmap_to_absolute_camera_coordinates(np.full((H, W), depth), K, pose)
    return {"pts3d": points, "camera_pose": pose, "camera_intrinsics": K, "valid_mask": valid}


@few
@given(st.integers(0, 19))
def test_matches_of_a_shifted_wall(shift):
    view1, view2 = plane_view(0), plane_view(shift)
    xy1, xy2 = extract_correspondences_from_pts3d(view1, view2, None)
    assert len(xy1) == (20 - shift) * 14
    np.testing.assert_array_equal(xy1 - xy2, np.broadcast_to([shift, 0], xy1.shape))
    flat1, flat2 = extract_correspondences_from_pts3d(view1, view2, None, ret_xy=False)
    np.testing.assert_array_equal(flat1, xy1[:, 0] + 20 * xy1[:, 1])
    assert len(flat2) == len(flat1)


@few
@given(seeds, st.integers(1, 19), st.integers(1, 300), st.floats(0, 1))
def test_rows_have_the_asked_number_and_honest_labels(seed, shift, target, nneg):
    view1, view2 = plane_view(0), plane_view(shift)
    every = extract_correspondences_from_pts3d(view1, view2, None)
    matches = {(*a, *b) for a, b in zip(*(x.tolist() for x in every))}
    matched1, matched2 = ({tuple(xy) for xy in x.tolist()} for x in every)
    rng = np.random.default_rng(seed)
    xy1, xy2, valid = extract_correspondences_from_pts3d(view1, view2, target, rng, nneg=nneg)
    assert xy1.shape == xy2.shape == (target, 2)
    for a, b, ok in zip(xy1.tolist(), xy2.tolist(), valid):
        assert ((*a, *b) in matches) == ok
        if not ok:
            assert tuple(a) not in matched1
            assert tuple(b) not in matched2
    assert valid.sum() >= min(len(matches), int(target * (1 - nneg)))


def test_without_depth_or_behind_the_camera_nothing_matches():
    view1, view2 = plane_view(0), plane_view(3)
    view1["valid_mask"][:, :10] = False
    xy1, _ = extract_correspondences_from_pts3d(view1, view2, None)
    assert xy1[:, 0].min() >= 10
    turned = plane_view(0)
    turned["camera_pose"] = np.diag([-1.0, 1, -1, 1])
    assert len(extract_correspondences_from_pts3d(view1, turned, None)[0]) == 0
    xy1, _, valid = extract_correspondences_from_pts3d(view1, turned, 9, np.random.default_rng(0))
    assert len(xy1) == 9
    assert not valid.any()


def test_global_numpy_state_is_accepted_and_impossible_targets_are_refused():
    view = plane_view(0)
    np.random.seed(0)
    assert extract_correspondences_from_pts3d(view, view, 30)[2].all()
    with pytest.raises(ValueError, match="lower the target"):
        extract_correspondences_from_pts3d(view, view, 20 * 14 + 1)


@few
@given(
    st.tuples(st.integers(30, 90), st.integers(30, 90)),
    st.tuples(st.integers(16, 64), st.integers(16, 64)),
    st.sampled_from(["auto", 0, 20]),
    seeds,
)
def test_random_crops_lie_inside_and_keep_the_aspect(imsize, resolution, aug_crop, seed):
    crops = gen_random_crops(imsize, 6, resolution, aug_crop, np.random.default_rng(seed))
    assert crops.shape == (6, 4)
    width, height = (crops[:, 2:] - crops[:, :2]).T
    assert crops.min() >= 0
    assert (crops[:, 2:] <= imsize).all()
    aspect = resolution[0] / resolution[1]
    assert (np.abs(width - height * aspect) <= 0.5 * (1 + aspect) + 1e-9).all()
    assert gen_random_crops(imsize, 0, resolution, aug_crop).shape == (0, 4)
    if aug_crop == 0:
        assert len(np.unique(np.stack([width, height]), axis=1).T) == 1


@few
@given(seeds, st.booleans())
def test_homography_is_a_rotation_that_keeps_the_far_corner(seed, resize):
    rng = np.random.default_rng(seed)
    K = np.array([[300.0, 0, rng.uniform(100, 220)], [0, 310, rng.uniform(80, 160)], [0, 0, 1]])
    left, top = rng.integers(0, 120, size=2)
    crop = left, top, left + rng.integers(60, 200), top + rng.integers(60, 120)
    size, K2, R, H = crop_to_homography(K, crop, (160, 96) if resize else None)
    np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(R) == pytest.approx(1)
    np.testing.assert_allclose(K2[:2, 2], np.array(size) / 2)
    np.testing.assert_allclose(H, K @ R @ np.linalg.inv(K2))
    if not resize:
        corners = np.array([[x, y] for x in (0, size[0]) for y in (0, size[1])], dtype=float)
        offset = np.abs(geotrf(H, corners, norm=1) - corners - (left, top)).sum(axis=1)
        assert offset.min() < 1e-9
