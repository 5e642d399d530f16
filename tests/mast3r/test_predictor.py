"""Two images to a `PairResult`: pixels, cameras, pose."""

from __future__ import annotations

import json
import logging
from itertools import pairwise
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mast3r
from dust3r.checkpoint import CheckpointError, save_safetensors
from dust3r.model import AsymmetricCroCo3DStereo
from mast3r.loading import SHIPPED, WeightsCard, card_of
from mast3r.model import AsymmetricMASt3R
from mast3r.pairs.geometry import SeenMap, baseline_length, estimate_camera, estimate_pose
from mast3r.predictor import STEPS, PairConfig, fit_whole_image
from mast3r.training import PRESETS
from multiview.cameras import Camera
from multiview.images import Image, ImageError, ImageTransform, as_image
from multiview.matches import Matches
from multiview.pointmaps import Pointmap
from multiview.poses import Pose
from multiview.results import PairResult
from tests.mast3r.stand_in_models import ColourModel, gradient


@pytest.fixture(scope="module")
def tiny() -> AsymmetricMASt3R:
    torch.manual_seed(0)
    return AsymmetricMASt3R(**PRESETS["tiny"].model).eval()


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# --- pixels ---


@pytest.mark.parametrize("size", [(96, 96), (128, 96), (90, 160), (301, 203)])
@pytest.mark.parametrize("crop", [True, False])
def test_identical_images_match_at_identical_original_pixels(size, crop):
    image = gradient(*size)
    result = mast3r.predict_pair(ColourModel(), image, image.copy(), crop=crop, subsample=4)
    assert len(result.matches) > 20
    np.testing.assert_allclose(result.matches.xy0, result.matches.xy1, atol=0.02)
    np.testing.assert_allclose(result.matches.confidence, 4.0)
    model = result.transforms[0].apply(result.matches.xy0)
    np.testing.assert_allclose(model, np.rint(model), atol=1e-3)  # start points are model pixels
    assert (model >= 3 - 1e-3).all()
    assert (model < np.array(result.pointmaps[0].size) - 3).all()


def test_a_shifted_crop_matches_at_shifted_original_pixels():
    whole = gradient(240, 240)
    shift = np.array([48, 24])
    a, b = whole[:192, :192], whole[shift[1] : shift[1] + 192, shift[0] : shift[0] + 192]
    matches = mast3r.match(ColourModel(), a, b, subsample=4)
    assert len(matches) > 20
    np.testing.assert_allclose(np.median(matches.xy0 - matches.xy1, axis=0), shift, atol=0.75)
    assert np.abs(matches.xy0 - matches.xy1 - shift).max() < 6  # two pixels of the model


def test_each_image_is_encoded_once():
    for sizes in (((96, 96), (96, 96)), ((96, 96), (128, 96))):
        model = ColourModel()
        photos = gradient(*sizes[0]), 255 - gradient(*sizes[1])
        mast3r.predict_pair(model, *photos, config=PairConfig(closer_look=False))
        assert model.encoded == 2


def test_border_matches_are_dropped():
    image = gradient(64, 64)
    near = mast3r.match(ColourModel(), image, image, subsample=1, config=PairConfig(border_px=0))
    far = mast3r.match(ColourModel(), image, image, subsample=1, config=PairConfig(border_px=10))
    assert near.xy0.min() == 0
    assert far.xy0.min() == 10
    assert far.xy0.max() == 53


@given(width=st.integers(40, 900), height=st.integers(40, 900))
@settings(max_examples=30, deadline=None)
def test_fit_whole_image_keeps_borders_and_aspect(width, height):
    image = as_image(np.zeros((height, width, 3), np.uint8))
    if max(width / height, height / width) > 8:
        with pytest.raises(ImageError, match="elongated"):
            fit_whole_image(image, 224)
        return
    pixels, transform = fit_whole_image(image, 224)
    assert pixels.shape[:2] == transform.size_to[::-1]
    assert all(side % 16 == 0 for side in transform.size_to)
    corners = np.array([(-0.5, -0.5), (width - 0.5, height - 0.5)])
    np.testing.assert_allclose(transform.apply(corners), np.array([(0, 0), transform.size_to]) - 0.5, atol=1e-6)
    assert 0.5 < transform.size_to[0] * transform.size_to[1] / 224**2 < 1.5
    stretch = transform.matrix[0, 0] / transform.matrix[1, 1]
    assert 0.8 < stretch < 1.25


@pytest.mark.parametrize(("size", "fitted"), [((400, 300), (256, 192)), ((300, 450), (192, 288)), ((9, 9), None)])
def test_usual_aspects_stay_exact(size, fitted):
    if fitted is None:
        with pytest.raises(ImageError):
            Image(np.zeros((*size, 3), np.uint8))
    else:
        assert fit_whole_image(Image(np.zeros((size[1], size[0], 3), np.uint8)), 224)[1].size_to == fitted


