from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from croco.expression import build
from dust3r import losses
from dust3r.losses import (
    L21,
    ConfLoss,
    L21Loss,
    Regr3D,
    Regr3D_ScaleInv,
    Regr3D_ScaleShiftInv,
    Regr3D_ShiftInv,
    details_to_float,
)

REGRESSIONS = [Regr3D, Regr3D_ShiftInv, Regr3D_ScaleInv, Regr3D_ScaleShiftInv]
NORM_MODES = [f"{r}_{d}" for r in ("avg", "median", "sqrt") for d in ("dis", "log1p", "warp-log1p")]
REGISTRY = {
    "L21": L21,
    "ConfLoss": ConfLoss,
    **{f"dust3r.{cls.__name__}": cls for cls in REGRESSIONS},
}

seeds = st.integers(0, 2**31)
few = settings(max_examples=15, deadline=None)


def make_batch(seed: int = 0, *, batch=2, height=4, width=5, dtype=torch.float32):
    """Two random training views in a common world, and predictions for them."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=dtype)

    def view():
        pose = torch.eye(4, dtype=dtype).repeat(batch, 1, 1)
        pose[:, :3, :3] = torch.linalg.qr(normal(batch, 3, 3)).Q
        pose[:, :3, 3] = normal(batch, 3)
        valid = torch.rand(batch, height, width, generator=g) < 0.7
        valid[:, 0, 0] = True
        points = normal(batch, height, width, 3) + 4
        return {"pts3d": points, "camera_pose": pose, "valid_mask": valid, "label": ["x"] * batch}

    def pred(key):
        points = normal(batch, height, width, 3) + 3
        return {key: points, "conf": 1 + normal(batch, height, width).exp()}

    return view(), view(), pred("pts3d"), pred("pts3d_in_other_view")


def with_pred(pred, change):
    return {k: change(v) if k.startswith("pts3d") else v for k, v in pred.items()}


def test_values_match_the_official_code(golden):
    fixture = golden("losses")
    gt1, gt2, pred1, pred2 = (
        {k.removeprefix(f"{n}."): fixture.tensors[k] for k in fixture.keys(f"{n}.")}
        for n in ("gt1", "gt2", "pred1", "pred2")
    )
    cases = {k: c for k, c in fixture.meta["cases"].items() if "dust3r Regr3D" in c["expr"]}
    assert cases
    for name, case in cases.items():
        criterion = build(case["expr"].replace("dust3r ", "dust3r."), REGISTRY)
        loss, details = criterion(gt1, gt2, pred1, pred2)
        fixture.close(loss, f"{name}.loss")
        assert details_to_float(details) == pytest.approx(case["details"], rel=1e-4, abs=1e-5), name
        assert list(details) == list(case["details"])


def test_algebra_is_linear_and_prints_itself():
    batch = make_batch()
    a, b = Regr3D(L21), ConfLoss(Regr3D(L21, gt_scale=True), alpha=0.2)
    va, vb = (float(x(*batch)[0]) for x in (a, b))
    assert float((a + 0.075 * b)(*batch)[0]) == pytest.approx(va + 0.075 * vb, rel=1e-6)
    assert float((a - b)(*batch)[0]) == pytest.approx(va - vb, rel=1e-5)
    assert float((2 * (a - 3 * b))(*batch)[0]) == pytest.approx(2 * va - 6 * vb, rel=1e-5)
    assert float(sum([a, b])(*batch)[0]) == pytest.approx(va + vb, rel=1e-6)
    assert float((-a)(*batch)[0]) == pytest.approx(-va)
    assert repr(a + 0.075 * b) == "Regr3D(L21Loss()) + 0.075*ConfLoss(Regr3D(L21Loss()))"
    assert repr(-1.0 * a) == "-1*Regr3D(L21Loss())"
    assert {"conf_loss_1", "conf_loss2", "Regr3D_pts3d_1"} <= set((a + b)(*batch)[1])


@pytest.mark.parametrize("other", ["text", None, 1.5])
def test_algebra_refuses_other_operands(other):
    with pytest.raises(TypeError):
        Regr3D(L21) + other
    with pytest.raises(TypeError):
        Regr3D(L21) * "2"


def test_errors():
    with pytest.raises(ValueError, match="per-pixel"):
        ConfLoss(ConfLoss(Regr3D(L21)))
    with pytest.raises(ValueError, match="alpha"):
        ConfLoss(Regr3D(L21), alpha=0)
    with pytest.raises(ValueError, match="norm_mode"):
        Regr3D(L21, norm_mode="mean")(*make_batch())
    with pytest.raises(ValueError, match="reduction"):
        L21Loss(reduction="max")
    with pytest.raises(ValueError, match="shape"):
        L21(torch.zeros(2, 3), torch.zeros(3, 3))


def test_point_distance_reductions():
    a, b = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]]), torch.zeros(2, 3)
    assert L21(a, b).item() == pytest.approx(2.5)
    assert L21Loss("sum")(a, b).item() == pytest.approx(5)
    assert L21Loss("none")(a, b).tolist() == pytest.approx([5, 0], abs=1e-12)
    assert L21(a[:0], b[:0]) == 0


@few
@given(seeds, st.floats(0.05, 20), st.floats(-3, 3))
def test_scale_shift_invariance(seed, scale, shift):
    gt1, gt2, pred1, pred2 = make_batch(seed, dtype=torch.float64)
    offset = torch.tensor([0, 0, shift], dtype=torch.float64)
    changes = {
        Regr3D_ScaleShiftInv: lambda x: (x + offset) * scale,
        Regr3D_ScaleInv: lambda x: x * scale,
        Regr3D_ShiftInv: lambda x: x + offset,
    }
    for cls, change in changes.items():
        criterion = cls(L21, norm_mode=None, gt_scale=True)
        before = criterion(gt1, gt2, pred1, pred2)[0]
        after = criterion(gt1, gt2, with_pred(pred1, change), with_pred(pred2, change))[0]
        torch.testing.assert_close(before, after, rtol=1e-9, atol=1e-9)


@few
@given(seeds, st.floats(0.1, 10), st.sampled_from([m for m in NORM_MODES if m.endswith("_dis")]))
def test_regression_ignores_the_common_scale(seed, scale, norm_mode):
    gt1, gt2, pred1, pred2 = make_batch(seed, dtype=torch.float64)
    criterion = Regr3D(L21, norm_mode)
    before = criterion(gt1, gt2, pred1, pred2)[0]
    after = criterion(gt1, gt2, *(with_pred(p, lambda x: x * scale) for p in (pred1, pred2)))[0]
    torch.testing.assert_close(before, after)


@few
@given(seeds)
def test_world_frame_does_not_matter(seed):
    gt1, gt2, pred1, pred2 = make_batch(seed, dtype=torch.float64)
    move = make_batch(seed + 1, dtype=torch.float64)[0]["camera_pose"]

    def moved(view):
        points = torch.einsum("bij,bhwj->bhwi", move[:, :3, :3], view["pts3d"]) + move[:, None, None, :3, 3]
        return view | {"pts3d": points, "camera_pose": move @ view["camera_pose"]}

    criterion = ConfLoss(Regr3D(L21), alpha=0.2)
    before = criterion(gt1, gt2, pred1, pred2)[0]
    torch.testing.assert_close(before, criterion(moved(gt1), moved(gt2), pred1, pred2)[0])


@few
@given(seeds, st.sampled_from(REGRESSIONS), st.sampled_from([None, *NORM_MODES]), st.booleans())
def test_perfect_prediction_costs_nothing(seed, cls, norm_mode, gt_scale):
    gt1, gt2, pred1, pred2 = make_batch(seed, dtype=torch.float64)
    exact = losses.points_in_camera1(gt1, gt2, pred1, pred2).gt
    gt_scale = gt_scale and norm_mode is None  # a normalised prediction cannot equal an unnormalised truth
    loss, _ = cls(L21, norm_mode, gt_scale)(gt1, gt2, {"pts3d": exact[0]}, {"pts3d_in_other_view": exact[1]})
    assert float(loss) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("cls", REGRESSIONS)
@pytest.mark.parametrize("norm_mode", [None, *NORM_MODES])
def test_views_without_valid_pixels_give_finite_losses_and_gradients(cls, norm_mode):
    gt1, gt2, pred1, pred2 = make_batch()
    for gt in (gt1, gt2):
        gt["valid_mask"][0] = False
        gt["pts3d"][~gt["valid_mask"]] = torch.nan
    gt2["valid_mask"][:] = False
    leaves = [pred1["pts3d"].requires_grad_(), pred2["pts3d_in_other_view"].requires_grad_()]
    criterion = ConfLoss(cls(L21, norm_mode), alpha=0.2)
    loss, details = criterion(gt1, gt2, pred1, pred2)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves)
    assert float(details["conf_loss2"]) == 0


def test_dist_clip_drops_far_points():
    gt1, gt2, pred1, pred2 = make_batch()
    criterion = Regr3D(L21, norm_mode=None)
    far = criterion(gt1, gt2, pred1, pred2)[0]
    assert torch.equal(criterion(gt1, gt2, pred1, pred2, dist_clip=1e6)[0], far)
    assert float(criterion(gt1, gt2, pred1, pred2, dist_clip=1e-6)[0]) == 0


@pytest.mark.parametrize("norm_mode", [None, *(m for m in NORM_MODES if "median" not in m)])
def test_gradients_are_exact(norm_mode):
    gt1, gt2, pred1, pred2 = make_batch(batch=1, height=2, width=3, dtype=torch.float64)
    criterion = ConfLoss(Regr3D(L21, norm_mode), alpha=0.2)

    def loss(pts1, pts2, conf1, conf2):
        p1, p2 = {"pts3d": pts1, "conf": conf1}, {"pts3d_in_other_view": pts2, "conf": conf2}
        return criterion(gt1, gt2, p1, p2)[0]

    inputs = (pred1["pts3d"], pred2["pts3d_in_other_view"], pred1["conf"], pred2["conf"])
    assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in inputs])


def test_details_are_detached_and_lazy():
    gt1, gt2, pred1, pred2 = make_batch()
    pred1["pts3d"].requires_grad_()
    _, details = ConfLoss(Regr3D(L21))(gt1, gt2, pred1, pred2)
    assert all(isinstance(v, torch.Tensor) and v.ndim == 0 and not v.requires_grad for v in details.values())
    assert all(type(v) is float for v in details_to_float(details).values())
    assert details_to_float({}) == {}


def test_autocast_changes_nothing():
    batch = make_batch()
    criterion = ConfLoss(Regr3D(L21))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = criterion(*batch)[0]
    assert inside.dtype == torch.float32
    assert torch.equal(inside, criterion(*batch)[0])


def test_half_precision_predictions_are_computed_in_float32():
    gt1, gt2, pred1, pred2 = make_batch()
    half = [{k: v.bfloat16() for k, v in p.items()} for p in (pred1, pred2)]
    rounded = [{k: v.float() for k, v in p.items()} for p in half]
    criterion = ConfLoss(Regr3D(L21))
    assert torch.equal(criterion(gt1, gt2, *half)[0], criterion(gt1, gt2, *rounded)[0])


def test_compiles_without_graph_breaks():
    batch = make_batch()
    criterion = ConfLoss(Regr3D(L21), alpha=0.2) + 0.1 * Regr3D_ScaleShiftInv(L21)
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*batch)[0], criterion(*batch)[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_does_not_wait_for_the_gpu():
    batch = [{k: v.cuda() if torch.is_tensor(v) else v for k, v in d.items()} for d in make_batch()]
    criterion = ConfLoss(Regr3D(L21), alpha=0.2) + Regr3D_ScaleShiftInv(L21)
    batch[2]["pts3d"].requires_grad_()
    criterion(*batch)[0].backward()  # warm up
    torch.cuda.set_sync_debug_mode("error")
    try:
        criterion(*batch)[0].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
