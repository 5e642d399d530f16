"""One run as one process or, under `torchrun`, as many: who am I, add up gradients, agree when to stop."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import random
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True)
class World:
    """This process among all that train together.

    Attributes:
        rank: number of this process, 0 .. size-1. Process 0 writes files and logs.
        size: number of processes.
        control: process group for host-side agreement (gloo); it never waits for a GPU. None when size is 1.
    """

    rank: int = 0
    size: int = 1
    control: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def maximum(self, *values: float) -> tuple[float, ...]:
        """Largest of each value over all processes."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.control)
        return tuple(tensor.tolist())

    def gather(self, value: Any) -> list[Any]:
        """`value` of every process, in order of rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def share_parameters(self, model: nn.Module) -> None:
        """Give every process the weights and buffers of process 0."""
        if self.size > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, src=0)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over all processes, as one reduction per dtype."""
        if self.size == 1:
            return
        by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for gradients in by_dtype.values():
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            pieces = flat.div_(self.size).split([gradient.numel() for gradient in gradients])
            torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(pieces, gradients)])


def resolve_device(name: str) -> torch.device:
    """`auto` picks CUDA, then MPS, then the CPU; under `torchrun` each process takes its own CUDA device."""
    if name == "auto":
        mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        index = device.index if device.index is not None else int(os.environ.get("LOCAL_RANK", "0"))
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    return device


def allow_fast_kernels(device: torch.device, *, benchmark: bool = True) -> None:
    """Let CUDA use TF32 for float32 products, and choose convolutions by trying them."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = benchmark


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # names of <malloc.h>


def keep_freed_memory() -> bool:
    """Let the C library reuse the memory of freed tensors instead of giving it back to the system (glibc only).

    Otherwise every step of a training run on a CPU asks for its tensors anew and waits while the system clears each
    page, up to a quarter of a step of the small model. The process then keeps the largest amount it ever used.

    Returns:
        Whether it took effect; elsewhere than on Linux with glibc nothing is done.
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 64 * 2**20))
    return all([mallopt(name, value) for name, value in settings])


def seed_process(seed: int, world: World) -> None:
    """Seed the global generators of Python, NumPy and torch, differently in each process."""
    random.seed(seed + world.rank)
    np.random.seed((seed + world.rank) % 2**32)
    torch.manual_seed(seed + world.rank)


@contextlib.contextmanager
def join_world(device: torch.device, *, timeout_minutes: float = 60.0) -> Iterator[World]:
    """The processes that `torchrun` started (its environment variables say so), or this process alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    timeout = timedelta(minutes=timeout_minutes)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    try:
        control = dist.new_group(backend="gloo", timeout=timeout)
        yield World(dist.get_rank(), dist.get_world_size(), control)
    finally:
        dist.destroy_process_group()


class StopRequest:
    """Becomes true when the user or the system asks the run to end."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.received is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; a second Ctrl-C interrupts at once."""
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Inside the block SIGTERM and SIGINT set the yielded request instead of killing the process."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # Python delivers signals to the main thread only
        return
    previous = {s: signal.signal(s, request.handle) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
