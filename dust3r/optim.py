"""Helpers of the training loop: learning-rate curve, weight-decay groups, clipping, weight averaging."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_COMPILED_PREFIX = "_orig_mod."  # what torch.compile puts before every parameter name


def lr_at(epoch: float, *, lr: float, min_lr: float = 0.0, warmup_epochs: float = 0, epochs: float) -> float:
    """Learning rate at a fractional epoch: linear warm-up from 0, then half a cosine from `lr` to `min_lr`.

    Args:
        epoch: epochs done, with fraction; >= 0. Past `epochs` the rate stays at `min_lr`.
        lr: peak rate, reached at `warmup_epochs`.
        min_lr: final rate, reached at `epochs`.
        warmup_epochs: length of the warm-up.
        epochs: length of the whole schedule.
    """
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    if epoch >= epochs:
        return min_lr
    progress = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def set_lr(optimizer: torch.optim.Optimizer | JointOptimizer, lr: float) -> None:
    """Give every parameter group of `optimizer` the rate `lr` times its `lr_scale` (default 1)."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def param_groups(
    model: nn.Module, weight_decay: float, *, leave_out: Sequence[nn.Parameter] = ()
) -> list[dict[str, Any]]:
    """Trainable parameters for AdamW in two groups: with decay, and without (1-D tensors and biases).

    Args:
        model: whose parameters.
        weight_decay: of the first group.
        leave_out: parameters that another optimiser takes.

    Returns:
        Groups with keys `params`, `weight_decay` and `lr_scale` (1.0); empty groups are left out.
    """
    others = {id(parameter) for parameter in leave_out}
    decayed, plain = [], []
    for name, param in model.named_parameters():
        if param.requires_grad and id(param) not in others:
            (plain if param.ndim <= 1 or name.endswith(".bias") else decayed).append(param)
    groups = [(decayed, weight_decay), (plain, 0.0)]
    return [{"params": params, "weight_decay": wd, "lr_scale": 1.0} for params, wd in groups if params]


def block_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Trainable weight matrices inside the transformer blocks of `model`: what Muon is made for."""
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.ndim == 2 and "_blocks" in name
    ]


class JointOptimizer:
    """Several optimisers of disjoint parameters that step, save and load as one.

    Args:
        *parts: the optimisers; their parameter groups are joined in this order.
    """

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts
        self.defaults: dict[str, Any] = {}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all parts."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        """Update all parameters."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """State in the form of a single optimiser: parameters are numbered through all parts."""
        state: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        for part, first in zip(self.parts, self._first_numbers()):
            own = part.state_dict()
            state |= {first + number: value for number, value in own["state"].items()}
            groups += [{**group, "params": [first + n for n in group["params"]]} for group in own["param_groups"]]
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` of an equally built optimiser returned."""
        groups = iter(state_dict["param_groups"])
        for part, first in zip(self.parts, self._first_numbers()):
            own = [next(groups) for _ in part.param_groups]
            numbers = {number for group in own for number in group["params"]}
            part.load_state_dict(
                {
                    "state": {n - first: value for n, value in state_dict["state"].items() if n in numbers},
                    "param_groups": [{**group, "params": [n - first for n in group["params"]]} for group in own],
                }
            )

    def _first_numbers(self) -> list[int]:
        counts = [sum(len(group["params"]) for group in part.param_groups) for part in self.parts]
        return [sum(counts[:k]) for k in range(len(counts))]


def clip_grad_norm(parameters: nn.Module | Iterable[Tensor], max_norm: float | None) -> Tensor:
    """Scale all gradients so that their joint L2 norm is at most `max_norm` (None: leave them).

    Returns:
        The norm before clipping, a 0-D tensor (not fetched, so the GPU is not waited for).
    """
    parameters = parameters.parameters() if isinstance(parameters, nn.Module) else parameters
    return nn.utils.clip_grad_norm_(parameters, math.inf if max_norm is None else max_norm)


class EMA:
    """Exponential moving average of a model's floating-point parameters and buffers.

    The shadow copy starts as the model. Each `update` moves it by `1 - decay`; the decay warms up as
    (1 + n) / (10 + n) over the number of updates n, so that early, bad weights are forgotten.

    Args:
        model: model to follow; frozen parameters are followed too, so the shadow is a complete state.
        decay: limit of the decay, in [0, 1).
        warmup: whether the decay warms up.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999, *, warmup: bool = True):
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay must lie in [0, 1), got {decay}; 0.999 is usual")
        self.decay = decay
        self.warmup = warmup
        self.updates = 0
        self.shadow = {name: tensor.detach().clone() for name, tensor in _averaged_tensors(model)}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the shadow towards the current weights of `model`, in one fused call per dtype and device."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        self.updates += 1
        current = dict(_averaged_tensors(model))
        torch._foreach_lerp_(list(self.shadow.values()), [current[k] for k in self.shadow], 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the weights of `model` by the averaged ones."""
        current = dict(_averaged_tensors(model))
        torch._foreach_copy_([current[k] for k in self.shadow], list(self.shadow.values()))

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[nn.Module]:
        """Within the block `model` carries the averaged weights; its own come back afterwards."""
        own = {name: tensor.detach().clone() for name, tensor in _averaged_tensors(model)}
        self.copy_to(model)
        try:
            yield model
        finally:
            current = dict(_averaged_tensors(model))
            with torch.no_grad():
                torch._foreach_copy_([current[k] for k in own], list(own.values()))

    def state_dict(self) -> dict[str, Any]:
        """All `load_state_dict` needs to continue: shadow tensors by name, `updates`, `decay`, `warmup`."""
        return {
            "shadow": dict(self.shadow),
            "updates": self.updates,
            "decay": self.decay,
            "warmup": self.warmup,
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`.

        Raises:
            ValueError: if its tensors are not those of this model.
        """
        shadow = state["shadow"]
        if shadow.keys() != self.shadow.keys():
            differing = sorted(shadow.keys() ^ self.shadow.keys())
            raise ValueError(f"EMA state of another model: {len(differing)} names differ, first {differing[0]!r}")
        for name, tensor in self.shadow.items():
            tensor.copy_(shadow[name])
        self.updates, self.decay, self.warmup = state["updates"], state["decay"], state["warmup"]


def _averaged_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Floating-point parameters and saved buffers by name, as the uncompiled model calls them."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            yield name.removeprefix(_COMPILED_PREFIX), tensor
