"""Parts of photos are matched where whole photos are not."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mast3r
from mast3r.pairs.closer_look import CloserLookConfig, _turn, part_boxes
from mast3r.pairs.config import PairConfig
from multiview.images import ImageTransform
from multiview.matches import Matches
from tests.mast3r.stand_in_models import PatchModel, texture

SIZE = 480, 360
WHOLE = texture(*SIZE)


def enlarged(box: tuple[int, int, int, int]) -> np.ndarray:
    """A part (left, top, right, bottom) of the picture at the size of the whole."""
    return np.asarray(PIL.Image.fromarray(WHOLE).resize(SIZE, PIL.Image.Resampling.BICUBIC, box=box))


def errors(matches: Matches, box: tuple[int, int, int, int]) -> np.ndarray:
    """Distances in pixels of the second photo."""
    scale = SIZE[0] / (box[2] - box[0])
    return np.linalg.norm((matches.xy0 + 0.5 - box[:2]) * scale - 0.5 - matches.xy1, axis=1)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_photo_of_a_part_is_matched(swapped):
    box = (284, 213, 480, 360)  # the lower right part of 0.4 of the sides
    pair = (WHOLE, enlarged(box))
    options = {"subsample": 2}
    found, without = (
        mast3r.match(
            PatchModel(side=96), *(pair[::-1] if swapped else pair), config=PairConfig(closer_look=closer, **options)
        )
        for closer in (True, False)
    )
    found, without = (m.swapped() if swapped else m for m in (found, without))
    assert (errors(found, box) < 2).mean() > 0.9
    assert (errors(found, box) < 2).sum() > 5 * (errors(without, box) < 2).sum()
    assert found.size0 == found.size1 == SIZE


def test_photos_of_different_things_keep_their_matches():
    other = texture(*SIZE, seed=5)
    found, without = (
        mast3r.match(PatchModel(side=64), WHOLE, other, config=PairConfig(closer_look=closer))
        for closer in (True, False)
    )
    np.testing.assert_array_equal(found.xy0, without.xy0)
    np.testing.assert_array_equal(found.xy1, without.xy1)


def test_photos_that_match_as_a_whole_are_seen_once():
    model = PatchModel(side=96)
    found = mast3r.match(model, WHOLE, WHOLE)
    assert model.encoded <= 2
    assert (np.linalg.norm(found.xy0 - found.xy1, axis=1) < 0.5).mean() > 0.95


@given(
    width=st.integers(16, 5000), height=st.integers(16, 5000), share=st.floats(0.2, 1.0), overlap=st.floats(0.0, 0.6)
)
def test_parts_cover_the_photo(width, height, share, overlap):
    boxes = np.array(part_boxes((width, height), share, overlap))
    sides = boxes[:, 2:] - boxes[:, :2]
    assert (sides == sides[0]).all()
    assert np.abs(sides[0] - share * np.array([width, height])).max() <= 1
    for axis, whole in ((0, width), (1, height)):
        starts = np.unique(boxes[:, axis])
        assert starts[0] == 0
        assert starts[-1] + sides[0, axis] == whole
        assert (np.diff(starts) <= (1 - overlap) * sides[0, axis] + 2).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"convinced": 2},
        {"overlap": 1},
        {"size": 0},
        {"rounds": (((0.5, 0.0),),)},
        {"candidates": 0},
        {"rivals": 0},
    ],
)
def test_options_are_checked(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}.*got"):
        CloserLookConfig(**wrong)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_turned_photo_is_matched(quarters):
    turned = np.ascontiguousarray(np.rot90(WHOLE, quarters))
    found = mast3r.match(PatchModel(side=96), WHOLE, turned, config=PairConfig(subsample=4))
    size = turned.shape[1], turned.shape[0]
    assert found.size1 == size
    x, y = found.xy0.T
    ends = {1: (y, SIZE[0] - 1 - x), 2: (SIZE[0] - 1 - x, SIZE[1] - 1 - y), 3: (SIZE[1] - 1 - y, x)}[quarters]
    assert len(found) > 100
    assert (np.linalg.norm(found.xy1 - np.stack(ends, axis=1), axis=1) < 1).mean() > 0.95


@given(degrees=st.floats(-180, 180), scale=st.floats(0.3, 3))
def test_the_turn_of_matches_is_found(degrees, scale):
    xy = np.random.default_rng(0).uniform(0, 300, (80, 2))
    upright = ImageTransform.rotate(SIZE, degrees).matrix[:2, :2]
    found = Matches(xy, scale * xy @ upright, np.ones(80), SIZE, SIZE)  # as if turned back
    assert abs((_turn(found) - degrees + 180) % 360 - 180) <= 22.5 + 1e-3


@pytest.mark.parametrize("size", [(16, 16), (40, 30), (300, 40), (70, 500)])
def test_small_and_long_photos_are_no_crash(size):
    one, other = texture(*size, seed=1), texture(*size, seed=2)
    found = mast3r.match(PatchModel(side=96), one, other)
    assert found.size0 == found.size1 == size
    inside = (found.xy1 > -0.5).all(1) & (found.xy1 < np.array(size) - 0.5).all(1)
    assert inside.mean() > 0.99
