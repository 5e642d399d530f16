"""Which images hang together, and the tree along which their cameras are chained.

Every camera is stored relative to its parent in a spanning tree of the pairs, so that moving one camera moves
the whole branch behind it: long chains of images then align in few steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree
from scipy.spatial.distance import squareform

Edge: TypeAlias = "tuple[int, int]"
"""(parent, child)."""

KinematicMode = Literal["mst", "hclust-ward", "hclust-single", "hclust-complete", "hclust-average", "hclust-weighted"]
"""`mst`: maximum spanning tree of the pair scores. `hclust-*`: links made while clustering the images."""

_FULL_SHARE = 3  # matches per block of the smaller image at which two images count as fully similar
_UNRELATED = 2.0  # distance of images without any match; related ones are below 1


@dataclass(frozen=True)
class KinematicTree:
    """A spanning tree of N images, or a forest when several cameras are given.

    Attributes:
        root: The image in the middle.
        edges: (parent, child) pairs, parents before their children.
    """

    root: int
    edges: tuple[Edge, ...]

    def parents(self, count: int, anchored: Iterable[int] = ()) -> np.ndarray:
        """The parent of each image; roots are their own.

        Args:
            count: N.
            anchored: Images whose camera is given: each becomes a root, and the others hang on the nearest.

        Returns:
            (N,) int64.
        """
        roots = list(anchored) or [self.root]
        neighbours: list[list[int]] = [[] for _ in range(count)]
        for a, b in self.edges:
            neighbours[a].append(b)
            neighbours[b].append(a)
        parents = np.arange(count)
        reached, queue = set(roots), roots
        while queue:
            found = [(image, other) for image in queue for other in neighbours[image] if other not in reached]
            queue = []
            for image, other in found:
                if other not in reached:
                    reached.add(other)
                    parents[other] = image
                    queue.append(other)
        return parents


def components_of(count: int, edges: Iterable[Edge]) -> np.ndarray:
    """(N,) int64 label of the connected component of each image, numbered by first image."""
    edges = np.asarray(list(edges), dtype=np.int64).reshape(-1, 2)
    links = csr_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count))
    labels = np.asarray(connected_components(links, directed=False)[1])
    order = {label: rank for rank, label in enumerate(dict.fromkeys(labels.tolist()))}
    return np.asarray([order[label] for label in labels.tolist()], dtype=np.int64)


def kinematic_tree(scores: np.ndarray, mode: KinematicMode = "hclust-ward", *, blocks: Sequence[int]) -> KinematicTree:
    """The spanning tree of connected images.

    Args:
        scores: (N, N) symmetric, 0 where there is no pair; the larger the stronger.
        mode: See `KinematicMode`.
        blocks: Anchors per image, which tell how many matches are many (clustering only).

    Returns:
        The tree, rooted in the image that is farthest from both ends of the longest branch.

    Raises:
        ValueError: If the mode is unknown or the scores are not a square matrix.
    """
    if mode not in get_args(KinematicMode):
        raise ValueError(f"kinematic_mode must be one of {', '.join(get_args(KinematicMode))}, got {mode!r}.")
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or not len(scores):
        raise ValueError(f"scores must be (N, N) with N > 0, got {scores.shape}.")
    if mode == "mst":
        return _rooted(_maximum_spanning_tree(scores), len(scores))
    return _rooted(_cluster_links(scores, mode.removeprefix("hclust-"), np.asarray(blocks)), len(scores))


def score_matrix(count: int, pairs: Iterable[tuple[int, int, float]]) -> np.ndarray:
    """(N, N) symmetric scores of pairs (i, j, score)."""
    scores = np.zeros((count, count))
    for i, j, score in pairs:
        scores[i, j] = scores[j, i] = score
    return scores


def _maximum_spanning_tree(scores: np.ndarray) -> csr_matrix:
    """(N, N) sparse, one entry per edge."""
    # SciPy minimises and takes zeros for missing edges; images without a pair hang on by the weakest of links.
    cost = scores.max() + 1.0 - scores
    np.fill_diagonal(cost, 0)
    return csr_matrix(minimum_spanning_tree(csr_matrix(cost)))


def _cluster_links(scores: np.ndarray, method: str, blocks: np.ndarray) -> csr_matrix:
    """(N, N) sparse: the representatives linked at each merge of a hierarchical clustering."""
    count = len(scores)
    if count == 1:
        return csr_matrix((1, 1))
    full = _FULL_SHARE * np.minimum(blocks[:, None], blocks[None]).astype(np.float64)
    similarity = np.minimum(1.0, scores / full)
    np.fill_diagonal(similarity, 0)
    distance = np.where(similarity > 0, 1 - similarity, _UNRELATED)
    np.fill_diagonal(distance, 0)
    representative = {image: image for image in range(count)}
    links = np.zeros((count, count))
    for merge, (left, right, *_) in enumerate(linkage(squareform(distance, checks=False), method=method)):
        a, b = representative[int(left)], representative[int(right)]
        links[min(a, b), max(a, b)] = 1
        kept = a if similarity[a].sum() > similarity[b].sum() else b
        joined = np.maximum(similarity[a], similarity[b])
        joined[kept] = 0
        similarity[kept] = joined
        representative[count + merge] = kept
    return csr_matrix(links)


def _rooted(tree: csr_matrix, count: int) -> KinematicTree:
    """The tree with its root in the middle and its edges in breadth-first order."""
    first_end = _breadth_first(tree, 0)[0][-1]
    order, _ = _breadth_first(tree, first_end)
    rank = np.minimum(_ranks(order, count), _ranks(_breadth_first(tree, order[-1])[0], count))
    root = int(rank.argmax())
    order, parents = _breadth_first(tree, root)
    return KinematicTree(root, tuple((int(parents[image]), int(image)) for image in order[1:]))


def _breadth_first(tree: csr_matrix, start: int) -> tuple[np.ndarray, np.ndarray]:
    order, parents = breadth_first_order(tree, int(start), directed=False)
    return np.asarray(order), np.asarray(parents)


def _ranks(order: np.ndarray, count: int) -> np.ndarray:
    ranks = np.zeros(count, dtype=np.int64)
    ranks[order] = np.arange(len(order))
    return ranks
