"""Helpers of the network tests: build the model of a golden fixture, run its cases, compare."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from croco.checkpoint import alias_groups
from croco.models.croco import CroCoNet
from dust3r.model import AsymmetricCroCo3DStereo
from mast3r.model import AsymmetricMASt3R
from tests.conftest import golden_dir, load_golden, parse_kwargs, recipe_weight

CLASSES = {cls.__name__: cls for cls in (CroCoNet, AsymmetricCroCo3DStereo, AsymmetricMASt3R)}

# small enough for a CPU second, deep enough for every branch
TINY = {
    "img_size": (64, 64),
    "pos_embed": "RoPE100",
    "enc_embed_dim": 32,
    "enc_depth": 2,
    "enc_num_heads": 2,
    "dec_embed_dim": 32,
    "dec_depth": 4,
    "dec_num_heads": 2,
}
NARROW_DPT = {"dpt_feature_dim": 16, "dpt_layer_dims": (8, 12, 16, 24), "dpt_last_dim": 8}


def tiny_mast3r(**kwargs) -> AsymmetricMASt3R:
    """A MASt3R model of a few thousand weights, ready for inference."""
    torch.manual_seed(0)
    defaults = {
        "head_type": "catmlp+linear",
        "output_mode": "pts3d+desc8",
        "two_confs": True,
        "desc_conf_mode": ("exp", 0, float("inf")),
        "desc_hidden_ratio": 1.0,
        "landscape_only": False,
        "detail_dim": 4 * (kwargs.get("head_type") == "catconv+linear"),
    }
    return AsymmetricMASt3R(**{**TINY, **NARROW_DPT, **defaults, **kwargs}).eval()


def recipe_state(model: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Weights of the golden recipe for every parameter; computed buffers keep their values."""
    own = model.state_dict()
    buffers = {name for name, _ in model.named_buffers()}
    state = {}
    for keys in alias_groups(model):
        value = own[keys[0]] if keys[0] in buffers else recipe_weight(keys[0], own[keys[0]].shape, seed)
        state.update(dict.fromkeys(keys, value))
    return state


def golden_model(fixture) -> torch.nn.Module:
    """The model of a fixture with its weights, whether stored or given as a recipe."""
    model = CLASSES[fixture.meta["cls"]](**parse_kwargs(fixture.meta["kwargs"]))
    weights = {key[2:]: value for key, value in fixture.tensors.items() if key.startswith("w.")}
    name = fixture.meta.get("weights", "")
    if name.endswith(".safetensors"):
        weights = load_golden(name.removesuffix(".safetensors")).tensors
    if not weights:
        weights = recipe_state(model, fixture.meta["weight_seed"])
    for key, (total, magnitude) in fixture.meta.get("weight_checksums", {}).items():
        checksum = torch.tensor([weights[key].double().sum(), weights[key].double().abs().sum()])
        torch.testing.assert_close(checksum, torch.tensor([total, magnitude]).double(), rtol=1e-6, atol=1e-4)
    model.load_state_dict(weights)
    return model.eval()


def golden_views(fixture, case: str, dtype: torch.dtype = torch.float32) -> tuple[dict, dict]:
    """The two input views of one case."""
    info = fixture.meta["cases"][case]
    first, second = (
        {
            "img": fixture.tensors[f"{case}.in.img{i}"].to(dtype),
            "true_shape": fixture.tensors[f"{case}.in.true_shape{i}"],
            "instance": info[f"instance{i}"],
        }
        for i in (1, 2)
    )
    return first, second


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference relative to the largest expected magnitude."""
    actual, expected = actual.detach(), expected.detach()
    return float((actual - expected).abs().max() / expected.abs().max())


def assert_outputs(fixture, prefix: str, results, bound: float) -> None:
    """Compare the two result dicts of a forward pass with `{prefix}{1|2}.{key}`."""
    compared = 0
    for i, result in enumerate(results, start=1):
        for key, value in result.items():
            expected = fixture.tensors.get(f"{prefix}{i}.{key}")
            if expected is not None:
                assert value.shape == expected.shape
                assert relative_error(value, expected) <= bound, (prefix, i, key)
                compared += 1
    assert compared


def manifests() -> list[dict]:
    """The published state-dict manifests, from the golden folder or the repository's own copy."""
    folders = (golden_dir() / "manifests", Path(__file__).parent / "golden" / "manifests")
    folder = next(folder for folder in folders if folder.is_dir())
    return [json.loads(p.read_text()) for p in sorted(folder.glob("*.json")) if p.name != "summary.json"]
