"""train.py: presets on rendered scenes, official flags on data sets, export."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.utils.data import Dataset

import dust3r.training
import mast3r.training
from dust3r.train_state import read_state
from dust3r.training import TrainConfig, averaged_weights
from mast3r.model import AsymmetricMASt3R
from mast3r.training import PRESETS, changed_config, get_args_parser, train
from tests.plane_engine import PlaneEngine

ROOT = Path(__file__).parents[1]


def parse(*flags: object):
    return get_args_parser().parse_args([str(flag) for flag in flags])


@pytest.fixture
def plane(monkeypatch):
    """The scene engine replaced by a plane, so that runs take seconds."""
    monkeypatch.setattr(mast3r.training, "SceneEngine", PlaneEngine)


def run(folder: Path, *flags: object):
    return train(parse("--preset", "tiny", "--device", "cpu", "--output_dir", folder, *flags))


def log_records(folder: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def test_preset_trains_evaluates_and_exports(tmp_path, plane):
    path = tmp_path / "out" / "weights.safetensors"
    state = run(tmp_path / "run", "--steps", 4, "--log_every", 2, "--export", path, "--note", "planes only")
    assert state.counters.step == 4
    evaluation = log_records(tmp_path / "run", "eval")[0]
    assert "within_8px" in evaluation
    assert evaluation["pairs"] == log_records(tmp_path / "run", "train")[-1]["pairs"]
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["licence"] == "Apache-2.0"
    assert card["steps"] == 4
    assert card["pairs"] == 8
    assert card["note"] == "planes only"
    assert card["model"].startswith("AsymmetricMASt3R(")
    assert {"hours", "hardware", "metrics", "config", "data", "criterion", "parameters"} <= card.keys()
    with safe_open(path, "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}
    loaded = AsymmetricMASt3R.from_pretrained(path, dtype=torch.float32)
    with averaged_weights(state) as model:
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=1e-3, atol=1e-6, msg=name)


def test_run_continues_in_its_folder_unless_restarted(tmp_path, plane):
    run(tmp_path, "--steps", 3)
    assert run(tmp_path, "--steps", 5).counters.step == 5
    assert log_records(tmp_path, "start")[1]["step"] == 3
    assert run(tmp_path, "--steps", 2, "--restart").counters.step == 2


def test_run_resumes_from_parts_and_starts_from_weights(tmp_path, plane):
    run(tmp_path / "a", "--steps", 2, "--split-mb", 0.2, "--export", tmp_path / "w.safetensors")
    index = tmp_path / "a" / "checkpoint-last.parts.json"
    assert run(tmp_path / "b", "--steps", 3, "--resume", index).counters.step == 3
    started = run(tmp_path / "c", "--steps", 1, "--lr", 1e-9, "--init_from", tmp_path / "w.safetensors")
    resumed = read_state(tmp_path / "a")["ema"]["shadow"]
    for name, tensor in started.model.state_dict().items():
        torch.testing.assert_close(tensor, resumed[name], rtol=1e-2, atol=1e-4, msg=name)


def test_flags_change_the_preset():
    config = PRESETS["small-224"].config
    assert changed_config(config, parse()) == config
    changed = changed_config(config, parse("--minutes", 5, "--lr", 2e-4, "--amp", 1, "--no-compile"))
    assert (changed.minutes, changed.steps, changed.lr, changed.amp) == (5, None, 2e-4, "bf16")
    assert not changed.compile
    assert changed_config(config, parse("--steps", 7)).minutes is None
    both = changed_config(config, parse("--steps", 7, "--minutes", 1))
    assert (both.steps, both.minutes) == (7, 1)
    batch = changed_config(config, parse("--batch_size", 64, "--print_freq", 3))
    assert {stage.batch_size for stage in batch.curriculum} == {None}
    assert (batch.batch_size, batch.log_every) == (64, 3)


def test_presets_fit_their_models():
    for name, preset in PRESETS.items():
        with torch.device("meta"):
            model = AsymmetricMASt3R(**preset.model)
        assert isinstance(preset.config, TrainConfig), name
        for stage in preset.config.curriculum:
            assert stage.height % model.patch_size == stage.width % model.patch_size == 0, name


def test_model_and_criterion_can_be_given_as_expressions(tmp_path, plane):
    model = mast3r.training.model_expression(AsymmetricMASt3R(**PRESETS["tiny"].model))
    flags = ["--model", model, "--train_criterion", "ConfLoss(Regr3D(L21, norm_mode='?avg_dis'), alpha=0.2)"]
    state = run(tmp_path, "--steps", 2, *flags)
    assert "conf_loss_1" in log_records(tmp_path, "train")[0]
    assert state.counters.step == 2
    with pytest.raises(ValueError, match="unknown name"):
        run(tmp_path / "bad", "--model", "__import__('os')")


# --- official flags ---


class PlanePairs(Dataset):
    """Pairs of views of a plane as a prepared data set gives them."""

    def __init__(self, size: int = 4, seed: int = 0):
        self.size, self.seed = size, seed

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        views = PlaneEngine().pairs(100 * self.seed + index, 1, height=64, width=64, n_corres=32)
        rows = [{key: value[0] for key, value in view.items()} for view in views]
        for number, row in enumerate(rows):
            row["instance"] = f"{index}-{number}"
        return rows[0], rows[1]


OFFICIAL = (
    "--batch_size", "2", "--epochs", "2", "--warmup_epochs", "1", "--lr", "1e-3", "--num_workers", "0",
    "--train_dataset", "PlanePairs(size=4)",
    "--test_dataset", "PlanePairs(2, seed=1) + PlanePairs(2, seed=2)",
)  # fmt: skip


def test_official_command_trains_mast3r_on_data_sets(tmp_path, monkeypatch):
    monkeypatch.setattr(mast3r.training, "data_sets", lambda: {"PlanePairs": PlanePairs})
    criterion = "ConfLoss(Regr3D(L21, '?avg_dis'), alpha=0.2) + 0.075 * MatchingLoss(InfoNCE(mode='proper'))"
    test_criterion = "Regr3D(L21, norm_mode='?avg_dis', gt_scale=True, sky_loss_value=0)"
    flags = (*OFFICIAL, "--train_criterion", criterion, "--test_criterion", test_criterion)
    state = run(tmp_path, *flags)
    assert state.counters.step == 4
    assert state.ema is None
    evaluations = log_records(tmp_path, "eval")
    assert [record["step"] for record in evaluations] == [2, 4]
    losses = [evaluations[-1][f"{number}_PlanePairs_loss_med"] for number in range(2)]
    assert evaluations[-1]["loss_med"] == pytest.approx(min(losses))
    assert (tmp_path / "checkpoint-best.pth").exists()
    assert log_records(tmp_path, "start")[0]["config"]["symmetrize"]


def test_official_entry_of_dust3r(tmp_path, monkeypatch):
    monkeypatch.setattr(dust3r.training.datasets, "PlanePairs", PlanePairs, raising=False)
    monkeypatch.setattr(dust3r.training.datasets, "__all__", ["PlanePairs"])
    model = (
        "AsymmetricCroCo3DStereo(img_size=(64, 64), enc_embed_dim=32, enc_depth=1, enc_num_heads=2, "
        "dec_embed_dim=32, dec_depth=1, dec_num_heads=2, pos_embed='RoPE100', head_type='linear', "
        "output_mode='pts3d', depth_mode=('exp', -inf, inf), conf_mode=('exp', 1, inf), "
        "patch_embed_cls='ManyAR_PatchEmbed')"
    )
    args = dust3r.training.get_args_parser().parse_args([*OFFICIAL, "--output_dir", str(tmp_path), "--model", model])
    state = dust3r.training.train(args)
    assert state.counters.step == 4
    assert read_state(tmp_path)["model_name"].startswith("AsymmetricCroCo3DStereo(")


def test_training_without_data_is_refused(tmp_path):
    args = dust3r.training.get_args_parser().parse_args([])
    with pytest.raises(ValueError, match="--train_dataset"):
        dust3r.training.train(args)


def test_command_line_on_rendered_scenes(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), "--preset", "tiny", "--device", "cpu", "--steps", "2"]
    subprocess.run([*command, "--output_dir", str(tmp_path)], check=True, cwd=tmp_path, timeout=300)
    assert read_state(tmp_path)["counters"]["step"] == 2
