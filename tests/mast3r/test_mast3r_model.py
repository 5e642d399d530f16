"""The MASt3R network: golden numbers, the official size, small heads, initialisation, export."""

from __future__ import annotations

import copy
import math
import os
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from croco.checkpoint import alias_groups
from croco.models.conv_stem import unfold
from mast3r.catmlp_dpt_head import CatMLPDPTHead, CatMLPLinearHead, postprocess, reg_desc
from mast3r.initialization import tie_views_and_patch_offsets
from tests.conftest import load_golden, parse_kwargs, recipe_weight
from tests.network_goldens import (
    CLASSES,
    assert_outputs,
    golden_model,
    golden_views,
    relative_error,
    tiny_mast3r,
)

NAMES = ["mast3r_catmlpdpt", "mast3r_catmlpdpt_oneconf", "mast3r_catmlpdpt_confdefault"]
HEADS = ["catmlp+linear", "catmlp+dpt", "catconv+linear"]
NEEDED_BYTES = 8e9


def pair(height=48, width=64, batch=1, seed=7):
    generator = torch.Generator().manual_seed(seed)
    return [{"img": torch.rand(batch, 3, height, width, generator=generator) * 2 - 1} for _ in range(2)]


@pytest.fixture(scope="module", params=NAMES)
def network(request):
    """A golden fixture and its model, built once."""
    fixture = load_golden(request.param)
    return fixture, golden_model(fixture)


def test_golden_outputs(network):
    fixture, model = network
    for case in fixture.meta["cases"]:
        with torch.no_grad():
            assert_outputs(fixture, f"{case}.out", model(*golden_views(fixture, case)), bound=2e-5)


def test_golden_float64_outputs(network):
    fixture, model = network
    cases = [case for case in fixture.meta["cases"] if fixture.keys(f"{case}.out64")]
    model = copy.deepcopy(model).double() if cases else model
    for case in cases:
        with torch.no_grad():
            results = model(*golden_views(fixture, case, torch.float64))
        assert_outputs(fixture, f"{case}.out64_", results, bound=1e-7)


def free_memory() -> float:
    """Available RAM in bytes, infinite where the system does not tell."""
    try:
        with open("/proc/meminfo") as lines:
            return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return math.inf


def fill_by_recipe(model, seed):
    """Weights of the recipe, in place of the meta tensors; two threads, since the generator drops the GIL."""
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    groups = alias_groups(model)
    with ThreadPoolExecutor(2) as pool:
        values = pool.map(lambda keys: recipe_weight(keys[0], shapes[keys[0]], seed), groups)
        state = {key: value for keys, value in zip(groups, values) for key in keys}
    model.load_state_dict(state, assign=True)
    return model.eval()


