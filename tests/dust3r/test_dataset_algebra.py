from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from croco.expression import build
from dust3r.datasets import CatDataset, EasyDataset, get_data_loader
from dust3r.datasets.base.batched_sampler import BatchedRandomSampler

few = settings(max_examples=40, deadline=None)


class Numbers(EasyDataset):
    """Element i is [name, i], or [name, i, ratio] when asked for an aspect ratio."""

    def __init__(self, name, size, resolutions=None):
        self.name, self.size = name, size
        if resolutions is not None:
            self._resolutions = resolutions
        self.epoch = None

    def __len__(self):
        return self.size

    def __getitem__(self, idx):
        return [self.name, *idx] if isinstance(idx, tuple) else [self.name, idx]

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __repr__(self):
        return self.name


def elements(ds):
    return [ds[i] for i in range(len(ds))]


def test_algebra_matches_the_official_code(golden):
    fixture = golden("dataset_dsl").meta
    registry = {name: Numbers(name, size) for name, size in fixture["datasets"].items()}
    for row in fixture["rows"]:
        ds = build(row["expr"], registry)
        ds.set_epoch(row["epoch"])
        assert len(ds) == row["len"]
        assert elements(ds) == row["items"]
        first = row["items_ar"]
        assert [ds[i, first[i][2]] for i in range(len(first))] == first


def test_sampler_matches_the_official_code(golden):
    for row in golden("dataset_dsl").meta["sampler"]:
        sampler = BatchedRandomSampler(
            range(row["n"]), row["batch_size"], row["pool_size"], row["world_size"], row["rank"]
        )
        sampler.set_epoch(row["epoch"])
        assert len(sampler) == row["length"]
        assert [list(pair) for pair in sampler] == row["idx"]


@few
@given(st.integers(1, 9), st.integers(1, 30), st.integers(0, 5))
def test_resizing_repeats_only_when_it_must(size, wanted, epoch):
    ds = wanted @ Numbers("a", size)
    ds.set_epoch(epoch)
    drawn = [i for _, i in elements(ds)]
    assert len(drawn) == wanted
    counts = [drawn.count(i) for i in range(size)]
    assert max(counts) - min(counts) <= 1
    ds.set_epoch(epoch)
    assert [i for _, i in elements(ds)] == drawn


@few
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))
def test_multiplication_and_addition(a, b, k):
    left, right = Numbers("a", a), Numbers("b", b)
    assert elements(k * left) == [["a", i] for i in range(a) for _ in range(k)]
    assert elements(left + right) == elements(left) + elements(right)
    assert elements(k * (left + right)) == [e for e in elements(left + right) for _ in range(k)]
    assert (k * left + right)[k * a, 2] == ["b", 0, 2]


def test_epoch_and_resolutions_reach_every_leaf():
    sizes = [(64, 48), (64, 64)]
    a, b = Numbers("a", 3, sizes), Numbers("b", 4, sizes)
    ds = 2 * (5 @ a + b)
    ds.set_epoch(7)
    assert (a.epoch, b.epoch) == (7, 7)
    assert ds.resolutions == sizes
    assert repr(ds) == "2*5@a + b"


def test_errors():
    a = Numbers("a", 3, [(64, 48)])
    with pytest.raises(ValueError, match="resolutions"):
        CatDataset([a, Numbers("b", 3, [(64, 64)])])
    for bad in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="positive integer"):
            bad * a
        with pytest.raises(ValueError, match="positive integer"):
            bad @ a
    with pytest.raises(ValueError, match="empty"):
        3 @ Numbers("a", 0)
    with pytest.raises(TypeError):
        a + 1
    for ds in (2 * a, 4 @ a, a + a):
        for index in (-1, len(ds), (len(ds), 0)):
            with pytest.raises(IndexError):
                ds[index]
    with pytest.raises(ValueError, match="drop_last"):
        BatchedRandomSampler(a, 2, 1, drop_last=False)
    with pytest.raises(ValueError, match="rank"):
        BatchedRandomSampler(a, 2, 1, world_size=2, rank=2)
    with pytest.raises(ValueError, match="shuffle"):
        a.make_sampler(2, shuffle=False)
    with pytest.raises(ValueError, match="text"):
        get_data_loader("10 @ a", 2)


@few
@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3))
def test_ranks_share_nothing_and_batches_have_one_ratio(n, batch_size, pool_size, world_size, epoch):
    seen = []
    for rank in range(world_size):
        sampler = BatchedRandomSampler(range(n), batch_size, pool_size, world_size, rank)
        sampler.set_epoch(epoch)
        pairs = list(sampler)
        assert len(pairs) == len(sampler)
        assert len(pairs) % batch_size == 0
        for start in range(0, len(pairs), batch_size):
            assert len({ratio for _, ratio in pairs[start : start + batch_size]}) == 1
        assert all(0 <= ratio < pool_size for _, ratio in pairs)
        seen += [index for index, _ in pairs]
    assert len(seen) == len(set(seen))
    assert all(0 <= index < n for index in seen)


class Tensors(Numbers):
    def __getitem__(self, idx):
        position, ratio = idx if isinstance(idx, tuple) else (idx, -1)
        return torch.tensor([position, ratio])


def test_loader_gives_each_batch_one_ratio():
    ds = Tensors("a", 22, [(1, 1), (2, 1), (3, 1)])
    loader = get_data_loader(ds, batch_size=4, num_workers=0)
    batches = list(loader)
    assert len(batches) == 5
    assert all(len(batch[:, 1].unique()) == 1 for batch in batches)


def test_loader_without_shuffling_keeps_order_and_the_last_batch():
    ds = Tensors("a", 5)
    batches = list(get_data_loader(ds, 2, num_workers=0, shuffle=False, drop_last=False))
    assert torch.cat(batches)[:, 0].tolist() == [0, 1, 2, 3, 4]
    shuffled = list(get_data_loader(ds, 2, num_workers=0, drop_last=False))
    assert sorted(torch.cat(shuffled)[:, 0].tolist()) == [0, 1, 2, 3, 4]
