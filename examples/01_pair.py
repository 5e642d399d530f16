"""Two photos in one frame: points, matches, cameras. `python examples/01_pair.py [A B] [--out scene.glb]`.

Without photos the sample pair beside this file is taken.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mast3r

SAMPLE = [Path(__file__).parent / "pair" / name for name in ("a.jpg", "b.jpg")]


def main() -> None:
    """Parse, predict, show, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", nargs="*", type=Path, default=SAMPLE)
    parser.add_argument("--out", type=Path, default=Path("scene.glb"))
    args = parser.parse_args()

    model = mast3r.load("small")
    result = mast3r.predict_pair(model, *args.photos)
    print(result)

    # Points of both photos in camera 0's frame: x right, y down, z forward.
    points, confidence = result.pointmaps[0].points, result.confidences[0]
    print(f"pointmap {points.shape}, depth of the surest pixel {points.reshape(-1, 3)[confidence.argmax(), 2]:.2f}")

    # Cameras are in pixels of the original photos; poses lead from the camera to the world (here camera 0).
    print(f"focal length {result.cameras[0].focal[0]:.0f} px")
    if result.pose1 is not None:
        print(f"camera 1 stands at {result.pose1.center.round(2)}, turned by {result.pose1.angle_deg:.1f} degrees")

    result.save(args.out)
    result.save(args.out.with_suffix(".npz"))  # everything; PairResult.load reads it
    print(f"wrote {args.out} and {args.out.with_suffix('.npz')}")


if __name__ == "__main__":
    main()