def recipe_image(name, shape, seed):
    """The input recipe of the golden fixtures (see tests/golden/README.md)."""

    def noise(key, size):
        state = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32)
        return torch.from_numpy(state.standard_normal(size)).float()

    batch, channels, height, width = shape
    coarse = noise(name, (batch, channels, height // 4, width // 4))
    smooth = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    return (0.6 * smooth + 0.15 * noise(f"{name}/n", tuple(shape))).clamp(-1, 1)


@pytest.mark.skipif(free_memory() < NEEDED_BYTES, reason="the official size needs 8 GB of free memory")
@pytest.mark.skipif(bool(os.environ.get("SKIP_FULL_SIZE")), reason="SKIP_FULL_SIZE is set")
def test_golden_official_size(golden):
    fixture = golden("mast3r_full_size")
    seed = fixture.meta["weight_seed"]
    with torch.device("meta"):
        model = CLASSES[fixture.meta["cls"]](**parse_kwargs(fixture.meta["kwargs"]))
    model = fill_by_recipe(model, seed)
    for key, (total, magnitude) in fixture.meta["weight_checksums"].items():
        weight = model.get_parameter(key).detach()
        assert weight.sum(dtype=torch.float64).item() == pytest.approx(total, rel=1e-6, abs=1e-4)
        assert weight.abs().sum(dtype=torch.float64).item() == pytest.approx(magnitude, rel=1e-6)
    images = [recipe_image(name, fixture.meta["image_shape"], seed) for name in ("big1", "big2")]
    for i, image in enumerate(images, start=1):
        stored = fixture.tensors[f"img{i}.sub"]
        step = image.shape[-1] // stored.shape[-1]
        torch.testing.assert_close(image[:, :, ::step, ::step], stored)
    with torch.no_grad():
        results = model({"img": images[0]}, {"img": images[1]})
    for i, result in enumerate(results, start=1):
        for key, value in result.items():
            prefix = f"out{i}.{key}"
            assert relative_error(value[:, 3::16, 5::16], fixture.tensors[f"{prefix}.sub"]) < 5e-5, prefix
            scale = float(fixture.tensors[f"{prefix}.absmean"])
            for name, mean in (("mean", value.double().mean()), ("absmean", value.double().abs().mean())):
                assert float(mean - fixture.tensors[f"{prefix}.{name}"]) == pytest.approx(0, abs=1e-5 * scale)


@pytest.mark.parametrize("head_type", HEADS)
@pytest.mark.parametrize("two_confs", [True, False])
@pytest.mark.parametrize("depth", [1, 3, 4])
def test_outputs(head_type, two_confs, depth):
    results = tiny_mast3r(head_type=head_type, two_confs=two_confs, dec_depth=depth)(*pair(batch=2))
    for result, points in zip(results, ("pts3d", "pts3d_in_other_view")):
        assert set(result) == {points, "conf", "desc", "desc_conf"}
        assert result[points].shape == (2, 48, 64, 3)
        assert result["desc"].shape == (2, 48, 64, 8)
        torch.testing.assert_close(result["desc"].norm(dim=-1), torch.ones(2, 48, 64))
        assert (result["conf"] > 1).all()
        assert (result["desc_conf"] > 0).all()
        assert torch.equal(result["desc_conf"], result["conf"]) is not two_confs


def test_head_options_set_widths():
    model = tiny_mast3r(head_type="catmlp+dpt", desc_hidden_ratio=0.5)
    head = model.downstream_head1
    assert isinstance(head, CatMLPDPTHead)
    assert head.head_local_features.fc1.out_features == (32 + 32) // 2
    assert head.dpt.scratch.layer4_rn.weight.shape == (16, 24, 3, 3)
    assert head.dpt.head[4].weight.shape == (4, 8, 1, 1)
    linear = tiny_mast3r().downstream_head2
    assert isinstance(linear, CatMLPLinearHead)
    assert linear.proj.weight.shape == (4 * 256, 32)
    assert linear.head_local_features.fc2.weight.shape == (9 * 256, 64)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"head_type": "linear"},
        {"head_type": "catconv"},
        {"head_type": "catconv+linear", "detail_dim": 0},
        {"output_mode": "pts3d"},
        {"output_mode": "pts3d+desc"},
        {"output_mode": "pts3d+desc0"},
        {"output_mode": "desc24"},
        {"desc_conf_mode": ("exp",)},
    ],
)
def test_bad_options_are_value_errors(kwargs):
    with pytest.raises(ValueError, match=r"\w"):
        tiny_mast3r(**kwargs)


def test_golden_postprocess(golden):
    fixture = golden("postprocess")
    inf = math.inf
    result = postprocess(
        fixture.tensors["raw"][:, :29], ("exp", -inf, inf), ("exp", 1, inf), 24, "norm", True, ("exp", 0, inf)
    )
    assert {f"mast3r.{key}" for key in result} == set(fixture.keys("mast3r."))
    for key, value in result.items():
        fixture.close(value, f"mast3r.{key}", rtol=1e-5, atol=1e-6)
    raw = fixture.tensors["raw"].permute(0, 2, 3, 1)
    fixture.close(reg_desc(raw[..., 4:28], "norm"), "desc.norm", rtol=1e-5, atol=1e-6)


def test_postprocess_without_descriptors_or_confidence():
    raw, depth = torch.randn(1, 8, 2, 2), ("linear", -math.inf, math.inf)
    assert set(postprocess(raw, depth, None)) == {"pts3d"}
    assert set(postprocess(raw, depth, None, 5)) == {"pts3d", "desc"}
    own = postprocess(raw, depth, None, 4, two_confs=True, desc_conf_mode=("exp", 0, math.inf))
    torch.testing.assert_close(own["desc_conf"], raw[:, 7].exp())
    with pytest.raises(ValueError, match="desc_mode"):
        reg_desc(raw, "softmax")


@pytest.mark.parametrize("head_type", HEADS)
def test_tied_start(head_type):
    model = tiny_mast3r(head_type=head_type)
    tie_views_and_patch_offsets(model, noise=0.1, generator=torch.Generator().manual_seed(0))
    for first, second in (
        (model.dec_blocks, model.dec_blocks2),
        (model.downstream_head1, model.downstream_head2),
    ):
        for a, b in zip(first.parameters(), second.parameters()):
            assert torch.equal(a, b)
            assert a is not b
    for layer, positions in model.downstream_head1.offset_layers():
        weight = layer.weight.detach().flatten(1).unflatten(0, (-1, positions))
        shared, spread = weight.mean(dim=1).std(), (weight - weight.mean(dim=1, keepdim=True)).std()
        assert float(spread / shared) == pytest.approx(0.1, rel=0.1)
    one, two = pair()[0], pair()[0]
    result1, result2 = model(one, two)  # the same image twice: both views say the same
    torch.testing.assert_close(result1["desc"], result2["desc"])


