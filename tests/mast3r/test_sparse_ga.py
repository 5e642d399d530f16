"""Official names of sparse alignment: the numbers of the reference, and a run from images to points."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from PIL import Image

from mast3r.cloud_opt.canonical import BlockGrid, CanonicalView
from mast3r.cloud_opt.condense import (
    CanonicalImage,
    Correspondences,
    PairSlice,
    anchor_depth_offsets,
    canonical_view,
    compute_min_spanning_tree,
    condense_data,
    make_pts3d,
    prepare_canonical_data,
)
from mast3r.cloud_opt.dense import dense_depth
from mast3r.cloud_opt.kinematics import kinematic_tree
from mast3r.cloud_opt.pair_forward import PairPrediction
from mast3r.cloud_opt.scene_optimizer import SceneEstimate, sparse_scene_optimizer
from mast3r.cloud_opt.sparse_ga import SceneSource, SparseGA, sparse_global_alignment
from mast3r.cloud_opt.triangulation import batched_triangulate, matches_to_depths
from mast3r.cloud_opt.tsdf_optimizer import TSDFPostProcess
from mast3r.cloud_opt.utils.losses import gamma_loss
from mast3r.cloud_opt.utils.schedules import cosine_schedule, linear_schedule
from mast3r.model import AsymmetricMASt3R

RUN_TOLERANCE = 0.05  # long optimisations depend on rounding


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Stored:
    """A pair's prediction that lies in memory."""

    def __init__(self, prediction: PairPrediction) -> None:
        self.prediction = prediction

    def load(self) -> PairPrediction:
        return self.prediction


@pytest.fixture
def inputs(golden):
    return golden("sparse_ga_inputs")


@pytest.fixture
def ga(golden):
    return golden("sparse_ga")


def prediction(inputs, i: int, j: int) -> PairPrediction:
    t = inputs.tensors
    maps = [
        t[f"fwd.{a}_{b}.{name}_{side}"] for a, b in ((i, j), (j, i)) for side in ("ii", "ji") for name in ("X", "C")
    ]
    k, order = (f"corr.{i}_{j}", ("xy1", "xy2")) if f"corr.{i}_{j}.conf" in t else (f"corr.{j}_{i}", ("xy2", "xy1"))
    return PairPrediction(*maps, t[f"{k}.{order[0]}"], t[f"{k}.{order[1]}"], t[f"{k}.conf"])


@pytest.fixture
def prepared(inputs, ga):
    """The official chain up to the optimiser."""
    names, s = inputs.meta["names"], inputs.meta["subsample"]
    pairs = {(names[i], names[j]): Stored(prediction(inputs, i, j)) for i, j in ga.meta["pairs"]}
    return names, s, pairs, prepare_canonical_data(names, pairs, s)


# ------------------------------------------------------------------------------ pieces against the reference


def test_canonical_views(prepared, ga):
    names, _, _, (_, scores, images, _, _) = prepared
    ga.close(scores, "pairwise_scores")
    for i, name in enumerate(names):
        view = images[name].view
        ga.close(view.points, f"canon.{i}.pts")
        ga.close(view.relative, f"canon.{i}.rel")
        ga.close(view.confidence, f"canon.{i}.conf")
        ga.close(torch.tensor([view.focal]), f"canon.{i}.focal")
        ga.close(torch.tensor(view.center), f"canon.{i}.pp")
        ga.close(view.core_depth.reshape(view.grid.rows, view.grid.columns), f"canon.{i}.core_depth")


def test_canonical_view_function_and_direct_depth_ratios(inputs, ga):
    s, own = inputs.meta["subsample"], [edge for edge in ga.meta["pairs"] if edge[0] == 0]
    points = torch.stack([inputs.tensors[f"fwd.{i}_{j}.X_ii"] for i, j in own])
    confidence = torch.stack([inputs.tensors[f"fwd.{i}_{j}.C_ii"] for i, j in own])
    canon, relative, conf = canonical_view(points, confidence, s)
    ga.close(canon, "canon.0.pts")
    ga.close(relative, "canon.0.rel")
    ga.close(conf, "canon.0.conf")
    ga.close(canonical_view(points, confidence, s, mode="avg-reldepth")[1], "canon_reldepth.rel")
    with pytest.raises(ValueError, match="mode must be"):
        canonical_view(points, confidence, s, mode="median")


