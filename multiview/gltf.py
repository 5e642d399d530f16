"""Binary glTF 2.0 (.glb) of points and triangles whose colours appear as they are, without lamps.

All materials are unlit (KHR_materials_unlit). By the standard, vertex colours and colour factors are linear light
and textures sRGB; the writer converts, so that Blender and browsers show the images' colours.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL.Image

_POINTS, _TRIANGLES = 0, 4
_COMPONENT_TYPES = {"f4": 5126, "u4": 5125, "u2": 5123}
_ARRAY_BUFFER, _ELEMENT_BUFFER = 34962, 34963
_LINEAR_FILTER, _CLAMP_TO_EDGE = 9729, 33071


@dataclass(frozen=True, eq=False)
class Part:
    """Points or triangles with one kind of colour.

    Attributes:
        name: Name of mesh and node.
        positions: (V, 3) in glTF axes (y up).
        faces: (F, 3) vertex numbers, or None for points.
        colors: (V, 3) uint8 sRGB colour of each vertex.
        uv: (V, 2) place in the texture, 0..1, v runs DOWN from the top edge.
        texture: (H, W, 3) uint8 sRGB picture.
        color: One sRGB colour (0..255) for all.
    """

    name: str
    positions: np.ndarray
    faces: np.ndarray | None = None
    colors: np.ndarray | None = None
    uv: np.ndarray | None = None
    texture: np.ndarray | None = None
    color: tuple[int, int, int] = (255, 255, 255)


@dataclass
class _Builder:
    """The growing JSON tree and binary buffer of one file."""

    tree: dict[str, Any] = field(
        default_factory=lambda: {
            "asset": {"version": "2.0", "generator": "multiview"},
            "extensionsUsed": ["KHR_materials_unlit"],
            "scene": 0,
            "scenes": [{"nodes": []}],
            **{name: [] for name in ("nodes", "meshes", "materials", "accessors", "bufferViews")},
        }
    )
    chunks: list[bytes] = field(default_factory=list)
    length: int = 0

    def add(self, kind: str, item: dict[str, Any]) -> int:
        """Append an item to one of the tree's lists and return its number."""
        items = self.tree.setdefault(kind, [])
        items.append(item)
        return len(items) - 1

    def view(self, data: bytes, target: int | None = None) -> int:
        """Number of a new buffer view of `data`, padded to four bytes."""
        item: dict[str, Any] = {"buffer": 0, "byteOffset": self.length, "byteLength": len(data)}
        if target is not None:
            item["target"] = target
        padded = data + b"\0" * (-len(data) % 4)
        self.chunks.append(padded)
        self.length += len(padded)
        return self.add("bufferViews", item)

    def accessor(self, array: np.ndarray, *, target: int = _ARRAY_BUFFER, normalized: bool = False) -> int:
        """Number of a new accessor of an (N,) or (N, 2..4) array of float32, uint32 or uint16."""
        array = np.ascontiguousarray(array)
        kind = "SCALAR" if array.ndim == 1 else f"VEC{array.shape[1]}"
        item: dict[str, Any] = {
            "bufferView": self.view(array.astype(array.dtype.newbyteorder("<")).tobytes(), target),
            "componentType": _COMPONENT_TYPES[array.dtype.str[1:]],
            "count": len(array),
            "type": kind,
        }
        if normalized:
            item["normalized"] = True
        if array.dtype.kind == "f":
            item |= {"min": array.min(axis=0).tolist(), "max": array.max(axis=0).tolist()}
        return self.add("accessors", item)

    def material(self, part: Part) -> int:
        """Number of a new unlit material."""
        # Vertex colours multiply the factor, so it must stay white for them.
        factor = (255, 255, 255) if part.colors is not None or part.texture is not None else part.color
        surface: dict[str, Any] = {
            "baseColorFactor": [*linear_from_srgb(np.array(factor)).tolist(), 1.0],
            "metallicFactor": 0.0,
            "roughnessFactor": 0.9,
        }
        if part.texture is not None:
            surface["baseColorTexture"] = {"index": self._texture(part.texture)}
        return self.add(
            "materials",
            {"pbrMetallicRoughness": surface, "doubleSided": True, "extensions": {"KHR_materials_unlit": {}}},
        )

    def part(self, part: Part) -> None:
        """Append a mesh and the node that shows it."""
        attributes = {"POSITION": self.accessor(np.asarray(part.positions, dtype=np.float32))}
        if part.colors is not None:
            linear = np.ones((len(part.colors), 4))
            linear[:, :3] = linear_from_srgb(part.colors)
            # 8 bits of linear light are too coarse for shadows.
            attributes["COLOR_0"] = self.accessor(np.rint(linear * 65535).astype(np.uint16), normalized=True)
        if part.uv is not None:
            attributes["TEXCOORD_0"] = self.accessor(np.asarray(part.uv, dtype=np.float32))
        primitive: dict[str, Any] = {"attributes": attributes, "material": self.material(part), "mode": _POINTS}
        if part.faces is not None:
            faces = np.asarray(part.faces, dtype=np.uint32).reshape(-1)
            primitive |= {"indices": self.accessor(faces, target=_ELEMENT_BUFFER), "mode": _TRIANGLES}
        mesh = self.add("meshes", {"name": part.name, "primitives": [primitive]})
        self.tree["scenes"][0]["nodes"].append(self.add("nodes", {"name": part.name, "mesh": mesh}))

    def _texture(self, picture: np.ndarray) -> int:
        file = io.BytesIO()
        PIL.Image.fromarray(picture).save(file, format="PNG")
        image = self.add("images", {"bufferView": self.view(file.getvalue()), "mimeType": "image/png"})
        filters = {"magFilter": _LINEAR_FILTER, "wrapS": _CLAMP_TO_EDGE, "wrapT": _CLAMP_TO_EDGE}
        if not self.tree.get("samplers"):
            self.add("samplers", filters)
        return self.add("textures", {"source": image, "sampler": 0})

    def bytes(self) -> bytes:
        """The finished file."""
        self.tree["buffers"] = [{"byteLength": self.length}]
        text = json.dumps(self.tree, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        total = 12 + 8 + len(text) + 8 + self.length
        header = struct.pack("<4sII", b"glTF", 2, total) + struct.pack("<I4s", len(text), b"JSON")
        return b"".join([header, text, struct.pack("<I4s", self.length, b"BIN\0"), *self.chunks])


def glb_bytes(parts: Sequence[Part]) -> bytes:
    """The parts as the content of a .glb file.

    Args:
        parts: At least one part, each with at least one vertex.
    """
    builder = _Builder()
    for part in parts:
        builder.part(part)
    return builder.bytes()


def linear_from_srgb(colors: np.ndarray) -> np.ndarray:
    """Linear light (0..1, float64) of sRGB values 0..255 (IEC 61966-2-1)."""
    share = np.asarray(colors, dtype=np.float64) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
