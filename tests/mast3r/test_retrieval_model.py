"""The official retrieval network: golden numbers, checkpoints, and what is refused."""

from __future__ import annotations

import argparse
import pickle

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from croco.checkpoint import CheckpointError
from dust3r.model import AsymmetricCroCo3DStereo
from mast3r.retrieval.asmk import asmk_similarity
from mast3r.retrieval.codebook import Codebook, codebook_path
from mast3r.retrieval.model import (
    RetrievalModel,
    extract_local_features,
    how_select_local,
    load_retrieval_model,
    read_retrieval_config,
    weighted_sum,
)
from mast3r.retrieval.processor import Retriever, image_list
from mast3r.retrieval.whitening import Whitener, pca_whitening
from multiview.images import ImageError
from tests.conftest import load_golden, parse_kwargs
from tests.network_goldens import tiny_mast3r


@pytest.fixture(scope="module")
def fixture():
    return load_golden("retrieval")


def golden_network(fixture) -> RetrievalModel:
    backbone = AsymmetricCroCo3DStereo(**parse_kwargs(load_golden("inference").meta["kwargs"])).eval()
    prefix = "w.backbone."
    report = backbone.load_state_dict(
        {key[len(prefix) :]: fixture.tensors[key] for key in fixture.keys(prefix)}, strict=False
    )
    assert not [key for key in report.missing_keys if key.startswith(("enc_", "patch_embed"))]
    network = RetrievalModel(backbone, **fixture.meta["kwargs"]).eval()
    network.load_state_dict({key: fixture.tensors[f"w.{key}"] for key in fixture.meta["saved_keys"]})
    return network


def test_golden_whitening(fixture):
    mean, projection = pca_whitening(fixture.tensors["white.X"])
    fixture.close(mean, "white.m")
    # the sign of a principal direction is free
    expected = fixture.tensors["white.p"]
    signs = (projection * expected).sum(dim=0).sign()
    fixture.close(projection * signs, "white.p")
    for key, l2norm in (("white.out", None), ("white.out_l2", -1)):
        whitener = Whitener(expected.shape[0], l2norm)
        whitener.load_state_dict({"m": fixture.tensors["white.m"], "p": expected})
        result = whitener(fixture.tensors["white.in"])
        assert result.dtype == fixture.tensors["white.in"].dtype
        fixture.close(result.detach(), key)


def test_whitened_features_are_uncorrelated():
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) @ torch.randn(6, 6)
    mean, projection = pca_whitening(x)
    y = (x.double() - mean) @ projection
    torch.testing.assert_close(y.T @ y / len(y), torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="needs"):
        pca_whitening(torch.empty(0, 3))


def test_golden_selection(fixture):
    feat = fixture.tensors["white.in"]
    attn = feat.norm(dim=-1)
    chosen, weights, index = how_select_local(feat, attn, fixture.tensors["sel.idx"].shape[1])
    fixture.close(chosen, "sel.feat")
    fixture.close(weights, "sel.attn")
    assert torch.equal(index, fixture.tensors["sel.idx"])
    share = fixture.tensors["sel_half.idx"].shape[1] / feat.shape[1]
    assert torch.equal(how_select_local(feat, attn, -share)[2], fixture.tensors["sel_half.idx"])
    fixture.close(weighted_sum(feat, attn), "spoc")
    assert how_select_local(feat, attn, 10_000)[0].shape == feat.shape


@torch.no_grad()
def test_golden_network(fixture):
    network = golden_network(fixture)
    image = fixture.tensors["img"]
    feat, attn = network.forward_features(image)
    fixture.close(feat, "feat")
    fixture.close(attn, "attn")
    local, weights, index = network.forward_local(image)
    fixture.close(local, "local")
    fixture.close(weights, "local_attn")
    assert torch.equal(index, fixture.tensors["local_idx"])
    fixture.close(network.forward_global(image), "glob")
    assert torch.equal(network(image)[0], local)


def test_state_dict_leaves_the_backbone_out(fixture):
    network = golden_network(fixture)
    assert sorted(network.state_dict()) == sorted(fixture.meta["saved_keys"])
    assert not any(parameter.requires_grad for parameter in network.backbone.parameters())
    shell = torch.nn.ModuleDict({"retrieval": network})
    assert not any("backbone" in key for key in shell.state_dict())
    shell.load_state_dict(shell.state_dict())


