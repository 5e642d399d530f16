"""Aggregated selective match kernels with binary codes: image similarity from local features.

Tolias, Avrithis, Jégou: "To aggregate or not to aggregate: selective match kernels for image search" (ICCV 2013).
Every feature goes to its nearest visual words; per image and word the residuals are added up and only their signs
are kept. Two images are alike where the codes of their common words agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mast3r.retrieval.codebook import Codebook


@dataclass(frozen=True)
class AsmkConfig:
    """Settings of the kernel; the defaults are those of MASt3R-SfM.

    Attributes:
        database_words: Nearest words each feature of a database image goes to.
        query_words: The same for query images.
        alpha: Exponent that favours words that agree well.
        threshold: Words whose codes agree less than this, in -1..1, count nothing.
    """

    database_words: int = 1
    query_words: int = 5
    alpha: float = 3.0
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if min(self.database_words, self.query_words) < 1 or not self.alpha > 0 or not -1 <= self.threshold < 1:
            raise ValueError(f"words must be at least 1, alpha positive and threshold in [-1, 1), got {self}.")


@dataclass(frozen=True, eq=False)
class WordCodes:
    """An image as the kernel sees it.

    Attributes:
        words: (U,) int64 words that occur, increasing.
        codes: (U, ceil(D / 8)) uint8, signs of the added residuals as bits, first channel in the highest bit.
        dim: Number of channels D.
    """

    words: np.ndarray
    codes: np.ndarray
    dim: int

    def __len__(self) -> int:
        return len(self.words)


def aggregate(features: Tensor, codebook: Codebook, count: int = 1) -> WordCodes:
    """The words of an image and the signs of their residuals.

    Args:
        features: (N, D) local features of one image, on the device of the codebook.
        codebook: The visual words.
        count: Nearest words each feature goes to.
    """
    features = features.float()
    words = codebook.assign(features, count)
    unique, place = words.unique(return_inverse=True)
    residuals = features[:, None] - codebook.centroids[words]
    total = residuals.new_zeros(len(unique), codebook.dim).index_add_(0, place.flatten(), residuals.flatten(0, 1))
    return WordCodes(unique.cpu().numpy(), np.packbits((total > 0).cpu().numpy(), axis=1), codebook.dim)


class InvertedFile:
    """Database images listed by visual word.

    Args:
        images: One entry per image, all from the same codebook.

    Raises:
        ValueError: If codes have different widths.
    """

    def __init__(self, images: Sequence[WordCodes]) -> None:
        self._lists = _by_word(images)
        self._sizes = np.array([len(image) for image in images])

    def __len__(self) -> int:
        return len(self._sizes)

    def scores(self, queries: Sequence[WordCodes], config: AsmkConfig | None = None) -> np.ndarray:
        """Similarity of queries to all images of the database.

        Args:
            queries: Query images.
            config: Exponent and threshold of the kernel.

        Returns:
            (number of queries, number of database images) float64, from 0 (no common word) to 1.

        Raises:
            ValueError: If codes of queries and database have different widths.
        """
        config = config or AsmkConfig()
        lists = _by_word(queries)
        if len(queries) and len(self) and lists.dim != self._lists.dim:
            raise ValueError(f"queries have {lists.dim} channels, the database {self._lists.dim}; use one codebook.")
        scores = np.zeros((len(queries), len(self)))
        kernel = _kernel_values(lists.dim, config)
        common, mine, theirs = np.intersect1d(lists.words, self._lists.words, return_indices=True)
        for _, i, j in zip(common, mine, theirs):
            owners, codes = lists.entry(i)
            others, other_codes = self._lists.entry(j)
            product = codes @ other_codes.T + lists.dim
            # an image is at most once in a word's list, so no addition is lost
            scores[np.ix_(owners, others)] += kernel[product.astype(np.intp)]
        sizes = np.array([len(query) for query in queries])
        return scores / np.sqrt(np.maximum(sizes, 1))[:, None] / np.sqrt(np.maximum(self._sizes, 1))


def _kernel_values(dim: int, config: AsmkConfig) -> np.ndarray:
    """(2 D + 1,) what a word counts when the product of two sign codes is -D..D; a power per entry would be slow."""
    agreement = np.arange(-dim, dim + 1) / max(dim, 1)
    return np.where(agreement > config.threshold, np.abs(agreement) ** config.alpha * np.sign(agreement), 0)


def asmk_similarity(features: Sequence[Tensor], codebook: Codebook, config: AsmkConfig | None = None) -> np.ndarray:
    """Similarity of every image to every other one.

    Args:
        features: Per image its local features (N_i, D), on the device of the codebook.
        codebook: The visual words.
        config: Settings of the kernel.

    Returns:
        (n, n) float64; row: as query, column: as database image. Not symmetric if queries go to more words.
    """
    config = config or AsmkConfig()
    counts = [min(count, len(codebook)) for count in (config.database_words, config.query_words)]
    database = [aggregate(x, codebook, counts[0]) for x in features]
    queries = database if counts[0] == counts[1] else [aggregate(x, codebook, counts[1]) for x in features]
    return InvertedFile(database).scores(queries, config)


@dataclass(frozen=True, eq=False)
class _Lists:
    """Codes of many images grouped by word: rows `start[k]` to `start[k + 1]` belong to `words[k]`."""

    words: np.ndarray
    start: np.ndarray
    owners: np.ndarray
    codes: np.ndarray
    dim: int

    def entry(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Images of a word and their codes as +1 and -1 (float32)."""
        rows = slice(self.start[k], self.start[k + 1])
        bits = np.unpackbits(self.codes[rows], axis=1, count=self.dim)
        return self.owners[rows], bits.astype(np.float32) * 2 - 1


def _by_word(images: Sequence[WordCodes]) -> _Lists:
    dims = {image.dim for image in images}
    if len(dims) > 1:
        raise ValueError(f"all images must have codes of one width, got {sorted(dims)}.")
    if not images:
        return _Lists(
            np.empty(0, np.int64), np.zeros(1, np.int64), np.empty(0, np.int64), np.empty((0, 0), np.uint8), 0
        )
    entries = np.concatenate([image.words for image in images])
    order = np.argsort(entries, kind="stable")
    words, start = np.unique(entries[order], return_index=True)
    owners = np.repeat(np.arange(len(images)), [len(image) for image in images])[order]
    codes = np.concatenate([image.codes for image in images])[order]
    return _Lists(words, np.append(start, len(entries)), owners, codes, dims.pop())
