"""Loaders of prepared data sets: every layout read from a tiny folder, the common base class, and what is refused."""

from __future__ import annotations

import warnings
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from dust3r import datasets
from dust3r.datasets import BaseStereoViewDataset, get_data_loader
from dust3r.datasets.base.base_stereo_view_dataset import turned_resolution
from tests.prepared_sets import LAYOUTS, SIZE, WALL, shoot, wall_colour


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Name of a data set -> its folder, made when first asked for."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            LAYOUTS[name].make(made[name])
        return made[name]

    return folder


def open_set(module, name, root, **options):
    layout = LAYOUTS[name]
    options = {**(layout.options or {}), "resolution": (64, 48), "seed": 3, **options}
    return getattr(module, name)(*layout.arguments, ROOT=str(root), **options)


def check_wall(view, *, tolerance=0.02):
    """Points lie on the wall and have its colours."""
    points, valid = np.asarray(view["pts3d"]), np.asarray(view["valid_mask"])
    assert valid.any()
    np.testing.assert_allclose(points[valid][:, 2], WALL, atol=tolerance)
    colours = (np.asarray(view["img"]).transpose(1, 2, 0) * 0.5 + 0.5) * 255
    difference = np.abs(colours - wall_colour(points))[valid]
    assert np.quantile(difference, 0.95) < 6


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_read(folders, name):
    data = open_set(datasets, name, folders(name))
    assert len(data) == LAYOUTS[name].length
    assert name in repr(data)
    for index in {0, len(data) - 1}:
        views = data[index]
        assert len(views) == 2
        for number, view in enumerate(views):
            assert view["img"].shape == (3, 48, 64)
            assert view["true_shape"].tolist() == [48, 64]
            assert view["depthmap"].dtype == view["pts3d"].dtype == view["camera_pose"].dtype == np.float32
            assert view["idx"] == (index, 0, number)
            assert view["dataset"] == name
            assert view["label"] in view["instance"].replace(" ", "/") or " " in view["label"]
            check_wall(view, tolerance=0.05 if name == "Habitat" else 0.02)
        if name not in ("Co3d", "WildRGBD"):  # their places are closer together than frames in so short a sequence
            assert views[0]["instance"] != views[1]["instance"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_seeds_repeat(folders, name):
    first, second = (open_set(datasets, name, folders(name), aug_crop=16)[1] for _ in range(2))
    for a, b in zip(first, second):
        assert a["rng"] == b["rng"]
        assert torch.equal(a["img"], b["img"])
    other = open_set(datasets, name, folders(name), aug_crop=16, seed=4)[1]
    assert other[0]["rng"] != first[0]["rng"]


@pytest.mark.parametrize("name", ["Co3d", "WildRGBD"])
def test_background_is_masked_on_request(folders, name):
    root = folders(name)
    known = {
        mask: np.mean([open_set(datasets, name, root, mask_bg=mask)[k][0]["valid_mask"].mean() for k in range(8)])
        for mask in (True, False, "rand")
    }
    assert known[False] == 1
    assert known[True] < 0.75
    assert known[True] < known["rand"] < 1
    with pytest.raises(ValueError, match="mask_bg"):
        open_set(datasets, name, root, mask_bg="sometimes")


def test_background_beyond_200_is_masked(folders):
    root = folders("StaticThings3D")
    far = open_set(datasets, "StaticThings3D", root, mask_bg=False)[0][0]
    near = open_set(datasets, "StaticThings3D", root, mask_bg=True)[0][0]
    assert far["valid_mask"].all()
    assert not near["valid_mask"].all()


def test_frames_without_depth_are_passed_over(folders, tmp_path):
    LAYOUTS["Co3d"].make(tmp_path)
    for number in range(11):
        path = tmp_path / "cup" / "110_1" / "depths" / f"frame{number:06d}.jpg.geometric.png"
        PILImage.fromarray(np.zeros(SIZE[::-1], np.uint16)).save(path)
    views = open_set(datasets, "Co3d", tmp_path)[0]
    assert all(view["instance"].endswith("frame000011") for view in views)
    path = tmp_path / "cup" / "110_1" / "depths" / "frame000011.jpg.geometric.png"
    PILImage.fromarray(np.zeros(SIZE[::-1], np.uint16)).save(path)
    with pytest.raises(ValueError, match="no frame"):
        open_set(datasets, "Co3d", tmp_path)[0]


@pytest.mark.parametrize(
    ("name", "lengths"),
    [("BlendedMVS", {"val": 1, "train": 1, None: 2}), ("MegaDepth", {"val": 1, "train": 2, None: 3})],
)
def test_validation_scenes_are_held_back(folders, name, lengths):
    for split, length in lengths.items():
        assert len(open_set(datasets, name, folders(name), split=split)) == length


def test_habitat_lists_may_name_folders(folders):
    data = open_set(datasets, "Habitat", folders("Habitat"), split="val")
    assert data.places == ["house/a", "house/b"]
    check_wall(data[1][1], tolerance=0.05)


@pytest.mark.parametrize("name", LAYOUTS)
def test_wrong_splits_and_missing_files_are_refused(folders, name, tmp_path):
    with pytest.raises(ValueError, match="split"):
        open_set(datasets, name, folders(name), split="nowhere")
    with pytest.raises(ValueError, match="cannot be read"):
        open_set(datasets, name, tmp_path)


def test_lists_are_never_unpickled(tmp_path):
    np.save(tmp_path / "blendedmvs_pairs.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be read"):
        datasets.BlendedMVS(ROOT=tmp_path, resolution=64)
    np.save(tmp_path / "blendedmvs_pairs.npy", np.zeros((2, 5)))
    with pytest.raises(ValueError, match="seq_low"):
        datasets.BlendedMVS(ROOT=tmp_path, resolution=64)


# --- the base class ---


class Walls(BaseStereoViewDataset):
    """Pairs of exact views of the wall."""

    size = SIZE

    def __len__(self):
        return 6

    def _get_views(self, idx, resolution, rng):
        views = []
        for number in (idx, idx + 1):
            shot = shoot(number, self.size)
            image, depth, K = self._crop_resize_if_necessary(shot.image, shot.depth, shot.K, resolution, rng=rng)
            views.append(
                {
                    "img": image, "depthmap": depth, "camera_pose": shot.world_from_cam, "camera_intrinsics": K,
                    "dataset": "walls", "label": "wall", "instance": str(number),
                }
            )  # fmt: skip
        return views


@pytest.mark.parametrize("size", [(96, 72), (72, 96), (80, 80), (90, 88), (200, 64)])
@pytest.mark.parametrize("aug_crop", [False, 20])
@pytest.mark.parametrize("resolution", [(48, 32), (64, 48), 32])
def test_crops_keep_geometry(size, aug_crop, resolution):
    data = Walls(resolution=resolution, aug_crop=aug_crop, seed=1)
    data.size = size
    container = (resolution, resolution) if isinstance(resolution, int) else resolution
    for index in range(3):
        for view in data[index]:
            assert view["img"].shape == (3, container[1], container[0])
            height, width = view["true_shape"]
            assert sorted((width, height)) == sorted(container)
            check_wall(view)
            K = view["camera_intrinsics"]
            if width < height:  # laid on its side: the rows of K are swapped
                assert K[0, 0] == K[1, 1] == 0
            u, v = np.meshgrid(np.arange(container[0]), np.arange(container[1]))
            local = (view["pts3d"] - view["camera_pose"][:3, 3]) @ view["camera_pose"][:3, :3]
            projected = local @ K.T
            np.testing.assert_allclose(projected[..., 0] / projected[..., 2], u, atol=1e-3)
            np.testing.assert_allclose(projected[..., 1] / projected[..., 2], v, atol=1e-3)


def test_orientation_follows_the_image():
    rng = np.random.default_rng(0)
    assert turned_resolution((100, 50), (64, 48), rng) == (64, 48)
    assert turned_resolution((50, 100), (64, 48), rng) == (48, 64)
    drawn = {turned_resolution((100, 100), (64, 48), rng) for _ in range(30)}
    assert drawn == {(64, 48), (48, 64)}
    assert turned_resolution((100, 100), (64, 48), None) == (64, 48)
    assert turned_resolution((100, 100), (64, 64), rng) == (64, 64)


def test_resolutions():
    data = Walls(resolution=[(64, 48), (64, 32), 64], seed=0)
    assert data.resolutions == [(64, 48), (64, 32), (64, 64)]
    assert data[2, 1][0]["img"].shape == (3, 32, 64)
    for wrong in (None, (32, 64), "64", [(64, 0)], (1.5, 1.0)):
        with pytest.raises((ValueError, TypeError)):
            Walls(resolution=wrong)
    with pytest.raises(IndexError):
        data[6]


def test_without_seed_every_draw_differs_and_workers_too():
    data = Walls(resolution=(48, 32), aug_crop=30)
    torch.manual_seed(0)
    draws = [data[0][0]["rng"] for _ in range(2)]
    assert draws[0] != draws[1]
    data.set_epoch(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on fewer than two cores
        loader = get_data_loader(4 * data, 2, num_workers=2, shuffle=False)
    seen = torch.cat([batch[0]["rng"] for batch in loader])
    assert len(set(seen.tolist())) == len(seen)


def test_batches():
    data = 4 @ Walls(resolution=[(64, 48), (48, 32)], seed=0)
    loader = get_data_loader(data, 2, num_workers=0)
    for view1, view2 in loader:
        assert view1["img"].shape == view2["img"].shape
        assert view1["pts3d"].shape[1:3] == view1["img"].shape[2:]
        assert view1["true_shape"].shape == (2, 2)
        assert isinstance(view1["instance"], list)


def test_views_are_checked():
    class Broken(Walls):
        change = {}

        def _get_views(self, idx, resolution, rng):
            views = super()._get_views(idx, resolution, rng)
            for name, value in self.change.items():
                views[0].pop(name) if value is None else views[0].__setitem__(name, value)
            return views

    data = Broken(resolution=32, seed=0)
    for change, message in (
        ({"label": None}, "label"),
        ({"pts3d": 1}, "already"),
        ({"camera_pose": np.full((4, 4), np.inf)}, "not finite"),
    ):
        data.change = change
        with pytest.raises(ValueError, match=message):
            data[0]
    data.change = {"camera_pose": None}
    assert np.isnan(data[0][0]["camera_pose"]).all()
    assert not data[0][0]["valid_mask"].any()
    shot = shoot(0)
    shot.K[0, 2] = 500
    with pytest.raises(ValueError, match="principal point"):
        data._crop_resize_if_necessary(shot.image, shot.depth, shot.K, (32, 32), info="photo 7")


def test_all_pairs_of_a_sequence_are_used():
    from dust3r.datasets.sequences import _PAIRS

    expected = [(i, j) for i, j in combinations(range(100), 2) if j - i in (5, 10, 15, 20, 25, 30)]
    assert expected == _PAIRS
