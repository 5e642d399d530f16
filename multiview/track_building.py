"""From matches of many image pairs to keypoints that pairs share and tracks through many images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from multiview.keypoint_graph import KeypointGraph, Observations
from multiview.matches import Matches

PairName = tuple[str, str]
"""Names of image 0 and image 1 of some matches."""


def link_matches(
    names: Sequence[str], matches_by_pair: Mapping[PairName, Matches], *, cell_px: float | None = None
) -> KeypointGraph:
    """Find the keypoints that several pairs have in common.

    Matches of one image that fall into one cell of a grid become one keypoint at their mean.

    Args:
        names: Names of all images.
        matches_by_pair: Matches by (name of image 0, name of image 1); a pair may be given both ways round.
        cell_px: Side of a cell in original pixels. Default: one pixel of the image as the network saw it,
            one original pixel if no network did.

    Returns:
        The keypoints. Images without matches have none.

    Raises:
        ValueError: If a name is unknown, an image is paired with itself, or sizes contradict each other.
    """
    if cell_px is not None and not cell_px > 0:
        raise ValueError(f"cell_px must be positive, got {cell_px}.")
    number = {name: i for i, name in enumerate(names)}
    if len(number) != len(names):
        raise ValueError("Image names must differ from each other.")
    sides: list[list[np.ndarray]] = [[np.zeros((0, 2), np.float32)] for _ in names]
    cells = _cell_sizes(number, matches_by_pair, cell_px)
    for (a, b), matches in matches_by_pair.items():
        sides[number[a]].append(matches.xy0)
        sides[number[b]].append(matches.xy1)
    quantised = [_quantised(np.concatenate(xy), cell) for xy, cell in zip(sides, cells)]
    taken = [0] * len(names)
    pairs: dict[tuple[int, int], list[tuple[np.ndarray, np.ndarray]]] = {}
    for (a, b), matches in matches_by_pair.items():
        ends = []
        for i in (number[a], number[b]):
            ends.append(quantised[i][1][taken[i] : taken[i] + len(matches)])
            taken[i] += len(matches)
        i, j = number[a], number[b]
        edges = np.stack(ends if i < j else ends[::-1], axis=1)
        pairs.setdefault((min(i, j), max(i, j)), []).append((edges, matches.confidence))
    merged = {pair: _one_to_one(found) for pair, found in sorted(pairs.items())}
    return KeypointGraph(
        tuple(names),
        tuple(keypoints for keypoints, _ in quantised),
        {pair: edges for pair, (edges, _) in merged.items()},
        {pair: confidence for pair, (_, confidence) in merged.items()},
    )


def build_tracks(graph: KeypointGraph, *, min_length: int = 2) -> Observations:
    """Join matches to tracks (union-find), none of which shows two keypoints of one image.

    Where joining all matches would do so, they are joined one after the other, most confident first, leaving
    out those that lead to such a track.

    Args:
        graph: Keypoints and matches.
        min_length: Tracks in fewer images are dropped.
    """
    from scipy.sparse import coo_array  # here: importing multiview must not need scipy
    from scipy.sparse.csgraph import connected_components

    start = np.concatenate([[0], np.cumsum([len(xy) for xy in graph.keypoints])]).astype(np.int64)
    total = int(start[-1])
    image = np.repeat(np.arange(len(graph.names)), np.diff(start))
    edges = np.concatenate([np.zeros((0, 2), np.int64), *(m + start[[*pair]] for pair, m in graph.pairs.items())])
    if not len(edges):
        return Observations(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 2), np.float32))
    confidence = np.concatenate([graph.confidence[pair] for pair in graph.pairs])
    links = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(total, total))
    label = np.asarray(connected_components(links, directed=False)[1]).astype(np.int64)
    conflicting = _conflicting(label, image)
    wrong = conflicting[label[edges[:, 0]]]
    order = np.argsort(-confidence[wrong], kind="stable")
    label = _split(label, conflicting, edges[wrong][order], image)
    length = np.bincount(label, minlength=1)
    chosen = np.flatnonzero(length[label] >= max(2, min_length))
    xy = np.concatenate(graph.keypoints)
    track = np.unique(label[chosen], return_inverse=True)[1]
    order = np.argsort(track, kind="stable")
    return Observations(track[order].astype(np.int64), image[chosen][order].astype(np.int64), xy[chosen][order])


def tracks_from_matches(
    names: Sequence[str],
    matches_by_pair: Mapping[PairName, Matches],
    *,
    cell_px: float | None = None,
    min_length: int = 2,
) -> Observations:
    """Tracks through many pairs: `link_matches`, then `build_tracks`."""
    return build_tracks(link_matches(names, matches_by_pair, cell_px=cell_px), min_length=min_length)


def cell_sizes(names: Sequence[str], matches_by_pair: Mapping[PairName, Matches]) -> list[float]:
    """For each image the side of a pixel as the network saw it, in original pixels; 1 if none did.

    Raises:
        ValueError: If a name is unknown, an image is paired with itself, or sizes contradict each other.
    """
    return _cell_sizes({name: i for i, name in enumerate(names)}, matches_by_pair, None)


def _cell_sizes(
    number: Mapping[str, int], matches_by_pair: Mapping[PairName, Matches], cell_px: float | None
) -> list[float]:
    """Side of the cells of each image; checks names and sizes on the way."""
    sizes: dict[str, tuple[int, int]] = {}
    cells = [1.0 if cell_px is None else float(cell_px)] * len(number)
    for pair, matches in matches_by_pair.items():
        if pair[0] == pair[1]:
            raise ValueError(f"Image {pair[0]!r} is matched with itself.")
        sides = ((matches.size0, matches.model_size0), (matches.size1, matches.model_size1))
        for name, (size, model_size) in zip(pair, sides):
            if name not in number:
                raise ValueError(f"The matches of {pair} name image {name!r}, which is not among the images.")
            if sizes.setdefault(name, size) != size:
                raise ValueError(f"Image {name!r} has size {sizes[name]} in one pair and {size} in another.")
            if cell_px is None and model_size is not None:
                # A crop shortens one side only, so the smaller ratio is the scale.
                cells[number[name]] = max(1.0, min(size[0] / model_size[0], size[1] / model_size[1]))
    return cells


def _quantised(xy: np.ndarray, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """(K, 2) keypoints and, for each of the (N, 2) points, the number of its keypoint."""
    if not len(xy):
        return np.zeros((0, 2), np.float32), np.zeros(0, np.int64)
    # Cells start at the image's corner: then the centres of the network's pixels lie amid them.
    place = np.floor((xy.astype(np.float64) + 0.5) / cell).astype(np.int64)
    place -= place.min(axis=0)
    number = place[:, 1] * (place[:, 0].max() + 1) + place[:, 0]
    _, keypoint, count = np.unique(number, return_inverse=True, return_counts=True)
    mean = np.stack([np.bincount(keypoint, weights=xy[:, axis]) for axis in (0, 1)], axis=1) / count[:, None]
    return mean.astype(np.float32), keypoint.astype(np.int64)


def _one_to_one(found: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The most confident matches that use no keypoint twice, in the order of their keypoints."""
    edges = np.concatenate([edges for edges, _ in found])
    confidence = np.concatenate([confidence for _, confidence in found])
    order = np.argsort(-confidence, kind="stable")
    while True:
        best = order
        for side in (0, 1):
            best = best[np.sort(np.unique(edges[best, side], return_index=True)[1])]
        if len(best) == len(order):
            break
        # A match that lost to one which itself lost later may return.
        used = [np.isin(edges[order, side], edges[best, side]) for side in (0, 1)]
        free = order[~(used[0] | used[1])]
        order = np.concatenate([best, free])
    chosen = best[np.argsort(edges[best, 0], kind="stable")]
    return edges[chosen], confidence[chosen]


