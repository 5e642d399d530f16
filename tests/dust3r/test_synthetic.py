"""The scene engine: exact geometry, determinism, visibility, overlap and textures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dust3r.datasets.synthetic import SceneEngine, SyntheticConfig, TextureConfig
from dust3r.datasets.synthetic.families import FAMILIES
from dust3r.datasets.synthetic.photometric import jpeg
from dust3r.datasets.synthetic.solids import SLOTS
from dust3r.datasets.synthetic.textures import build_bank, sample

TEXTURES = TextureConfig(size=64, procedural=12)


@pytest.fixture(scope="module")
def engine():
    return SceneEngine(SyntheticConfig(textures=TEXTURES, compile=False))


@pytest.fixture(scope="module")
def views(engine):
    return engine.pairs(3, 12, height=64, width=96, overlap=(0.1, 0.9), n_corres=128)


def only(family: str) -> SceneEngine:
    config = SyntheticConfig(textures=TEXTURES, families=((family, 1.0),), photometric=0.0, compile=False)
    return SceneEngine(config)


def to_camera(points, view):
    R, t = view["camera_pose"][:, :3, :3], view["camera_pose"][:, :3, 3]
    return torch.einsum("bji,bnj->bni", R, points.flatten(1, -2) - t[:, None]).view(points.shape)


def test_same_seed_same_batch(engine, views):
    again = engine.pairs(3, 12, height=64, width=96, overlap=(0.1, 0.9), n_corres=128)
    for view, other in zip(views, again):
        for key, value in view.items():
            assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]


def test_other_seed_other_batch(engine, views):
    other = engine.pairs(4, 12, height=64, width=96)
    assert not torch.equal(views[0]["img"], other[0]["img"])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_one_camera_of_the_turned_pairs_is_rolled(share):
    config = SyntheticConfig(textures=TEXTURES, roll_degrees=0.0, turned=share, compile=False)
    pairs = SceneEngine(config).pairs(5, 12, height=32, width=32)
    # without roll the x axis of a camera is level
    level = torch.stack([view["camera_pose"][:, 2, 0].abs() < 1e-4 for view in pairs])
    assert level.any(dim=0).all()
    assert (~level).any(dim=0).float().mean() == pytest.approx(share)
    assert share == 0 or (~level).any(dim=1).all()  # now the first camera, now the second


@pytest.mark.parametrize("which", [0, 1])
def test_depth_points_and_pose_agree(views, which):
    view = views[which]
    valid = view["valid_mask"]
    camera = to_camera(view["pts3d"], view)
    torch.testing.assert_close(camera[..., 2][valid], view["depthmap"][valid], rtol=1e-4, atol=1e-4)
    pixels = torch.einsum("bij,bhwj->bhwi", view["camera_intrinsics"], camera)
    pixels = pixels[..., :2] / pixels[..., 2:]
    height, width = valid.shape[1:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grid = torch.stack([x, y], -1).expand_as(pixels).float()
    assert (pixels - grid)[valid].abs().max() < 0.02


def test_sky_is_what_is_not_valid(views):
    for view in views:
        assert torch.equal(view["sky_mask"], ~view["valid_mask"])
        assert (view["depthmap"][view["sky_mask"]] == 0).all()


def test_rotations_are_rotations(views):
    for view in views:
        R = view["camera_pose"][:, :3, :3]
        torch.testing.assert_close(R @ R.transpose(1, 2), torch.eye(3).expand_as(R), rtol=0, atol=1e-5)
        assert (torch.linalg.det(R) > 0.99).all()


def test_correspondences_show_the_same_point(views):
    view1, view2 = views
    batch = torch.arange(len(view1["img"]))[:, None]
    p1, p2 = (v["pts3d"][batch, v["corres"][..., 1], v["corres"][..., 0]] for v in views)
    depth = view2["depthmap"][batch, view2["corres"][..., 1], view2["corres"][..., 0]]
    valid = view1["valid_corres"]
    assert valid.float().mean() > 0.5
    # Half a pixel of rounding moves the point by about depth / focal; slanted surfaces stretch that.
    pixel = depth / view2["camera_intrinsics"][:, :1, 0]
    distance = (p1 - p2).norm(dim=-1) / pixel
    assert distance[valid].median() < 1
    assert distance[valid].quantile(0.95) < 8


def test_overlap_follows_the_request(engine):
    near = engine.pairs(5, 16, height=64, width=64, overlap=(0.9, 1.0), n_corres=256)[0]
    far = engine.pairs(5, 16, height=64, width=64, overlap=(0.05, 0.2), n_corres=256)[0]
    assert near["valid_corres"].float().mean() > far["valid_corres"].float().mean()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_renders(family):
    view1, view2 = only(family).pairs(1, 4, height=32, width=48, n_corres=64)
    for view in (view1, view2):
        assert view["img"].shape == (4, 3, 32, 48)
        assert torch.isfinite(view["img"]).all()
        assert view["img"].std(dim=(1, 2, 3)).min() > 0.01, "a picture without content"
        assert view["valid_mask"].flatten(1).any(1).all(), "a view of nothing but sky"


def test_flat_photos_are_related_by_a_homography():
    view1, _view2 = only("planar").pairs(2, 2, height=64, width=64, overlap=(0.5, 0.9), n_corres=256)
    for b in range(2):
        valid = view1["valid_corres"][b]
        normal = torch.linalg.svd(torch.cov(view1["pts3d"][b][view1["valid_mask"][b]].T))[1]
        assert normal[-1] < 1e-6 * normal[0]
        assert valid.any()


@settings(deadline=None, max_examples=8)
@given(st.sampled_from([(32, 32), (32, 64), (64, 32), (48, 80)]), st.integers(0, 2**40))
def test_any_shape_and_seed(engine, shape, seed):
    height, width = shape
    view1, _ = engine.pairs(seed, 2, height=height, width=width, n_corres=16)
    assert view1["img"].shape == (2, 3, height, width)
    assert view1["img"].abs().max() <= 1
    assert view1["corres"].shape == (2, 16, 2)
    assert (view1["corres"] >= 0).all()
    assert (view1["corres"] < torch.tensor([width, height])).all()


def test_wrong_size_is_refused(engine):
    with pytest.raises(ValueError, match="multiples of 16"):
        engine.pairs(0, 1, height=50, width=64)


def test_photos_of_a_folder(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (200, 300, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    plain = build_bank(TextureConfig(size=64, procedural=12))
    train = build_bank(TextureConfig(tmp_path, size=64, procedural=12, split="train"))
    test = build_bank(TextureConfig(tmp_path, size=64, procedural=12, split="test"))
    everything = build_bank(TextureConfig(tmp_path, size=64, procedural=12, split="all"))
    counts = [len(bank.photos) - len(plain.photos) for bank in (train, test, everything)]
    assert counts[0] + counts[1] == counts[2] == 24


@pytest.mark.parametrize("make", [lambda p: p / "missing", lambda p: p])
def test_no_photos_is_one_clear_sentence(tmp_path, make):
    with pytest.raises(ValueError, match="texture folder"):
        build_bank(TextureConfig(make(tmp_path), size=64, procedural=12))


def test_mip_levels_keep_the_mean():
    bank = build_bank(TEXTURES)
    u, v = torch.rand(1, 4096), torch.rand(1, 4096)
    for texture in range(0, 12, 3):
        index = torch.full_like(u, texture, dtype=torch.long)
        fine, coarse = (torch.stack(sample(bank, index, u, v, torch.full_like(u, f))).mean() for f in (1e-4, 10.0))
        assert abs(float(fine - coarse)) < 0.05


def test_jpeg_at_high_quality_changes_little():
    image = torch.rand(2, 3, 32, 32).cumsum(-1) / 32
    close = jpeg(image, torch.full((2, 1, 1, 1), 0.02))
    rough = jpeg(image, torch.full((2, 1, 1, 1), 2.0))
    assert (close - image).abs().mean() < 0.02 < (rough - image).abs().mean()


def test_slots_hold_every_family(engine):
    view1, _ = engine.pairs(11, 24, height=32, width=32)
    assert len(view1["dataset"]) == 24
    assert sum(SLOTS.values()) <= 64, "the slot index rides in six bits of a depth"
