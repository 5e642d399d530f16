"""One optimiser step of a two-view network: loss, gradient, clipping, update, averaged weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dust3r.inference import make_batch_symmetric
from dust3r.optim import EMA, JointOptimizer, block_matrices, clip_grad_norm, param_groups, set_lr
from dust3r.train_config import TrainConfig
from dust3r.train_state import TrainState
from dust3r.utils.processes import World

logger = logging.getLogger(__name__)

View = dict[str, Any]
Criterion = Callable[[View, View, View, View], tuple[torch.Tensor, Mapping[str, Any]]]


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer | JointOptimizer:
    """The optimiser of `config` on all trainable parameters; vectors and biases are not decayed.

    AdamW is fused where torch offers it. Muon (Jordan 2024, its steps scaled to the size of AdamW's as by Liu et al.
    2025) takes the matrices of the transformer blocks and leaves the rest to AdamW.

    Raises:
        RuntimeError: if Muon is asked for and this torch has none.
    """
    devices = {parameter.device.type for parameter in model.parameters()}
    matrices = block_matrices(model) if config.optimizer == "muon" else []
    groups = param_groups(model, config.weight_decay, leave_out=matrices)
    adamw = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=devices <= {"cpu", "cuda"})
    if not matrices:
        return adamw
    if not hasattr(torch.optim, "Muon"):
        raise RuntimeError(f"optimizer 'muon' needs torch 2.9 or newer, this is {torch.__version__}: use 'adamw'")
    muon = torch.optim.Muon(matrices, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
    return JointOptimizer(adamw, muon)


def build_state(model: nn.Module, config: TrainConfig) -> TrainState:
    """Model, optimiser and averaged weights at the beginning of a run."""
    ema = None if config.ema_decay is None else EMA(model, config.ema_decay)
    return TrainState(model, build_optimizer(model, config), ema)


@contextmanager
def averaged_weights(state: TrainState) -> Iterator[nn.Module]:
    """Inside the block the model holds the averaged weights and is in evaluation mode."""
    model = state.model
    was_training = model.training
    try:
        with nullcontext() if state.ema is None else state.ema.applied_to(model):
            yield model.eval()
    finally:
        model.train(was_training)


def symmetrize(view1: View, view2: View) -> tuple[View, View]:
    """Interleave pairs with their swaps, named alike in every batch so that compiled code stays valid."""
    view1, view2 = make_batch_symmetric((view1, view2))
    names = [str(row) for row in range(len(view1["img"]))]
    swapped = [names[row ^ 1] for row in range(len(names))]
    return {**view1, "instance": names}, {**view2, "instance": swapped}


def network_inputs(view: View) -> View:
    """The part of a training view that the network looks at."""
    return {key: view[key] for key in ("img", "true_shape", "instance") if key in view}


def forward_loss(
    model: nn.Module, criterion: Criterion, view1: View, view2: View, *, bf16: bool
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of one batch and its named parts (scalars on the loss's device)."""
    device = view1["img"].device
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        pred1, pred2 = model(network_inputs(view1), network_inputs(view2))
    loss, details = criterion(view1, view2, pred1, pred2)
    parts = {name: torch.as_tensor(part, dtype=torch.float32, device=device) for name, part in details.items()}
    return loss, {"loss": loss.detach(), **parts}


class LossAndGradient:
    """Forward and backward pass of one batch, compiled when wished for and possible."""

    def __init__(self, model: nn.Module, criterion: Criterion, *, bf16: bool, compile: bool) -> None:
        self._model, self._criterion, self._bf16 = model, criterion, bf16
        self._compiled = torch.compile(forward_loss, dynamic=False) if compile else None

    def __call__(self, view1: View, view2: View, *, divide_by: int = 1) -> dict[str, torch.Tensor]:
        """Add the gradient of loss / `divide_by` to the parameters; returns the loss and its parts."""
        if self._compiled is not None:
            try:
                return self._run(self._compiled, view1, view2, divide_by)
            except _compiler_errors() as error:
                logger.warning("torch.compile failed, training goes on uncompiled (slower): %s", _first_line(error))
                self._compiled = None
        return self._run(forward_loss, view1, view2, divide_by)

    def _run(self, forward: Callable, view1: View, view2: View, divide_by: int) -> dict[str, torch.Tensor]:
        loss, parts = forward(self._model, self._criterion, view1, view2, bf16=self._bf16)
        (loss / divide_by).backward()
        return parts


def _compiler_errors() -> tuple[type[BaseException], ...]:
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor import exc

    return TorchDynamoException, exc.CppCompileError, exc.InvalidCxxCompiler


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def train_step(
    state: TrainState,
    loss_and_gradient: LossAndGradient,
    batches: Sequence[tuple[View, View]],
    config: TrainConfig,
    *,
    lr: float,
    world: World = World(),  # noqa: B008 - frozen
) -> dict[str, torch.Tensor]:
    """One optimiser step over the gradient of all `batches`; updates the averaged weights.

    Returns:
        Loss, its parts, gradient norm and whether the step was skipped, as scalars that still live on the
        training device: nothing here waits for it.
    """
    values: dict[str, torch.Tensor] = {}
    for view1, view2 in batches:
        parts = loss_and_gradient(view1, view2, divide_by=len(batches))
        for name, part in parts.items():
            share = part.detach() / len(batches)
            values[name] = values[name] + share if name in values else share
    parameters = [parameter for parameter in state.model.parameters() if parameter.grad is not None]
    world.average_gradients(parameters)
    norm = clip_grad_norm(parameters, config.grad_clip)
    skipped = _apply_gradients(state, norm, lr, stop_on_nonfinite=config.on_nonfinite == "stop")
    return {**values, "grad_norm": norm.nan_to_num(0.0, 0.0, 0.0), "skipped": skipped}


def _apply_gradients(state: TrainState, norm: torch.Tensor, lr: float, *, stop_on_nonfinite: bool) -> torch.Tensor:
    """Update weights and average, or leave them alone if the gradient is not finite; returns 1 if so."""
    optimizer = state.optimizer
    skip = (~torch.isfinite(norm)).float()
    if stop_on_nonfinite and bool(skip):
        raise FloatingPointError(f"the gradient of step {state.counters.step} is not finite: lower the learning rate")
    set_lr(optimizer, lr)
    if optimizer.defaults.get("fused"):
        # The fused kernel reads this flag on the device and then changes nothing: no waiting.
        optimizer.found_inf, optimizer.grad_scale = skip, None  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.step()
    elif not bool(skip):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if state.ema is not None:
        state.ema.update(state.model)
    return skip


@torch.no_grad()
def count_flops(model: nn.Module, view1: View, view2: View) -> float:
    """Estimated floating-point operations to train on one pair: three times those of the forward pass."""
    rows = min(2, len(view1["img"]))
    views = [{key: value[:rows] for key, value in network_inputs(view).items()} for view in (view1, view2)]
    with FlopCounterMode(display=False) as counter:
        model(*views)
    return 3.0 * counter.get_total_flops() / rows
