"""Starting points that let small MASt3R models learn descriptors from scratch."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from mast3r.catmlp_dpt_head import DescriptorHead
from mast3r.model import AsymmetricMASt3R


@torch.no_grad()
def tie_views_and_patch_offsets(
    model: AsymmetricMASt3R, noise: float = 0.1, generator: torch.Generator | None = None
) -> None:
    """Break the plateau of the matching loss at the start of training, in place.

    From a random start, InfoNCE stays at log(N) for a long time: the two views have different decoders and
    heads, so equal image content gets unrelated descriptors, and each of the p^2 pixels of a patch has its
    own random projection, so a shift by one pixel changes the descriptor completely. This start makes both
    views share their weights (they remain free to part), and gives all pixels of a patch the same projection
    of the token up to a small variation, so that matching by patch works first and offsets come next.

    Args:
        model: Freshly built model.
        noise: Standard deviation of the variation inside a patch, relative to that of the projection.
        generator: Source of randomness on the device of the weights, default the global one.

    Raises:
        ValueError: If the noise is negative or the model has no descriptor heads.
    """
    head = model.downstream_head1
    if noise < 0 or not isinstance(head, DescriptorHead):
        raise ValueError(f"expected a MASt3R model and noise >= 0, got a {type(head).__name__} and {noise}.")
    for layer, positions in head.offset_layers():
        repeat_patch_projection(layer, positions, noise=noise, generator=generator)
    model.dec_blocks2.load_state_dict(model.dec_blocks.state_dict())
    model.downstream_head2.load_state_dict(head.state_dict())


def repeat_patch_projection(
    layer: nn.Linear | nn.Conv2d, positions: int, *, noise: float, generator: torch.Generator | None = None
) -> None:
    """Give all `positions` outputs of each channel of `layer` the same weights plus relative noise, in place.

    Args:
        layer: Linear layer or 1 x 1 convolution with channels * positions outputs, position fastest.
        positions: Pixels of a patch, p^2.
        noise: Standard deviation of the variation relative to that of the shared weights.
        generator: Source of randomness.
    """
    base = layer.weight.flatten(1).unflatten(0, (-1, positions))[:, :1]  # (channels, 1, in)
    variation = torch.randn(
        (base.shape[0], positions, base.shape[2]),
        device=base.device,
        dtype=base.dtype,
        generator=generator,
    )
    layer.weight.copy_((base + noise * base.std() * variation).flatten(0, 1).view_as(layer.weight))
    if layer.bias is not None:
        layer.bias.copy_(layer.bias.unflatten(0, (-1, positions))[:, :1].expand(-1, positions).flatten())


@torch.no_grad()
def calm_residual_branches(model: AsymmetricMASt3R) -> None:
    """Scale the last layer of every residual branch by 1 / sqrt(branches), in place.

    With Xavier weights the branches add much the same vector to all tokens, and what tells the tokens of an image
    apart shrinks to a tenth of the signal at the output of the decoder. Smaller branches keep the image in it
    (as in GPT-2).

    Args:
        model: Freshly built model.
    """
    for blocks, branches in ((model.enc_blocks, 2), (model.dec_blocks, 3), (model.dec_blocks2, 3)):
        scale = (branches * len(blocks)) ** -0.5
        for name, parameter in blocks.named_parameters():
            if name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
                parameter.mul_(scale)


@torch.no_grad()
def deepen_from(model: AsymmetricMASt3R, shallower: AsymmetricMASt3R) -> None:
    """Start `model` as the same function as a trained model with fewer layers, in place.

    The trained layers are spread evenly; each new one is a copy of the layer before it whose branches end in zeros,
    so that it passes its input on and training wakes it (progressive stacking with a start at the identity).

    Args:
        model: Model that differs from `shallower` by its numbers of layers only.
        shallower: Trained model.

    Raises:
        ValueError: If a part has fewer layers than in `shallower`, or the models differ in more than depth.
    """
    stacks = ("enc_blocks", "dec_blocks", "dec_blocks2")
    rest = {key: value for key, value in shallower.state_dict().items() if not key.startswith(stacks)}
    own = model.state_dict()
    unlike = [key for key, value in rest.items() if key not in own or own[key].shape != value.shape]
    unlike += [key for key in own if key not in rest and not key.startswith(stacks)]
    if unlike:
        raise ValueError(f"expected models that differ in depth only, but {unlike[0]} differs: use their options.")
    for name in stacks:
        _deepen(cast(nn.ModuleList, getattr(model, name)), cast(nn.ModuleList, getattr(shallower, name)), name)
    model.load_state_dict(rest, strict=False)


def _deepen(blocks: nn.ModuleList, shallower: nn.ModuleList, name: str) -> None:
    """Spread the layers of `shallower` over `blocks` and make the others pass their input on."""
    depth, trained = len(blocks), len(shallower)
    if depth < trained:
        raise ValueError(f"expected at least {trained} layers in {name}, got {depth}: set a larger depth.")
    previous = -1
    for index, block in enumerate(blocks):
        source = index * trained // depth
        block.load_state_dict(shallower[source].state_dict())
        if source == previous:
            _silence(block)
        previous = source


def _silence(block: nn.Module) -> None:
    """Let the residual branches of `block` add nothing."""
    for name, parameter in block.named_parameters():
        if name.rpartition(".")[0].endswith(("attn.proj", "mlp.fc2")):
            parameter.zero_()