# --- end to end with a real, untrained network ---


@pytest.mark.parametrize("crop", [None, True])
def test_odd_inputs_end_to_end(tiny, tmp_path, crop):
    turned = PIL.Image.fromarray(noise(81, 57))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    sources = [
        noise(67, 93, 1),
        noise(64, 77, 4, seed=1),
        tmp_path / "turned.jpg",
        PIL.Image.new("L", (70, 70)),
    ]
    for a, b in pairwise(sources):
        result = mast3r.predict_pair(tiny, a, b, crop=crop, subsample=4)
        check_result(result, as_image(a), as_image(b))
    assert mast3r.predict_pair(tiny, sources[2], sources[0]).images[0].size == (57, 81)


def check_result(result: PairResult, a: Image, b: Image) -> None:
    assert [image.size for image in result.images] == [a.size, b.size]
    assert set(result.timings) == set(STEPS)
    for i in (0, 1):
        width, height = result.transforms[i].size_to
        assert result.pointmaps[i].points.shape == (height, width, 3)
        assert result.pointmaps[i].frame == "camera 0"
        assert result.cameras[i].focal[0] > 0
        assert result.colors(i).shape == (height, width, 3)
        xy = (result.matches.xy0, result.matches.xy1)[i]
        assert ((xy >= -0.5) & (xy <= np.array(result.images[i].size) - 0.5)).all()
    assert result.own_pointmap1 is not None
    assert result.own_pointmap1.frame == "camera 1"
    assert result.scale_status == "arbitrary"
    assert np.all(np.diff(result.matches.confidence) <= 0)


