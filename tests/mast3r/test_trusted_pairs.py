"""Which pairs of a scene are aligned."""

from __future__ import annotations

from itertools import combinations

from mast3r.scenes.trusted_pairs import trusted_pairs


def test_pairs_that_the_photos_do_not_confirm_are_left_out():
    edges = list(combinations(range(8), 2))
    believed = {(i, j): 0.6 if j - i < 3 else 0.1 for i, j in edges}
    kept = trusted_pairs(edges, believed, 0.2)
    assert set(kept) >= {edge for edge in edges if believed[edge] > 0.2}
    assert [edge for edge in kept if believed[edge] < 0.2] == [(0, 3), (0, 7)], "the ends have two good pairs each"
    assert trusted_pairs(edges, believed, 0.0) == tuple(edges)


def test_every_photo_keeps_its_best_pairs():
    edges = list(combinations(range(6), 2))
    believed = {edge: 0.9 if 5 not in edge else 0.01 * edge[0] for edge in edges}
    kept = trusted_pairs(edges, believed, 0.2)
    assert [edge for edge in kept if 5 in edge] == [(2, 5), (3, 5), (4, 5)]


def test_parts_stay_connected():
    first, second = (list(combinations(some, 2)) for some in (range(5), range(5, 10)))
    between = [(i, j) for i in range(5) for j in range(5, 10)]
    believed = {edge: 0.7 for edge in first + second} | {edge: 0.05 for edge in between} | {(2, 8): 0.15}
    kept = trusted_pairs(first + second + between, believed, 0.2)
    assert [edge for edge in kept if edge in between] == [(2, 8)]


def test_pairs_of_which_nothing_is_known_are_trusted():
    edges = list(combinations(range(7), 2))
    assert trusted_pairs(edges, {}, 0.5) == tuple(edges)
    assert (0, 6) in trusted_pairs(edges, {edge: 0.1 for edge in edges if edge != (0, 6)}, 0.5)
    assert trusted_pairs([], {}, 0.5) == ()
