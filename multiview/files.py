"""Writing files and folders so that a reader finds the old content or the new one, never a part of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
import zipfile
import zlib
from collections.abc import Iterable, Iterator
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


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The same for writers that want a path: what they write there appears under `path` when the block ends.

    Args:
        path: Target file.

    Yields:
        The path of a file that does not exist yet, in the same folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield part
        part.replace(path)
    finally:
        for suffix in ("", "-journal", "-wal", "-shm"):  # SQLite's own files
            part.with_name(part.name + suffix).unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], *, stale: Iterable[str] = ()) -> Iterator[Path]:
    """A folder to write several files into; they appear under `path` only when the block ends without an error.

    A new folder appears as a whole. In a folder that exists each file is replaced as a whole and other files
    stay, but for those named `stale`. On an error nothing changes.

    Args:
        path: Target folder.
        stale: Names of files that must not outlive this writing, because a reader would take them for its own.

    Yields:
        An empty folder.

    Raises:
        ValueError: If `path` is a file.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; a folder is needed here.")
    # Inside a folder that exists (which may be the root of a disk), beside one that does not.
    name = f".{path.name}.{uuid.uuid4().hex}.part"
    part = path / name if path.exists() else path.with_name(name)
    part.mkdir(parents=True)
    try:
        yield part
        if path.exists():
            _move_files(part, path, stale)
        else:
            part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _move_files(source: Path, target: Path, stale: Iterable[str]) -> None:
    """Every file of one folder into another, over files of the same name."""
    written = [file.relative_to(source) for file in sorted(source.rglob("*")) if file.is_file()]
    for name in written:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).replace(target / name)
    for name in {*stale} - {str(name) for name in written}:
        (target / name).unlink(missing_ok=True)


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