def test_pointmaps_equal_the_forward_pass(tiny):
    a, b = noise(64, 64), noise(64, 64, seed=3)
    result = mast3r.predict_pair(tiny, a, b)
    views = [{"img": torch.from_numpy(x).permute(2, 0, 1)[None].float() / 127.5 - 1} for x in (a, b)]
    with torch.no_grad():
        pred0, pred1 = tiny(*views)
        swapped, _ = tiny(*views[::-1])
    for found, expected in (
        (result.pointmaps[0], pred0["pts3d"]),
        (result.pointmaps[1], pred1["pts3d_in_other_view"]),
        (result.own_pointmap1, swapped["pts3d"]),
    ):
        assert found is not None
        np.testing.assert_allclose(found.points, expected[0].numpy(), rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(result.confidences[1], pred1["conf"][0].numpy(), rtol=2e-4)


def test_repeating_gives_the_same(tiny):
    a, b = noise(64, 64), noise(80, 64, seed=3)
    first, second = (mast3r.predict_pair(tiny, a, b) for _ in range(2))
    np.testing.assert_array_equal(first.matches.xy1, second.matches.xy1)
    assert first.num_inliers == second.num_inliers


def test_options_choose_matches():
    image = gradient(96, 96)
    model = ColourModel()
    everything = mast3r.match(model, image, image, subsample=4)
    assert len(mast3r.match(model, image, image, subsample=4, max_matches=5)) == 5
    assert len(mast3r.match(model, image, image, subsample=4, max_matches=0)) == 0
    assert len(mast3r.match(model, image, image, subsample=2)) > len(everything)
    assert len(mast3r.match(model, image, image, min_confidence_percentile=50)) <= len(everything)


def test_steps_are_told_in_order(tiny):
    told: list[tuple[float, str]] = []
    mast3r.predict_pair(tiny, noise(64, 64), noise(64, 64), on_step=lambda *step: told.append(step))
    assert [name for _, name in told] == list(STEPS)
    assert [share for share, _ in told] == sorted(share for share, _ in told)


def test_given_intrinsics_are_used(tiny):
    K = np.array([[70.0, 0, 30], [0, 71, 31], [0, 0, 1]])
    result = mast3r.predict_pair(tiny, noise(64, 64), noise(64, 64, seed=1), K0=K)
    np.testing.assert_array_equal(result.cameras[0].K, K)
    assert result.cameras[1].principal_point == (31.5, 31.5)


# --- errors ---


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"subsample": 0}, "subsample"),
        ({"max_matches": -1}, "max_matches"),
        ({"min_confidence_percentile": 101}, "percentile"),
        ({"border_px": -1}, "border_px"),
        ({"image_size": 0}, "image_size"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        PairConfig(**options)


def test_wrong_inputs_are_refused(tiny, tmp_path):
    with pytest.raises(ImageError):
        mast3r.predict_pair(tiny, tmp_path / "missing.jpg", noise(64, 64))
    with pytest.raises(ImageError, match="elongated"):
        mast3r.predict_pair(tiny, noise(640, 40), noise(64, 64))
    with pytest.raises(ValueError, match="at least one patch"):
        mast3r.predict_pair(tiny, noise(64, 64), noise(64, 64), config=PairConfig(image_size=8))
    with pytest.raises(ValueError, match="K must be"):
        mast3r.predict_pair(tiny, noise(64, 64), noise(64, 64), K0=np.ones((3, 3)))


def test_a_model_without_descriptors_is_refused():
    kwargs = {k: v for k, v in PRESETS["tiny"].model.items() if "desc" not in k and k != "two_confs"}
    model = AsymmetricCroCo3DStereo(**{**kwargs, "head_type": "linear", "output_mode": "pts3d"})
    with pytest.raises(ValueError, match="no descriptors"):
        mast3r.match(model, noise(64, 64), noise(64, 64))  # type: ignore[arg-type]


# --- cameras ---


class Ball:
    """A ball of radius 1 before a wall, seen by two cameras."""

    def __init__(self, size=(160, 120), model_size=(80, 60), focal=150.0):
        self.cameras = (Camera.from_focal(focal, *size), Camera.from_focal(1.1 * focal, *size))
        angle = np.radians(-12)
        R = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
        self.pose1 = Pose.from_rt(R, np.array([0.9, 0.1, 0.15]))
        self.transform = ImageTransform.resize(size, model_size)
        self.maps = [self._see(i) for i in (0, 1)]
        own1 = self.maps[1].moved(self.pose1.inverse(), "camera 1")
        self.own = (SeenMap(self.maps[0], self.transform), SeenMap(own1, self.transform))
        self.other = SeenMap(self.maps[1], self.transform)

    def _see(self, i: int) -> Pointmap:
        width, height = self.transform.size_to
        ys, xs = np.mgrid[:height, :width]
        pixels = self.transform.inverse().apply(np.stack([xs, ys], -1))
        pose = (Pose.identity(), self.pose1)[i]
        rays = self.cameras[i].unproject(pixels) @ pose.rotation.T
        wall = (5 - pose.center[2]) / rays[..., 2]
        offset = pose.center - (0.3, 0.1, 3.5)
        a, b, c = (rays**2).sum(-1), rays @ offset, offset @ offset - 1
        root = b**2 - a * c
        ball = np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, np.inf)
        points = pose.center + rays * np.minimum(wall, ball)[..., None]
        return Pointmap(points, np.full((height, width), 2.0), "camera 0")

    def matches(self) -> Matches:
        """Points of image 1 in image 0; some are hidden there, as in life."""
        seen = self.maps[1].points[2:-2:3, 2:-2:3].reshape(-1, 3).astype(float)
        xy0 = self.cameras[0].project(seen)
        xy1 = self.cameras[1].project(self.pose1.inverse().apply(seen))
        inside = (xy0 >= 0).all(1) & (xy0 <= (159, 119)).all(1)
        size = (160, 120)
        return Matches(xy0[inside], xy1[inside], np.ones(inside.sum()), size, size)


@pytest.fixture(scope="module")
def ball() -> Ball:
    return Ball()


def test_focal_lengths_are_in_original_pixels(ball):
    for seen, camera in zip(ball.own, ball.cameras):
        assert estimate_camera(seen).focal[0] == pytest.approx(camera.focal[0], rel=1e-3)


def test_focal_of_stretched_model_pixels():
    camera = Camera.from_focal(200.0, 300, 200)
    transform = ImageTransform.resize((300, 200), (64, 48))  # not the same scale on both axes
    ys, xs = np.mgrid[:48, :64]
    points = camera.unproject(transform.inverse().apply(np.stack([xs, ys], -1)), 1.0 + xs / 64)
    seen = SeenMap(Pointmap(points, np.ones((48, 64)), "camera 0"), transform)
    assert estimate_camera(seen).focal[0] == pytest.approx(200, rel=1e-3)


def test_no_usable_point_gives_the_default_field_of_view(caplog):
    seen = SeenMap(Pointmap(np.full((48, 64, 3), np.nan), np.ones((48, 64)), "x"), ImageTransform.identity((64, 48)))
    with caplog.at_level(logging.WARNING):
        assert estimate_camera(seen).fov_deg[0] == pytest.approx(60)
    assert "focal" in caplog.text


def test_pose_from_matches_has_metric_length(ball):
    found = estimate_pose(ball.matches(), ball.cameras, ball.own, ball.other)
    assert found.pose1 is not None
    assert ball.pose1.relative(found.pose1).angle_deg < 0.2
    np.testing.assert_allclose(found.pose1.center, ball.pose1.center, atol=0.03)
    assert found.num_inliers > 0.9 * len(ball.matches())


