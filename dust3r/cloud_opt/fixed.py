"""Values the user fixes for some of the images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Selection = Sequence[int] | Sequence[bool] | slice | Tensor | np.ndarray | None
"""Images by number, bool mask or slice; None for all."""


class FixedRows(nn.Module):
    """Values given by the user for some of the images; they replace the optimised ones exactly.

    Args:
        free: (N, ...) a tensor of the shape, type and device of the values.
    """

    value: Tensor
    known: Tensor

    def __init__(self, free: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros_like(free), persistent=False)
        self.register_buffer("known", torch.zeros(len(free), dtype=torch.bool, device=free.device), persistent=False)
        self.count = 0

    @property
    def all(self) -> bool:
        """Whether every row is given."""
        return self.count == len(self.known)

    def set(self, row: int, value: Tensor) -> None:
        """Fix one row."""
        self.value[row] = value.to(self.value)
        self.known[row] = True
        self.count = int(self.known.sum())

    def fill(self, free: Tensor) -> Tensor:
        """`free` (N, ...) with the given rows in place; no gradient reaches those."""
        if not self.count:
            return free
        return torch.where(self.known.reshape(-1, *(1,) * (free.ndim - 1)), self.value, free)


def value_rows(values: Any) -> list[Tensor]:
    """Float tensors of a list, an array or a tensor with a leading axis; one number is a list of itself."""
    if isinstance(values, (int, float)):
        values = [values]
    return [torch.as_tensor(value).detach().float() for value in values]


def image_numbers(selection: Selection, count: int) -> list[int]:
    """Image numbers of a selection among `count` images.

    Raises:
        ValueError: If the selection names other images.
    """
    if selection is None:
        return list(range(count))
    if isinstance(selection, slice):
        return list(range(count))[selection]
    chosen = torch.as_tensor(selection).flatten()
    if chosen.dtype == torch.bool:
        if len(chosen) != count:
            raise ValueError(f"A mask of images needs {count} entries, got {len(chosen)}.")
        chosen = chosen.nonzero().flatten()
    numbers = [int(number) for number in chosen]
    if any(not 0 <= number < count for number in numbers):
        raise ValueError(f"Image numbers must be in 0..{count - 1}, got {numbers}.")
    return numbers
