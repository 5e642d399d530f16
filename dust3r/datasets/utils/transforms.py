"""Photometric transforms of training images: `ImgNorm` alone, or after a colour jitter (`ColorJitter`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
import torch
from PIL import ImageEnhance
from torch import Tensor

from dust3r.utils.image import ImgNorm

__all__ = ["ColorJitter", "ImgNorm", "JitterAndNormalize"]


@dataclass(frozen=True)
class JitterAndNormalize:
    """Random brightness, contrast, saturation and hue in random order, then `ImgNorm`.

    Attributes:
        brightness: factor drawn from [1 - b, 1 + b].
        contrast: factor drawn from [1 - c, 1 + c].
        saturation: factor drawn from [1 - s, 1 + s].
        hue: turn of the hue circle, drawn from [-h, h], h <= 0.5.
    """

    brightness: float = 0.5
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.1

    def __call__(self, image: PIL.Image.Image | np.ndarray, rng: np.random.Generator | None = None) -> Tensor:
        """Jitter an RGB image; the draws come from `rng`, or from torch's state (seeded in every worker).

        Returns:
            (3, H, W) float32 in [-1, 1].
        """
        rng = np.random.default_rng(int(torch.randint(2**62, ()))) if rng is None else rng
        pil = image if isinstance(image, PIL.Image.Image) else PIL.Image.fromarray(image)
        factors = {
            ImageEnhance.Brightness: 1 + rng.uniform(-self.brightness, self.brightness),
            ImageEnhance.Contrast: 1 + rng.uniform(-self.contrast, self.contrast),
            ImageEnhance.Color: 1 + rng.uniform(-self.saturation, self.saturation),
        }
        steps: list[Callable[[PIL.Image.Image], PIL.Image.Image]] = [
            partial(_enhance, operation=op, factor=factor) for op, factor in factors.items()
        ]
        steps.append(partial(_turn_hue, turn=rng.uniform(-self.hue, self.hue)))
        for k in rng.permutation(len(steps)):
            pil = steps[k](pil)
        return ImgNorm(pil)


def _enhance(image: PIL.Image.Image, operation: Callable[..., Any], factor: float) -> PIL.Image.Image:
    return operation(image).enhance(factor)


def _turn_hue(image: PIL.Image.Image, turn: float) -> PIL.Image.Image:
    """Rotate the hue of an RGB image by `turn` of a full circle."""
    hue, saturation, value = image.convert("HSV").split()
    steps = round(turn * 256)
    hue = hue.point([(level + steps) % 256 for level in range(256)])
    return PIL.Image.merge("HSV", (hue, saturation, value)).convert("RGB")


ColorJitter = JitterAndNormalize()
