"""A walk through a video: `python examples/09_video.py clip.mp4 [--frames 30]`. PyAV reads it (extra `video`)."""

from __future__ import annotations

import argparse
from pathlib import Path

import mast3r
from mast3r.scenes.reconstruction import ReconstructConfig
from multiview.video import read_frames
from multiview.views import View


def main() -> None:
    """Parse, choose frames, reconstruct, save the way of the camera."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video", type=Path)
    parser.add_argument("--frames", type=int, default=30, help="frames to take, evenly in time")
    parser.add_argument("--out", type=Path, default=Path("scene.glb"))
    args = parser.parse_args()

    frames = [View(frame.image, name=f"{frame.seconds:08.3f}") for frame in read_frames(args.video, count=args.frames)]
    print(f"{len(frames)} frames from {frames[0].name} s to {frames[-1].name} s")

    # Frames are in order: each is compared with its neighbours, and with look-alikes when the way returns.
    config = ReconstructConfig(ordered=True)
    scene = mast3r.reconstruct(mast3r.load("small"), frames, config=config, on_plan=print)
    print(scene)
    if scene.registered:
        scene.align().save(args.out)
        scene.save(args.out.with_suffix(".tum"))  # the trajectory: time, place, turn
        print(f"wrote {args.out} and {args.out.with_suffix('.tum')}")


if __name__ == "__main__":
    main()
