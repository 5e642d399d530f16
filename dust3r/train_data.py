"""Where the training loop gets its batches: from any pair source, one step ahead, or from data loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from statistics import fmean, median
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from dust3r.inference import loss_of_one_batch
from dust3r.train_config import BatchRequest
from dust3r.train_log import PhaseClock

View = dict[str, Any]
PairSource = Callable[[BatchRequest], tuple[View, View]]


def to_device(view: View, device: torch.device) -> View:
    """`view` with its tensors on `device` (`true_shape` stays on the host) and without labels and names."""
    tensors = {key: value for key, value in view.items() if isinstance(value, torch.Tensor)}
    host = ("true_shape",)
    return {k: v.cpu() if k in host else v.to(device, non_blocking=True) for k, v in tensors.items()}


class Batches:
    """Asks a pair source for batches, on CUDA one step ahead in a thread and stream of its own.

    So the drawing and rendering of the next batch overlaps with the training on the present one.

    Args:
        source: where the pairs come from.
        device: where they go.
        clock: counts the source's time under `source`.
        ahead: whether to work one step ahead.
    """

    def __init__(self, source: PairSource, device: torch.device, clock: PhaseClock, *, ahead: bool) -> None:
        self._source, self._device, self._clock = source, device, clock
        self._worker = ThreadPoolExecutor(1, "pairs") if ahead else None
        self._stream = torch.cuda.Stream(device) if ahead and device.type == "cuda" else None
        self._coming: dict[int, tuple[BatchRequest, Future[Any]]] = {}

    def get(self, request: BatchRequest) -> tuple[View, View]:
        """The batch of `request`; what was asked for ahead is used if it is the same request."""
        asked, future = self._coming.pop(request.index, (None, None))
        views, ready = self._fetch(request) if future is None or asked != request else future.result()
        if ready is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(ready)
            for tensor in (t for view in views for t in view.values() if t.is_cuda):
                tensor.record_stream(stream)
        return views

    def ask_ahead(self, requests: list[BatchRequest]) -> None:
        """Start working on `requests`, if this object works ahead."""
        if self._worker is not None:
            self._coming = {request.index: (request, self._worker.submit(self._fetch, request)) for request in requests}

    def _fetch(self, request: BatchRequest) -> tuple[tuple[View, View], Any]:
        with torch.cuda.stream(self._stream):  # None: the present stream
            with self._clock.measure("source"):
                view1, view2 = (to_device(view, self._device) for view in self._source(request))
            return (view1, view2), None if self._stream is None else self._stream.record_event()

    def close(self) -> None:
        """End the thread."""
        if self._worker is not None:
            self._worker.shutdown(wait=True, cancel_futures=True)


class LoaderSource:
    """A pair source that walks through a data loader, epoch after epoch.

    It goes to the place that `BatchRequest.index` names, also in a fresh process, and starts each epoch's
    loading processes from the same random numbers. Sizes and overlap in a request are ignored: the data set
    decides them.

    Args:
        loader: yields (view1, view2).
        seed: with the epoch it decides the random numbers of the loading processes.
    """

    def __init__(self, loader: DataLoader[Any], *, seed: int = 0) -> None:
        if len(loader) == 0:
            raise ValueError("the training set is smaller than one batch: lower --batch_size")
        self._loader = loader
        self._seed = seed
        self._iterator: Iterator[Any] = iter(())
        self._next: tuple[int, int] | None = None

    def __call__(self, request: BatchRequest) -> tuple[View, View]:
        """The batch at the request's place."""
        place = divmod(request.index, len(self._loader))
        if place != self._next:
            self._go_to(*place, rank=request.rank)
        view1, view2 = next(self._iterator)
        self._next = divmod(request.index + 1, len(self._loader))
        if self._next[1] == 0:
            self._next = None  # the next request starts an epoch
        return view1, view2

    def _go_to(self, epoch: int, position: int, *, rank: int) -> None:
        for part in (self._loader.dataset, self._loader.sampler):
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)  # pyright: ignore[reportAttributeAccessIssue]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash((self._seed, epoch, rank)) & 0x7FFF_FFFF)
            self._iterator = iter(self._loader)
        for _ in range(position):
            next(self._iterator)


@torch.no_grad()
def evaluate_on_loaders(
    model: nn.Module,
    criterion: Callable[..., Any],
    loaders: Mapping[str, DataLoader[Any]],
    device: torch.device,
) -> dict[str, float]:
    """Mean and median over the batches of the criterion and its parts, for each test set.

    Returns:
        `{set}_{part}_avg` and `{set}_{part}_med` for each set and part, and `loss_med`, the lowest median
        loss of any set, by which the official code chooses its best checkpoint.
    """
    results: dict[str, float] = {}
    lowest = []
    for name, loader in loaders.items():
        values: dict[str, list[float]] = {}
        for batch in loader:
            loss, details = loss_of_one_batch(batch, model, criterion, device, symmetrize_batch=True, ret="loss")
            for part, value in {**details, "loss": loss}.items():
                values.setdefault(part, []).append(float(value))
        for part, series in values.items():
            results[f"{name}_{part}_avg"] = fmean(series)
            results[f"{name}_{part}_med"] = median(series)
        lowest.append(median(values["loss"]))
    return {**results, "loss_med": min(lowest)} if lowest else results
