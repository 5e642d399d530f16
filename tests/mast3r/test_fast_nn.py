from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mast3r.block_products import RUN, dense_nearest
from mast3r.fast_nn import (
    ReciprocalSearch,
    bruteforce_reciprocal_nns,
    extract_correspondences,
    extract_correspondences_nonsym,
    fast_reciprocal_NNs,
    match_reciprocal,
    match_reciprocal_batch,
    merge_corres,
)
from mast3r.nearest import NearestSearch
from mast3r.reference_nn import reference_nearest, reference_reciprocal

# Fixtures


def assert_same(found, golden, tag: str) -> None:
    """The arrays of `found` equal the stored ones in value, order and, where integer, dtype."""
    for k, actual in enumerate(found):
        expected = golden.tensors[f"{tag}.{k}"]
        actual = torch.as_tensor(np.stack(actual) if isinstance(actual, tuple) else actual)
        assert actual.dtype == expected.dtype, (tag, k)
        if expected.dtype.is_floating_point:
            torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
        else:
            assert torch.equal(actual, expected), (tag, k)


def options(tag: str, case: dict, tensors: dict) -> dict:
    """Arguments of `fast_reciprocal_NNs` that a fixture case describes."""
    block = int(tag.rsplit("block", 1)[1]) if "block" in tag else None
    found = {"ret_xy": case.get("ret_xy", True), "ret_basin": case.get("ret_basin", False)}
    if "kdtree" not in tag:
        found["dist"] = case.get("dist", "dot")
    if block or "block_size" in case:
        found["block_size"] = case.get("block_size", block)
    if tag.startswith("init"):
        found["subsample_or_initxy1"] = (tensors["init_x"].numpy(), tensors["init_y"].numpy())
        found["pixel_tol"] = case["pixel_tol"]
    else:
        digits = tag.removeprefix("sub").split("_")[0]
        found["subsample_or_initxy1"] = case.get("subsample", int(digits))
    return found


def test_golden_fast_reciprocal_nns(golden):
    g = golden("fast_nn")
    tags = [t for t in g.meta["cases"] if t.startswith(("sub", "init"))]
    assert tags
    for tag in tags:
        found = fast_reciprocal_NNs(g.tensors["A"], g.tensors["B"], **options(tag, g.meta["cases"][tag], g.tensors))
        assert all(isinstance(f, np.ndarray | tuple) for f in found)
        assert_same(found, g, tag)


def test_golden_bruteforce(golden):
    g = golden("fast_nn")
    A, B = (g.tensors[k].flatten(0, 1) for k in "AB")
    for tag in [t for t in g.meta["cases"] if t.startswith("brute")]:
        n, m = (len(g.tensors[f"{tag}.{k}"]) for k in (0, 1))
        assert_same(bruteforce_reciprocal_nns(A[:n], B[:m], dist=tag.split("_")[1]), g, tag)


def test_golden_extraction(golden):
    g = golden("fast_nn")
    t = g.tensors
    for tag in [c for c in g.meta["cases"] if c.startswith("nonsym")]:
        tol = g.meta["cases"][tag]["pixel_tol"]
        found = extract_correspondences_nonsym(t["A"], t["B"], t["confA"], t["confB"], pixel_tol=tol)
        assert_same(found, g, tag)
    confidences = [t[f"sym_conf{k}"] for k in range(4)]
    assert_same(extract_correspondences((t["A"], t["B"], t["B2"], t["A2"]), confidences), g, "sym")


def width_of(flat, xy: torch.Tensor) -> int:
    """The image width for which flat indices and coordinates agree; the fixture does not name it."""
    return next(w for w in range(1, 10_000) if np.array_equal(xy[:, 1] * w + xy[:, 0], flat) and w > xy[:, 0].max())


def test_golden_merge(golden):
    g = golden("fast_nn")
    idx1, idx2 = g.tensors["merge_idx1"].numpy(), g.tensors["merge_idx2"].numpy()
    flat = merge_corres(idx1, idx2, ret_xy=False)
    assert flat[0].dtype == idx1.dtype
    shapes = [(1 + int(f.max()), width_of(f, g.tensors[f"merge.{k}"].numpy())) for k, f in enumerate(flat)]
    assert_same(merge_corres(idx1, idx2, *shapes, ret_index=True), g, "merge")


def test_golden_float_descriptors(golden):
    g = golden("fast_nn_float")
    xy1, xy2 = fast_reciprocal_NNs(g.tensors["A"], g.tensors["B"], 8, dist="dot", block_size=2**13)
    found = {tuple(row) for row in np.hstack([xy1, xy2]).tolist()}
    expected = {tuple(row) for row in torch.cat([g.tensors["xy1"], g.tensors["xy2"]], 1).tolist()}
    assert len(found & expected) >= 0.99 * len(expected)
    assert len(found) <= len(expected) / 0.99


# The fast path against the reference


