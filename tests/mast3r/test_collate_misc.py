"""Collation of samples that have a batch axis, and helpers for files and names."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch

from mast3r.utils.collate import cat_collate
from mast3r.utils.misc import hash_md5, mkdir_for


class Named(NamedTuple):
    a: object
    b: object


def test_cat_collate():
    batch = [
        {"t": torch.full((1, 2), float(i)), "a": np.zeros((2, 1)), "i": i, "s": "x", "l": [1, "y"]} for i in (0, 1)
    ]
    out = cat_collate(batch)
    assert out["t"].shape == (2, 2)
    assert out["a"].shape == (4, 1)
    assert out["i"].tolist() == [0, 1]
    assert out["s"] == ["x", "x"]
    assert out["l"][1] == ["y", "y"]
    assert isinstance(cat_collate([Named(1, 2), Named(3, 4)]), Named)
    assert cat_collate(["a", "b"], collate_fn_map={str: lambda batch, **_: "".join(batch)}) == "ab"
    with pytest.raises(ValueError, match="empty"):
        cat_collate([])
    with pytest.raises(ValueError, match="length"):
        cat_collate([[1], [1, 2]])


def test_file_helpers(tmp_path):
    path = str(tmp_path / "a" / "b" / "file.pth")
    assert mkdir_for(path) == path
    assert (tmp_path / "a" / "b").is_dir()
    assert mkdir_for("file.pth") == "file.pth"
    assert hash_md5("abc") == "900150983cd24fb0d6963f7d28e17f72"
