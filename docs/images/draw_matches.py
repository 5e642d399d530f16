"""Draws `matches.jpg`: what the shipped weights match on rendered pairs, right in green and wrong in red.

python docs/images/draw_matches.py [--seed 5] [--out docs/images/matches.jpg]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch

import mast3r
from dust3r.datasets.synthetic import SceneEngine, SyntheticConfig, TextureConfig

SIZE, GAP, COLUMNS, RIGHT_PX = 224, 6, 3, 4.0
GREEN, RED = (40, 200, 80), (230, 50, 50)


def pixels(image: torch.Tensor) -> np.ndarray:
    """(3, H, W) in -1..1 as (H, W, 3) uint8."""
    return ((image.permute(1, 2, 0) * 0.5 + 0.5) * 255).round().byte().numpy()


def true_ends(view1: dict, view2: dict, row: int, xy: np.ndarray) -> np.ndarray:
    """Where pixels (N, 2) of view 1 are seen in view 2, nan where nothing is known."""
    x, y = np.rint(xy).astype(int).T
    points = view1["pts3d"][row].numpy()[y, x]
    points[~view1["valid_mask"][row].numpy()[y, x]] = np.nan
    cam_from_world = np.linalg.inv(view2["camera_pose"][row].numpy())
    seen = (points @ cam_from_world[:3, :3].T + cam_from_world[:3, 3]) @ view2["camera_intrinsics"][row].numpy().T
    return seen[:, :2] / seen[:, 2:]


def drawn(model: torch.nn.Module, view1: dict, view2: dict, row: int) -> PIL.Image.Image:
    """One pair side by side, with every match whose truth is known."""
    a, b = pixels(view1["img"][row]), pixels(view2["img"][row])
    found = mast3r.match(model, a, b, max_matches=120)  # pyright: ignore[reportArgumentType]
    error = np.linalg.norm(found.xy1 - true_ends(view1, view2, row, found.xy0), axis=1)
    canvas = PIL.Image.fromarray(np.concatenate([a, b], axis=1))
    pen = PIL.ImageDraw.Draw(canvas)
    for (x0, y0), (x1, y1), e in sorted(zip(found.xy0, found.xy1, error), key=lambda match: -match[2]):
        if np.isfinite(e):
            pen.line([(x0, y0), (x1 + SIZE, y1)], fill=GREEN if e < RIGHT_PX else RED)
    return canvas


def main() -> None:
    """Draw rows of much, some and little overlap."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("matches.jpg"))
    args = parser.parse_args()
    engine = SceneEngine(SyntheticConfig(TextureConfig(procedural=24), compile=False))
    model = mast3r.load("small")
    pictures = []
    for number, overlap in enumerate([(0.6, 0.9), (0.3, 0.5), (0.1, 0.2)]):
        view1, view2 = engine.pairs(args.seed + number, COLUMNS, height=SIZE, width=SIZE, overlap=overlap, n_corres=1)
        pictures += [drawn(model, view1, view2, row) for row in range(COLUMNS)]
    width, height = 2 * SIZE + GAP, SIZE + GAP
    sheet = PIL.Image.new("RGB", (COLUMNS * width - GAP, len(pictures) // COLUMNS * height - GAP), "white")
    for k, picture in enumerate(pictures):
        sheet.paste(picture, (k % COLUMNS * width, k // COLUMNS * height))
    sheet.save(args.out, quality=85)


if __name__ == "__main__":
    main()
