"""Weighted sums of robust distances with their derivatives in closed form: the inner loop of sparse alignment."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mast3r.cloud_opt.utils.losses import GammaLoss

MIN_DEPTH = 1e-3
"""Points behind a camera, or closer than this, are projected as if they were so far in front of it."""

MIN_PIXEL, MAX_PIXEL = -1000.0, 2000.0
"""Projections are cut off here, so that a point beside the camera does not dominate."""


def robust_distance_cost(residual: Tensor, weight: Tensor, loss: GammaLoss) -> Tensor:
    """Sum of weight * rho(length) of vectors.

    Args:
        residual: (C, 3, P) vectors, coordinates before points.
        weight: (C, P), constant.
        loss: rho.

    Returns:
        Scalar.
    """
    return _DistanceCost.apply(residual, weight, loss)  # pyright: ignore[reportReturnType]


def reprojection_cost(projected: Tensor, pixel: Tensor, weight: Tensor, loss: GammaLoss) -> Tensor:
    """Sum of weight * rho(reprojection error in pixels).

    Args:
        projected: (C, 3, P) homogeneous pixels K x of points x in the camera; the third row is the depth.
        pixel: (C, 2, P) where they were seen, constant.
        weight: (C, P), constant.
        loss: rho.

    Returns:
        Scalar.
    """
    return _ReprojectionCost.apply(projected, pixel, weight, loss)  # pyright: ignore[reportReturnType]


class _DistanceCost(torch.autograd.Function):
    # The derivative needs everything the value needs: both are computed at once, plane by plane, and one tensor
    # is kept. Autograd would keep eight and pass over them twice.

    @staticmethod
    def forward(ctx: Any, residual: Tensor, weight: Tensor, loss: GammaLoss) -> Tensor:
        x, y, z = residual.unbind(dim=1)
        length = torch.addcmul(torch.addcmul(x * x, y, y), z, z).sqrt_()
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(residual * _pull(length, weight, loss)[:, None])
        return (weight * loss.of_distance(length)).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad, None, None


class _ReprojectionCost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor, pixel: Tensor, weight: Tensor, loss: GammaLoss) -> Tensor:
        """Weighted sum of the losses of distances between projected points and their pixels."""
        depth = projected[:, 2]
        inverse = depth.clamp(min=MIN_DEPTH).reciprocal_()
        free = projected[:, :2] * inverse[:, None]
        clipped = free.clamp(MIN_PIXEL, MAX_PIXEL)
        error = clipped - pixel
        length = torch.addcmul(error[:, 0] * error[:, 0], error[:, 1], error[:, 1]).sqrt_()
        if ctx.needs_input_grad[0]:
            pull = error.mul_(_pull(length, weight, loss)[:, None]).mul_(clipped == free)
            gradient = torch.empty_like(projected)
            torch.mul(pull, inverse[:, None], out=gradient[:, :2])
            toward = (gradient[:, :2] * free).sum(dim=1).neg_()
            gradient[:, 2] = toward.mul_(depth > MIN_DEPTH)
            ctx.save_for_backward(gradient)
        return (weight * loss.of_distance(length)).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad, None, None, None


def _pull(length: Tensor, weight: Tensor, loss: GammaLoss) -> Tensor:
    """Derivative of weight * rho(length) divided by length; 0 where the length is 0."""
    return (weight * loss.slope(length)).div_(length).masked_fill_(length == 0, 0)
