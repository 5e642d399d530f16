"""Draw `conventions.svg`: `python docs/images/draw_conventions.py`.

Three panels: axes of a camera and its pose, pixel coordinates, and original against model pixels.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

RED, GREEN, BLUE, INK, PALE = "#c83737", "#2d8a4e", "#2f62c4", "#222222", "#9a9a9a"
AXES = (RED, GREEN, BLUE)


def flat(points: np.ndarray) -> np.ndarray:
    """(N, 2) drawing plane of (N, 3) points with y down: an oblique view from behind, the left and above."""
    x, y, z = np.asarray(points, float).T
    return np.stack([x * 0.90 + z * 0.62, -y - x * 0.22 + z * 0.42], axis=1)


def arrow(ax: Axes, start: np.ndarray, end: np.ndarray, color: str, *, curve: float = 0.0) -> None:
    """An arrow between two points of the drawing plane."""
    style = {"arrowstyle": "-|>,head_width=0.22,head_length=0.5", "color": color, "lw": 1.6, "shrinkA": 0, "shrinkB": 0}
    ax.annotate(
        "", (end[0], end[1]), (start[0], start[1]), arrowprops={**style, "connectionstyle": f"arc3,rad={curve}"}
    )


def draw_frame(
    ax: Axes, origin: np.ndarray, R: np.ndarray, lengths: tuple[float, ...], labels: tuple[str, ...]
) -> None:
    """Three arrows from an origin, with names at their tips."""
    start = flat(origin[None])[0]
    for axis, color, length, label in zip(R.T, AXES, lengths, labels):
        end = flat((origin + length * axis)[None])[0]
        arrow(ax, start, end, color)
        place = end + 0.28 * (end - start) / np.linalg.norm(end - start)
        ax.text(
            place[0], place[1], label, color=color, ha="left" if color == RED else "center", va="center", fontsize=9
        )


def draw_camera(ax: Axes) -> None:
    """A camera with its axes, a world, and the map between them."""
    center, R = np.array([3.2, -0.9, 0.6]), np.eye(3)
    corners = np.array([(-0.8, -0.6, 1.5), (0.8, -0.6, 1.5), (0.8, 0.6, 1.5), (-0.8, 0.6, 1.5)]) + center
    plane = flat(corners)
    ax.fill(*plane.T, facecolor="#eef2fb", edgecolor=PALE, lw=1)
    for corner in plane:
        ax.plot(*np.stack([flat(center[None])[0], corner]).T, color=PALE, lw=0.8)
    draw_frame(ax, center, R, (1.3, 1.3, 2.4), ("x right", "y down", "z forward"))
    start = flat(center[None])[0]
    ax.text(start[0] - 0.30, start[1] + 0.10, "camera", color=INK, ha="right", fontsize=9)
    turn = np.radians(-15)
    world = np.array([[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]])
    origin = np.array([0.0, 1.0, 0.0])
    draw_frame(ax, origin, world, (1.1, 1.1, 1.1), ("x", "y", "z"))
    at = flat(origin[None])[0]
    ax.text(at[0] - 0.15, at[1], "world", color=INK, ha="right", va="center", fontsize=9)
    arrow(ax, flat(center[None])[0] + np.array((-0.15, -0.15)), at + np.array((0.22, 0.05)), INK, curve=-0.2)
    ax.text(3.6, -2.35, r"$x_{world}$ = world_from_cam · $x_{cam}$", color=INK, ha="center", fontsize=9)
    ax.set_title("Camera axes and pose", fontsize=11)


def draw_pixels(ax: Axes) -> None:
    """A picture of 4 x 3 pixels."""
    for column in range(4):
        for row in range(3):
            ax.add_patch(plt.Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor="#f4f4f4", edgecolor=PALE, lw=1))
            ax.plot(column, row, ".", color=INK, ms=4)
    ax.text(0.08, 0.26, "(0, 0)", ha="center", fontsize=9)
    ax.text(3, 2.26, "(3, 2)", ha="center", fontsize=9)
    for x in range(4):
        ax.text(x, -1.15, str(x), ha="center", va="center", fontsize=9)
    for y in range(3):
        ax.text(-0.98, y, str(y), ha="center", va="center", fontsize=9)
    arrow(ax, np.array((-0.5, -0.85)), np.array((3.9, -0.85)), RED)
    arrow(ax, np.array((-0.72, -0.5)), np.array((-0.72, 2.9)), GREEN)
    ax.text(4.1, -0.85, "x", color=RED, va="center", fontsize=9)
    ax.text(-0.72, 3.15, "y", color=GREEN, ha="center", va="center", fontsize=9)
    for corner, name, side in (((-0.5, -0.5), "(-0.5, -0.5)", "left"), ((3.5, 2.5), "(3.5, 2.5)", "right")):
        ax.plot(*corner, "o", color=BLUE, ms=4)
        ax.text(corner[0] + (0.06 if side == "left" else 0), corner[1] + (0.28 if side == "left" else 0.32), name,
                color=BLUE, ha=side, fontsize=9)  # fmt: skip
    ax.text(1.5, 3.65, "COLMAP and nerfstudio have (0.5, 0.5) there:\ntheir exporters add the half pixel", ha="center",
            va="center", fontsize=9)  # fmt: skip
    ax.set_title("Pixels: centres at whole numbers", fontsize=11)


def draw_transform(ax: Axes) -> None:
    """An original picture of 8 x 6 pixels beside its model picture of 4 x 3."""
    for left, columns, rows, cell, color in ((0.0, 8, 6, 0.5, "#fdf3e7"), (6.4, 4, 3, 0.5, "#eef6ee")):
        for column in range(columns):
            for row in range(rows):
                at = (left + column * cell, row * cell)
                ax.add_patch(plt.Rectangle(at, cell, cell, facecolor=color, edgecolor=PALE, lw=0.8))
    original, model = np.array((5.5 * 0.5, 3.5 * 0.5)), np.array((6.4 + 2.75 * 0.5, 1.75 * 0.5))
    ax.plot(*original, "o", color=RED, ms=5)
    ax.plot(*model, "o", color=RED, ms=5)
    arrow(ax, original + np.array((0.12, -0.03)), model + np.array((-0.12, 0.02)), RED)
    ax.text(2.0, -0.45, "original, 8 x 6", ha="center", fontsize=9)
    ax.text(7.4, -0.45, "model, 4 x 3", ha="center", fontsize=9)
    ax.text(2.75, 2.22, "(5, 3)", color=RED, ha="center", va="center", fontsize=9)
    ax.text(7.55, 1.3, "(2.25, 1.25)", color=RED, ha="center", va="center", fontsize=9)
    ax.text(5.2, 0.95, "ImageTransform", ha="center", fontsize=9)
    ax.text(4.4, 3.75, "$x_{model} = (x_{original} + 0.5)\\,s - 0.5$\nresults are in original pixels", ha="center",
            va="center", fontsize=9)  # fmt: skip
    ax.set_title("Original and model pixels", fontsize=11)


def main() -> None:
    """Draw the three panels."""
    mpl.rcParams.update({"svg.fonttype": "path", "svg.hashsalt": "conventions", "font.family": "DejaVu Sans"})
    figure = plt.figure(figsize=(8.6, 6.7))
    grid = figure.add_gridspec(2, 2, width_ratios=(1.2, 1), height_ratios=(1.15, 1))
    panels = [figure.add_subplot(place) for place in (grid[0, 0], grid[0, 1], grid[1, :])]
    for ax, draw in zip(panels, (draw_camera, draw_pixels, draw_transform)):
        draw(ax)
        ax.set_aspect("equal")
        ax.axis("off")
    panels[0].set(xlim=(-1.0, 6.4), ylim=(-2.7, 2.4))
    panels[1].set(xlim=(-1.3, 4.4), ylim=(4.1, -1.5))
    panels[2].set(xlim=(-0.3, 8.8), ylim=(4.3, -0.8))
    figure.tight_layout()
    figure.savefig(Path(__file__).with_name("conventions.svg"), facecolor="white", metadata={"Date": None})


if __name__ == "__main__":
    main()
