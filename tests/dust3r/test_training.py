"""The training loop: resuming, crashing, stopping, many processes, non-finite numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from dust3r import train_state
from dust3r.train_config import BatchRequest, Stage, TrainConfig, batch_request
from dust3r.train_data import Batches, LoaderSource
from dust3r.train_log import LOG_NAME, PhaseClock
from dust3r.train_state import PARTS_INDEX, PREVIOUS, Counters, read_state, save_state
from dust3r.training import averaged_weights, fit, get_args_parser
from dust3r.utils.processes import World

ROOT = Path(__file__).parents[2]


class TinyNet(nn.Module):
    """Predicts three numbers per image; noise in training makes the global generator matter."""

    def __init__(self):
        super().__init__()
        self.config = {"width": 8}
        self.embed = nn.Conv2d(3, 8, 8, 8)
        self.some_blocks = nn.ModuleList([nn.Linear(8, 8, bias=False)])
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 3)

    def forward(self, view1, view2):
        return tuple({"y": self._one(view["img"])} for view in (view1, view2))

    def _one(self, image):
        x = self.embed(image).flatten(2).mean(2)
        x = self.norm(x + self.some_blocks[0](x))
        return self.out(x + 0.01 * torch.randn_like(x) if self.training else x)


def criterion(view1, view2, pred1, pred2):
    loss = sum((pred["y"] - view["target"]).square().mean() for view, pred in ((view1, pred1), (view2, pred2)))
    return loss, {"mse": loss.detach()}


def source(request: BatchRequest):
    generator = torch.Generator().manual_seed(request.seed)
    views = []
    for _ in range(2):
        image = torch.rand(request.batch_size, 3, request.height, request.width, generator=generator)
        views.append({"img": image, "target": 10 * image.mean((2, 3)), "label": ["x"] * request.batch_size})
    return views[0], views[1]


def make_net() -> TinyNet:
    torch.manual_seed(0)
    return TinyNet()


CONFIG = TrainConfig(
    steps=6, batch_size=2, lr=1e-2, compile=False, log_every=2, eval_every=None, save_every=2,
    curriculum=(Stage(0.5, 16, 16), Stage(1.0, 24, 16)),
)  # fmt: skip


class StopAt:
    """Sends SIGTERM to this process while the batch with the given index is made."""

    def __init__(self, index: int):
        self.index = index

    def __call__(self, request: BatchRequest):
        if request.index == self.index:
            os.kill(os.getpid(), signal.SIGTERM)
        return source(request)


def records(folder: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (folder / LOG_NAME).read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def assert_same(a, b, path: str = "state") -> None:
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b)):
            assert_same(x, y, f"{path}[{i}]")
    else:
        assert a == b, path


# --- resuming ---


@pytest.mark.parametrize(("accum", "optimizer"), [(1, "adamw"), (2, "adamw"), (1, "muon")])
def test_resumed_run_equals_uninterrupted_run_to_the_bit(tmp_path, accum, optimizer):
    # nothing is made ahead, so that the signal comes during a known step
    config = replace(CONFIG, accum_iter=accum, optimizer=optimizer, ahead=False)
    torch.manual_seed(5)
    fit(make_net(), criterion, source, config, output_dir=tmp_path / "whole")
    torch.manual_seed(5)
    fit(make_net(), criterion, StopAt(2 * accum), config, output_dir=tmp_path / "parts")
    assert records(tmp_path / "parts", "stopped")[0]["step"] == 3
    torch.manual_seed(99)  # what the fresh process drew before must not matter
    fit(TinyNet(), criterion, source, config, output_dir=tmp_path / "parts")
    whole, parts = (read_state(tmp_path / name) for name in ("whole", "parts"))
    for state in (whole, parts):
        assert state["counters"].pop("seconds") > 0
    assert_same(whole, parts)
    assert whole["counters"] == {"step": 6, "pairs": 12 * accum, "skipped": 0}


def test_state_of_another_optimizer_is_refused(tmp_path):
    fit(make_net(), criterion, source, CONFIG, output_dir=tmp_path)
    with pytest.raises(ValueError, match="parameter groups"):
        fit(make_net(), criterion, source, replace(CONFIG, optimizer="muon"), output_dir=tmp_path)


def test_torch_without_muon_is_named(tmp_path, monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(RuntimeError, match=r"needs torch 2\.9"):
        fit(make_net(), criterion, source, replace(CONFIG, optimizer="muon"), output_dir=tmp_path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="settings of glibc")
def test_freed_memory_is_used_again():
    """In a process of its own: the pages of freed tensors are not asked for again."""
    code = """
        import resource, torch
        from dust3r.utils.processes import keep_freed_memory
        if not keep_freed_memory():
            raise SystemExit("no glibc")
        faults = []
        for _ in range(6):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            parts = [torch.ones(4_000_000) for _ in range(4)]
            del parts
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        assert faults[0] > 1000 and max(faults[3:]) < 100, faults
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True)
    if "no glibc" in run.stderr:
        pytest.skip("another C library")
    assert run.returncode == 0, run.stderr


