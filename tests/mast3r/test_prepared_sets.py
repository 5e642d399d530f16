"""Matching data sets: golden pair augmentation, correspondences in every layout, training from a folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

import mast3r.training
from dust3r.utils.geometry import geotrf, inv
from mast3r import datasets
from mast3r.datasets import MASt3RBaseStereoViewDataset
from mast3r.datasets.utils.pair_augmentation import turn_view
from mast3r.training import data_sets, get_args_parser, train
from tests.dust3r.test_prepared_sets import check_wall, folders, open_set  # noqa: F401
from tests.prepared_sets import LAYOUTS, shoot


class Given(MASt3RBaseStereoViewDataset):
    """Views that were read elsewhere."""

    def __init__(self, views, **options):
        self.views = views
        super().__init__(**options)

    def __len__(self):
        return 100

    def _get_views(self, idx, resolution, rng):
        return [dict(view) for view in self.views]


def golden_views(fixture, case):
    views = []
    for number in (0, 1):
        raw = {key.rpartition(".")[2]: fixture.tensors[key].numpy() for key in fixture.keys(f"{case}.raw{number}.")}
        if "img" not in raw:
            return None
        image = PILImage.fromarray(raw.pop("img"))
        views.append({**raw, "img": image, "dataset": "golden", "label": case, "instance": str(number)})
    return views


def test_golden_augmentation(golden):
    """Numbers and random draws of the official class; only a pixel on the edge of a match may be another one."""
    fixture = golden("pair_augmentation")
    checked = 0
    for case, info in fixture.meta["cases"].items():
        views = golden_views(fixture, case)
        if views is None:
            continue
        options = dict(info["kwargs"])
        resolution = options["resolution"]
        options["resolution"] = [tuple(r) for r in resolution] if isinstance(resolution[0], list) else tuple(resolution)
        results = Given(views, **options)[info["index"]]
        assert [view["rng"] for view in results] == info["rng_tail"]
        for number, view in enumerate(results):
            prefix = f"{case}.view{number}."
            for key in (
                "true_shape",
                "camera_intrinsics",
                "camera_pose",
                "depthmap",
                "pts3d",
                "valid_mask",
                "sky_mask",
            ):
                fixture.close(np.ascontiguousarray(view[key]), prefix + key)
            pixels = (np.asarray(view["img"]) * 0.5 + 0.5) * 255
            assert np.abs(pixels - fixture.tensors[f"{prefix}img"].numpy()).max() < 2
            same = (view["corres"] == fixture.tensors[f"{prefix}corres"].numpy()).all(axis=1)
            assert same.mean() > 0.95
            np.testing.assert_array_equal(view["valid_corres"], fixture.tensors[f"{prefix}valid_corres"].numpy())
        checked += 1
    if not checked:
        pytest.skip("this copy of the fixture lacks the raw views")


def pixels_of_same_point(view1, view2):
    """Distance in pixels between each match and the projection of its point."""
    valid = view1["valid_corres"]
    (x1, y1), xy2 = view1["corres"][valid].T, view2["corres"][valid]
    points = view1["pts3d"][y1, x1]
    local = geotrf(inv(view2["camera_pose"]), points)
    return np.abs(geotrf(view2["camera_intrinsics"], local, norm=1, ncol=2) - xy2).max(initial=0)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_correspondences(folders, name):  # noqa: F811
    data = open_set(
        datasets, name, folders(name), n_corres=40, nneg=0.5, aug_crop="auto", aug_swap=True, aug_rot90="diff"
    )
    assert len(data) == LAYOUTS[name].length
    for index in {0, len(data) - 1}:
        view1, view2 = data[index]
        for view in (view1, view2):
            assert view["img"].shape == (3, 48, 64)
            assert view["corres"].shape == (40, 2)
            assert view["valid_corres"].sum() > 0
            assert view["is_metric_scale"] is LAYOUTS[name].metric
            assert not view["sky_mask"].any()
            check_wall(view, tolerance=0.06)
        # half a pixel from rounding, and what depth from the nearest pixel adds after a zoom
        assert pixels_of_same_point(view1, view2) < 0.75


def wall_views(sizes=((96, 72), (96, 72))):
    views = []
    for number, size in enumerate(sizes):
        shot = shoot(number, size)
        views.append(
            {
                "img": shot.image, "depthmap": shot.depth, "camera_pose": shot.world_from_cam,
                "camera_intrinsics": shot.K, "dataset": "walls", "label": "wall", "instance": str(number),
            }
        )  # fmt: skip
    return views


@pytest.mark.parametrize("aug_crop", [False, "auto", 30])
@pytest.mark.parametrize("aug_rot90", [False, "same", "diff"])
@pytest.mark.parametrize("sizes", [((96, 72), (96, 72)), ((96, 72), (72, 96)), ((88, 90), (90, 86))])
def test_augmentation_keeps_geometry(aug_crop, aug_rot90, sizes):
    options = {"aug_crop": aug_crop, "aug_rot90": aug_rot90, "n_corres": 30, "nneg": 0.3}
    data = Given(wall_views(sizes), resolution=(48, 32), seed=0, **options)
    for index in range(4):
        view1, view2 = data[index]
        for view in (view1, view2):
            assert view["img"].shape == (3, 32, 48)
            check_wall(view, tolerance=0.03)
        # half a pixel from rounding, and what depth from the nearest pixel adds after a zoom
        assert pixels_of_same_point(view1, view2) < 0.75


def test_four_quarter_turns_are_none():
    view = {**wall_views()[0], "corres": np.array([[3, 5], [90, 70]])}
    turned = turn_view(view, 4)
    for name in ("camera_pose", "camera_intrinsics", "depthmap", "corres"):
        np.testing.assert_allclose(turned[name], view[name], atol=1e-6)
    assert turn_view(turn_view(view, 1), 3)["img"].tobytes() == view["img"].tobytes()
    once = turn_view(view, 1)
    for (x, y), (x1, y1) in zip(view["corres"], once["corres"]):
        assert view["img"].getpixel((int(x), int(y))) == once["img"].getpixel((int(x1), int(y1)))


def test_sky_swap_and_monocular_pairs():
    views = wall_views()
    views[0]["depthmap"] = views[0]["depthmap"].copy()
    views[0]["depthmap"][:20] = -1
    data = Given(views, resolution=(48, 32), seed=0, aug_swap=True)
    first = [data[index][0]["instance"] for index in range(40)]
    assert 8 < first.count("1") < 32
    sky = next(view for view in data[0] if view["instance"] == "0")
    assert sky["sky_mask"].any()
    assert not (sky["sky_mask"] & sky["valid_mask"]).any()
    same = Given(views, resolution=(48, 32), seed=0, aug_monocular=0.3)
    equal = [a["instance"] == b["instance"] for a, b in (same[index] for index in range(60))]
    assert 5 < sum(equal) < 35


def test_wrong_options_are_refused():
    for options, message in (
        ({"aug_rot90": "all"}, "aug_rot90"),
        ({"aug_monocular": 2}, "0..1"),
        ({"nneg": -1}, "0..1"),
        ({"n_corres": -1}, "n_corres"),
        ({"n_tentative_crops": 0}, "n_tentative_crops"),
    ):
        with pytest.raises(ValueError, match=message):
            Given([], resolution=32, **options)


def test_training_reads_prepared_folders(folders, tmp_path):  # noqa: F811
    """The published kind of command line, on two tiny data sets."""
    assert data_sets()["Co3d"] is datasets.Co3d
    common = "resolution=[(64, 64), (64, 48)], transform=ColorJitter, aug_crop='auto', n_corres=24, nneg=0.5"
    expression = (
        f"4 @ Co3d(split='train', ROOT={str(folders('Co3d'))!r}, mask_bg='rand', {common}) "
        f"+ 4 @ Habitat(1_000, split='train', ROOT={str(folders('Habitat'))!r}, {common})"
    )
    flags = [
        "--preset", "tiny", "--device", "cpu", "--output_dir", tmp_path, "--train_dataset", expression,
        "--train_criterion",
        "ConfLoss(Regr3D(L21, norm_mode='?avg_dis'), alpha=0.2) + 0.1*ConfMatchingLoss(MatchingLoss("
        "InfoNCE(mode='proper', temperature=0.05), negatives_padding=0, blocksize=8192), alpha=10.0, confmode='mean')",
        "--test_criterion", "Regr3D(L21, norm_mode='?avg_dis', gt_scale=True, sky_loss_value=0)",
        "--batch_size", 2, "--epochs", 1, "--warmup_epochs", 0, "--num_workers", 0, "--lr", 1e-4,
    ]  # fmt: skip
    state = train(get_args_parser().parse_args([str(flag) for flag in flags]))
    assert state.counters.step == 4
    assert all(torch.isfinite(parameter).all() for parameter in state.model.parameters())
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines
    assert mast3r.training.PRESETS["tiny"]