def test_tied_start_without_noise_gives_one_descriptor_per_patch():
    model = tiny_mast3r()
    tie_views_and_patch_offsets(model, noise=0)
    desc = model(*pair())[0]["desc"]
    torch.testing.assert_close(desc[:, :16, :16], desc[:, :1, :1].expand(1, 16, 16, 8))
    assert not torch.allclose(desc[:, 0, 0], desc[:, 0, 16])


def test_tied_start_makes_a_rolled_patch_findable():
    """What the start is for: before any training, patches moved by one patch match better than chance."""
    torch.manual_seed(0)
    image = F.interpolate(torch.randn(1, 3, 24, 24), size=(64, 64), mode="bilinear")
    moved = image.roll(16, dims=-1)

    def share(model):
        with torch.no_grad():
            first, second = model({"img": image}, {"img": moved})
        a = first["desc"][0, 8:64:16, 8:48:16].flatten(0, 1)  # patches that stay inside
        b = second["desc"][0, 8:64:16, 24:64:16].flatten(0, 1)
        return float(((a @ b.T).argmax(dim=1) == torch.arange(len(a))).float().mean())

    model = tiny_mast3r()
    before = share(model)
    tie_views_and_patch_offsets(model)
    assert share(model) > max(before, 0.3)


def test_tied_start_errors():
    with pytest.raises(ValueError, match="noise"):
        tie_views_and_patch_offsets(tiny_mast3r(), noise=-1)


def test_features_of_a_stem_carry_its_fine_map():
    model = tiny_mast3r(head_type="catconv+linear")
    view, _ = pair()
    features, positions, _ = model._encode_image(view["img"], [[48, 64]])
    assert features.shape == (1, 12, 32 + 4 * 16)
    fine = model.patch_embed.stem(view["img"])[1]
    torch.testing.assert_close(unfold(features[..., 32:], 3, 4, 16), fine)
    decoded, _ = model._decoder(features, positions, features, positions)
    assert model._downstream_head(1, decoded, (48, 64))["desc"].shape == (1, 48, 64, 8)


def test_portrait_rows_pass_a_stem_as_portrait_images():
    model = tiny_mast3r(head_type="catconv+linear", patch_embed_cls="ManyAR_PatchEmbed", landscape_only=True)
    landscape, _ = pair()
    portrait = {"img": landscape["img"].transpose(-1, -2)}
    shapes = torch.tensor([[64, 48]])
    tokens, _ = model.patch_embed(landscape["img"], shapes)
    upright = tiny_mast3r(head_type="catconv+linear")
    upright.load_state_dict(model.state_dict())
    torch.testing.assert_close(tokens, upright.patch_embed(portrait["img"])[0])


@pytest.mark.parametrize("head_type", HEADS)
def test_torch_export_agrees(head_type):
    model = tiny_mast3r(head_type=head_type)
    program = torch.export.export(model, tuple(pair())).module()
    inputs = pair(seed=8)
    for result, reference in zip(program(*inputs), model(*inputs)):
        for key, value in result.items():
            torch.testing.assert_close(value, reference[key], rtol=1e-4, atol=1e-5)


class Flat(torch.nn.Module):
    """The network with plain tensors at its borders, as ONNX wants it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, img1, img2):
        result1, result2 = self.model({"img": img1}, {"img": img2})
        return (*result1.values(), *result2.values())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("head_type", HEADS)
def test_onnx_runtime_agrees(tmp_path, head_type):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = Flat(tiny_mast3r(head_type=head_type)).eval()
    program = torch.onnx.export(model, tuple(view["img"] for view in pair()), dynamo=True, verbose=False)
    program.save(tmp_path / "tiny.onnx")
    session = runtime.InferenceSession(tmp_path / "tiny.onnx", providers=["CPUExecutionProvider"])
    images = [view["img"] for view in pair(seed=8)]
    names = [node.name for node in session.get_inputs()]
    outputs = session.run(None, {name: image.numpy() for name, image in zip(names, images)})
    with torch.no_grad():
        expected = model(*images)
    assert len(outputs) == len(expected)
    for output, reference in zip(outputs, expected):
        torch.testing.assert_close(torch.from_numpy(output), reference, rtol=1e-3, atol=1e-3)


def test_torch_compile_sees_one_graph():
    model = tiny_mast3r()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    inputs = pair()
    with torch.no_grad():
        for result, reference in zip(compiled(*inputs), model(*inputs)):
            for key, value in result.items():
                torch.testing.assert_close(value, reference[key], rtol=1e-4, atol=1e-5)
