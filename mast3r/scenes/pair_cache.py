"""A folder of tensors under content-addressed keys, that survives being killed at any moment.

Each entry is one `.safetensors` file, written under another name and moved into place, with a checksum per
tensor. An entry is therefore either complete or absent: what is missing, cut short or altered reads as absent
and is computed again. Several processes may share a folder: they write the same bytes under the same key.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from multiview.files import atomic_write

logger = logging.getLogger(__name__)

_FORMAT = "mast3r.scenes.pair_cache/1"
_SUFFIX = ".safetensors"
_STALE_SECONDS = 3600.0  # no write takes so long: such a part was left by a killed process


class CacheMiss(KeyError):  # noqa: N818  # a lookup that found nothing is no error of the program
    """An entry that is absent or damaged."""


class PairCache:
    """Tensors by key, in a folder.

    Args:
        folder: Where the entries lie; made if needed. Parts that killed processes left are removed.

    Raises:
        NotADirectoryError: If the path is a file.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"The cache must be a folder, but {self.folder} is a file; name another place.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_stale_parts()

    def path(self, key: str) -> Path:
        """The file of an entry."""
        return self.folder / key[:2] / f"{key}{_SUFFIX}"

    def __contains__(self, key: str) -> bool:
        """Whether the entry is there and undamaged; reads all of it."""
        try:
            self.read(key)
        except CacheMiss:
            return False
        return True

    def keys(self) -> Iterator[str]:
        """Keys of all files, damaged or not."""
        return (path.name.removesuffix(_SUFFIX) for path in self.folder.glob(f"??/*{_SUFFIX}"))

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Store an entry; the former one, if any, is replaced.

        Args:
            key: Hex digits, see `content_key`.
            tensors: Name -> tensor, on any device.

        Raises:
            OSError: If the disk is full or not writable.
        """
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        sums = {name: _checksum(tensor) for name, tensor in plain.items()}
        content = save(plain, metadata={"format": _FORMAT, "crc32": json.dumps(sums)})
        with atomic_write(self.path(key)) as file:
            file.write(content)

    def read(self, key: str, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Read an entry.

        Args:
            key: Its key.
            names: Only these tensors; None reads all.

        Returns:
            Name -> tensor on the CPU.

        Raises:
            CacheMiss: If the entry is absent or damaged.
        """
        path = self.path(key)
        if not path.is_file():
            raise CacheMiss(f"no entry {key}")
        try:
            return _read_checked(path, names)
        except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
            logger.warning("the cache entry %s is damaged and counts as missing (%s)", path, error)
            raise CacheMiss(f"the entry {key} is damaged") from error

    def _remove_stale_parts(self) -> None:
        now = time.time()
        for part in self.folder.glob("??/.*.part"):
            try:
                if now - part.stat().st_mtime > _STALE_SECONDS:
                    part.unlink(missing_ok=True)
            except OSError:  # another process finished or removed it meanwhile
                continue


def content_key(*parts: str) -> str:
    """32 hex digits that stand for these texts."""
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


def weights_key(model: nn.Module) -> str:
    """32 hex digits that stand for a model's class and weights: fine-tuning or another file changes them.

    Reads all weights, about a second per gigabyte.
    """
    digest = hashlib.blake2b(type(model).__qualname__.encode(), digest_size=16)
    digest.update(repr(sorted(getattr(model, "config", {}).items(), key=str)).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(repr((name, tuple(tensor.shape), str(tensor.dtype))).encode())
        digest.update(_bytes(tensor.detach().cpu().contiguous()))
    return digest.hexdigest()


def _read_checked(path: Path, names: Iterable[str] | None) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"its format is {metadata.get('format')!r}")
        sums = json.loads(metadata["crc32"])
        tensors = {name: file.get_tensor(name) for name in (sums if names is None else names)}
    for name, tensor in tensors.items():
        if _checksum(tensor) != sums[name]:
            raise ValueError(f"the checksum of {name} is wrong")
    return tensors


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(_bytes(tensor))


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor of any dtype."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
