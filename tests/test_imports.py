"""Importing the packages is light and contacts nobody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAVY = ("gradio", "matplotlib", "pycolmap", "cv2", "trimesh", "poselib", "huggingface_hub")

SCRIPT = """
import json, socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("the import opens a connection")

socket.socket.connect = refuse
socket.create_connection = refuse
import mast3r
light = sorted(set(sys.modules) & {"torch", "numpy", "scipy"})
import torch
mast3r.load, mast3r.predict_pair, mast3r.match, mast3r.AsymmetricMASt3R
import mast3r.demo
modules = sorted({name.split(".")[0] for name in sys.modules})
print(json.dumps({"light": light, "modules": modules}))
"""


def run(*arguments: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=env, timeout=300, check=True
    )
    return done.stdout


def test_importing_is_light():
    found = json.loads(run("-c", SCRIPT))
    assert found["light"] == []
    assert set(HEAVY).isdisjoint(found["modules"])


def test_every_exported_name_exists():
    import mast3r

    assert set(mast3r.__all__) <= set(dir(mast3r))
    assert all(getattr(mast3r, name) is not None for name in mast3r.__all__)


def test_version_is_that_of_the_package():
    import mast3r

    assert f'version = "{mast3r.__version__}"' in (ROOT / "pyproject.toml").read_text()
