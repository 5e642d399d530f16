"""Many photos on a laptop: `python benchmarks/bench_reconstruction.py [--photos 100] [--threads 2] [--kill]`.

Renders photos of one room along a path and reconstructs them with the shipped model, in a process of its own so that
its peak memory is its own. With `--kill` the first run is killed (-9) halfway and the second goes on from its cache.
Prints the time of every stage, the peak memory beyond that of the loaded model, and how good the cameras are.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image
import torch

BAR_GB = 4.0


def render(folder: Path, count: int, size: int, seed: int) -> None:
    """Photos of a room along a closed path, and their poses in the gt.json form."""
    from dust3r.datasets.synthetic import SceneEngine, SyntheticConfig, TextureConfig
    from dust3r.datasets.synthetic.cameras import Cameras, draw_intrinsics, look_at
    from dust3r.datasets.synthetic.rng import Rng

    config = SyntheticConfig(TextureConfig(procedural=24), families=(("room", 1.0),), compile=False)
    engine = SceneEngine(config)
    scenes, indoor = engine._draw_scenes(Rng(seed), 1)
    low, high = scenes.plan.eye_low[0], scenes.plan.eye_high[0]
    turn = torch.linspace(0, 2 * np.pi, 2 * ((count + 1) // 2) + 1)[:-1]
    circle = torch.stack([turn.cos(), turn.sin(), 0.5 * (3 * turn).sin()], 1)
    eye = (low + high) / 2 + 0.35 * (high - low) * circle
    target = (low + high) / 2 - 1.5 * (high - low) * circle * torch.tensor([1.0, 1.0, 0.2])
    pose = look_at(eye, target, torch.zeros(len(eye)))
    K = draw_intrinsics(Rng(seed), torch.full((len(eye),), 75.0), size, size)
    images = {}
    for k in range(0, len(eye) - 1, 2):
        cameras = Cameras(K[k : k + 2], pose[k : k + 2])
        # the same stream every time: the light must not change along the path
        rendering = engine._render(Rng(seed + 1), scenes, cameras, indoor, 0.0, size, size)
        for n in range(2):
            name = f"images/{k + n:04d}.png"
            pixels = ((rendering.image[n].permute(1, 2, 0) * 0.5 + 0.5) * 255).round().byte().numpy()
            (folder / "images").mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(pixels).save(folder / name)
            world_to_cam = np.linalg.inv(pose[k + n].double().numpy())
            images[name] = {"K": K[k + n].tolist(), "T_w2c": world_to_cam.tolist()}
    content = {"images": dict(list(images.items())[:count]), "gt_confidence": "high", "metric": True}
    (folder / "gt.json").write_text(json.dumps(content))


def child(folder: Path, cache: Path, threads: int, graph: str) -> None:
    """Reconstruct, and print what it took as one line of JSON."""
    import mast3r
    from mast3r.evaluation.scenes import judge_scene, read_posed_scene

    torch.set_num_threads(threads)
    model = mast3r.load("small")
    plans = []
    before = peak_gb()
    start, cpu = time.perf_counter(), time.process_time()
    truth = read_posed_scene(folder)
    assert truth is not None
    scene = mast3r.reconstruct(model, truth.paths, scene_graph=graph, cache_dir=cache, on_plan=plans.append)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    found = {k: scene.images[k].pose for k in scene.registered if scene.images[k].component == 0}
    score = judge_scene(truth, {k: pose for k, pose in found.items() if pose is not None}, seconds)
    report = {
        "plan": str(plans[0]),
        "peak_gb": peak_gb() - before,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "timings": dict(scene.timings),
        "scene": repr(scene),
        "score": str(score),
    }
    print(json.dumps(report))


def peak_gb() -> float:
    """Largest memory this process has had so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def run_child(args: argparse.Namespace, folder: Path, cache: Path, *, kill_at: int | None = None) -> dict | None:
    """Run the reconstruction in a process; killed when the cache has `kill_at` entries, it returns nothing."""
    command = [sys.executable, __file__, "--child", str(folder), "--cache", str(cache), "--graph", args.graph]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    process = subprocess.Popen(
        [*command, "--threads", str(args.threads)], stdout=subprocess.PIPE, env=environment, text=True
    )
    while kill_at is not None and process.poll() is None:
        if entries(cache) >= kill_at:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return None
        time.sleep(0.2)
    output, _ = process.communicate()
    return json.loads(output.splitlines()[-1])


def entries(cache: Path) -> int:
    """Number of entries in a cache."""
    return sum(1 for _ in cache.glob("*/*.safetensors"))


def show(report: dict) -> None:
    print(report["plan"])
    for name, seconds in report["timings"].items():
        print(f"  {name:8s} {seconds:8.1f} s")
    print(f"  total    {report['seconds']:8.1f} s, {report['cpu_seconds']:.1f} s of CPU")
    print(report["scene"])
    print(report["score"])
    verdict = "within" if report["peak_gb"] < BAR_GB else "ABOVE"
    print(f"peak memory beyond the loaded model: {report['peak_gb']:.2f} GB, {verdict} the bar of {BAR_GB:.0f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=100)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--graph", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kill", action="store_true", help="kill the first run halfway and go on from its cache")
    parser.add_argument("--folder", type=Path, help="keep photos and cache here")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        child(args.child, args.cache, args.threads, args.graph)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        if not (folder / "gt.json").exists():
            render(folder, args.photos, args.size, args.seed)
            print(f"rendered {args.photos} photos of {args.size} px")
        cache = folder / "cache"
        if args.kill:
            start = time.perf_counter()
            run_child(args, folder, cache, kill_at=args.photos * 4)
            print(f"killed after {time.perf_counter() - start:.0f} s with {entries(cache)} entries; going on")
        show(run_child(args, folder, cache) or {})


if __name__ == "__main__":
    main()
