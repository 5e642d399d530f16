"""Fine matching of large photos: time and peak memory of coarse against fine, in one process each.

    python benchmarks/bench_fine.py --megapixels 1 12
    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/bench_fine.py --clock cpu --megapixels 50

The two photos (default: the rendered example pair) are enlarged to the wanted size, which costs what photos of that
size cost. For every size and resolution the table shows the matches, the time, and the memory beyond that of the
process with the model loaded: that of the two photos (as bytes) and of the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from bench_reconstruction import peak_gb

import mast3r
from multiview.images import Image

PHOTOS = sorted((Path(__file__).parents[1] / "examples" / "pair").glob("*.jpg"))[:2]


def child(arguments: argparse.Namespace) -> None:
    """Match one pair, and print what it took as one line of JSON."""
    model = mast3r.load(arguments.model)
    before = peak_gb()
    photos = []
    for path in arguments.photos:
        with PIL.Image.open(path) as photo:
            scale = (arguments.megapixels[0] * 1e6 / (photo.width * photo.height)) ** 0.5
            size = round(photo.width * scale), round(photo.height * scale)
            photos.append(Image(np.asarray(photo.convert("RGB").resize(size, PIL.Image.Resampling.BICUBIC))))
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    start = clock()
    matches = mast3r.match(model, *photos, resolution=arguments.resolution)
    report = {
        "size": photos[0].size,
        "matches": len(matches),
        "seconds": clock() - start,
        "gb": peak_gb() - before,
        "photos_gb": sum(photo.pixels.nbytes for photo in photos) / 1e9,
    }
    print(json.dumps(report))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", nargs="+", type=float, default=[1, 12])
    parser.add_argument("--photos", nargs=2, type=Path, default=PHOTOS)
    parser.add_argument("--model", default="small", help="what mast3r.load takes")
    parser.add_argument("--resolution", choices=["coarse", "fine"], help="default: both")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: for a machine that is busy")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {arguments.model}")
    print("size         resolution   matches      seconds   photos/GB   beyond them/GB")
    for megapixels in arguments.megapixels:
        for resolution in [arguments.resolution] if arguments.resolution else ["coarse", "fine"]:
            command = [sys.executable, __file__, "--child", "--megapixels", str(megapixels), "--model", arguments.model]
            command += ["--photos", *map(str, arguments.photos), "--resolution", resolution, "--clock", arguments.clock]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=dict(os.environ)).stdout
            row = json.loads(output.splitlines()[-1])
            size = "x".join(map(str, row["size"]))
            beyond = row["gb"] - row["photos_gb"]
            print(
                f"{size:12} {resolution:10} {row['matches']:9} {row['seconds']:12.1f} "
                f"{row['photos_gb']:11.2f} {beyond:16.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
