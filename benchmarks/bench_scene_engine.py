"""Rendering against training: `python benchmarks/bench_scene_engine.py [--device cuda] [--size 224]`.

Prints the time to render a pair, the time of the shipped model's training step for a pair, and their ratio, which has
to stay below one for a training that makes its own data.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from dust3r.datasets.synthetic import SceneEngine, SyntheticConfig, TextureConfig
from dust3r.train_step import LossAndGradient
from dust3r.utils.processes import keep_freed_memory
from mast3r.model import AsymmetricMASt3R
from mast3r.training import PRESETS


def seconds(action: Callable[[int], object], device: torch.device, repeats: int) -> float:
    """Median wall seconds of `action(i)` after one warm-up."""
    times = []
    for i in range(repeats + 1):
        start = time.perf_counter()
        action(i)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[repeats // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="compile the training step too")
    args = parser.parse_args()
    device, preset = torch.device(args.device), PRESETS["small-224-deep"]
    keep_freed_memory()  # as train.py does
    engine = SceneEngine(SyntheticConfig(TextureConfig(procedural=24)), device)

    def render(seed: int):
        return engine.pairs(seed, args.batch, height=args.size, width=args.size, n_corres=1024)

    view1, view2 = ({k: v for k, v in view.items() if k != "true_shape"} for view in render(0))
    model = AsymmetricMASt3R(**preset.model).to(device).train()
    step = LossAndGradient(model, preset.criterion(), bf16=preset.config.uses_bf16(device), compile=args.compile)
    rendering = seconds(render, device, args.repeats) / args.batch
    training = seconds(lambda _: step(view1, view2), device, args.repeats) / args.batch
    threads = torch.get_num_threads()
    print(f"{args.size} px, batch {args.batch}, {device}, {threads} threads, torch {torch.__version__}")
    print(f"rendering  {1e3 * rendering:8.1f} ms a pair")
    print(f"training   {1e3 * training:8.1f} ms a pair")
    print(f"ratio      {rendering / training:8.2f}")


if __name__ == "__main__":
    main()
