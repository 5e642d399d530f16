"""Cameras and points of many photos: `python examples/03_many_photos.py PHOTOS/ [--out scene.glb]`."""

from __future__ import annotations

import argparse
from pathlib import Path

import mast3r


def main() -> None:
    """Parse, reconstruct, say what failed, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, help="folder of photos")
    parser.add_argument("--out", type=Path, default=Path("scene.glb"))
    parser.add_argument("--cache", type=Path, help="a run that was stopped goes on from this folder")
    args = parser.parse_args()

    model = mast3r.load("small")
    scene = mast3r.reconstruct(
        model,
        args.photos,
        scene_graph="auto",  # all pairs of few photos, look-alikes of many; or "swin-5", "logwin-4-noncyclic", ...
        cache_dir=args.cache,
        on_plan=print,  # which pairs, how long, how much memory: before anything runs
    )
    print(scene)
    for image in scene.images:
        print(f"  {image.name}: {image.pose if image.registered else image.reason}")

    scene = scene.align()  # gravity down
    scene.save(args.out)
    scene.save(args.out.with_suffix(".npz"))  # everything; Reconstruction.load reads it
    scene.plot().save(args.out.with_suffix(".jpg"))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
