"""Getting a MASt3R model by name, and what is known about its weights."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args
from weakref import WeakKeyDictionary

import torch
from torch import nn

from dust3r.checkpoint import CheckpointError
from mast3r.model import AsymmetricMASt3R
from mast3r.models import OFFICIAL_LICENCE, SHIPPED, find_record
from multiview.similarity import ScaleStatus

logger = logging.getLogger(__name__)

_UNKNOWN = "unknown"


@dataclass(frozen=True)
class WeightsCard:
    """What is known about a model's weights.

    Attributes:
        name: Name of the weights.
        licence: Their licence; "unknown" if nothing says it.
        scale_status: Unit of the predicted lengths: "metric-predicted" if the training taught metres, else
            "arbitrary".
    """

    name: str
    licence: str = _UNKNOWN
    scale_status: ScaleStatus = "arbitrary"


_cards: WeakKeyDictionary[nn.Module, WeightsCard] = WeakKeyDictionary()
_announced: set[WeightsCard] = set()


def load(
    name: str | Path = "small",
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> AsymmetricMASt3R:
    """Load a MASt3R model for inference.

    Args:
        name: "small" for the weights that come with the package (no download), an official checkpoint name, a
            Hub id 'owner/name', a folder with config.json and model.safetensors, or a `.pth` or
            `.safetensors` file. Nothing stored in a file is executed.
        device: Where to put the model; default torch's default device.
        dtype: Type of its weights; default float32.

    Returns:
        The model in evaluation mode. `card_of` tells the licence of its weights, which is logged once.

    Raises:
        CheckpointError: If the weights are missing, damaged, unsafe, or belong to another architecture.
    """
    source = shipped_weights(str(name)) if str(name) in SHIPPED else name
    device = torch.get_default_device() if device is None else device
    model = AsymmetricMASt3R.from_pretrained(source, device=device, dtype=dtype or torch.float32)
    card = read_card(source)
    _cards[model] = card
    _announce(card)
    return model


def shipped_weights(name: str) -> Path:
    """The file of weights that come with the package.

    Raises:
        CheckpointError: If this copy of the package lacks them.
    """
    path = Path(str(files("mast3r") / "weights" / f"{SHIPPED[name]}.safetensors"))
    if not path.is_file():
        raise CheckpointError(
            f"the weights {name!r} are missing from this copy of the package ({path}); reinstall it, or pass "
            "the path of other weights."
        )
    return path


def card_of(model: nn.Module) -> WeightsCard:
    """What is known about the weights of a model; little, if it was not made by `load`."""
    return _cards.get(model, WeightsCard(type(model).__name__))


def read_card(source: str | Path) -> WeightsCard:
    """The card of weights: from the `.json` file beside them, or from an official name.

    Its entries `name`, `licence` and `scale_status` are used; the shipped weights were trained in metres.

    Args:
        source: Path, official name or Hub id.
    """
    path = Path(source)
    content = _json_object(path.with_suffix(".json")) if path.is_file() else {}
    record = find_record(path.stem)
    published = record is not None and record.hub_id is not None
    official = published or path.stem.startswith("MASt3R_") or str(source).startswith("naver/")
    licence = content.get("licence") or (OFFICIAL_LICENCE if official else _UNKNOWN)
    metric = path.stem in SHIPPED.values() or path.stem.endswith("_metric")
    status: ScaleStatus = "metric-predicted" if metric else "arbitrary"
    if content.get("scale_status") in get_args(ScaleStatus):
        status = content["scale_status"]
    return WeightsCard(str(content.get("name") or path.stem or source), str(licence), status)


def _json_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _announce(card: WeightsCard) -> None:
    if card not in _announced:
        _announced.add(card)
        logger.info("weights %s, licence: %s", card.name, card.licence)
