"""Moving nested structures between devices, and joining the results of several batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def todevice(
    batch: Any,
    device: str | torch.device,
    callback: Callable[[Any], Any] | None = None,
    non_blocking: bool = False,
) -> Any:
    """Move every tensor and array in a nested structure.

    Args:
        batch: Tensors, arrays, or dicts, lists and tuples of them; other leaves pass unchanged.
        device: Target device; `"numpy"` turns tensors into arrays.
        callback: Applied to every leaf before it is moved.
        non_blocking: Passed to `Tensor.to`.

    Returns:
        The same structure; the input is not modified.
    """
    if isinstance(batch, Mapping):
        return {key: todevice(value, device, callback, non_blocking) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        moved = [todevice(value, device, callback, non_blocking) for value in batch]
        if isinstance(batch, tuple) and hasattr(batch, "_fields"):
            return type(batch)(*moved)
        return type(batch)(moved)
    leaf = callback(batch) if callback else batch
    if device == "numpy":
        return leaf.detach().cpu().numpy() if isinstance(leaf, Tensor) else leaf
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc":
        leaf = torch.from_numpy(leaf if leaf.flags.writeable else leaf.copy())
    return leaf.to(device, non_blocking=non_blocking) if isinstance(leaf, Tensor) else leaf


def to_numpy(x: Any) -> Any:
    """Every tensor in a nested structure as a NumPy array."""
    return todevice(x, "numpy")


def to_cpu(x: Any) -> Any:
    """Every tensor and array in a nested structure as a CPU tensor."""
    return todevice(x, "cpu")


def to_cuda(x: Any) -> Any:
    """Every tensor and array in a nested structure as a CUDA tensor."""
    return todevice(x, "cuda")


def collate_with_cat(whatever: Any, lists: bool = False) -> Any:
    """Join samples that already have a batch axis.

    Args:
        whatever: A list of samples, or a dict of such lists. Samples may be dicts, tuples, lists, tensors,
            arrays, None or scalars.
        lists: Keep tensors of different sizes apart.

    Returns:
        Dicts and tuples are joined entry by entry, lists are chained, scalars and strings stay listed,
        all-None becomes None. Tensors and arrays are concatenated along axis 0, or with `lists` become one
        flat list of samples without batch axis.
    """
    if isinstance(whatever, Mapping):
        return {key: collate_with_cat(value, lists) for key, value in whatever.items()}
    if not isinstance(whatever, (list, tuple)) or not whatever:
        return whatever
    first = whatever[0]
    if first is None:
        return None
    if isinstance(first, Mapping):
        return {key: collate_with_cat([sample[key] for sample in whatever], lists) for key in first}
    if isinstance(first, tuple):
        return tuple(collate_with_cat(list(column), lists) for column in zip(*whatever))
    if isinstance(first, list):
        return [item for sample in whatever for item in sample]
    if isinstance(first, (Tensor, np.ndarray)):
        tensors = [torch.as_tensor(sample) for sample in whatever]
        if tensors[0].ndim == 0:
            return tensors if lists else torch.stack(tensors)
        return listify(tensors) if lists else torch.cat(tensors)
    return list(whatever)


def listify(elems: Any) -> list[Any]:
    """Flatten a list of batches into a list of their samples (the first axis of each)."""
    return [sample for batch in elems for sample in batch]