def test_anchors(inputs, ga):
    for i, j in ga.meta["pairs"]:
        relative = ga.tensors[f"canon.{i}.rel"]
        pixels = {j: (ga.tensors[f"anchor.{i}_{j}.pix"], None)}
        index, offset = anchor_depth_offsets(relative, pixels, inputs.meta["subsample"])
        ga.close(index[j], f"anchor.{i}_{j}.idx")
        ga.close(offset[j], f"anchor.{i}_{j}.off")


def condensed(prepared):
    names, _, _, (pairs, _, images, _, preds) = prepared
    return condense_data(names, pairs, images, preds)


def test_condensed_arrays(prepared, ga):
    sizes, pps, focals, _, anchors, corres, corres2d, preds = condensed(prepared)
    ga.close(sizes, "cond.imsizes")
    ga.close(pps, "cond.pps")
    ga.close(focals, "cond.base_focals")
    ga.close(corres.all_confs, "cond.all_confs")
    for i in range(len(sizes)):
        for value, name in zip(anchors[i], ("uv1", "idx", "off")):
            ga.close(value, f"cond.anchor{i}.{name}")
        assert all(pair.img1 == i for pair in corres2d[i])
    for pair, expected in zip(corres.slices, ga.meta["meta"]["slices"], strict=True):
        assert (pair.img1, pair.img2) == (expected["img1"], expected["img2"])
        assert [pair.slice1.start, pair.slice1.stop] == expected["slice1"]
        assert [pair.slice2.start, pair.slice2.stop] == expected["slice2"]
        assert pair.confs_sum == pytest.approx(expected["confs_sum"], rel=1e-5)
    for i, j in ga.meta["pairs"]:
        ga.close(preds[i][j][0], f"cond.pred21.{i}_{j}.pts")
        ga.close(preds[i][j][1], f"cond.pred21.{i}_{j}.conf")


def test_spanning_trees(ga):
    for key, scores in (("mst", "pairwise_scores"), ("mst7", "mst7.scores")):
        root, edges = compute_min_spanning_tree(ga.tensors[scores])
        assert root == ga.meta["meta"][key]["root"]
        assert [list(edge) for edge in edges] == ga.meta["meta"][key]["edges"]


def test_losses_and_schedules(ga):
    x, y = ga.tensors["gl.x"], ga.tensors["gl.y"]
    for key in ga.keys("gl."):
        gamma = key.removeprefix("gl.")
        if gamma.replace(".", "").isdigit():
            ga.close(gamma_loss(float(gamma))(x, y), key)
    ga.close(gamma_loss(0.5, clip=1.0)(x, y), "gl.clip")
    steps = len(ga.tensors["sched.cos"])
    base, end = ga.tensors["sched.cos"][0].item(), ga.tensors["sched.lin"][-1].item()
    ga.close([cosine_schedule(t, base) for t in np.linspace(0, 1, steps)], "sched.cos")
    ga.close([linear_schedule(t, base, end) for t in np.linspace(0, 1, steps)], "sched.lin")


# ------------------------------------------------------------------------------ runs


def runs() -> list[str]:
    from tests.conftest import load_golden

    try:
        return [key for key in load_golden("sparse_ga").meta["meta"] if key.startswith("e2e_")]
    except pytest.skip.Exception:
        return []


