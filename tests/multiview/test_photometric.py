"""Matches placed by the photos, and what their neighbours say of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multiview.images import Image
from multiview.local_affine import local_affines
from multiview.matches import Matches
from multiview.photometric import (
    GreyPyramid,
    MatchPlacer,
    PhotometricConfig,
    checked_matches,
    place_matches,
    textured_points,
)

SIZE = 320, 240


def picture(xy: np.ndarray, seed: int = 0) -> np.ndarray:
    """Grey values 0..255 of an endless pattern at (..., 2) places: waves of 5 to 60 pixels length."""
    rng = np.random.default_rng(seed)
    angle, length = rng.uniform(0, np.pi, 60), np.exp(rng.uniform(np.log(5), np.log(60), 60))
    waves = 2 * np.pi / length * np.stack([np.cos(angle), np.sin(angle)])
    values = np.cos(xy @ waves + rng.uniform(0, 7, 60)).mean(-1)
    return np.clip(127 + 400 * values, 0, 255)


def grid(size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(size[0]), np.arange(size[1])), axis=-1).astype(float)


def photo(values: np.ndarray) -> Image:
    return Image(np.repeat(np.rint(values)[..., None].clip(0, 255).astype(np.uint8), 3, axis=2))


def two_photos(A: np.ndarray, t: np.ndarray, gain: float = 1.0, bias: float = 0.0) -> tuple[Image, Image]:
    """Pixel p of the first shows what pixel A p + t of the second shows."""
    back = (grid() - t) @ np.linalg.inv(A).T
    return photo(picture(grid())), photo(gain * picture(back) + bias)


def matched(A: np.ndarray, t: np.ndarray, error: float, count: int = 200, seed: int = 1) -> Matches:
    """Matches of such photos, off by `error` pixels in image 1."""
    rng = np.random.default_rng(seed)
    xy0 = rng.uniform((40, 40), (280, 200), (count, 2))
    xy1 = xy0 @ A.T + t
    angle = rng.uniform(0, 2 * np.pi, count)
    xy1 = xy1 + error * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return Matches(xy0, xy1, np.ones(count), SIZE, SIZE, (80, 60), (80, 60))


def off(matches: Matches, A: np.ndarray, t: np.ndarray) -> np.ndarray:
    return np.linalg.norm(matches.xy0 @ A.T + t - matches.xy1, axis=1)


@settings(max_examples=12, deadline=None)
@given(
    turn=st.floats(-0.5, 0.5),
    zoom=st.floats(0.8, 1.25),
    gain=st.floats(0.6, 1.0),
    bias=st.floats(0, 30),
    error=st.floats(0, 3.5),
)
def test_matches_end_where_the_photos_agree(turn, zoom, gain, bias, error):
    A = zoom * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    t = np.array([160, 120]) - A @ np.array([160, 120]) + (4.3, -2.6)
    placed = place_matches(matched(A, t, error), *two_photos(A, t, gain, bias))
    assert placed.checked.mean() > 0.8
    assert np.quantile(off(placed.matches, A, t)[placed.checked], 0.9) < 0.1


def test_wrong_matches_are_dropped_and_right_ones_stay():
    A, t = np.eye(2), np.array([7.4, 3.2])
    right = matched(A, t, 2.0)
    wrong = np.arange(len(right)) % 4 == 0
    xy1 = right.xy1.copy()
    xy1[wrong] = np.random.default_rng(5).uniform((40, 40), (280, 200), (wrong.sum(), 2))
    matches = Matches(right.xy0, xy1, right.confidence, SIZE, SIZE, (80, 60), (80, 60))
    kept = checked_matches(matches, *two_photos(A, t))
    assert (off(kept, A, t) < 0.1).mean() > 0.98
    assert len(kept) > 0.9 * (~wrong).sum()


def test_where_nothing_looks_alike_all_matches_stay_as_they_are():
    A, t = np.eye(2), np.zeros(2)
    matches = matched(A, t, 1.0)
    unlike = photo(picture(grid(), seed=9))
    kept = checked_matches(matches, photo(picture(grid())), unlike)
    assert len(kept) == len(matches)
    moved = np.linalg.norm(kept.xy1 - matches.xy1, axis=1)
    assert (moved == 0).mean() > 0.8


def test_photos_without_contrast_move_nothing():
    matches = matched(np.eye(2), np.zeros(2), 1.0)
    flat = photo(np.full((SIZE[1], SIZE[0]), 90.0))
    placed = place_matches(matches, flat, flat)
    np.testing.assert_array_equal(placed.matches.xy1, matches.xy1)
    assert placed.checked.all()  # by their neighbours alone
    assert (placed.deviation > 1).all()


def test_along_an_edge_nothing_moves():
    """Stripes tell one coordinate only; a match that would slide along them stays."""
    matches = matched(np.eye(2), np.zeros(2), 0.0)
    stripes = photo(127 + 100 * np.sin(grid()[..., 0] / 3))
    placed = place_matches(matches, stripes, stripes)
    np.testing.assert_array_equal(placed.matches.xy1, matches.xy1)


def test_photos_of_unlike_size():
    """The second photo is a small copy of the first."""
    values = picture(grid())
    small = values.reshape(SIZE[1] // 2, 2, SIZE[0] // 2, 2).mean(axis=(1, 3))
    first = matched(np.eye(2), np.zeros(2), 1.0)
    half = (first.xy1 + 0.5) / 2 - 0.5
    matches = Matches(first.xy0, half, first.confidence, SIZE, (160, 120), (80, 60), (80, 60))
    placed = place_matches(matches, photo(values), photo(small))
    assert placed.checked.mean() > 0.8
    error = np.linalg.norm((first.xy0 + 0.5) / 2 - 0.5 - placed.matches.xy1, axis=1)[placed.checked]
    assert np.quantile(error, 0.9) < 0.25


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_few_matches(count):
    matches = matched(np.eye(2), np.zeros(2), 0.5).filter(np.arange(count))
    kept = checked_matches(matches, *two_photos(np.eye(2), np.zeros(2)))
    assert len(kept) == count
    assert np.isfinite(kept.xy1).all()


def test_options_and_sizes_are_checked():
    with pytest.raises(ValueError, match="radius must be at least 2"):
        PhotometricConfig(radius=1)
    with pytest.raises(ValueError, match="min_support in"):
        PhotometricConfig(min_support=2)
    a, _ = two_photos(np.eye(2), np.zeros(2))
    with pytest.raises(ValueError, match="image1 must have the size"):
        place_matches(matched(np.eye(2), np.zeros(2), 0), a, photo(np.zeros((50, 60))))


# --- neighbourhoods ---


def test_an_affine_map_is_found_among_outliers():
    A, t = np.array([[1.1, 0.2], [-0.3, 0.9]]), np.array([5.0, -8.0])
    xy0 = np.random.default_rng(0).uniform(0, 300, (400, 2))
    xy1 = xy0 @ A.T + t
    wrong = np.arange(400) % 4 == 1
    xy1[wrong] += np.random.default_rng(1).uniform(30, 90, (100, 2))
    around = local_affines(xy0, xy1)
    right = ~wrong
    assert np.quantile(np.abs(around.A - A)[right].max(axis=(1, 2)), 0.9) < 0.02
    assert np.quantile(np.linalg.norm(around.xy1[right] - xy1[right], axis=1), 0.9) < 0.5
    assert np.median(around.support[right]) > 0.6
    chance = local_affines(xy0, np.random.default_rng(2).uniform(0, 300, (400, 2)))
    assert np.median(chance.support) < 0.1


def test_equal_points_have_an_affine_map_too():
    around = local_affines(np.ones((30, 2)), np.ones((30, 2)))
    assert np.isfinite(around.A).all()
    np.testing.assert_allclose(around.xy1, 1, atol=1e-6)


@pytest.mark.parametrize("points", [None, 0, 70])
def test_neighbourhoods_are_the_same_however_many_are_fitted_at_once(points, monkeypatch):
    random = np.random.default_rng(4)
    xy0, xy1 = random.uniform(0, 300, (2, 100, 2))
    at = None if points is None else random.uniform(0, 300, (points, 2))
    together = local_affines(xy0, xy1, at=at)
    monkeypatch.setattr("multiview.local_affine._AT_ONCE", 33)
    for name, expected in vars(together).items():
        np.testing.assert_array_equal(getattr(local_affines(xy0, xy1, at=at), name), expected)


def test_points_are_carried_to_where_the_photos_agree():
    A, t = 1.1 * np.array([[0.98, -0.2], [0.2, 0.98]]), np.array([20.0, -40.0])
    placer = MatchPlacer(*two_photos(A, t, gain=0.8, bias=10))
    points = np.random.default_rng(3).uniform((60, 60), (260, 180), (50, 2))
    carried = placer.carry(matched(A, t, 3.0), points)
    assert len(carried) > 40
    np.testing.assert_allclose(carried.xy0, points[carried.index0], atol=1e-4)
    assert np.quantile(off(carried, A, t), 0.9) < 0.1
    back = placer.swapped().carry(matched(A, t, 3.0).swapped(), carried.xy1)
    np.testing.assert_allclose(back.xy1, carried.xy0[back.index0], atol=0.2)


def test_points_far_from_all_matches_or_without_texture_are_not_carried():
    A, t = np.eye(2), np.array([5.0, 3.0])
    placer = MatchPlacer(*two_photos(A, t))
    corner = matched(A, t, 1.0)
    corner = corner.filter(np.asarray((corner.xy0 < (100, 90)).all(1)))
    assert len(placer.carry(corner, np.array([[290.0, 210.0], [70.0, 70.0]]))) == 1
    grey = Image(np.full((SIZE[1], SIZE[0], 3), 90, np.uint8))
    assert len(MatchPlacer(grey, grey).carry(matched(A, t, 1.0), np.array([[100.0, 100.0]]))) == 0
    assert len(placer.carry(corner.filter(np.arange(len(corner)) < 2), np.array([[70.0, 70.0]]))) == 0


@pytest.mark.parametrize("pixel", [1.0, 8.0])
def test_textured_points_lie_on_texture_one_in_a_cell(pixel):
    values = np.full((SIZE[1], SIZE[0]), 120.0)
    corners = np.array([[60, 50], [150, 90], [250, 180]])
    for x, y in corners:
        values[y : y + 24, x : x + 24] = 220
    found = textured_points(GreyPyramid(photo(values)), 40.0, pixel=pixel)
    assert 3 <= len(found) <= 12
    all_corners = np.concatenate([corners + d for d in ([0, 0], [24, 0], [0, 24], [24, 24])])
    distance = np.linalg.norm(found[:, None] - all_corners, axis=-1).min(1)
    assert distance.max() < 6 * max(1, pixel / 4)
    cells = {tuple(cell) for cell in np.floor(found / 40).astype(int)}
    assert len(cells) == len(found)
    assert not len(textured_points(GreyPyramid(photo(np.full((20, 20), 80.0))), 40.0))
