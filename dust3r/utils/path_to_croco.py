"""Importing this module makes the CroCo modules importable under their historic top-level name `models`.

Scripts of the family say `from models.croco import CroCoNet` after this import. The names are registered as
aliases of `croco.models`, unless the environment already has a package called `models`; no search path is
edited.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys

_SUBMODULES = ("blocks", "criterion", "croco", "dpt_block", "masking", "pos_embed")


def register_models_alias() -> bool:
    """Register `models` and its submodules as aliases of `croco.models`; False if the name is taken."""
    target = importlib.import_module("croco.models")
    if sys.modules.get("models", target) is not target:
        return False
    if "models" not in sys.modules and importlib.util.find_spec("models") is not None:
        return False
    sys.modules["models"] = target
    for name in _SUBMODULES:
        sys.modules[f"models.{name}"] = importlib.import_module(f"croco.models.{name}")
    return True


register_models_alias()
