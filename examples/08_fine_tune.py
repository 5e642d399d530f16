"""Train a model further on rendered scenes: `python examples/08_fine_tune.py --textures PHOTOS/ --steps 500`.

This is the whole loop, in plain sight. `mast3r train` does the same with schedules, averaged weights, evaluation,
checkpoints and many GPUs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import mast3r
from croco.checkpoint import save_safetensors
from dust3r.datasets.synthetic import SceneEngine, SyntheticConfig, TextureConfig
from mast3r.training import small_criterion


def main() -> None:
    """Parse, train, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="small", help="where to start from")
    parser.add_argument("--textures", type=Path, help="photos to cover the scenes with; procedural ones without")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--size", type=int, default=112, help="side of the pictures in pixels, a multiple of 16")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--out", type=Path, default=Path("tuned.safetensors"))
    args = parser.parse_args()

    model = mast3r.load(args.weights).train()
    engine = SceneEngine(SyntheticConfig(TextureConfig(args.textures), compile=False))
    criterion = small_criterion()  # pointmap regression and descriptor matching
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05, betas=(0.9, 0.95))

    for step in range(args.steps):
        view1, view2 = engine.pairs(step, args.batch_size, height=args.size, width=args.size, overlap=(0.3, 0.9))
        pred1, pred2 = model({"img": view1["img"]}, {"img": view2["img"]})
        loss, details = criterion(view1, view2, pred1, pred2)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 10 == 0:
            parts = ", ".join(f"{name} {float(value):.3f}" for name, value in details.items())
            print(f"step {step}: loss {loss.item():.3f} ({parts})")

    save_safetensors(model.eval(), args.out, dtype=torch.float16)
    print(f"wrote {args.out}; mast3r.load({str(args.out)!r}) reads it")


if __name__ == "__main__":
    main()
