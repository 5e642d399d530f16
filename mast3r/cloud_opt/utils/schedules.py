"""Learning rates over the share of an optimisation that is done."""

from __future__ import annotations

from dust3r.cloud_opt import commons


def cosine_schedule(t: float, lr_base: float, lr_end: float = 0.0) -> float:
    """Half a cosine from `lr_base` at t = 0 to `lr_end` at t = 1."""
    return commons.cosine_schedule(t, lr_base, lr_end)


def linear_schedule(t: float, lr_base: float, lr_end: float = 0.0) -> float:
    """A straight line from `lr_base` at t = 0 to `lr_end` at t = 1."""
    return commons.linear_schedule(t, lr_base, lr_end)
