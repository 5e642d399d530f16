"""Depth maps and other float images in OpenEXR files, without further packages.

Read and written are scan-line files of one part (https://openexr.com/en/latest/OpenEXRFileLayout.html), stored plain
or with the lossless compressions RLE, ZIPS and ZIP (what OpenCV and the OpenEXR library write by default).
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from multiview.images import MAX_PIXELS, ImageError, ImageNotFoundError

_MAGIC = 20000630
_SINGLE_PART = 2  # version number without flags
_LONG_NAMES = 0x400
_PIXEL_TYPES = (np.dtype("<u4"), np.dtype("<f2"), np.dtype("<f4"))
_COMPRESSIONS = ("none", "RLE", "ZIPS", "ZIP", "PIZ", "PXR24", "B44", "B44A", "DWAA", "DWAB")
_ROWS = {"none": 1, "RLE": 1, "ZIPS": 1, "ZIP": 16}  # of one chunk
_COLOURS = ("R", "G", "B", "A")

Compression = Literal["none", "ZIPS", "ZIP"]


@dataclass(frozen=True)
class _Header:
    channels: tuple[tuple[str, np.dtype], ...]  # in the order of the file
    compression: str
    window: tuple[int, int, int, int]  # x_min, y_min, x_max, y_max, inclusive
    end: int  # first byte of the offset table

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.window[2] - self.window[0] + 1, self.window[3] - self.window[1] + 1

    @property
    def row_bytes(self) -> int:
        return self.size[0] * sum(dtype.itemsize for _, dtype in self.channels)


def read_exr(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an OpenEXR file.

    Args:
        path: A single-part scan-line file, stored plain or compressed by RLE, ZIPS or ZIP.

    Returns:
        (H, W) for one channel, else (H, W, C); channels in the order R, G, B, A if they have these names, else
        by name. float32, or uint32 if all channels are integers; half floats become float32.

    Raises:
        ImageNotFoundError: If there is no such file.
        ImageError: If it is damaged or of another kind.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ImageNotFoundError(f"There is no image file {path}.") from None
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error}).") from error
    try:
        header = _read_header(data)
        planes = _read_planes(data, header)
    except ImageError as error:
        raise ImageError(f"{path} {error}") from None
    except (struct.error, zlib.error, ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise ImageError(f"{path} is a damaged OpenEXR file ({error}).") from error
    names = [name for name in _COLOURS if name in planes] if set(planes) <= set(_COLOURS) else sorted(planes)
    kind = np.uint32 if all(planes[name].dtype.kind == "u" for name in names) else np.float32
    stack = np.stack([planes[name] for name in names], axis=-1).astype(kind)
    return stack[..., 0] if len(names) == 1 else stack


def write_exr(
    path: str | os.PathLike[str], image: np.ndarray, *, half: bool = False, compression: Compression = "ZIP"
) -> None:
    """Write an OpenEXR file.

    Args:
        path: The file, replaced if it exists.
        image: (H, W) float, stored as channel Y, or (H, W, 3) RGB, or (H, W, 4) RGBA.
        half: Store 16-bit floats.
        compression: How to store the rows; all are lossless.

    Raises:
        ValueError: If `image` has another shape.
    """
    if image.ndim not in (2, 3) or 0 in image.shape or (image.ndim == 3 and image.shape[2] not in (3, 4)):
        raise ValueError(f"write_exr takes (H, W), (H, W, 3) or (H, W, 4) images, got shape {image.shape}.")
    names = ("Y",) if image.ndim == 2 else _COLOURS[: image.shape[2]]
    code = 1 if half else 2
    planes = np.moveaxis(image.reshape(*image.shape[:2], -1), -1, 0).astype(_PIXEL_TYPES[code])
    by_name: dict[str, np.ndarray] = dict(sorted(zip(names, planes)))
    height, width = image.shape[:2]
    step = _ROWS[compression]
    chunks = []
    for y in range(0, height, step):
        rows = [plane[row].tobytes() for row in range(y, min(y + step, height)) for plane in by_name.values()]
        packed = _compressed(b"".join(rows), compression)
        chunks.append(struct.pack("<ii", y, len(packed)) + packed)
    header = _header_bytes(by_name, code, compression, width, height)
    first = len(header) + 8 * len(chunks)
    offsets = first + np.cumsum([0, *(len(chunk) for chunk in chunks[:-1])])
    Path(path).write_bytes(header + offsets.astype("<u8").tobytes() + b"".join(chunks))


def _read_header(data: bytes) -> _Header:
    magic, version = struct.unpack_from("<ii", data)
    if magic != _MAGIC:
        raise ImageError("is no OpenEXR file.")
    if version & ~_LONG_NAMES != _SINGLE_PART:
        raise ImageError("has tiles, several parts or deep pixels; convert it to plain scan lines.")
    attributes, position = {}, 8
    while data[position] != 0:
        name, position = _text(data, position)
        _, position = _text(data, position)
        (length,) = struct.unpack_from("<i", data, position)
        if length < 0 or position + 4 + length > len(data):
            raise ValueError("an attribute is longer than the file")
        attributes[name] = data[position + 4 : position + 4 + length]
        position += 4 + length
    window = struct.unpack("<4i", attributes["dataWindow"])
    compression = _COMPRESSIONS[attributes["compression"][0]]
    if compression not in _ROWS:
        raise ImageError(f"is compressed by {compression}; convert it to ZIP.")
    header = _Header(_channels(attributes["channels"]), compression, window, position + 1)
    width, height = header.size
    if not header.channels or width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise ValueError(f"it claims to have {width}x{height} pixels")
    return header


def _text(data: bytes, position: int) -> tuple[str, int]:
    """A zero-terminated text and the position behind it."""
    end = data.index(b"\0", position)
    return data[position:end].decode(), end + 1


def _channels(data: bytes) -> tuple[tuple[str, np.dtype], ...]:
    channels, position = [], 0
    while data[position] != 0:
        name, position = _text(data, position)
        kind, _, x_step, y_step = struct.unpack_from("<4i", data, position)
        if (x_step, y_step) != (1, 1):
            raise ImageError("has sub-sampled channels; convert it to full resolution.")
        channels.append((name, _PIXEL_TYPES[kind]))
        position += 16
    return tuple(channels)


def _read_planes(data: bytes, header: _Header) -> dict[str, np.ndarray]:
    """Channel name -> (H, W) array."""
    width, height = header.size
    step = _ROWS[header.compression]
    if len(data) - header.end < 8 * -(-height // step):
        raise ValueError("it is cut off")
    offsets = np.frombuffer(data, "<u8", -(-height // step), header.end)
    planes = {name: np.zeros((height, width), dtype) for name, dtype in header.channels}
    for offset in offsets.tolist():
        y, length = struct.unpack_from("<ii", data, offset)
        first = y - header.window[1]
        rows = min(step, height - first)
        if first < 0 or rows < 1 or length < 0 or offset + 8 + length > len(data):
            raise ValueError("a block of rows lies outside the image or the file")
        raw = _expanded(data[offset + 8 : offset + 8 + length], header.compression, rows * header.row_bytes)
        _place_rows(planes, raw, first, rows, header)
    return planes


def _place_rows(planes: dict[str, np.ndarray], raw: bytes, first: int, rows: int, header: _Header) -> None:
    """Put the rows of a block where they belong: row by row, all channels of a row one after the other."""
    position, width = 0, header.size[0]
    for row in range(first, first + rows):
        for name, dtype in header.channels:
            planes[name][row] = np.frombuffer(raw, dtype, width, position)
            position += width * dtype.itemsize


def _expanded(packed: bytes, compression: str, size: int) -> bytes:
    """The `size` bytes of a block; blocks that would not shrink are stored plain."""
    if compression == "none" or len(packed) == size:
        raw = packed
    else:
        mixed = _run_lengths(packed, size) if compression == "RLE" else _inflated(packed, size)
        raw = _unmixed(np.frombuffer(mixed, np.uint8))
    if len(raw) != size:
        raise ValueError("a block of rows has the wrong size")
    return raw


def _inflated(packed: bytes, size: int) -> bytes:
    # a bound keeps hostile files from filling the memory
    return zlib.decompressobj().decompress(packed, size + 1)


def _run_lengths(packed: bytes, size: int) -> bytes:
    out, position = bytearray(), 0
    while position < len(packed) and len(out) <= size:
        (count,) = struct.unpack_from("b", packed, position)
        if count < 0:
            out += packed[position + 1 : position + 1 - count]
            position += 1 - count
        else:
            out += packed[position + 1 : position + 2] * (count + 1)
            position += 2
    return bytes(out)


def _unmixed(mixed: np.ndarray) -> bytes:
    """Undo byte differences, then interleave the first half (even places) with the second (odd places)."""
    steps = mixed.copy()
    steps[1:] -= 128
    total = np.cumsum(steps, dtype=np.uint8)
    out = np.empty_like(total)
    half = (len(total) + 1) // 2
    out[::2], out[1::2] = total[:half], total[half:]
    return out.tobytes()


def _compressed(raw: bytes, compression: str) -> bytes:
    if compression == "none":
        return raw
    data = np.frombuffer(raw, np.uint8)
    split = np.concatenate([data[::2], data[1::2]])
    mixed = split.copy()
    mixed[1:] = split[1:] - split[:-1] + np.uint8(128)
    packed = zlib.compress(mixed.tobytes())
    return packed if len(packed) < len(raw) else raw


def _header_bytes(planes: Mapping[str, np.ndarray], code: int, compression: str, width: int, height: int) -> bytes:
    channels = b"".join(name.encode() + b"\0" + struct.pack("<4i", code, 0, 1, 1) for name in planes) + b"\0"
    window = struct.pack("<4i", 0, 0, width - 1, height - 1)
    attributes = (
        ("channels", "chlist", channels),
        ("compression", "compression", bytes([_COMPRESSIONS.index(compression)])),
        ("dataWindow", "box2i", window),
        ("displayWindow", "box2i", window),
        ("lineOrder", "lineOrder", b"\0"),
        ("pixelAspectRatio", "float", struct.pack("<f", 1)),
        ("screenWindowCenter", "v2f", struct.pack("<2f", 0, 0)),
        ("screenWindowWidth", "float", struct.pack("<f", 1)),
    )
    body = b"".join(
        f"{name}\0{kind}\0".encode() + struct.pack("<i", len(value)) + value for name, kind, value in attributes
    )
    return struct.pack("<ii", _MAGIC, _SINGLE_PART) + body + b"\0"
