"""Nested structures: moving, joining, parallel calls."""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
import pytest
import torch

from dust3r.utils.device import collate_with_cat, listify, to_cpu, to_numpy, todevice
from dust3r.utils.parallel import parallel_processes, parallel_threads


class Named(NamedTuple):
    a: object
    b: object


def test_todevice_keeps_structure_and_input():
    batch = {"x": [torch.zeros(2), (np.ones(3), "name")], "y": Named(None, 4)}
    moved = todevice(batch, "cpu")
    assert isinstance(moved["x"][1], tuple)
    assert isinstance(moved["x"][1][0], torch.Tensor)
    assert isinstance(batch["x"][1][0], np.ndarray)
    assert moved["x"][1][1] == "name"
    assert isinstance(moved["y"], Named)
    assert moved["y"].b == 4
    assert to_cpu(None) is None


def test_todevice_callback_and_read_only_arrays():
    frozen = np.zeros(2)
    frozen.setflags(write=False)
    assert todevice({"a": frozen}, "cpu", callback=lambda leaf: leaf + 1)["a"].tolist() == [1, 1]
    tensor = todevice(frozen, "cpu")
    tensor += 1
    assert frozen.tolist() == [0, 0]


def test_to_numpy():
    out = to_numpy({"a": torch.ones(2, requires_grad=True), "b": [torch.zeros(1), np.ones(1)], "c": "x"})
    assert isinstance(out["a"], np.ndarray)
    assert isinstance(out["b"][0], np.ndarray)
    assert out["c"] == "x"


def test_meta_device():
    assert todevice(torch.ones(3), torch.device("meta")).device.type == "meta"


def test_collate_with_cat():
    samples = [({"t": torch.full((1, 2), float(i)), "i": i, "s": str(i), "n": None},) for i in range(3)]
    (joined,) = collate_with_cat(samples)
    assert joined["t"].tolist() == [[0, 0], [1, 1], [2, 2]]
    assert joined["i"] == [0, 1, 2]
    assert joined["s"] == ["0", "1", "2"]
    assert joined["n"] is None
    twice = collate_with_cat([joined, joined])
    assert twice["t"].shape == (6, 2)
    assert twice["i"] == [0, 1, 2] * 2


def test_collate_with_cat_as_lists():
    samples = [{"t": torch.zeros(1, 3, side), "a": np.zeros((1, 2), np.int32), "i": [side]} for side in (4, 5)]
    joined = collate_with_cat(samples, lists=True)
    assert [tuple(t.shape) for t in joined["t"]] == [(3, 4), (3, 5)]
    assert joined["a"][0].dtype == torch.int32
    assert joined["i"] == [4, 5]


def test_collate_with_cat_small_cases():
    assert collate_with_cat([]) == []
    assert collate_with_cat([torch.tensor(1.0), torch.tensor(2.0)]).tolist() == [1, 2]
    assert collate_with_cat({"a": [1, 2]}) == {"a": [1, 2]}
    assert listify([[1, 2], [3]]) == [1, 2, 3]


def square(x, y=0):
    return x * x + y


def test_parallel_threads_keeps_order():
    assert parallel_threads(square, range(20), workers=4, disable=True) == [i * i for i in range(20)]
    assert parallel_threads(square, [(1, 2), (3, 4)], star_args=True, front_num=0, disable=True) == [3, 13]
    assert parallel_threads(square, [{"x": 2, "y": 1}], kw_args=True, disable=True) == [5]
    assert parallel_threads(square, [], disable=True) == []
    with pytest.raises(ValueError, match="exclude"):
        parallel_threads(square, [], star_args=True, kw_args=True)


def test_parallel_front_runs_in_the_calling_thread():
    names = parallel_threads(lambda _: threading.current_thread().name, range(4), workers=2, front_num=2, disable=True)
    assert names[:2] == [threading.current_thread().name] * 2
    assert names[3] != names[0]


def test_parallel_processes():
    assert parallel_processes(square, [2, 3], workers=1, disable=True) == [4, 9]
