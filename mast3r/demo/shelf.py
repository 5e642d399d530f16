"""The models a visitor can choose from."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import torch

from mast3r.loading import WeightsCard, card_of, load, read_card, shipped_weights
from mast3r.model import AsymmetricMASt3R
from mast3r.models import list_models

Loadable: TypeAlias = "tuple[WeightsCard, Callable[[], AsymmetricMASt3R]]"
"""What is known about a model, and how to load it."""


class ModelShelf:
    """The model the page was started with, and others that are loaded when they are first asked for.

    Of the others only the last one is kept in memory.

    Args:
        given: The model the page was started with.
        others: What can be loaded besides: per name its card and how to load it.
    """

    def __init__(
        self,
        given: AsymmetricMASt3R,
        others: Mapping[str, Loadable] | None = None,
    ):
        card = card_of(given)
        self._given = given
        self._others = {name: other for name, other in (others or {}).items() if name != card.name}
        self._cards = {card.name: card, **{name: other for name, (other, _) in self._others.items()}}
        self._kept: tuple[str, AsymmetricMASt3R] | None = None
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """The models, the one the page was started with first."""
        return list(self._cards)

    def card(self, name: str | None = None) -> WeightsCard:
        """What is known about a model; default the first.

        Raises:
            ValueError: If there is no such model.
        """
        name = name or self.names[0]
        if name not in self._cards:
            raise ValueError(f"There is no model {name!r} here; choose one of {', '.join(self._cards)}.")
        return self._cards[name]

    def model(self, name: str | None = None) -> AsymmetricMASt3R:
        """A model, loaded if need be; default the first.

        Raises:
            ValueError: If there is no such model or it cannot be loaded.
        """
        self.card(name)
        if name not in self._others:
            return self._given
        with self._lock:
            if self._kept is None or self._kept[0] != name:
                self._kept = None  # frees the last one before the next is read
                self._kept = (name, self._others[name][1]())
            return self._kept[1]


def models_here(device: torch.device | str) -> dict[str, Loadable]:
    """The MASt3R models that lie on this machine: nothing is downloaded for a visitor."""
    from huggingface_hub import try_to_load_from_cache  # slow import

    found: dict[str, Loadable] = {}
    for record in list_models():
        if record.architecture != "AsymmetricMASt3R" or record.availability == "downloadable":
            continue
        if record.hub_id is None:
            source = shipped_weights(record.name)
            card = read_card(source)
        else:
            source = Path(str(try_to_load_from_cache(record.hub_id, "model.safetensors"))).parent
            card = WeightsCard(record.name, record.weights_licence, record.scale_status)
        found[card.name] = card, _loader(source, device)
    return found


def _loader(source: Path, device: torch.device | str) -> Callable[[], AsymmetricMASt3R]:
    return lambda: load(source, device=device)
