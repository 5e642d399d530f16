"""MASt3R: photos in; 3D points, dense matches and cameras out.

    import mast3r

    model = mast3r.load("small")
    result = mast3r.predict_pair(model, "a.jpg", "b.jpg")
    result.save("scene.glb")
    scene = mast3r.reconstruct(model, "photos/")

Importing this package is quick: torch and the network are imported when one of these names is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mast3r.loading import WeightsCard, card_of, load
    from mast3r.matching import match
    from mast3r.model import AsymmetricMASt3R
    from mast3r.models import WeightsRecord, list_models
    from mast3r.pairs.config import PairConfig
    from mast3r.pairs.two_view import TokenCache
    from mast3r.predictor import predict_pair, predict_pairs
    from mast3r.scenes.localization import LocalizeConfig, LocalizedImage, Localizer, localize
    from mast3r.scenes.reconstruction import ReconstructConfig, reconstruct
    from mast3r.tiling.network import NetworkTiles

__version__ = "0.1.0"

__all__ = [
    "AsymmetricMASt3R",
    "LocalizeConfig",
    "LocalizedImage",
    "Localizer",
    "NetworkTiles",
    "PairConfig",
    "ReconstructConfig",
    "TokenCache",
    "WeightsCard",
    "WeightsRecord",
    "__version__",
    "card_of",
    "list_models",
    "load",
    "localize",
    "match",
    "predict_pair",
    "predict_pairs",
    "reconstruct",
]

_HOME = {
    "AsymmetricMASt3R": "mast3r.model",
    "LocalizeConfig": "mast3r.scenes.localization",
    "LocalizedImage": "mast3r.scenes.localization",
    "Localizer": "mast3r.scenes.localization",
    "NetworkTiles": "mast3r.tiling.network",
    "PairConfig": "mast3r.pairs.config",
    "ReconstructConfig": "mast3r.scenes.reconstruction",
    "TokenCache": "mast3r.pairs.two_view",
    "WeightsCard": "mast3r.loading",
    "WeightsRecord": "mast3r.models",
    "card_of": "mast3r.loading",
    "list_models": "mast3r.models",
    "load": "mast3r.loading",
    "localize": "mast3r.scenes.localization",
    "match": "mast3r.matching",
    "predict_pair": "mast3r.predictor",
    "predict_pairs": "mast3r.predictor",
    "reconstruct": "mast3r.scenes.reconstruction",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mast3r' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