def test_pose_from_the_pointmap_where_matches_fail(ball):
    none = ball.matches().top(0)
    found = estimate_pose(none, ball.cameras, ball.own, ball.other)
    assert found.pose1 is not None
    assert found.num_inliers == 0
    np.testing.assert_allclose(found.pose1.world_from_cam, ball.pose1.world_from_cam, atol=1e-2)


def test_baseline_needs_parallax(ball):
    matches = ball.matches()
    R, t = np.eye(3), np.array([1.0, 0, 0])
    same = Matches(matches.xy0, matches.xy0, matches.confidence, matches.size0, matches.size1)
    cameras = (ball.cameras[0], ball.cameras[0])
    assert baseline_length(same, cameras, ball.own, R, t) is None


# --- loading ---


@pytest.fixture
def saved(tiny, tmp_path) -> Path:
    path = tmp_path / "own.safetensors"
    save_safetensors(tiny, path, dtype=torch.float16)
    return path


def test_load_from_a_file(saved, caplog):
    card = {"name": "own", "licence": "Apache-2.0", "scale_status": "metric-predicted"}
    saved.with_suffix(".json").write_text(json.dumps(card))
    with caplog.at_level(logging.INFO, "mast3r"):
        first, second = mast3r.load(saved), mast3r.load(str(saved), dtype=torch.float64)
    assert caplog.text.count("licence: Apache-2.0") == 1
    assert not first.training
    assert next(first.parameters()).dtype == torch.float32
    assert next(second.parameters()).dtype == torch.float64
    assert card_of(first) == WeightsCard("own", "Apache-2.0", "metric-predicted")
    assert mast3r.predict_pair(first, noise(64, 64), noise(64, 64)).scale_status == "metric-predicted"


def test_a_missing_or_damaged_card_is_no_error(saved):
    assert card_of(mast3r.load(saved)) == WeightsCard("own")
    saved.with_suffix(".json").write_text("[1")
    assert card_of(mast3r.load(saved)).licence == "unknown"


def test_half_precision_runs(saved):
    model = mast3r.load(saved, dtype=torch.bfloat16)
    result = mast3r.predict_pair(model, noise(64, 64), noise(64, 64, seed=2))
    assert result.pointmaps[0].points.dtype == np.float32


def test_missing_weights_are_told(tmp_path):
    with pytest.raises(CheckpointError, match="no weights"):
        mast3r.load(tmp_path / "nothing.safetensors")


def test_missing_shipped_weights_are_told(monkeypatch):
    monkeypatch.setitem(SHIPPED, "small", "no-such-weights")
    with pytest.raises(CheckpointError, match="missing from this copy"):
        mast3r.load("small")


def test_shipped_weights():
    path = Path(mast3r.__file__).parent / "weights" / f"{SHIPPED['small']}.safetensors"
    if not path.exists():
        pytest.skip("the shipped checkpoint is not part of this checkout")
    assert path.stat().st_size <= 40e6
    model = mast3r.load()
    card = card_of(model)
    assert card.licence == "Apache-2.0"
    assert card.scale_status == "metric-predicted"
    result = mast3r.predict_pair(model, noise(320, 240), noise(320, 240))
    assert result.pointmaps[0].size == (256, 192)


# --- the official way ---


def test_official_snippet(tiny, tmp_path):
    from dust3r.inference import inference
    from dust3r.utils.image import load_images
    from mast3r.fast_nn import fast_reciprocal_NNs
    from mast3r.image_pairs import make_pairs

    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for i, path in enumerate(paths):
        PIL.Image.fromarray(noise(90, 70, seed=i)).save(path)
    images = load_images([str(path) for path in paths], size=64)
    output = inference(make_pairs(images, symmetrize=False), tiny, "cpu", batch_size=1, verbose=False)
    assert set(output) == {"view1", "view2", "pred1", "pred2", "loss"}
    desc1, desc2 = (output[name]["desc"].squeeze(0).detach() for name in ("pred1", "pred2"))
    xy1, xy2 = fast_reciprocal_NNs(desc1, desc2, subsample_or_initxy1=8, device="cpu", dist="dot", block_size=2**13)
    assert xy1.shape == xy2.shape
    assert xy1.shape[1] == 2
    # make_pairs puts the later image first.
    cropped = mast3r.predict_pair(tiny, paths[1], paths[0], crop=True)
    np.testing.assert_allclose(cropped.pointmaps[0].points, output["pred1"]["pts3d"][0].numpy(), rtol=2e-4, atol=1e-5)