@pytest.mark.parametrize("run", runs())
def test_run_matches_reference(prepared, ga, run):
    names, s, _, (_, scores, images, _, _) = prepared
    meta, tensors = ga.meta["meta"][run], ga.tensors
    kwargs = dict(meta["kwargs"])
    blocks = [len(images[name].view.grid) for name in names]
    tree = kinematic_tree(scores.numpy(), kwargs.pop("kinematic_mode", "hclust-ward"), blocks=blocks)
    assert tree.root == meta["mst"]["root"]
    assert sorted(tree.edges) == sorted(tuple(edge) for edge in meta["mst"]["edges"])
    data = list(condensed(prepared))
    data[5] = without_confidence(data[5], meta["dropped"], kwargs["matching_conf_thr"])
    weights = torch.stack([images[name].view.confidence.mean() for name in names])
    _, coarse, fine = sparse_scene_optimizer(
        names, s, *data, None, (tree.root, tree.edges), verbose=False, focal_weights=weights, **kwargs
    )
    if meta["final_losses"]:
        losses = [coarse.loss] + ([fine.loss] if fine is not None else [])
        np.testing.assert_allclose(losses, meta["final_losses"], rtol=RUN_TOLERANCE)
    if kwargs["niter1"] <= 1:
        ga.close(coarse.intrinsics, f"{run}.coarse.K")
        ga.close(coarse.cam2w, f"{run}.coarse.cam2w")
        for i in range(len(names)):
            ga.close(coarse.depthmaps[i], f"{run}.coarse.depth{i}")
    if kwargs["niter1"] == 0:
        for i in range(len(names)):
            ga.close(coarse.pts3d[i], f"{run}.pts3d{i}")
    last, stage = (coarse, "coarse") if fine is None else (fine, "fine")
    # The reference moves shared intrinsics N times per step: few steps end elsewhere, at the same loss.
    if not kwargs.get("shared_intrinsics"):
        assert_same_cameras(last.cam2w.numpy(), tensors[f"{run}.{stage}.cam2w"].numpy())
        np.testing.assert_allclose(last.intrinsics, tensors[f"{run}.{stage}.K"], rtol=1e-3, atol=0.05)


def without_confidence(corres: Correspondences, dropped, threshold: float) -> Correspondences:
    """The matches, those of one pair so unsure that they are not trusted."""
    if not dropped:
        return corres
    slices = [
        PairSlice(
            pair.img1,
            pair.img2,
            pair.slice1,
            pair.slice2,
            pair.confs.clamp(max=threshold) if {pair.img1, pair.img2} == set(dropped) else pair.confs,
        )
        for pair in corres.slices
    ]
    return Correspondences(torch.cat([pair.confs for pair in slices]), slices)


def assert_same_cameras(poses: np.ndarray, expected: np.ndarray) -> None:
    """Equal up to a similarity, to 2 degrees and 2 % of the camera distances."""
    relative, wanted = (np.linalg.inv(p[0]) @ p for p in (poses, expected))
    turn = relative[:, :3, :3].transpose(0, 2, 1) @ wanted[:, :3, :3]
    cosine = (np.trace(turn, axis1=1, axis2=2) - 1) / 2
    assert np.degrees(np.arccos(cosine.clip(-1, 1))).max() < 2
    a, b = relative[:, :3, 3], wanted[:, :3, 3]
    scale = (a * b).sum() / (a * a).sum()
    assert np.abs(scale * a - b).max() < 0.02 * np.linalg.norm(b, axis=1).max()


# ------------------------------------------------------------------------------ dense points


@pytest.fixture
def dense_scene(ga):
    """A scene at the cameras and depths of the fixture."""
    s, shapes = ga.meta["subsample"], ga.meta["shapes"]
    views = []
    for i, (height, width) in enumerate(shapes):
        maps = [ga.tensors[f"canon.{i}.{name}"] for name in ("pts", "rel", "conf")]
        focal, center = ga.tensors[f"canon.{i}.focal"].item(), tuple(ga.tensors[f"canon.{i}.pp"].tolist())
        views.append(CanonicalView(*maps, focal, center, BlockGrid(width, height, s)))
    anchors = {
        i: tuple(ga.tensors[f"cond.anchor{i}.{name}"] for name in ("uv1", "idx", "off")) for i in range(len(shapes))
    }
    depths = [ga.tensors[f"dense.core{i}"] for i in range(len(shapes))]
    estimate = SceneEstimate(ga.tensors["dense.K"], ga.tensors["dense.cam2w"], depths, [], 0.0)
    colors = [np.random.default_rng(i).random((*shape, 3), dtype=np.float32) for i, shape in enumerate(shapes)]
    source = SceneSource(ga.meta["names"], colors, views, anchors, ga.tensors["cond.base_focals"])
    return SparseGA(source, estimate)


