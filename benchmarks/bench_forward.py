"""The network's forward pass against the matrix products it consists of, in one process.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/bench_forward.py --clock cpu
    python benchmarks/bench_forward.py --models small --device cuda

For every model the table shows the time of a forward pass on one pair, and as ratios: how many times the time that
its multiplications take as one large square product (the rate no program beats), and how many times the time of
just its own products, each alone with its own shape. What is left above 1 is norms, activations, attention's
softmax, copies and Python. The process' largest resident memory (with weights and torch itself) is printed, too,
and in brackets what the forward pass added to it.
"""

from __future__ import annotations

import argparse
import math
import platform
import resource
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from bench_matching import OFFICIAL
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import mast3r
from mast3r.model import AsymmetricMASt3R

SQUARE = 2048
VIT_SMALL = {
    **OFFICIAL,
    "img_size": (224, 224),
    "head_type": "catmlp+linear",
    "enc_embed_dim": 384,
    "enc_depth": 12,
    "enc_num_heads": 6,
    "dec_embed_dim": 384,
    "dec_depth": 8,
    "dec_num_heads": 6,
}
FRESH = {"large": (OFFICIAL, (384, 512)), "vit-small": (VIT_SMALL, (224, 224))}


@dataclass(frozen=True)
class Product:
    """`count` products of (rows, inner) and (inner, columns) matrices."""

    count: int
    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return 2 * self.count * self.rows * self.inner * self.columns


class ProductRecorder(TorchDispatchMode):
    """Notes every product a network computes."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.name()
        if name in ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"):
            a, b = args[-2:] if name.endswith("mm") and "add" not in name else args[1:3]
            self.products[Product(math.prod(a.shape[:-2]), a.shape[-2], a.shape[-1], b.shape[-1])] += 1
        elif name == "aten::convolution":
            self._convolution(args[1], out, transposed=bool(args[6]), image=args[0])
        elif "scaled_dot_product" in name:
            (B, heads, N, D), M = args[0].shape, args[1].shape[-2]
            self.products[Product(B * heads, N, D, M)] += 1
            self.products[Product(B * heads, N, M, D)] += 1
        return out

    def _convolution(self, weight: Tensor, out: Tensor, *, transposed: bool, image: Tensor) -> None:
        places = (image if transposed else out).shape
        inner = weight.shape[0] if transposed else weight[0].numel()
        columns = weight[0].numel() if transposed else weight.shape[0]
        self.products[Product(1, places[0] * places[-2] * places[-1], inner, columns)] += 1


def seconds(action: Callable[[], object], arguments: argparse.Namespace) -> float:
    """Best time of some repeats."""
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    best = float("inf")
    for _ in range(arguments.repeats):
        _wait(arguments)
        start = clock()
        action()
        _wait(arguments)
        best = min(best, clock() - start)
    return best


def _wait(arguments: argparse.Namespace) -> None:
    if torch.device(arguments.device).type == "cuda":
        torch.cuda.synchronize()


def build(name: str, arguments: argparse.Namespace) -> tuple[AsymmetricMASt3R, tuple[int, int]]:
    """A model and the (height, width) of its input."""
    if name in FRESH:
        torch.manual_seed(0)
        options, size = FRESH[name]
        return AsymmetricMASt3R(**options).eval().to(arguments.device), size  # pyright: ignore[reportArgumentType]
    return mast3r.load(name, device=arguments.device), (224, 224)


def peak_mb() -> float:
    """Largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def product_seconds(products: Counter[Product], arguments: argparse.Namespace) -> float:
    """Time of the products alone, each shape measured by itself."""
    total = 0.0
    for product, times in products.items():
        a = torch.randn(product.count, product.rows, product.inner, device=arguments.device)
        b = torch.randn(product.count, product.inner, product.columns, device=arguments.device)
        out = torch.empty(product.count, product.rows, product.columns, device=arguments.device)
        if product.count == 1:
            action = lambda a=a[0], b=b[0], out=out[0]: torch.mm(a, b, out=out)  # noqa: E731
        else:
            action = lambda a=a, b=b, out=out: torch.bmm(a, b, out=out)  # noqa: E731
        total += times * seconds(action, arguments)
    return total


def square_rate(arguments: argparse.Namespace) -> float:
    """Operations per second of a large square product."""
    a, b = torch.randn(2, SQUARE, SQUARE, device=arguments.device)
    out = torch.empty_like(a)
    return 2 * SQUARE**3 / seconds(lambda: torch.mm(a, b, out=out), arguments)


def bench(name: str, arguments: argparse.Namespace) -> None:
    """Print the row of one model."""
    model, (height, width) = build(name, arguments)
    views = [{"img": torch.randn(1, 3, height, width, device=arguments.device), "instance": [str(i)]} for i in (0, 1)]
    before = peak_mb()
    with torch.inference_mode():
        forward = seconds(lambda: model(*views), arguments)
    peak = peak_mb()
    with ProductRecorder() as recorder, torch.no_grad():
        model(*views)
    flops = sum(product.flops * times for product, times in recorder.products.items())
    rate = square_rate(arguments)
    alone = product_seconds(recorder.products, arguments)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{name:8} {parameters / 1e6:7.1f} M {width}x{height:<4} {flops / 1e9:9.1f} {forward * 1e3:11.1f} "
        f"{rate / 1e9:9.1f} {forward * rate / flops:9.2f} {forward / alone:12.2f} {peak:8.0f} (+{peak - before:.0f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models",
        nargs="+",
        default=["small", "vit-small", "large"],
        help="vit-small, large, or what mast3r.load takes",
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: for one thread on a machine that is busy"
    )
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, {arguments.device}, torch {torch.__version__}")
    print("model    parameters     size     GFLOP  forward/ms   GFLOP/s  x square  x own shapes  peak/MB (forward)")
    for name in arguments.models:
        bench(name, arguments)


if __name__ == "__main__":
    main()
