"""`inference` against the golden numbers, encoding each image once; training step helpers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dust3r import inference as inference_module
from dust3r.image_pairs import make_pairs
from dust3r.inference import (
    check_if_same_size,
    find_opt_scaling,
    get_pred_pts3d,
    inference,
    loss_of_one_batch,
    make_batch_symmetric,
)


def view(idx: int, height: int, width: int, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed + idx)
    return {
        "img": torch.rand(1, 3, height, width, generator=generator) * 2 - 1,
        "true_shape": torch.tensor([[height, width]], dtype=torch.int32).numpy(),
        "idx": idx,
        "instance": str(idx),
    }


class Network(nn.Module):
    """A stand-in with the methods of a two-view network; it counts the images it encodes."""

    def __init__(self):
        super().__init__()
        self.encoded = 0
        self.calls = 0

    def _encode_image(self, image, true_shape):
        assert len(true_shape) == len(image)
        self.encoded += len(image)
        self.calls += 1
        tokens = nn.functional.avg_pool2d(image, 16).flatten(2).transpose(1, 2)
        return tokens, torch.zeros(*tokens.shape[:2], 2, dtype=torch.long), None

    def _decoder(self, f1, pos1, f2, pos2):
        return [f1, f1 + f2.mean(1, keepdim=True)], [f2, f2 - f1.mean(1, keepdim=True)]

    def _downstream_head(self, number, tokens, shape):
        height, width = (int(side) for side in shape[0])
        last = tokens[-1].transpose(1, 2).reshape(-1, 3, height // 16, width // 16)
        points = nn.functional.interpolate(last, (height, width)).permute(0, 2, 3, 1) * number
        return {"pts3d": points, "conf": points.norm(dim=-1) + 1}

    def forward(self, view1, view2):
        features = [self._encode_image(v["img"], v["true_shape"])[:2] for v in (view1, view2)]
        tokens = self._decoder(*features[0], *features[1])
        first, second = (
            self._downstream_head(n, t, torch.as_tensor(v["true_shape"]))
            for n, (t, v) in enumerate(zip(tokens, (view1, view2)), 1)
        )
        second["pts3d_in_other_view"] = second.pop("pts3d")
        return first, second


class Plain(nn.Module):
    """The same network offering `forward` only."""

    def __init__(self):
        super().__init__()
        self.inner = Network()

    def forward(self, view1, view2):
        return self.inner(view1, view2)


def describe(value):
    if isinstance(value, torch.Tensor):
        return {"type": "Tensor", "shape": list(value.shape), "dtype": str(value.dtype)}
    if isinstance(value, dict):
        return {key: describe(item) for key, item in value.items()}
    if isinstance(value, list):
        return {"type": "list", "len": len(value), "item": describe(value[0])}
    return {"type": type(value).__name__, "value": value}


@pytest.mark.parametrize("cached", [True, False])
def test_golden_inference(golden, conftest_kwargs, monkeypatch, cached):
    model_module = pytest.importorskip("dust3r.model")
    fixture = golden("inference")
    model = getattr(model_module, fixture.meta["cls"])(**conftest_kwargs(fixture.meta["kwargs"]))
    weights = {key[2:]: fixture.tensors[key] for key in fixture.keys("w.")}
    model.load_state_dict(weights, strict=True)
    model.eval()
    if not cached:
        monkeypatch.setattr(inference_module, "_TOKEN_METHODS", ("no such method",))
    for name, run in fixture.meta["runs"].items():
        images = []
        while f"{name}.img{len(images)}" in fixture.tensors:
            img = fixture.tensors[f"{name}.img{len(images)}"]
            shape = torch.tensor([img.shape[-2:]], dtype=torch.int32).numpy()
            images.append({"img": img, "true_shape": shape, "idx": len(images), "instance": str(len(images))})
        pairs = make_pairs(images, "complete")
        assert [[a["idx"], b["idx"]] for a, b in pairs] == run["pairs"]
        assert check_if_same_size(pairs) == run["same_size"]
        output = inference(pairs, model, "cpu", batch_size=4, verbose=False)
        assert describe(output) == run["structure"]
        assert output["view1"]["idx"] == run["idx1"]
        assert output["view2"]["idx"] == run["idx2"]
        for key in fixture.keys(f"{name}.pred"):
            _, pred, field, number = key.split(".")
            fixture.close(output[pred][field][int(number)], key)


@pytest.fixture
def conftest_kwargs():
    """JSON kwargs to constructor arguments: infinities are strings there, tuples are lists."""

    def convert(value):
        if isinstance(value, dict):
            return {key: convert(item) for key, item in value.items()}
        if isinstance(value, list):
            return tuple(convert(item) for item in value)
        return float(value) if value in ("inf", "-inf") else value

    return convert


@pytest.mark.parametrize("sizes", [[(32, 48)] * 4, [(32, 48), (48, 32), (32, 48), (64, 32)]])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_each_image_is_encoded_once(sizes, batch_size):
    pairs = make_pairs([view(i, *size) for i, size in enumerate(sizes)], "complete")
    cached, plain = Network(), Plain()
    first = inference(pairs, cached, "cpu", batch_size=batch_size, verbose=False)
    second = inference(pairs, plain, "cpu", batch_size=batch_size, verbose=False)
    assert cached.encoded == len(sizes)
    assert plain.inner.encoded == 2 * len(pairs)
    assert first["view1"]["idx"] == second["view1"]["idx"]
    for pred in ("pred1", "pred2"):
        torch.testing.assert_close(first[pred], second[pred])


def test_images_are_told_apart_by_tensor_not_by_index():
    a, b = view(0, 32, 48), view(0, 32, 48, seed=5)
    model = Network()
    output = inference([(a, b), (b, a)], model, "cpu", verbose=False)
    assert model.encoded == 2
    assert not torch.equal(output["pred1"]["pts3d"][0], output["pred1"]["pts3d"][1])


def test_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(inference_module, "FEATURE_CACHE_BYTES", 1)
    model = Network()
    cache = inference_module.FeatureCache(model, torch.device("cpu"), max_bytes=300)
    views = [view(i, 32, 48) for i in range(3)]  # 6 tokens: 72 + 96 bytes an image
    expected = [features.clone() for features, _ in cache.encode(views)]
    assert model.encoded == 3
    assert model.calls == 1
    again = cache.encode([views[2]])
    assert model.encoded == 3, "the most recent image is still there"
    assert torch.equal(again[0][0], expected[2])
    assert torch.equal(cache.encode([views[0]])[0][0], expected[0])
    assert model.encoded == 4, "the oldest was dropped"


def test_views_with_their_own_batch_use_the_plain_path():
    first, second = (
        {"img": torch.rand(2, 3, 32, 48), "true_shape": torch.tensor([[32, 48]] * 2), "idx": [0, 1]} for _ in "ab"
    )
    model = Network()
    output = inference([(first, second)], model, "cpu", verbose=False)
    assert output["pred1"]["pts3d"].shape == (2, 32, 48, 3)


def test_views_stay_unchanged_and_gradients_off():
    pairs = make_pairs([view(i, 32, 48) for i in range(2)])
    keys = [set(v) for pair in pairs for v in pair]
    output = inference(pairs, Network(), "cpu", verbose=False)
    assert [set(v) for pair in pairs for v in pair] == keys
    assert not output["pred1"]["pts3d"].requires_grad
    assert not output["pred1"]["pts3d"].is_inference(), "later optimisation must be able to use it"


def test_refusals():
    with pytest.raises(ValueError, match="no pairs"):
        inference([], Network(), "cpu")
    with pytest.raises(ValueError, match="batch_size"):
        inference(make_pairs([view(i, 32, 48) for i in range(2)]), Network(), "cpu", batch_size=0)


def test_loss_of_one_batch():
    views = [view(i, 32, 48) for i in range(2)]
    batch = tuple(v | {"dataset": ["x"], "depthmap": torch.zeros(1, 32, 48)} for v in views)

    def criterion(view1, view2, pred1, pred2):
        return pred1["conf"].sum() + pred2["conf"].sum(), {"detail": 1.0}

    result = loss_of_one_batch(batch, Network(), criterion, "cpu")
    assert set(result) == {"view1", "view2", "pred1", "pred2", "loss"}
    assert result["loss"][1] == {"detail": 1.0}
    assert loss_of_one_batch(batch, Network(), None, "cpu")["loss"] is None
    assert torch.equal(loss_of_one_batch(batch, Network(), criterion, "cpu", ret="loss")[0], result["loss"][0])
    half = loss_of_one_batch(batch, Network(), None, "cpu", use_amp=torch.bfloat16)
    assert half["view1"]["idx"] == 0


def test_symmetric_batch():
    first, second = ({"img": torch.full((2, 1), float(i)), "name": [f"{i}a", f"{i}b"]} for i in range(2))
    one, two = make_batch_symmetric((first, second))
    assert one["img"].ravel().tolist() == [0, 1, 0, 1]
    assert two["img"].ravel().tolist() == [1, 0, 1, 0]
    assert one["name"] == ["0a", "1a", "0b", "1b"]
    assert two["name"] == ["1a", "0a", "1b", "0b"]


def test_get_pred_pts3d():
    points = torch.rand(1, 4, 5, 3)
    pose = torch.eye(4)[None]
    pose[0, :3, 3] = torch.tensor([1.0, 2.0, 3.0])
    assert get_pred_pts3d({}, {"pts3d": points}) is points
    assert get_pred_pts3d({}, {"pts3d_in_other_view": points}, use_pose=True) is points
    moved = get_pred_pts3d({}, {"pts3d": points, "camera_pose": pose}, use_pose=True)
    torch.testing.assert_close(moved, points + pose[:, None, None, :3, 3])
    K = torch.tensor([[[10.0, 0, 2], [0, 10, 1.5], [0, 0, 1]]])
    pred = {"depth": torch.full((1, 4, 5), 2.0), "pseudo_focal": torch.full((1, 4, 5), 10.0)}
    torch.testing.assert_close(get_pred_pts3d({"camera_intrinsics": K}, pred)[0, 0, 0], torch.tensor([-0.4, -0.3, 2.0]))
    with pytest.raises(ValueError, match="pts3d"):
        get_pred_pts3d({}, {})
    with pytest.raises(ValueError, match="camera_pose"):
        get_pred_pts3d({}, {"pts3d": points}, use_pose=True)


@pytest.mark.parametrize("mode", ["avg", "median", "weiszfeld", "weiszfeld_stop_grad"])
def test_find_opt_scaling_recovers_the_scale(mode):
    torch.manual_seed(0)
    predicted = torch.rand(2, 6, 7, 3) + 0.5
    scale = torch.tensor([0.5, 3.0])
    truth = predicted * scale[:, None, None, None]
    valid = torch.rand(2, 6, 7) > 0.2
    truth[~valid] = float("nan")
    found = find_opt_scaling(truth, truth, predicted, predicted, fit_mode=mode, valid1=valid, valid2=valid)
    torch.testing.assert_close(found, scale, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(find_opt_scaling(truth, None, predicted, fit_mode=mode), scale, rtol=1e-4, atol=1e-4)


def test_find_opt_scaling_is_robust_bounded_and_differentiable():
    torch.manual_seed(0)
    predicted = (torch.rand(1, 10, 10, 3) + 0.5).requires_grad_()
    truth = 2 * predicted.detach()
    truth[:, :2] *= 20
    robust = find_opt_scaling(truth, None, predicted, fit_mode="weiszfeld")
    mean = find_opt_scaling(truth, None, predicted, fit_mode="avg")
    assert abs(robust.item() - 2) < 0.2 < abs(mean.item() - 2)
    assert robust.requires_grad
    assert not find_opt_scaling(truth, None, predicted).requires_grad
    assert find_opt_scaling(-truth, None, predicted).item() == pytest.approx(1e-3)
    with pytest.raises(ValueError, match="fit_mode"):
        find_opt_scaling(truth, None, predicted, fit_mode="mean")