def test_dense_points(dense_scene, ga):
    points, depths, cleaned = dense_scene.get_dense_pts3d(clean_depth=True, subsample=ga.meta["subsample"])
    _, _, raw = dense_scene.get_dense_pts3d(clean_depth=False, subsample=ga.meta["subsample"])
    for i in range(len(points)):
        ga.close(depths[i], f"dense.depth{i}")
        ga.close(cleaned[i], f"dense.conf_clean{i}")
        ga.close(raw[i], f"canon.{i}.conf")
        if f"dense.pts3d{i}" in ga.tensors:
            ga.close(points[i], f"dense.pts3d{i}")
    with pytest.raises(ValueError, match="subsample"):
        dense_scene.get_dense_pts3d(subsample=ga.meta["subsample"] + 1)


def test_scene_methods(dense_scene, ga):
    n = len(ga.meta["names"])
    assert dense_scene.n_imgs == n
    assert torch.equal(dense_scene.get_focals(), ga.tensors["dense.K"][:, 0, 0])
    assert dense_scene.get_principal_points().shape == (n, 2)
    assert torch.equal(dense_scene.get_im_poses(), ga.tensors["dense.cam2w"])
    for color, (pixels, _, _), image in zip(
        dense_scene.get_pts3d_colors(), dense_scene.source.anchors.values(), dense_scene.imgs
    ):
        assert np.array_equal(color[0], image[int(pixels[0, 1]), int(pixels[0, 0])])
    assert [len(image[mask]) for image, mask in zip(dense_scene.imgs, dense_scene.get_masks())] == [
        len(image) for image in dense_scene.imgs
    ]


def test_make_pts3d_without_focals_keeps_ratios(ga):
    anchors = {0: tuple(ga.tensors[f"cond.anchor0.{name}"] for name in ("uv1", "idx", "off"))}
    K, pose, core = ga.tensors["dense.K"], ga.tensors["dense.cam2w"], [ga.tensors["dense.core0"]]
    points, depths = make_pts3d(anchors, K, pose, core, ret_depth=True)
    assert torch.allclose(depths[0], core[0][anchors[0][1]] * anchors[0][2])
    local = (points[0] - pose[0, :3, 3]) @ pose[0, :3, :3]
    assert torch.allclose(local[:, 2], depths[0], atol=1e-5)


def test_tsdf_query(dense_scene, ga):
    post = TSDFPostProcess(dense_scene, subsample=ga.meta["subsample"], TSDF_thresh=0.05)
    value, valid = post.query(ga.tensors["tsdf.q"])
    assert torch.equal(valid, ga.tensors["tsdf.valid"])
    assert torch.allclose(value[valid], ga.tensors["tsdf.val"][valid], rtol=2e-4, atol=2e-4)


def test_tsdf_moves_depth_towards_what_views_agree_on(ga, dense_scene):
    post = TSDFPostProcess(dense_scene, subsample=ga.meta["subsample"], TSDF_thresh=0.05, TSDF_batchsize=50_000)
    points, depths, confidences = post.get_dense_pts3d(clean_depth=True)
    assert torch.equal(post.refined_depth(0).flatten(), depths[0])
    before = dense_scene.get_dense_pts3d(False, ga.meta["subsample"])[0]
    known = post.query(before[0])[1]
    assert post.query(points[0])[0][known].abs().mean() < post.query(before[0])[0][known].abs().mean()
    assert depths[0].numel() == confidences[0].numel()
    off = TSDFPostProcess(dense_scene, subsample=ga.meta["subsample"])
    assert torch.equal(off.get_dense_pts3d(False)[0][0], before[0])
    assert torch.equal(post.get_im_poses(), dense_scene.get_im_poses())
    with pytest.raises(ValueError, match="TSDF_thresh"):
        TSDFPostProcess(dense_scene, TSDF_thresh=-1)


def test_triangulation(ga):
    uv, projections, expected = (ga.tensors[f"tri.{name}"] for name in ("uv", "P", "X"))
    assert torch.allclose(batched_triangulate(uv, projections), expected, rtol=1e-6, atol=1e-8)
    lost = uv.clone()
    lost[:, 1:, 0] = torch.nan
    points = batched_triangulate(lost, projections)
    assert bool(points[:, 0].isnan().all())
    assert torch.allclose(points[:, 1:], expected[:, 1:], rtol=1e-6, atol=1e-8)
    with pytest.raises(ValueError, match="projections"):
        batched_triangulate(uv, projections[:, :1])


