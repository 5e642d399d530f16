"""What a camera does to a picture: exposure, white balance, vignetting, blur, noise and JPEG. Differs between views."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from dust3r.datasets.synthetic.rng import Rng

_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)  # quantisation table of the JPEG standard, annex K


@dataclass(frozen=True)
class Photometry:
    """Camera response of N views.

    Attributes:
        gain: (N, 3) exposure times white balance.
        gamma, contrast, saturation, vignette, blur, noise: (N,).
        quality: (N,) JPEG quantisation step factor; 0 leaves the picture alone.
    """

    gain: Tensor
    gamma: Tensor
    contrast: Tensor
    saturation: Tensor
    vignette: Tensor
    blur: Tensor
    noise: Tensor
    quality: Tensor

    def to(self, device: torch.device) -> Photometry:
        """The same values on another device."""
        return Photometry(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))


def draw_photometry(rng: Rng, count: int, strength: float) -> Photometry:
    """Random camera responses; `strength` 0 is a perfect camera, 1 the full range."""
    s = strength
    exposure = torch.exp(rng.normal(0.3 * s, count, 1))
    return Photometry(
        gain=exposure * torch.exp(rng.normal(0.08 * s, count, 3)),
        gamma=torch.exp(rng.normal(0.2 * s, count)),
        contrast=1 + rng.normal(0.18 * s, count),
        saturation=(1 + rng.normal(0.3 * s, count)).clamp(0, 2),
        vignette=rng.uniform(0, 0.5 * s, count),
        blur=torch.where(rng.chance(0.5, count), rng.uniform(0, s, count), 0.0),
        noise=torch.where(rng.chance(0.6, count), rng.log_uniform(0.004, 0.05, count) * s, 0.0),
        quality=torch.where(rng.chance(0.5, count), rng.log_uniform(0.1, 1.6, count) * s, 0.0),
    )


def develop(image: Tensor, camera: Photometry, noise: Tensor) -> Tensor:
    """Apply a camera response.

    Args:
        image: (N, 3, H, W) linear colours; H and W multiples of 8.
        camera: responses of the N views.
        noise: (N, 3, H, W) standard normal numbers.

    Returns:
        (N, 3, H, W) in [0, 1].
    """

    def per_image(x: Tensor) -> Tensor:
        return x[:, None, None, None]

    _, _, h, w = image.shape
    y = torch.linspace(-1, 1, h, device=image.device)[:, None]
    x = torch.linspace(-1, 1, w, device=image.device)
    brightness = image.mean((1, 2, 3), keepdim=True).clamp(min=0.02)
    image = image * (0.38 / brightness) ** 0.8  # automatic exposure
    image = image * camera.gain[:, :, None, None] * (1 - 0.5 * per_image(camera.vignette) * (x * x + y * y))
    image = image.clamp(1e-4, 4)
    image = (image / (1 + 0.15 * image)) ** (0.8 * per_image(camera.gamma))
    grey = image.mean(1, keepdim=True)
    image = grey + per_image(camera.saturation) * (image - grey)
    image = (image - 0.5) * per_image(camera.contrast) + 0.5
    image = image + per_image(camera.blur) * (_smooth(image) - image)
    image = (image + per_image(camera.noise) * (0.5 + image.clamp(0, 1)) * noise).clamp(0, 1)
    return torch.where(per_image(camera.quality) > 0, jpeg(image, per_image(camera.quality)), image)


def _smooth(image: Tensor) -> Tensor:
    """Blur with a 5-tap binomial filter."""
    taps = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
    h, w = image.shape[-2:]
    padded = F.pad(image, (2, 2, 2, 2), mode="replicate")
    rows = sum(tap * padded[:, :, k : k + h] for k, tap in enumerate(taps))
    return sum(tap * rows[:, :, :, k : k + w] for k, tap in enumerate(taps))  # type: ignore[return-value]


def _block_dct() -> Tensor:
    """(64, 64) orthonormal cosine transform of row-major 8 x 8 blocks."""
    k = torch.arange(8.0)
    basis = torch.cos((2 * k + 1) * k[:, None] * torch.pi / 16) / 2
    basis[0] /= 2**0.5
    return torch.kron(basis, basis)


_DCT = _block_dct()


def jpeg(image: Tensor, step: Tensor) -> Tensor:
    """Quantise the 8 x 8 cosine coefficients of luminance and colour differences.

    Args:
        image: (N, 3, H, W) in [0, 1].
        step: (N, 1, 1, 1) factor on the standard's table (1 = quality 50).
    """
    r, g, b = image.unbind(1)
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    planes = torch.stack([luma, 0.564 * (b - luma), 0.713 * (r - luma)], 1) * 255
    n, c, h, w = planes.shape
    blocks = planes.view(n, c, h // 8, 8, w // 8, 8).transpose(3, 4).reshape(n, -1, 64)
    dct = _DCT.to(image)
    table = image.new_tensor(_LUMINANCE).flatten() * step[:, :, 0].clamp(min=0.02)
    restored = (torch.round((blocks @ dct.T) / table) * table) @ dct
    restored = restored.view(n, c, h // 8, w // 8, 8, 8).transpose(3, 4).reshape(n, c, h, w)
    y, cb, cr = (restored / 255).unbind(1)
    red, blue = y + cr / 0.713, y + cb / 0.564
    return torch.stack([red, (y - 0.299 * red - 0.114 * blue) / 0.587, blue], 1).clamp(0, 1)
