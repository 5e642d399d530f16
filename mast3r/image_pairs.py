"""Scene graphs of DUSt3R plus the retrieval graph, which needs image similarities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dust3r.image_pairs import GRAPHS, Edge, Item, graph_edges, select_pairs
from mast3r.retrieval.graph import make_pairs_fps

DEFAULT_KEY_IMAGES = 20
DEFAULT_NEIGHBOURS = 1


def make_pairs(
    imgs: Sequence[Item],
    scene_graph: str = "complete",
    prefilter: str | None = None,
    symmetrize: bool = True,
    sim_mat: Any = None,
) -> list[tuple[Item, Item]]:
    """Pair the images of a collection (see `dust3r.image_pairs.make_pairs`).

    Args:
        imgs: Views as `load_images` returns them, or names (anything works when `prefilter` is None).
        scene_graph: A graph of DUSt3R, or `retrieval-Na-k`: all pairs of Na key images, every other image
            with its nearest key image, and every image with its k nearest (itself counted).
        prefilter: `seqN` or `cycN`, see there.
        symmetrize: Append every pair in reverse order, after all others.
        sim_mat: (n, n) similarity scores, larger is more similar; needed by the retrieval graph only.

    Returns:
        Pairs of entries of `imgs`.

    Raises:
        ValueError: If the graph or filter is unknown, or similarities are missing or of the wrong shape.
    """
    edges = _retrieval_edges(len(imgs), scene_graph, sim_mat) if _is_retrieval(scene_graph) else None
    if edges is None:
        try:
            edges = graph_edges(len(imgs), scene_graph)
        except ValueError as error:
            raise ValueError(str(error).replace(GRAPHS, f"{GRAPHS}, retrieval[-Na][-k]")) from None
    return select_pairs(imgs, edges, prefilter, symmetrize)


def _is_retrieval(scene_graph: str) -> bool:
    return scene_graph.split("-")[0] == "retrieval"


def _retrieval_edges(n: int, scene_graph: str, sim_mat: Any) -> list[Edge]:
    """Index pairs of the retrieval graph."""
    if sim_mat is None:
        raise ValueError(f"scene_graph {scene_graph!r} needs sim_mat, the ({n}, {n}) image similarities.")
    similarity = np.asarray(sim_mat)
    if similarity.shape != (n, n):
        raise ValueError(f"sim_mat must have shape ({n}, {n}) for {n} images, got {similarity.shape}.")
    numbers = scene_graph.split("-")[1:]
    if len(numbers) > 2 or not all(number.isdecimal() for number in numbers):
        raise ValueError(f"Expected scene_graph 'retrieval-Na-k' with two numbers, got {scene_graph!r}.")
    defaults = (DEFAULT_KEY_IMAGES, DEFAULT_NEIGHBOURS)
    key_images, neighbours = (*(int(number) for number in numbers), *defaults[len(numbers) :])
    pairs, _ = make_pairs_fps(similarity, Na=min(key_images, n), tokK=neighbours, dist_thresh=None)
    return [(int(i), int(j)) for i, j in pairs]
