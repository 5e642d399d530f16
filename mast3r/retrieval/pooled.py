"""Image similarity from encoder features alone: nothing to download, works with every model.

Features are decorrelated by what the images themselves show (PCA). Then either visual words are learned from them
and images compared by the match kernel of `mast3r.retrieval.asmk`, or features are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dust3r.model import AsymmetricCroCo3DStereo
from dust3r.utils.image import ImgNorm
from mast3r.predictor import fit_whole_image
from mast3r.retrieval.asmk import AsmkConfig, asmk_similarity
from mast3r.retrieval.codebook import Codebook
from mast3r.retrieval.model import encode
from mast3r.retrieval.whitening import pca_whitening
from multiview.images import ImageSource, as_image

OnStep = Callable[[float, str], None]

_PCA_IMAGES = 64  # images from which the principal directions are learned
_TRAINING_TOKENS = 100_000  # features from which words are learned
_TOKENS_PER_WORD = 8
_ROUNDS = 6


@dataclass(frozen=True)
class PooledConfig:
    """How features become similarities.

    The defaults ranked best, with the small model, on the 236 posed photos of twelve real scenes: 97 % of an image's
    five nearest are of its scene, and among them are 82 % of the overlapping views the best five would hold; averaging
    gives 95 % and 77 %, one word per fully whitened feature 94 % and 80 % (`mast3r evaluate retrieval`).

    Attributes:
        pooling: "words": match kernel on visual words learned from the images; "mean": cosine of averaged features.
        dim: Principal directions kept.
        shrinkage: 0 only rotates features, 1 scales all directions to unit variance.
        words: Largest number of visual words; fewer if there are few features.
        words_per_feature: Nearest words each feature goes to.
        seed: Seed of the words.
    """

    pooling: Literal["words", "mean"] = "words"
    dim: int = 128
    shrinkage: float = 0.5
    words: int = 1024
    words_per_feature: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pooling not in ("words", "mean"):
            raise ValueError(f"pooling must be 'words' or 'mean', got {self.pooling!r}.")
        if min(self.dim, self.words, self.words_per_feature) < 1 or not 0 <= self.shrinkage <= 1:
            raise ValueError(f"dim, words and words_per_feature must be positive, shrinkage in 0..1, got {self}.")


@dataclass(frozen=True, eq=False)
class _Projection:
    """Decorrelated unit-length features."""

    mean: Tensor  # (1, C)
    matrix: Tensor  # (C, d)

    @classmethod
    def learn(cls, tokens: Sequence[Tensor], config: PooledConfig) -> _Projection:
        mean, matrix = pca_whitening(torch.cat([x.cpu() for x in tokens]), config.shrinkage)
        device = tokens[0].device
        return cls(mean.float().to(device), matrix[:, : config.dim].float().to(device))

    def __call__(self, tokens: Tensor) -> Tensor:
        """(N, C) -> (N, d)."""
        return F.normalize((tokens.float() - self.mean) @ self.matrix, dim=-1)


def image_similarity(
    model: AsymmetricCroCo3DStereo,
    images: Sequence[ImageSource | Mapping[str, Any]],
    *,
    config: PooledConfig | None = None,
    image_size: int | None = None,
    batch_size: int = 8,
    on_step: OnStep | None = None,
) -> np.ndarray:
    """How alike the images of a collection are.

    Args:
        model: Any two-view network; only its encoder runs.
        images: Paths, PIL images, arrays, or views with `img` (1, 3, H, W) in [-1, 1].
        config: How features become similarities.
        image_size: Size at which images are read; default that of the model's training.
        batch_size: Images encoded together where their sizes agree.
        on_step: Told the share of images that are done.

    Returns:
        (n, n) float32, symmetric, 1 on the diagonal, larger is more alike.

    Raises:
        ImageError: If an image cannot be read.
        ValueError: If there is no image.
    """
    config = config or PooledConfig()
    n = len(images)
    if n == 0:
        raise ValueError("image_similarity needs at least one image, got none.")
    done = 0

    def encoded(rows: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        nonlocal done
        for row, tokens in _encode_all(model, images, rows, image_size, batch_size):
            done += 1
            if on_step is not None:
                on_step(done / n, "similarity")
            yield row, tokens

    sample = np.unique(np.linspace(0, n - 1, min(n, _PCA_IMAGES)).astype(int)).tolist()
    first = dict(encoded(sample))
    projection = _Projection.learn(list(first.values()), config)
    features = {row: projection(tokens).cpu() for row, tokens in first.items()}
    rest = sorted(set(range(n)) - set(sample))
    features.update((row, projection(tokens).cpu()) for row, tokens in encoded(rest))
    device = next(model.parameters()).device
    return _compare([features[row].to(device) for row in range(n)], config)


def token_similarity(tokens: Sequence[Tensor], *, config: PooledConfig | None = None) -> np.ndarray:
    """How alike images are, from encoder features that are already there.

    Args:
        tokens: Per image its encoder features (N_i, C) on one device.
        config: How features become similarities.

    Returns:
        See `image_similarity`.

    Raises:
        ValueError: If there is no image or features are no matrices of one width.
    """
    config = config or PooledConfig()
    if len({x.shape[-1] for x in tokens}) != 1 or any(x.ndim != 2 or not len(x) for x in tokens):
        raise ValueError(f"tokens must be (N, C) matrices of one width, got {[tuple(x.shape) for x in tokens][:3]}.")
    step = -(-len(tokens) // _PCA_IMAGES)
    projection = _Projection.learn(tokens[::step], config)
    return _compare([projection(x) for x in tokens], config)


def _compare(features: Sequence[Tensor], config: PooledConfig) -> np.ndarray:
    """(n, n) float32 similarities of images with features (N_i, d) of unit length."""
    if config.pooling == "mean":
        pooled = F.normalize(torch.stack([x.mean(dim=0) for x in features]).double(), dim=-1)
        scores = (pooled @ pooled.T).cpu().numpy()
    else:
        book = _learn_words(features, config)
        count = min(config.words_per_feature, len(book))
        scores = asmk_similarity(features, book, AsmkConfig(database_words=count, query_words=count))
    scores = (scores + scores.T) / 2
    np.fill_diagonal(scores, 1)
    return scores.astype(np.float32)


def _learn_words(features: Sequence[Tensor], config: PooledConfig) -> Codebook:
    total = sum(len(x) for x in features)
    step = -(-total // _TRAINING_TOKENS)
    sample = torch.cat([x[k % step :: step] for k, x in enumerate(features)])
    size = max(1, min(config.words, len(sample) // _TOKENS_PER_WORD))
    return Codebook.train(sample, size, iterations=_ROUNDS, seed=config.seed)


@torch.inference_mode()
def _encode_all(
    model: AsymmetricCroCo3DStereo,
    images: Sequence[ImageSource | Mapping[str, Any]],
    rows: Sequence[int],
    image_size: int | None,
    batch_size: int,
) -> Iterator[tuple[int, Tensor]]:
    """Encoder features (N, C) of the images at `rows`; neighbours of one size share a batch."""
    weight = next(model.parameters())
    for start in range(0, len(rows), batch_size):
        batch = [(row, _tensor(model, images[row], image_size)) for row in rows[start : start + batch_size]]
        for _, group in groupby(batch, key=lambda item: item[1].shape):
            numbers, tensors = zip(*group)
            tokens = encode(model, torch.cat(tensors).to(weight.device, weight.dtype))
            yield from zip(numbers, tokens)


def _tensor(model: AsymmetricCroCo3DStereo, source: ImageSource | Mapping[str, Any], image_size: int | None) -> Tensor:
    """An image as the network takes it, (1, 3, H, W)."""
    if isinstance(source, Mapping):
        return source["img"]
    side = image_size or max(model.patch_embed.img_size)
    pixels, _ = fit_whole_image(as_image(source), side, model.patch_size)
    return ImgNorm(pixels)[None]
