from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dust3r.optim import EMA, JointOptimizer, block_matrices, clip_grad_norm, lr_at, param_groups, set_lr

few = settings(max_examples=30, deadline=None)


def small_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2), nn.BatchNorm1d(2))


# ------------------------------------------------------------------------------------ golden numbers


def test_learning_rate_matches_the_official_code(golden):
    schedule = golden("training_misc").meta["lr_schedule"]
    for epoch, value in schedule["values"]:
        assert lr_at(epoch, **schedule["args"]) == pytest.approx(value, rel=1e-9, abs=1e-15)


def test_weight_decay_groups_match_the_official_code(golden):
    groups = golden("training_misc").meta["param_groups"]
    names = [name for group in groups for name in group["params"]]
    no_decay = {name for group in groups if group["weight_decay"] == 0 for name in group["params"]}
    model = Named({n: 1 if n in no_decay and not n.endswith(".bias") else 2 for n in names})
    decay = max(group["weight_decay"] for group in groups)
    found = [names_of(model, group) for group in param_groups(model, decay)]
    assert [(g["weight_decay"], g["lr_scale"]) for g in param_groups(model, decay)] == [
        (g["weight_decay"], g["lr_scale"]) for g in groups
    ]
    assert [sorted(names) for names in found] == [sorted(g["params"]) for g in groups]


class Named(nn.Module):
    """A module whose parameters have given dotted names and numbers of axes."""

    def __init__(self, axes: dict[str, int]):
        super().__init__()
        for name, ndim in axes.items():
            module = self
            *path, leaf = name.split(".")
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module._modules[part]
            module.register_parameter(leaf, nn.Parameter(torch.zeros((2,) * ndim)))


def names_of(model, group):
    by_id = {id(p): name for name, p in model.named_parameters()}
    return [by_id[id(p)] for p in group["params"]]


# ---------------------------------------------------------------------------------------------- laws


@few
@given(st.floats(1e-6, 1), st.floats(0, 1), st.floats(0, 20), st.floats(21, 100), st.floats(0, 200))
def test_learning_rate_stays_between_its_limits(lr, ratio, warmup, epochs, epoch):
    options = {"lr": lr, "min_lr": lr * ratio, "warmup_epochs": warmup, "epochs": epochs}
    value = lr_at(epoch, **options)
    assert 0 <= value <= lr * (1 + 1e-9)
    if epoch >= warmup:
        assert value >= lr * ratio * (1 - 1e-9)
        assert lr_at(epoch + 1, **options) <= value + 1e-15
    if epoch >= epochs:
        assert value == lr * ratio


def test_learning_rate_without_cosine_part():
    assert lr_at(5, lr=1.0, min_lr=0.1, warmup_epochs=10, epochs=10) == 0.5
    assert lr_at(10, lr=1.0, min_lr=0.1, warmup_epochs=10, epochs=10) == 0.1


def test_groups_leave_out_frozen_parameters_and_take_rates():
    model = small_model()
    model[0].requires_grad_(False)
    groups = param_groups(model, 0.05)
    assert [names_of(model, g) for g in groups] == [
        ["2.weight"],
        ["1.weight", "1.bias", "2.bias", "3.weight", "3.bias"],
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    optimizer.param_groups[1]["lr_scale"] = 0.1
    set_lr(optimizer, 2.0)
    assert [g["lr"] for g in optimizer.param_groups] == [2.0, 0.2]
    assert len(param_groups(nn.Linear(2, 2, bias=False), 0.1)) == 1


@pytest.mark.parametrize("max_norm", [None, 0.5, 1e6])
def test_clipping(max_norm):
    model = small_model()
    model(torch.randn(6, 3)).square().sum().backward()
    before = torch.cat([p.grad.flatten() for p in model.parameters()])
    norm = clip_grad_norm(model, max_norm)
    after = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert norm.ndim == 0
    torch.testing.assert_close(norm, before.norm())
    limit = math.inf if max_norm is None else max_norm
    torch.testing.assert_close(after, before * min(1.0, limit / float(norm)), rtol=1e-4, atol=1e-6)


def drift(model, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=g))


