"""Reciprocal matching against its yardsticks, side by side in one process.

    python benchmarks/bench_matching.py                        # a few minutes; --full for the rest
    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/bench_matching.py --clock cpu
    python benchmarks/bench_matching.py --fields photos --photos a.jpg b.jpg --sizes 512x384 --pairs 1

For every size, number of pairs and kind of descriptor field the table shows the time of
`match_reciprocal_batch` per pair, and as ratios: how many times faster than the plain reference (blocks of
8192 x 8192, maxima in both directions), how many times the pure matrix products of the comparisons that were
asked for (in float32, all of them; below 1 where pruning or half precision saves some of it), and how many times
the network's forward. Whether the matches are identical to the reference's is printed, too. Ratios are what
travels between machines. It runs on a GPU where there is one, unless `--device cpu` says otherwise.

Kinds of fields: "photos" (the descriptors that a network computes for two photos), "moved" (the same smooth
scene, shifted and disturbed), "unrelated" (two smooth scenes) and "white" (noise: nothing can be left out).
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mast3r.fast_nn import ReciprocalSearch, match_reciprocal_batch
from mast3r.reference_nn import reference_reciprocal

CHANNELS = 24
PHOTOS = sorted(str(path) for path in (Path(__file__).parents[1] / "examples" / "pair").glob("*.jpg"))[:2]
CLOCK: list[Callable[[], float]] = [time.perf_counter]
OFFICIAL = {
    "pos_embed": "RoPE100",
    "patch_embed_cls": "PatchEmbedDust3R",
    "img_size": (512, 512),
    "head_type": "catmlp+dpt",
    "output_mode": "pts3d+desc24",
    "depth_mode": ("exp", -float("inf"), float("inf")),
    "conf_mode": ("exp", 1, float("inf")),
    "enc_embed_dim": 1024,
    "enc_depth": 24,
    "enc_num_heads": 16,
    "dec_embed_dim": 768,
    "dec_depth": 12,
    "dec_num_heads": 12,
    "two_confs": True,
    "desc_conf_mode": ("exp", 0, float("inf")),
    "landscape_only": False,
}


def smooth_field(width: int, height: int, cell: int, seed: int, device: torch.device) -> Tensor:
    """Unit-norm (H, W, D) descriptors interpolated from one random descriptor every `cell` pixels."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randn(1, CHANNELS, max(2, height // cell), max(2, width // cell), generator=generator)
    field = F.interpolate(low, size=(height, width), mode="bicubic", align_corners=False)[0]
    return F.normalize(field, dim=0).permute(1, 2, 0).contiguous().to(device)


