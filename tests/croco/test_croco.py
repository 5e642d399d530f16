"""Cross-view completion: golden numbers, patchify, pre-training loss, manifests."""

from __future__ import annotations

import pytest
import torch

from croco.models.criterion import MaskedMSE
from croco.models.croco import CroCoNet
from tests.network_goldens import CLASSES, golden_model, manifests, parse_kwargs, relative_error

NAMES = ["croco_rope", "croco_cosine"]


@pytest.mark.parametrize("manifest", manifests(), ids=lambda manifest: manifest["name"])
def test_state_dict_matches_the_published_manifest(manifest):
    with torch.device("meta"):
        model = CLASSES[manifest["cls"]](**parse_kwargs(manifest["kwargs"]))
    state = model.state_dict()
    described = {key: [list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in state.items()}
    assert described == manifest["state_dict"]
    assert len(state) == manifest["n_keys"]
    assert sum(p.numel() for p in model.parameters()) == manifest["n_params"]
    assert sum(b.numel() for b in model.buffers()) == manifest["n_buffer_elems"]
    kept = model.state_dict(keep_vars=True)
    assert all(kept[alias] is kept[key] for alias, key in manifest["alias_keys"].items())


@pytest.mark.parametrize("name", NAMES)
def test_golden_forward_with_the_stored_mask(golden, name):
    fixture = golden(name)
    model, t = golden_model(fixture), fixture.tensors
    torch.manual_seed(fixture.meta["mask_torch_seed"])
    prediction, mask, target = model(t["img1"], t["img2"])
    assert torch.equal(mask, t["mask"])
    assert relative_error(prediction.detach(), t["out"]) < 1e-5
    assert torch.equal(target, t["target"])
    assert relative_error(model.unpatchify(prediction).detach(), t["unpatchify_out"]) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_golden_noise_is_the_mask(golden, name):
    t = golden(name).tensors
    hidden = t["mask"].sum(dim=1)
    assert torch.equal(t["noise"].argsort(dim=1) < hidden[:, None], t["mask"])


@pytest.mark.parametrize("name", NAMES)
def test_golden_float64(golden, name):
    fixture = golden(name)
    if "out64" not in fixture.tensors:
        pytest.skip("no float64 reference")
    model, t = golden_model(fixture).double(), fixture.tensors
    torch.manual_seed(fixture.meta["mask_torch_seed"])
    # the default dtype decides in which precision the mask noise is drawn: it stays float32
    prediction, _, _ = model(t["img1"].double(), t["img2"].double())
    assert relative_error(prediction.detach(), t["out64"]) < 1e-7


@pytest.mark.parametrize("name", NAMES)
def test_golden_losses_and_gradients(golden, name):
    fixture = golden(name)
    model, t = golden_model(fixture), fixture.tensors
    torch.manual_seed(fixture.meta["mask_torch_seed"])
    output = model(t["img1"], t["img2"])
    for key in fixture.keys("loss_"):
        _, norm, masked = key.split("_")
        fixture.close(MaskedMSE(norm == "norm", masked == "masked")(*output).detach(), key, rtol=1e-5)
    MaskedMSE(norm_pix_loss=True)(*output).backward()
    for key in fixture.keys("grad."):
        grad = model.get_parameter(key.removeprefix("grad.")).grad
        assert relative_error(grad, t[key]) < 1e-5, key


@pytest.mark.parametrize("name", NAMES)
def test_golden_block_outputs(golden, name):
    fixture = golden(name)
    model, t = golden_model(fixture), fixture.tensors
    with torch.no_grad():
        encoded, positions, mask = model._encode_image(t["img1"], return_all_blocks=True)
        other, other_positions, _ = model._encode_image(t["img2"])
        decoded = model._decoder(encoded[-1], positions, None, other, other_positions, return_all_blocks=True)
    assert not mask.any()
    assert torch.equal(positions, t["pos"])
    assert relative_error(encoded[-1], t["enc_full"]) < 1e-5
    for prefix, outputs in (("enc_all", encoded), ("dec_all", decoded)):
        assert len(outputs) == len(fixture.keys(prefix))
        for i, output in enumerate(outputs):
            assert relative_error(output, t[f"{prefix}.{i}"]) < 1e-5


def test_patchify_round_trip():
    model = CroCoNet(img_size=(32, 48), enc_depth=0, dec_depth=0, enc_embed_dim=8, dec_embed_dim=8)
    images = torch.randn(2, 3, 32, 48)
    patches = model.patchify(images)
    assert patches.shape == (2, 6, 768)
    assert torch.equal(patches[0, 1, :6], images[0, :, 0, 16:18].T.flatten())  # channel fastest, then column
    assert torch.equal(model.unpatchify(patches), images)


@pytest.mark.parametrize("pos_embed", ["RoPE", "rope100", "learned", "RoPE1x"])
def test_unknown_position_embedding(pos_embed):
    with pytest.raises(ValueError, match="pos_embed must be"):
        CroCoNet(img_size=32, enc_depth=0, dec_depth=0, pos_embed=pos_embed)


def test_pretraining_learns(golden):
    torch.manual_seed(0)
    model = CroCoNet(
        img_size=32, patch_size=8, mask_ratio=0.5, pos_embed="RoPE100",
        enc_embed_dim=32, enc_depth=1, enc_num_heads=2, dec_embed_dim=32, dec_depth=2, dec_num_heads=2,
    )  # fmt: skip
    images = torch.nn.functional.interpolate(torch.randn(8, 3, 4, 4), size=32, mode="bilinear")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = MaskedMSE()(*model(images, images.roll(4, dims=-1)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_historic_import_names():
    import mast3r.utils.path_to_dust3r  # noqa: F401, I001
    import dust3r.utils.path_to_croco as bootstrap
    import models.criterion
    import models.croco
    from models.dpt_block import DPTOutputAdapter
    from models.pos_embed import RoPE2D

    assert models.croco.CroCoNet is CroCoNet
    assert models.criterion.MaskedMSE is MaskedMSE
    assert DPTOutputAdapter.__module__ == "croco.models.dpt_block"
    assert RoPE2D.__module__ == "croco.models.pos_embed"
    assert bootstrap.register_models_alias()


def test_historic_names_never_displace_another_package(monkeypatch):
    import sys
    import types

    from dust3r.utils.path_to_croco import register_models_alias

    taken = types.ModuleType("models")
    monkeypatch.setitem(sys.modules, "models", taken)
    assert not register_models_alias()
    assert sys.modules["models"] is taken
