"""The measurement on rendered pairs, on predictions whose quality is known."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from mast3r.evaluation import rendered
from mast3r.evaluation.rendered import CHANGES, rendered_table, score_pairs
from mast3r.validation import (
    JudgedPair,
    best_matches,
    evaluate_synthetic,
    judged_pairs,
    pointmap_errors,
    true_targets,
    view_changes,
)
from tests.plane_engine import FIRST_POSE, PlaneEngine, plane_view


class Oracle(nn.Module):
    """Reads the world point off the image: perfect descriptors, and pointmaps in an unknown unit."""

    def __init__(self, *, shift_px: int = 0, stretch: float = 0.0):
        super().__init__()
        self.shift_px, self.stretch = shift_px, stretch
        self.frequencies = 6 * torch.randn(3, 12, generator=torch.Generator().manual_seed(0))

    def forward(self, view1, view2):
        pred1, pred2 = ({"desc": self.describe(view), "pts3d": self.points(view)} for view in (view1, view2))
        pred2["desc"] = pred2["desc"].roll(self.shift_px, dims=2)
        pred2["pts3d_in_other_view"] = pred2.pop("pts3d")
        return pred1, pred2

    def describe(self, view):
        phase = 10 * view["img"].permute(0, 2, 3, 1) @ self.frequencies
        return torch.cat([phase.cos(), phase.sin()], -1) / math.sqrt(12)

    def points(self, view):
        world = 10 * view["img"].permute(0, 2, 3, 1)
        rotation, centre = FIRST_POSE[:3, :3], FIRST_POSE[:3, 3]
        points = 3.0 * (world - centre) @ rotation  # in camera 1's frame, in another unit
        return points * (1 + self.stretch * torch.tensor([0.0, 0.0, 1.0]))


SET = {"seed": 5, "pairs": 6, "height": 64, "width": 96, "overlap": (0.3, 0.9), "batch_size": 4}


def test_perfect_predictions_score_perfectly():
    metrics = evaluate_synthetic(Oracle(), PlaneEngine(), **SET)
    shares = (metrics.within_2px, metrics.within_4px, metrics.within_8px, metrics.within_16px)
    assert shares == (1.0, 1.0, 1.0, 1.0)
    assert metrics.pointmap_median < 1e-5
    assert metrics.pointmap_mean < 1e-5
    assert metrics.pairs == 6
    assert 100 < metrics.points <= 6 * 8 * 12
    assert metrics.as_dict()["within_8px"] == 1.0


def test_shifted_matches_fall_into_the_right_class():
    metrics = evaluate_synthetic(Oracle(shift_px=6), PlaneEngine(), **SET)
    assert metrics.within_4px == 0.0
    assert metrics.within_8px > 0.8  # the roll wraps some points around
    assert metrics.within_16px >= metrics.within_8px


def test_stretched_points_have_the_expected_error():
    metrics = evaluate_synthetic(Oracle(stretch=0.1), PlaneEngine(), **SET)
    assert 0.002 < metrics.pointmap_median < 0.1


def test_set_is_fixed_by_its_seed():
    model = Oracle(shift_px=3)
    first, again = (evaluate_synthetic(model, PlaneEngine(), **SET) for _ in range(2))
    other = evaluate_synthetic(model, PlaneEngine(), **{**SET, "seed": 6})
    assert first == again
    assert first != other


def test_true_targets_lie_on_the_same_world_point():
    view1, view2 = PlaneEngine().pairs(1, 3, height=48, width=64)
    xy, visible = true_targets(view1, view2)
    assert visible.any()
    assert not visible.all()
    for row in range(3):
        x, y = xy[row][visible[row]].round().long().unbind(-1)
        distance = (view2["pts3d"][row, y, x] - view1["pts3d"][row][visible[row]]).norm(dim=-1)
        assert distance.max() < 0.15  # one pixel covers about 0.1


def test_occluded_and_invalid_points_are_not_visible():
    view1, view2 = PlaneEngine().pairs(1, 1, height=32, width=32)
    hidden = {**view2, "depthmap": view2["depthmap"] * 0.9}
    assert not true_targets(view1, hidden)[1].any()
    invalid = {**view1, "valid_mask": torch.zeros_like(view1["valid_mask"])}
    assert not true_targets(invalid, view2)[1].any()


def test_points_behind_the_second_camera_are_not_visible():
    view1, view2 = PlaneEngine().pairs(1, 1, height=32, width=32)
    pose = view2["camera_pose"].clone()
    pose[:, :3, 2] *= -1
    pose[:, :3, 0] *= -1
    assert not true_targets(view1, {**view2, "camera_pose": pose})[1].any()


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_blocks_do_not_change_matches(block):
    generator = torch.Generator().manual_seed(0)
    queries, table = torch.randn(20, 5, generator=generator), torch.randn(6, 9, 5, generator=generator)
    best = best_matches(queries, table, block=block)
    scores = torch.einsum("nd,hwd->nhw", queries, table)
    for n, (x, y) in enumerate(best.long().tolist()):
        assert scores[n, y, x] == pytest.approx(float(scores[n].max()))
    assert best_matches(queries[:0], table).shape == (0, 2)


def test_pointmap_scale_is_shared_by_both_views():
    view1, view2 = PlaneEngine().pairs(2, 2, height=32, width=32)
    oracle = Oracle()
    errors = pointmap_errors(view1, view2, oracle.points(view1), 2 * oracle.points(view2))
    assert len(errors) == 2
    assert all(error.mean() > 0.2 for error in errors)


def test_pairs_without_any_visible_point_give_no_number():
    class Blind(PlaneEngine):
        def pairs(self, *args, **kwargs):
            view1, view2 = super().pairs(*args, **kwargs)
            return {**view1, "valid_mask": torch.zeros_like(view1["valid_mask"])}, view2

    metrics = evaluate_synthetic(Oracle(), Blind(), **SET)
    assert metrics.points == 0
    assert math.isnan(metrics.within_8px)


# --- changes of viewpoint ---


def rolled(pose, degrees):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    roll = torch.eye(4)
    roll[:2, :2] = torch.tensor([[c, -s], [s, c]])
    return pose @ roll


@pytest.mark.parametrize("degrees", [0.0, 30.0, -75.0, 90.0, 180.0])
def test_rolled_camera_turns_all_points_alike(degrees):
    view1 = plane_view(FIRST_POSE[None], 64, 64)
    view2 = plane_view(rolled(FIRST_POSE, degrees)[None], 64, 64)
    (changes,) = view_changes(view1, view2)
    assert len(changes) > 30
    torch.testing.assert_close(changes[:, 0], torch.full_like(changes[:, 0], abs(degrees)), rtol=0, atol=0.1)
    torch.testing.assert_close(changes[:, 1:], torch.ones_like(changes[:, 1:]), rtol=1e-3, atol=1e-3)


def test_approaching_camera_scales_and_a_slanted_one_foreshortens():
    view1 = plane_view(FIRST_POSE[None], 64, 64)
    near = FIRST_POSE.clone()
    near[:3, 3] += 1.9 * near[:3, 2]  # about half way to the plane
    (changes,) = view_changes(view1, plane_view(near[None], 64, 64))
    assert 1.6 < changes[:, 1].median() < 2.4
    turn = torch.eye(4)
    turn[0, 0] = turn[2, 2] = math.cos(1.0)
    turn[0, 2], turn[2, 0] = math.sin(1.0), -math.sin(1.0)
    slanted = FIRST_POSE @ turn
    slanted[:3, 3] -= 4.0 * slanted[:3, 2] - 4.0 * FIRST_POSE[:3, 2]  # around the same point
    (changes,) = view_changes(view1, plane_view(slanted[None], 64, 64))
    assert changes[:, 2].median() > 1.5


def test_changes_belong_to_the_judged_points():
    for pair in judged_pairs(Oracle(), PlaneEngine(), **SET):
        assert pair.changes.shape == (len(pair.errors), 3)


def test_classes_of_changes_share_out_the_points():
    changes = torch.tensor([[5.0, 1.0, 1.0], [30.0, 1.0, 1.1], [50.0, 3.0, 9.0], [180.0 - 1e-3, 0.1, 1.5]])
    pair = JudgedPair(torch.tensor([1.0, 9.0, 7.0, 20.0]), changes, torch.tensor([0.1]))
    score = score_pairs("set", [pair, pair])
    for kind in CHANGES:
        assert sum(c.share for c in score.changes if c.kind == kind) == pytest.approx(1.0)
    turned = {c.low: c for c in score.changes if c.kind == "turned by degrees"}
    assert [turned[low].within_8px for low in (0, 20, 45, 90)] == [1.0, 0.0, 1.0, 0.0]
    assert turned[10].within_8px is None
    assert turned[90].high is None
    text = rendered_table([score])
    assert "set" in text
    assert "turned by degrees 45 to 90" in text
    assert "turned by degrees 90 or more" in text


def test_command_measures_the_shipped_weights(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("dust3r.datasets.synthetic.SceneEngine", PlaneEngine)
    assert rendered.main(["--pairs", "1", "--sets", "near", "--json", str(tmp_path / "n.json")]) == 0
    assert "near, overlap 0.7-0.95" in capsys.readouterr().out
    (numbers,) = json.loads((tmp_path / "n.json").read_text())
    assert len(numbers["changes"]) == 15
    assert rendered.main(["--pairs", "0"]) == 2
    assert "--pairs must be at least 1" in capsys.readouterr().err
