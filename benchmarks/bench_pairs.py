"""One encoding per photo: the complete graph of some photos against encoding both photos for every pair.

    python benchmarks/bench_pairs.py
    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/bench_pairs.py --photos FOLDER --clock cpu --model large

Times for the network alone (encode and decode, both orders of each pair), in one process, for three ways:

* cached: every photo is encoded once, the pairs share batches (what `predict_pairs` does);
* per pair: both photos are encoded for every pair, which is then decoded in both orders (`predict_pair`);
* per order: both photos are encoded for each order of every pair, as calling the network on a list of pairs does.

With `--orders 1` every pair is decoded in one order only, and the last two ways are the same.

With `--whole` the same for everything up to matches and poses: `predict_pairs` against `predict_pair`.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from bench_matching import OFFICIAL

import mast3r
from dust3r.utils.misc import ShapeLike
from mast3r.model import AsymmetricMASt3R
from mast3r.pairs.two_view import ModelInput, decode, encode, model_input
from mast3r.predictor import PairConfig, predict_pair, predict_pairs
from multiview.images import Image, read_image

SUFFIXES = (".jpg", ".jpeg", ".png")
WHOLE = PairConfig(closer_look=False)  # parts of photos are encoded too, where whole photos are not enough


def read_photos(folder: str | None, count: int) -> list[Image]:
    """The first photos of a folder, or noise."""
    if folder is None:
        rng = np.random.default_rng(0)
        return [Image(rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)) for _ in range(count)]
    files = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in SUFFIXES)
    return [read_image(path) for path in files[:count]]


def build(name: str) -> AsymmetricMASt3R:
    """The official architecture with random weights, or what mast3r.load takes."""
    if name == "large":
        torch.manual_seed(0)
        return AsymmetricMASt3R(**OFFICIAL).eval()  # pyright: ignore[reportArgumentType]
    return mast3r.load(name)


class EncodeCounter:
    """Counts the images that a model encodes."""

    def __init__(self, model: AsymmetricMASt3R) -> None:
        self.images = 0
        self._encode = model._encode_image
        model._encode_image = self

    def __call__(self, image: torch.Tensor, true_shape: ShapeLike) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Encode (B, 3, H, W) images."""
        self.images += len(image)
        return self._encode(image, true_shape)


Orders = list[tuple[int, int]]  # of the two photos of a pair


def cached(model: AsymmetricMASt3R, inputs: list[ModelInput], pairs: Orders, orders: Orders) -> None:
    """Encode once per photo."""
    tokens, shapes = encode(model, inputs), [x.shape for x in inputs]
    for k in range(0, len(pairs), 4):
        decode(model, tokens, shapes, [(pair[i], pair[j]) for pair in pairs[k : k + 4] for i, j in orders])


def per_pair(model: AsymmetricMASt3R, inputs: list[ModelInput], pairs: Orders, orders: Orders) -> None:
    """Encode both photos once per pair."""
    for i, j in pairs:
        two = [inputs[i], inputs[j]]
        decode(model, encode(model, two), [x.shape for x in two], orders)


def per_order(model: AsymmetricMASt3R, inputs: list[ModelInput], pairs: Orders, orders: Orders) -> None:
    """Encode both photos once per order of a pair."""
    for pair in pairs:
        for i, j in orders:
            two = [inputs[pair[i]], inputs[pair[j]]]
            decode(model, encode(model, two), [x.shape for x in two], [(0, 1)])


def measure(name: str, action: Callable[[], object], counter: EncodeCounter, arguments: argparse.Namespace) -> float:
    """Print and return the best time of some repeats."""
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    best = float("inf")
    for _ in range(arguments.repeats):
        counter.images = 0
        start = clock()
        action()
        best = min(best, clock() - start)
    print(f"{name:28} {best:8.2f} s   {counter.images:4} images encoded")
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small", help="large, or what mast3r.load takes")
    parser.add_argument("--photos", help="folder of photos; default noise")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--orders", type=int, choices=[1, 2], default=2, help="in which a pair is decoded")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--whole", action="store_true", help="also time everything up to the poses")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: for one thread on a machine that is busy"
    )
    arguments = parser.parse_args()
    model = build(arguments.model)
    counter = EncodeCounter(model)
    photos = read_photos(arguments.photos, arguments.count)
    pairs = list(combinations(range(len(photos)), 2))
    inputs = [model_input(model, photo) for photo in photos]
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {arguments.model}")
    print(f"{len(photos)} photos of {inputs[0].size} in the network, {len(pairs)} pairs")
    orders = [(0, 1), (1, 0)][: arguments.orders]
    ways = {"cached": cached, "per pair": per_pair, "per order": per_order}
    if arguments.orders == 1:
        del ways["per order"]
    times = {
        name: measure(name, lambda way=way: way(model, inputs, pairs, orders), counter, arguments)
        for name, way in ways.items()
    }
    for name in list(times)[1:]:
        print(f"cached / {name} {times['cached'] / times[name]:.2f}")
    if arguments.whole:
        many = measure("predict_pairs", lambda: predict_pairs(model, photos, pairs, config=WHOLE), counter, arguments)
        single = measure(
            "predict_pair for each",
            lambda: [predict_pair(model, photos[i], photos[j], config=WHOLE) for i, j in pairs],
            counter,
            arguments,
        )
        print(f"predict_pairs / predict_pair {many / single:.2f}")


if __name__ == "__main__":
    main()
