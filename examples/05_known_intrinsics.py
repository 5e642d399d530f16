"""What you know goes in: intrinsics, masks, poses. `python examples/05_known_intrinsics.py PHOTOS/ --focal 800`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import mast3r
from multiview.images import read_image
from multiview.views import View, ViewConstraints, fixed, prior


def main() -> None:
    """Parse, state what is known, reconstruct."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, help="folder of photos of one size, taken with one camera")
    parser.add_argument("--focal", type=float, required=True, help="focal length in pixels of the photos")
    parser.add_argument("--unsure", action="store_true", help="the focal length is a guess")
    args = parser.parse_args()

    paths = sorted(path for path in args.photos.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    views = []
    for i, path in enumerate(paths):
        image = read_image(path)
        K = np.array([[args.focal, 0, image.width / 2], [0, args.focal, image.height / 2], [0, 0, 1]])
        known = ViewConstraints(
            K=prior(K, weight=10.0) if args.unsure else fixed(K),  # pixels of the original photo
            pose=fixed(np.eye(4)) if i == 0 else None,  # the first camera is the world; None is free
            mask=None,  # (h, w) bool, False on what moves
        )
        views.append(View(image, known, name=path.name))

    scene = mast3r.reconstruct(mast3r.load("small"), views)
    print(scene)
    for name, pose in scene.poses.items():
        camera = scene.image(name).camera
        if camera is not None:
            print(f"  {name}: focal {camera.focal[0]:.1f} px, stands at {pose.center.round(3)}")


if __name__ == "__main__":
    main()
