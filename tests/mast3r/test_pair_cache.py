"""The folder of tensors: round trips, damage, several writers, keys."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from mast3r.scenes.pair_cache import CacheMiss, PairCache, content_key, weights_key

ENTRY = {
    "points": torch.randn(3, 4, 3),
    "half": torch.randn(5).half(),
    "brain": torch.randn(5).bfloat16(),
    "none": torch.zeros(0, 2),
    "number": torch.tensor(3),
}


@pytest.fixture
def cache(tmp_path) -> PairCache:
    return PairCache(tmp_path / "cache")


def test_an_entry_comes_back_bit_for_bit(cache):
    cache.write("ab12", ENTRY)
    found = cache.read("ab12")
    assert set(found) == set(ENTRY)
    for name, tensor in ENTRY.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert list(cache.keys()) == ["ab12"]
    assert "ab12" in PairCache(cache.folder)


def test_only_some_tensors_are_read(cache):
    cache.write("ab12", ENTRY)
    assert set(cache.read("ab12", ["half"])) == {"half"}


def test_a_missing_entry_or_tensor_is_a_miss(cache):
    with pytest.raises(CacheMiss):
        cache.read("ab12")
    cache.write("ab12", ENTRY)
    with pytest.raises(CacheMiss):
        cache.read("ab12", ["other"])


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "foreign", "noise"])
def test_a_damaged_entry_counts_as_missing_and_can_be_written_again(cache, harm):
    cache.write("ab12", ENTRY)
    path = cache.path("ab12")
    content = bytearray(path.read_bytes())
    if harm == "flip":
        content[-7] ^= 1
    content = {"cut": content[: len(content) // 2], "empty": b"", "noise": os.urandom(500)}.get(harm, content)
    path.write_bytes(content)
    if harm == "foreign":
        from safetensors.torch import save_file

        save_file({"points": torch.zeros(2)}, path)
    assert "ab12" not in cache
    with pytest.raises(CacheMiss, match="damaged"):
        cache.read("ab12")
    cache.write("ab12", ENTRY)
    assert "ab12" in cache


def test_a_file_is_no_cache(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match="must be a folder"):
        PairCache(tmp_path / "file")


def test_parts_of_killed_writers_are_removed_once_they_are_old(cache):
    cache.write("ab12", ENTRY)
    old, fresh = (cache.path("ab12").with_name(f".{name}.part") for name in ("old", "fresh"))
    for part in (old, fresh):
        part.write_bytes(b"half a file")
    os.utime(old, (time.time() - 7200,) * 2)
    PairCache(cache.folder)
    assert not old.exists()
    assert fresh.exists()  # its writer may still be at work
    assert "ab12" in cache


def test_a_writer_killed_at_any_moment_leaves_whole_entries_only(cache):
    """Kill -9 in the middle of writing: whatever is there afterwards reads back."""
    script = (
        "import sys, torch; from mast3r.scenes.pair_cache import PairCache\n"
        "cache = PairCache(sys.argv[1])\n"
        "print('ready', flush=True)\n"
        "for k in range(100000): cache.write(f'{k:06x}', {'x': torch.full((20000,), float(k))})\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", script, str(cache.folder)],
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert writer.stdout is not None
    writer.stdout.readline()
    while sum(1 for _ in cache.keys()) < 20:
        time.sleep(0.01)
    writer.kill()
    writer.wait()
    writer.stdout.close()
    keys = list(cache.keys())
    assert len(keys) >= 20
    for key in keys:
        assert torch.equal(cache.read(key)["x"], torch.full((20000,), float(int(key, 16))))


def test_keys_tell_texts_apart():
    assert content_key("a", "bc") != content_key("ab", "c")
    assert content_key("a", "b") == content_key("a", "b")
    assert len(content_key("a")) == 32


def test_the_weights_key_follows_every_weight():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    before = weights_key(model)
    assert weights_key(model) == before
    with torch.no_grad():
        model.weight[0, 0] += 1e-6
    assert weights_key(model) != before
    assert weights_key(nn.Linear(3, 2).half()) != before
