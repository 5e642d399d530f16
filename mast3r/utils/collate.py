"""A `collate_fn` for samples that already have a batch axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

TypeKey = type | tuple[type, ...]


def cat_collate(batch: Sequence[Any], *, collate_fn_map: Mapping[TypeKey, Callable[..., Any]] | None = None) -> Any:
    """Join samples along the batch axis they already have.

    Args:
        batch: Samples of one structure: dicts, tuples, lists, tensors, arrays, numbers, strings.
        collate_fn_map: Own rules: type -> function called as `function(batch,
            collate_fn_map=collate_fn_map)`; they go before the built-in ones.

    Returns:
        The structure of one sample: tensors and arrays concatenated along axis 0, numbers as one tensor,
        everything else listed.

    Raises:
        ValueError: If the batch is empty or sequences in it differ in length.
    """
    if not batch:
        raise ValueError("cat_collate() got an empty batch.")
    first = batch[0]
    for kind, function in (collate_fn_map or {}).items():
        if isinstance(first, kind):
            return function(batch, collate_fn_map=collate_fn_map)
    if isinstance(first, Mapping):
        return {key: cat_collate([sample[key] for sample in batch], collate_fn_map=collate_fn_map) for key in first}
    if isinstance(first, (Tensor, np.ndarray)):
        return torch.cat([torch.atleast_1d(torch.as_tensor(sample)) for sample in batch])
    if isinstance(first, (bool, int, float, np.number)):
        return torch.as_tensor(batch)
    if isinstance(first, (list, tuple)):
        return _collate_columns(batch, collate_fn_map)
    return list(batch)


def _collate_columns(batch: Sequence[Any], collate_fn_map: Mapping[TypeKey, Callable[..., Any]] | None) -> Any:
    first = batch[0]
    if any(len(sample) != len(first) for sample in batch):
        raise ValueError("cat_collate() needs sequences of one length in all samples.")
    columns = [cat_collate(column, collate_fn_map=collate_fn_map) for column in zip(*batch)]
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*columns)
    return columns
