"""Matches in three ways: as the network sees the photos, at full resolution, and for given keypoints.

`python examples/02_matches.py [A B] [--out matches.jpg]`
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import mast3r
from multiview.images import read_image

SAMPLE = [Path(__file__).parent / "pair" / name for name in ("a.jpg", "b.jpg")]


def main() -> None:
    """Parse, match, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", nargs="*", type=Path, default=SAMPLE)
    parser.add_argument("--out", type=Path, default=Path("matches.jpg"))
    args = parser.parse_args()

    model = mast3r.load("small")
    a, b = (read_image(path) for path in args.photos)

    coarse = mast3r.match(model, a, b)
    print("coarse:", coarse)  # xy0 and xy1 are pixels of the original photos

    # Only the left half of the first photo may match.
    mask = np.zeros((a.height, a.width), bool)
    mask[:, : a.width // 2] = True
    print("masked:", mast3r.match(model, a, b, mask_a=mask))

    # Corners of yours: at most one match each, exactly at its place.
    keypoints = np.array([(x, y) for x in range(20, a.width - 20, 40) for y in range(20, a.height - 20, 40)], float)
    found = mast3r.match(model, a, b, keypoints_a=keypoints)
    if found.index0 is not None:
        print(f"keypoints: {len(found)} of {len(keypoints)} found, for example number {found.index0[:3].tolist()}")

    fine = mast3r.match(model, a, b, resolution="fine", max_matches=5000)
    print("fine:", fine)
    fine.plot(a, b).save(args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