def test_matches_to_depths():
    rng = np.random.default_rng(0)
    K = np.array([[40.0, 0, 8], [0, 40, 6], [0, 0, 1]])
    depth = rng.uniform(2, 3, (12, 16))
    y, x = np.mgrid[:12, :16]
    local = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(K).T * depth[..., None]
    poses = np.tile(np.eye(4), (1, 3, 1, 1))
    poses[0, 1, 0, 3], poses[0, 2, 1, 3] = 0.3, -0.2
    seen = []
    for pose in poses[0]:
        pixel = (local @ pose[:3, :3].T + pose[:3, 3]) @ K.T
        seen.append(pixel[..., :2] / pixel[..., 2:])
    matches = torch.from_numpy(np.stack(seen)[None])
    matches[0, 1:, 0, 0] = torch.nan
    found, counts = matches_to_depths(torch.from_numpy(np.tile(K, (1, 3, 1, 1))), torch.from_numpy(poses), matches)
    assert counts[0, 0, 0] == 1
    assert found[0, 0, 0].isnan()
    expected = torch.from_numpy(depth)
    expected[0, 0] = torch.nan
    assert torch.allclose(found[0], expected, equal_nan=True)


# ------------------------------------------------------------------------------ from images


@pytest.fixture
def photos(tmp_path) -> list[str]:
    rng = np.random.default_rng(0)
    paths = []
    for i, size in enumerate([(160, 120), (160, 120), (120, 160)]):
        small = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        paths.append(str(tmp_path / f"{i}.png"))
        small.resize(size, Image.Resampling.BICUBIC).save(paths[-1])
    return paths


@pytest.fixture
def tiny() -> AsymmetricMASt3R:
    torch.manual_seed(0)
    size = {"enc_embed_dim": 32, "enc_depth": 1, "enc_num_heads": 2, "dec_embed_dim": 32, "dec_depth": 2}
    shared = {"pos_embed": "RoPE100", "img_size": (512, 512), "dec_num_heads": 2, "landscape_only": False}
    head = {"head_type": "catmlp+linear", "output_mode": "pts3d+desc24", "two_confs": True}
    model = AsymmetricMASt3R(
        **shared, **size, **head, conf_mode=("exp", 1, float("inf")), desc_conf_mode=("exp", 0, float("inf"))
    )
    return model.eval()


class Counter:
    """Counts the calls of a model's encoder (by image) and decoder."""

    def __init__(self, model) -> None:
        self.encoded = self.decoded = 0
        encode, decode = model._encode_image, model._decoder

        def counted_encode(image, shape):
            self.encoded += len(image)
            return encode(image, shape)

        def counted_decode(*args):
            self.decoded += 1
            return decode(*args)

        model._encode_image, model._decoder = counted_encode, counted_decode


def test_alignment_script(photos, tiny, tmp_path):
    from dust3r.utils.image import load_images
    from mast3r.image_pairs import make_pairs

    images = load_images(photos, size=64, verbose=False)
    pairs = make_pairs(images, scene_graph="complete", prefilter=None, symmetrize=True)
    counter = Counter(tiny)
    options = {"niter1": 3, "niter2": 2, "matching_conf_thr": 0.0, "verbose": False}
    scene = sparse_global_alignment(photos, pairs, str(tmp_path / "cache"), tiny, device="cpu", **options)
    assert counter.encoded == 3
    assert counter.decoded == 6
    again = sparse_global_alignment(photos, pairs[:3], str(tmp_path / "cache"), tiny, **options)
    assert (counter.encoded, counter.decoded) == (3, 6)
    assert torch.equal(again.get_im_poses(), scene.get_im_poses())
    assert scene.img_paths == photos
    points, depths, confidences = scene.get_dense_pts3d(clean_depth=True)
    for image, p, d, c in zip(scene.imgs, points, depths, confidences):
        assert p.shape == (image.shape[0] * image.shape[1], 3)
        assert d.shape == p.shape[:1]
        assert c.shape == image.shape[:2]
    assert [len(p) for p in scene.get_sparse_pts3d()] == [len(c) for c in scene.get_pts3d_colors()]
    assert not list((tmp_path / "cache").rglob("*.pth"))


