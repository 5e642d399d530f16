"""Render a contact sheet of training pairs: `python examples/04_scene_engine.py sheet.jpg [--textures DIR]`.

Every row shows one family of scenes; the pictures stand in pairs, left and right view.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from dust3r.datasets.synthetic import SceneEngine, SyntheticConfig, TextureConfig

FAMILIES = ("room", "street", "terrain", "objects", "planar", "clutter")


def render_row(family: str, textures: Path | None, *, pairs: int, size: int, seed: int) -> np.ndarray:
    """Pictures of one family side by side, (size, 2 * pairs * size, 3) uint8."""
    config = SyntheticConfig(TextureConfig(textures, split="all"), families=((family, 1.0),), compile=False)
    view1, view2 = SceneEngine(config).pairs(seed, pairs, height=size, width=size, overlap=(0.3, 0.8))
    images = [image for pair in zip(view1["img"], view2["img"]) for image in pair]
    row = np.concatenate([image.permute(1, 2, 0).numpy() for image in images], axis=1)
    return ((row + 1) * 127.5).round().astype(np.uint8)


def main() -> None:
    """Parse the flags, render, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="picture to write")
    parser.add_argument("--textures", type=Path, help="folder of photos; procedural textures without it")
    parser.add_argument("--pairs", type=int, default=4, help="pairs in a row")
    parser.add_argument("--size", type=int, default=144, help="side of a picture in pixels, a multiple of 16")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rows = [render_row(f, args.textures, pairs=args.pairs, size=args.size, seed=args.seed) for f in FAMILIES]
    Image.fromarray(np.concatenate(rows)).save(args.out, quality=85)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
