"""Small pieces shared by the dense aligners: settings, confidence weights, schedules, raw poses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

Edge: TypeAlias = "tuple[int, int]"
DistanceName: TypeAlias = Literal["l1", "l2"]
ConfidenceName: TypeAlias = Literal["log", "sqrt", "m1", "id", "none"]
ScheduleName: TypeAlias = Literal["cosine", "linear"]

PRINCIPAL_POINT_STEP = 10.0
"""Pixels by which the principal point moves per unit of its raw parameter."""


@dataclass(frozen=True)
class AlignmentConfig:
    """Settings of a dense alignment.

    Attributes:
        dist: Residual of a point: `l1` Euclidean distance, `l2` its square.
        conf: Weight of a pixel of confidence c: `log` log c, `sqrt` its root, `m1` c - 1, `id` or `none` c.
        min_conf_thr: Confidence above which a pixel counts for PnP and masks.
        base_scale: Geometric mean of the edge scales, which fixes the scale of the scene.
        allow_pw_adaptors: Optimise a small stretch of x, y against z per edge.
        pw_break: Divisor of the raw adaptors: larger is stiffer.
        focal_break: Divisor of the raw log focal.
        optimize_pp: Optimise the principal points.
        fx_and_fy: Optimise two focals per image.
    """

    dist: DistanceName = "l1"
    conf: ConfidenceName = "log"
    min_conf_thr: float = 3.0
    base_scale: float = 0.5
    allow_pw_adaptors: bool = False
    pw_break: float = 20.0
    focal_break: float = 20.0
    optimize_pp: bool = False
    fx_and_fy: bool = False

    def __post_init__(self) -> None:
        if self.dist not in ("l1", "l2"):
            raise ValueError(f"dist must be 'l1' or 'l2', got {self.dist!r}.")
        get_conf_trf(self.conf)
        if not (self.base_scale > 0 and self.pw_break > 0 and self.focal_break > 0):
            raise ValueError(
                "base_scale, pw_break and focal_break must be positive, got "
                f"{self.base_scale}, {self.pw_break}, {self.focal_break}."
            )


def edge_str(i: int, j: int) -> str:
    """Name of edge (i, j) in the dictionaries of an aligner."""
    return f"{i}_{j}"


def get_conf_trf(mode: ConfidenceName | str) -> Callable[[Tensor], Tensor]:
    """The function from confidences to pixel weights (see `AlignmentConfig.conf`)."""
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "log": torch.log,
        "sqrt": torch.sqrt,
        "m1": lambda c: c - 1,
        "id": lambda c: c,
        "none": lambda c: c,
    }
    if mode not in functions:
        raise ValueError(f"conf must be one of {', '.join(functions)}, got {mode!r}.")
    return functions[mode]


def cosine_schedule(t: float, lr_start: float, lr_end: float) -> float:
    """Half a cosine from `lr_start` at t = 0 to `lr_end` at t = 1."""
    return lr_end + (lr_start - lr_end) * (1 + math.cos(t * math.pi)) / 2


def linear_schedule(t: float, lr_start: float, lr_end: float) -> float:
    """A straight line from `lr_start` at t = 0 to `lr_end` at t = 1."""
    return lr_start + (lr_end - lr_start) * t


def learning_rate(schedule: ScheduleName | str, t: float, lr_start: float, lr_end: float) -> float:
    """Learning rate at the share t in [0, 1] of an optimisation.

    Raises:
        ValueError: If the schedule is unknown.
    """
    if schedule == "cosine":
        return cosine_schedule(t, lr_start, lr_end)
    if schedule == "linear":
        return linear_schedule(t, lr_start, lr_end)
    raise ValueError(f"schedule must be 'cosine' or 'linear', got {schedule!r}.")


def signed_log1p(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|): the raw form of translations, compact for far cameras."""
    return x.sign() * x.abs().log1p()


def signed_expm1(x: Tensor) -> Tensor:
    """Inverse of `signed_log1p`."""
    return x.sign() * x.abs().expm1()


def raw_to_rigid(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Rotations (K, 3, 3) and translations (K, 3) of raw poses (K, 7 or more).

    A raw pose is a quaternion xyzw of any length and a `signed_log1p` translation; further columns are
    ignored.
    """
    import roma  # here: it loads the machinery of torch.compile, a second of work

    rotation = roma.unitquat_to_rotmat(nn.functional.normalize(raw[:, :4], dim=-1))
    return rotation, signed_expm1(raw[:, 4:7])


def rigid_to_raw(R: Tensor, t: Tensor) -> Tensor:
    """Raw pose (7,) of a rotation (3, 3) and a translation (3,)."""
    import roma

    return torch.cat([roma.rotmat_to_unitquat(R), signed_log1p(t)])


def to_homogeneous(linear: Tensor, t: Tensor) -> Tensor:
    """(..., 4, 4) matrices of linear maps (..., 3, 3) and translations (..., 3)."""
    top = torch.cat([linear, t[..., None]], dim=-1)
    bottom = top.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*top.shape[:-2], 1, 4)
    return torch.cat([top, bottom], dim=-2)
