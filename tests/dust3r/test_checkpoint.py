"""Reading weights: golden files, round trips, and files that are damaged, foreign or hostile."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from croco.models.croco import CroCoNet
from dust3r.checkpoint import CheckpointError, LoadReport, initialize_from, save_safetensors, unpickle
from dust3r.model import AsymmetricCroCo3DStereo, load_model
from mast3r.model import AsymmetricMASt3R
from tests.conftest import golden_dir
from tests.network_goldens import TINY, relative_error, tiny_mast3r

DUST3R = "AsymmetricCroCo3DStereo"
CROCO = {**TINY, "img_size": 64}
LITERALS = {**TINY, "patch_embed_cls": "ManyAR_PatchEmbed", "landscape_only": True}


def model_string(cls: str = DUST3R, **kwargs) -> str:
    return f"{cls}({', '.join(f'{key}={value!r}' for key, value in {**LITERALS, **kwargs}.items())})"


def tiny() -> AsymmetricCroCo3DStereo:
    torch.manual_seed(0)
    return AsymmetricCroCo3DStereo(**TINY)


def write_pth(path: Path, state: dict, text: str = model_string(), **extra) -> Path:
    """A training file as the official code writes it."""
    args = argparse.Namespace(model=text, lr=1e-4, output_dir="runs/a")
    torch.save({"args": args, "model": state, "epoch": 3, **extra}, path)
    return path


def assert_same_weights(model: torch.nn.Module, state: dict) -> None:
    own = model.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[key], state[key]) for key in own)


# ---------------------------------------------------------------- golden files


def golden_file(name: str) -> Path:
    folder = golden_dir() / "checkpoints"
    return folder / name if (folder / name).is_dir() else folder / f"{name}.pth"


@pytest.mark.parametrize("mmap", [False, True])
def test_golden_checkpoints(golden, mmap):
    fixture = golden("checkpoints")
    t = fixture.tensors
    for name in fixture.meta["files"]:
        model = AsymmetricCroCo3DStereo.from_pretrained(golden_file(name), mmap=mmap)
        assert not model.training
        assert not model.landscape_only
        assert type(model.patch_embed).__name__ == "PatchEmbedDust3R"
        with torch.no_grad():
            first, second = model({"img": t["img1"]}, {"img": t["img2"]})
        outputs = {"pts3d": first["pts3d"], "conf1": first["conf"], "conf2": second["conf"]}
        outputs["pts3d_in_other_view"] = second["pts3d_in_other_view"]
        compared = [key for key in outputs if f"{name}.{key}" in t]
        assert compared
        for key in compared:
            assert relative_error(outputs[key], t[f"{name}.{key}"]) < 1e-5


def test_golden_model_string_builds_the_model(golden):
    fixture = golden("checkpoints")
    state = unpickle(golden_file("tiny_dust3r_official"))
    assert state["args"].model == fixture.meta["model_string"]


def test_hub_folder_has_no_aliases(golden):
    dropped = golden("checkpoints").meta["hf_dpt_keys_dropped"]
    model = AsymmetricCroCo3DStereo.from_pretrained(golden_file("tiny_hf"))
    assert not set(dropped) & set(load_file(golden_file("tiny_hf") / "model.safetensors"))
    assert model.config["conf_mode"] == ("exp", 1, float("inf"))


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize("head_type", ["catmlp+linear", "catmlp+dpt"])
def test_safetensors_round_trip(tmp_path, head_type):
    model = tiny_mast3r(head_type=head_type, conf_mode=("exp", 1, float("inf")))
    path = tmp_path / "small.safetensors"
    save_safetensors(model, path, metadata={"licence": "Apache-2.0"})
    loaded = AsymmetricMASt3R.from_pretrained(path)
    assert_same_weights(loaded, model.state_dict())
    assert {**loaded.config, "patch_embed_cls": None} == {**model.config, "patch_embed_cls": None}
    assert loaded.descriptor == model.descriptor
    assert loaded.conf_mode == ("exp", 1, float("inf"))
    with safe_open(path, "pt") as file:
        assert file.metadata()["licence"] == "Apache-2.0"
        assert json.loads(file.metadata()["config"])["cls"] == "AsymmetricMASt3R"
        assert not any("layer_rn." in key for key in file.keys())
    assert [p.name for p in tmp_path.iterdir()] == ["small.safetensors"]


def test_half_precision_is_stored_and_widened(tmp_path):
    model = tiny_mast3r()
    save_safetensors(model, tmp_path / "half.safetensors", dtype=torch.float16)
    save_safetensors(model, tmp_path / "full.safetensors")
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * (tmp_path / "full.safetensors").stat().st_size
    loaded = AsymmetricMASt3R.from_pretrained(tmp_path / "half.safetensors")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    half = AsymmetricMASt3R.from_pretrained(tmp_path / "half.safetensors", dtype=torch.float16)
    assert {p.dtype for p in half.parameters()} == {torch.float16}


def test_writing_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_safetensors(tiny(), path)
    before = path.read_bytes()
    monkeypatch.setattr("croco.checkpoint.save_file", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_safetensors(tiny(), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_file_can_be_overwritten_while_the_model_lives(tmp_path):
    path = write_pth(tmp_path / "last.pth", tiny().state_dict())
    model = AsymmetricCroCo3DStereo.from_pretrained(path)
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    path.write_bytes(b"")
    assert_same_weights(model, expected)


@pytest.mark.parametrize("flag", ["landscape_only=True", "landscape_only = True", "landscape_only=False"])
def test_training_file_becomes_an_inference_model(tmp_path, flag):
    text = model_string().replace("landscape_only=True", flag)
    path = write_pth(tmp_path / "checkpoint-best.pth", tiny().state_dict(), text, best_so_far=np.float64(0.5))
    model = load_model(path, "cpu")
    assert not model.landscape_only
    assert model.config["patch_embed_cls"] == "PatchEmbedDust3R"
    assert_same_weights(model, tiny().state_dict())
    assert AsymmetricCroCo3DStereo.from_pretrained(path, landscape_only=True).landscape_only


def test_legacy_torch_format(tmp_path):
    state = tiny().state_dict()
    content = {"args": argparse.Namespace(model=model_string()), "model": state}
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same_weights(AsymmetricCroCo3DStereo.from_pretrained(tmp_path / "old.pth"), state)


def test_scores_of_numpy_1_files(tmp_path):
    """NumPy 1 pickled its scalars under another module name."""
    path = write_pth(tmp_path / "new.pth", tiny().state_dict(), best_so_far=np.float64(0.25))
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "old.pth", "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert unpickle(tmp_path / "old.pth")["best_so_far"] == 0.25
    assert_same_weights(AsymmetricCroCo3DStereo.from_pretrained(tmp_path / "old.pth"), tiny().state_dict())


def test_one_decoder_fills_both(tmp_path):
    state = {key: value for key, value in tiny().state_dict().items() if not key.startswith("dec_blocks2")}
    model = AsymmetricCroCo3DStereo.from_pretrained(write_pth(tmp_path / "one.pth", state))
    for first, second in zip(model.dec_blocks.parameters(), model.dec_blocks2.parameters()):
        assert torch.equal(first, second)
        assert first.data_ptr() != second.data_ptr()


def test_either_alias_name_is_accepted(tmp_path):
    model = tiny_mast3r(head_type="catmlp+dpt")
    save_safetensors(model, tmp_path / "a.safetensors")
    state = load_file(tmp_path / "a.safetensors")
    for i in range(4):
        for head in ("downstream_head1", "downstream_head2"):
            value = state.pop(f"{head}.dpt.scratch.layer{i + 1}_rn.weight")
            state[f"{head}.dpt.scratch.layer_rn.{i}.weight"] = value
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        save_file(state, tmp_path / "b.safetensors", metadata=file.metadata())
    assert_same_weights(AsymmetricMASt3R.from_pretrained(tmp_path / "b.safetensors"), model.state_dict())


def test_loading_needs_no_random_numbers(tmp_path):
    path = write_pth(tmp_path / "a.pth", tiny().state_dict())
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    AsymmetricCroCo3DStereo.from_pretrained(path)
    assert torch.equal(torch.rand(1), expected)


def test_loaded_model_trains(tmp_path):
    model = AsymmetricCroCo3DStereo.from_pretrained(write_pth(tmp_path / "a.pth", tiny().state_dict())).train()
    assert all(parameter.requires_grad for parameter in model.parameters())
    result, _ = model({"img": torch.zeros(1, 3, 32, 48)}, {"img": torch.zeros(1, 3, 32, 48)})
    result["pts3d"].sum().backward()
    assert model.patch_embed.proj.weight.grad is not None


# ---------------------------------------------------------------- CroCo weights


@pytest.mark.parametrize("pos_embed", ["RoPE100", "cosine"])
def test_croco_files(tmp_path, pos_embed):
    kwargs = {**CROCO, "pos_embed": pos_embed}
    model = CroCoNet(**kwargs)
    torch.save({"model": model.state_dict(), "croco_kwargs": kwargs}, tmp_path / "croco.pth")
    assert_same_weights(CroCoNet.from_pretrained(tmp_path / "croco.pth"), model.state_dict())
    save_safetensors(model, tmp_path / "croco.safetensors")
    assert_same_weights(CroCoNet.from_pretrained(tmp_path / "croco.safetensors"), model.state_dict())


def test_croco_file_without_arguments_has_the_class_defaults(tmp_path):
    with torch.device("meta"):
        keys = CroCoNet().state_dict().keys()
    torch.save({"model": {key: torch.zeros(1) for key in keys}}, tmp_path / "v1.pth")
    with pytest.raises(CheckpointError, match="another shape"):  # built with the defaults, all keys known
        CroCoNet.from_pretrained(tmp_path / "v1.pth")


def test_croco_initialises_dust3r(tmp_path):
    croco = CroCoNet(**CROCO)
    torch.save({"model": croco.state_dict(), "croco_kwargs": CROCO}, tmp_path / "croco.pth")
    model = tiny()
    head = model.downstream_head1.proj.weight.clone()
    report = initialize_from(model, tmp_path / "croco.pth")
    assert isinstance(report, LoadReport)
    assert set(report.ignored) == {"prediction_head.weight", "prediction_head.bias"}
    assert report.missing
    assert all(key.startswith("downstream_head") for key in report.missing)
    assert torch.equal(model.dec_blocks2[1].mlp.fc1.weight, croco.dec_blocks[1].mlp.fc1.weight)
    assert torch.equal(model.downstream_head1.proj.weight, head)


def test_dust3r_initialises_mast3r(tmp_path):
    path = write_pth(tmp_path / "dust3r.pth", tiny().state_dict())
    report = initialize_from(tiny_mast3r(), path)
    assert report.missing
    assert all(".head_local_features." in key for key in report.missing)
    assert report.ignored == ()


def test_initialisation_that_does_not_fit(tmp_path):
    path = write_pth(tmp_path / "dust3r.pth", tiny().state_dict())
    with pytest.raises(CheckpointError, match="does not fit"):
        initialize_from(tiny_mast3r(enc_embed_dim=48), path)
    torch.save({"model": {"x": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="no weight has a known name"):
        initialize_from(tiny(), tmp_path / "other.pth")


# ---------------------------------------------------------------- foreign, damaged, hostile


def refused(path, match, cls=AsymmetricCroCo3DStereo, **kwargs) -> None:
    """Loading raises one clear sentence."""
    with pytest.raises(CheckpointError, match=match) as caught:
        cls.from_pretrained(path, **kwargs)
    assert "\n" not in str(caught.value)


def test_wrong_architecture(tmp_path):
    dust3r = write_pth(tmp_path / "dust3r.pth", tiny().state_dict())
    save_safetensors(tiny_mast3r(), tmp_path / "mast3r.safetensors")
    torch.save({"model": CroCoNet(**CROCO).state_dict(), "croco_kwargs": CROCO}, tmp_path / "croco.pth")
    refused(dust3r, "'AsymmetricCroCo3DStereo', not 'AsymmetricMASt3R'", AsymmetricMASt3R)
    refused(tmp_path / "mast3r.safetensors", "'AsymmetricMASt3R', not 'AsymmetricCroCo3DStereo'")
    refused(tmp_path / "croco.pth", "'CroCoNet', not")
    refused(dust3r, "not 'CroCoNet'", CroCoNet)
    refused(golden_file("tiny_hf"), "not 'AsymmetricMASt3R'", AsymmetricMASt3R)


def test_missing_and_unexpected_keys(tmp_path):
    state = tiny().state_dict()
    less = {key: value for key, value in state.items() if key != "enc_norm.bias"}
    refused(write_pth(tmp_path / "a.pth", less), r"lacks 1 weights \(enc_norm.bias\)")
    more = {**state, "extra.weight": torch.zeros(1)}
    refused(write_pth(tmp_path / "b.pth", more), r"too many: 1 weights \(extra.weight\)")
    changed = {**state, "enc_norm.bias": torch.zeros(3)}
    refused(write_pth(tmp_path / "c.pth", changed), r"enc_norm.bias \(3,\) instead of \(32,\)")


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch OWNED')",
        f"{DUST3R}(img_size=__import__('os').system('touch OWNED'))",
        f"{DUST3R}(unknown_option=1)",
        f"{DUST3R}(pos_embed='nonsense')",
        f"{DUST3R}(img_size='abc')",
        f"{DUST3R}(enc_depth=10**9)",
        f"{DUST3R}(enc_depth=1000000000)",
        f"{DUST3R}(enc_num_heads=0)",
        f"{DUST3R}(",
    ],
)
def test_bad_model_strings(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    refused(write_pth(tmp_path / "bad.pth", tiny().state_dict(), text), r"bad\.pth")
    assert not (tmp_path / "OWNED").exists()


class Exploit:
    """Runs a command when unpickled without restriction."""

    def __reduce__(self):
        return os.system, ("touch OWNED",)


class Disguised:
    """Calls an allowed class with hostile arguments."""

    def __reduce__(self):
        return exec, ("open('OWNED', 'w')",)


@pytest.mark.parametrize("hostile", [Exploit(), Disguised()], ids=["system", "exec"])
@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_pickle_executes_nothing(tmp_path, monkeypatch, hostile, zipped):
    monkeypatch.chdir(tmp_path)
    content = {"args": argparse.Namespace(model=model_string(), evil=hostile), "model": tiny().state_dict()}
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(content["args"]))
    for name in ("evil.pth", "plain.pth"):
        refused(tmp_path / name, "nothing in it was executed|cannot be read")
    assert not (tmp_path / "OWNED").exists()


def test_evil_file_would_work_without_restriction(tmp_path, monkeypatch):
    """The attack above is real: an unrestricted unpickler runs it."""
    monkeypatch.chdir(tmp_path)
    torch.save({"evil": Exploit()}, tmp_path / "evil.pth")
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert (tmp_path / "OWNED").exists()


@pytest.mark.parametrize("size", [0, 1, 100, 5000, 60_000, -1])
def test_truncated_files(tmp_path, size):
    whole = write_pth(tmp_path / "whole.pth", tiny().state_dict()).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[:size])
    refused(tmp_path / "cut.pth", r"cut\.pth")
    save_safetensors(tiny(), tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:size])
    refused(tmp_path / "cut.safetensors", r"cut\.safetensors cannot be read")


def test_other_files(tmp_path):
    (tmp_path / "text.pth").write_text("hello")
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as file:
        file.writestr("a.txt", "hello")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"state": {}}, tmp_path / "dict.pth")
    torch.save({"model": {"x": 1}}, tmp_path / "numbers.pth")
    for name in ("text", "zip", "list", "dict", "numbers"):
        refused(tmp_path / f"{name}.pth", rf"{name}\.pth")
    refused(tmp_path / "missing.pth", "no weights at")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "cannot be read")
    save_file({"x": torch.zeros(1)}, tmp_path / "no_config.safetensors")
    refused(tmp_path / "no_config.safetensors", "config is missing")


@pytest.mark.parametrize("config", ["", "[]", "{}", '{"cls": 1}', '{"cls": "CroCoNet", "kwargs": 3}', "[" * 10**5])
def test_damaged_config(tmp_path, config):
    path = tmp_path / "model.safetensors"
    save_file(tiny().state_dict(), path, metadata={"config": config})
    refused(path, "damaged|not 'AsymmetricCroCo3DStereo'")
    save_file(tiny().state_dict(), path)
    (tmp_path / "config.json").write_text(config)
    refused(tmp_path, "damaged|lacks|another shape|too many|config is missing|does not describe")


def test_hub_is_reported_when_offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    name = "naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt"
    for source in (name, name.removeprefix("naver/")):
        refused(
            source,
            "cannot get 'naver/DUSt3R.*Hugging Face Hub",
            local_files_only=True,
            cache_dir="/nonexistent",
        )
    refused("no such name", "no weights at 'no such name'")


def test_hub_download_is_a_folder(monkeypatch):
    folder = golden_file("tiny_hf")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name, **_: str(folder / name))
    model = AsymmetricCroCo3DStereo.from_pretrained("someone/tiny", revision="main")
    assert isinstance(model, AsymmetricCroCo3DStereo)


def test_packaged_names(tmp_path, monkeypatch):
    monkeypatch.setattr(AsymmetricMASt3R, "packaged_weights", tmp_path)
    save_safetensors(tiny_mast3r(), tmp_path / "pocket.safetensors")
    assert isinstance(AsymmetricMASt3R.from_pretrained("pocket"), AsymmetricMASt3R)


def test_models_that_cannot_be_described(tmp_path):
    with pytest.raises(CheckpointError, match="cannot describe a Linear"):
        save_safetensors(torch.nn.Linear(1, 1), tmp_path / "a.safetensors")
    custom = CroCoNet(**{**CROCO, "norm_layer": torch.nn.LayerNorm})
    with pytest.raises(CheckpointError, match="cannot describe a CroCoNet"):
        save_safetensors(custom, tmp_path / "b.safetensors")
    assert not list(tmp_path.iterdir())


def test_import_does_not_load_the_hub_client():
    code = "import sys, mast3r.model; sys.exit('huggingface_hub' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
