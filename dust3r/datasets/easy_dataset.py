"""Arithmetic of data sets: `k * ds` repeats, `n @ ds` resizes per epoch, `a + b` concatenates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from dust3r.datasets.base.batched_sampler import EPOCH_SEED, BatchedRandomSampler

Index = int | tuple[int, int]
"""A position, or (position, aspect-ratio number)."""


class EasyDataset(Dataset, ABC):
    """Base of data sets that can be multiplied, resized and concatenated.

    A subclass may set `_resolutions`, the list of (W, H) an aspect-ratio number selects from.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Number of elements in one epoch."""

    @abstractmethod
    def __getitem__(self, idx: Index) -> Any:
        """Element at a position, in a given aspect ratio if the index is a tuple."""

    @property
    def resolutions(self) -> Sequence[tuple[int, int]] | None:
        """Resolutions (W, H) to choose from, or None if the data set has none."""
        return getattr(self, "_resolutions", None)

    def set_epoch(self, epoch: int) -> None:
        """Tell the data set which epoch begins; does nothing unless the elements depend on it."""

    def __add__(self, other: EasyDataset) -> EasyDataset:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not isinstance(other, EasyDataset):
            return NotImplemented
        return CatDataset([self, other])

    def __rmul__(self, factor: int) -> EasyDataset:
        return MulDataset(factor, self)

    def __rmatmul__(self, size: int) -> EasyDataset:
        return ResizedDataset(size, self)

    def make_sampler(
        self,
        batch_size: int,
        shuffle: bool = True,
        world_size: int = 1,
        rank: int = 0,
        drop_last: bool = True,
    ) -> BatchedRandomSampler:
        """Sampler that gives every batch one of this data set's resolutions.

        Raises:
            ValueError: without shuffling; iterate in order through the `DataLoader` instead.
        """
        if not shuffle:
            raise ValueError("make_sampler shuffles; use DataLoader(dataset, batch_size) to iterate in order")
        pool_size = len(self.resolutions or [None])
        return BatchedRandomSampler(self, batch_size, pool_size, world_size, rank, drop_last)


class _Derived(EasyDataset):
    """A data set that reads its elements from another one."""

    def __init__(self, dataset: EasyDataset):
        self.dataset = dataset

    @property
    def resolutions(self) -> Sequence[tuple[int, int]] | None:
        """Those of the other data set."""
        return self.dataset.resolutions

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on."""
        self.dataset.set_epoch(epoch)


class MulDataset(_Derived):
    """`factor * dataset`: every element `factor` times in a row."""

    def __init__(self, factor: int, dataset: EasyDataset):
        super().__init__(dataset)
        self.factor = _positive_int(factor, "k * dataset")

    def __len__(self) -> int:
        return self.factor * len(self.dataset)

    def __getitem__(self, idx: Index) -> Any:
        return self.dataset[_mapped(idx, len(self), lambda i: i // self.factor)]

    def __repr__(self) -> str:
        return f"{self.factor}*{self.dataset!r}"


class ResizedDataset(_Derived):
    """`size @ dataset`: `size` elements per epoch, drawn anew (without repetition as long as possible)."""

    def __init__(self, size: int, dataset: EasyDataset):
        super().__init__(dataset)
        self.size = _positive_int(size, "n @ dataset")
        if len(dataset) == 0:
            raise ValueError(f"cannot draw {size} elements from the empty data set {dataset!r}")
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the elements of epoch `epoch`."""
        super().set_epoch(epoch)
        order = np.random.default_rng(epoch + EPOCH_SEED).permutation(len(self.dataset))
        self._order = np.resize(order, self.size)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, idx: Index) -> Any:
        return self.dataset[_mapped(idx, len(self), lambda i: int(self._order[i]))]

    def __repr__(self) -> str:
        return f"{self.size}@{self.dataset!r}"


class CatDataset(EasyDataset):
    """`a + b`: the elements of several data sets one after the other.

    Raises:
        ValueError: if the data sets offer different resolutions.
    """

    def __init__(self, datasets: Sequence[EasyDataset]):
        self.datasets = list(datasets)
        self._ends = list(accumulate(len(ds) for ds in self.datasets))
        for ds in self.datasets[1:]:
            if ds.resolutions != self.datasets[0].resolutions:
                raise ValueError(
                    f"data sets of different resolutions cannot be added: {self.datasets[0].resolutions} and "
                    f"{ds.resolutions}; give all the same list"
                )

    @property
    def resolutions(self) -> Sequence[tuple[int, int]] | None:
        """Those all parts share."""
        return self.datasets[0].resolutions

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to every part."""
        for ds in self.datasets:
            ds.set_epoch(epoch)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, idx: Index) -> Any:
        position = idx[0] if isinstance(idx, tuple) else idx
        part = bisect_right(self._ends, _checked(position, len(self)))
        start = self._ends[part - 1] if part else 0
        return self.datasets[part][_mapped(idx, len(self), lambda i: i - start)]

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.datasets))


def _positive_int(value: int, expression: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value <= 0:
        raise ValueError(f"{expression} needs a positive integer, got {value!r}")
    return int(value)


def _mapped(idx: Index, length: int, function: Any) -> Index:
    """`function` applied to the position of an index; an aspect-ratio number is kept."""
    if isinstance(idx, tuple):
        return function(_checked(idx[0], length)), idx[1]
    return function(_checked(idx, length))


def _checked(position: int, length: int) -> int:
    if not 0 <= position < length:
        raise IndexError(f"index {position} is outside a data set of {length} elements")
    return position
