"""Small helpers for files and names."""

from __future__ import annotations

import hashlib
import os


def mkdir_for(f: str) -> str:
    """Make the folder a file will lie in.

    Args:
        f: Path of the file.

    Returns:
        The same path.
    """
    folder = os.path.dirname(f)
    if folder:
        os.makedirs(folder, exist_ok=True)
    return f


def hash_md5(s: str) -> str:
    """MD5 of a string as 32 hex digits: a short file name for a long one, not a protection."""
    return hashlib.md5(s.encode("utf-8"), usedforsecurity=False).hexdigest()