def _conflicting(label: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Which labels hold two keypoints of one image."""
    conflicting = np.zeros(int(label.max(initial=-1)) + 1, bool)
    images = int(image.max(initial=0)) + 1
    both, count = np.unique(label * images + image, return_counts=True)
    conflicting[both[count > 1] // images] = True
    return conflicting


def _split(label: np.ndarray, conflicting: np.ndarray, edges: np.ndarray, image: np.ndarray) -> np.ndarray:
    """New labels: conflicting ones are built anew by union-find, which refuses unions that would conflict."""
    nodes = np.flatnonzero(conflicting[label])
    position = np.zeros(len(label), np.int64)
    position[nodes] = np.arange(len(nodes))
    parent = list(range(len(nodes)))
    images = [1 << i for i in image[nodes].tolist()]  # one bit per image: sets as integers are the fastest here
    for a, b in position[edges].tolist():
        while parent[a] != a:
            parent[a] = a = parent[parent[a]]
        while parent[b] != b:
            parent[b] = b = parent[parent[b]]
        if a != b and not images[a] & images[b]:
            parent[b] = a
            images[a] |= images[b]
    root = np.array(parent, dtype=np.int64)
    while (root != root[root]).any():
        root = root[root]
    label = label.copy()
    label[nodes] = label.max(initial=-1) + 1 + root
    return np.unique(label, return_inverse=True)[1]