def test_official_sizes_on_the_meta_device():
    """The layout the official settings give at the official width."""
    with torch.device("meta"):
        backbone = tiny_mast3r(enc_embed_dim=1024, enc_num_heads=16, enc_depth=1)
        network = RetrievalModel(backbone, prewhiten=-1, hdims=[1024, 512], residual=False, postwhiten=-1)
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert shapes == {
        "prewhiten.m": (1, 1024),
        "prewhiten.p": (1024, 1024),
        "projector.0.weight": (1024, 1024),
        "projector.0.bias": (1024,),
        "projector.1.weight": (1024,),
        "projector.1.bias": (1024,),
        "projector.3.weight": (512, 1024),
        "projector.3.bias": (512,),
        "postwhiten.m": (1, 512),
        "postwhiten.p": (512, 512),
    }
    assert network.prewhiten.m.dtype == torch.float64


def test_wrong_settings_are_refused():
    backbone = tiny_mast3r()
    with pytest.raises(ValueError, match="residual"):
        RetrievalModel(backbone, hdims=[7], residual=True)
    with pytest.raises(ValueError, match="featweights"):
        RetrievalModel(backbone, featweights="none")


# --- files ---


@pytest.fixture
def checkpoint(tmp_path):
    """A retrieval checkpoint in the official layout with its codebook, and the backbone it belongs to."""
    torch.manual_seed(1)
    backbone = tiny_mast3r()
    network = RetrievalModel(backbone, prewhiten=-1, hdims=[24, 16], postwhiten=-1, nfeat=6)
    args = argparse.Namespace(
        pretrained="/elsewhere/backbone.pth", freeze_backbone=1, prewhiten="1000", hdims="24_16", residual=False,
        postwhiten=1000, featweights="l2norm", nfeat=6, imsize=64, nclusters=12, another_setting=[1, 2],
    )  # fmt: skip
    weights = {**network.state_dict(), "backbone.mask_token": backbone.mask_token.detach()}
    path = tmp_path / "tiny_retrieval_trained.pth"
    torch.save({"args": args, "model": weights}, path)
    Codebook(torch.randn(12, 16)).save(tmp_path / "tiny_retrieval_codebook.pkl")
    return path, backbone, network


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(4):
        low = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        PILImage.fromarray(low).resize((80, 60), PILImage.Resampling.BICUBIC).save(folder / f"{k}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_checkpoint_round_trip(checkpoint):
    path, backbone, network = checkpoint
    loaded, config = load_retrieval_model(path, backbone)
    assert (config.hdims, config.prewhiten, config.imsize, config.nclusters) == ((24, 16), True, 64, 12)
    image = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        for found, expected in zip(loaded.forward_local(image), network.forward_local(image)):
            torch.testing.assert_close(found, expected)
    again = RetrievalModel(backbone, prewhiten=1, hdims=[24, 16], postwhiten=1, nfeat=6, pretrained_retrieval=path)
    assert torch.equal(again.projector[0].weight, network.projector[0].weight)
    assert read_retrieval_config(path) == config


def test_retriever_reads_folders_lists_and_list_files(checkpoint, photos, tmp_path):
    path, backbone, _ = checkpoint
    retriever = Retriever(path, backbone=backbone)
    out = tmp_path / "scores.npy"
    scores = retriever(photos, outfile=out)
    assert scores.shape == (4, 4)
    features, owners = extract_local_features(retriever.model, image_list(photos), retriever.config.imsize)
    expected = asmk_similarity([features[owners == k] for k in range(4)], retriever.codebook)
    np.testing.assert_array_equal(scores, expected)
    np.testing.assert_array_equal(np.load(out), scores)
    names = [str(photos / f"{k}.png") for k in range(4)]
    np.testing.assert_array_equal(retriever(names), scores)
    listing = tmp_path / "list.txt"
    listing.write_text("\n".join(f"photos/{k}.png" for k in range(4)) + "\n\n")
    np.testing.assert_array_equal(retriever(listing), scores)
    with pytest.raises(ImageError):
        retriever([])
    with pytest.raises(ImageError):
        image_list(tmp_path / "nowhere")
    with pytest.raises(ImageError):
        image_list(photos / "0.png")


def test_features_can_be_limited(checkpoint, photos):
    path, backbone, _ = checkpoint
    network, config = load_retrieval_model(path, backbone)
    images = image_list(photos)
    features, owners = extract_local_features(network, images, config.imsize, tocpu=True)
    assert features.shape == (24, 16)
    assert owners.tolist() == [k for k in range(4) for _ in range(6)]
    fewer, owners = extract_local_features(network, images, config.imsize, max_nfeat_per_image=2)
    assert torch.equal(fewer.view(4, 2, 16), features.view(4, 6, 16)[:, :2])
    drawn, owners = extract_local_features(network, images, config.imsize, max_nfeat_per_image2=3, seed=4)
    same, _ = extract_local_features(network, images, config.imsize, max_nfeat_per_image2=3, seed=4)
    assert len(owners) == len(drawn) == 12
    assert torch.equal(drawn, same)
    with pytest.raises(ValueError, match="image"):
        extract_local_features(network, [], 64)


def test_checkpoints_that_do_not_fit_are_refused(checkpoint, tmp_path):
    path, backbone, network = checkpoint
    with pytest.raises(CheckpointError, match="width"):
        load_retrieval_model(path, tiny_mast3r(enc_embed_dim=64))
    with pytest.raises(CheckpointError, match="no weights at"):  # the backbone it names is not here
        Retriever(path)
    Codebook(torch.randn(12, 8)).save(codebook_path(path))
    with pytest.raises(CheckpointError, match="channels"):
        Retriever(path, backbone=backbone)
    other = tmp_path / "other.pth"
    torch.save({"model": network.state_dict()}, other)
    with pytest.raises(CheckpointError, match="args"):
        load_retrieval_model(other, backbone)
    torch.save({"args": argparse.Namespace(hdims="a_b", nfeat=3), "model": {}}, other)
    with pytest.raises(CheckpointError, match="not understood"):
        load_retrieval_model(other, backbone)
    torch.save({"args": argparse.Namespace(hdims="", nfeat=3), "model": []}, other)
    with pytest.raises(CheckpointError, match="no weights"):
        load_retrieval_model(other, backbone)


# --- codebooks ---


class Malicious:
    def __reduce__(self):
        return (pytest.fail, ("code of the file was executed",))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_codebook_files_of_every_pickle_protocol(tmp_path, protocol):
    centroids = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    path = tmp_path / "x_codebook.pkl"
    content = {"type": "Codebook", "params": {"size": np.int64(5)}, "state": {"centroids": centroids}}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    assert torch.equal(Codebook.load(path).centroids, torch.from_numpy(centroids))
    # NumPy 1 wrote other module names
    path.write_bytes(path.read_bytes().replace(b"numpy._core", b"numpy.core") if protocol == 0 else path.read_bytes())
    assert len(Codebook.load(path)) == 5


def test_codebook_files_execute_nothing(tmp_path):
    path = tmp_path / "x_codebook.pkl"
    for content in (
        Malicious(),
        {"state": {"centroids": Malicious()}},
        {"state": {"centroids": np.array([Malicious()])}},
    ):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(CheckpointError, match="refused"):
            Codebook.load(path)
    for content in ({}, [], {"state": {}}, {"state": {"centroids": np.zeros(3)}}, {"state": {"centroids": [[1.0]]}}):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(CheckpointError, match="no codebook"):
            Codebook.load(path)
    path.write_bytes(pickle.dumps({"state": {"centroids": np.full((2, 2), np.nan)}}))
    with pytest.raises(CheckpointError, match="finite"):
        Codebook.load(path)
    whole = pickle.dumps({"state": {"centroids": np.zeros((40, 4))}})
    for length in (0, 1, 20, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            Codebook.load(path)
    with pytest.raises(CheckpointError, match="cannot read"):
        Codebook.load(tmp_path / "missing.pkl")


def test_codebook_name():
    assert codebook_path("a/M_metric_retrieval_trainingfree.pth").name == "M_metric_retrieval_codebook.pkl"
    assert codebook_path("plain.pth").name == "plain_codebook.pkl"
