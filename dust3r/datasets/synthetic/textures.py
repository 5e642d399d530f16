"""A bank of textures: procedural ones, and photos of a folder; sampled with a mip pyramid by plain gathers."""

from __future__ import annotations

import logging
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dust3r.datasets.synthetic.procedural import procedural_sky, procedural_texture

logger = logging.getLogger(__name__)

Split = Literal["train", "test", "all"]
_SUFFIXES = {".jpg", ".jpeg", ".png"}
_TILE_LIMIT = 160  # images up to this size are taken for small seamless tiles


@dataclass(frozen=True)
class TextureConfig:
    """What the bank holds.

    Attributes:
        folder: photos to use beside the procedural textures (searched recursively), or None.
        size: side of a texture in pixels, a power of two.
        procedural: number of procedural textures.
        split: "test" keeps one tenth of the photos (chosen by file name) and other procedural seeds; "train" the rest.
        exclude: names of sub-folders that are left out.
    """

    folder: Path | None = None
    size: int = 256
    procedural: int = 96
    split: Split = "train"
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class TextureBank:
    """Textures with their mip pyramids, and what each is good for.

    Attributes:
        texels: (T, L) int32, red + 256 green + 65536 blue, the mip levels one after the other.
        size: side of level 0.
        tileable: (T,) bool, repeats seamlessly (others are mirrored at the border).
        photos, materials, skies: int64 indices of the textures for large faces, for surfaces, for the sky.
    """

    texels: Tensor
    size: int
    tileable: Tensor
    photos: Tensor
    materials: Tensor
    skies: Tensor

    @property
    def levels(self) -> int:
        """Number of mip levels (the last has 4 x 4 texels)."""
        return self.size.bit_length() - 2

    def to(self, device: torch.device) -> TextureBank:
        """The same bank with its texels on another device (the index lists stay where scenes are drawn)."""
        return TextureBank(
            self.texels.to(device),
            self.size,
            self.tileable.to(device),
            self.photos,
            self.materials,
            self.skies,
        )


def build_bank(config: TextureConfig) -> TextureBank:
    """Load and generate all textures of a configuration.

    Raises:
        ValueError: if the folder does not exist or holds no image.
    """
    images, kinds = _procedural_images(config)
    for path in _photo_paths(config):
        for image, kind in _textures_of_photo(path, config.size):
            images.append(image)
            kinds.append(kind)
    texels = torch.stack([_pyramid(image) for image in images])
    index = {k: torch.tensor([i for i, kind in enumerate(kinds) if kind == k]) for k in set(kinds)}
    tileable = torch.tensor([kind == "material" for kind in kinds])
    return TextureBank(texels, config.size, tileable, index["photo"], index["material"], index["sky"])


def _procedural_images(config: TextureConfig) -> tuple[list[np.ndarray], list[str]]:
    base = {"train": 0, "test": 1_000_000, "all": 0}[config.split]
    images, kinds = [], []
    for i in range(config.procedural):
        image, tileable = procedural_texture(base + i, config.size)
        images.append(image)
        kinds.append("material" if tileable else "photo")
    for i in range(max(4, config.procedural // 12)):
        images.append(procedural_sky(base + i, config.size))
        kinds.append("sky")
    return images, kinds


def _photo_paths(config: TextureConfig) -> list[Path]:
    if config.folder is None:
        return []
    if not config.folder.is_dir():
        raise ValueError(
            f"texture folder {config.folder} does not exist: give an existing folder of .jpg or .png files"
        )
    paths = sorted(p for p in config.folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
    paths = [p for p in paths if not set(p.relative_to(config.folder).parts[:-1]) & set(config.exclude)]
    if not paths:
        raise ValueError(f"texture folder {config.folder} holds no .jpg or .png image: give one that does")
    held_out = [zlib.crc32(p.name.encode()) % 10 == 0 for p in paths]
    wanted = {"train": (False,), "test": (True,), "all": (False, True)}[config.split]
    chosen = [p for p, out in zip(paths, held_out) if out in wanted]
    logger.info("%d of %d photos in %s serve as textures", len(chosen), len(paths), config.folder)
    return chosen


def _textures_of_photo(path: Path, size: int) -> list[tuple[np.ndarray, str]]:
    """A panorama gives a sky, a small image a tile, a photo itself and its centre at full resolution."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    whole = np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))
    if image.width == 2 * image.height:
        return [(whole, "sky")]
    if max(image.size) <= _TILE_LIMIT:
        return [(whole, "material")]
    left, top = max(0, (image.width - size) // 2), max(0, (image.height - size) // 2)
    detail = image.crop((left, top, left + size, top + size)) if min(image.size) >= size else image.resize((size, size))
    return [(whole, "photo"), (np.asarray(detail), "photo")]


def _pyramid(image: np.ndarray) -> Tensor:
    """All mip levels of an (S, S, 3) uint8 image as packed int32 texels."""
    level = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    packed = []
    while level.shape[-1] >= 4:
        red, green, blue = level[0].round().to(torch.int32)
        packed.append((red + green * 256 + blue * 65536).flatten())
        level = F.avg_pool2d(level, 2)
    return torch.cat(packed)


def sample(bank: TextureBank, texture: Tensor, u: Tensor, v: Tensor, footprint: Tensor) -> list[Tensor]:
    """Bilinear look-up at the mip level that fits the pixel.

    Args:
        bank: the textures (on the device of the coordinates).
        texture: (N, M) int64 texture indices.
        u: (N, M) horizontal coordinate, one unit = one texture.
        v: (N, M) vertical coordinate.
        footprint: (N, M) size of a pixel in units of the texture.

    Returns:
        red, green, blue: three (N, M) float32 tensors in [0, 1].
    """
    level = torch.log2(footprint * bank.size * 0.8 + 1e-6).round().clamp(0, bank.levels - 1)
    side = bank.size * torch.exp2(-level)
    start = (4 / 3) * (bank.size**2 - side * side)  # texels of the levels above: a geometric series
    mirrored = ~bank.tileable[texture]
    x, y = _wrap(u, mirrored) * side - 0.5, _wrap(v, mirrored) * side - 0.5
    x0, y0 = x.floor(), y.floor()
    fx, fy = x - x0, y - y0
    tiles = ~mirrored
    columns = (_edge(x0, side, tiles), _edge(x0 + 1, side, tiles))
    rows = (_edge(y0, side, tiles), _edge(y0 + 1, side, tiles))
    base = texture * bank.texels.shape[1] + start.long()
    flat = bank.texels.view(-1)
    total = [torch.zeros_like(u) for _ in range(3)]
    for row, wy in zip(rows, (1 - fy, fy)):
        for column, wx in zip(columns, (1 - fx, fx)):
            texel = flat[base + (row * side + column).long()]
            weight = wx * wy / 255
            for c in range(3):
                total[c] = total[c] + weight * ((texel >> (8 * c)) & 255)
    return total


def _wrap(x: Tensor, mirrored: Tensor) -> Tensor:
    """Coordinate in [0, 1): periodic, or reflected at every integer."""
    reflected = 1 - (x - 2 * torch.floor(x / 2) - 1).abs()
    return torch.where(mirrored, reflected, x - x.floor())


def _edge(index: Tensor, side: Tensor, tiles: Tensor) -> Tensor:
    """Index of a neighbouring texel: around the corner for tiles, clamped otherwise."""
    clamped = torch.minimum(index.clamp(min=0), side - 1)
    return torch.where(tiles, index - side * torch.floor(index / side), clamped)
