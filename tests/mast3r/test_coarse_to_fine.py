from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mast3r.utils.coarse_to_fine import (
    WindowConfig,
    crop_slice,
    greedy_selection,
    inside,
    normalise_windows,
    score_windows,
    select_pairs_of_crops,
    select_window_pairs,
    window_grid,
    window_starts,
)


def cases(g):
    """Name, description and arrays of each fixture case."""
    assert g.meta["cases"]
    for name, case in g.meta["cases"].items():
        yield (
            name,
            case,
            {k.removeprefix(f"{name}."): v.numpy() for k, v in g.tensors.items() if k.startswith(f"{name}.")},
        )


def test_golden_window_starts(golden):
    g = golden("coarse_to_fine")
    for i, arguments in enumerate(g.meta["start_pos_args"]):
        assert np.array_equal(window_starts(*arguments), g.tensors[f"start_pos.{i}"])


def test_golden_grid_and_scores(golden):
    for _, case, t in cases(golden("coarse_to_fine")):
        resolution0, resolution1 = (tuple(r) for r in case["forced_resolution_hw"])
        grid = window_grid(case["shape1"], case["maxdim"], case["overlap"])
        assert np.array_equal(grid, t["grid1"])
        assert np.array_equal(normalise_windows(grid, case["shape1"]), t["grid1_free"])
        grid = normalise_windows(grid, case["shape1"], resolution0)
        assert np.array_equal(grid, t["grid1_norm"])
        pairs = score_windows(grid, t["pos1"], t["pos2"], case["shape2"], resolution1)
        assert np.array_equal(pairs.boxes0, t["score_cell1"])
        assert np.array_equal(pairs.boxes1, t["score_cell2"])
        np.testing.assert_allclose(pairs.weights, t["score_w"], rtol=1e-5)


def test_golden_greedy(golden):
    for _, _, t in cases(golden("coarse_to_fine")):
        for key in (k for k in t if k.startswith("greedy")):
            assert greedy_selection(t["score_w"], int(key.removeprefix("greedy")) / 100) == t[key].tolist()


def test_golden_crop_pairs(golden):
    for _, case, t in cases(golden("coarse_to_fine")):
        images = [np.zeros((*case[k], 3), np.uint8) for k in ("shape1", "shape2")]
        found = list(
            select_pairs_of_crops(
                *images, t["pos1"], t["pos2"], case["maxdim"], case["overlap"], case["forced_resolution_hw"]
            )
        )
        assert np.array_equal([box for box, _, _ in found], t["crops1"])
        assert np.array_equal([box for _, box, _ in found], t["crops2"])
        # The fixture's tags were taken after the loop and name its last pair.
        tags = {tuple(tag) for tag in case["first_tags"]}
        assert {found[-1][2]("1", "2"), found[-1][2](("1", "2"))} == tags


def test_resolution_may_be_left_out():
    xy = np.random.default_rng(0).uniform(0, 600, (400, 2))
    found = list(select_pairs_of_crops(np.zeros((700, 900, 3)), np.zeros((650, 800, 3)), xy, xy))
    assert found
    for box, other, _ in found:
        assert len(np.zeros((700, 900))[crop_slice(box)]) == box[3] - box[1]
        assert len(np.zeros((650, 800))[crop_slice(other)]) == other[3] - other[1]


@settings(deadline=None)
@given(total=st.integers(1, 9000), window=st.integers(1, 1000), overlap=st.floats(0, 0.9))
def test_windows_cover_the_side(total, window, overlap):
    starts = window_starts(total, window, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(0, total - window)
    assert np.diff(starts).max(initial=0) <= window * (1 - overlap) + 1


@settings(max_examples=50, deadline=None)
@given(
    shape=st.tuples(st.integers(224, 3000), st.integers(224, 3000)),
    resolution=st.sampled_from([(224, 224), (160, 224), (224, 160)]),
    seed=st.integers(0, 1000),
)
def test_normalised_windows_have_the_size_and_lie_inside(shape, resolution, seed):
    corner = np.random.default_rng(seed).uniform(-200, 3000, (20, 2))
    boxes = normalise_windows(np.concatenate([corner, corner + 100.5], 1), shape, resolution)
    assert (boxes[:, 2] - boxes[:, 0] == resolution[1]).all()
    assert (boxes[:, 3] - boxes[:, 1] == resolution[0]).all()
    assert (boxes >= 0).all()
    assert (boxes[:, 2:] <= shape[::-1]).all()


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(0, 12),
    columns=st.integers(0, 30),
    target=st.floats(0.05, 1),
)
def test_greedy_covers_its_target(seed, rows, columns, target):
    rng = np.random.default_rng(seed)
    weights = rng.random((rows, columns)) * (rng.random((rows, columns)) < 0.4)
    chosen = greedy_selection(weights, target)
    assert len(set(chosen)) == len(chosen)
    covered = weights[chosen].max(0, initial=0).sum()
    assert covered >= target * weights.max(0, initial=0).sum() * (1 - 1e-9)


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(0.5, 2), dx=st.floats(-100, 100), n=st.integers(600, 1500), seed=st.integers(0, 99))
def test_selected_pairs_hold_the_same_content(scale, dx, n, seed):
    rng = np.random.default_rng(seed)
    xy0 = rng.uniform(0, (1600, 1200), (n, 2))
    xy1 = xy0 * scale + (dx, 20)
    keep = ((xy1 >= 0) & (xy1 < (2000, 1500))).all(1)
    xy0, xy1 = xy0[keep], xy1[keep]
    pairs = select_window_pairs((1200, 1600), (1500, 2000), xy0, xy1, resolution0=(384, 512), resolution1=(384, 512))
    # a window's partner lies around the median of its matches' other ends: where they are few, it may hold none
    together = [inside(a, xy0) & inside(b, xy1) for a, b in pairs]
    assert all(t.sum() >= 1 for t in together)


def test_nothing_to_select():
    assert select_window_pairs((900, 1200), (900, 1200), np.zeros((0, 2)), np.zeros((0, 2))) == []
    few = np.array([[10.0, 10.0], [700.0, 30.0]])
    assert select_window_pairs((900, 1200), (900, 1200), few, few) == []


def test_errors_name_the_problem():
    with pytest.raises(ValueError, match="overlap"):
        WindowConfig(overlap=1.0)
    with pytest.raises(ValueError, match="coverage"):
        WindowConfig(coverage=0)
    with pytest.raises(ValueError, match="size"):
        WindowConfig(size=8)
    with pytest.raises(ValueError, match="min_matches"):
        WindowConfig(min_matches=0)
    with pytest.raises(ValueError, match="same number"):
        select_window_pairs((900, 1200), (900, 1200), np.zeros((3, 2)), np.zeros((2, 2)))
