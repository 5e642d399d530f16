"""Visual words: reading a codebook file without executing it, assigning features to words, training one."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dust3r.checkpoint import CheckpointError

_BLOCK = 1 << 19  # distances computed at a time: 2 MB, stays in cache
_DEVICE_BLOCK = 1 << 26  # the same on an accelerator
_SETTLED_SHARE = 1e-3  # k-means stops when fewer features than this change their word

# what a pickled dict of NumPy arrays is made of, under its names in NumPy 1 and 2
_ALLOWED = {
    (module, name)
    for name, modules in {
        "ndarray": ("numpy",),
        "dtype": ("numpy",),
        "_reconstruct": ("numpy.core.multiarray", "numpy._core.multiarray"),
        "scalar": ("numpy.core.multiarray", "numpy._core.multiarray"),
        "_frombuffer": ("numpy.core.numeric", "numpy._core.numeric"),
        "encode": ("_codecs",),
    }.items()
    for module in modules
}


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds arrays and plain values and refuses to look up anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


@dataclass(frozen=True, eq=False)
class Codebook:
    """Visual words.

    Attributes:
        centroids: (K, D) float32, one row per word.

    Raises:
        ValueError: If `centroids` is no finite matrix.
    """

    centroids: Tensor

    def __post_init__(self) -> None:
        if self.centroids.ndim != 2 or not len(self.centroids) or not torch.isfinite(self.centroids).all():
            raise ValueError(f"centroids must be a finite (K, D) matrix, got shape {tuple(self.centroids.shape)}.")
        object.__setattr__(self, "centroids", self.centroids.float())

    def __len__(self) -> int:
        return len(self.centroids)

    @property
    def dim(self) -> int:
        """Width D of features."""
        return self.centroids.shape[1]

    def to(self, device: torch.device | str) -> Codebook:
        """The same words on another device."""
        return Codebook(self.centroids.to(device))

    def assign(self, features: Tensor, count: int = 1) -> Tensor:
        """The nearest words of features by Euclidean distance.

        Args:
            features: (N, D) float, on the device of the centroids.
            count: Words per feature.

        Returns:
            (N, count) int64, nearest first.

        Raises:
            ValueError: If the widths differ or there are fewer words than `count`.
        """
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(f"these words have {self.dim} channels, features have shape {tuple(features.shape)}.")
        if not 1 <= count <= len(self):
            raise ValueError(f"a feature can have 1..{len(self)} of {len(self)} words, got {count}.")
        half = self.centroids.square().sum(dim=1) / 2
        transposed = self.centroids.T.contiguous()
        limit = _BLOCK if features.is_cpu else _DEVICE_BLOCK
        nearest = torch.empty(len(features), count, dtype=torch.long, device=features.device)
        for block, out in zip(*(x.split(max(limit // len(self), 1)) for x in (features, nearest))):
            # |x - c|^2 / 2 without |x|^2 / 2, which does not change the order
            distance = torch.addmm(half, block, transposed, alpha=-1)
            out.copy_(distance.argmin(1, keepdim=True) if count == 1 else distance.topk(count, largest=False).indices)
        return nearest

    def save(self, path: str | Path) -> None:
        """Write the words in the layout of the official codebook files, plain values and arrays."""
        state = {"centroids": self.centroids.cpu().numpy()}
        content = {"type": "Codebook", "params": {"size": len(self)}, "state": state}
        Path(path).write_bytes(pickle.dumps(content, protocol=4))

    @classmethod
    def load(cls, path: str | Path) -> Codebook:
        """Read an official codebook file; only arrays and plain values are rebuilt, nothing is executed.

        Raises:
            CheckpointError: If the file is missing, damaged, holds anything else, or no words.
        """
        content = _read_arrays(Path(path))
        state = content.get("state") if isinstance(content, Mapping) else None
        centroids = state.get("centroids") if isinstance(state, Mapping) else None
        if not isinstance(centroids, np.ndarray) or centroids.ndim != 2 or centroids.dtype.kind != "f":
            raise CheckpointError(f"{path} holds no codebook: state.centroids must be a (K, D) array of floats.")
        try:
            return cls(torch.from_numpy(np.array(centroids, dtype=np.float32)))
        except ValueError as error:
            raise CheckpointError(f"{path} holds no usable codebook: {error}") from error

    @classmethod
    def train(cls, features: Tensor, size: int, *, iterations: int = 10, seed: int = 0) -> Codebook:
        """Learn words from features by k-means.

        Args:
            features: (N, D) samples.
            size: Number of words K, at most N.
            iterations: Largest number of rounds.
            seed: Seed of the initial words.

        Returns:
            The codebook, on the device of `features`.

        Raises:
            ValueError: If there are fewer features than words.
        """
        if not 1 <= size <= len(features):
            raise ValueError(f"a codebook of {size} words needs at least as many features, got {len(features)}.")
        features = features.float()
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(features), generator=generator)[:size]
        book = cls(features[chosen.to(features.device)])
        words = torch.full((len(features),), -1, device=features.device)
        for _ in range(iterations):
            moved = book.assign(features)[:, 0]
            changed = (moved != words).float().mean().item()
            words = moved
            book = cls(_means(features, words, book.centroids))
            if changed < _SETTLED_SHARE:
                break
        return book


def codebook_path(checkpoint: str | Path) -> Path:
    """Where the codebook of a retrieval checkpoint lies: its name's last `_` part replaced by `codebook.pkl`."""
    path = Path(checkpoint)
    head, separator, _ = path.name.rpartition("_")
    return path.with_name(f"{head if separator else path.stem}_codebook.pkl")


def _means(features: Tensor, words: Tensor, old: Tensor) -> Tensor:
    """Mean feature of each word; words without features stay where they are."""
    count = torch.bincount(words, minlength=len(old)).to(features.dtype)[:, None]
    total = torch.zeros_like(old).index_add_(0, words, features)
    return torch.where(count > 0, total / count.clamp(min=1), old)


def _read_arrays(path: Path) -> Any:
    try:
        return _ArrayUnpickler(io.BytesIO(path.read_bytes())).load()
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} was refused, nothing in it was executed: {error}; a codebook holds arrays and plain values only."
        ) from error
    except OSError as error:
        raise CheckpointError(f"cannot read the codebook {path} ({error}); it lies beside its checkpoint.") from error
    except (EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, MemoryError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); download it again.") from error
