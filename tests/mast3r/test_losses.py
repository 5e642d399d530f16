from __future__ import annotations

import ast
import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dust3r.losses
import mast3r.losses
from croco.expression import build
from dust3r.losses import details_to_float
from mast3r.losses import (
    L21,
    APLoss,
    ConfLoss,
    ConfMatchingLoss,
    InfoNCE,
    MatchingLoss,
    Regr3D,
    Regr3D_ScaleInv,
    Regr3D_ScaleShiftInv,
    Regr3D_ShiftInv,
)

REGRESSIONS = ["Regr3D", "Regr3D_ShiftInv", "Regr3D_ScaleInv", "Regr3D_ScaleShiftInv"]
REGISTRY = {
    **{name: getattr(mast3r.losses, name) for name in mast3r.losses.__all__},
    **{f"dust3r.{name}": getattr(dust3r.losses, name) for name in REGRESSIONS},
    **{f"mast3r.{name}": getattr(mast3r.losses, name) for name in REGRESSIONS},
    "float16": torch.float16,
}

seeds = st.integers(0, 2**31)
few = settings(max_examples=15, deadline=None)


# ------------------------------------------------------------------------------------ golden numbers


def full_expressions(cases: dict) -> dict[str, str]:
    """Criterion text of every case; `... key=value` is its group's first case with that option changed."""
    texts: dict[str, str] = {}
    first_of_group: dict[str, str] = {}
    for name, case in cases.items():
        text = case["expr"].replace("dust3r ", "dust3r.").replace("mast3r ", "mast3r.")
        group = name.rpartition(".")[0]
        if text.startswith("..."):
            text = with_options(first_of_group[group], text.removeprefix("..."))
        else:
            first_of_group.setdefault(group, text)
        texts[name] = text
    return texts


def with_options(text: str, options: str) -> str:
    """`text` with each keyword of `options` given to the outermost call that accepts it."""
    tree = ast.parse(text, mode="eval")
    for option in ast.parse(f"f({options})", mode="eval").body.keywords:
        for call in ast.walk(tree):
            if isinstance(call, ast.Call):
                accepted = inspect.signature(REGISTRY[ast.unparse(call.func)]).parameters
                if option.arg in accepted:
                    call.keywords = [k for k in call.keywords if k.arg != option.arg] + [option]
                    break
    return ast.unparse(tree)


def golden_batch(fixture):
    """The two views and the two predictions, whose floating tensors require gradients."""
    views = [
        {k.removeprefix(f"{n}."): fixture.tensors[k] for k in fixture.keys(f"{n}.")}
        for n in ("gt1", "gt2", "pred1", "pred2")
    ]
    leaves = [{k: v.clone().requires_grad_() for k, v in pred.items()} for pred in views[2:]]
    return *views[:2], *leaves


def run_case(fixture, name: str, text: str):
    """Loss, details and predictions (with gradients) of one golden case."""
    seed = fixture.meta["cases"][name]["np_seed"]
    if seed is not None:
        np.random.seed(seed)
    batch = golden_batch(fixture)
    return *build(text, REGISTRY)(*batch), *batch[2:]


def test_values_and_details_match_the_official_code(golden):
    fixture = golden("losses")
    cases = fixture.meta["cases"]
    for name, text in full_expressions(cases).items():
        loss, details, _, _ = run_case(fixture, name, text)
        rel = 2e-2 if "float16" in text else 1e-4  # half precision creates ties in rankings
        fixture.close(loss.detach(), f"{name}.loss", rtol=rel)
        assert details_to_float(details) == pytest.approx(cases[name]["details"], rel=rel, abs=1e-5), name
        assert list(details) == list(cases[name]["details"]), name
        if "repr" in cases[name]:
            assert repr(build(text, REGISTRY)) == cases[name]["repr"]


def test_gradients_match_the_official_code(golden):
    fixture, gradients = golden("losses"), golden("losses_grad")
    texts = full_expressions(fixture.meta["cases"])
    checked = 0
    for name in {k.split(".grad")[0] for k in gradients.tensors}:
        loss, _, *preds = run_case(fixture, name, texts[name])
        loss.backward()
        for key in gradients.keys(f"{name}.grad"):
            view, leaf = key.removeprefix(f"{name}.grad").split(".")
            grad = preds[int(view) - 1][leaf].grad
            if leaf == "desc":
                x, y = fixture.tensors[f"gt{view}.corres"].unbind(-1)
                grad = grad[torch.arange(len(x))[:, None], y, x]
            gradients.close(grad, key)
            checked += 1
    assert checked == len(gradients.tensors)


