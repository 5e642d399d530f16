"""Scene graphs of DUSt3R plus the retrieval graph, which needs image similarities, and the automatic choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dust3r.image_pairs import Item, select_pairs
from mast3r.retrieval.graph import is_retrieval_graph, retrieval_edges
from mast3r.scenes.graph import AUTO, named_edges, plan_graph


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
            with its nearest key image, and every image with its k nearest (itself counted), or `auto`: what
            `mast3r.scenes.graph.plan_graph` chooses.
        prefilter: `seqN` or `cycN`, see there.
        symmetrize: Append every pair in reverse order, after all others.
        sim_mat: (n, n) similarity scores, larger is more similar; needed by the retrieval graph, used by `auto`.

    Returns:
        Pairs of entries of `imgs`.

    Raises:
        ValueError: If the graph or filter is unknown, or similarities are missing or of the wrong shape.
    """
    if scene_graph == AUTO:
        edges = list(plan_graph(len(imgs), similarity=sim_mat).edges) if len(imgs) > 1 else []
    elif is_retrieval_graph(scene_graph):
        edges = retrieval_edges(len(imgs), scene_graph, sim_mat)
    else:
        edges = named_edges(len(imgs), scene_graph)
    return select_pairs(imgs, edges, prefilter, symmetrize)