def test_state_is_plain_and_complete(tmp_path):
    fit(make_net(), criterion, source, CONFIG, output_dir=tmp_path, extra={"model_name": "TinyNet()"})
    state = torch.load(tmp_path / train_state.LAST, weights_only=True)
    assert {"model", "optimizer", "ema", "rng", "counters", "model_name", "format"} <= state.keys()
    assert state["rng"][0].keys() == {"python", "numpy", "torch", "cuda"}


def test_restored_generators_continue_their_sequences():
    import random

    import numpy as np

    device = torch.device("cpu")
    state = train_state.get_rng_state(device)
    first = random.random(), np.random.rand(), torch.rand(1).item()
    train_state.set_rng_state(state, device)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == first


def test_resuming_with_another_model_is_refused(tmp_path):
    fit(make_net(), criterion, source, CONFIG, output_dir=tmp_path)

    class OtherNet(TinyNet):
        def __init__(self):
            super().__init__()
            self.more = nn.Linear(3, 3)

    with pytest.raises(ValueError, match="does not fit"):
        fit(OtherNet(), criterion, source, CONFIG, output_dir=tmp_path)


def test_plain_weights_are_no_training_state(tmp_path):
    torch.save({"model": make_net().state_dict()}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="init_from"):
        fit(make_net(), criterion, source, CONFIG, output_dir=tmp_path, resume=tmp_path / "weights.pth")


# --- crashing ---


