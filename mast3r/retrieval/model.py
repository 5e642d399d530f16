"""The retrieval network of MASt3R-SfM: which images show the same place, from encoder features.

Duisterhof et al., "MASt3R-SfM: a Fully-Integrated Solution for Unconstrained Structure-from-Motion" (3DV 2025).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dust3r.checkpoint import CheckpointError, unpickle
from dust3r.model import AsymmetricCroCo3DStereo
from dust3r.utils.image import ImgNorm
from dust3r.utils.misc import freeze_all_params
from mast3r.retrieval.whitening import Whitener
from multiview.images import ImageSource, fit_for_model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetrievalConfig:
    """How a retrieval network is built and used; the fields of a checkpoint's `args`.

    Attributes:
        prewhiten: Whether encoder features are whitened before the projector.
        hdims: Widths of the projector's layers; empty for none.
        residual: Add the projector's input to its output.
        postwhiten: Whether projected features are whitened.
        featweights: How features are weighted, 'l2norm': by their length before `postwhiten`.
        nfeat: Local features kept per image; negative for a share of them.
        imsize: Long side in pixels at which images are read.
        nclusters: Words of the codebook.
        pretrained: Name of the backbone's checkpoint.
    """

    prewhiten: bool = False
    hdims: tuple[int, ...] = (1024,)
    residual: bool = False
    postwhiten: bool = False
    featweights: Literal["l2norm"] = "l2norm"
    nfeat: float = 300
    imsize: int = 512
    nclusters: int = 20_000
    pretrained: str | None = None


class RetrievalModel(nn.Module):
    """Encoder features to weighted, whitened local features, or to one global feature.

    Encoder, `prewhiten`, `projector`, `postwhiten`; the weight of a feature is its length after the projector.

    Args:
        backbone: A two-view network; only its encoder is used. The state dict leaves it out.
        freeze_backbone: Whether the backbone gets no gradient.
        prewhiten: None for no whitening before the projector; any number for one (its value starts as identity).
        hdims: Widths of the projector's layers; empty for none.
        residual: Add the projector's input to its output.
        postwhiten: Like `prewhiten`, after the projector.
        featweights: 'l2norm'.
        nfeat: Local features kept per image; negative for a share of them.
        pretrained_retrieval: Checkpoint file of a retrieval network to take the weights from.

    Raises:
        ValueError: On an unknown `featweights` or a residual between unequal widths.
    """

    def __init__(
        self,
        backbone: AsymmetricCroCo3DStereo,
        freeze_backbone: int = 1,
        prewhiten: int | None = None,
        hdims: Sequence[int] = (1024,),
        residual: bool = False,
        postwhiten: int | None = None,
        featweights: str = "l2norm",
        nfeat: float = 300,
        pretrained_retrieval: str | Path | None = None,
    ) -> None:
        super().__init__()
        if featweights != "l2norm":
            raise ValueError(f"featweights must be 'l2norm', got {featweights!r}.")
        width = backbone.enc_embed_dim
        out = hdims[-1] if hdims else width
        if residual and out != width:
            raise ValueError(f"a residual projector needs hdims that end in {width}, got {list(hdims)}.")
        self.backbone = backbone
        self.residual = residual
        self.nfeat = nfeat
        self.out_dim = out
        self.prewhiten = nn.Identity() if prewhiten is None else Whitener(width)
        self.projector = _projector(width, tuple(hdims))
        self.postwhiten = nn.Identity() if postwhiten is None else Whitener(out)
        self.register_state_dict_post_hook(_forget_backbone)
        self.register_load_state_dict_post_hook(_excuse_backbone)
        if freeze_backbone:
            freeze_all_params([backbone])
        if pretrained_retrieval is not None:
            self.load_state_dict(_weights(unpickle(pretrained_retrieval), pretrained_retrieval))

    @classmethod
    def from_config(cls, backbone: AsymmetricCroCo3DStereo, config: RetrievalConfig) -> RetrievalModel:
        """Build the network a configuration describes."""
        return cls(
            backbone,
            prewhiten=-1 if config.prewhiten else None,
            hdims=config.hdims,
            residual=config.residual,
            postwhiten=-1 if config.postwhiten else None,
            featweights=config.featweights,
            nfeat=config.nfeat,
        )

    def forward_features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """All local features of images.

        Args:
            image: (B, 3, H, W) in [-1, 1].

        Returns:
            Features (B, N, D) and weights (B, N).
        """
        tokens = encode(self.backbone, image)
        x = self.prewhiten(tokens)
        x = self.projector(x) + (x if self.residual else 0)
        return self.postwhiten(x), x.norm(dim=-1)

    def forward_local(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The local features of largest weight, see `how_select_local`."""
        return how_select_local(*self.forward_features(image), self.nfeat)

    def forward_global(self, image: Tensor) -> Tensor:
        """One unit-length feature (B, D) per image: the weighted sum of all local ones."""
        return weighted_sum(*self.forward_features(image))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Same as `forward_local`."""
        return self.forward_local(image)


def encode(backbone: AsymmetricCroCo3DStereo, image: Tensor) -> Tensor:
    """Normalised encoder features (B, N, C) of images (B, 3, H, W) in [-1, 1]."""
    shape = torch.tensor([image.shape[-2:]]).expand(len(image), -1)
    return backbone._encode_image(image, shape)[0][..., : backbone.enc_embed_dim]


def how_select_local(feat: Tensor, attn: Tensor, nfeat: float) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the features of largest weight.

    Args:
        feat: (B, N, D) features.
        attn: (B, N) weights.
        nfeat: How many to keep, at most all; negative for the share -nfeat of them.

    Returns:
        Features (B, n, D), weights (B, n) in decreasing order, and their indices (B, n).
    """
    total = feat.shape[1]
    count = int(-nfeat * total) if nfeat < 0 else int(nfeat)
    weights, index = attn.topk(min(max(count, 1), total), dim=1)
    return feat.gather(1, index[..., None].expand(-1, -1, feat.shape[-1])), weights, index


