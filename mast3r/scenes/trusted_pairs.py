"""Which pairs of a scene are aligned: those whose matches the full-size photos confirm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dust3r.image_pairs import Edge

_BEST = 3  # pairs of each photo that are kept


def trusted_pairs(edges: Sequence[Edge], believed: Mapping[Edge, float], least: float) -> tuple[Edge, ...]:
    """The pairs to align.

    Pairs of photos that show different things, or of which the network understood nothing, have matches all the same,
    which agree with each other now and then and draw cameras to wrong places.

    Args:
        edges: All pairs (i, j).
        believed: Share of a pair's matches that the photos confirm, 0..1; pairs that it lacks are trusted.
        least: Least such share of trusted pairs. Wrong matches are confirmed by chance one time in ten, in photos that
            repeat themselves one time in five.

    Returns:
        The trusted pairs, the best three of every photo (it may be its light that differs), and the best of the others
        where the photos would fall into parts without them; in their order.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    if not edges:
        return ()
    shares = np.array([believed.get(edge, 1.0) for edge in edges])
    ends = np.array(edges)
    kept, count = shares >= least, int(ends.max()) + 1
    for image in range(count):
        own = np.flatnonzero((ends == image).any(axis=1))
        kept[own[np.argsort(-shares[own], kind="stable")[:_BEST]]] = True
    links = minimum_spanning_tree(csr_array((2.0 - shares, (ends[:, 0], ends[:, 1])), shape=(count, count)))
    linked = {(int(i), int(j)) for i, j in zip(*links.nonzero())}
    return tuple(edge for edge, good in zip(edges, kept) if good or edge in linked)
