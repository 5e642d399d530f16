"""Procedural scenes rendered by plain torch operations: exact geometry for training and tests."""

from __future__ import annotations

from dust3r.datasets.synthetic.engine import SceneEngine, SyntheticConfig
from dust3r.datasets.synthetic.textures import TextureConfig

__all__ = ["SceneEngine", "SyntheticConfig", "TextureConfig"]