def weighted_sum(feat: Tensor, attn: Tensor) -> Tensor:
    """Unit-length weighted sum (B, D) of features (B, N, D) with weights (B, N)."""
    return F.normalize((feat * attn[..., None]).sum(dim=1), dim=-1)


@torch.inference_mode()
def extract_local_features(
    model: RetrievalModel,
    images: Sequence[ImageSource],
    imsize: int,
    seed: int = 0,
    tocpu: bool = False,
    max_nfeat_per_image: int | None = None,
    max_nfeat_per_image2: int | None = None,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Local features of many images, image after image.

    Args:
        model: The retrieval network, on `device`.
        images: Paths, PIL images or arrays.
        imsize: Long side in pixels at which they are read.
        seed: Seed of the random choice.
        tocpu: Collect the features in main memory.
        max_nfeat_per_image: Keep at most so many features of an image, those of largest weight.
        max_nfeat_per_image2: Keep at most so many of these, chosen at random.
        device: Where the network is; default the device of its weights.

    Returns:
        Features (M, D) and for each the position (M,) int64 of its image.
    """
    device = torch.device(device) if device is not None else next(model.backbone.parameters()).device
    generator = np.random.default_rng(seed)
    features, owners = [], []
    for position, source in enumerate(images):
        pixels, _ = fit_for_model(source, imsize, model.backbone.patch_size, square_ok=True)
        found = model.forward_local(ImgNorm(pixels)[None].to(device))[0][0][:max_nfeat_per_image]
        if max_nfeat_per_image2 is not None and len(found) > max_nfeat_per_image2:
            chosen = np.sort(generator.permutation(len(found))[:max_nfeat_per_image2])
            found = found[torch.from_numpy(chosen).to(found.device)]
        features.append(found.cpu() if tocpu else found)
        owners.append(torch.full((len(found),), position))
    if not features:
        raise ValueError("extract_local_features needs at least one image, got none.")
    return torch.cat(features), torch.cat(owners).to(features[0].device)


def load_retrieval_model(path: str | Path, backbone: AsymmetricCroCo3DStereo) -> tuple[RetrievalModel, RetrievalConfig]:
    """Read a retrieval checkpoint without executing anything stored in it.

    Args:
        path: The `.pth` file with `args` and `model` (weights without the backbone).
        backbone: The two-view network it was trained on.

    Returns:
        The network in evaluation mode, on the device of the backbone, and its configuration.

    Raises:
        CheckpointError: If the file is missing, damaged, unsafe, or does not fit the backbone.
    """
    content = unpickle(path)
    config, weights = _config(content, path), _weights(content, path)
    try:
        model = RetrievalModel.from_config(backbone, config)
    except ValueError as error:
        raise CheckpointError(f"{path} does not fit this backbone: {error}") from error
    own = {key: value.shape for key, value in model.state_dict().items()}
    wrong = sorted(own.items() ^ {key: value.shape for key, value in weights.items()}.items())
    if wrong:
        raise CheckpointError(
            f"{path} does not fit this backbone of width {backbone.enc_embed_dim}: {len(wrong)} weights differ, "
            f"first {wrong[0][0]} {tuple(wrong[0][1])}; load it with the backbone {config.pretrained!r}."
        )
    model.load_state_dict(weights)
    device = next(backbone.parameters()).device
    if device.type == "mps":  # has no float64, in which whitening is stored
        model.float()
    return model.to(device).eval(), config


def read_retrieval_config(path: str | Path) -> RetrievalConfig:
    """The configuration stored in a retrieval checkpoint.

    Raises:
        CheckpointError: If the file is missing, damaged or unsafe, or holds no retrieval network.
    """
    return _config(unpickle(path), path)


def _projector(width: int, hdims: tuple[int, ...]) -> nn.Module:
    """Linear, LayerNorm, GELU for every width but the last, which is a plain Linear."""
    if not hdims:
        return nn.Identity()
    layers: list[nn.Module] = []
    for out in hdims[:-1]:
        layers += [nn.Linear(width, out), nn.LayerNorm(out), nn.GELU()]
        width = out
    return nn.Sequential(*layers, nn.Linear(width, hdims[-1]))


def _forget_backbone(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    """Retrieval checkpoints hold nothing of the backbone."""
    for key in [key for key in state_dict if key.startswith(f"{prefix}backbone.")]:
        del state_dict[key]


def _excuse_backbone(module: nn.Module, incompatible_keys: Any) -> None:
    missing = incompatible_keys.missing_keys
    missing[:] = [key for key in missing if ".backbone." not in f".{key}"]


def _weights(content: dict[str, Any], path: str | Path) -> dict[str, Tensor]:
    weights = content.get("model")
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(f"{path} holds no weights under the key 'model'; is it a retrieval checkpoint?")
    return {key: value for key, value in weights.items() if not key.startswith("backbone.")}


def _config(content: dict[str, Any], path: str | Path) -> RetrievalConfig:
    args = content.get("args")
    stored = vars(args) if hasattr(args, "__dict__") else {}
    if "nfeat" not in stored and "hdims" not in stored:
        raise CheckpointError(f"{path} does not say how to build a retrieval network; its args are missing.")
    names = {field.name for field in fields(RetrievalConfig)}
    known = {name: value for name, value in stored.items() if name in names}
    try:
        known["hdims"] = _widths(known.get("hdims", ""))
        for name in ("prewhiten", "postwhiten"):
            known[name] = _whitens(known.get(name))
        known["residual"] = bool(known.get("residual", False))
        known.update({name: float(known[name]) for name in ("nfeat",) if name in known})
        known.update({name: int(known[name]) for name in ("imsize", "nclusters") if name in known})
        known["pretrained"] = str(known["pretrained"]) if known.get("pretrained") else None
        return RetrievalConfig(**known)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the retrieval settings of {path} are not understood: {error}") from error


def _whitens(value: object) -> bool:
    """Whether a stored setting asks for whitening; command lines store None, '' or 'None' for no."""
    return value is not None and value is not False and str(value) not in ("", "None")


def _widths(value: Any) -> tuple[int, ...]:
    """Layer widths from '1024_512', '' or a sequence."""
    if value is None:
        return ()
    parts = value.split("_") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    return tuple(int(part) for part in parts if str(part) != "")
