"""Networks without weights whose matches are known: stand-ins for an `AsymmetricMASt3R`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def gradient(width: int, height: int) -> np.ndarray:
    """Every pixel has a colour of its own: red grows to the right, green downwards."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x // (width - 1), 255 * y // (height - 1), np.full_like(x, 90)], -1).astype(np.uint8)


def texture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Noise of all wavelengths from 4 pixels to half the image: something to see at every resolution."""
    generator = torch.Generator().manual_seed(seed)
    total, cell = torch.zeros(1, 3, height, width), 4
    while cell <= max(width, height) // 2:
        low = torch.randn(1, 3, -(-height // cell) + 1, -(-width // cell) + 1, generator=generator)
        total += F.interpolate(low, size=(height, width), mode="bicubic", align_corners=True)
        cell *= 2
    total = (total - total.amin()) / (total.amax() - total.amin())
    return (255 * total[0].permute(1, 2, 0)).round().byte().numpy()


class _StandIn(nn.Module):
    """A network whose tokens are the pixels; subclasses say what a pixel's descriptor is."""

    patch_size = 16

    def __init__(self, focal: float = 100.0, side: int = 64):
        super().__init__()
        self.config = {"img_size": (side, side)}
        self.weight = nn.Parameter(torch.zeros(1))
        self.focal = focal
        self.encoded = 0
        self.calls = 0

    def _encode_image(self, image, true_shape):
        self.encoded += len(image)
        self.calls += 1
        tokens = image.flatten(2).transpose(1, 2)
        return tokens, torch.zeros(*tokens.shape[:2], 2, dtype=torch.long), None

    def _decoder(self, f1, pos1, f2, pos2):
        return [f1], [f2]

    def descriptors(self, colours: Tensor) -> Tensor:
        raise TypeError(type(self).__name__)

    def _downstream_head(self, number, tokens, shape):
        height, width = shape
        colours = tokens[-1].reshape(-1, height, width, 3)
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        rays = torch.stack([(x - (width - 1) / 2) / self.focal, (y - (height - 1) / 2) / self.focal], -1)
        points = 2 * torch.cat([rays, torch.ones(height, width, 1)], -1)  # on the plane z = 2
        confidence = torch.ones(len(colours), height, width)
        return {
            "pts3d": points.expand(len(colours), -1, -1, -1),
            "conf": 1 + confidence,
            "desc": F.normalize(self.descriptors(colours), dim=-1),
            "desc_conf": 4 * confidence,
        }


class _ColourModel(_StandIn):
    """The descriptor of a pixel is its red and green."""

    def descriptors(self, colours: Tensor) -> Tensor:
        return torch.cat([colours[..., :2], torch.ones_like(colours[..., :1])], -1)


class _PatchModel(_StandIn):
    """The descriptor of a pixel is the 5 x 5 pixels around it, without their mean."""

    def descriptors(self, colours: Tensor) -> Tensor:
        height, width = colours.shape[1:3]
        patches = F.unfold(F.pad(colours.permute(0, 3, 1, 2), (2, 2, 2, 2), mode="replicate"), 5)
        patches = patches.unflatten(1, (3, 25))
        patches = patches - patches.mean(2, keepdim=True)
        return patches.flatten(1, 2).unflatten(2, (height, width)).permute(0, 2, 3, 1)


ColourModel: Any = _ColourModel
PatchModel: Any = _PatchModel
