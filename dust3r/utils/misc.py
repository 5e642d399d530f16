"""Small tensor and module helpers shared by models, losses and training."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ShapeLike = Tensor | np.ndarray | Sequence[Sequence[int]]
MapHead = Callable[[Sequence[Tensor], tuple[int, int]], dict[str, Tensor]]


def fill_default_args(kwargs: dict[str, Any], func: Callable[..., Any]) -> dict[str, Any]:
    """`kwargs` completed by the default arguments of `func`."""
    parameters = inspect.signature(func).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return {**defaults, **kwargs}


def freeze_all_params(modules: Iterable[nn.Module | nn.Parameter]) -> None:
    """Turn off gradients of parameters, or of all parameters of modules."""
    for module in modules:
        parameters = [module] if isinstance(module, nn.Parameter) else module.parameters()
        for parameter in parameters:
            parameter.requires_grad_(False)


def is_symmetrized(gt1: dict[str, Any], gt2: dict[str, Any]) -> bool:
    """Whether a batch holds each pair followed by its swap, judged by the 'instance' names of both views.

    Args:
        gt1: First views, with key 'instance': one name per row.
        gt2: Second views.

    Returns:
        True if rows 2k and 2k+1 are swaps of each other for all k; False for odd batches, for fewer than two
        rows, or when a view has no instance names.
    """
    names1, names2 = gt1.get("instance"), gt2.get("instance")
    if names1 is None or names2 is None or len(names1) != len(names2):
        return False
    if len(names1) < 2 or len(names1) % 2:
        return False
    pairs = range(0, len(names1), 2)
    return all(names1[i] == names2[i + 1] and names1[i + 1] == names2[i] for i in pairs)


def interleave(tensor1: Tensor, tensor2: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of both tensors alternating: (1[0], 2[0], 1[1], 2[1], ...) and the same starting with tensor 2."""
    return (
        torch.stack((tensor1, tensor2), dim=1).flatten(0, 1),
        torch.stack((tensor2, tensor1), dim=1).flatten(0, 1),
    )


def portrait_rows(true_shape: ShapeLike) -> Tensor:
    """(B,) bool: whether each true (height, width) of `true_shape` (B, 2) is taller than wide."""
    shape = torch.as_tensor(true_shape)
    return shape[:, 1] < shape[:, 0]


def restore_rows(rows: Tensor, order: Tensor) -> Tensor:
    """Undo a row selection: output[order[i]] = rows[i], out of place."""
    return rows.index_select(0, order.argsort())


def transpose_to_landscape(
    head: MapHead, activate: bool = True
) -> Callable[[Sequence[Tensor], ShapeLike], dict[str, Tensor]]:
    """Wrap a head so that it accepts the true shapes of a batch.

    Args:
        head: Maps (token lists, (height, width)) to a dict of maps (B, height, width, ...).
        activate: False (inference): all rows share one true shape, output in native orientation.
            True (training): rows may mix orientations; the maps of portrait rows are transposed, so that all
            outputs lie in landscape containers. Values are not changed.

    Returns:
        Function of (token lists, true_shape (B, 2)).
    """

    def native(decout: Sequence[Tensor], true_shape: ShapeLike) -> dict[str, Tensor]:
        return head(decout, common_shape(true_shape))

    def landscape(decout: Sequence[Tensor], true_shape: ShapeLike) -> dict[str, Tensor]:
        return landscape_maps(head, decout, true_shape)

    return landscape if activate else native


def common_shape(true_shape: ShapeLike) -> tuple[int, int]:
    """The one (height, width) that all rows of `true_shape` (B, 2) share.

    Raises:
        ValueError: If they differ.
    """
    sizes = {tuple(row) for row in torch.as_tensor(true_shape).tolist()}
    if len(sizes) != 1:
        raise ValueError(f"all images of a batch must share one true_shape here, got {sorted(sizes)}; split the batch.")
    height, width = sizes.pop()
    return height, width


def landscape_maps(head: MapHead, decout: Sequence[Tensor], true_shape: ShapeLike) -> dict[str, Tensor]:
    """Run a head on rows of mixed orientation and return landscape maps (see `transpose_to_landscape`)."""
    shape = torch.as_tensor(true_shape)
    height, width = int(shape.min()), int(shape.max())
    is_portrait = portrait_rows(shape)
    if not is_portrait.any():
        return head(decout, (height, width))
    if is_portrait.all():
        return _swap_axes(head(decout, (width, height)))
    device = decout[-1].device
    rows = [(~is_portrait).nonzero().flatten().to(device), is_portrait.nonzero().flatten().to(device)]
    upright = head([tokens.index_select(0, rows[0]) for tokens in decout], (height, width))
    turned = _swap_axes(head([tokens.index_select(0, rows[1]) for tokens in decout], (width, height)))
    order = torch.cat(rows)
    return {key: restore_rows(torch.cat((upright[key], turned[key])), order) for key in upright}


def _swap_axes(maps: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.transpose(1, 2) for key, value in maps.items()}


def _flatten_to(arr: Tensor, ndim: int) -> Tensor:
    """Merge the axes before the last one until `arr` has at most `ndim` axes."""
    return arr.flatten(ndim - 2, -2) if arr.ndim > ndim else arr


def invalid_to_nans(arr: Tensor, valid_mask: Tensor | None, ndim: int = 999) -> Tensor:
    """Copy of `arr` (B, ..., C) with NaN where `valid_mask` (B, ...) is false.

    Args:
        arr: Values.
        valid_mask: Mask over all axes but the last, or None for "all valid".
        ndim: Merge the axes before the last one until at most `ndim` remain.
    """
    if valid_mask is not None:
        arr = arr.masked_fill(~valid_mask[..., None], float("nan"))
    return _flatten_to(arr, ndim)


def invalid_to_zeros(arr: Tensor, valid_mask: Tensor | None, ndim: int = 999) -> tuple[Tensor, Tensor | int]:
    """Copy of `arr` (B, ..., C) with zeros where `valid_mask` (B, ...) is false, and the valid count.

    Args:
        arr: Values.
        valid_mask: Mask over all axes but the last, or None for "all valid".
        ndim: Merge the axes before the last one until at most `ndim` remain.

    Returns:
        The copy, and the number of valid entries of each sample: (B,) int64, or an int without mask.
    """
    if valid_mask is None:
        count: Tensor | int = arr[..., 0].numel() // len(arr) if len(arr) else 0
    else:
        arr = arr.masked_fill(~valid_mask[..., None], 0.0)
        count = valid_mask.flatten(1).sum(dim=1)
    return _flatten_to(arr, ndim), count