def smooth_field(seed: int, H: int, W: int, D: int, cell: int, noise: float = 0.0, scale: float = 40) -> torch.Tensor:
    """Integer-valued smooth field: every dot product is exact, and small scales give many ties."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randn(1, D, H // cell + 2, W // cell + 2, generator=generator)
    field = torch.nn.functional.interpolate(low, size=(H, W), mode="bilinear", align_corners=True)[0]
    field = field + noise * torch.randn(D, H, W, generator=generator)
    return (field * scale).round().permute(1, 2, 0).contiguous()


sizes = st.integers(1, 33)
fields = {
    "seed": st.integers(0, 2**31),
    "shape0": st.tuples(sizes, sizes),
    "shape1": st.tuples(sizes, sizes),
    "D": st.integers(1, 9),
    "cell": st.sampled_from([1, 4, 16]),
    "scale": st.sampled_from([0.4, 2.0, 40.0]),
    "dist": st.sampled_from(["dot", "l2"]),
}


@settings(max_examples=80, deadline=None)
@given(prune=st.sampled_from([None, False, True]), block=st.sampled_from([7, 100, 8192]), **fields)
def test_nearest_equals_reference(seed, shape0, shape1, D, cell, scale, dist, prune, block):
    queries = smooth_field(seed, *shape0, D, cell, scale=scale).flatten(0, 1)
    descriptors = smooth_field(seed + 1, *shape1, D, cell, scale=scale)
    expected, _ = reference_nearest(queries, descriptors.flatten(0, 1), dist, block)
    found = NearestSearch(descriptors[None], dist=dist, prune=prune)(queries)
    assert torch.equal(found, expected)


@settings(max_examples=40, deadline=None)
@given(subsample=st.integers(1, 9), **fields)
def test_reciprocal_equals_reference(seed, shape0, shape1, D, cell, scale, dist, subsample):
    map0 = smooth_field(seed, *shape0, D, cell, scale=scale)
    map1 = smooth_field(seed + 1, *shape1, D, cell, scale=scale)
    found = match_reciprocal(map0, map1, start=subsample, dist=dist)
    grid = torch.arange(shape0[0] * shape0[1]).view(shape0)[subsample // 2 :: subsample, subsample // 2 :: subsample]
    expected = reference_reciprocal(map0, map1, grid.flatten(), dist=dist)
    assert list(zip(found.index0.tolist(), found.index1.tolist())) == expected


@pytest.mark.parametrize("noise", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pruning_and_dense_agree_on_large_maps(noise, dtype):
    queries = smooth_field(0, 64, 96, 24, 16, noise).to(dtype).flatten(0, 1)
    descriptors = smooth_field(0, 70, 101, 24, 16, noise, scale=41).to(dtype)
    dense, pruned, auto = (NearestSearch(descriptors[None], prune=p)(queries) for p in (False, True, None))
    assert torch.equal(dense, (queries @ descriptors.flatten(0, 1).T).argmax(1))
    assert torch.equal(pruned, dense)
    assert torch.equal(auto, dense)


def test_points_in_space_use_the_same_rules():
    """Many points, with duplicates: the k-d tree's turn."""
    points = smooth_field(3, 40, 50, 3, 8, noise=0.1, scale=8)
    queries = smooth_field(4, 40, 50, 3, 8, noise=0.1, scale=8).flatten(0, 1)
    expected, _ = reference_nearest(queries, points.flatten(0, 1), "l2")
    for prune in (None, False, True):
        assert torch.equal(NearestSearch(points[None], dist="l2", prune=prune)(queries), expected)


@pytest.mark.parametrize("n", [1, RUN - 1, RUN, RUN + 1, 5 * RUN + 3])
@pytest.mark.parametrize("q", [1, 31, 33, 300])
def test_dense_blocks_of_any_size(n, q):
    points = torch.randint(-9, 10, (3, n, 5)).float()
    queries = torch.randint(-9, 10, (3, q, 5)).float()
    assert torch.equal(dense_nearest(queries, points), torch.bmm(queries, points.mT).argmax(2))


def test_equal_descriptors_take_the_lowest_pixel():
    constant = torch.ones(40, 50, 6)
    for prune in (False, True):
        assert not NearestSearch(constant[None], prune=prune)(constant.flatten(0, 1)).any()
    found = match_reciprocal(constant, constant, start=8)
    assert found.index0.tolist() == found.index1.tolist() == [0]


