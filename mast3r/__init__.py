"""MASt3R: two photos in; 3D points, dense matches and cameras out.

    import mast3r

    model = mast3r.load("small")
    result = mast3r.predict_pair(model, "a.jpg", "b.jpg")
    result.save("scene.glb")

Importing this package is quick: torch and the network are imported when one of these names is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mast3r.loading import WeightsCard, card_of, load
    from mast3r.model import AsymmetricMASt3R
    from mast3r.predictor import PairConfig, match, predict_pair

__version__ = "0.1.0"

__all__ = [
    "AsymmetricMASt3R",
    "PairConfig",
    "WeightsCard",
    "__version__",
    "card_of",
    "load",
    "match",
    "predict_pair",
]

_HOME = {
    "AsymmetricMASt3R": "mast3r.model",
    "PairConfig": "mast3r.predictor",
    "WeightsCard": "mast3r.loading",
    "card_of": "mast3r.loading",
    "load": "mast3r.loading",
    "match": "mast3r.predictor",
    "predict_pair": "mast3r.predictor",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mast3r' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