def test_cache_follows_content_and_weights(photos, tiny, tmp_path):
    from dust3r.utils.image import load_images
    from mast3r.image_pairs import make_pairs

    def run(paths, model) -> int:
        counter = Counter(model)
        pairs = make_pairs(load_images(paths, size=64, verbose=False), symmetrize=False)
        options = {"niter1": 1, "niter2": 0, "matching_conf_thr": 0.0, "verbose": False}
        sparse_global_alignment(paths, pairs, tmp_path / "cache", model, **options)
        return counter.decoded

    assert run(photos[:2], tiny) == 2
    assert run(photos[:2], tiny) == 0
    Image.open(photos[0]).rotate(180).save(photos[0])
    assert run(photos[:2], tiny) == 2
    with torch.no_grad():
        next(tiny.parameters()).add_(0.1)
    assert run(photos[:2], tiny) == 2
    for entry in (tmp_path / "cache").rglob("*.safetensors"):
        entry.write_bytes(b"damaged")
    assert run(photos[:2], tiny) == 2


def test_errors(photos, tiny, tmp_path, prepared):
    from dust3r.utils.image import load_images
    from mast3r.image_pairs import make_pairs

    pairs = make_pairs(load_images(photos, size=64, verbose=False), symmetrize=False)
    with pytest.raises(ValueError, match="all be different"):
        sparse_global_alignment([photos[0]] * 3, pairs, tmp_path, tiny)
    with pytest.raises(ValueError, match="idx 2"):
        sparse_global_alignment(photos[:2], pairs, tmp_path, tiny)
    with pytest.raises(ValueError, match="in no pair"):
        sparse_global_alignment(photos, pairs[:1], tmp_path, tiny)
    names, s, _, _ = prepared
    with pytest.raises(ValueError, match="lora_depth"):
        sparse_scene_optimizer(names, s, *condensed(prepared), None, (0, []), lora_depth=True)
    with pytest.raises(ValueError, match="gamma_loss"):
        sparse_scene_optimizer(names, s, *condensed(prepared), None, (0, [(0, 1), (0, 2)]), loss1=torch.dist)


def test_known_values(prepared, ga):
    names, s, _, (_, _, images, _, _) = prepared
    mst = ga.meta["meta"]["mst"]
    pose, K = ga.tensors["dense.cam2w"], ga.tensors["dense.K"]
    init = {
        names[0]: {"cam2w": pose[0], "intrinsics": K[0]},
        names[1]: {"cam2w": pose[1], "depth": 2 * images[names[1]].view.core_depth},
    }
    _, coarse, _ = sparse_scene_optimizer(
        names,
        s,
        *condensed(prepared),
        None,
        (mst["root"], [tuple(edge) for edge in mst["edges"]]),
        niter1=2,
        niter2=0,
        matching_conf_thr=0.0,
        verbose=False,
        init=init,
    )
    assert torch.allclose(coarse.cam2w[:2], pose[:2], atol=1e-6)
    assert torch.allclose(coarse.intrinsics[0], K[0], atol=1e-4)


def test_signatures():
    parameters = inspect.signature(sparse_global_alignment).parameters
    assert list(parameters)[:4] == ["imgs", "pairs_in", "cache_path", "model"]
    assert parameters["subsample"].default == 8
    assert parameters["kinematic_mode"].default == "hclust-ward"
    optimizer = inspect.signature(sparse_scene_optimizer).parameters
    assert [optimizer[name].default for name in ("lr1", "niter1", "lr2", "niter2")] == [0.07, 300, 0.01, 300]
    assert [optimizer[name].default.gamma for name in ("loss1", "loss2", "lossd")] == [1.5, 0.5, 1.1]


def test_views_of_blocks_that_do_not_divide_the_image():
    points = torch.ones(13, 21, 3)
    grid = BlockGrid(21, 13, 8)
    assert len(grid) == 6
    assert grid.centers()[0].tolist() == [4, 12]
    view = CanonicalView(points, torch.ones(13, 21), torch.ones(13, 21), 20.0, (10.0, 6.0), grid)
    assert dense_depth(view, torch.arange(6.0) + 1, 1.0)[12, 20] == 6
    assert CanonicalImage(view, {}, {}, {}).view is view
