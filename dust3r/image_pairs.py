"""Which images of a collection are paired: scene graphs, symmetrisation, filters by sequence distance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

Item = TypeVar("Item")
Edge = tuple[int, int]

DEFAULT_WINDOW = 3
GRAPHS = "complete, swin[-w][-noncyclic], logwin[-w][-noncyclic], oneref[-k]"


def make_pairs(
    imgs: Sequence[Item], scene_graph: str = "complete", prefilter: str | None = None, symmetrize: bool = True
) -> list[tuple[Item, Item]]:
    """Pair the images of a collection.

    Args:
        imgs: Views as `load_images` returns them (anything works when `prefilter` is None).
        scene_graph: `complete`: all pairs. `swin-w`: each image with its next w (default 3). `logwin-w`: with
            those 1, 2, 4, .. 2^(w-1) places away. `oneref-k`: image k (default 0) with all others. Windows
            wrap around the end unless `-noncyclic` is appended.
        prefilter: `seqN` keeps pairs at most N places apart, `cycN` the same with wrap-around.
        symmetrize: Append every pair in reverse order, after all others.

    Returns:
        Pairs of entries of `imgs`; never an image with itself.

    Raises:
        ValueError: If the graph or the filter is unknown or does not fit the number of images.
    """
    return select_pairs(imgs, graph_edges(len(imgs), scene_graph), prefilter, symmetrize)


def graph_edges(n: int, scene_graph: str) -> list[Edge]:
    """Index pairs of a scene graph over `n` images (see `make_pairs`), without their reverses.

    Raises:
        ValueError: If the graph is unknown.
    """
    name, *options = scene_graph.split("-")
    if name == "complete" and not options:
        return [(i, j) for i in range(n) for j in range(i)]
    if name in ("swin", "logwin"):
        window, cyclic = _window_options(options, scene_graph)
        offsets = [2**k for k in range(window)] if name == "logwin" else range(1, window + 1)
        return _window_edges(n, offsets, cyclic)
    if name == "oneref" and len(options) <= 1:
        reference = _number(options[0], scene_graph) if options else 0
        if reference >= max(n, 1):
            raise ValueError(f"scene_graph {scene_graph!r} refers to image {reference}, but there are only {n} images.")
        return [(reference, j) for j in range(n) if j != reference]
    raise ValueError(f"Unknown scene_graph {scene_graph!r}; choose one of {GRAPHS}.")


def select_pairs(
    imgs: Sequence[Item], edges: Iterable[Edge], prefilter: str | None, symmetrize: bool
) -> list[tuple[Item, Item]]:
    """The pairs behind index pairs, symmetrised and filtered (see `make_pairs`)."""
    pairs = [(imgs[i], imgs[j]) for i, j in edges]
    if symmetrize:
        pairs += [(second, first) for first, second in pairs]
    if prefilter is None:
        return pairs
    kind, distance = prefilter[:3], prefilter[3:]
    if kind not in ("seq", "cyc") or not distance.isdecimal():
        raise ValueError(f"Unknown prefilter {prefilter!r}; use 'seqN' or 'cycN' with a number N.")
    return filter_pairs_seq(pairs, int(distance), cyclic=kind == "cyc")


def filter_pairs_seq(pairs: Sequence[tuple[Any, Any]], seq_dis_thr: int, cyclic: bool = False) -> list[tuple[Any, Any]]:
    """Keep the pairs of views whose `idx` differ by at most `seq_dis_thr`.

    Args:
        pairs: Pairs of views.
        seq_dis_thr: Largest distance kept.
        cyclic: Measure the distance around a loop as long as the largest `idx` plus one.

    Returns:
        The pairs kept, in order.
    """
    edges = [(int(first["idx"]), int(second["idx"])) for first, second in pairs]
    return [pairs[k] for k in _near(edges, seq_dis_thr, cyclic)]


def filter_edges_seq(
    view1: dict[str, Any],
    view2: dict[str, Any],
    pred1: dict[str, Any],
    pred2: dict[str, Any],
    seq_dis_thr: int,
    cyclic: bool = False,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Filter the output of `inference` like `filter_pairs_seq` filters its input.

    Args:
        view1: First views.
        view2: Second views.
        pred1: Predictions of the first views.
        pred2: Predictions of the second views.
        seq_dis_thr: Largest distance of `idx` kept.
        cyclic: Measure the distance around the loop.

    Returns:
        The four dicts with the kept pairs only.
    """
    edges = [(int(i), int(j)) for i, j in zip(view1["idx"], view2["idx"])]
    kept = _near(edges, seq_dis_thr, cyclic)
    view1, view2, pred1, pred2 = (
        {
            key: [value[k] for k in kept] if isinstance(value, (list, tuple)) else value[kept]
            for key, value in part.items()
        }
        for part in (view1, view2, pred1, pred2)
    )
    return view1, view2, pred1, pred2


def _window_edges(n: int, offsets: Iterable[int], cyclic: bool) -> list[Edge]:
    """Each image with those at the given offsets, as (small, large), once each, in order of discovery."""
    found: dict[Edge, None] = {}
    for i in range(n):
        for offset in offsets:
            j = (i + offset) % n if cyclic else i + offset
            # A window longer than the loop comes back to i: an image is never paired with itself.
            if j != i and j < n:
                found[min(i, j), max(i, j)] = None
    return list(found)


def _window_options(options: list[str], scene_graph: str) -> tuple[int, bool]:
    """Window size and whether it wraps, from the parts after the graph's name."""
    cyclic = "noncyclic" not in options
    numbers = [option for option in options if option != "noncyclic"]
    if len(numbers) > 1:
        raise ValueError(f"scene_graph {scene_graph!r} has too many parts; choose one of {GRAPHS}.")
    return (_number(numbers[0], scene_graph) if numbers else DEFAULT_WINDOW), cyclic


def _number(text: str, scene_graph: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"scene_graph {scene_graph!r} has {text!r} where a number belongs; choose one of {GRAPHS}.")
    return int(text)


def _near(edges: Sequence[Edge], limit: int, cyclic: bool) -> list[int]:
    """Positions of the edges whose ends are at most `limit` apart."""
    if not edges:
        return []
    ends = np.asarray(edges)
    distance = np.abs(ends[:, 0] - ends[:, 1])
    if cyclic:
        distance = np.minimum(distance, ends.max() + 1 - distance)
    return np.flatnonzero(distance <= limit).tolist()
