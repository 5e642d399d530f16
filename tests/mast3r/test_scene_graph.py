"""The choice of pairs before anything runs, and its estimates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mast3r
from mast3r.image_pairs import make_pairs
from mast3r.retrieval.graph import farthest_point_sampling
from mast3r.scenes.graph import MAX_COMPLETE, plan_graph
from mast3r.scenes.pair_cost import PairCost
from tests.network_goldens import tiny_mast3r

COST = PairCost(seconds_per_image=2, seconds_per_pair=3, bytes_fixed=10, bytes_per_image=20, bytes_per_pair=30)


def ring(n: int) -> np.ndarray:
    """Images on a circle: similarity falls with the distance around it."""
    gap = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    return 1.0 / (1 + np.minimum(gap, n - gap))


def two_rounds(n: int) -> np.ndarray:
    """A sequence that passes every place twice, n / 2 images apart."""
    place = np.arange(n) % (n // 2)
    return 1.0 / (1 + np.abs(np.subtract.outer(place, place)))


def test_few_images_are_paired_completely():
    for n in (2, MAX_COMPLETE):
        plan = plan_graph(n)
        assert (plan.scene_graph, plan.pairs) == ("complete", n * (n - 1) // 2)
        assert plan.components() == (tuple(range(n)),)


def test_sequences_get_a_window_and_loop_closures():
    plan = plan_graph(50, ordered=True)
    assert {j - i for i, j in plan.edges} == {1, 2, 4, 8}
    closed = plan_graph(50, ordered=True, similarity=two_rounds(50))
    assert set(plan.edges) < set(closed.edges)
    assert {j - i for i, j in set(closed.edges) - set(plan.edges)} == {25}
    assert "farther apart" in closed.reason


def test_large_collections_use_similarity():
    order = np.random.default_rng(0).permutation(60)
    similarity = ring(60)[np.ix_(order, order)]
    plan = plan_graph(60, similarity=lambda: similarity)
    assert plan.scene_graph == "retrieval-15-10"
    assert plan.pairs < 60 * 59 / 2 / 2
    assert len(plan.components()) == 1
    best = np.argsort(-similarity, axis=1)[:, 1]
    assert all((min(i, j), max(i, j)) in plan.edges for i, j in enumerate(best.tolist()))
    assert plan == plan_graph(60, similarity=similarity)
    np.random.seed(0)
    state = np.random.get_state()[1]
    plan_graph(60, similarity=similarity)
    assert np.array_equal(np.random.get_state()[1], state)


def test_without_similarity_the_reason_says_so():
    assert "no similarities" in plan_graph(60).reason


def test_similarity_is_computed_only_when_needed():
    def never():
        pytest.fail("similarities were computed")

    plan_graph(10, similarity=never)
    plan_graph(60, "swin-3", similarity=never)
    plan_graph(60, [(0, 1)], similarity=never)


def test_named_and_given_graphs():
    assert plan_graph(5, "oneref-2").edges == ((0, 2), (1, 2), (2, 3), (2, 4))
    assert plan_graph(5, "retrieval-2-2", similarity=ring(5)).scene_graph == "retrieval-2-2"
    plan = plan_graph(6, [(3, 1), (1, 3), (4, 5)])
    assert (plan.edges, plan.scene_graph) == (((1, 3), (4, 5)), "given")
    assert plan.components() == ((1, 3), (4, 5), (0,), (2,))
    assert plan.ordered_edges() == [(1, 3), (4, 5), (3, 1), (5, 4)]
    assert plan.ordered_edges(symmetrize=False) == [(1, 3), (4, 5)]


@given(st.integers(2, 40), st.sampled_from(["auto", "complete", "swin-3", "logwin-3-noncyclic", "retrieval-4-3"]))
@settings(deadline=None)
def test_every_plan_is_sound(n, graph):
    plan = plan_graph(n, graph, similarity=ring(n), cost=COST)
    assert list(plan.edges) == sorted(set(plan.edges))
    assert all(0 <= i < j < n for i, j in plan.edges)
    assert len(plan.components()) == 1
    assert plan.seconds == 2 * n + 3 * plan.pairs
    assert plan.memory_bytes == 10 + 20 * n + 30 * plan.pairs
    if not graph.startswith("retrieval"):  # whose first key image make_pairs draws at random
        pairs = make_pairs(list(range(n)), graph, symmetrize=False, sim_mat=ring(n))
        assert sorted(sorted(pair) for pair in pairs) == [list(edge) for edge in plan.edges]


def test_make_pairs_knows_the_automatic_choice():
    names = [f"{k}.jpg" for k in range(30)]
    pairs = make_pairs(names, "auto", sim_mat=ring(30))
    plan = plan_graph(30, similarity=ring(30))
    assert pairs == [(names[i], names[j]) for i, j in plan.ordered_edges()]
    assert make_pairs(names[:1], "auto") == []


def test_text_says_what_will_happen():
    text = str(plan_graph(4, cost=PairCost(1, 100, bytes_per_image=2 * 10**9)))
    assert text.startswith("4 images, 6 pairs (complete: ")
    assert text.endswith(", about 10 min and 8.0 GB.")
    assert str(plan_graph(4, cost=PairCost(0.01, 0.1))).endswith("about 1 s and 1 MB.")
    assert str(plan_graph(4, cost=PairCost(1, 9000))).endswith("about 15.0 h and 1 MB.")
    assert "about" not in str(plan_graph(4))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((1,), {}, "at least 2"),
        ((4, "full"), {}, "auto"),
        ((4, "retrieval-2-1"), {}, "sim_mat"),
        ((4, "retrieval-x"), {"similarity": np.eye(4)}, "two numbers"),
        ((30,), {"similarity": np.eye(4)}, "shape"),
        ((30,), {"similarity": np.full((30, 30), np.nan)}, "finite"),
        ((4, [(0, 4)]), {}, "indices"),
        ((4, [(1, 1)]), {}, "indices"),
        ((4, [(0, 1, 2)]), {}, "indices"),
        ((4, [(0, 1.5)]), {}, "indices"),
    ],
)
def test_wrong_requests_are_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        plan_graph(*arguments, **options)


def test_first_key_image_can_be_given():
    dist = 1 - ring(8)
    index, gaps = farthest_point_sampling(dist, 3, first=5)
    assert index[0] == 5
    assert np.isinf(gaps[0])
    with pytest.raises(ValueError, match="first"):
        farthest_point_sampling(dist, 3, first=8)


# --- costs ---


def test_cost_grows_with_the_work():
    model = tiny_mast3r()
    small, large = PairCost.of(model, 64), PairCost.of(model, (192, 128))
    assert 0 < small.seconds_per_image < large.seconds_per_image
    assert small.seconds_per_pair < large.seconds_per_pair
    assert small.bytes_per_image < large.bytes_per_image
    assert PairCost.of(model) == PairCost.of(model, 64)
    with pytest.raises(ValueError, match="patch"):
        PairCost.of(model, 8)


def test_estimate_counts_the_whole_network():
    """The bytes of the weights are in the fixed part; every block's work is counted."""
    model = mast3r.load("small")
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    cost = PairCost.of(model)
    assert cost.bytes_fixed > weights
    deeper = tiny_mast3r(enc_depth=6)
    assert PairCost.of(deeper).seconds_per_image > 1.5 * PairCost.of(tiny_mast3r()).seconds_per_image