def test_kill_in_the_middle_of_saving_leaves_a_loadable_state(tmp_path):
    script = tmp_path / "save_forever.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys, torch
        sys.path.insert(0, {str(ROOT)!r})
        from dust3r.train_state import save_state
        for number in range(10**6):
            state = {{"number": number, "weights": torch.full((300_000,), float(number))}}
            save_state(state, {str(tmp_path / "run")!r}, split_mb=0.3)
            print(number, flush=True)
    """)
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while int(process.stdout.readline()) < 3:
        pass
    time.sleep(0.013)
    process.kill()
    process.wait()
    numbers = []
    for path in (tmp_path / "run", tmp_path / "run" / PARTS_INDEX):
        state = read_state(path)
        assert (state["weights"] == state["number"]).all()
        numbers.append(state["number"])
    assert min(numbers) >= 3 - 1
    save_state({"number": -1}, tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.tmp")), "leftovers of the killed process are removed"


class PulledPlug(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("operation", ["replace", "link", "fsync"])
@pytest.mark.parametrize("call", range(6))
def test_every_moment_of_saving_is_safe(tmp_path, monkeypatch, operation, call):
    save_state({"number": 1}, tmp_path, split_mb=1)
    save_state({"number": 2}, tmp_path, split_mb=1)
    original, calls = getattr(os, operation), []

    def crash(*args, **kwargs):
        calls.append(args)
        if len(calls) > call:
            raise PulledPlug
        return original(*args, **kwargs)

    monkeypatch.setattr(os, operation, crash)
    try:
        save_state({"number": 3}, tmp_path, split_mb=1)
    except PulledPlug:
        pass
    monkeypatch.undo()
    assert read_state(tmp_path)["number"] in (2, 3)
    assert read_state(tmp_path / PARTS_INDEX)["number"] in (2, 3)


def test_damaged_last_state_falls_back_to_the_previous_one(tmp_path, caplog):
    save_state({"number": 1}, tmp_path)
    last = save_state({"number": 2}, tmp_path)
    last.write_bytes(last.read_bytes()[:100])
    assert read_state(tmp_path)["number"] == 1
    assert "damaged" in caplog.text
    with pytest.raises(ValueError, match="damaged"):
        read_state(last)


def test_nothing_to_read(tmp_path):
    assert not train_state.has_state(tmp_path)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        read_state(tmp_path)


# --- parts ---


def test_run_resumes_from_parts_alone(tmp_path):
    config = replace(CONFIG, split_mb=0.002)
    fit(make_net(), criterion, source, config, output_dir=tmp_path / "run")
    parts = sorted((tmp_path / "run").glob("checkpoint-last.parts.*"))
    assert len(parts) > 3
    assert all(part.stat().st_size <= 2000 for part in parts if part.suffix != ".json")
    moved = tmp_path / "moved"
    moved.mkdir()
    for part in parts:
        (moved / part.name).write_bytes(part.read_bytes())
    assert_same(read_state(moved), read_state(tmp_path / "run" / train_state.LAST))
    state = fit(make_net(), criterion, source, replace(config, steps=8), output_dir=tmp_path / "new", resume=moved)
    assert state.counters.step == 8


def test_damaged_part_is_named(tmp_path):
    save_state({"weights": torch.zeros(1000)}, tmp_path, split_mb=0.001)
    part = sorted(tmp_path.glob("checkpoint-last.parts.001.*"))[0]
    part.write_bytes(b"x")
    with pytest.raises(ValueError, match=part.name):
        read_state(tmp_path / PARTS_INDEX)


def test_parts_cannot_name_files_elsewhere(tmp_path):
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / PARTS_INDEX).write_text(json.dumps({"parts": [{"name": "../secret", "sha256": "0"}]}))
    with pytest.raises(ValueError, match="missing or damaged"):
        read_state(folder / PARTS_INDEX)


# --- length of a run ---


def test_minutes_end_the_run_and_count_over_sessions(tmp_path):
    config = replace(CONFIG, steps=None, minutes=2.0 / 60)
    state = fit(make_net(), criterion, source, config, output_dir=tmp_path)
    assert state.counters.step > 3
    assert state.counters.seconds >= 2.0
    assert records(tmp_path, "finished")
    lrs = [record["lr"] for record in records(tmp_path, "train")]
    assert lrs[-1] < lrs[0]
    again = fit(make_net(), criterion, source, config, output_dir=tmp_path)
    assert again.counters.step == state.counters.step, "the time of the first session counts"


def test_session_minutes_end_the_process_but_not_the_run(tmp_path):
    config = replace(CONFIG, steps=10**6, session_minutes=0.3 / 60)
    state = fit(make_net(), criterion, source, config, output_dir=tmp_path)
    assert 0 < state.counters.step < 10**6
    assert records(tmp_path, "stopped")
    again = fit(make_net(), criterion, source, config, output_dir=tmp_path)
    assert again.counters.step > state.counters.step


def test_length_and_curriculum_are_checked():
    with pytest.raises(ValueError, match="length"):
        TrainConfig()
    with pytest.raises(ValueError, match="increasing"):
        TrainConfig(steps=1, curriculum=(Stage(0.5), Stage(0.4)))
    with pytest.raises(ValueError, match="at least 1"):
        TrainConfig(steps=1, log_every=0)


def test_curriculum_widens_inside_a_stage_and_seeds_differ():
    stages = (Stage(0.5, 16, 16, 4, (0.8, 1.0), (0.2, 1.0)), Stage(1.0, 32, 48, None, (0.0, 0.5), (0.0, 0.5)))
    config = TrainConfig(steps=10, batch_size=3, curriculum=stages)
    begin, middle, end = (
        batch_request(config, fraction=fraction, index=7, world=World()) for fraction in (0.0, 0.25, 1.0)
    )
    assert (begin.height, begin.batch_size, begin.overlap) == (16, 4, (0.8, 1.0))
    assert middle.overlap == pytest.approx((0.5, 1.0))
    assert (end.height, end.width, end.batch_size, end.overlap) == (32, 48, 3, (0.0, 0.5))
    seeds = {
        batch_request(replace(config, seed=seed), fraction=0, index=index, world=World(rank, 2)).seed
        for seed in range(3) for index in range(5) for rank in range(2)
    }  # fmt: skip
    assert len(seeds) == 30
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_learning_rate_follows_the_published_curve(tmp_path):
    config = replace(CONFIG, steps=10, warmup=0.2, lr=1.0, min_lr=0.1)
    assert [round(config.lr_at(f), 4) for f in (0, 0.1, 0.2, 0.6, 1.0)] == [0, 0.5, 1.0, 0.55, 0.1]


# --- numbers that are not finite ---


class Poisoned:
    """Turns the images of the batches with the given indices into NaN."""

    def __init__(self, *indices: int):
        self.indices = indices

    def __call__(self, request: BatchRequest):
        views = source(request)
        if request.index in self.indices:
            views[0]["img"] = views[0]["img"] * torch.nan
        return views


def test_step_without_finite_gradient_changes_nothing(tmp_path):
    clean = fit(make_net(), criterion, source, replace(CONFIG, steps=2, log_every=1), output_dir=tmp_path / "a")
    config = replace(CONFIG, steps=2, log_every=1, grad_clip=None, curriculum=(Stage(1.0, 16, 16),))
    before = {name: tensor.clone() for name, tensor in make_net().state_dict().items()}
    state = fit(make_net(), criterion, Poisoned(0, 1), config, output_dir=tmp_path / "b")
    assert_same(dict(before), dict(state.model.state_dict()))
    assert state.counters.skipped == 2
    assert clean.counters.skipped == 0
    assert records(tmp_path / "b", "train")[0]["loss"] is None


def test_run_goes_on_after_a_skipped_step(tmp_path):
    state = fit(make_net(), criterion, Poisoned(2), CONFIG, output_dir=tmp_path)
    assert state.counters.skipped == 1
    assert all(tensor.isfinite().all() for tensor in state.model.state_dict().values())
    assert all(record["loss"] is not None for record in records(tmp_path, "train"))


def test_run_ends_when_nothing_is_finite_any_more(tmp_path):
    with pytest.raises(FloatingPointError, match="lower learning rate"):
        fit(make_net(), criterion, Poisoned(*range(100)), replace(CONFIG, steps=60), output_dir=tmp_path)


def test_run_can_stop_at_the_first_one(tmp_path):
    with pytest.raises(FloatingPointError, match="step 2"):
        fit(make_net(), criterion, Poisoned(2), replace(CONFIG, on_nonfinite="stop"), output_dir=tmp_path)


# --- evaluating, logging, compiling ---


def test_evaluation_sees_the_averaged_weights_and_keeps_the_best(tmp_path):
    seen = []

    def evaluate(model, step):
        assert not model.training
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"score": {2: 1.0, 4: 3.0, 6: 2.0}[step]}

    config = replace(CONFIG, eval_every=2, best_metric="score", best_mode="max", ema_decay=0.9)
    state = fit(make_net(), criterion, source, config, output_dir=tmp_path, evaluate=evaluate)
    assert state.model.training
    assert not torch.equal(seen[-1]["out.weight"], state.model.out.weight)
    with averaged_weights(state) as model:
        assert torch.equal(seen[-1]["out.weight"], model.out.weight)
    best = torch.load(tmp_path / "checkpoint-best.pth", weights_only=True)
    assert best["step"] == 4
    assert torch.equal(best["model"]["out.weight"], seen[1]["out.weight"])
    assert [record["score"] for record in records(tmp_path, "eval")] == [1.0, 3.0, 2.0]


def test_checkpoints_are_kept(tmp_path):
    fit(make_net(), criterion, source, replace(CONFIG, keep_every=4), output_dir=tmp_path)
    assert read_state(tmp_path / "checkpoint-4.pth")["counters"]["step"] == 4
    assert read_state(tmp_path / PREVIOUS)["counters"]["step"] == 4


def test_log_is_one_object_per_line(tmp_path):
    # nothing is made ahead, or the shares of source and step would overlap
    fit(make_net(), criterion, source, replace(CONFIG, ahead=False), output_dir=tmp_path)
    train = records(tmp_path, "train")
    assert [record["step"] for record in train] == [2, 4, 6]
    needed = {"loss", "mse", "lr", "grad_norm", "pairs_per_second", "source_share", "step_share", "tflops"}
    assert needed <= train[0].keys()
    assert 0 <= train[0]["source_share"] + train[0]["step_share"] <= 1.01
    assert records(tmp_path, "start")[0]["config"]["steps"] == 6


def test_tensorboard_is_optional(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    fit(make_net(), criterion, source, CONFIG, output_dir=tmp_path)
    assert "TensorBoard is not installed" in caplog.text
    assert records(tmp_path, "finished")


def test_without_a_compiler_training_goes_on(tmp_path, monkeypatch, caplog):
    from torch._dynamo.exc import TorchDynamoException

    def no_compiler(function, **options):
        def fail(*args, **kwargs):
            raise TorchDynamoException("no C++ compiler found")

        return fail

    monkeypatch.setattr(torch, "compile", no_compiler)
    torch.manual_seed(5)
    compiled = fit(make_net(), criterion, source, replace(CONFIG, compile=True), output_dir=tmp_path / "a")
    torch.manual_seed(5)
    plain = fit(make_net(), criterion, source, CONFIG, output_dir=tmp_path / "b")
    assert caplog.text.count("torch.compile failed") == 1
    assert_same(dict(compiled.model.state_dict()), dict(plain.model.state_dict()))


def test_errors_of_the_model_are_not_taken_for_compiler_errors(tmp_path):
    def broken(view1, view2, pred1, pred2):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        fit(make_net(), broken, source, CONFIG, output_dir=tmp_path)


def test_symmetrised_batches_hold_each_pair_in_both_orders(tmp_path):
    seen = []

    def look(view1, view2, pred1, pred2):
        seen.append((view1, view2))
        return criterion(view1, view2, pred1, pred2)

    config = replace(CONFIG, symmetrize=True, steps=1)
    state = fit(make_net(), look, source, config, output_dir=tmp_path)
    view1, view2 = seen[0]
    assert torch.equal(view1["img"][0::2], view2["img"][1::2])
    assert torch.equal(view1["img"][1::2], view2["img"][0::2])
    assert view1["instance"] == ["0", "1", "2", "3"]
    assert view2["instance"] == ["1", "0", "3", "2"]
    assert state.counters.pairs == 2


# --- many processes ---

WORKER = """
import sys, torch
sys.path[:0] = [{root!r}, {tests!r}]
from dataclasses import replace
import test_training as t
from dust3r.training import fit
from dust3r.utils.processes import join_world

