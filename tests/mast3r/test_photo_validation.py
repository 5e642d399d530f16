"""The measurement on real photos, on images whose geometry is known."""

from __future__ import annotations

import json

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn

from mast3r.photo_validation import evaluate_photos, read_pairs

SIZE = 224
SHIFT = 20  # image 1 shows what lies so many pixels further right


class Nearest(nn.Module):
    """Descriptors from colours, which are unique in the test images."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, view1, view2):
        maps = [
            nn.functional.pad(view["img"].permute(0, 2, 3, 1), (0, 1), value=1.0) for view in (view1, view2)
        ]
        return tuple({"desc": nn.functional.normalize(m, dim=-1)} for m in maps)


def scenery() -> np.ndarray:
    """(H, W + SHIFT, 3): red tells the column, green the row."""
    columns, rows = np.meshgrid(np.arange(SIZE + SHIFT), np.arange(SIZE))
    return np.stack([columns, rows, np.full_like(rows, 128)], -1).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    whole = scenery()
    scene = tmp_path / "scene"
    scene.mkdir()
    PIL.Image.fromarray(whole[:, :SIZE]).save(scene / "a.png")
    PIL.Image.fromarray(whole[:, SHIFT:]).save(scene / "b.png")
    entry = {"image0": "a.png", "image1": "b.png"}
    homography = {**entry, "H_0to1": [[1, 0, -SHIFT], [0, 1, 0], [0, 0, 1]]}
    xy = [[x, y, x - SHIFT, y] for x in range(30, 200, 17) for y in range(10, 200, 23)]
    K = [[200, 0, 112], [0, 200, 112], [0, 0, 1]]
    T = np.eye(4)
    T[0, 3] = -1.0  # moving along x keeps rows: the epipolar lines
    posed = {**entry, "K0": K, "K1": K, "T_0to1": T.tolist()}
    pairs = [homography, {**entry, "corrs": xy}, posed, entry]
    (scene / "gt.json").write_text(json.dumps({"gt_confidence": "high", "pairs": pairs}))
    return tmp_path


def test_perfect_matches_score_perfectly(folder):
    metrics = evaluate_photos(Nearest(), read_pairs(folder))
    assert metrics.pairs == 3
    assert metrics.homography_within_8px == 1.0
    assert metrics.points_within_8px == 1.0
    assert metrics.epipolar_precision is not None
    assert metrics.epipolar_precision > 0.9
    assert metrics.matches > 100


def test_scene_folder_itself_and_limits(folder):
    assert len(read_pairs(folder / "scene")) == 3
    assert len(read_pairs(folder, per_scene=2)) == 2
    with pytest.raises(ValueError, match="no pair"):
        read_pairs(folder, confidence=("low",))


def test_what_is_unknown_is_left_out(folder):
    pairs = [pair for pair in read_pairs(folder) if pair.H_0to1 is not None]
    metrics = evaluate_photos(Nearest(), pairs).as_dict()
    assert set(metrics) == {"homography_within_8px", "matches", "pairs"}


def test_points_outside_the_crop_are_not_counted(folder):
    pair = next(pair for pair in read_pairs(folder) if pair.points is not None)
    assert pair.points is not None
    far = type(pair)(pair.image0, pair.image1, points=pair.points + 1000.0)
    assert evaluate_photos(Nearest(), [far]).points_within_8px is None