def test_block_shuffle_follows_numpys_global_state(golden):
    fixture = golden("losses")
    seeds = {c["np_seed"] for c in fixture.meta["cases"].values()} - {None}
    expected = fixture.tensors["block_perm"]
    B, N = expected.shape
    rows = torch.arange(N).expand(B, N)
    for seed in seeds:
        np.random.seed(seed)
        xy = rows[..., None].expand(B, N, 2)
        corres = mast3r.losses.Correspondences(xy, xy, rows)
        assert torch.equal(corres.shuffled(None).valid, expected)


# ------------------------------------------------------------------------------------- small batches


def make_batch(seed: int = 0, *, batch=2, height=6, width=7, n=8, dim=4, dtype=torch.float32):
    """Two random training views and predictions for them."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=dtype)

    def view():
        index = torch.stack([torch.randperm(height * width, generator=g)[:n] for _ in range(batch)])
        return {
            "pts3d": normal(batch, height, width, 3) + 4,
            "camera_pose": torch.eye(4, dtype=dtype).repeat(batch, 1, 1),
            "valid_mask": torch.rand(batch, height, width, generator=g) < 0.7,
            "sky_mask": torch.rand(batch, height, width, generator=g) < 0.2,
            "is_metric_scale": torch.arange(batch) % 2 == 0,
            "corres": torch.stack([index % width, index // width], dim=-1),
            "valid_corres": torch.arange(n).expand(batch, n) < n // 2,
        }

    def pred(key):
        return {
            key: normal(batch, height, width, 3) + 3,
            "conf": 1 + normal(batch, height, width).exp(),
            "desc": torch.nn.functional.normalize(normal(batch, height, width, dim), dim=-1),
            "desc_conf": normal(batch, height, width).exp(),
        }

    return view(), view(), pred("pts3d"), pred("pts3d_in_other_view")


def scaled(pred, factor):
    return {k: v * factor if k.startswith("pts3d") else v for k, v in pred.items()}


@few
@given(seeds, st.floats(0.2, 5).filter(lambda s: abs(s - 1) > 0.05))
def test_question_mark_keeps_the_scale_of_metric_samples_only(seed, scale):
    gt1, gt2, pred1, pred2 = make_batch(seed, dtype=torch.float64)
    for metric in (True, False):
        flag = {"is_metric_scale": torch.full((2,), metric)}
        criterion = Regr3D(L21, norm_mode="?avg_dis", sky_loss_value=0)
        before = criterion(gt1 | flag, gt2 | flag, pred1, pred2)[0]
        after = criterion(gt1 | flag, gt2 | flag, scaled(pred1, scale), scaled(pred2, scale))[0]
        assert torch.isclose(before, after, rtol=1e-9) != metric
        without = Regr3D(L21, norm_mode="avg_dis", sky_loss_value=0)(gt1, gt2, pred1, pred2)[0]
        assert torch.isclose(before, without, rtol=1e-9) != metric


@few
@given(seeds, st.floats(0.2, 5))
def test_metric_loss_ignores_a_common_unit(seed, unit):
    gt1, gt2, pred1, pred2 = make_batch(seed, dtype=torch.float64)
    criterion = Regr3D(L21, norm_mode="?avg_dis", sky_loss_value=0)
    before = criterion(gt1, gt2, pred1, pred2)[0]
    after = criterion(scaled(gt1, unit), scaled(gt2, unit), scaled(pred1, unit), scaled(pred2, unit))[0]
    torch.testing.assert_close(before, after)


def test_max_metric_scale_makes_far_samples_relative():
    gt1, gt2, pred1, pred2 = make_batch()
    options = {"norm_mode": "?avg_dis", "sky_loss_value": 0}
    batch = gt1, gt2, pred1, pred2
    relative = Regr3D(L21, norm_mode="avg_dis", sky_loss_value=0)(*batch)[0]
    assert torch.equal(Regr3D(L21, **options, max_metric_scale=1e-3)(*batch)[0], relative)
    assert torch.equal(Regr3D(L21, **options, max_metric_scale=1e3)(*batch)[0], Regr3D(L21, **options)(*batch)[0])


def test_sky_pixels_cost_a_constant():
    gt1, gt2, pred1, pred2 = make_batch()
    for gt in (gt1, gt2):
        gt["valid_mask"] = torch.zeros_like(gt["valid_mask"])
    loss, details = Regr3D(L21, sky_loss_value=3)(gt1, gt2, pred1, pred2)
    assert float(loss) == pytest.approx(6)
    assert float(details["Regr3D_pts3d_1"]) == pytest.approx(3)
    assert float(Regr3D(L21, sky_loss_value=0)(gt1, gt2, pred1, pred2)[0]) == 0


@pytest.mark.parametrize("norm_mode", [None, "?avg_dis", "?median_dis", "?avg_warp-log1p"])
@pytest.mark.parametrize("loss_in_log", [False, True, "before"])
@pytest.mark.parametrize("cls", [Regr3D, Regr3D_ShiftInv, Regr3D_ScaleInv, Regr3D_ScaleShiftInv])
def test_views_without_valid_pixels_give_finite_gradients(cls, loss_in_log, norm_mode):
    gt1, gt2, pred1, pred2 = make_batch()
    gt1["valid_mask"][0] = gt2["valid_mask"][0] = False
    leaves = [pred1["pts3d"].requires_grad_(), pred2["pts3d_in_other_view"].requires_grad_()]
    criterion = ConfLoss(cls(L21, norm_mode, loss_in_log=loss_in_log), alpha=0.2)
    loss, _ = criterion(gt1, gt2, pred1, pred2)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves)


def test_warped_normalisation_of_a_perfect_metric_prediction_costs_nothing():
    gt1, gt2, _, _ = make_batch(dtype=torch.float64)
    preds = {"pts3d": gt1["pts3d"]}, {"pts3d_in_other_view": gt2["pts3d"]}
    for mode in ("?avg_dis", "?avg_log1p", "?avg_warp-log1p", "?sqrt_dis"):
        assert float(Regr3D(L21, mode, sky_loss_value=0)(gt1, gt2, *preds)[0]) == pytest.approx(0, abs=1e-12)


# ------------------------------------------------------------------------------------------ matching


def naive_info_nce(similarity, temperature, eps, mode):
    """The formulas as printed, with plain exponentials."""
    p = (similarity / temperature).exp()
    n = p.shape[1]
    positive = p.diagonal(dim1=1, dim2=2)
    column, row = positive / p.sum(1)[:, :n], positive / p.sum(2)
    if mode == "all":
        return -(positive / p.sum((1, 2))[:, None]).clamp(min=eps).log()
    if mode == "proper":
        return -column.clamp(min=eps).log() - row.clamp(min=eps).log()
    return -(column * row).clamp(min=eps).log()


@few
@given(seeds, st.sampled_from(["all", "proper", "dual"]), st.floats(0.05, 1), st.sampled_from([1e-8, 1e-2]))
def test_info_nce_equals_its_formula(seed, mode, temperature, eps):
    g = torch.Generator().manual_seed(seed)
    similarity = torch.rand(2, 5, 8, generator=g, dtype=torch.float64) * 2 - 1
    rows = InfoNCE(temperature, eps, mode).rows(similarity)
    torch.testing.assert_close(rows, naive_info_nce(similarity, temperature, eps, mode))


def test_info_nce_survives_large_logits_and_nan():
    similarity = torch.eye(4)[None] * 100
    similarity[0, 1, 1] = similarity[0, 2, 0] = torch.nan
    for mode in ("all", "proper", "dual"):
        rows = InfoNCE(temperature=1e-3, mode=mode).rows(similarity)
        assert torch.isfinite(rows).all()
        assert rows[0, 1] == rows.max()
        assert rows.min() >= 0


def test_info_nce_gradients_are_exact():
    g = torch.Generator().manual_seed(0)
    desc = [torch.randn(1, n, 3, generator=g, dtype=torch.float64).requires_grad_() for n in (3, 5)]
    valid = torch.tensor([[True, True, False]])
    for mode in ("all", "proper", "dual"):
        criterion = InfoNCE(temperature=0.5, mode=mode)
        assert torch.autograd.gradcheck(lambda a, b: criterion(a, b, valid), desc)  # noqa: B023


@few
@given(seeds, st.integers(0, 6))
def test_ap_is_one_over_the_rank(seed, extra):
    g = torch.Generator().manual_seed(seed)
    similarity = torch.rand(2, 4, 4 + extra, generator=g)
    order = similarity.argsort(dim=-1, descending=True)
    rank = (order == torch.arange(4)[None, :, None]).float().argmax(-1) + 1
    torch.testing.assert_close(APLoss().rows(similarity), 1 / rank.float())


def test_quantised_ap_is_exact_at_bin_centres_and_differentiable():
    similarity = torch.tensor([[[0.9, 0.2, 0.5], [0.7, 0.4, 0.1], [0.3, 0.6, 0.8]]]).requires_grad_()
    quantised = APLoss(nq=11).rows(similarity)
    torch.testing.assert_close(quantised, APLoss().rows(similarity), atol=1e-4, rtol=1e-4)
    APLoss(nq=8).rows(similarity).sum().backward()
    assert similarity.grad is not None
    assert similarity.grad.abs().sum() > 0


def test_ap_with_euclidean_similarity_ranks_alike():
    desc = torch.nn.functional.normalize(torch.randn(1, 6, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    torch.testing.assert_close(APLoss(euc=True)(desc, desc.flip(2)), APLoss()(desc, desc.flip(2)))


def test_perfect_descriptors_match():
    gt1, gt2, pred1, pred2 = make_batch(n=4, dim=4)
    pred1["desc"], pred2["desc"] = torch.zeros_like(pred1["desc"]), torch.zeros_like(pred2["desc"])
    for gt, pred in ((gt1, pred1), (gt2, pred2)):
        for b in range(2):
            x, y = gt["corres"][b].unbind(-1)
            pred["desc"][b, y, x] = torch.eye(4)
    loss, details = MatchingLoss(InfoNCE(0.05, mode="proper"))(gt1, gt2, pred1, pred2)
    assert float(loss) < 1e-6
    assert float(details["MatchingLoss"]) == float(loss)
    assert float(MatchingLoss(APLoss())(gt1, gt2, pred1, pred2)[0]) == 1


def test_padding_takes_the_first_unused_pixels():
    gt1, gt2, pred1, pred2 = make_batch()
    loss = MatchingLoss(InfoNCE(), negatives_padding=5)
    pixels = loss._unused_pixels(gt2["corres"], pred2["desc"])
    W = pred2["desc"].shape[2]
    for b in range(2):
        used = {int(x + W * y) for x, y in gt2["corres"][b]}
        expected = [i for i in range(pred2["desc"].shape[1] * W) if i not in used][:5]
        assert [int(x + W * y) for x, y in pixels[b]] == expected
    assert loss(gt1, gt2, pred1, pred2)[0] > MatchingLoss(InfoNCE())(gt1, gt2, pred1, pred2)[0]


def test_more_candidates_never_help_and_blocks_need_a_divisor():
    gt1, gt2, pred1, pred2 = make_batch(n=8)
    whole = MatchingLoss(InfoNCE(mode="proper"))(gt1, gt2, pred1, pred2)[0]
    rng = np.random.default_rng(0)
    blocks = MatchingLoss(InfoNCE(mode="proper"), blocksize=4, rng=rng)(gt1, gt2, pred1, pred2)[0]
    assert blocks < whole
    with pytest.raises(ValueError, match="multiple"):
        MatchingLoss(InfoNCE(), blocksize=3)(gt1, gt2, pred1, pred2)
    with pytest.raises(ValueError, match="negatives_padding"):
        MatchingLoss(InfoNCE(), negatives_padding=10**6)(gt1, gt2, pred1, pred2)


@pytest.mark.parametrize("use_pts3d", [False, True])
@pytest.mark.parametrize("quantile", [False, 0.5])
def test_without_valid_matches_losses_and_gradients_are_finite(use_pts3d, quantile):
    gt1, gt2, pred1, pred2 = make_batch()
    gt1["valid_corres"] = torch.zeros_like(gt1["valid_corres"])
    for pred in (pred1, pred2):
        for key in pred:
            pred[key] = pred[key].requires_grad_()
    matching = MatchingLoss(InfoNCE(mode="proper"), use_pts3d=use_pts3d, withconf=True)
    criterion = matching + ConfMatchingLoss(matching, 10, "mean", neg_conf_loss_quantile=quantile)
    loss, details = criterion(gt1, gt2, pred1, pred2)
    loss.backward()
    assert torch.isfinite(loss)
    assert float(details["MatchingLoss"]) == 0
    assert "Conf1_std" in details
    grads = [p[k].grad for p in (pred1, pred2) for k in p if p[k].grad is not None]
    assert grads
    assert all(torch.isfinite(g).all() for g in grads)


def test_unweighted_part_equals_the_sum_of_two_losses():
    gt1, gt2, pred1, pred2 = make_batch()
    matching = MatchingLoss(InfoNCE(mode="proper"))
    joint = 0.3 * ConfMatchingLoss(matching, 3.0, "mean", unweighted=2.0)
    apart = 0.3 * ConfMatchingLoss(matching, 3.0, "mean") + 0.6 * matching
    leaves = [pred[key].requires_grad_() for pred in (pred1, pred2) for key in ("desc", "desc_conf")]
    losses = [criterion(gt1, gt2, pred1, pred2)[0] for criterion in (joint, apart)]
    torch.testing.assert_close(*losses)
    for a, b in zip(*(torch.autograd.grad(loss, leaves) for loss in losses)):
        torch.testing.assert_close(a, b)


def test_confidence_loss_is_minimal_at_alpha_over_loss():
    gt1, gt2, pred1, pred2 = make_batch(n=2, batch=1)
    gt1["valid_corres"] = torch.tensor([[True, False]])
    row = float(MatchingLoss(InfoNCE())(gt1, gt2, pred1, pred2)[0])

    def value(confidence):
        confs = {"desc_conf": torch.full((1, 6, 7), confidence)}
        criterion = ConfMatchingLoss(MatchingLoss(InfoNCE()), 2.0, "mean")
        return float(criterion(gt1, gt2, pred1 | confs, pred2 | confs)[0])

    best = 2.0 / row
    assert value(best) < min(value(best * 1.1), value(best / 1.1))


def test_missing_keys_are_named():
    gt1, gt2, pred1, pred2 = make_batch()
    for dropped, criterion in {
        "sky_mask": Regr3D(L21),
        "is_metric_scale": Regr3D(L21, "?avg_dis"),
        "corres": MatchingLoss(InfoNCE()),
    }.items():
        partial = {k: v for k, v in gt1.items() if k != dropped}
        with pytest.raises(ValueError, match=dropped):
            criterion(partial, gt2, pred1, pred2)


def test_errors():
    with pytest.raises(ValueError, match="mode"):
        InfoNCE(mode="both")
    with pytest.raises(ValueError, match="nq"):
        APLoss(nq=1)
    with pytest.raises(ValueError, match="max > min"):
        APLoss(min=1, max=0)
    with pytest.raises(ValueError, match="confmode"):
        ConfMatchingLoss(MatchingLoss(InfoNCE()), confmode="max")
    with pytest.raises(ValueError, match="alpha"):
        ConfMatchingLoss(MatchingLoss(InfoNCE()), alpha=-1)
    with pytest.raises(ValueError, match="reduction"):
        InfoNCE(reduction="sum")


def full_criterion():
    matching = MatchingLoss(InfoNCE(0.05, mode="proper"), negatives_padding=4, blocksize=8192)
    return ConfLoss(Regr3D(L21, "?avg_dis"), 0.2) + 0.075 * ConfMatchingLoss(matching, 10.0, "mean")


def test_full_criterion_under_autocast_and_compiled():
    batch = make_batch()
    expected = full_criterion()(*batch)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(full_criterion()(*batch)[0], expected)
    compiled = torch.compile(full_criterion(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*batch)[0], expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_full_criterion_does_not_wait_for_the_gpu():
    batch = [{k: v.cuda() for k, v in d.items()} for d in make_batch()]
    batch[2]["pts3d"].requires_grad_()
    full_criterion()(*batch)[0].backward()  # warm up
    torch.cuda.set_sync_debug_mode("error")
    try:
        full_criterion()(*batch)[0].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
