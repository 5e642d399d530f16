"""The match kernel against golden scores and against a plain implementation; visual words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mast3r.retrieval.asmk import AsmkConfig, InvertedFile, WordCodes, aggregate, asmk_similarity
from mast3r.retrieval.codebook import Codebook


def plain_words(features: np.ndarray, centroids: np.ndarray, count: int) -> dict[int, np.ndarray]:
    """Word -> bool signs of the added residuals, as the paper says it."""
    totals: dict[int, np.ndarray] = {}
    for x in features:
        order = np.argsort(((x - centroids) ** 2).sum(axis=1), kind="stable")[:count]
        for word in order.tolist():
            totals[word] = totals.get(word, 0) + x - centroids[word]
    return {word: total > 0 for word, total in totals.items()}


def plain_similarity(images, centroids, config: AsmkConfig) -> np.ndarray:
    queries = [plain_words(x, centroids, config.query_words) for x in images]
    database = [plain_words(x, centroids, config.database_words) for x in images]
    scores = np.zeros((len(images), len(images)))
    for i, query in enumerate(queries):
        for j, other in enumerate(database):
            for word in query.keys() & other.keys():
                similarity = 1 - 2 * np.mean(query[word] != other[word])
                if similarity > config.threshold:
                    scores[i, j] += similarity**config.alpha
            scores[i, j] /= np.sqrt(len(query)) * np.sqrt(len(other))
    return scores


def test_golden_scores(golden):
    fixture = golden("asmk")
    tensors, params = fixture.tensors, fixture.meta["params"]
    config = AsmkConfig(
        database_words=params["build_ivf"]["quantize"]["multiple_assignment"],
        query_words=params["query_ivf"]["quantize"]["multiple_assignment"],
        alpha=params["query_ivf"]["similarity"]["alpha"],
        threshold=params["query_ivf"]["similarity"]["similarity_threshold"],
    )
    book = Codebook(tensors["centroids"])
    assert len(book) == params["train_codebook"]["codebook"]["size"]
    images = [tensors["feat"][tensors["ids"] == k] for k in tensors["ids"].unique()]
    scores = asmk_similarity(images, book, config)
    fixture.close(scores, "scores")
    assert np.array_equal(np.argsort(-scores, axis=1, kind="stable"), tensors["ranks"].numpy())
    fixture.close(-np.sort(-scores, axis=1), "ranked")
    for suffix, count in (("", config.database_words), ("5", config.query_words)):
        assert torch.equal(book.assign(images[0], count), tensors[f"img0_words{suffix}"])
        codes = aggregate(images[0], book, count)
        assert codes.words.tolist() == tensors[f"img0_unique{suffix}"].tolist()
        bytes_ = np.ascontiguousarray(codes.codes).view(">u4").astype(np.int64)
        assert np.array_equal(bytes_, tensors[f"img0_packed{suffix}"].numpy())


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 10_000),
    st.integers(1, 20),
    st.integers(1, 6),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([1.0, 3.0]),
    st.sampled_from([0.0, 0.25]),
)
def test_equals_the_plain_implementation(seed, dim, words, database, query, alpha, threshold):
    rng = np.random.default_rng(seed)
    centroids = rng.standard_normal((words, dim)).astype(np.float32)
    images = [rng.standard_normal((rng.integers(1, 9), dim)).astype(np.float32) for _ in range(4)]
    config = AsmkConfig(min(database, words), min(query, words), alpha, threshold)
    found = asmk_similarity([torch.from_numpy(x) for x in images], Codebook(torch.from_numpy(centroids)), config)
    np.testing.assert_allclose(found, plain_similarity(images, centroids, config), atol=1e-9)


def test_laws():
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(30, 16, generator=generator) for _ in range(3)]
    book = Codebook.train(torch.cat(images), 8)
    scores = asmk_similarity(images, book, AsmkConfig(2, 2))
    np.testing.assert_allclose(scores, scores.T)
    np.testing.assert_allclose(np.diag(scores), 1)
    empty = WordCodes(np.empty(0, np.int64), np.empty((0, 2), np.uint8), 16)
    assert InvertedFile([empty]).scores([aggregate(images[0], book)]).tolist() == [[0.0]]
    assert InvertedFile([]).scores([]).shape == (0, 0)


def test_words_are_found_by_k_means():
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(5, 4, generator=generator)
    features = centres.repeat_interleave(40, 0) + 0.1 * torch.randn(200, 4, generator=generator)
    best = min(
        (Codebook.train(features, 5, seed=seed) for seed in range(5)),
        key=lambda book: torch.cdist(features, book.centroids).min(dim=1).values.mean(),
    )
    assert torch.cdist(centres, best.centroids).min(dim=1).values.max() < 0.2
    again = Codebook.train(features, 5, seed=3)
    assert torch.equal(again.centroids, Codebook.train(features, 5, seed=3).centroids)
    assert best.assign(features[:0]).shape == (0, 1)


def test_wrong_arguments_are_refused():
    book = Codebook(torch.eye(3))
    for call in (
        lambda: Codebook(torch.zeros(3)),
        lambda: Codebook(torch.full((1, 2), torch.nan)),
        lambda: book.assign(torch.zeros(2, 4)),
        lambda: book.assign(torch.zeros(2, 3), 4),
        lambda: Codebook.train(torch.zeros(2, 3), 3),
        lambda: AsmkConfig(database_words=0),
        lambda: AsmkConfig(threshold=1),
        lambda: InvertedFile([aggregate(torch.eye(3), book), aggregate(torch.eye(2), Codebook(torch.eye(2)))]),
        lambda: InvertedFile([aggregate(torch.eye(3), book)]).scores([aggregate(torch.eye(2), Codebook(torch.eye(2)))]),
    ):
        with pytest.raises(ValueError, match=r"\S"):
            call()
