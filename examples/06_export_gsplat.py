"""Start Gaussian splatting from photos: COLMAP's and nerfstudio's forms.

`python examples/06_export_gsplat.py PHOTOS/ --out dataset/` writes dataset/sparse/0 (COLMAP), dataset/transforms.json
with its point cloud (nerfstudio), and links the photos; gsplat and nerfstudio train from there.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import mast3r


def main() -> None:
    """Parse, reconstruct, export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, help="folder of photos")
    parser.add_argument("--out", type=Path, default=Path("dataset"))
    args = parser.parse_args()

    images = args.out / "images"
    shutil.copytree(args.photos, images, dirs_exist_ok=True)
    scene = mast3r.reconstruct(mast3r.load("small"), images)
    print(scene)
    if not scene.registered:
        raise SystemExit("no photo could be placed; nothing to train on")

    # Original resolution, COLMAP's pixel convention; the tracks become points3D.
    scene.to_colmap(args.out / "sparse" / "0")
    # OpenGL camera axes, and a dense point cloud to start the Gaussians from.
    scene.save(args.out / "transforms.json", confidence_percentile=30)
    print(f"wrote {args.out}: {len(scene.registered)} cameras, {len(scene.tracks)} tracked points")


if __name__ == "__main__":
    main()