def test_batch_equals_one_by_one():
    maps0 = torch.stack([smooth_field(i, 33, 47, 8, 8) for i in range(4)])
    maps1 = torch.stack([smooth_field(i + 50, 40, 36, 8, 8) for i in range(4)])
    alone = [match_reciprocal(a, b, start=4) for a, b in zip(maps0, maps1)]
    # The lock-step form of accelerators, run here on whatever device there is.
    start = torch.cat([torch.arange(0, 33 * 47, 7) + i * 33 * 47 for i in range(4)])
    walk = ReciprocalSearch(maps0, maps1).follow(start)
    for i, (a, b) in enumerate(zip(maps0, maps1)):
        mine = (start // (33 * 47)) == i
        single = ReciprocalSearch(a, b).follow(start[mine] - i * 33 * 47)
        assert torch.equal(walk.here[mine] - i * 33 * 47, single.here)
        assert torch.equal(walk.there[mine] - i * 40 * 36, single.there)
        assert torch.equal(walk.settled[mine], single.settled)
    for found, expected in zip(match_reciprocal_batch(maps0, maps1, subsample=4), alone):
        assert torch.equal(found.index0, expected.index0)
        assert torch.equal(found.index1, expected.index1)


def test_each_product_is_computed_once(monkeypatch):
    map0, map1 = smooth_field(1, 32, 40, 8, 8), smooth_field(2, 32, 40, 8, 8)
    search = ReciprocalSearch(map0, map1)
    asked = []
    original = NearestSearch.__call__
    monkeypatch.setattr(
        NearestSearch,
        "__call__",
        lambda self, q, owner=None: asked.append(len(q)) or original(self, q, owner),
    )
    start = torch.arange(0, 32 * 40, 3)
    search.follow(start)
    before = sum(asked)
    search.follow(start)
    assert sum(asked) == before <= 2 * 32 * 40


def test_autocast_and_gradients_do_not_matter():
    map0, map1 = smooth_field(1, 32, 40, 8, 8), smooth_field(2, 32, 40, 8, 8)
    expected = match_reciprocal(map0, map1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = match_reciprocal(map0.requires_grad_(), map1.requires_grad_())
    assert torch.equal(found.index0, expected.index0)
    assert torch.equal(found.index1, expected.index1)


def test_given_starts_report_the_start_within_the_tolerance():
    map0, map1 = smooth_field(1, 48, 64, 8, 16), smooth_field(2, 48, 64, 8, 16)
    start = torch.stack([torch.arange(3, 60), torch.arange(57) % 48], 1)
    exact = match_reciprocal(map0, map1, start=start)
    loose = match_reciprocal(map0, map1, start=start, pixel_tol=6)
    given = {y * 64 + x for x, y in start.tolist()}
    assert set(exact.index0.tolist()) <= set(loose.index0.tolist()) <= given


def test_numpy_inputs_and_forms():
    map0, map1 = (smooth_field(s, 30, 40, 8, 8).numpy() for s in (1, 2))
    xy0, xy1 = fast_reciprocal_NNs(map0, map1, dist="dot")
    flat0, _ = fast_reciprocal_NNs(map0, map1, dist="dot", ret_xy=False)
    (rows, columns), _ = fast_reciprocal_NNs(map0, map1, dist="dot", ret_xy="y_x")
    assert xy0.dtype == np.int64
    assert flat0.dtype == np.int32
    assert np.array_equal(flat0, xy0[:, 1] * 40 + xy0[:, 0])
    assert np.array_equal(np.stack([columns, rows], 1), xy0)
    assert len(xy1) == len(xy0)


@pytest.mark.parametrize("q", [0, 1])
def test_few_or_no_starts(q):
    map0, map1 = smooth_field(1, 16, 16, 4, 8), smooth_field(2, 16, 16, 4, 8)
    found = match_reciprocal(map0, map1, start=torch.zeros(q, 2, dtype=torch.int64))
    assert len(found.index0) == len(found.index1) <= q


def test_errors_name_the_problem():
    map0, map1 = smooth_field(1, 16, 16, 4, 8), smooth_field(2, 16, 16, 4, 8)
    with pytest.raises(ValueError, match="pixel_tol"):
        match_reciprocal(map0, map1, start=8, pixel_tol=2)
    with pytest.raises(ValueError, match="inside"):
        match_reciprocal(map0, map1, start=torch.tensor([[16, 0]]))
    with pytest.raises(ValueError, match="channels"):
        match_reciprocal(map0, map1[..., :3])
    with pytest.raises(ValueError, match="at least 1"):
        match_reciprocal(map0, map1, start=0)
    with pytest.raises(ValueError, match="dist"):
        NearestSearch(map0[None], dist="cosine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="matcher options"):
        fast_reciprocal_NNs(map0, map1, distance="dot")
    with pytest.raises(ValueError, match="shape1"):
        merge_corres(np.zeros(1), np.zeros(1))


@pytest.mark.parametrize("prune", [False, True])
@pytest.mark.parametrize("side", ["query", "map"])
def test_nan_is_reported(prune, side):
    queries, descriptors = smooth_field(1, 16, 16, 4, 8).flatten(0, 1), smooth_field(2, 16, 16, 4, 8)
    (queries[7] if side == "query" else descriptors[3, 3]).fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        NearestSearch(descriptors[None], prune=prune)(queries)
