"""Training MASt3R: presets of our own models on rendered scenes, and the published recipe on data sets.

`train.py` parses its flags with `get_args_parser` and calls `train`. Model, criteria and data sets may be
given as constructor expressions (`--model "AsymmetricMASt3R(...)"`), which are read by a small literal
grammar that knows the names in `REGISTRY` and nothing else.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dust3r import datasets, train_state
from dust3r.checkpoint import initialize_from, save_safetensors
from dust3r.datasets.synthetic import SceneEngine, SyntheticConfig, TextureConfig
from dust3r.model import AsymmetricCroCo3DStereo
from dust3r.train_config import BatchRequest, Stage, TrainConfig
from dust3r.train_state import TrainState
from dust3r.training import (
    Criterion,
    Evaluate,
    RunPlan,
    View,
    averaged_weights,
    describe_hardware,
    model_expression,
    plan_official_run,
    seed_process,
)
from dust3r.training import get_args_parser as dust3r_args_parser
from dust3r.utils.expression import build
from dust3r.utils.processes import allow_fast_kernels, join_world, keep_freed_memory, resolve_device
from mast3r import datasets as mast3r_datasets
from mast3r import losses
from mast3r.evaluation.datasets import EvaluationScene, read_scenes
from mast3r.evaluation.quick import evaluate_real
from mast3r.initialization import calm_residual_branches, deepen_from, tie_views_and_patch_offsets
from mast3r.losses import L21, ConfLoss, ConfMatchingLoss, InfoNCE, MatchingLoss, Regr3D
from mast3r.model import AsymmetricMASt3R
from mast3r.validation import PairEngine, evaluate_synthetic

logger = logging.getLogger(__name__)

REGISTRY: dict[str, object] = {
    **{name: getattr(losses, name) for name in losses.__all__},
    "AsymmetricMASt3R": AsymmetricMASt3R,
    "AsymmetricCroCo3DStereo": AsymmetricCroCo3DStereo,
}
"""Names that --model and the criteria may use."""

inf = float("inf")


@dataclass(frozen=True)
class Validation:
    """The fixed set of rendered pairs on which a run is measured.

    Attributes:
        pairs: number of pairs.
        height: image height in pixels.
        width: image width in pixels.
        overlap: (lowest, highest) share of view 1 that view 2 sees.
        seed: number of the set.
    """

    pairs: int = 32
    height: int = 224
    width: int = 224
    overlap: tuple[float, float] = (0.2, 0.6)
    seed: int = 777_000


@dataclass(frozen=True)
class Preset:
    """A model of ours and how it is trained.

    Attributes:
        model: constructor arguments of `AsymmetricMASt3R`.
        criterion: makes the training criterion.
        config: schedule and curriculum.
        n_corres: pixel correspondences per pair for the matching loss.
        validation: what it is measured on.
        scenes: what the training pairs show.
    """

    model: Mapping[str, Any]
    criterion: Callable[[], Criterion]
    config: TrainConfig
    n_corres: int = 384
    validation: Validation = field(default_factory=Validation)
    scenes: SyntheticConfig = field(default_factory=SyntheticConfig)


def small_model(**changes: Any) -> dict[str, Any]:
    """Constructor arguments of the small models: 224 px, width 192, convolutional stem, linear pointmap head."""
    arguments = {
        "img_size": (224, 224),
        "patch_size": 16,
        "pos_embed": "RoPE100",
        "enc_embed_dim": 192,
        "enc_depth": 6,
        "enc_num_heads": 6,
        "dec_embed_dim": 192,
        "dec_depth": 4,
        "dec_num_heads": 6,
        "head_type": "catconv+linear",
        "output_mode": "pts3d+desc24",
        "detail_dim": 48,
        "depth_mode": ("exp", -inf, inf),
        "conf_mode": ("exp", 1, inf),
        "desc_conf_mode": ("exp", 0, inf),
        "two_confs": True,
        "landscape_only": False,
    }
    return {**arguments, **changes}


def small_criterion() -> Criterion:
    """Pointmap regression beside descriptor matching, whose gradient in the encoder is still ten times larger.

    The best confidence of a point is alpha / error and never below 1: with the published alpha of 0.2 a small model,
    whose errors are larger than that, says 1 everywhere.
    """
    matching = MatchingLoss(InfoNCE(0.07, mode="proper"))
    regression = ConfLoss(Regr3D(L21, norm_mode="?avg_dis"), alpha=1.0)
    return 2.0 * regression + 0.3 * ConfMatchingLoss(matching, alpha=3.0, confmode="mean", unweighted=1 / 0.3)


SMALL_CURRICULUM = (
    Stage(0.5, 112, 112, 16, overlap_start=(0.5, 0.9), overlap_end=(0.2, 0.9), difficulty=(0.0, 0.8), n_corres=768),
    Stage(1.0, 224, 224, 6, overlap_start=(0.2, 0.9), overlap_end=(0.1, 0.9), difficulty=(0.8, 1.0), n_corres=2048),
)

LONGER_CURRICULUM = (
    Stage(0.55, 112, 112, 16, overlap_start=(0.15, 0.9), overlap_end=(0.1, 0.9), difficulty=(0.8, 1.0), n_corres=512),
    Stage(1.0, 224, 224, 6, overlap_start=(0.1, 0.9), overlap_end=(0.1, 0.9), difficulty=(1.0, 1.0), n_corres=1024),
)

FINE_CURRICULUM = (
    Stage(1.0, 224, 224, 6, overlap_start=(0.1, 0.9), overlap_end=(0.1, 0.9), difficulty=(1.0, 1.0), n_corres=1024),
)

WIDE_CURRICULUM = (
    Stage(1.0, 224, 224, 8, overlap_start=(0.1, 0.8), overlap_end=(0.1, 0.8), difficulty=(1.0, 1.0), n_corres=1024),
)

SMALL = Preset(
    model=small_model(),
    criterion=small_criterion,
    config=TrainConfig(
        minutes=60,
        lr=2e-3,
        min_lr=1e-6,
        warmup=0.02,
        grad_clip=1.0,
        ema_decay=0.995,
        log_every=50,
        eval_every=1000,
        save_every=200,
        best_metric="within_8px",
        best_mode="max",
        curriculum=SMALL_CURRICULUM,
    ),
)

FINE = replace(SMALL, config=replace(SMALL.config, lr=1e-3, amp="bf16", curriculum=FINE_CURRICULUM))

DEEP = replace(FINE, model=small_model(enc_depth=12, dec_depth=8))

PRESETS: dict[str, Preset] = {
    "small-224": SMALL,
    # goes on where small-224 ended, with `--init_from` its weights: the full difficulty from the first step
    "small-224-longer": replace(SMALL, config=replace(SMALL.config, lr=1.5e-3, curriculum=LONGER_CURRICULUM)),
    # goes on from there at the full image size only, in bfloat16 wherever it runs
    "small-224-fine": FINE,
    # goes on deeper, with `--deepen_from` those weights: 33 of the 40 MB that a shipped file may have
    "small-224-deep": DEEP,
    # goes on with Muon, larger batches, fewer near views and turned cameras; for two processes or a GPU
    "small-224-wide": replace(
        DEEP,
        config=replace(DEEP.config, optimizer="muon", curriculum=WIDE_CURRICULUM),
        scenes=SyntheticConfig(turned=0.35),
    ),
    "tiny": Preset(  # for trying things out and for tests: learns nothing useful, runs in seconds
        model=small_model(
            img_size=(64, 64),
            enc_embed_dim=32,
            enc_depth=1,
            enc_num_heads=2,
            dec_embed_dim=32,
            dec_depth=1,
            dec_num_heads=2,
        ),
        criterion=small_criterion,
        config=TrainConfig(
            steps=20,
            batch_size=2,
            lr=1e-3,
            log_every=5,
            eval_every=None,
            save_every=10,
            compile=False,
            curriculum=(Stage(1.0, 64, 64),),
        ),
        n_corres=64,
        validation=Validation(pairs=4, height=64, width=64),
        scenes=SyntheticConfig(textures=TextureConfig(size=64, procedural=4), compile=False),
    ),
}


# --- sources of pairs and measurements ---


@dataclass(frozen=True)
class SceneSource:
    """Training pairs rendered by a scene engine."""

    engine: PairEngine
    n_corres: int

    def __call__(self, request: BatchRequest) -> tuple[View, View]:
        """Render the batch that `request` asks for."""
        views = self.engine.pairs(
            request.seed, request.batch_size, height=request.height, width=request.width,
            overlap=request.overlap, n_corres=request.n_corres or self.n_corres, difficulty=request.difficulty,
        )  # fmt: skip
        # All rows fill the image, so the network need not look at their true shapes.
        view1, view2 = ({k: v for k, v in view.items() if k != "true_shape"} for view in views)
        return view1, view2


class CachedPairs:
    """An engine that renders each batch of a fixed set once and keeps it."""

    def __init__(self, make_engine: Callable[[], PairEngine]) -> None:
        self._make_engine = make_engine
        self._engine: PairEngine | None = None
        self._batches: dict[tuple, tuple[View, View]] = {}

    def pairs(self, seed: int, batch_size: int, **request: Any) -> tuple[View, View]:
        """See `SceneEngine.pairs`."""
        key = (seed, batch_size, *sorted(request.items()))
        if key not in self._batches:
            self._engine = self._engine or self._make_engine()
            self._batches[key] = self._engine.pairs(seed, batch_size, **request)
        return self._batches[key]


def periodic_evaluation(
    make_engine: Callable[[], PairEngine],
    validation: Validation,
    photos: Sequence[EvaluationScene] = (),
    *,
    pairs_per_scene: int | None = None,
) -> Evaluate:
    """Measures a run on its fixed set of rendered pairs and, with names `photo_...`, on real ones."""
    engine = CachedPairs(make_engine)

    def evaluate(model: nn.Module, step: int) -> dict[str, float]:
        metrics = evaluate_synthetic(model, engine, **asdict(validation)).as_dict()
        if photos:
            measured = evaluate_real(model, photos, max_pairs_per_scene=pairs_per_scene)
            metrics |= {f"photo_{name}": value for name, value in measured.items()}
        return metrics

    return evaluate


# --- the command line ---


def get_args_parser() -> argparse.ArgumentParser:
    """Flags of `train.py`: those of our own runs and the official ones."""
    parser = dust3r_args_parser()
    # What is not given on the command line comes from the preset, or from the published defaults.
    parser.set_defaults(**{action.dest: None for action in parser._actions if action.dest != "help"})
    parser.description = "Train MASt3R on rendered scenes (--preset) or on prepared data sets (--train_dataset)."
    own = parser.add_argument_group("own runs")
    own.add_argument("--preset", choices=sorted(PRESETS), default="small-224", help="model, losses and schedule")
    own.add_argument("--textures", type=Path, help="folder of photos to cover the rendered scenes with")
    own.add_argument("--exclude_textures", nargs="+", help="names of its sub-folders to leave out")
    own.add_argument("--steps", type=int, help="length of the run in optimiser steps")
    own.add_argument("--minutes", type=float, help="length of the run in minutes, over all its sessions")
    own.add_argument("--session_minutes", type=float, help="save and end this process after so many minutes")
    own.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    own.add_argument("--resume", type=Path, help="state file, parts index or folder (default: --output_dir)")
    own.add_argument("--restart", action="store_true", help="do not continue what lies in --output_dir")
    own.add_argument("--init_from", type=Path, help="weights (.safetensors) to start from, for example shipped ones")
    own.add_argument("--deepen_from", type=Path, help="weights of a model with fewer layers to start from")
    own.add_argument("--optimizer", choices=("adamw", "muon"), help="muon: on the matrices of the blocks")
    own.add_argument("--log_every", type=int, help="steps per log line")
    own.add_argument("--eval_every", type=int, help="steps per evaluation")
    own.add_argument(
        "--eval_data", "--eval_photos", type=Path, help="also evaluate on photos: a folder of SCENE/gt.json"
    )
    own.add_argument(
        "--eval_data_pairs",
        "--eval_photos_per_scene",
        type=int,
        default=2,
        help="at most so many pairs of each scene",
    )
    own.add_argument("--save_every", type=int, help="steps per checkpoint")
    own.add_argument("--keep_every", type=int, help="steps per checkpoint that is kept for ever")
    own.add_argument("--split_mb", "--split-mb", type=float, help="also write checkpoints as parts of so many MB")
    own.add_argument("--grad_clip", type=float, help="largest gradient norm")
    own.add_argument("--ema_decay", type=float, help="decay of the averaged weights")
    own.add_argument("--symmetrize", action=argparse.BooleanOptionalAction, help="show pairs in both orders")
    own.add_argument("--compile", action=argparse.BooleanOptionalAction, help="compile the network and loss")
    own.add_argument(
        "--compile_scenes", action=argparse.BooleanOptionalAction, help="compile the renderer of the scenes"
    )
    own.add_argument("--export", type=Path, help="write the averaged weights (.safetensors) and their card here")
    own.add_argument("--note", default="", help="a sentence for the card, for example what the textures are")
    return parser


def train(args: argparse.Namespace) -> TrainState:
    """Run `train.py` with the parsed flags; returns the state at the end."""
    device = resolve_device(args.device)
    allow_fast_kernels(device, benchmark=not args.disable_cudnn_benchmark)
    keep_freed_memory()
    with join_world(device) as world:
        plan = plan_loader_run(args, device) if args.train_dataset else plan_own_run(args, device)
        seed_process(plan.config.seed, world)
        resume = None if args.restart else args.resume or "auto"
        state = plan.run(world=world, resume=resume)
        if args.export and world.is_main:
            hardware = f"{world.size} x {describe_hardware(device)}"
            export_weights(state, plan, args.export, hardware=hardware, note=args.note)
    return state


def plan_loader_run(args: argparse.Namespace, device: torch.device) -> RunPlan:
    """The published recipe on prepared data sets; flags that were not given have their official defaults."""
    defaults = vars(dust3r_args_parser().parse_args([]))
    defaults["model"] = model_expression(AsymmetricMASt3R(**PRESETS[args.preset].model))
    given = {name: value for name, value in vars(args).items() if value is not None}
    return plan_official_run(
        argparse.Namespace(**{**vars(args), **defaults, **given}), {**REGISTRY, **data_sets()}, device
    )


def data_sets() -> dict[str, object]:
    """Names that --train_dataset and --test_dataset may use."""
    return {name: getattr(module, name) for module in (datasets, mast3r_datasets) for name in module.__all__}


def plan_own_run(args: argparse.Namespace, device: torch.device) -> RunPlan:
    """A run of a preset on rendered scenes, changed by the flags that were given."""
    preset = PRESETS[args.preset]
    config = changed_config(preset.config, args)
    torch.manual_seed(config.seed)  # the same initial weights on every process
    model = build_model(args, preset).to(device)
    criterion = build(args.train_criterion, REGISTRY) if args.train_criterion else preset.criterion()
    photos = read_scenes(args.eval_data) if args.eval_data else ()
    excluded = tuple(args.exclude_textures or ())
    textures = replace(preset.scenes.textures, folder=args.textures, exclude=excluded)
    compiled = preset.scenes.compile if args.compile_scenes is None else args.compile_scenes
    scenes = replace(preset.scenes, textures=textures, compile=compiled)
    unseen = replace(scenes, textures=replace(textures, split="test"), compile=False, turned=0.0)  # the same for all
    return RunPlan(
        model=model,
        criterion=criterion,
        source=SceneSource(SceneEngine(scenes, device), preset.n_corres),
        config=config,
        output_dir=Path(args.output_dir or f"runs/{args.preset}"),
        evaluate=periodic_evaluation(
            lambda: SceneEngine(unseen, device),
            preset.validation,
            photos,
            pairs_per_scene=args.eval_data_pairs,
        ),
        data="procedural scenes rendered while training, "
        + ("procedural textures" if args.textures is None else f"photo textures from {args.textures.name}"),
    )


def build_model(args: argparse.Namespace, preset: Preset) -> nn.Module:
    """The network to train: from --model or the preset, from scratch or from given weights."""
    model = build(args.model, REGISTRY) if args.model else AsymmetricMASt3R(**preset.model)
    weights = args.init_from or args.pretrained
    if args.deepen_from is not None:
        deepen_from(model, AsymmetricMASt3R.from_pretrained(args.deepen_from))
    elif weights is not None:
        initialize_from(model, weights)
    elif isinstance(model, AsymmetricMASt3R):
        calm_residual_branches(model)
        tie_views_and_patch_offsets(model)
    return model


def changed_config(config: TrainConfig, args: argparse.Namespace) -> TrainConfig:
    """`config` with the flags that were given."""
    names = (
        "steps", "minutes", "session_minutes", "batch_size", "accum_iter", "optimizer", "lr", "min_lr", "weight_decay",
        "seed", "grad_clip", "ema_decay", "symmetrize", "compile", "log_every", "eval_every", "save_every",
        "keep_every", "split_mb",
    )  # fmt: skip
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if ("steps" in given) != ("minutes" in given):
        given = {"steps": None, "minutes": None, **given}  # the length that was given replaces the preset's
    if args.print_freq is not None:
        given.setdefault("log_every", args.print_freq)
    if args.amp is not None:
        given["amp"] = "bf16" if args.amp else "off"
    if "batch_size" in given:
        given["curriculum"] = tuple(replace(stage, batch_size=None) for stage in config.curriculum)
    return replace(config, **given)


def export_weights(state: TrainState, plan: RunPlan, path: Path, *, hardware: str, note: str = "") -> None:
    """Write the averaged weights in half precision and a JSON card beside them.

    Args:
        state: the run at its end.
        plan: how it was trained.
        path: the `.safetensors` file to write; the card has the same name with `.json`.
        hardware: what it was trained on.
        note: a sentence for the card.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with averaged_weights(state) as model:
        metrics = dict(plan.evaluate(model, state.counters.step)) if plan.evaluate else {}
        save_safetensors(model, path, dtype=torch.float16)
    card = {
        "name": path.stem,
        "licence": "Apache-2.0",
        "scale_status": "metric-predicted",
        "model": model_expression(state.model),
        "parameters": sum(parameter.numel() for parameter in state.model.parameters()),
        "data": plan.data,
        "note": note,
        "steps": state.counters.step,
        "pairs": state.counters.pairs,
        "hours": round(state.counters.seconds / 3600, 3),
        "hardware": hardware,
        "metrics": metrics,
        "criterion": repr(plan.criterion),
        "config": asdict(plan.config),
    }
    text = json.dumps(card, indent=2)
    train_state.write_atomically(path.with_suffix(".json"), lambda file: file.write(text.encode()))
    logger.info("exported %s", path)
