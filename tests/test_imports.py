"""Importing the packages is light and contacts nobody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAVY = ("gradio", "matplotlib", "pycolmap", "cv2", "h5py", "av", "trimesh", "poselib", "huggingface_hub")
SECONDS = 2.0  # of processor time, beyond those of torch

SCRIPT = """
import json, socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("the import opens a connection")

socket.socket.connect = refuse
socket.create_connection = refuse
import time
import mast3r, mast3r.cli
light = sorted(set(sys.modules) & {"torch", "numpy", "scipy"})
import torch
start = time.process_time()
all_names = [getattr(mast3r, name) for name in mast3r.__all__]
seconds = time.process_time() - start
import mast3r.demo, mast3r.cli.match, mast3r.cli.pair, mast3r.cli.scene, mast3r.cli.convert, mast3r.cli.models
import dust3r.demo, multiview.video, multiview.display
modules = sorted({name.split(".")[0] for name in sys.modules})
print(json.dumps({"light": light, "modules": modules, "seconds": seconds}))
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
    assert found["seconds"] < SECONDS


def test_every_exported_name_exists():
    import mast3r

    assert set(mast3r.__all__) <= set(dir(mast3r))
    assert all(getattr(mast3r, name) is not None for name in mast3r.__all__)


def test_version_is_that_of_the_package():
    import mast3r

    assert f'version = "{mast3r.__version__}"' in (ROOT / "pyproject.toml").read_text()
