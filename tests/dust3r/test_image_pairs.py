"""Scene graphs against the golden index lists, and the laws they obey."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dust3r.image_pairs import filter_edges_seq, filter_pairs_seq, make_pairs
from mast3r.image_pairs import make_pairs as make_pairs_mast3r


def indices(function, n, *args, **kwargs):
    pairs = function([{"idx": i} for i in range(n)], *args, **kwargs)
    return [(first["idx"], second["idx"]) for first, second in pairs]


@pytest.mark.parametrize("function", [make_pairs, make_pairs_mast3r])
def test_golden_graphs(golden, function):
    for row in golden("make_pairs").meta["rows"]:
        # The reference pairs an image with itself when a window is longer than the loop; that is left out.
        expected = [tuple(pair) for pair in row["pairs"] if pair[0] != pair[1]]
        found = indices(function, row["n"], row["scene_graph"], row["prefilter"], row["symmetrize"])
        # The reference order of windows is that of a Python set.
        assert sorted(found) == sorted(expected), row
        if row["symmetrize"] and row["prefilter"] is None:
            half = len(found) // 2
            assert found[half:] == [(j, i) for i, j in found[:half]]


def test_golden_retrieval(golden):
    pytest.importorskip("mast3r.retrieval.graph")
    for row in golden("make_pairs").meta["retrieval"]:
        np.random.seed(row["np_seed"])
        graph = f"retrieval-{row['Na']}-{row['k']}"
        found = indices(make_pairs_mast3r, row["n"], graph, sim_mat=np.array(row["sim"]))
        assert all(i != j for i, j in found)
        assert {(min(p), max(p)) for p in found} <= {(i, j) for i in range(row["n"]) for j in range(row["n"]) if i < j}
        if row["first_keyframe"] is None:
            assert sorted(found) == sorted(map(tuple, row["make_pairs_sym"]))


graphs = st.one_of(
    st.just("complete"),
    st.builds(
        "{}-{}{}".format,
        st.sampled_from(["swin", "logwin"]),
        st.integers(1, 6),
        st.sampled_from(["", "-noncyclic"]),
    ),
    st.just("oneref-0"),
)


@given(st.integers(0, 12), graphs)
def test_laws(n, graph):
    single = indices(make_pairs, n, graph, symmetrize=False)
    assert all(i != j and 0 <= i < n and 0 <= j < n for i, j in single)
    assert len({frozenset(pair) for pair in single}) == len(single)
    double = indices(make_pairs, n, graph)
    assert double == single + [(j, i) for i, j in single]
    if graph == "complete":
        assert len(single) == n * (n - 1) // 2
    near = indices(make_pairs, n, graph, prefilter="seq2")
    assert near == [(i, j) for i, j in double if abs(i - j) <= 2]


def test_strings_can_be_paired():
    assert make_pairs(["a", "b"], symmetrize=False) == [("b", "a")]


@pytest.mark.parametrize(
    "graph",
    [
        "",
        "full",
        "swin-x",
        "swin-1-2",
        "swin--1",
        "complete-3",
        "oneref-a",
        "oneref-1-2",
        "oneref-9",
        "retrieval-2-1",
    ],
)
def test_unknown_graphs_are_refused(graph):
    for function in (make_pairs, make_pairs_mast3r):
        with pytest.raises(ValueError, match="scene_graph"):
            indices(function, 4, graph)


def test_mast3r_names_its_own_graph_and_checks_similarities():
    with pytest.raises(ValueError, match="retrieval"):
        indices(make_pairs_mast3r, 4, "full")
    with pytest.raises(ValueError, match="shape"):
        indices(make_pairs_mast3r, 4, "retrieval-2-1", sim_mat=np.eye(3))
    with pytest.raises(ValueError, match="two numbers"):
        indices(make_pairs_mast3r, 4, "retrieval-2-x", sim_mat=np.eye(4))


@pytest.mark.parametrize("prefilter", ["near", "seq", "cyc-1", "seqx", "5"])
def test_unknown_prefilters_are_refused(prefilter):
    with pytest.raises(ValueError, match="prefilter"):
        indices(make_pairs, 4, "complete", prefilter)


def test_filters():
    pairs = make_pairs([{"idx": i} for i in range(6)], symmetrize=False)
    assert len(filter_pairs_seq(pairs, 1)) == 5
    assert len(filter_pairs_seq(pairs, 1, cyclic=True)) == 6
    assert filter_pairs_seq([], 1) == []
    view1, view2 = {"idx": [0, 1, 5]}, {"idx": [1, 3, 0]}
    pred1, pred2 = {"conf": torch.arange(3)}, {"conf": [10, 11, 12]}
    result = filter_edges_seq(view1, view2, pred1, pred2, 1, cyclic=True)
    assert result[0] == {"idx": [0, 5]}
    assert result[2]["conf"].tolist() == [0, 2]
    assert result[3] == {"conf": [10, 12]}
