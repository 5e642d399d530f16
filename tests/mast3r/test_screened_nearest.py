"""The screen in half precision never hides the best match, whatever the descriptors are."""

from __future__ import annotations

import pytest
import torch

from mast3r import nearest
from mast3r.fast_nn import match_reciprocal
from mast3r.nearest import NearestSearch, Screen, dense_nearest


def descriptors(kind: str, count: int, channels: int, seed: int) -> torch.Tensor:
    values = torch.randn(count, channels, generator=torch.Generator().manual_seed(seed))
    if kind == "tied":
        return values[torch.arange(count) % 37]
    if kind == "close":  # differences far below the rounding of bfloat16
        return values[:1] + 1e-5 * values
    if kind == "negative":
        return values.abs()
    return {"plain": values, "tiny": values * 1e-30, "large": values * 1e12}[kind]


@pytest.mark.parametrize("kind", ["plain", "tied", "close", "negative", "tiny", "large"])
def test_equals_full_precision(kind: str) -> None:
    points, queries = descriptors(kind, 4 * nearest.RUN, 24, 0), descriptors(kind, 100, 24, 1)
    if kind == "negative":  # every score is below zero
        queries = -queries
    expected = dense_nearest(queries[None], points[None])[0]
    assert torch.equal(Screen.build(points).nearest(queries), expected)


def test_parts_of_a_long_list_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "_SCREEN_ROWS", 16)
    points, queries = descriptors("plain", 2 * nearest.RUN, 8, 0), descriptors("plain", 50, 8, 1)
    assert torch.equal(Screen.build(points).nearest(queries), dense_nearest(queries[None], points[None])[0])


@pytest.mark.parametrize("side", ["points", "queries"])
def test_nan_is_refused(side: str) -> None:
    both = {"points": descriptors("plain", nearest.RUN, 8, 0), "queries": descriptors("plain", 40, 8, 1)}
    both[side][3, 2] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        Screen.build(both["points"]).nearest(both["queries"])


def test_infinite_descriptors_are_compared_in_full_precision() -> None:
    points, queries = descriptors("plain", nearest.RUN, 8, 0).abs(), descriptors("plain", 40, 8, 1).abs()
    points[9] = torch.inf
    assert (Screen.build(points).nearest(queries) == 9).all()


@pytest.mark.parametrize("shape", [(24, 40), (7, 5)])
def test_search_is_the_same_with_and_without(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "MIN_QUERIES_TO_SCREEN", 1)
    maps = descriptors("plain", 2 * shape[0] * shape[1], 24, 3).view(2, *shape, 24)
    found = []
    for screened in (False, True):
        monkeypatch.setattr(nearest, "can_screen", lambda maps, screened=screened: screened)
        found.append(match_reciprocal(maps[0], maps[1], start=2))
    assert torch.equal(found[0].index0, found[1].index0)
    assert torch.equal(found[0].index1, found[1].index1)


def test_double_precision_is_not_screened() -> None:
    maps = torch.randn(1, 16, 16, 8, dtype=torch.float64)
    assert not nearest.can_screen(maps)
    expected = (maps[0].flatten(0, 1) @ maps[0].flatten(0, 1).T).argmax(1)
    assert torch.equal(NearestSearch(maps)(maps[0].flatten(0, 1)), expected)
