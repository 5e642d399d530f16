"""A function over many inputs in parallel, with a progress bar."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from multiprocessing.dummy import Pool as ThreadPool
from multiprocessing.pool import Pool as ProcessPool
from typing import Any

from tqdm.auto import tqdm


def parallel_threads(
    function: Callable[..., Any],
    args: Iterable[Any],
    workers: int = 0,
    star_args: bool = False,
    kw_args: bool = False,
    front_num: int = 1,
    Pool: Callable[..., Any] = ThreadPool,
    **tqdm_kw: Any,
) -> list[Any]:
    """Apply `function` to every entry of `args`.

    Args:
        function: Called once per entry.
        args: The inputs.
        workers: Workers running at the same time; 0 or less means as many as there are processors, 1 runs in
            order.
        star_args: Each entry is a tuple of positional arguments.
        kw_args: Each entry is a dict of keyword arguments.
        front_num: So many entries run first, one after the other, in the calling thread: their errors come
            early and untangled.
        Pool: Pool class, called with the number of workers.
        **tqdm_kw: Options of the progress bar.

    Returns:
        The results in the order of `args`.

    Raises:
        ValueError: If both `star_args` and `kw_args` are set.
    """
    if star_args and kw_args:
        raise ValueError("star_args and kw_args exclude each other; set only one of them.")
    entries = list(args)
    workers = workers if workers > 0 else os.cpu_count() or 1
    call = _Call(function, star_args, kw_args)
    front = len(entries) if workers == 1 else min(max(front_num, 0), len(entries))
    with tqdm(total=len(entries), **tqdm_kw) as bar:
        results = []
        for entry in entries[:front]:
            results.append(call(entry))
            bar.update()
        if front < len(entries):
            with Pool(workers) as pool:
                for result in pool.imap(call, entries[front:]):
                    results.append(result)
                    bar.update()
    return results


def parallel_processes(*args: Any, **kwargs: Any) -> list[Any]:
    """`parallel_threads` with processes; `function` and the entries must be picklable."""
    return parallel_threads(*args, **{"Pool": ProcessPool, **kwargs})


class _Call:
    """`function` with its argument convention; a class, so that processes can receive it."""

    def __init__(self, function: Callable[..., Any], star_args: bool, kw_args: bool) -> None:
        self._function, self._star, self._keywords = function, star_args, kw_args

    def __call__(self, entry: Any) -> Any:
        if self._star:
            return self._function(*entry)
        return self._function(**entry) if self._keywords else self._function(entry)
