"""Photos to tensors, tensors to maps: the steps every use of the network shares.

    inputs = [model_input(model, photo) for photo in photos]
    tokens = encode(model, inputs)                                   # once per photo
    seen = decode(model, tokens, [x.shape for x in inputs], [(0, 1), (1, 0)])   # once per order of a pair

Encoding an image is most of the work of a pair and does not depend on its partner: whoever meets an image twice
keeps its tokens (`TokenCache`).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dust3r.utils.image import ImgNorm
from mast3r.model import AsymmetricMASt3R
from multiview.images import Image, ImageError, ImageSource, ImageTransform, as_image, fit_for_model, resample
from multiview.pointmaps import Pointmap

BATCH_SIZE = 8
"""Images encoded, or orders of pairs decoded, in one call of the network."""

TOKEN_BYTES = 1 << 30
"""Default bound of a `TokenCache`: about 300 images of 512 x 384 with a ViT-Large, 10000 with the small model."""

_AREA_WEIGHT = 0.3  # how much a change of the number of patches costs, against a change of the aspect ratio
_MAX_ASPECT = 8.0

Tokens: TypeAlias = "tuple[Tensor, Tensor]"
"""What the encoder says of one image: features (1, N, C) and integer (row, column) positions (1, N, 2)."""

Shape: TypeAlias = "tuple[int, int]"
"""(height, width) of a network input in pixels."""


@dataclass(frozen=True, eq=False)
class ModelInput:
    """One photo as the network sees it.

    Attributes:
        pixels: (H, W, 3) uint8, both sides multiples of the patch.
        transform: Map from ORIGINAL to model pixels.
    """

    pixels: np.ndarray
    transform: ImageTransform

    @property
    def shape(self) -> Shape:
        """(height, width) in model pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in model pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @cached_property
    def key(self) -> str:
        """Name of the content: equal for equal pixels cut in the same way from an image of the same size."""
        transform = self.transform
        digest = hashlib.sha256(transform.matrix.tobytes())
        digest.update(repr((transform.size_from, transform.size_to, self.pixels.shape)).encode())
        digest.update(np.ascontiguousarray(self.pixels).data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Described:
    """The descriptors of one image in one order of a pair.

    Attributes:
        desc: (H, W, D) float32 unit descriptors.
        desc_confidence: (H, W) float32 of the descriptors.
    """

    desc: Tensor
    desc_confidence: Tensor

    @property
    def shape(self) -> Shape:
        """(height, width) of the maps."""
        return self.desc.shape[0], self.desc.shape[1]


@dataclass(frozen=True, eq=False)
class Seen(Described):
    """What the network says about one image in one order of a pair.

    Attributes:
        points: (H, W, 3) float32 in the camera of the order's first image.
        confidence: (H, W) float32 of the points.
    """

    points: Tensor
    confidence: Tensor

    def pointmap(self, frame: str) -> Pointmap:
        """The points as a NumPy pointmap of this frame."""
        return Pointmap(self.points.cpu().numpy(), self.confidence.cpu().numpy(), frame)


MapsT = TypeVar("MapsT", bound=Described)


def input_side(model: AsymmetricMASt3R) -> int:
    """Side in pixels of the inputs the model was trained at (the longer one)."""
    trained: Any = model.config["img_size"]
    return int(trained if isinstance(trained, int) else max(trained))


def model_input(
    model: AsymmetricMASt3R, source: ImageSource, *, image_size: int | None = None, crop: bool | None = None
) -> ModelInput:
    """Resize a photo for a model.

    Args:
        model: What `mast3r.load` returned.
        source: A path, PIL image, array or `Image`.
        image_size: Side of the input; None takes the size the model was trained at.
        crop: True resizes and crops as the official code does; False keeps the whole image
            (`fit_whole_image`); None crops above 224 px only, where the crop is less than a patch.

    Raises:
        ImageError: If the photo cannot be read or is too elongated.
    """
    side = image_size or input_side(model)
    cropped = side > 224 if crop is None else crop
    return ModelInput(*(fit_for_model if cropped else fit_whole_image)(as_image(source), side, model.patch_size))


def fit_whole_image(image: Image, side: int, patch_size: int = 16) -> tuple[np.ndarray, ImageTransform]:
    """Resize a whole image to about the number of pixels of a square, without cutting its borders.

    Both sides become multiples of the patch, chosen so that the aspect ratio hardly changes (4:3 and 3:2 stay
    exact at 224 px).

    Args:
        image: The image.
        side: Side of the square in pixels, a multiple of the patch.
        patch_size: Patch side of the network in pixels.

    Returns:
        The (h, w, 3) uint8 pixels and the map from original to model pixels.

    Raises:
        ImageError: If the image is more elongated than 8 to 1.
        ValueError: If `side` is smaller than a patch.
    """
    if side < patch_size:
        raise ValueError(f"side must be at least one patch of {patch_size} px, got {side}.")
    aspect = image.width / image.height
    if not 1 / _MAX_ASPECT <= aspect <= _MAX_ASPECT:
        raise ImageError(
            f"A {image.width}x{image.height} image is more elongated than {_MAX_ASPECT:.0f} to 1; crop it."
        )
    patches = side // patch_size
    count = np.arange(1, 4 * patches + 1)
    columns, rows = count[None], count[:, None]
    area = columns * rows / patches**2
    cost = np.abs(np.log(columns / rows / aspect)) + _AREA_WEIGHT * np.abs(np.log(area))
    row, column = divmod(int(cost.argmin()), len(count))
    size = (int(count[column]) * patch_size, int(count[row]) * patch_size)
    transform = ImageTransform.resize(image.size, size)
    return resample(image, transform), transform


@torch.inference_mode()
def encode(model: AsymmetricMASt3R, inputs: Sequence[ModelInput], *, batch_size: int = BATCH_SIZE) -> list[Tokens]:
    """Encoder tokens of images of any sizes; those of one size share batches.

    Args:
        model: The network.
        inputs: Images.
        batch_size: Most images in one call of the network.

    Returns:
        Features (1, N, C) and positions (1, N, 2) of each image, in order, on the model's device.
    """
    weight = next(model.parameters())
    found: dict[int, Tokens] = {}
    for rows in _batches([x.shape for x in inputs], batch_size):
        images = torch.stack([ImgNorm(inputs[i].pixels) for i in rows]).to(weight.device, weight.dtype)
        shapes = torch.tensor([inputs[i].shape for i in rows])
        features, positions, _ = model._encode_image(images, shapes)
        alone = len(rows) == 1  # else copies: one image that is kept must not keep its whole batch
        for row, i in enumerate(rows):
            part = features[row : row + 1], positions[row : row + 1]
            found[i] = part if alone else (part[0].clone(), part[1].clone())
    return [found[i] for i in range(len(inputs))]


@torch.inference_mode()
def decode(
    model: AsymmetricMASt3R,
    tokens: Sequence[Tokens],
    shapes: Sequence[Shape],
    orders: Sequence[tuple[int, int]],
    *,
    batch_size: int = BATCH_SIZE,
) -> list[tuple[Seen, Seen]]:
    """Decode ordered pairs of encoded images; orders with the same two sizes share batches.

    The result holds all maps at full size (116 bytes per pixel and image with 24 descriptor channels): decode
    many pairs in several calls.

    Args:
        model: The network.
        tokens: Encoded images.
        shapes: (height, width) of each.
        orders: (first, second) positions in `tokens`; points come out in the first one's camera.
        batch_size: Most orders in one call of the network.

    Returns:
        Per order what is seen of its first and of its second image.

    Raises:
        ValueError: If the model has no descriptors.
    """
    return _in_batches(_see, model, tokens, shapes, orders, batch_size)


@torch.inference_mode()
def describe(
    model: AsymmetricMASt3R,
    tokens: Sequence[Tokens],
    shapes: Sequence[Shape],
    orders: Sequence[tuple[int, int]],
    *,
    batch_size: int = BATCH_SIZE,
) -> list[tuple[Described, Described]]:
    """`decode` for matching alone: the points are left out, and in official models two thirds of the heads' work."""
    return _in_batches(_describe, model, tokens, shapes, orders, batch_size)


def _in_batches(
    head: Callable[..., list[MapsT]],
    model: AsymmetricMASt3R,
    tokens: Sequence[Tokens],
    shapes: Sequence[Shape],
    orders: Sequence[tuple[int, int]],
    batch_size: int,
) -> list[tuple[MapsT, MapsT]]:
    """Run the decoder and then `head(model, number, decoded, shape)` on orders with equal sizes at once."""
    found: dict[int, tuple[MapsT, MapsT]] = {}
    for rows in _batches([(shapes[a], shapes[b]) for a, b in orders], batch_size):
        together = [orders[i] for i in rows]
        decoded = _decode_together(model, tokens, together)
        first, second = (head(model, k + 1, decoded[k], shapes[together[0][k]]) for k in (0, 1))
        found.update(zip(rows, zip(first, second)))
    return [found[i] for i in range(len(orders))]


def _batches(keys: Sequence[Hashable], batch_size: int) -> list[list[int]]:
    """Positions with equal keys, in groups of at most `batch_size`."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    groups: dict[Hashable, list[int]] = {}
    for i, key in enumerate(keys):
        groups.setdefault(key, []).append(i)
    return [group[k : k + batch_size] for group in groups.values() for k in range(0, len(group), batch_size)]


def _decode_together(
    model: AsymmetricMASt3R, tokens: Sequence[Tokens], orders: Sequence[tuple[int, int]]
) -> tuple[list[Tensor], list[Tensor]]:
    """Token lists of both images of orders of equal sizes, in one batch."""
    sides = ([tokens[order[k]] for order in orders] for k in (0, 1))
    return model._decoder(*(torch.cat(parts) for side in sides for parts in zip(*side)))


def _see(model: AsymmetricMASt3R, number: int, decoded: list[Tensor], shape: Shape) -> list[Seen]:
    """All maps of one image of each order."""
    maps = model._downstream_head(number, decoded, shape)
    _check_descriptors(maps)
    rows = zip(maps["desc"], maps.get("desc_conf", maps["conf"]), maps["pts3d"], maps["conf"])
    return [Seen(*(m.float() for m in row)) for row in rows]


def _describe(model: AsymmetricMASt3R, number: int, decoded: list[Tensor], shape: Shape) -> list[Described]:
    """Descriptors of one image of each order; networks that cannot give them alone give everything."""
    maps = getattr(model, "_descriptors", model._downstream_head)(number, decoded, shape)
    _check_descriptors(maps)
    rows = zip(maps["desc"], maps["desc_conf"] if "desc_conf" in maps else maps["conf"])
    return [Described(*(m.float() for m in row)) for row in rows]


def _check_descriptors(maps: dict[str, Tensor]) -> None:
    if "desc" not in maps:
        raise ValueError(f"This model predicts {', '.join(maps)} but no descriptors to match; load a MASt3R model.")


class TokenCache:
    """Encoder tokens of the images met last, so that an image is encoded once however many pairs it is in.

    Images are told apart by content and by how they were cut (`ModelInput.key`). Tokens of weights that have
    changed since are not used.

    Args:
        model: The network that encodes.
        max_bytes: Bound of the tokens kept; the least recently used leave first.

    Raises:
        ValueError: If the bound is negative.
    """

    def __init__(self, model: AsymmetricMASt3R, *, max_bytes: int = TOKEN_BYTES) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes must not be negative, got {max_bytes}.")
        self.model = model
        self.max_bytes = max_bytes
        self._kept: OrderedDict[str, Tokens] = OrderedDict()
        self._bytes = 0
        self._weights = _weights_state(model)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens kept."""
        return self._bytes

    def clear(self) -> None:
        """Forget all tokens."""
        self._kept.clear()
        self._bytes = 0

    def encode(self, inputs: Sequence[ModelInput], *, batch_size: int = BATCH_SIZE) -> list[Tokens]:
        """Tokens of images, in order; those not kept are encoded (see `encode`), each once."""
        state = _weights_state(self.model)
        if state != self._weights:
            self.clear()
            self._weights = state
        wanted = {x.key: x for x in inputs}
        found = {key: self._kept[key] for key in wanted if key in self._kept}
        missing = [key for key in wanted if key not in found]
        for key in found:
            self._kept.move_to_end(key)
        encoded = encode(self.model, [wanted[key] for key in missing], batch_size=batch_size)
        found.update(zip(missing, encoded))
        for key, tokens in zip(missing, encoded):
            self._keep(key, tokens)
        return [found[x.key] for x in inputs]

    def _keep(self, key: str, tokens: Tokens) -> None:
        self._kept[key] = tokens
        self._bytes += _nbytes(tokens)
        while self._bytes > self.max_bytes:
            self._bytes -= _nbytes(self._kept.popitem(last=False)[1])


def _nbytes(tokens: Tokens) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tokens)


def _weights_state(model: nn.Module) -> Hashable:
    """Differs after a change of the weights, in place or by replacement, or of their device or type."""
    weights = list(model.parameters())
    versions = sum(0 if p.is_inference() else p._version for p in weights)
    return versions, tuple((p.data_ptr(), p.device, p.dtype) for p in weights)
