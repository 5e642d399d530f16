"""The training loop of two-view networks: one readable loop for one process or many, on a CPU or on GPUs.

A run asks a *pair source* for batches, takes optimiser steps, logs, evaluates the averaged weights and saves.
Its length is given in steps, in minutes, or both; whatever ends first. Learning rate and curriculum follow
the fraction of the run that is done, so that a run of fixed time uses its whole schedule on any machine. The
loop knows no descriptors and no scenes: model, criterion, source and evaluation come from the caller.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import DataLoader

from dust3r import datasets, losses, train_state
from dust3r.checkpoint import initialize_from
from dust3r.model import AsymmetricCroCo3DStereo
from dust3r.train_config import BatchRequest, Stage, TrainConfig, batch_request
from dust3r.train_data import Batches, LoaderSource, PairSource, evaluate_on_loaders
from dust3r.train_log import Averages, PhaseClock, RunLog
from dust3r.train_state import Counters, TrainState
from dust3r.train_step import (
    Criterion,
    LossAndGradient,
    View,
    averaged_weights,
    build_state,
    count_flops,
    symmetrize,
    train_step,
)
from dust3r.utils.expression import build
from dust3r.utils.processes import (
    StopRequest,
    World,
    allow_fast_kernels,
    join_world,
    keep_freed_memory,
    resolve_device,
    seed_process,
    stop_on_signals,
)

__all__ = [
    "BatchRequest",
    "Criterion",
    "Evaluate",
    "PairSource",
    "RunPlan",
    "Stage",
    "TrainConfig",
    "TrainingRun",
    "View",
    "averaged_weights",
    "describe_hardware",
    "fit",
    "get_args_parser",
    "model_expression",
    "plan_official_run",
    "seed_process",
    "train",
]

logger = logging.getLogger(__name__)

Evaluate = Callable[[nn.Module, int], Mapping[str, float]]

_HOPELESS_STEPS = 20  # so many steps in a row without a finite gradient end the run


def fit(
    model: nn.Module,
    criterion: Criterion,
    source: PairSource,
    config: TrainConfig,
    *,
    output_dir: str | Path,
    evaluate: Evaluate | None = None,
    resume: str | Path | Literal["auto"] | None = "auto",
    world: World = World(),  # noqa: B008 - frozen
    extra: Mapping[str, Any] | None = None,
) -> TrainState:
    """Train `model` until the run's length is reached, a signal asks to stop, or the session's time is up.

    Args:
        model: on its device. Its forward takes two view dicts and returns two prediction dicts.
        criterion: (view1, view2, pred1, pred2) -> (loss, named parts).
        source: called with a `BatchRequest` for each batch.
        config: length, schedule, periods.
        output_dir: takes `checkpoint-*.pth`, `log.jsonl` and `tensorboard/`.
        evaluate: called with the averaged model in evaluation mode and the step, on the main process.
        resume: a state file, parts index or folder; "auto" continues from `output_dir` when it holds a state.
        world: the processes that train together.
        extra: plain values to store in every checkpoint (for example the model's constructor call).

    Returns:
        The state at the end. `averaged_weights(state)` gives the weights to ship.

    Raises:
        FloatingPointError: when the gradients stop being finite.
        ValueError: when the state to resume from is damaged or belongs to another model.
    """
    world.share_parameters(model)
    run = TrainingRun(
        build_state(model.train(), config), criterion, source, config,
        output_dir=Path(output_dir), evaluate=evaluate, world=world, extra=extra or {},
    )  # fmt: skip
    if resume == "auto":
        resume = output_dir if train_state.has_state(output_dir) else None
    if resume is not None:
        run.restore(resume)
    with stop_on_signals() as stop:
        run.loop(stop)
    return run.state


class TrainingRun:
    """A run in progress: what `fit` was given and what it keeps between steps."""

    def __init__(
        self,
        state: TrainState,
        criterion: Criterion,
        source: PairSource,
        config: TrainConfig,
        *,
        output_dir: Path,
        evaluate: Evaluate | None,
        world: World,
        extra: Mapping[str, Any],
    ) -> None:
        self.state, self.config, self.world = state, config, world
        self.output_dir, self.evaluate, self.extra = output_dir, evaluate, extra
        self.device = next(state.model.parameters()).device
        self.loss_and_gradient = LossAndGradient(
            state.model, criterion, bf16=config.uses_bf16(self.device), compile=config.compile
        )
        self.averages = Averages()
        self.clock = PhaseClock(self.device)
        self.batches = Batches(source, self.device, self.clock, ahead=config.works_ahead(self.device))
        self.best: float | None = None
        self._seconds_before = 0.0
        self._saved: tuple[int, float | None] | None = None
        self._upcoming: list[BatchRequest] | None = None
        self._flops_per_pair: dict[tuple[int, ...], float] = {}
        self._hopeless = 0

    @property
    def counters(self) -> Counters:
        """How far the run has come."""
        return self.state.counters

    def loop(self, stop: StopRequest) -> None:
        """Train until the end of the run or of this session; saves before it returns."""
        config, counters = self.config, self.counters
        self._start_log()
        try:
            while not self._time_to_end(stop):
                self._step()
                if counters.step % config.log_every == 0:
                    self._write_log()
                if config.eval_every and counters.step % config.eval_every == 0:
                    self._evaluate()
                if counters.step % config.save_every == 0:
                    self.save()
            self._finish(stop)
        finally:
            self.batches.close()
            self.log.close()

    def _time_to_end(self, stop: StopRequest) -> bool:
        """Bring all processes' clocks together and decide, on all alike, whether this session ends here."""
        session, stopped = self.world.maximum(time.monotonic() - self._began, float(bool(stop)))
        self.counters.seconds = self._seconds_before + session
        fraction = self.config.fraction(self.counters)
        self.log.progress(fraction)
        limit = self.config.session_minutes
        return bool(stopped) or fraction >= 1.0 or (limit is not None and session >= 60 * limit)

    def _step(self) -> None:
        config, counters = self.config, self.counters
        requests = self._upcoming or self._requests(counters)
        batches = [self.batches.get(request) for request in requests]
        if config.works_ahead(self.device):
            self._upcoming = self._requests(replace(counters, step=counters.step + 1))
            self.batches.ask_ahead(self._upcoming)
        counters.pairs += self.world.size * sum(len(view1["img"]) for view1, _ in batches)
        if config.symmetrize:
            batches = [symmetrize(view1, view2) for view1, view2 in batches]
        self._last_shape, self._last_overlap = tuple(batches[0][0]["img"].shape[-2:]), requests[0].overlap
        if self._last_shape not in self._flops_per_pair:
            self._flops_per_pair[self._last_shape] = count_flops(self.state.model, *batches[0])
        lr = config.lr_at(config.fraction(counters))
        with self.clock.measure("step"):
            parts = train_step(self.state, self.loss_and_gradient, batches, config, lr=lr, world=self.world)
        self.averages.add(parts, weight=1 - parts.pop("skipped"))
        counters.step += 1

    def _requests(self, counters: Counters) -> list[BatchRequest]:
        """What to ask the source for at `counters`, one request per micro-batch."""
        fraction, accum = self.config.fraction(counters), self.config.accum_iter
        indices = range(counters.step * accum, (counters.step + 1) * accum)
        return [batch_request(self.config, fraction=fraction, index=index, world=self.world) for index in indices]

    def _finish(self, stop: StopRequest) -> None:
        counters, every = self.counters, self.config.eval_every
        self._write_log()
        finished = self.config.fraction(counters) >= 1.0
        if finished and not (every and counters.step % every == 0):
            self._evaluate()
        out_of_time = finished and self.config.minutes is not None  # the checkpoint must say that its time is used up
        if out_of_time or self._saved != (counters.step, self.best):
            self.save()
        outcome = "finished" if finished else "stopped"
        signal = None if stop.received is None else stop.received.name
        self.log.write(outcome, {**asdict(counters), "signal": signal})
        logger.info("%s at step %d after %.1f min", outcome, counters.step, counters.seconds / 60)

    # --- saving and evaluating ---

    def restore(self, path: str | Path) -> None:
        """Continue from the state at `path` (file, parts index or folder)."""
        saved = train_state.read_state(path)
        self.state.load_state_dict(saved)
        self.best = saved["best"]
        self._seconds_before = self.counters.seconds
        if len(saved["rng"]) == self.world.size:
            train_state.set_rng_state(saved["rng"][self.world.rank], self.device)
        else:
            logger.warning("%d processes resume a run of %d: random draws differ", self.world.size, len(saved["rng"]))
        logger.info("resumed from %s at step %d", path, self.counters.step)

    def save(self) -> None:
        """Write the checkpoint (the main process does; all take part)."""
        self._saved = (self.counters.step, self.best)
        rng = self.world.gather(train_state.get_rng_state(self.device))
        if not self.world.is_main:
            return
        self.counters.seconds = self._seconds_before + time.monotonic() - self._began
        state = self.state.state_dict(rng=rng, extra={**self.extra, "best": self.best})
        path = train_state.save_state(state, self.output_dir, split_mb=self.config.split_mb)
        keep, step = self.config.keep_every, self.counters.step
        if keep and step % keep == 0:
            train_state.link_or_copy(path, self.output_dir / f"checkpoint-{step}.pth")

    def _evaluate(self) -> None:
        if self.evaluate is None or not self.world.is_main:
            return
        with averaged_weights(self.state) as model:
            metrics = dict(self.evaluate(model, self.counters.step))
            self._keep_best(model, metrics)
        # what a measurement calls pairs or points must not hide how far the run is
        self.log.write("eval", {**metrics, "step": self.counters.step, "pairs": self.counters.pairs})
        text = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        logger.info("step %d: %s", self.counters.step, text)

    def _keep_best(self, model: nn.Module, metrics: Mapping[str, float]) -> None:
        value = metrics.get(self.config.best_metric or "")
        if value is None or math.isnan(value):
            return
        sign = 1 if self.config.best_mode == "max" else -1
        if self.best is None or sign * value > sign * self.best:
            self.best = float(value)
            content = {
                **self.extra,
                "model": model.state_dict(),
                "metrics": metrics,
                "step": self.counters.step,
            }
            train_state.write_atomically(
                self.output_dir / "checkpoint-best.pth", lambda file: torch.save(content, file)
            )

    # --- telling ---

    def _start_log(self) -> None:
        main = self.world.is_main
        self.log = RunLog(self.output_dir, enabled=main, start=self.config.fraction(self.counters))
        hardware = f"{self.world.size} x {describe_hardware(self.device)}"
        self.log.write("start", {"config": asdict(self.config), "hardware": hardware, **asdict(self.counters)})
        self._began = time.monotonic()
        self._logged = (self._began, self.counters.pairs)

    def _write_log(self) -> None:
        means, steps, counted = self.averages.flush()
        if not steps:
            return
        self._count_skipped(steps, skipped=round(steps - counted))
        (when, pairs), counters = self._logged, self.counters
        self._logged = (now, _) = (time.monotonic(), counters.pairs)
        elapsed = now - when
        shares = {f"{phase}_share": seconds / elapsed for phase, seconds in self.clock.flush().items()}
        rate = (counters.pairs - pairs) / elapsed
        flops = self._flops_per_pair[self._last_shape] * (2 if self.config.symmetrize else 1)
        fraction = self.config.fraction(counters)
        record = {
            **asdict(counters), "fraction": fraction, "lr": self.config.lr_at(fraction), **means,
            "pairs_per_second": rate, **shares, "tflops": rate * flops / 1e12,
            "height": self._last_shape[0], "width": self._last_shape[1],
            "overlap_low": self._last_overlap[0], "overlap_high": self._last_overlap[1],
        }  # fmt: skip
        if self.device.type == "cuda":
            record["gpu_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        self.log.write("train", record)
        self.log.show(
            f"step {counters.step} loss {means['loss']:.3f} {rate:.1f} pairs/s "
            f"({shares.get('source_share', 0.0):.0%} of the time for the pairs)"
        )

    def _count_skipped(self, steps: int, *, skipped: int) -> None:
        if skipped:
            logger.warning("%d of the last %d steps had no finite gradient and were skipped", skipped, steps)
        self.counters.skipped += skipped
        self._hopeless = self._hopeless + steps if skipped == steps else 0
        if self._hopeless >= _HOPELESS_STEPS:
            raise FloatingPointError(
                f"no finite gradient in the last {self._hopeless} steps up to step {self.counters.step}: "
                "resume from the last checkpoint with a lower learning rate"
            )


def describe_hardware(device: torch.device) -> str:
    """One line on what a run is trained on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return f"{name}, torch {torch.__version__}"


# --- the official command line ---


def get_args_parser() -> argparse.ArgumentParser:
    """The official flags of `train.py` with their published defaults."""
    parser = argparse.ArgumentParser("DUSt3R training", description="Train DUSt3R on prepared data sets.")
    text = parser.add_argument_group("what to train (constructor expressions)")
    text.add_argument("--model", default="AsymmetricCroCo3DStereo(patch_embed_cls='ManyAR_PatchEmbed')")
    text.add_argument("--pretrained", help="weights to start from; missing ones stay as initialised")
    text.add_argument("--train_criterion", default="ConfLoss(Regr3D(L21, norm_mode='avg_dis'), alpha=0.2)")
    text.add_argument("--test_criterion", help="default: the training criterion")
    text.add_argument("--train_dataset", help="data sets to train on")
    text.add_argument("--test_dataset", default="[None]", help="data sets to test on, joined by +")
    schedule = parser.add_argument_group("schedule")
    schedule.add_argument("--seed", default=0, type=int)
    schedule.add_argument("--batch_size", default=64, type=int, help="pairs per process and micro-batch")
    schedule.add_argument("--accum_iter", default=1, type=int, help="micro-batches per optimiser step")
    schedule.add_argument("--epochs", default=800, type=int)
    schedule.add_argument("--weight_decay", default=0.05, type=float)
    schedule.add_argument("--lr", type=float, help="highest learning rate (default: blr * effective batch / 256)")
    schedule.add_argument("--blr", default=1.5e-4, type=float, help="learning rate per 256 pairs")
    schedule.add_argument("--min_lr", default=0.0, type=float)
    schedule.add_argument("--warmup_epochs", default=40, type=int)
    schedule.add_argument("--amp", default=0, type=int, choices=(0, 1), help="bf16 autocast")
    schedule.add_argument("--disable_cudnn_benchmark", action="store_true")
    other = parser.add_argument_group("other")
    other.add_argument("--num_workers", default=8, type=int)
    other.add_argument("--eval_freq", default=1, type=int, help="epochs per evaluation")
    other.add_argument("--save_freq", default=1, type=int, help="epochs per checkpoint")
    other.add_argument("--keep_freq", default=20, type=int, help="epochs per checkpoint that is kept")
    other.add_argument("--print_freq", default=20, type=int, help="steps per log line")
    other.add_argument("--output_dir", default="./output/")
    return parser


@dataclass(frozen=True)
class RunPlan:
    """All that a run needs, put together from flags.

    Attributes:
        model: on its device.
        criterion: the training criterion.
        source: where the pairs come from.
        config: schedule and periods.
        output_dir: where the run writes.
        evaluate: its periodic evaluation.
        data: the training data in words.
    """

    model: nn.Module
    criterion: Criterion
    source: PairSource
    config: TrainConfig
    output_dir: Path
    evaluate: Evaluate | None
    data: str

    def run(self, *, world: World, resume: str | Path | None) -> TrainState:
        """Train."""
        return fit(
            self.model, self.criterion, self.source, self.config, output_dir=self.output_dir,
            evaluate=self.evaluate, resume=resume, world=world,
            extra={"model_name": model_expression(self.model)},
        )  # fmt: skip


def model_expression(model: nn.Module) -> str:
    """The constructor call of `model`, from the arguments it remembers."""
    arguments = getattr(model, "config", {})
    return f"{type(model).__name__}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"


def train(args: argparse.Namespace) -> TrainState:
    """Train with the official flags (`get_args_parser().parse_args()`); returns the state at the end."""
    names = {name: getattr(losses, name) for name in ("ConfLoss", "L21", *_REGRESSIONS)}
    names |= {name: getattr(datasets, name) for name in datasets.__all__}
    device = resolve_device("auto")
    allow_fast_kernels(device, benchmark=not args.disable_cudnn_benchmark)
    keep_freed_memory()
    with join_world(device) as world:
        plan = plan_official_run(args, {**names, "AsymmetricCroCo3DStereo": AsymmetricCroCo3DStereo}, device)
        seed_process(args.seed, world)
        return plan.run(world=world, resume="auto")


_REGRESSIONS = ("Regr3D", "Regr3D_ShiftInv", "Regr3D_ScaleInv", "Regr3D_ScaleShiftInv")


def plan_official_run(args: argparse.Namespace, registry: Mapping[str, object], device: torch.device) -> RunPlan:
    """The published way to train on prepared data sets.

    Args:
        args: all official flags.
        registry: names that the expressions in `args` may use.
        device: where to train.

    Raises:
        ValueError: when no training set is given, or an expression is not understood.
    """
    if not args.train_dataset:
        raise ValueError("no training data: give --train_dataset a constructor expression")
    torch.manual_seed(args.seed)  # the same initial weights on every process
    model = build(args.model, registry)
    if args.pretrained:
        initialize_from(model, args.pretrained)
    criterion = build(args.train_criterion, registry)
    test_criterion = build(args.test_criterion or args.train_criterion, registry)
    loader = datasets.get_data_loader(build(args.train_dataset, registry), args.batch_size, args.num_workers)
    tests = {
        f"{number}_{text.split('(')[0].split('@')[-1].strip()}": DataLoader(
            build(text, registry), args.batch_size, num_workers=args.num_workers
        )
        for number, text in enumerate(_test_sets(args.test_dataset))
    }

    def evaluate(model: nn.Module, step: int) -> Mapping[str, float]:
        return evaluate_on_loaders(model, test_criterion, tests, device)

    return RunPlan(
        model=model.to(device),
        criterion=criterion,
        source=LoaderSource(loader, seed=args.seed),
        config=official_config(args, batches_per_epoch=len(loader)),
        output_dir=Path(args.output_dir),
        evaluate=evaluate if tests else None,
        data=args.train_dataset,
    )


def _test_sets(text: str) -> list[str]:
    """The terms of a sum of data sets; `[None]` and nothing mean none."""
    return [term.strip() for term in text.split("+") if term.strip() not in ("", "[None]", "None")]


def official_config(args: argparse.Namespace, *, batches_per_epoch: int) -> TrainConfig:
    """The official flags in steps of this loop, with the published precision and schedule."""
    steps = max(1, batches_per_epoch // args.accum_iter)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    effective_batch = args.batch_size * args.accum_iter * processes
    lr = args.lr if args.lr is not None else args.blr * effective_batch / 256
    return TrainConfig(
        steps=args.epochs * steps,
        batch_size=args.batch_size,
        accum_iter=args.accum_iter,
        lr=lr,
        min_lr=args.min_lr,
        warmup=args.warmup_epochs / args.epochs,
        weight_decay=args.weight_decay,
        grad_clip=None,
        ema_decay=None,
        amp="bf16" if args.amp else "off",
        compile=False,
        symmetrize=True,
        on_nonfinite="stop",
        log_every=args.print_freq,
        eval_every=args.eval_freq * steps if args.eval_freq > 0 else None,
        save_every=max(1, args.save_freq) * steps,
        keep_every=args.keep_freq * steps if args.keep_freq > 0 else None,
        best_metric="loss_med",
        seed=args.seed,
    )
