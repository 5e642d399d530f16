"""Length, schedule and curriculum of a training run."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Literal

import torch

from dust3r.optim import lr_at
from dust3r.train_state import Counters
from dust3r.utils.processes import World


@dataclass(frozen=True)
class Stage:
    """A part of the run with one image size. Overlap and difficulty change linearly inside it.

    Attributes:
        until: fraction of the run at which the stage ends, in (0, 1].
        height: image height in pixels.
        width: image width in pixels.
        batch_size: pairs per process and micro-batch; None takes `TrainConfig.batch_size`.
        overlap_start: (lowest, highest) share of view 1 that view 2 sees, at the stage's beginning.
        overlap_end: the same at its end.
        difficulty: how much lighting, camera response, roll and focal length differ between the views, 0 to 1,
            at the stage's beginning and end.
        n_corres: pixel correspondences per pair for the matching loss; None takes the source's number.
    """

    until: float = 1.0
    height: int = 224
    width: int = 224
    batch_size: int | None = None
    overlap_start: tuple[float, float] = (0.05, 0.95)
    overlap_end: tuple[float, float] = (0.05, 0.95)
    difficulty: tuple[float, float] = (1.0, 1.0)
    n_corres: int | None = None


@dataclass(frozen=True)
class TrainConfig:
    """How a run is trained. All periods (`*_every`) are in optimiser steps.

    Attributes:
        steps: length of the run in optimiser steps; None leaves it to `minutes`.
        minutes: length of the run in minutes of wall clock over all its sessions; None leaves it to `steps`.
        session_minutes: this process saves and ends after so many minutes, wherever the run stands.
        batch_size: pairs per process and micro-batch, unless a stage says otherwise.
        accum_iter: micro-batches per optimiser step.
        optimizer: "adamw", or "muon" for the matrices of the transformer blocks with AdamW for the rest.
        lr: highest learning rate.
        min_lr: learning rate at the end of the half cosine.
        warmup: fraction of the run in which the learning rate rises linearly from 0.
        weight_decay: AdamW's decay of all parameters but vectors and biases.
        betas: AdamW's moment decays.
        grad_clip: largest gradient norm; None never clips.
        ema_decay: decay of the averaged weights per step; None keeps no average.
        amp: bf16 autocast of the network (the loss stays in float32); "auto" means on CUDA only.
        compile: compile network and loss with `torch.compile`; without a compiler the run goes on uncompiled.
        ahead: make the next batch in a thread (and stream) of its own while the present one trains, on CUDA or
            where torch uses fewer threads than there are cores.
        symmetrize: show every pair in both orders (doubles the batch; each image is encoded once).
        on_nonfinite: skip the step of a non-finite gradient, or stop the run.
        curriculum: stages in order of `until`.
        log_every: steps per log line.
        eval_every: steps per evaluation; None evaluates at the end only.
        save_every: steps per checkpoint.
        keep_every: steps per checkpoint that is kept for ever; None keeps the last two only.
        split_mb: additionally write each checkpoint as parts of at most so many MB.
        best_metric: evaluation metric whose best value is saved as `checkpoint-best.pth`; None saves none.
        best_mode: whether the best value is the largest or the smallest.
        seed: decides initial weights, batches and random draws, with the process's rank.
    """

    steps: int | None = None
    minutes: float | None = None
    session_minutes: float | None = None
    batch_size: int = 16
    accum_iter: int = 1
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-4
    min_lr: float = 1e-6
    warmup: float = 0.02
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float | None = 1.0
    ema_decay: float | None = 0.999
    amp: Literal["auto", "bf16", "off"] = "auto"
    compile: bool = True
    ahead: bool = True
    symmetrize: bool = False
    on_nonfinite: Literal["skip", "stop"] = "skip"
    curriculum: tuple[Stage, ...] = (Stage(),)
    log_every: int = 20
    eval_every: int | None = 500
    save_every: int = 500
    keep_every: int | None = None
    split_mb: float | None = None
    best_metric: str | None = None
    best_mode: Literal["max", "min"] = "min"
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.steps or self.minutes):
            raise ValueError("a run needs a length: give steps, minutes or both")
        ends = [stage.until for stage in self.curriculum]
        if not ends or ends != sorted(ends) or ends[0] <= 0 or ends[-1] < 1:
            raise ValueError(f"curriculum stages must end at increasing fractions up to 1, got {ends}")
        if min(self.batch_size, self.accum_iter, self.log_every, self.save_every) < 1:
            raise ValueError("batch_size, accum_iter, log_every and save_every must be at least 1")

    def fraction(self, counters: Counters) -> float:
        """Share of the run that is done, 0 .. 1."""
        by_steps = counters.step / self.steps if self.steps else 0.0
        by_time = counters.seconds / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(by_steps, by_time))

    def lr_at(self, fraction: float) -> float:
        """Learning rate when `fraction` of the run is done."""
        return lr_at(fraction, lr=self.lr, min_lr=self.min_lr, warmup_epochs=self.warmup, epochs=1.0)

    def uses_bf16(self, device: torch.device) -> bool:
        """Whether the network runs under bf16 autocast on `device`."""
        return self.amp == "bf16" or (self.amp == "auto" and device.type == "cuda")

    def works_ahead(self, device: torch.device) -> bool:
        """Whether the next batch is made while the present one trains: on a CPU only with a core to spare."""
        return self.ahead and (device.type == "cuda" or torch.get_num_threads() < (os.cpu_count() or 1))


@dataclass(frozen=True)
class BatchRequest:
    """What the loop asks a pair source for.

    Attributes:
        seed: differs for each batch of each process, and is the same when a run is repeated or resumed.
        index: number of this micro-batch in the run, the same on all processes.
        rank: number of the asking process.
        world_size: number of processes.
        batch_size: pairs wanted. Sources of fixed batches may ignore this and what follows.
        height: image height in pixels.
        width: image width in pixels.
        overlap: (lowest, highest) share of view 1 that view 2 sees.
        difficulty: how much the views differ apart from that, 0 to 1.
        n_corres: pixel correspondences per pair; None leaves it to the source.
    """

    seed: int
    index: int
    rank: int
    world_size: int
    batch_size: int
    height: int
    width: int
    overlap: tuple[float, float]
    difficulty: float = 1.0
    n_corres: int | None = None


def batch_request(config: TrainConfig, *, fraction: float, index: int, world: World) -> BatchRequest:
    """The request for micro-batch `index` of process `world.rank` when `fraction` of the run is done."""
    start = 0.0
    for stage in config.curriculum:
        if fraction < stage.until:
            break
        start = stage.until
    else:
        start = config.curriculum[-2].until if len(config.curriculum) > 1 else 0.0
    t = min(1.0, (fraction - start) / max(stage.until - start, 1e-9))
    low, high = ((1 - t) * a + t * b for a, b in zip(stage.overlap_start, stage.overlap_end))
    digest = hashlib.blake2b(f"{config.seed}/{index}/{world.rank}".encode(), digest_size=8).digest()
    return BatchRequest(
        seed=int.from_bytes(digest, "little") >> 1,
        index=index,
        rank=world.rank,
        world_size=world.size,
        batch_size=stage.batch_size or config.batch_size,
        height=stage.height,
        width=stage.width,
        overlap=(low, high),
        difficulty=(1 - t) * stage.difficulty[0] + t * stage.difficulty[1],
        n_corres=stage.n_corres,
    )
