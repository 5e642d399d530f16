"""Stand-ins never hide the best match, whatever the descriptors are."""

from __future__ import annotations

import pytest
import torch

from mast3r import nearest, screen
from mast3r.block_products import RUN, best_of_pairs, dense_nearest
from mast3r.fast_nn import match_reciprocal
from mast3r.nearest import NearestSearch
from mast3r.screen import Screen


def descriptors(kind: str, count: int, channels: int, seed: int) -> torch.Tensor:
    values = torch.randn(count, channels, generator=torch.Generator().manual_seed(seed))
    if kind == "tied":
        return values[torch.arange(count) % 37]
    if kind == "close":  # differences far below the rounding of bfloat16
        return values[:1] + 1e-5 * values
    if kind == "negative":
        return values.abs()
    return {"plain": values, "tiny": values * 1e-30, "large": values * 1e12}[kind]


def best(screened: Screen, queries: torch.Tensor) -> torch.Tensor:
    return best_of_pairs(queries, screened.blocks, screened.pixels, screened.survivors(queries))


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("standins", ["copies", "tiles"])
@pytest.mark.parametrize("kind", ["plain", "tied", "close", "negative", "tiny", "large"])
def test_equals_full_precision(kind: str, standins: str, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "can_screen", lambda maps: native)
    points, queries = descriptors(kind, 4 * RUN, 24, 0), descriptors(kind, 100, 24, 1)
    if kind == "negative":  # every score is below zero
        queries = -queries
    expected = dense_nearest(queries[None], points[None])[0]
    made = Screen.of_points(points) if standins == "copies" else Screen.of_map(points.view(16, 64, 24))
    assert torch.equal(best(made, queries), expected)


@pytest.mark.parametrize("shape", [(48, 64), (33, 50)])
def test_tiles_of_a_smooth_map_exclude_most_blocks(shape: tuple[int, int]) -> None:
    coarse = descriptors("plain", 4 * 5, 8, 0).view(1, 4, 5, 8).permute(0, 3, 1, 2)
    smooth = torch.nn.functional.interpolate(coarse, shape, mode="bicubic")[0].permute(1, 2, 0).contiguous()
    queries = smooth.flatten(0, 1)[::7]
    made = Screen.of_map(smooth)
    assert made.survivors(queries).float().mean() < 0.35
    expected = dense_nearest(queries[None], smooth.flatten(0, 1)[None])[0]
    assert torch.equal(best(made, queries), expected)


def test_queries_that_tiles_do_not_help_get_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    smooth = torch.linspace(-1, 1, 64)[:, None, None] * torch.ones(64, 64, 8)
    noise = descriptors("plain", 64 * 64, 8, 2).view(64, 64, 8)
    half = torch.where(torch.arange(64)[None, :, None] < 32, smooth, noise)
    queries = half[::3, ::3].flatten(0, 1)
    asked: list[int] = []
    dense = NearestSearch._dense
    monkeypatch.setattr(NearestSearch, "_dense", lambda self, q: asked.append(len(q)) or dense(self, q))
    monkeypatch.setattr(nearest, "can_screen", lambda maps: False)
    found = NearestSearch(half[None], prune=True)(queries)
    assert 0 < sum(asked) < len(queries), "some queries are decided by tiles and some are not"
    assert torch.equal(found, dense_nearest(queries[None], half.flatten(0, 1)[None])[0])


def test_parts_of_a_long_list_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "_ROWS", 16)
    points, queries = descriptors("plain", 2 * RUN, 8, 0), descriptors("plain", 50, 8, 1)
    found = NearestSearch(points.view(1, 16, 32, 8), prune=True)(queries)
    assert torch.equal(found, dense_nearest(queries[None], points[None])[0])


@pytest.mark.parametrize("side", ["points", "queries"])
def test_nan_is_refused(side: str) -> None:
    both = {"points": descriptors("plain", RUN, 8, 0), "queries": descriptors("plain", 40, 8, 1)}
    both[side][3, 2] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        best(Screen.of_points(both["points"]), both["queries"])


def test_infinite_descriptors_are_compared_in_full_precision() -> None:
    points, queries = descriptors("plain", RUN, 8, 0).abs(), descriptors("plain", 40, 8, 1).abs()
    points[9] = torch.inf
    assert (best(Screen.of_points(points), queries) == 9).all()


@pytest.mark.parametrize("shape", [(24, 40), (7, 5)])
def test_search_is_the_same_with_and_without(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "MIN_QUERIES_TO_ROUND", 1)
    maps = descriptors("plain", 2 * shape[0] * shape[1], 24, 3).view(2, *shape, 24)
    found = []
    for screened in (False, True):
        monkeypatch.setattr(nearest, "can_screen", lambda maps, screened=screened: screened)
        found.append(match_reciprocal(maps[0], maps[1], start=2))
    assert torch.equal(found[0].index0, found[1].index0)
    assert torch.equal(found[0].index1, found[1].index1)


def test_double_precision_is_not_screened() -> None:
    maps = torch.randn(1, 16, 16, 8, dtype=torch.float64)
    assert not screen.can_screen(maps)
    expected = (maps[0].flatten(0, 1) @ maps[0].flatten(0, 1).T).argmax(1)
    assert torch.equal(NearestSearch(maps)(maps[0].flatten(0, 1)), expected)
