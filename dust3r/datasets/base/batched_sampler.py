"""Random sampling in which every batch has one aspect ratio."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import numpy as np
from torch.utils.data import Sampler

EPOCH_SEED = 777  # added to the epoch number, in the sampler and in `ResizedDataset` alike


class BatchedRandomSampler(Sampler[tuple[int, int]]):
    """Random indices paired with an aspect-ratio number that is constant within each batch.

    Every rank draws the same order from the epoch number and keeps its own contiguous, batch-aligned part.
    The last `len(dataset) % (batch_size * world_size)` elements are never drawn (as in the official
    sampler, so that its order is reproduced).

    Args:
        dataset: anything with a length.
        batch_size: indices that share an aspect ratio.
        pool_size: number of aspect ratios.
        world_size: number of processes.
        rank: number of this process.
        drop_last: must be True; incomplete batches are left out.
    """

    def __init__(
        self,
        dataset: Sized,
        batch_size: int,
        pool_size: int,
        world_size: int = 1,
        rank: int = 0,
        drop_last: bool = True,
    ):
        if not drop_last:
            raise ValueError("BatchedRandomSampler needs drop_last=True: its batches must be complete")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in [0, {world_size}), got {rank}")
        self.batch_size = batch_size
        self.pool_size = pool_size
        self.world_size = world_size
        self.rank = rank
        self.epoch = 0
        self.length = len(dataset) // (batch_size * world_size) * batch_size

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng(self.epoch + EPOCH_SEED)
        total = self.length * self.world_size
        indices = rng.permutation(total)
        ratios = np.repeat(rng.integers(0, self.pool_size, size=total // self.batch_size), self.batch_size)
        first = self.rank * self.length
        for i in range(first, first + self.length):
            yield int(indices[i]), int(ratios[i])
