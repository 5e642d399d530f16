"""Procedural textures and skies: what the scene engine uses when no photos are given."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

Random = np.random.Generator


def procedural_texture(seed: int, size: int) -> tuple[np.ndarray, bool]:
    """One random texture.

    Returns:
        (size, size, 3) uint8 image, and whether it tiles without a seam.
    """
    rng = np.random.default_rng([seed, 17])
    generator, tileable = _GENERATORS[seed % len(_GENERATORS)]
    image = generator(rng, size)
    image = image + rng.normal(0, rng.uniform(0, 0.03), (size, size, 1))
    return _to_bytes(image), tileable


def procedural_sky(seed: int, size: int) -> np.ndarray:
    """A sky panorama (azimuth across, zenith on top), (size, size, 3) uint8."""
    rng = np.random.default_rng([seed, 29])
    zenith, horizon = (
        rng.uniform((0.1, 0.25, 0.5), (0.5, 0.6, 0.95)),
        rng.uniform((0.55, 0.6, 0.65), (1, 0.95, 0.95)),
    )
    height = np.linspace(1, 0, size)[:, None, None] ** rng.uniform(0.6, 1.6)
    sky = horizon + (zenith - horizon) * height
    clouds = _fractal(rng, size, octaves=6, first=int(rng.integers(2, 5)))
    cover = np.clip((clouds - rng.uniform(0.35, 0.7)) * rng.uniform(2, 6), 0, 1)[..., None]
    return _to_bytes(sky * (1 - cover) + rng.uniform(0.75, 1.0) * cover)


def _to_bytes(image: np.ndarray) -> np.ndarray:
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)


def _fractal(rng: Random, size: int, octaves: int, first: int = 2, persistence: float = 0.55) -> np.ndarray:
    """Periodic fractal value noise in [0, 1], (size, size)."""
    total = np.zeros((size, size))
    for k in range(octaves):
        cells = min(int(first) * 2**k, size)
        grid = rng.random((cells, cells))
        zoomed = ndimage.zoom(np.pad(grid, 2, mode="wrap"), size / cells, order=3, mode="nearest", grid_mode=True)
        edge = 2 * size // cells
        total = total + persistence**k * np.asarray(zoomed)[edge : edge + size, edge : edge + size]
    total -= total.min()
    return total / max(float(total.max()), 1e-9)


def _palette(rng: Random, count: int) -> np.ndarray:
    """`count` related colours, (count, 3) in [0, 1]: mostly muted and earthy, now and then vivid."""
    warm = rng.random() < 0.6
    hue = rng.normal(0.08, 0.05) if warm else rng.random()
    saturation = rng.beta(1.5, 4) if rng.random() < 0.85 else rng.uniform(0.5, 0.9)
    hues = hue + rng.normal(0, 0.04 if rng.random() < 0.7 else 0.3, (count, 1))
    saturations = np.clip(saturation + rng.normal(0, 0.1, (count, 1)), 0, 1)
    values = np.clip(rng.uniform(0.25, 0.9) + rng.normal(0, rng.uniform(0.08, 0.3), (count, 1)), 0.05, 0.97)
    phase = np.abs((hues + np.array([0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1  # red, green, blue of a pure hue
    return values * (1 + saturations * (np.clip(phase, 0, 1) - 1))


def _colourise(rng: Random, field: np.ndarray) -> np.ndarray:
    """Map a scalar field in [0, 1] through a random colour ramp."""
    colours = _palette(rng, 5)
    stops = np.linspace(0, 1, 5)
    return np.stack([np.interp(field, stops, colours[:, c]) for c in range(3)], -1)


def _marble(rng: Random, size: int) -> np.ndarray:
    warp = _fractal(rng, size, 6)
    y, x = np.mgrid[:size, :size] / size
    kx, ky = rng.integers(-6, 7, 2)
    bands = 0.5 + 0.5 * np.sin(2 * np.pi * (kx * x + ky * y) + rng.uniform(2, 14) * warp)
    return _colourise(rng, bands)


def _stone(rng: Random, size: int) -> np.ndarray:
    return _colourise(rng, _fractal(rng, size, 8, int(rng.integers(2, 6)), rng.uniform(0.5, 0.85)))


def _bricks(rng: Random, size: int) -> np.ndarray:
    rows, columns = rng.choice([8, 16, 32]), rng.choice([4, 8, 16])
    y, x = np.mgrid[:size, :size] / size
    row = (y * rows).astype(int)
    shifted = x * columns + 0.5 * (row % 2)
    column = shifted.astype(int) % columns
    tones = _palette(rng, 1)[0] + rng.normal(0, rng.uniform(0.03, 0.15), (rows, columns, 1))
    gap = rng.uniform(0.04, 0.12)
    joint = ((y * rows) % 1 < gap) | (shifted % 1 < gap * columns / rows)
    image = tones[row, column] * (0.75 + 0.5 * _fractal(rng, size, 7)[..., None])
    return np.where(joint[..., None], rng.uniform(0.3, 0.8), image)


def _cells(rng: Random, size: int) -> np.ndarray:
    points = rng.uniform(0, size, (rng.integers(20, 220), 2))
    tiled = np.concatenate([points + size * np.array([dy, dx]) for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
    grid = np.indices((size, size)).reshape(2, -1).T
    distance, nearest = (np.asarray(found) for found in KDTree(tiled).query(grid, k=2))
    edge = np.clip((distance[:, 1] - distance[:, 0]) / rng.uniform(2, 10), 0, 1).reshape(size, size, 1)
    colours = _palette(rng, len(points))[nearest[:, 0] % len(points)].reshape(size, size, 3)
    return (0.3 + 0.7 * edge) * colours * (0.8 + 0.4 * _fractal(rng, size, 7)[..., None])


def _planks(rng: Random, size: int) -> np.ndarray:
    count = rng.choice([4, 8, 16])
    _, x = np.mgrid[:size, :size] / size
    plank = (x * count).astype(int)
    grain = ndimage.zoom(rng.random((size // 32, size)), (32, 1), order=1) * 0.35
    tones = rng.uniform(0.7, 1.2, count)[plank]
    image = _palette(rng, 1)[0] * (tones + grain - 0.2 + 0.3 * _fractal(rng, size, 6))[..., None]
    return np.where(((x * count) % 1 < 0.04)[..., None], image * 0.35, image)


def _weave(rng: Random, size: int) -> np.ndarray:
    y, x = np.mgrid[:size, :size] / size
    nx, ny = rng.integers(4, 40, 2)
    a, b = 0.5 + 0.5 * np.sin(2 * np.pi * nx * x), 0.5 + 0.5 * np.sin(2 * np.pi * ny * y)
    over = ((x * nx).astype(int) + (y * ny).astype(int)) % 2 == 0
    return _colourise(rng, 0.7 * np.where(over, a, b) + 0.3 * _fractal(rng, size, 6))


def _collage(rng: Random, size: int) -> np.ndarray:
    """Overlapping leaves of all sizes: structure at every scale and no repetition."""
    image = np.broadcast_to(_palette(rng, 1)[0], (size, size, 3)).copy()
    y, x = np.mgrid[:size, :size] / size
    colours, noise = _palette(rng, 12), _fractal(rng, size, 8, 3, 0.7)
    for k in range(260):
        radius = 0.35 * (1 - k / 260) ** 2 + 0.008
        cx, cy, angle, ratio = *rng.random(2), rng.uniform(0, np.pi), rng.uniform(0.25, 1)
        u = np.cos(angle) * (x - cx) + np.sin(angle) * (y - cy)
        v = -np.sin(angle) * (x - cx) + np.cos(angle) * (y - cy)
        box = rng.random() < 0.5
        inside = (np.maximum(abs(u), abs(v) / ratio) if box else np.hypot(u, v / ratio)) < radius
        image[inside] = colours[rng.integers(12)] * rng.uniform(0.6, 1.2) * (0.7 + 0.6 * noise[inside])[:, None]
    return image


def _poster(rng: Random, size: int) -> np.ndarray:
    """Blocks, pictures and lines of strokes, like print on paper."""
    image = np.full((size, size, 3), _palette(rng, 1)[0])
    unit = size // 64
    for _ in range(rng.integers(4, 12)):
        top, left = rng.integers(0, size - 8 * unit, 2)
        h, w = rng.integers(4, 28, 2) * unit
        patch = image[top : top + h, left : left + w]
        if rng.random() < 0.5:
            patch[:] = _colourise(rng, _fractal(rng, size, 6))[: patch.shape[0], : patch.shape[1]]
            continue
        patch[:] = _palette(rng, 1)[0]
        ink = rng.uniform(0, 1, 3)
        for line in range(unit, patch.shape[0] - unit, 3 * unit):
            strokes = np.repeat(rng.random(patch.shape[1] // 2 + 1) < 0.6, 2)[: patch.shape[1]]
            patch[line : line + unit, strokes] = ink
    return image


def _facade(rng: Random, size: int) -> np.ndarray:
    """Storeys of windows on a plastered or brick wall."""
    wall = (
        _bricks(rng, size)
        if rng.random() < 0.4
        else _palette(rng, 1)[0] * (0.85 + 0.3 * _fractal(rng, size, 7)[..., None])
    )
    rows, columns = rng.integers(2, 6), rng.integers(2, 7)
    height, width = size // rows, size // columns
    frame = rng.uniform(0.2, 0.95, 3)
    for r in range(rows):
        for c in range(columns):
            y0, x0 = int((r + rng.uniform(0.2, 0.25)) * height), int((c + rng.uniform(0.2, 0.3)) * width)
            y1, x1 = y0 + int(0.55 * height), x0 + int(0.5 * width)
            wall[y0:y1, x0:x1] = frame
            glass = rng.uniform(0.05, 0.6) * np.array([0.8, 0.9, 1.0]) * rng.uniform(0.7, 1.3)
            wall[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2] = (
                glass + 0.2 * np.linspace(0, rng.uniform(-1, 1), max(y1 - y0 - 4, 0))[:, None, None]
            )
            wall[(y0 + y1) // 2, x0:x1] = frame
            wall[y0:y1, (x0 + x1) // 2] = frame
    return wall


_GENERATORS: tuple[tuple[Callable[[Random, int], np.ndarray], bool], ...] = (
    (_collage, False),
    (_stone, True),
    (_poster, False),
    (_bricks, True),
    (_facade, False),
    (_marble, True),
    (_collage, False),
    (_cells, True),
    (_poster, False),
    (_planks, True),
    (_facade, False),
    (_weave, True),
)
