"""Seeded random draws on the CPU, so that a scene is the same on every device."""

from __future__ import annotations

import torch
from torch import Tensor


class Rng:
    """A seeded stream of random tensors (float32, CPU)."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed & 0x7FFF_FFFF_FFFF_FFFF)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform numbers in [low, high) of the given shape."""
        return low + (high - low) * torch.rand(shape, generator=self.generator)

    def log_uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Numbers whose logarithm is uniform in [log low, log high)."""
        return torch.exp(self.uniform(float(torch.tensor(low).log()), float(torch.tensor(high).log()), *shape))

    def normal(self, std: float, *shape: int) -> Tensor:
        """Zero-mean normal numbers."""
        return std * torch.randn(shape, generator=self.generator)

    def integers(self, count: int, *shape: int) -> Tensor:
        """Integers in [0, count), int64."""
        return torch.randint(count, shape, generator=self.generator)

    def chance(self, probability: float, *shape: int) -> Tensor:
        """Booleans that are true with the given probability."""
        return torch.rand(shape, generator=self.generator) < probability

    def pick(self, options: Tensor, *shape: int) -> Tensor:
        """Random elements of a one-dimensional tensor."""
        return options[self.integers(len(options), *shape)]

    def split(self, total: int, weights: tuple[float, ...]) -> list[int]:
        """Random counts that sum to `total`, drawn with the given weights."""
        draws = torch.multinomial(torch.tensor(weights), total, replacement=True, generator=self.generator)
        return torch.bincount(draws, minlength=len(weights)).tolist()
