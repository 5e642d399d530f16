"""The state of a training run: everything that a resumed run needs to continue to the bit.

A run is its networks, its optimiser, its random generators and its counters. They are written as one file
of plain tensors and numbers (`torch.load(..., weights_only=True)` reads it), always beside the old file first
and then swapped in, so that a process killed at any moment leaves a complete checkpoint behind.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import nn

from dust3r.optim import EMA, JointOptimizer

logger = logging.getLogger(__name__)

LAST = "checkpoint-last.pth"
PREVIOUS = "checkpoint-prev.pth"
PARTS_INDEX = "checkpoint-last.parts.json"
FORMAT = 1


@dataclass
class Counters:
    """How far a run has come, over all its sessions.

    Attributes:
        step: optimiser steps taken (or skipped as non-finite).
        seconds: wall-clock time of all sessions up to their last save.
        pairs: image pairs seen by all processes together.
        skipped: steps whose gradient was not finite and which therefore changed nothing.
    """

    step: int = 0
    seconds: float = 0.0
    pairs: int = 0
    skipped: int = 0


@dataclass
class TrainState:
    """The mutable objects of a run. `ema` is None when no average of the weights is kept."""

    model: nn.Module
    optimizer: torch.optim.Optimizer | JointOptimizer
    ema: EMA | None = None
    counters: Counters = field(default_factory=Counters)

    def state_dict(self, *, rng: Sequence[dict[str, Any]], extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Plain tensors and numbers that describe the run; `rng` holds one entry per process."""
        return {
            **(extra or {}),
            "format": FORMAT,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "counters": asdict(self.counters),
            "rng": list(rng),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over weights, optimiser moments, average and counters from `state_dict`'s result.

        Hyper-parameters (learning rate, weight decay, betas) stay those of the present optimiser.

        Raises:
            ValueError: when the state was written by another architecture or is not a training state.
        """
        if state.get("format") != FORMAT:
            raise ValueError(
                f"cannot resume from a file of format {state.get('format')!r}: expected a training state of "
                f"format {FORMAT}; start from plain weights with --init_from or --pretrained instead"
            )
        try:
            self.model.load_state_dict(state["model"])
            _load_moments(self.optimizer, state["optimizer"])
            if self.ema is not None and state["ema"] is not None:
                self.ema.load_state_dict(state["ema"])
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"the checkpoint does not fit this model or optimiser: {error}") from error
        self.counters = Counters(**state["counters"])


def _load_moments(optimizer: torch.optim.Optimizer | JointOptimizer, saved: Mapping[str, Any]) -> None:
    current = optimizer.state_dict()
    sizes = [[len(group["params"]) for group in groups] for groups in (current["param_groups"], saved["param_groups"])]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the checkpoint's optimiser has parameter groups of sizes {sizes[1]}, this run has {sizes[0]}: "
            "resume with the same model and weight decay rule"
        )
    optimizer.load_state_dict({"state": saved["state"], "param_groups": current["param_groups"]})


def get_rng_state(device: torch.device) -> dict[str, Any]:
    """State of this process's generators of Python, NumPy, torch and (on CUDA) `device`, as plain values."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(words), gauss],
        "numpy": [
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_rng_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Restore what `get_rng_state` returned. The CUDA part is left alone when either side has none."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk, and rename it to `path`.

    A reader, or a process that starts after a crash, sees either the whole old file or the whole new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_or_copy(source: Path, target: Path) -> None:
    """Give the file `source` a second name without a moment in which `target` is incomplete."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)
    temporary.unlink(missing_ok=True)  # rename leaves both names when they are already the same file


def save_state(state: Mapping[str, Any], folder: str | os.PathLike[str], *, split_mb: float | None = None) -> Path:
    """Write `state` as `checkpoint-last.pth` in `folder`; the file it replaces becomes `checkpoint-prev.pth`.

    Args:
        state: plain tensors, numbers, strings, lists and dicts.
        folder: created when missing.
        split_mb: additionally write the file as parts of at most this many MB (10^6 bytes) with an index,
            `checkpoint-last.parts.json`, for places that limit the size of a file.

    Returns:
        Path of `checkpoint-last.pth`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / LAST
    _remove_leftovers(folder)
    if last.exists():
        link_or_copy(last, folder / PREVIOUS)
    write_atomically(last, lambda file: torch.save(dict(state), file))
    if split_mb is not None:
        split_file(last, folder / PARTS_INDEX, part_bytes=max(1, int(split_mb * 1e6)))
    return last


def _remove_leftovers(folder: Path) -> None:
    """Temporary files of a process that was killed while it wrote."""
    for leftover in folder.glob(".checkpoint-*.tmp"):
        leftover.unlink(missing_ok=True)


def split_file(source: Path, index: Path, *, part_bytes: int) -> list[Path]:
    """Cut `source` into parts beside `index`, swap in the index, and remove the parts it no longer names."""
    stem = index.name.removesuffix(".json")
    parts, digests = [], []
    with open(source, "rb") as file:
        while chunk := file.read(part_bytes):
            digest = hashlib.sha256(chunk).hexdigest()
            part = index.with_name(f"{stem}.{len(parts):03d}.{digest[:12]}")
            write_atomically(part, lambda out, chunk=chunk: out.write(chunk))
            parts.append(part)
            digests.append(digest)
    entries = [{"name": part.name, "sha256": digest} for part, digest in zip(parts, digests)]
    text = json.dumps({"file": source.name, "parts": entries}, indent=1)
    write_atomically(index, lambda out: out.write(text.encode()))
    for old in index.parent.glob(f"{stem}.*"):
        if old != index and old not in parts:
            old.unlink()
    return parts


def join_parts(index: Path) -> bytes:
    """Content of the file whose parts `index` lists.

    Raises:
        ValueError: when a part is missing or damaged.
    """
    buffer = io.BytesIO()
    for entry in json.loads(index.read_text())["parts"]:
        part = index.parent / Path(entry["name"]).name
        content = part.read_bytes() if part.exists() else b""
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise ValueError(f"part {part} is missing or damaged: copy all parts of {index.name} beside it again")
        buffer.write(content)
    return buffer.getvalue()


def read_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a training state from a `.pth` file, a parts index (`.parts.json`) or a folder that holds either.

    In a folder the newest complete file wins: `checkpoint-last.pth`, its parts, then `checkpoint-prev.pth`.

    Raises:
        FileNotFoundError: when there is nothing to read at `path`.
        ValueError: when what is there is damaged.
    """
    path = Path(path)
    if not path.is_dir():
        return _read_file(path)
    candidates = [path / name for name in (LAST, PARTS_INDEX, PREVIOUS) if (path / name).exists()]
    if not candidates:
        raise FileNotFoundError(f"no checkpoint in {path}: expected {LAST}, {PARTS_INDEX} or {PREVIOUS}")
    for candidate in candidates[:-1]:
        try:
            return _read_file(candidate)
        except ValueError as error:
            logger.warning("%s; trying an older one", error)
    return _read_file(candidates[-1])


def has_state(folder: str | os.PathLike[str]) -> bool:
    """Whether `read_state(folder)` has something to read."""
    return any((Path(folder) / name).exists() for name in (LAST, PARTS_INDEX, PREVIOUS))


def _read_file(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        source = io.BytesIO(join_parts(path)) if path.suffix == ".json" else path
        state = torch.load(source, map_location="cpu", weights_only=True)
    except ValueError:
        raise
    except Exception as error:  # torch.load reports damage as many kinds of exception
        raise ValueError(f"checkpoint {path} is damaged or not a training state: {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"checkpoint {path} holds a {type(state).__name__}, expected a training state (a dict)")
    return state
