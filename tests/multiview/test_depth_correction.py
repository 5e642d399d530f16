"""Depth maps bent onto sparse depths, with known distortions."""

from __future__ import annotations

import numpy as np
import pytest

from multiview.depth_correction import CorrectedDepths, DepthMap, DepthSamples, FieldConfig, correct_depths
from tests.multiview.two_view_scene import TwoViewScene

NO_MODES = np.zeros((0, 0))


@pytest.fixture(scope="module")
def scene() -> TwoViewScene:
    return TwoViewScene(size=(160, 120), focals=(150.0, 150.0))


def distortion(scene: TwoViewScene, *, scale=2.0, strength=0.3) -> np.ndarray:
    """(H, W) smooth factors."""
    x, y = np.moveaxis(scene.pixels() / np.array(scene.size), -1, 0)
    return scale * np.exp(strength * np.sin(2.0 * x + 1.0) * np.cos(1.5 * y) - strength * x)


def samples_of(scene: TwoViewScene, count=800, *, noise=0.0, outliers=0.0, seed=0) -> DepthSamples:
    rng = np.random.default_rng(seed)
    xy = rng.integers(0, scene.size, (count, 2)).astype(float)
    log_depth = np.log(scene.depth(0, xy)) + noise * rng.normal(size=count)
    wrong = rng.random(count) < outliers
    log_depth[wrong] += rng.uniform(-1.5, 1.5, wrong.sum())
    return DepthSamples(xy, log_depth, np.full(count, max(noise, 0.01)), np.zeros((count, 0)))


def corrected(scene: TwoViewScene, depth: np.ndarray, samples: DepthSamples, **options) -> CorrectedDepths:
    config = FieldConfig(**options) if options else None
    return correct_depths([DepthMap(depth, scene.colors(0))], [samples], NO_MODES, config)


def error(depth: np.ndarray, truth: np.ndarray) -> float:
    return float(np.nanmedian(np.abs(depth / truth - 1)))


def test_exact_samples_undo_a_smooth_distortion(scene):
    truth = scene.depth_map(0)
    found = corrected(scene, truth * distortion(scene), samples_of(scene))
    assert error(truth * distortion(scene, scale=1.0), truth) > 0.1
    assert error(found.depths[0], truth) < 0.01
    assert np.mean(np.abs(found.depths[0] / truth - 1) < 0.02) > 0.9
    assert found.disagreement > 0.05


def test_noise_and_outliers(scene):
    truth = scene.depth_map(0)
    found = corrected(scene, truth * distortion(scene), samples_of(scene, noise=0.1, outliers=0.2))
    assert error(truth * distortion(scene, scale=1.0), truth) > 0.1
    assert error(found.depths[0], truth) < 0.05


def test_a_map_that_agrees_is_left_alone(scene):
    truth = scene.depth_map(0)
    found = corrected(scene, truth, samples_of(scene, noise=0.1))
    assert error(found.depths[0], truth) < 0.015
    assert np.abs(found.depths[0] / truth - 1).max() < 0.1


def test_the_field_jumps_where_things_end(scene):
    truth, colors = scene.depth_map(0), scene.colors(0)
    on_ball = (colors != 200).any(-1)
    depth = truth * np.where(on_ball, 1.08, 0.93)
    bounded = corrected(scene, depth, samples_of(scene)).depths[0]
    unbounded = corrected(scene, depth, samples_of(scene), least_tie=1.0).depths[0]
    off = [float(np.mean(np.abs(found / truth - 1))) for found in (bounded, unbounded)]
    assert off[0] < 0.02
    assert off[0] < 0.9 * off[1]


def test_errors_in_common_are_not_followed(scene):
    truth = scene.depth_map(0)
    samples = samples_of(scene)
    x = samples.xy[:, 0] / scene.size[0]
    tilted = DepthSamples(samples.xy, samples.log_depth - 0.4 * x, samples.deviation, x[:, None])
    maps = [DepthMap(truth, scene.colors(0))]
    trusting = correct_depths(maps, [tilted], np.array([[1e-10]]))
    doubting = correct_depths(maps, [tilted], np.array([[1.0]]))
    followed, kept = (error(d / np.median(d / truth), truth) for d in (trusting.depths[0], doubting.depths[0]))
    assert followed > 0.07
    assert kept < 0.5 * followed
    assert doubting.step[0] == pytest.approx(0.4, abs=0.2)


def test_every_map_gets_its_own_factor(scene):
    truth = [scene.depth_map(i) for i in (0, 1)]
    rng = np.random.default_rng(0)
    samples = []
    for i in (0, 1):
        xy = rng.integers(0, scene.size, (300, 2)).astype(float)
        samples.append(DepthSamples(xy, np.log(scene.depth(i, xy)), np.full(300, 0.01), np.zeros((300, 0))))
    maps = [DepthMap(depth * factor, scene.colors(i)) for i, (depth, factor) in enumerate(zip(truth, (0.2, 7.0)))]
    found = correct_depths(maps, samples, NO_MODES)
    for depth, expected in zip(found.depths, truth):
        assert error(depth, expected) < 0.01


def test_unknown_depth_stays_unknown(scene):
    depth = scene.depth_map(0)
    depth[:20], depth[20:25], depth[25:30] = np.nan, -1.0, np.inf
    samples = samples_of(scene)
    samples.log_depth[::11] = np.nan
    found = corrected(scene, depth, samples).depths[0]
    assert np.isnan(found[:30]).all()
    assert np.isfinite(found[30:]).all()


@pytest.mark.parametrize("size", [(9, 7), (5, 200), (33, 3)])
def test_small_and_narrow_maps(size):
    width, height = size
    depth = np.linspace(1, 2, width * height).reshape(height, width)
    xy = np.array([[0, 0], [width - 1, height - 1], [width / 2, height / 2]])
    samples = DepthSamples(xy, np.log([2.0, 4.0, 3.0]), np.full(3, 0.01), np.zeros((3, 0)))
    found = correct_depths([DepthMap(depth, np.zeros((height, width, 3), np.uint8))], [samples], NO_MODES)
    assert found.depths[0].shape == (height, width)
    assert error(found.depths[0], 2 * depth) < 0.15


def test_a_map_needs_a_sample(scene):
    nothing = DepthSamples(np.zeros((2, 2)), np.full(2, np.nan), np.ones(2), np.zeros((2, 0)))
    with pytest.raises(ValueError, match="at least one sample"):
        corrected(scene, scene.depth_map(0), nothing)
