"""Which pairs of a collection are worth the network's time, and what they will cost, before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dust3r.image_pairs import GRAPHS, Edge, graph_edges
from mast3r.retrieval.graph import is_retrieval_graph, retrieval_edges
from mast3r.scenes.pair_cost import PairCost

AUTO = "auto"
MAX_COMPLETE = 20
"""Up to so many images all pairs are taken: 190 of them."""

KEY_IMAGES = 20
NEIGHBOURS = 10
"""The retrieval graph of `auto`, as MASt3R-SfM uses it (Duisterhof et al., 3DV 2025)."""

SEQUENCE_GRAPH = "logwin-4-noncyclic"
"""The window of `auto`: images 1, 2, 4 and 8 places away."""

_SEQUENCE_REACH = 8
_ALL_GRAPHS = f"{GRAPHS}, retrieval[-Na][-k], {AUTO}"

Similarity = np.ndarray | Callable[[], np.ndarray]


@dataclass(frozen=True)
class GraphPlan:
    """The pairs of a collection and why these.

    Attributes:
        scene_graph: Name of the graph in the grammar of `make_pairs`, or "given".
        num_images: Number of images.
        edges: Unordered pairs (i, j), i < j, each once, sorted.
        reason: Why this graph, one sentence without its full stop.
        seconds: Estimated time; None without a cost.
        memory_bytes: Estimated memory; None without a cost.
    """

    scene_graph: str
    num_images: int
    edges: tuple[Edge, ...]
    reason: str
    seconds: float | None = None
    memory_bytes: int | None = None

    @property
    def pairs(self) -> int:
        """Number of unordered pairs."""
        return len(self.edges)

    def ordered_edges(self, *, symmetrize: bool = True) -> list[Edge]:
        """The pairs, followed by all of them reversed if `symmetrize`."""
        reverse = [(j, i) for i, j in self.edges] if symmetrize else []
        return [*self.edges, *reverse]

    def components(self) -> tuple[tuple[int, ...], ...]:
        """Groups of images that the pairs connect, the largest first."""
        rows, columns = np.array(self.edges, dtype=np.int64).reshape(-1, 2).T
        graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(self.num_images, self.num_images))
        count, label = connected_components(graph, directed=False)
        groups = [tuple(np.flatnonzero(label == k).tolist()) for k in range(count)]
        return tuple(sorted(groups, key=lambda group: (-len(group), group)))

    def __str__(self) -> str:
        text = f"{self.num_images} images, {self.pairs} pairs ({self.scene_graph}: {self.reason})"
        estimates = [] if self.seconds is None else [_duration(self.seconds)]
        estimates += [] if self.memory_bytes is None else [_amount(self.memory_bytes)]
        return f"{text}, about {' and '.join(estimates)}." if estimates else f"{text}."


def plan_graph(
    num_images: int,
    scene_graph: str | Iterable[Edge] = AUTO,
    *,
    similarity: Similarity | None = None,
    ordered: bool = False,
    cost: PairCost | None = None,
) -> GraphPlan:
    """Choose the pairs of a collection.

    `auto` takes all pairs of up to 20 images; of an ordered collection a window along the sequence and, if
    similarities are given, pairs of distant images that are each other's most similar ones (loop closures); of
    any other collection the retrieval graph, or without similarities a window over the given order.

    Args:
        num_images: Number n of images, at least 2.
        scene_graph: "auto", a graph of `mast3r.image_pairs.make_pairs`, or pairs of image indices.
        similarity: (n, n) scores, larger is more alike, or a function that computes them; it is called only if
            the graph needs them (see `mast3r.retrieval.pooled.image_similarity`).
        ordered: Whether the images are a sequence, such as video frames.
        cost: What images and pairs cost, for the estimates.

    Returns:
        The plan; its text says what is going to happen.

    Raises:
        ValueError: If there are fewer than two images, the graph is unknown, an index is out of range, or
            similarities are missing, not finite or of the wrong shape.
    """
    if num_images < 2:
        raise ValueError(f"A scene graph needs at least 2 images, got {num_images}.")
    if not isinstance(scene_graph, str):
        name, edges, reason = "given", list(scene_graph), "pairs as given"
        _check_edges(edges, num_images)
    elif scene_graph == AUTO:
        name, edges, reason = _automatic(num_images, similarity, ordered)
    elif is_retrieval_graph(scene_graph):
        edges = _key_graph(num_images, scene_graph, similarity)
        name, reason = scene_graph, "as asked for"
    else:
        name, edges, reason = scene_graph, named_edges(num_images, scene_graph), "as asked for"
    unique = tuple(sorted({(int(min(edge)), int(max(edge))) for edge in edges}))
    return GraphPlan(
        scene_graph=name,
        num_images=num_images,
        edges=unique,
        reason=reason,
        seconds=None if cost is None else cost.seconds(num_images, len(unique)),
        memory_bytes=None if cost is None else cost.memory_bytes(num_images, len(unique)),
    )


def named_edges(n: int, scene_graph: str) -> list[Edge]:
    """Index pairs of a graph that needs no similarities; the message of an unknown one names all graphs."""
    try:
        return graph_edges(n, scene_graph)
    except ValueError as error:
        raise ValueError(str(error).replace(GRAPHS, _ALL_GRAPHS)) from None


def _automatic(n: int, similarity: Similarity | None, ordered: bool) -> tuple[str, list[Edge], str]:
    """Name, pairs and reason of the automatic choice."""
    if n <= MAX_COMPLETE:
        return "complete", list(combinations(range(n), 2)), f"all pairs of up to {MAX_COMPLETE} images"
    if ordered and similarity is None:
        return SEQUENCE_GRAPH, graph_edges(n, SEQUENCE_GRAPH), "a sequence, images 1, 2, 4 and 8 places away"
    if ordered:
        closures = _loop_closures(_matrix(n, similarity))
        reason = f"a sequence, images 1, 2, 4 and 8 places away, and {len(closures)} similar pairs farther apart"
        return SEQUENCE_GRAPH, graph_edges(n, SEQUENCE_GRAPH) + closures, reason
    if similarity is None:
        reason = "too many images for all pairs and no similarities, so the order of the images decides"
        return SEQUENCE_GRAPH, graph_edges(n, SEQUENCE_GRAPH), reason
    name = f"retrieval-{min(KEY_IMAGES, n // 4)}-{NEIGHBOURS}"
    reason = f"the {NEIGHBOURS - 1} most similar images of each, and key images that tie all together"
    return name, _key_graph(n, name, similarity), reason


def _key_graph(n: int, scene_graph: str, similarity: Similarity | None) -> list[Edge]:
    """The retrieval graph; its first key image is the one most similar to all others, so nothing is random."""
    if similarity is None:
        return retrieval_edges(n, scene_graph, None)
    scores = _matrix(n, similarity)
    return retrieval_edges(n, scene_graph, scores, first=int(scores.sum(axis=1).argmax()))


def _loop_closures(scores: np.ndarray) -> list[Edge]:
    """Pairs beyond the window that are each other's most similar image out there."""
    n = len(scores)
    far = np.abs(np.subtract.outer(np.arange(n), np.arange(n))) > _SEQUENCE_REACH
    best = np.where(far, scores + scores.T, -np.inf).argmax(axis=1)
    return [(i, int(j)) for i, j in enumerate(best) if best[j] == i and i < j and far[i, j]]


def _matrix(n: int, similarity: Similarity | None) -> np.ndarray:
    scores = np.asarray(similarity() if callable(similarity) else similarity, dtype=np.float64)
    if scores.shape != (n, n):
        raise ValueError(f"similarity must have shape ({n}, {n}) for {n} images, got {scores.shape}.")
    if not np.isfinite(scores).all():
        raise ValueError("similarity must be finite, got NaN or infinity; give images without content 0.")
    return scores


def _check_edges(edges: Sequence[Edge], n: int) -> None:
    for edge in edges:
        if (
            len(edge) != 2
            or not all(isinstance(i, int | np.integer) and 0 <= i < n for i in edge)
            or edge[0] == edge[1]
        ):
            raise ValueError(f"Pairs must be two different indices in 0..{n - 1}, got {edge!r}.")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(round(size / 1e6), 1)} MB"
