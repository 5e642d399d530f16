"""Robust distances: straight for small residuals, a power of the distance for large ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class GammaLoss:
    """rho(d) = (mul min(d, clip) + offset)^gamma - offset^gamma of the distance d between two points.

    At the default offset the slope at d = 0 is `mul`, whatever gamma: all of them measure small distances alike
    and differ in what large ones cost.

    Attributes:
        gamma: Exponent, above 0; below 1 outliers hardly pull, 1 is the plain distance.
        mul: Factor on the distance.
        offset: Shift of the distance; None takes (1 / gamma)^(1 / (gamma - 1)).
        clip: Distances above count as this one, and no longer pull at all.

    Raises:
        ValueError: If gamma, mul, offset or clip is out of range.
    """

    gamma: float
    mul: float = 1.0
    offset: float | None = None
    clip: float = math.inf

    def __post_init__(self) -> None:
        if not (self.gamma > 0 and self.mul > 0 and self.clip > 0 and (self.offset is None or self.offset >= 0)):
            raise ValueError(
                "A gamma loss needs gamma, mul and clip above 0 and offset not below 0, got "
                f"{self.gamma}, {self.mul}, {self.clip} and {self.offset}."
            )

    @property
    def shift(self) -> float:
        """The offset in use."""
        if self.offset is not None:
            return self.offset
        return 0.0 if self.gamma == 1 else (1 / self.gamma) ** (1 / (self.gamma - 1))

    def of_distance(self, distance: Tensor) -> Tensor:
        """Value of rho for distances (...)."""
        shift = self.shift
        if self.gamma == 1:
            return self.mul * distance.clamp(max=self.clip)
        return (self.mul * distance.clamp(max=self.clip) + shift) ** self.gamma - shift**self.gamma

    def slope(self, distance: Tensor) -> Tensor:
        """Derivative of `of_distance`, (...)."""
        inside = (distance < self.clip).to(distance.dtype)
        if self.gamma == 1:
            return self.mul * inside
        return self.mul * self.gamma * inside * (self.mul * distance + self.shift) ** (self.gamma - 1)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Value of rho for the distances between points (..., D) and points (..., D)."""
        return self.of_distance((x - y).norm(dim=-1))


def gamma_loss(gamma: float, mul: float = 1, offset: float | None = None, clip: float = math.inf) -> GammaLoss:
    """A robust distance between points (see `GammaLoss`)."""
    return GammaLoss(gamma, mul, offset, clip)