class Net(t.TinyNet):
    def _one(self, image):
        return self.out(self.norm(self.embed(image).flatten(2).mean(2)))

def pairs(request):  # the same four pairs a step, shared among the processes
    whole = replace(request, seed=request.index, batch_size=request.batch_size * request.world_size)
    rows = slice(request.rank * request.batch_size, (request.rank + 1) * request.batch_size)
    return tuple({{k: v[rows] for k, v in view.items()}} for view in t.source(whole))

with join_world(torch.device("cpu")) as world:
    torch.manual_seed(world.rank)  # process 0's weights must win
    net = Net()
    config = replace(t.CONFIG, batch_size=4 // world.size)
    state = fit(net, t.criterion, pairs, config, output_dir={out!r} + str(world.size), world=world)
    assert state.counters.pairs == 24
    if world.is_main:
        torch.save(state.model.state_dict(), {out!r} + str(world.size) + "/weights.pth")
"""


def run_worker(script: Path, processes: int) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(processes),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(script)], timeout=180, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_equal_one_with_twice_the_batch(tmp_path):
    script = tmp_path / "worker.py"
    out = str(tmp_path / "run")
    script.write_text(WORKER.format(root=str(ROOT), tests=str(Path(__file__).parent), out=out))
    run_worker(script, 2)
    subprocess.run([sys.executable, str(script)], check=True, timeout=120)
    one, two = (torch.load(f"{out}{size}/weights.pth", weights_only=True) for size in (1, 2))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5, msg=name)
    assert len(read_state(out + "2")["rng"]) == 2


# --- data loaders ---


class NumberedPairs(torch.utils.data.Dataset):
    """Pair i holds the number i and a random draw of the loading process."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        view = {"img": torch.full((3, 16, 16), float(index)), "draw": torch.rand(1)}
        return view, view


def make_loader():
    generator = torch.Generator()

    class Shuffled(torch.utils.data.Sampler):
        def set_epoch(self, epoch):
            self.epoch = epoch

        def __iter__(self):
            return iter(torch.randperm(10, generator=generator.manual_seed(self.epoch)).tolist())

        def __len__(self):
            return 10

    return torch.utils.data.DataLoader(NumberedPairs(), batch_size=2, sampler=Shuffled())


def test_loader_source_continues_where_another_one_stopped():
    def walk(loader_source, indices):
        batches = []
        for index in indices:
            request = batch_request(CONFIG, fraction=0, index=index, world=World())
            batches.append(loader_source(request)[0]["img"][:, 0, 0, 0].tolist())
        return batches

    whole = walk(LoaderSource(make_loader()), range(12))
    assert walk(LoaderSource(make_loader()), range(7, 12)) == whole[7:]
    assert sorted(number for batch in whole[:5] for number in batch) == list(range(10))
    assert whole[:5] != whole[5:10]


def test_batches_made_ahead_are_the_same():
    requests = [batch_request(CONFIG, fraction=0, index=index, world=World()) for index in range(4)]
    device = torch.device("cpu")
    batches = Batches(source, device, PhaseClock(device), ahead=True)
    seen = []
    for request, following in zip(requests, [*requests[1:], replace(requests[0], index=9)]):
        seen.append(batches.get(request))
        batches.ask_ahead([following])
    other = replace(requests[0], index=9, height=24)  # not what was asked for ahead
    assert batches.get(other)[0]["img"].shape[2] == 24
    batches.close()
    for request, views in zip(requests, seen):
        assert torch.equal(views[0]["img"], source(request)[0]["img"])
        assert "label" not in views[0]


def test_error_of_a_source_working_ahead_reaches_the_run():
    device = torch.device("cpu")

    def broken(request):
        raise OSError("disk is gone")

    request = batch_request(CONFIG, fraction=0, index=0, world=World())
    batches = Batches(broken, device, PhaseClock(device), ahead=True)
    batches.ask_ahead([request])
    with pytest.raises(OSError, match="disk"):
        batches.get(request)
    batches.close()


def test_loader_smaller_than_a_batch_is_refused():
    empty = torch.utils.data.DataLoader(NumberedPairs(), batch_size=20, drop_last=True)
    with pytest.raises(ValueError, match="batch_size"):
        LoaderSource(empty)


def test_official_flags_and_defaults():
    args = vars(get_args_parser().parse_args([]))
    official = {
        "test_dataset": "[None]", "seed": 0, "batch_size": 64, "accum_iter": 1, "epochs": 800,
        "weight_decay": 0.05, "lr": None, "blr": 1.5e-4, "min_lr": 0.0, "warmup_epochs": 40, "amp": 0,
        "disable_cudnn_benchmark": False, "num_workers": 8, "eval_freq": 1, "save_freq": 1,
        "keep_freq": 20, "print_freq": 20,
        "output_dir": "./output/", "pretrained": None, "test_criterion": None,
    }  # fmt: skip
    assert {name: args[name] for name in official} == official


def test_counters_know_the_fraction():
    config = TrainConfig(steps=100, minutes=1.0)
    assert config.fraction(Counters(step=10, seconds=30.0)) == 0.5
    assert config.fraction(Counters(step=90, seconds=30.0)) == 0.9
    assert config.fraction(Counters(step=200)) == 1.0
