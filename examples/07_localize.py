"""Where was a new photo taken? `python examples/07_localize.py PHOTOS/ new.jpg [--scene scene.npz]`.

With a scene file that exists already the photos are not reconstructed again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mast3r
from multiview.reconstruction import Reconstruction


def main() -> None:
    """Parse, reconstruct or read the map, localise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, help="folder of the photos of the map")
    parser.add_argument("query", type=Path, nargs="+", help="new photos")
    parser.add_argument("--scene", type=Path, default=Path("scene.npz"))
    args = parser.parse_args()

    model = mast3r.load("small")
    if args.scene.exists():
        scene = Reconstruction.load(args.scene)
    else:
        scene = mast3r.reconstruct(model, args.photos)
        scene.save(args.scene)
    print(scene)

    for path in args.query:  # the photos of the map are encoded once, for the first query
        place = mast3r.localize(model, scene, path)
        if place.pose is None or place.camera is None:
            print(f"{path.name}: {place.reason}")
            continue
        print(f"{path.name}: at {place.pose.center.round(3)}, focal {place.camera.focal[0]:.0f} px, {place}")


if __name__ == "__main__":
    main()
