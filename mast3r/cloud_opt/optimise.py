"""The optimisation loop of sparse alignment."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn

from dust3r.cloud_opt.commons import ScheduleName, learning_rate
from mast3r.cloud_opt.objectives import Objective
from mast3r.cloud_opt.parameters import SceneParameters, SceneState

logger = logging.getLogger(__name__)

_BETAS = (0.9, 0.9)

Schedule: TypeAlias = "ScheduleName | Callable[[float, float, float], float]"
"""Fall of the learning rate: a name, or a function of the share done, the first and the last rate."""

OnStep = Callable[[float], None]
"""Told the share of a stage that is done."""


@dataclass(frozen=True, eq=False)
class StageResult:
    """Where a stage ended.

    Attributes:
        state: Cameras and depth in float64.
        loss: The objective there.
    """

    state: SceneState
    loss: float


def run_stage(
    scene: SceneParameters,
    objective: Objective,
    parameters: Sequence[nn.Parameter],
    *,
    lr: float,
    niter: int,
    schedule: Schedule = "cosine",
    on_step: OnStep | None = None,
) -> StageResult:
    """Minimise an objective with Adam.

    Args:
        scene: The parameters.
        objective: What to minimise.
        parameters: Those of the scene that move.
        lr: First learning rate; it falls to zero.
        niter: Number of steps.
        schedule: Fall of the learning rate.
        on_step: Called after every step.

    Returns:
        The state BEFORE the last step, to which the loss belongs; the present one without steps.
    """
    last = copy.deepcopy(scene.state_dict())
    if not niter:
        with torch.no_grad():
            return StageResult(_exact_state(scene, last), float(objective(scene())))
    optimizer = torch.optim.Adam(list(parameters), lr=lr, betas=_BETAS)
    loss = torch.zeros(())
    for step in range(niter):
        optimizer.param_groups[0]["lr"] = _rate(schedule, step / niter, lr)
        optimizer.zero_grad()
        loss = objective(scene())
        loss.backward()
        if step == niter - 1:
            last = copy.deepcopy(scene.state_dict())
        optimizer.step()
        scene.normalize_()
        if on_step is not None:
            on_step((step + 1) / niter)
    return StageResult(_exact_state(scene, last), float(loss.detach()))


def _rate(schedule: Schedule, done: float, first: float) -> float:
    return learning_rate(schedule, done, first, 0.0) if isinstance(schedule, str) else schedule(done, first, 0.0)


@torch.no_grad()
def _exact_state(scene: SceneParameters, values: dict[str, torch.Tensor]) -> SceneState:
    """The state of given parameter values, worked out in float64: chained poses stay rigid."""
    exact = scene.in_float64()
    exact.load_state_dict(values)
    exact.normalize_()
    return exact()
