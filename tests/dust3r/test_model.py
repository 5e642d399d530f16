"""The DUSt3R network: golden numbers, orientations, symmetrised batches, freezing, precision, export."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from dust3r.model import AsymmetricCroCo3DStereo
from dust3r.patch_embed import ManyAR_PatchEmbed, PatchEmbedDust3R, get_patch_embed
from dust3r.utils.misc import (
    fill_default_args,
    interleave,
    invalid_to_nans,
    invalid_to_zeros,
    is_symmetrized,
    transpose_to_landscape,
)
from tests.conftest import load_golden
from tests.network_goldens import (
    NARROW_DPT,
    TINY,
    assert_outputs,
    golden_model,
    golden_views,
    relative_error,
)

NAMES = ["dust3r_linear", "dust3r_linear_manyar", "dust3r_dpt", "dust3r_dpt_manyar"]


def tiny(**kwargs) -> AsymmetricCroCo3DStereo:
    torch.manual_seed(0)
    return AsymmetricCroCo3DStereo(**{**TINY, **NARROW_DPT, "landscape_only": False, **kwargs}).eval()


def views(height=48, width=64, batch=1):
    generator = torch.Generator().manual_seed(7)
    return [{"img": torch.rand(batch, 3, height, width, generator=generator) * 2 - 1} for _ in range(2)]


@pytest.fixture(scope="module", params=NAMES)
def network(request):
    """A golden fixture and its model, built once."""
    fixture = load_golden(request.param)
    return fixture, golden_model(fixture)


def cases_with(fixture, part: str) -> list[str]:
    return [case for case in fixture.meta["cases"] if fixture.keys(f"{case}.{part}")]


def test_golden_outputs(network):
    fixture, model = network
    for case in fixture.meta["cases"]:
        with torch.no_grad():
            assert_outputs(fixture, f"{case}.out", model(*golden_views(fixture, case)), bound=2e-5)


def test_golden_tokens(network):
    fixture, model = network
    for case in cases_with(fixture, "mid."):
        view1, view2 = golden_views(fixture, case)
        with torch.no_grad():
            _, feats, positions = model._encode_symmetrized(view1, view2)
            decoded = model._decoder(feats[0], positions[0], feats[1], positions[1])
        for i in (0, 1):
            mid = f"{case}.mid"
            assert torch.equal(positions[i], fixture.tensors[f"{mid}.pos{i + 1}"])
            assert relative_error(feats[i], fixture.tensors[f"{mid}.enc{i + 1}"]) < 1e-5
            assert len(decoded[i]) == len(fixture.keys(f"{mid}.dec{i + 1}."))
            for k, tokens in enumerate(decoded[i]):
                assert relative_error(tokens, fixture.tensors[f"{mid}.dec{i + 1}.{k}"]) < 1e-5


def test_golden_float64_outputs(network):
    fixture, model = network
    cases = cases_with(fixture, "out64")
    model = copy.deepcopy(model).double() if cases else model
    for case in cases:
        with torch.no_grad():
            results = model(*golden_views(fixture, case, torch.float64))
        assert_outputs(fixture, f"{case}.out64_", results, bound=1e-7)


@pytest.mark.parametrize("kind", ["tensor", "int32 array", "absent"])
def test_true_shape_forms_agree(kind):
    model, (view1, view2) = tiny(), views()
    expected = model(view1, view2)
    for view in (view1, view2):
        shape = np.int32([view["img"].shape[-2:]])
        view["true_shape"] = {"tensor": torch.as_tensor(shape), "int32 array": shape, "absent": None}[kind]
    for result, reference in zip(model(view1, view2), expected):
        for key, value in result.items():
            torch.testing.assert_close(value, reference[key], rtol=0, atol=0)


def test_step_by_step_as_third_parties_do():
    model, (view1, view2) = tiny(), views()
    shape = np.int32([[48, 64]])
    feat1, pos1, nothing = model._encode_image(view1["img"], shape)
    feat2, pos2, _ = model._encode_image(view2["img"], shape)
    dec1, dec2 = model._decoder(feat1, pos1, feat2, pos2)
    assert nothing is None
    expected1, expected2 = model(view1, view2)
    result1 = model._downstream_head(1, [t.float() for t in dec1], shape)
    result2 = model._downstream_head(2, [t.float() for t in dec2], torch.as_tensor(shape))
    torch.testing.assert_close(result1["pts3d"], expected1["pts3d"])
    torch.testing.assert_close(result2["pts3d"], expected2["pts3d_in_other_view"])
    with pytest.raises(ValueError, match="share one true_shape"):
        model._downstream_head(1, dec1, np.int32([[48, 64], [64, 48]]))


@pytest.mark.parametrize("head_type", ["linear", "dpt"])
@pytest.mark.parametrize("depth", [1, 2, 4, 5])
def test_narrow_heads_work_at_any_depth(head_type, depth):
    result1, result2 = tiny(head_type=head_type, dec_depth=depth)(*views(batch=2))
    assert result1["pts3d"].shape == result2["pts3d_in_other_view"].shape == (2, 48, 64, 3)
    assert result1["conf"].shape == (2, 48, 64)
    assert (result1["conf"] > 1).all()


def test_symmetrised_batches_encode_half(monkeypatch):
    model = tiny()
    img1, img2 = (view["img"] for view in views(batch=2))
    first, second = interleave(img1, img2)
    names = ["a", "b", "c", "d"]
    swapped = ["b", "a", "d", "c"]
    plain = model({"img": first}, {"img": second})
    rows = []
    original = model._encode_image
    monkeypatch.setattr(model, "_encode_image", lambda x, s: rows.append(len(x)) or original(x, s))
    symmetric = model({"img": first, "instance": names}, {"img": second, "instance": swapped})
    assert rows == [4]  # of 8 images
    for result, reference in zip(symmetric, plain):
        for key, value in result.items():
            torch.testing.assert_close(value, reference[key])


@pytest.mark.parametrize(
    ("names1", "names2", "expected"),
    [
        (["a", "b"], ["b", "a"], True),
        (["a", "b", "c"], ["b", "a", "d"], False),  # odd batch
        (["a"], ["a"], False),
        (["a", "b"], ["a", "b"], False),
        (["a", "b", "c", "d"], ["b", "a", "d", "x"], False),
        (None, None, False),
    ],
)
def test_is_symmetrized(names1, names2, expected):
    assert is_symmetrized({"instance": names1}, {"instance": names2}) is expected


def test_odd_batch_with_symmetric_start_runs():
    model, (view1, view2) = tiny(), views(batch=3)
    view1["instance"], view2["instance"] = ["a", "b", "c"], ["b", "a", "d"]
    assert model(view1, view2)[0]["pts3d"].shape[0] == 3


@pytest.mark.parametrize("head_type", ["linear", "dpt"])
def test_training_containers_equal_native_orientation(head_type):
    """A portrait image in a landscape container gives the transposed maps of the portrait image itself."""
    native = tiny(head_type=head_type)
    training = tiny(head_type=head_type, landscape_only=True, patch_embed_cls="ManyAR_PatchEmbed")
    training.load_state_dict(native.state_dict())
    land, port = views()[0]["img"], views(64, 48)[0]["img"]
    container = torch.cat((land, port.transpose(-1, -2)))
    shape = torch.tensor([[48, 64], [64, 48]])
    result = training({"img": container, "true_shape": shape}, {"img": container.flip(0), "true_shape": shape.flip(0)})
    first = native({"img": land}, {"img": port})
    second = native({"img": port}, {"img": land})
    torch.testing.assert_close(result[0]["pts3d"][:1], first[0]["pts3d"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result[0]["conf"][1:], second[0]["conf"].transpose(1, 2), rtol=1e-4, atol=1e-5)
    other = second[1]["pts3d_in_other_view"]
    torch.testing.assert_close(result[1]["pts3d_in_other_view"][1:], other, rtol=1e-4, atol=1e-5)


def test_many_aspect_ratio_patch_embed_errors():
    embed = get_patch_embed("ManyAR_PatchEmbed", (64, 64), 16, 8)
    assert isinstance(embed, ManyAR_PatchEmbed)
    with pytest.raises(ValueError, match="landscape containers"):
        embed(torch.zeros(1, 3, 64, 32), torch.tensor([[64, 32]]))
    with pytest.raises(ValueError, match="one \\(height, width\\) each"):
        embed(torch.zeros(2, 3, 32, 64), torch.tensor([[32, 64]]))
    with pytest.raises(ValueError, match="patch_embed_cls"):
        get_patch_embed("os.system", (64, 64), 16, 8)


def test_sizes_are_attributes():
    model = tiny(img_size=(32, 64))
    assert isinstance(model.patch_embed, PatchEmbedDust3R)
    assert (model.patch_size, model.patch_embed.patch_size, model.patch_embed.img_size) == (
        16,
        (16, 16),
        (32, 64),
    )
    with pytest.raises(ValueError, match="not a multiple"):
        model(*views(40, 64))


@pytest.mark.parametrize("freeze", ["none", "mask", "encoder"])
def test_freeze(freeze):
    model = tiny(freeze=freeze)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    encoder = {n for n, _ in model.named_parameters() if n.startswith(("mask_token", "patch_embed", "enc_blocks"))}
    assert frozen == {"none": set(), "mask": {"mask_token"}, "encoder": encoder}[freeze]


def test_golden_freeze_names(golden):
    for freeze, names in golden("training_misc").meta["frozen"].items():
        model = tiny(freeze=freeze)
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        assert frozen == set(names)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"freeze": "all"},
        {"head_type": "catmlp+dpt"},
        {"output_mode": "depth"},
        {"conf_mode": ("exp", 1)},
        {"depth_mode": ("exp", "0", 1)},
        {"pos_embed": "none"},
    ],
)
def test_bad_options_are_value_errors(kwargs):
    with pytest.raises(ValueError, match=r"\w"):
        tiny(**kwargs)


def test_cosine_positions_are_fixed_to_the_grid():
    model = tiny(pos_embed="cosine")
    assert model(*views(64, 64))[0]["pts3d"].shape == (1, 64, 64, 3)
    with pytest.raises(ValueError, match="cosine positions are fixed"):
        model(*views(48, 64))


def test_heads_stay_in_full_precision_under_autocast():
    model, pair = tiny(), views()
    expected = model(*pair)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = model(*pair)
    assert result[0]["pts3d"].dtype == torch.float32
    assert relative_error(result[0]["pts3d"], expected[0]["pts3d"]) < 0.05


def test_bfloat16_weights_run():
    pair = [{"img": view["img"].bfloat16()} for view in views()]
    result = tiny().bfloat16()(*pair)
    assert relative_error(result[0]["pts3d"].float(), tiny()(*views())[0]["pts3d"]) < 0.1


def test_gradients_reach_every_used_weight():
    model = tiny(head_type="dpt").train()
    result1, result2 = model(*views())
    (result1["pts3d"].sum() + result1["conf"].sum() + result2["pts3d_in_other_view"].sum()).backward()
    unused = {name for name, p in model.named_parameters() if p.grad is None}
    assert {name for name in unused if "refinenet4.resConfUnit1" not in name} == {"mask_token"}


@pytest.mark.parametrize("head_type", ["linear", "dpt"])
def test_export_with_free_batch_and_size(head_type):
    model = tiny(head_type=head_type)
    free = {"img": dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)}
    program = torch.export.export(model, tuple(views(48, 64, batch=2)), dynamic_shapes=(free, free)).module()
    for size in ((48, 64, 2), (80, 96, 3)):
        pair = views(*size)
        for result, reference in zip(program(*pair), model(*pair)):
            for key, value in result.items():
                torch.testing.assert_close(value, reference[key], rtol=1e-4, atol=1e-5)


def test_state_dict_shares_nothing_between_decoders():
    model = tiny()
    model.dec_blocks[0].norm1.weight.data.fill_(3)
    assert not torch.equal(model.dec_blocks2[0].norm1.weight, model.dec_blocks[0].norm1.weight)


def test_transpose_to_landscape_wrapper():
    def head(tokens, size):
        return {"x": tokens[-1].sum(dim=(1, 2)).view(-1, 1, 1, 1).expand(-1, *size, 3)}

    tokens = [torch.arange(3.0).view(3, 1, 1)]
    shapes = torch.tensor([[2, 4], [4, 2], [2, 4]])
    maps = transpose_to_landscape(head)(tokens, shapes)["x"]
    assert maps.shape == (3, 2, 4, 3)
    assert maps[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert transpose_to_landscape(head, activate=False)(tokens, shapes[[1, 1, 1]])["x"].shape == (3, 4, 2, 3)


def test_invalid_values():
    arr = torch.arange(24.0).view(2, 2, 2, 3)
    mask = torch.tensor([[[True, False], [True, True]], [[False, False], [False, True]]])
    nans = invalid_to_nans(arr, mask, ndim=3)
    assert nans.shape == (2, 4, 3)
    assert torch.equal(nans.isnan().any(-1), ~mask.flatten(1))
    zeros, count = invalid_to_zeros(arr, mask, ndim=3)
    assert zeros.shape == (2, 4, 3)
    assert count.tolist() == [3, 1]
    assert torch.equal(zeros.sum(), arr[mask].sum())
    same, total = invalid_to_zeros(arr, None)
    assert same is arr
    assert total == 4
    assert not arr.isnan().any()


def test_fill_default_args():
    def function(a, b=2, *, c=3):
        return a, b, c

    assert fill_default_args({"a": 1, "c": 5}, function) == {"a": 1, "b": 2, "c": 5}
