"""Measure in a scene: tell one distance that you know, ask for another one.

`python examples/10_measure.py scene.npz --known a.jpg 120,80 a.jpg 400,90 1.25 --ask a.jpg 60,200 b.jpg 310,220`
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from multiview.reconstruction import Reconstruction


def pixel(text: str) -> tuple[float, float]:
    """(x, y) of "x,y", in pixels of the original photo."""
    x, y = text.split(",")
    return float(x), float(y)


def main() -> None:
    """Parse, rescale, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scene", type=Path, help=".npz of a reconstruction, see 03_many_photos.py")
    parser.add_argument("--known", nargs=5, metavar=("IMAGE", "X,Y", "IMAGE", "X,Y", "METRES"))
    parser.add_argument("--ask", nargs=4, metavar=("IMAGE", "X,Y", "IMAGE", "X,Y"), required=True)
    args = parser.parse_args()

    scene = Reconstruction.load(args.scene)
    print(f"unit of length: {scene.scale_status}")
    if args.known:
        name_a, at_a, name_b, at_b, metres = args.known
        scene = scene.rescale(known_distance=((name_a, pixel(at_a)), (name_b, pixel(at_b)), float(metres)))
        print(f"unit of length: {scene.scale_status}")

    name_a, at_a, name_b, at_b = args.ask
    a, b = scene.point_at(name_a, pixel(at_a)), scene.point_at(name_b, pixel(at_b))
    print(f"{np.linalg.norm(a - b):.4f} from {a.round(3)} to {b.round(3)}")


if __name__ == "__main__":
    main()
