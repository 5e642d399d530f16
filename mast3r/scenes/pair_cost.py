"""What one image and one pair cost with a model on a device, estimated without running the model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from mast3r.model import AsymmetricMASt3R

_PROBE_SIDE = 512  # of the matrix product that measures a device
_PROBE_SECONDS = 0.03
_NARROW = 400  # token width at which a network reaches half of a large product's speed
_MATCH_LOOKUPS = 12  # looked-up pixels per grid point of a pair: two orders, both directions, three rounds
_MATCH_EFFICIENCY = 0.5
_POSE_SECONDS = 0.15  # robust estimation on a pair's matches
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class PairCost:
    """Time and memory per image and per unordered pair.

    Attributes:
        seconds_per_image: Encoding an image, done once however many pairs it is in.
        seconds_per_pair: Decoding a pair in both orders, matching and verifying it.
        bytes_fixed: Weights and the maps of the pair at work.
        bytes_per_image: What stays in memory for each image.
        bytes_per_pair: What stays in memory for each pair.
    """

    seconds_per_image: float
    seconds_per_pair: float
    bytes_fixed: int = 0
    bytes_per_image: int = 0
    bytes_per_pair: int = 0

    @classmethod
    def of(cls, model: AsymmetricMASt3R, image_size: int | tuple[int, int] | None = None) -> PairCost:
        """Estimate the cost of a model on the device of its weights, good to about a factor of two.

        The work is counted by running the model on tensors without content; the device's speed is that of a
        matrix product, measured for a few hundredths of a second at the first call.

        Args:
            model: The network.
            image_size: (width, height) of its input or the side of a square, in pixels, rounded down to whole
                patches; default the size it was trained at.
        """
        width, height = _input_size(model, image_size)
        encode, decode, token_bytes = _count(model, width, height)
        weight = next(model.parameters())
        speed = matmul_speed(weight.device, weight.dtype)
        network = speed * model.dec_embed_dim / (model.dec_embed_dim + _NARROW)
        pixels = width * height
        grid = pixels // 64
        match = _MATCH_LOOKUPS * grid * pixels * 2 * 24 / (speed * _MATCH_EFFICIENCY)
        maps = pixels * (3 + 1 + 24 + 1) * _FLOAT_BYTES
        weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        return cls(
            seconds_per_image=encode / network,
            seconds_per_pair=2 * decode / network + match + _POSE_SECONDS,
            bytes_fixed=weights + 4 * maps,
            bytes_per_image=token_bytes + pixels * (4 * _FLOAT_BYTES + 3),
            bytes_per_pair=2 * grid * 5 * _FLOAT_BYTES,
        )

    def seconds(self, images: int, pairs: int) -> float:
        """Estimated time of a whole collection."""
        return images * self.seconds_per_image + pairs * self.seconds_per_pair

    def memory_bytes(self, images: int, pairs: int) -> int:
        """Estimated memory of a whole collection."""
        return self.bytes_fixed + images * self.bytes_per_image + pairs * self.bytes_per_pair


@lru_cache(maxsize=8)
def matmul_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a matrix product, measured once per device and dtype."""
    a = torch.ones(_PROBE_SIDE, _PROBE_SIDE, device=device, dtype=dtype)
    _ = a @ a  # the first product loads kernels
    _wait(device)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < _PROBE_SECONDS:
        for _ in range(4):
            _ = a @ a
        _wait(device)
        count += 4
    return count * 2 * _PROBE_SIDE**3 / (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _input_size(model: AsymmetricMASt3R, image_size: int | tuple[int, int] | None) -> tuple[int, int]:
    """(width, height) in pixels, whole patches."""
    if image_size is None:
        height, width = model.patch_embed.img_size
    else:
        width, height = (image_size, image_size) if isinstance(image_size, int) else image_size
    patch = model.patch_size
    if min(width, height) < patch:
        raise ValueError(f"image_size must be at least one patch of {patch} px on each side, got {width}x{height}.")
    return width // patch * patch, height // patch * patch


def _count(model: AsymmetricMASt3R, width: int, height: int) -> tuple[int, int, int]:
    """Operations of encoding one image, of decoding one order of a pair, and bytes of one image's features."""
    shape = torch.tensor([[height, width]])
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        image = torch.empty(1, 3, height, width, device=device, dtype=dtype)
        with FlopCounterMode(display=False) as encode:
            features, positions, _ = model._encode_image(image, shape)
        with FlopCounterMode(display=False) as decode:
            decoded = model._decoder(features, positions, features, positions)
            for number in (1, 2):
                model._downstream_head(number, decoded[number - 1], (height, width))
    return encode.get_total_flops(), decode.get_total_flops(), features.numel() * features.element_size()
