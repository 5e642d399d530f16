"""Fixtures shared by all tests: the golden numbers and a quiet torch."""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file


def pytest_configure() -> None:
    """Workers that run side by side share the cores."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


def golden_dir() -> Path:
    """Folder of the golden fixtures: `GOLDEN_DIR` when set, else `tests/golden`."""
    return Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parent / "golden")


@dataclass(frozen=True)
class Golden:
    """One golden fixture: its description and its tensors."""

    name: str
    meta: dict
    tensors: dict[str, torch.Tensor]

    def close(self, actual, key: str, *, rtol: float | None = None, atol: float | None = None) -> None:
        """Assert that `actual` equals the stored tensor `key` within the fixture's tolerance."""
        tolerance = self.meta.get("tolerance", {})
        torch.testing.assert_close(
            torch.as_tensor(actual).to(self.tensors[key].dtype),
            self.tensors[key],
            rtol=tolerance.get("rtol", 1e-4) if rtol is None else rtol,
            atol=tolerance.get("atol", 1e-5) if atol is None else atol,
        )

    def keys(self, prefix: str) -> list[str]:
        """Stored keys that start with `prefix`."""
        return [k for k in self.tensors if k.startswith(prefix)]


def load_golden(name: str) -> Golden:
    """Load fixture `name`, or skip the test when the fixture folder does not hold it."""
    folder = golden_dir()
    if not (folder / f"{name}.json").exists():
        pytest.skip(f"no fixture {name} in {folder}")
    meta = json.loads((folder / f"{name}.json").read_text())
    path = folder / f"{name}.safetensors"
    return Golden(name, meta, load_file(path) if path.exists() else {})


@pytest.fixture
def golden():
    """The function `load_golden`."""
    return load_golden


def parse_kwargs(value):
    """Constructor kwargs as JSON stores them: "inf" strings become floats, lists become tuples."""
    if isinstance(value, dict):
        return {k: parse_kwargs(v) for k, v in value.items()}
    if isinstance(value, list):
        return tuple(parse_kwargs(v) for v in value)
    return {"inf": float("inf"), "-inf": float("-inf")}.get(value, value) if isinstance(value, str) else value


def recipe_weight(key: str, shape, seed: int) -> torch.Tensor:
    """The weight recipe of the golden fixtures (see tests/golden/README.md)."""
    alias = key
    for i in range(4):
        alias = alias.replace(f"scratch.layer_rn.{i}.", f"scratch.layer{i + 1}_rn.")
    x = np.random.RandomState((zlib.crc32(alias.encode()) + seed) % 2**32).standard_normal(tuple(shape))
    if alias == "mask_token":
        x = 0.5 * x
    elif len(shape) == 1:
        x = 1 + 0.1 * x if alias.endswith(".weight") else 0.05 * x
    else:
        x = x / np.sqrt(np.prod(shape[1:]))
    if alias.startswith("downstream_head") and alias.endswith((".dpt.head.4.weight", ".proj.weight")):
        x = 0.25 * x
    return torch.from_numpy(x.astype(np.float32))
