"""Loading weights into two-view models, and starting them from CroCo or DUSt3R weights."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from croco.checkpoint import (
    Adaptation,
    Checkpoint,
    CheckpointError,
    LoadOptions,
    Weights,
    find_checkpoint,
    read_checkpoint,
    save_safetensors,
    unpickle,
    with_aliases,
)
from croco.checkpoint import load_pretrained as _load_pretrained

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "LoadOptions",
    "LoadReport",
    "copy_second_decoder",
    "initialize_from",
    "load_pretrained",
    "read_checkpoint",
    "save_safetensors",
    "unpickle",
]

log = logging.getLogger(__name__)
ModelT = TypeVar("ModelT", bound=nn.Module)

# inference takes images in their own orientation, whatever the training did
_INFERENCE = {"landscape_only": False, "patch_embed_cls": "PatchEmbedDust3R"}


@dataclass(frozen=True)
class LoadReport:
    """What `initialize_from` did.

    Attributes:
        loaded: State-dict keys that received weights.
        missing: Keys that kept their initial values.
        ignored: Keys of the file that the model does not have.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    ignored: tuple[str, ...]


def copy_second_decoder(weights: Weights) -> Weights:
    """`weights`, with the first decoder copied to the second if the file has one decoder only."""
    if any(key.startswith("dec_blocks2.") for key in weights):
        return weights
    first = {key: value for key, value in weights.items() if key.startswith("dec_blocks.")}
    return {
        **weights,
        **{key.replace("dec_blocks.", "dec_blocks2.", 1): v.clone() for key, v in first.items()},
    }


def load_pretrained(cls: type[ModelT], name: str | Path, *, packaged: Path | None = None, **kw: Any) -> ModelT:
    """Load a two-view model for inference.

    The patch embedding becomes 'PatchEmbedDust3R' and `landscape_only` False unless given explicitly.

    Args:
        cls: `AsymmetricCroCo3DStereo` or `AsymmetricMASt3R`.
        name: Official checkpoint name, Hub id 'owner/name', folder with config.json and model.safetensors, or
            a `.pth` or `.safetensors` file.
        packaged: Folder of weights shipped with the class.
        **kw: Fields of `LoadOptions`; anything else overrides a stored constructor argument.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: If the source is missing, damaged, unsafe, or holds another architecture.
    """
    adaptation = Adaptation(forced=_INFERENCE, adapt=copy_second_decoder, packaged=packaged)
    return _load_pretrained(cls, name, adaptation=adaptation, **kw)


def initialize_from(model: nn.Module, name: str | Path, **kw: Any) -> LoadReport:
    """Start a two-view model from the weights of any model of the family, CroCo included.

    Weights that fit by name are copied in place; a single decoder initialises both; the rest keeps its
    values.

    Args:
        model: Model to initialise, on any device.
        name: As in `load_pretrained`.
        **kw: Fields of `LoadOptions` that concern the Hub.

    Returns:
        What was loaded, missing and ignored.

    Raises:
        CheckpointError: If the source is missing, damaged or unsafe, a shape differs, or nothing fits.
    """
    checkpoint = read_checkpoint(find_checkpoint(name, LoadOptions(**kw)))
    weights = with_aliases(model, copy_second_decoder(checkpoint.weights))
    own = model.state_dict()
    loaded = [key for key in own if key in weights]
    wrong = [key for key in loaded if own[key].shape != weights[key].shape]
    if wrong or not loaded:
        what = f"{wrong[0]} has shape {tuple(weights[wrong[0]].shape)}" if wrong else "no weight has a known name"
        raise CheckpointError(f"{checkpoint.source} does not fit this {type(model).__name__}: {what}.")
    model.load_state_dict({key: weights[key] for key in loaded}, strict=False)
    missing = tuple(key for key in own if key not in weights)
    ignored = tuple(key for key in checkpoint.weights if key not in own)
    log.info("%s: %d weights loaded, %d missing, %d ignored", name, len(loaded), len(missing), len(ignored))
    return LoadReport(tuple(loaded), missing, ignored)
