"""The DPT adapter: golden maps at every stage, odd grids, other patch sizes."""

from __future__ import annotations

import pytest
import torch

from croco.models.dpt_block import DPTOutputAdapter
from tests.conftest import parse_kwargs
from tests.network_goldens import recipe_state, relative_error


def adapter(fixture) -> DPTOutputAdapter:
    """The fixture's adapter; weights are stored, or made by the recipe under the names `dpt.*`."""
    kwargs = parse_kwargs(fixture.meta["kwargs"])
    kwargs["hooks"], kwargs["dim_tokens_enc"] = kwargs.pop("hooks_idx"), kwargs.pop("dim_tokens")
    model = torch.nn.ModuleDict({"dpt": DPTOutputAdapter(**kwargs)})
    stored = {key[2:]: value for key, value in fixture.tensors.items() if key.startswith("w.")}
    if stored:  # aliases are omitted there
        for i in range(4):
            stored[f"dpt.scratch.layer_rn.{i}.weight"] = stored[f"dpt.scratch.layer{i + 1}_rn.weight"]
    model.load_state_dict(stored or recipe_state(model, fixture.meta["weight_seed"]))
    return model["dpt"]


def test_golden_stages(golden):
    fixture = golden("dpt_unit")
    dpt, size = adapter(fixture), tuple(fixture.meta["image_size"])
    tokens = [fixture.tensors[f"in.tok{i}"] for i in range(len(fixture.keys("in.tok")))]
    with torch.no_grad():
        maps = dpt.reassemble(tokens, size)
        layers = [project(x) for project, x in zip(dpt.scratch.layer_rn, maps)]
        path4 = dpt.scratch.refinenet4(layers[3])
        rows, columns = layers[2].shape[-2:]
        path3 = dpt.scratch.refinenet3(path4[..., :rows, :columns], layers[2])
        path2 = dpt.scratch.refinenet2(path3, layers[1])
        output = dpt(tokens, size)
    stages = {"path4_uncropped": path4, "path3": path3, "path2": path2}
    stages |= {f"act{i}": x for i, x in enumerate(maps, start=1)}
    stages |= {f"layer{i}": x for i, x in enumerate(layers, start=1)}
    for name, value in stages.items():
        assert relative_error(value, fixture.tensors[f"mid.{name}"]) < 1e-5, name
    assert relative_error(output, fixture.tensors["out"]) < 1e-5
    with torch.no_grad():
        output64 = dpt.double()([token.double() for token in tokens], size)
    assert relative_error(output64, fixture.tensors["out64"]) < 1e-12


@pytest.mark.parametrize("patch_size", [14, 16])
@pytest.mark.parametrize("grid", [(2, 3), (3, 3), (1, 5)])
def test_output_has_the_size_of_the_image(patch_size, grid):
    dpt = DPTOutputAdapter(
        num_channels=4, patch_size=patch_size, hooks=(0, 0, 1, 1), layer_dims=(4, 4, 4, 4), feature_dim=4,
        last_dim=4, dim_tokens_enc=8,
    )  # fmt: skip
    size = (grid[0] * patch_size, grid[1] * patch_size)
    tokens = [torch.randn(2, grid[0] * grid[1], 8) for _ in range(2)]
    assert dpt(tokens, size).shape == (2, 4, *size)


@pytest.mark.parametrize(
    "kwargs", [{"use_bn": True}, {"head_type": "semseg"}, {"output_width_ratio": 2}, {"stride_level": 4}]
)
def test_unsupported_options(kwargs):
    with pytest.raises(ValueError, match="supports"):
        DPTOutputAdapter(**kwargs)


def test_wrong_lengths():
    with pytest.raises(ValueError, match="four hooks"):
        DPTOutputAdapter(hooks=(0, 1))
