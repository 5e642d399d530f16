from __future__ import annotations

import numpy as np
import pytest

from mast3r.tiling.matching import Tile, TileMatches, match_coarse_to_fine, merge_duplicates, plan_tiles
from mast3r.utils.coarse_to_fine import WindowConfig
from multiview.images import Image
from multiview.matches import Matches


def coordinate_image(width: int, height: int, offset=(0, 0)) -> Image:
    """Every pixel's colour spells a unique scene coordinate, so matches between crops can be read off."""
    y, x = np.mgrid[:height, :width]
    x, y = x + offset[0], y + offset[1]
    return Image(np.stack([x % 256, y % 256, x // 256 * 16 + y // 256], -1).astype(np.uint8))


def scene_coordinates(pixels: np.ndarray) -> np.ndarray:
    r, g, b = (pixels[..., k].astype(int) for k in range(3))
    return np.stack([b // 16 * 256 + r, b % 16 * 256 + g], -1)


class SceneMatcher:
    """Matches tiles of coordinate images by what they spell, on a grid of every 5th scene pixel."""

    def __init__(self, size=(128, 96)):
        self.size, self.encoded, self.batches = size, 0, []

    def tile_size(self, image_size):
        return self.size if image_size[0] >= image_size[1] else self.size[::-1]

    def encode(self, tiles):
        self.encoded += len(tiles)
        assert len({tile.shape for tile in tiles}) == 1
        return [scene_coordinates(tile) for tile in tiles]

    def match(self, pairs):
        self.batches.append(len(pairs))
        return [self._match(a, b) for a, b in pairs]

    def _match(self, a, b):
        codes = [(m[..., 0] << 16 | m[..., 1]).ravel() for m in (a, b)]
        common, i, j = np.intersect1d(*codes, return_indices=True)
        keep = ((common >> 16) % 5 == 0) & ((common & 0xFFFF) % 5 == 0)
        xy0, xy1 = (
            np.stack([k[keep] % m.shape[1], k[keep] // m.shape[1]], 1).astype(float) for k, m in ((i, a), (j, b))
        )
        return TileMatches(xy0, xy1, confidence=np.linspace(1, 2, len(xy0)))


def coarse(size0, size1, shift, n=300, noise=2.0) -> Matches:
    rng = np.random.default_rng(0)
    xy0 = rng.uniform((0, 0), size0, (n, 2))
    xy1 = xy0 + shift + rng.normal(0, noise, (n, 2))
    keep = ((xy1 >= 0) & (xy1 < size1)).all(1)
    return Matches(xy0[keep], xy1[keep], np.ones(keep.sum()), size0, size1)


@pytest.mark.parametrize("size1", [(640, 480), (400, 500)])
def test_tiles_map_back_exactly(size1):
    image0, image1 = coordinate_image(700, 500), coordinate_image(*size1, offset=(40, 25))
    matcher = SceneMatcher()
    matches = coarse(image0.size, image1.size, (-40, -25))
    found = match_coarse_to_fine(matcher, image0, image1, matches, WindowConfig(size=128), batch_size=4)
    assert len(found) > 500
    assert np.array_equal(found.xy1, found.xy0 - (40, 25))
    assert len(np.unique(found.xy0, axis=0)) == len(np.unique(found.xy1, axis=0)) == len(found)
    assert found.confidence.min() >= 1
    assert (np.diff(found.confidence) <= 0).all()
    assert found.size1 == size1
    assert found.model_size0 == (700, 500)  # one pixel of a tile is one of the photo
    pairs = plan_tiles(matcher, matches, WindowConfig(size=128))
    assert matcher.encoded == len({tile for pair in pairs for tile in pair})
    assert sum(matcher.batches) == len(pairs)
    assert max(matcher.batches) <= 4


def test_tile_border_is_dropped():
    image = coordinate_image(400, 300)
    matches = coarse(image.size, image.size, (0, 0))
    config = WindowConfig(size=128)
    found = match_coarse_to_fine(SceneMatcher(), image, image, matches, config, border=10)
    pairs = plan_tiles(SceneMatcher(), matches, config)
    depth = np.array([[_depth(found.xy0, a.box), _depth(found.xy1, b.box)] for a, b in pairs]).min(1)
    assert (depth.max(0) >= 10).all()


def _depth(xy, box):
    """How deep points lie inside a box, negative outside."""
    return np.minimum(xy - box[:2], np.array(box[2:]) - 1 - xy).min(1)


def test_images_smaller_than_a_tile_are_enlarged():
    tile = Tile(0, (0, 0, 100, 75), (200, 150))
    np.testing.assert_allclose(tile.to_original([[-0.5, -0.5], [199.5, 149.5]]), [[-0.5, -0.5], [99.5, 74.5]])
    pair = plan_tiles(SceneMatcher((512, 384)), coarse((100, 75), (100, 75), (0, 0)), WindowConfig())
    assert [t.box for t in pair[0]] == [(0, 0, 100, 75)] * 2
    assert [t.size for t in pair[0]] == [(512, 384)] * 2


@pytest.mark.parametrize("camera", [None, (500.0, 520.0, 330.0, 260.0)])
@pytest.mark.parametrize("size", [(256, 192), (128, 96), (320, 240)])
def test_tile_pixels_show_what_they_map_to(camera, size):
    tile = Tile(0, (380, 250, 636, 442), size, camera)
    xy = np.stack(np.meshgrid(np.arange(size[0]), np.arange(size[1])), -1).reshape(-1, 2)
    original = tile.to_original(xy)
    y, x = np.mgrid[:500, :700]
    for x0, y0 in [(400, 260), (450, 300), (500, 340), (550, 370)]:
        ramps = [4 * (x - x0), 4 * (y - y0), 0 * x]  # 4 grey levels per pixel
        image = Image(np.stack(ramps, -1).clip(0, 255).astype(np.uint8))
        drawn = tile.draw(image)
        assert drawn.shape == (size[1], size[0], 3)
        expected = 4 * (original - (x0, y0))
        error = drawn.reshape(-1, 3)[:, :2] - expected
        error[(expected < 12) | (expected > 243)] = np.nan
        assert np.nanmax(np.abs(error)) < 3
        assert (np.abs(np.nanmean(error, axis=0)) < 0.7).all()  # half a pixel would be 2


def test_merging_keeps_the_most_confident():
    xy0 = [[1, 1], [1.2, 1], [5, 5], [9, 9]]
    xy1 = [[2, 2], [2, 2], [7, 7], [7.1, 7]]
    merged = merge_duplicates(Matches(xy0, xy1, [1, 3, 2, 4], (20, 20), (20, 20)))
    assert merged.confidence.tolist() == [4, 3]
    assert merged.xy0.tolist() == [[9, 9], pytest.approx([1.2, 1])]


def test_without_enough_coarse_matches_they_are_returned():
    image = coordinate_image(400, 300)
    few = Matches([[5, 5]], [[6, 5]], [1], image.size, image.size)
    assert match_coarse_to_fine(SceneMatcher(), image, image, few) is few


def test_wrong_image_is_reported():
    image = coordinate_image(400, 300)
    with pytest.raises(ValueError, match="coarse matches belong"):
        match_coarse_to_fine(SceneMatcher(), image, image, coarse((200, 100), (400, 300), (0, 0)))
