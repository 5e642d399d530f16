"""Similarity from encoder features alone: rendered views find their partner, laws, batching."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

import mast3r
from dust3r.datasets.synthetic import SceneEngine, SyntheticConfig, TextureConfig
from mast3r.retrieval.model import encode
from mast3r.retrieval.pooled import PooledConfig, image_similarity, token_similarity
from tests.network_goldens import tiny_mast3r

VARIANTS = [PooledConfig(), PooledConfig(pooling="mean")]


def scenes_of_tokens(scenes: int, views: int, tokens: int = 60, width: int = 48) -> list[torch.Tensor]:
    """Views of a scene share half of their features, up to noise."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(scenes, tokens // 2, width, generator=generator)
    noise = torch.randn(scenes, views, tokens, width, generator=generator)
    noise[:, :, : tokens // 2] *= 0.4
    noise[:, :, : tokens // 2] += shared[:, None]
    return list(noise.flatten(0, 1))


@pytest.fixture(scope="module")
def rendered_views():
    """Two views of each of ten rendered scenes, one after the other."""
    textures = TextureConfig(size=128, procedural=24)
    engine = SceneEngine(SyntheticConfig(textures=textures, compile=False, photometric=0.5))
    pair = engine.pairs(5, 10, height=96, width=96, overlap=(0.5, 0.9), n_corres=1, difficulty=0.5)
    return [{"img": view["img"][k : k + 1]} for k in range(10) for view in pair]


@pytest.mark.parametrize("config", VARIANTS, ids=lambda config: config.pooling)
def test_shipped_encoder_finds_rendered_views_of_the_same_scene(rendered_views, config):
    """Far better than chance with words (measured: half of all first places), better than chance with the mean."""
    n = len(rendered_views)
    scores = image_similarity(mast3r.load("small"), rendered_views, config=config)
    partner = np.arange(n) ^ 1
    np.fill_diagonal(scores, -1)
    rank = (scores > scores[np.arange(n), partner][:, None]).sum(axis=1)
    assert (rank == 0).mean() > (5 if config.pooling == "words" else 2) / (n - 1)
    assert rank.mean() < (0.25 if config.pooling == "words" else 0.4) * (n - 1)


@pytest.mark.parametrize("config", VARIANTS, ids=lambda config: config.pooling)
def test_laws(config):
    tokens = scenes_of_tokens(4, 3)
    scores = token_similarity(tokens, config=config)
    assert scores.shape == (12, 12)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, scores.T)
    np.testing.assert_array_equal(np.diag(scores), 1)
    assert scores.max() <= 1 + 1e-6
    np.fill_diagonal(scores, -1)
    assert (scores.argmax(axis=1) // 3 == np.arange(12) // 3).mean() > (0.9 if config.pooling == "words" else 0.5)
    np.testing.assert_array_equal(token_similarity(tokens, config=config), token_similarity(tokens, config=config))


def test_small_collections_work():
    for config in VARIANTS:
        assert token_similarity([torch.randn(1, 8)], config=config).tolist() == [[1]]
        assert np.isfinite(token_similarity([torch.randn(4, 8), torch.randn(2, 8)], config=config)).all()
        assert np.isfinite(token_similarity([torch.zeros(4, 8)] * 2, config=config)).all()


def test_batches_and_orders_of_images_do_not_matter():
    model = tiny_mast3r()
    generator = torch.Generator().manual_seed(0)
    views = [{"img": torch.randn(1, 3, 32, 48 - 16 * (k % 3 == 0), generator=generator)} for k in range(7)]
    done = []
    scores = image_similarity(model, views, batch_size=3, on_step=lambda share, _: done.append(share))
    assert done == pytest.approx(np.arange(1, 8) / 7)
    np.testing.assert_allclose(scores, image_similarity(model, views, batch_size=1), atol=2e-2)
    with torch.inference_mode():
        tokens = [encode(model, view["img"])[0] for view in views]
    np.testing.assert_allclose(scores, token_similarity(tokens), atol=2e-2)


def test_images_are_read(tmp_path):
    model = tiny_mast3r()
    pixels = np.random.default_rng(0).integers(0, 255, (3, 40, 60, 3), dtype=np.uint8)
    assert image_similarity(model, list(pixels)).shape == (3, 3)
    assert image_similarity(model, list(pixels), image_size=32).shape == (3, 3)
    with pytest.raises(ValueError, match="at least one image"):
        image_similarity(model, [])
    with pytest.raises(ValueError, match="tokens"):
        token_similarity([torch.zeros(2, 3), torch.zeros(2, 4)])
    with pytest.raises(ValueError, match="pooling"):
        PooledConfig(pooling="max")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="dim"):
        PooledConfig(dim=0)


def test_time_grows_gently():
    """A few hundred images take seconds, not minutes: two CPU-seconds here, with room for slow machines."""
    tokens = scenes_of_tokens(30, 10, tokens=100, width=64)
    start = time.process_time()
    token_similarity(tokens)
    assert time.process_time() - start < 30