def field_pair(kind: str, width: int, height: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two descriptor maps: the same scene moved and disturbed, unrelated smooth scenes, or white noise."""
    cell = {"moved": 16, "unrelated": 16, "white": 1}[kind]
    a = smooth_field(width, height, cell, seed, device)
    b = smooth_field(width, height, cell, seed + 1, device)
    if kind == "moved":
        shift = width // 8
        noise = F.normalize(torch.randn(a.shape, generator=torch.Generator().manual_seed(seed)), dim=-1)
        b[:, shift:] = F.normalize(a[:, :-shift] + 0.2 * noise[:, shift:].to(device), dim=-1)
    return a, b


@cache
def photo_fields(weights: str, photos: tuple[str, str], width: int, height: int, device: torch.device):
    """Descriptor maps (H, W, D) of two photos, each cut to the middle part of that shape."""
    import mast3r
    from mast3r.pairs.two_view import ModelInput, decode, encode
    from multiview.images import ImageTransform, read_image

    inputs = []
    for path in photos:
        image = read_image(path).to_pil()
        scale = max(width / image.width, height / image.height)
        image = image.resize((math.ceil(image.width * scale), math.ceil(image.height * scale)))
        left, top = (image.width - width) // 2, (image.height - height) // 2
        pixels = np.array(image.crop((left, top, left + width, top + height)))
        inputs.append(ModelInput(pixels, ImageTransform.identity((width, height))))
    model = mast3r.load(weights, device=device)
    first, second = decode(model, encode(model, inputs), [x.shape for x in inputs], [(0, 1)])[0]
    return first.desc.contiguous(), second.desc.contiguous()


def fields(kind: str, width: int, height: int, seed: int, arguments: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Two descriptor maps of a kind."""
    device = torch.device(arguments.device)
    if kind == "photos":
        return photo_fields(arguments.weights, tuple(arguments.photos), width, height, device)
    return field_pair(kind, width, height, seed, device)


def seconds(action: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Best time of some repeats on the chosen clock."""
    best = float("inf")
    for _ in range(repeats):
        _wait(device)
        start = CLOCK[0]()
        action()
        _wait(device)
        best = min(best, CLOCK[0]() - start)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def start_grid(width: int, height: int, subsample: int, device: torch.device) -> Tensor:
    """Flat indices of the start pixels."""
    grid = torch.arange(height * width, device=device).view(height, width)
    return grid[subsample // 2 :: subsample, subsample // 2 :: subsample].flatten()


def comparisons(a: Tensor, b: Tensor, start: Tensor) -> tuple[int, int]:
    """How many distinct queries the search asks in each direction."""
    search = ReciprocalSearch(a, b)
    search.follow(start)
    return search.asked


def run_reference(a: Tensor, b: Tensor, start: Tensor) -> tuple[float, bool]:
    """Time of the plain reference, and whether the fast path finds exactly the same from these starts."""
    expected: list[tuple[int, int]] = []
    taken = seconds(lambda: expected.extend(reference_reciprocal(a, b, start)), a.device, 1)
    walk = ReciprocalSearch(a, b).follow(start)
    found = torch.stack([walk.here, walk.there], 1)[walk.settled].unique(dim=0)
    return taken, [tuple(pair) for pair in found.tolist()] == expected


def product_seconds(a: Tensor, b: Tensor, queries: tuple[int, int], repeats: int) -> float:
    """Time of nothing but the products of these queries with all pixels, in the best of some block shapes."""
    total = 0.0
    for points, count in ((b.flatten(0, 1), queries[0]), (a.flatten(0, 1), queries[1])):
        if count == 0:
            continue
        left = points[:count]
        shapes = [(min(count, 3072), 256), (min(count, 3072), 512), (min(count, 1024), 2048)]
        if points.device.type != "cpu":
            shapes.append((count, 16384))
        total += min(
            seconds(lambda s=s: _products(left, points, *s), points.device, repeats)  # noqa: B023
            for s in shapes
        )
    return total


def _products(queries: Tensor, points: Tensor, rows: int, columns: int) -> None:
    buffer = queries.new_empty(rows * columns)
    for q in queries.split(rows):
        for p in points.split(columns):
            torch.mm(q, p.t(), out=buffer[: len(q) * len(p)].view(len(q), len(p)))


def network_seconds(name: str, width: int, height: int, device: torch.device) -> float:
    """One forward on one pair, of the official ViT-Large architecture with random weights or of given weights."""
    import mast3r
    from mast3r.model import AsymmetricMASt3R

    if name == "large":
        model = AsymmetricMASt3R(**OFFICIAL).eval().to(device)  # pyright: ignore[reportArgumentType]
    else:
        model = mast3r.load(name, device=device)
    image = torch.zeros(1, 3, height, width, device=device)
    view = {"img": image, "true_shape": torch.tensor([[height, width]]), "idx": [0], "instance": ["0"]}
    with torch.inference_mode():
        return seconds(lambda: model(view, dict(view, instance=["1"])), device, 1 if name == "large" else 3)


def bench(kind: str, width: int, height: int, arguments: argparse.Namespace, network: float | None) -> None:
    """Print the rows of one size and kind of field."""
    device, subsample = torch.device(arguments.device), arguments.subsample
    a, b = fields(kind, width, height, 0, arguments)
    start = start_grid(width, height, subsample, device)
    queries = comparisons(a, b, start)
    some = start[:: -(-len(start) // arguments.reference_starts)]
    reference, same = run_reference(a, b, some)
    reference *= len(start) / len(some)
    product = product_seconds(a, b, queries, arguments.repeats)
    gflop = 2e-9 * a.shape[-1] * width * height * sum(queries)
    for pairs in arguments.pairs:
        maps = [fields(kind, width, height, 2 * i, arguments) for i in range(min(pairs, arguments.distinct))]
        maps = [maps[i % len(maps)] for i in range(pairs)]
        lists = [m[0] for m in maps], [m[1] for m in maps]
        repeats = arguments.repeats if pairs == 1 else 1
        ours = seconds(lambda: match_reciprocal_batch(*lists, subsample=subsample), device, repeats) / pairs  # noqa: B023
        share = "" if network is None else f"{ours / network:9.3f}"
        print(
            f"{width}x{height:<5} {pairs:5} {kind:>10} {ours * 1e3:10.1f} {reference * 1e3:10.0f} "
            f"{reference / ours:8.1f}x {gflop:8.1f} {product * 1e3:8.1f} {ours / product:8.2f} {share} "
            f"{'yes' if same else 'NO':>5}"
        )


QUICK: dict[str, Any] = {
    "sizes": ["224x224", "512x384"],
    "pairs": [1, 8],
    "fields": ["photos", "moved", "white"],
    "network": "small",
}
FULL: dict[str, Any] = {
    "sizes": ["224x224", "512x384", "1024x768"],
    "pairs": [1, 8, 32],
    "fields": ["photos", "moved", "unrelated", "white"],
    "network": "large",
}


def parse() -> argparse.Namespace:
    """The options, those not given filled in from `QUICK` or `FULL`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help=f"defaults {FULL} instead of {QUICK}")
    parser.add_argument("--sizes", nargs="+", help="WxH of the maps")
    parser.add_argument("--pairs", nargs="+", type=int)
    parser.add_argument("--fields", nargs="+")
    parser.add_argument("--network", help="also time a forward: none, large, or what mast3r.load takes")
    parser.add_argument("--weights", default="small", help="network of the photos' descriptors")
    parser.add_argument("--photos", nargs=2, default=PHOTOS, help="the two photos")
    parser.add_argument("--subsample", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--distinct", type=int, default=4, help="different pairs of maps kept in memory")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--reference-starts",
        type=int,
        default=4096,
        help="the reference runs on at most so many start pixels and its time is scaled: it is that slow",
    )
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: for one thread on a machine that is busy",
    )
    arguments = parser.parse_args()
    for name, value in (FULL if arguments.full else QUICK).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    return arguments


def main() -> None:
    arguments = parse()
    if arguments.clock == "cpu":
        CLOCK[0] = time.process_time
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, {arguments.device}, torch {torch.__version__}")
    print("size     pairs      field    ours/ms     ref/ms   faster   GFLOP  prod/ms  x prod   x net  same")
    for size in arguments.sizes:
        width, height = (int(side) for side in size.split("x"))
        network = None
        if arguments.network != "none":
            network = network_seconds(arguments.network, width, height, torch.device(arguments.device))
            print(f"{size}: forward of the network ({arguments.network}) {network * 1e3:.0f} ms for a pair")
        for kind in arguments.fields:
            bench(kind, width, height, arguments, network)


if __name__ == "__main__":
    main()
