"""Pictures: sizes, colours, and lines at the right pixels."""

from __future__ import annotations

import numpy as np
import pytest

from multiview.matches import Matches
from multiview.plots import (
    colorize,
    confidence_picture,
    depth_picture,
    draw_matches,
    pair_figure,
    position_colors,
)
from multiview.results import PairResult
from tests.multiview.synthetic_pair import make_pair


@pytest.fixture
def pair() -> PairResult:
    """The synthetic pair."""
    return make_pair()


def test_match_picture(pair):
    picture = pair.matches.plot(*pair.images, limit=50, height=90)
    assert picture.size == (120 + 8 + 75, 90)
    plain = draw_matches(pair.matches.top(0), *pair.images, height=90)
    assert (np.array(picture) != np.array(plain)).any()
    np.testing.assert_array_equal(np.array(plain)[:, :120], pair.images[0].pixels)


def test_match_ends_lie_on_the_points():
    matches = Matches([[20, 10]], [[70, 30]], [1], (80, 40), (80, 40))
    pixels = np.array(matches.plot(height=40, line_width=0)).astype(int)
    changed = np.argwhere(np.abs(pixels - (64, 64, 64)).sum(axis=-1) > 60)
    color = position_colors(matches.xy0, matches.size0)[0]
    ends = np.argwhere((pixels == color).all(axis=-1))
    assert len(changed) >= len(ends) > 2
    left = ends[ends[:, 1] < 80].mean(axis=0)[::-1]
    right = ends[ends[:, 1] > 88].mean(axis=0)[::-1] - (88, 0)
    np.testing.assert_allclose(left, (20, 10), atol=0.6)
    np.testing.assert_allclose(right, (70, 30), atol=0.6)


def test_plot_without_images_and_without_matches(pair):
    assert pair.matches.plot().size[1] == 480
    empty = Matches(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0), (50, 40), (30, 40))
    assert empty.plot(height=40).size == (88, 40)


def test_plot_refuses_other_images(pair):
    with pytest.raises(ValueError, match="image 0"):
        pair.matches.plot(pair.images[1], pair.images[0])


def test_position_colors_differ():
    colors = position_colors(np.array([(0, 0), (99, 0), (50, 79), (500, -5)]), (100, 80))
    assert len(set(colors)) == 4
    assert all(0 <= value <= 255 for color in colors for value in color)


def test_colorize():
    values = np.arange(12.0).reshape(3, 4)
    values[0, 0] = np.nan
    picture = colorize(values)
    assert picture.shape == (3, 4, 3)
    assert picture.dtype == np.uint8
    assert picture[0, 0].tolist() == [24, 24, 24]
    assert (colorize(values, values > 5)[0] == 24).all()
    assert colorize(np.full((2, 2), np.nan)).tolist() == np.full((2, 2, 3), 24).tolist()
    assert colorize(np.ones((2, 2))).shape == (2, 2, 3)


def test_depth_and_confidence_pictures():
    depth = np.linspace(1, 10, 100).reshape(10, 10)
    pixels = np.array(depth_picture(depth)).astype(int)
    assert pixels[0, 1, 0] > pixels[0, 1, 2], "near is red"
    assert np.array(depth_picture(-depth)).max() == 24
    bright = np.array(confidence_picture(depth)).sum(axis=-1)
    assert bright[-1].mean() > bright[0].mean()


@pytest.mark.parametrize("options", [{}, {"own": False}, {"own": False, "pose": False}])
def test_pair_figure(options):
    assert pair_figure(make_pair(**options), height=60).size[1] == 3 * 60 + 2 * 8
