"""Writing files so that a reader finds the old content or the new one, never a part of it."""

from __future__ import annotations

import contextlib
import os
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a binary file that appears under `path` only when the block ends without an error.

    Folders on the way are made. On an error the target keeps its former content and no other file is left
    behind.

    Args:
        path: Target file.

    Yields:
        A writable binary file in the same folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_npz(path: str | os.PathLike[str], **arrays: Any) -> Path:
    """Write arrays as a compressed .npz file, atomically.

    Args:
        path: Target file.
        **arrays: Name -> array, number or string; objects that would need pickling are refused.

    Returns:
        The path.

    Raises:
        ValueError: If a value is no plain array.
    """
    values = {name: np.asarray(value) for name, value in arrays.items()}
    for name, value in values.items():
        if value.dtype.hasobject:
            raise ValueError(f"{name!r} cannot be written to .npz: it is no array of numbers or text.")
    with atomic_write(path) as file:
        np.savez_compressed(file, **values)  # pyright: ignore[reportArgumentType]  # names are data here
    return Path(path)


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All arrays of an .npz file; nothing stored in it is executed.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or of another kind.
    """
    try:
        data = np.load(path, allow_pickle=False)
        if isinstance(data, np.ndarray):
            raise ValueError("it holds a single array")
        with data:
            return dict(data)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a readable .npz file ({error}).") from error
