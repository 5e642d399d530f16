"""Output activations: from raw head channels to points and confidences."""

from __future__ import annotations

from collections.abc import Sequence
from math import isinf

import torch
from torch import Tensor

RangeMode = tuple[str, float, float]  # (name, lowest, highest)


def range_mode(mode: Sequence[str | float]) -> RangeMode:
    """An activation (name, lowest, highest) from any sequence of these three.

    Raises:
        ValueError: If it is something else.
    """
    if len(mode) == 3:
        name, lowest, highest = mode
        if isinstance(name, str) and not isinstance(lowest, str) and not isinstance(highest, str):
            return name, lowest, highest
    raise ValueError(f"an activation is (name, lowest, highest) such as ('exp', 1, inf), got {mode!r}.")


def postprocess(out: Tensor, depth_mode: RangeMode, conf_mode: RangeMode | None) -> dict[str, Tensor]:
    """Activate the raw output of a pointmap head.

    Args:
        out: (B, 3 or 4, H, W): x, y, z and, with `conf_mode`, confidence.
        depth_mode: (name, -inf, inf), see `reg_dense_depth`.
        conf_mode: (name, lowest, highest), see `reg_dense_conf`, or None for heads without confidence.

    Returns:
        'pts3d' (B, H, W, 3) and, with `conf_mode`, 'conf' (B, H, W).
    """
    points, confidence = out.permute(0, 2, 3, 1).tensor_split((3,), dim=-1)
    result = {"pts3d": reg_dense_depth(points, depth_mode)}
    if conf_mode is not None:
        result["conf"] = reg_dense_conf(confidence[..., 0], conf_mode)
    return result


def channel_norm(x: Tensor) -> Tensor:
    """Euclidean norm over the last axis, which stays with length 1; at least 1e-15.

    `Tensor.norm` takes 20 times as long on maps whose channels are not adjacent in memory, as those of heads are.
    Half precision is squared in float32, which holds the squares.
    """
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return wide.square().sum(dim=-1, keepdim=True).clamp(min=1e-30).sqrt().to(x.dtype)


def reg_dense_depth(xyz: Tensor, mode: RangeMode) -> Tensor:
    """Activate raw points.

    Args:
        xyz: (..., 3) raw points; their norm r encodes the distance.
        mode: ('linear' | 'square' | 'exp', -inf, inf): distance r, r^2 or e^r - 1 along the same direction.

    Returns:
        (..., 3) points.

    Raises:
        ValueError: On an unknown name or finite bounds.
    """
    name, lowest, highest = mode
    if not (isinf(lowest) and lowest < 0 and isinf(highest) and highest > 0):
        raise ValueError(f"depth_mode must have bounds -inf and inf, got {tuple(mode)}.")
    if name == "linear":
        return xyz
    if name not in ("square", "exp"):
        raise ValueError(f"depth_mode must be 'linear', 'square' or 'exp', got {name!r}.")
    distance = channel_norm(xyz)
    direction = xyz / distance.clamp(min=1e-8)
    return direction * (distance.square() if name == "square" else torch.expm1(distance))


def reg_dense_conf(x: Tensor, mode: RangeMode) -> Tensor:
    """Activate raw confidences.

    Args:
        x: Raw values, any shape.
        mode: ('exp', lo, hi): lo + min(e^x, hi - lo); ('sigmoid', lo, hi): lo + (hi - lo) * sigmoid(x).

    Returns:
        Confidences in [lo, hi], same shape.

    Raises:
        ValueError: On an unknown name.
    """
    name, lowest, highest = mode
    if name == "exp":
        return lowest + x.exp().clamp(max=highest - lowest)
    if name == "sigmoid":
        return lowest + (highest - lowest) * torch.sigmoid(x)
    raise ValueError(f"conf_mode must be 'exp' or 'sigmoid', got {name!r}.")