@pytest.mark.parametrize("warmup", [False, True])
def test_average_follows_its_formula(warmup):
    model = small_model()
    ema = EMA(model, decay=0.9, warmup=warmup)
    expected = model[0].weight.detach().clone()
    for n in range(20):
        drift(model, n)
        ema.update(model)
        decay = min(0.9, (1 + n) / (10 + n)) if warmup else 0.9
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
    torch.testing.assert_close(ema.shadow["0.weight"], expected)
    assert ema.updates == 20
    assert "3.running_mean" in ema.shadow
    assert "3.num_batches_tracked" not in ema.shadow


def test_average_is_applied_and_taken_back():
    model = small_model()
    ema = EMA(model)
    own_before = {k: v.clone() for k, v in model.state_dict().items()}
    drift(model, 1)
    own = {k: v.clone() for k, v in model.state_dict().items()}
    with ema.applied_to(model) as averaged:
        assert averaged is model
        assert all(torch.equal(v, own_before[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(v, own[k]) for k, v in model.state_dict().items())
    ema.copy_to(model)
    assert all(torch.equal(v, own_before[k]) for k, v in model.state_dict().items())


def test_average_resumes_exactly():
    model = small_model()
    ema = EMA(model, decay=0.7)
    drift(model, 1)
    ema.update(model)
    saved = {k: v.clone() if torch.is_tensor(v) else v for k, v in ema.state_dict()["shadow"].items()}
    state = ema.state_dict() | {"shadow": saved}
    other = EMA(small_model(5), decay=0.5, warmup=False)
    other.load_state_dict(state)
    for average in (ema, other):
        average.update(model)
    assert all(torch.equal(v, other.shadow[k]) for k, v in ema.shadow.items())
    assert (other.decay, other.updates, other.warmup) == (0.7, 2, True)


def test_average_knows_compiled_and_tied_models():
    model = small_model()
    compiled = torch.compile(model, backend="eager")
    ema = EMA(compiled)
    assert set(ema.shadow) == set(EMA(model).shadow)
    model[2].weight = nn.Parameter(torch.zeros(2, 4))
    tied = nn.ModuleDict({"a": model[0], "b": model[0]})
    average = EMA(tied, decay=0.5, warmup=False)
    drift(tied, 0)
    average.update(tied)
    assert torch.equal(average.shadow["a.weight"], average.shadow["b.weight"])
    average.copy_to(tied)
    assert torch.equal(tied["a"].weight, average.shadow["a.weight"])


def test_average_refuses_bad_input():
    with pytest.raises(ValueError, match="decay"):
        EMA(small_model(), decay=1.0)
    state = EMA(nn.Linear(2, 2)).state_dict()
    with pytest.raises(ValueError, match="another model"):
        EMA(small_model()).load_state_dict(state)


# ---------------------------------------------------------------------------------- joint optimisers


def joint(model):
    """Two optimisers with states of different kinds, one for each linear layer."""
    return JointOptimizer(
        torch.optim.AdamW(model[0].parameters(), lr=0.1), torch.optim.SGD(model[2].parameters(), lr=0.1, momentum=0.9)
    )


def give_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_joint_optimizer_steps_like_its_parts():
    model, twin = small_model(), small_model()
    together = joint(model)
    alone = (
        torch.optim.AdamW(twin[0].parameters(), lr=0.1),
        torch.optim.SGD(twin[2].parameters(), lr=0.1, momentum=0.9),
    )
    for seed in range(3):
        give_gradients(model, seed)
        give_gradients(twin, seed)
        together.step()
        for part in alone:
            part.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters()))
    together.zero_grad()
    assert all(p.grad is None for layer in (model[0], model[2]) for p in layer.parameters())


def test_joint_optimizer_continues_from_its_state():
    model = small_model()
    first = joint(model)
    give_gradients(model, 0)
    first.step()
    twin = small_model(seed=1)
    twin.load_state_dict(model.state_dict())
    second = joint(twin)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert [group["params"] for group in first.state_dict()["param_groups"]] == [[0, 1], [2, 3]]
    for optimizer, net in ((first, model), (second, twin)):
        give_gradients(net, 1)
        set_lr(optimizer, 0.01)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters()))


def test_matrices_of_transformer_blocks_are_found():
    model = nn.ModuleDict({"enc_blocks": small_model(), "head": small_model()})
    model["enc_blocks"][2].weight.requires_grad_(False)
    found = block_matrices(model)
    assert [id(p) for p in found] == [id(model["enc_blocks"][0].weight)]
    rest = param_groups(model, 0.1, leave_out=found)
    assert id(found[0]) not in {id(p) for group in rest for p in group["params"]}
