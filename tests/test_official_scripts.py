"""Programs written against the official package names run as they are, apart from the name of the checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture
def photos(tmp_path) -> list[str]:
    rng = np.random.default_rng(0)
    paths = []
    for i, (w, h) in enumerate([(160, 120), (120, 160)]):
        small = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        paths.append(str(tmp_path / f"{i}.png"))
        small.resize((w, h), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def tiny(cls, **kwargs):
    torch.manual_seed(0)
    size = {"enc_embed_dim": 32, "enc_depth": 1, "enc_num_heads": 2, "dec_embed_dim": 32, "dec_depth": 2}
    shared = {"pos_embed": "RoPE100", "img_size": (512, 512), "dec_num_heads": 2, "landscape_only": False}
    return cls(**shared, **size, **kwargs).eval()


def mast3r_model():
    from mast3r.model import AsymmetricMASt3R

    return tiny(AsymmetricMASt3R, head_type="catmlp+linear", output_mode="pts3d+desc24", two_confs=True)


def dust3r_model():
    from dust3r.model import AsymmetricCroCo3DStereo

    return tiny(AsymmetricCroCo3DStereo)


def test_dense_matching_script(photos):
    import mast3r.utils.path_to_dust3r  # noqa: F401
    from dust3r.inference import inference
    from dust3r.utils.image import load_images
    from mast3r.fast_nn import fast_reciprocal_NNs

    device = "cpu"
    images = load_images(photos, size=64, verbose=False)
    output = inference([tuple(images)], mast3r_model(), device, batch_size=1, verbose=False)
    view1, pred1, view2, pred2 = (output[key] for key in ("view1", "pred1", "view2", "pred2"))
    desc1, desc2 = pred1["desc"][0].squeeze(0).detach(), pred2["desc"][0].squeeze(0).detach()
    matches1, matches2 = fast_reciprocal_NNs(
        desc1, desc2, subsample_or_initxy1=8, device=device, dist="dot", block_size=2**13
    )
    for view, matches in ((view1, matches1), (view2, matches2)):
        height, width = np.asarray(view["true_shape"][0]).ravel()
        assert matches.dtype == np.int64
        assert (matches >= 0).all()
        assert (matches < [int(width), int(height)]).all()
    assert len(matches1) == len(matches2) > 0


def test_pointmap_script(photos):
    from dust3r.image_pairs import make_pairs
    from dust3r.inference import inference
    from dust3r.utils.image import load_images

    images = load_images(photos[:1] * 2, size=64, verbose=False)
    pairs = make_pairs(images, scene_graph="complete", prefilter=None, symmetrize=True)
    output = inference(pairs, dust3r_model(), "cpu", batch_size=1, verbose=False)
    assert set(output) == {"view1", "view2", "pred1", "pred2", "loss"}
    assert output["pred1"]["pts3d"].shape == (2, 48, 64, 3)
    assert output["pred2"]["pts3d_in_other_view"].shape == (2, 48, 64, 3)
    assert (output["pred1"]["conf"] > 1).all()


def test_global_alignment_script(photos):
    from dust3r.cloud_opt import GlobalAlignerMode, global_aligner
    from dust3r.image_pairs import make_pairs
    from dust3r.inference import inference
    from dust3r.utils.geometry import find_reciprocal_matches, xy_grid
    from dust3r.utils.image import load_images

    images = load_images(photos[:1] * 2, size=64, verbose=False)
    pairs = make_pairs(images, scene_graph="complete", symmetrize=True)
    output = inference(pairs, dust3r_model(), "cpu", batch_size=1, verbose=False)
    scene = global_aligner(output, device="cpu", mode=GlobalAlignerMode.PointCloudOptimizer, min_conf_thr=1)
    loss = scene.compute_global_alignment(init="mst", niter=3, schedule="cosine", lr=0.01)
    assert np.isfinite(float(loss))
    points, masks = scene.get_pts3d(), scene.get_masks()
    assert scene.get_im_poses().shape == (2, 4, 4)
    assert len(scene.get_focals()) == len(points) == len(scene.imgs) == 2
    clouds = [points[i].detach().numpy()[masks[i].numpy()] for i in range(2)]
    grids = [xy_grid(*scene.imgs[i].shape[1::-1])[masks[i].numpy()] for i in range(2)]
    mutual, nearest, count = find_reciprocal_matches(*clouds)
    assert count == mutual.sum()
    assert len(grids[1][mutual]) == len(grids[0][nearest][mutual])


def test_slam_front_end_calls(photos):
    from dust3r.utils.image import load_images

    model = mast3r_model()
    first, second = load_images(photos, size=64, verbose=False)
    with torch.inference_mode():
        feat1, pos1, _ = model._encode_image(first["img"], first["true_shape"])
        feat2, pos2, _ = model._encode_image(second["img"], second["true_shape"])
        dec1, dec2 = model._decoder(feat1, pos1, feat2, pos2)
        with torch.autocast("cpu", enabled=False):
            result1 = model._downstream_head(1, [tokens.float() for tokens in dec1], first["true_shape"])
            result2 = model._downstream_head(2, [tokens.float() for tokens in dec2], second["true_shape"])
    assert {"pts3d", "conf", "desc", "desc_conf"} <= set(result1)
    assert result2["desc"].shape[:3] == (1, *np.asarray(second["true_shape"]).ravel())


def test_top_level_models_of_croco():
    from models.blocks import Block, DecoderBlock, PatchEmbed  # type: ignore[import-not-found]
    from models.criterion import MaskedMSE  # type: ignore[import-not-found]
    from models.croco import CroCoNet  # type: ignore[import-not-found]

    import dust3r.utils.path_to_croco  # noqa: F401
    from croco.models.croco import CroCoNet as Same

    assert CroCoNet is Same
    assert all((Block, DecoderBlock, PatchEmbed, MaskedMSE))


# --- matcher zoos: arrays instead of files ---


def as_view(pixels: np.ndarray, idx: int) -> dict:
    """A view made by hand from an (H, W, 3) uint8 array, its sides cut to multiples of the patch."""
    height, width = (side // 16 * 16 for side in pixels.shape[:2])
    tensor = torch.from_numpy(pixels[:height, :width].copy()).permute(2, 0, 1).float() / 255
    return {
        "img": ((tensor - 0.5) / 0.5)[None],
        "true_shape": np.int32([[height, width]]),
        "idx": idx,
        "instance": str(idx),
    }


def test_matcher_zoo_script():
    from dust3r.inference import inference
    from mast3r.fast_nn import fast_reciprocal_NNs

    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, shape, dtype=np.uint8) for shape in ((70, 100, 3), (100, 70, 3))]
    pair = tuple(as_view(pixels, i) for i, pixels in enumerate(pictures))
    output = inference([pair], mast3r_model(), "cpu", batch_size=1, verbose=False)
    view1, pred1 = output["view1"], output["pred1"]
    view2, pred2 = output["view2"], output["pred2"]
    desc1, desc2 = (pred["desc"][0].squeeze(0).detach() for pred in (pred1, pred2))
    found = fast_reciprocal_NNs(desc1, desc2, subsample_or_initxy1=8, device="cpu", dist="dot", block_size=2**13)
    valid = np.ones(len(found[0]), bool)
    for matches, view in zip(found, (view1, view2)):
        height, width = (int(side) for side in np.asarray(view["true_shape"][0]).ravel())
        valid &= (matches[:, 0] >= 3) & (matches[:, 0] < width - 3)
        valid &= (matches[:, 1] >= 3) & (matches[:, 1] < height - 3)
    assert valid.any()
    confidence = [pred["desc_conf"][0].squeeze(0)[m[:, 1], m[:, 0]] for pred, m in zip((pred1, pred2), found)]
    assert (torch.minimum(*confidence) > 0).all()


def test_matcher_zoo_script_on_points():
    """DUSt3R as a matcher: mutual nearest neighbours of confident points."""
    from dust3r.inference import inference
    from dust3r.utils.device import to_numpy
    from dust3r.utils.geometry import find_reciprocal_matches, xy_grid

    pixels = np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    pair = (as_view(pixels, 0), as_view(pixels[:, ::-1], 1))
    output = to_numpy(inference([pair], dust3r_model(), "cpu", batch_size=1, verbose=False))
    points = (output["pred1"]["pts3d"][0], output["pred2"]["pts3d_in_other_view"][0])
    masks = [output[name]["conf"][0] > 1.0 for name in ("pred1", "pred2")]
    mutual, nearest, count = find_reciprocal_matches(*(p[m] for p, m in zip(points, masks)))
    grids = [xy_grid(*mask.shape[::-1])[mask] for mask in masks]
    xy1, xy0 = grids[1][mutual], grids[0][nearest][mutual]
    assert len(xy0) == len(xy1) == count > 0


# --- SLAM front ends: tokens are computed once per frame and kept ---


def test_slam_front_end_keeps_tokens(photos):
    """Precomputed tokens, a batch of edges, both orders: the same numbers as the whole network's."""
    from dust3r.utils.image import load_images

    model = mast3r_model()
    frames = load_images(photos[:1] * 2, size=64, verbose=False)
    frames[1]["img"] = frames[1]["img"].flip(-1)
    with torch.inference_mode():
        kept = [model._encode_image(frame["img"], frame["true_shape"])[:2] for frame in frames]
        features = [torch.cat([kept[i][0], kept[j][0]]) for i, j in ((0, 1), (1, 0))]
        positions = [torch.cat([kept[i][1], kept[j][1]]) for i, j in ((0, 1), (1, 0))]
        dec1, dec2 = model._decoder(features[0], positions[0], features[1], positions[1])
        shape = torch.as_tensor(frames[0]["true_shape"]).repeat(2, 1)
        with torch.autocast("cpu", enabled=False):
            seen1 = model._downstream_head(1, [tokens.float() for tokens in dec1], shape)
            seen2 = model._downstream_head(2, [tokens.float() for tokens in dec2], shape)
        whole1, whole2 = model(*frames)
    for part, whole, key in ((seen1, whole1, "pts3d"), (seen2, whole2, "desc"), (seen1, whole1, "conf")):
        torch.testing.assert_close(part[key][:1], whole[key], rtol=1e-4, atol=1e-5)
    assert seen2["pts3d"].shape == (2, *np.asarray(frames[0]["true_shape"]).ravel(), 3)


def test_slam_front_end_tracks_pixels(photos):
    """Matching that starts from chosen pixels, and returns to them."""
    from dust3r.utils.image import load_images
    from mast3r.fast_nn import fast_reciprocal_NNs

    model = mast3r_model()
    frames = load_images(photos[:1] * 2, size=64, verbose=False)
    with torch.inference_mode():
        first, second = model(*frames)
    start = np.array([(8, 8), (20, 30), (40, 10)])
    xy1, xy2 = fast_reciprocal_NNs(
        first["desc"][0], second["desc"][0], subsample_or_initxy1=(start[:, 0], start[:, 1]),
        pixel_tol=5, device="cpu", dist="dot", block_size=2**13,
    )  # fmt: skip
    assert {tuple(xy) for xy in xy1} <= {tuple(xy) for xy in start}
    assert xy1.shape == xy2.shape


# --- many photos: what visualisers and Gaussian-splatting initialisers ask a scene for ---


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """Three views of a room as files, and a network that knows it."""
    from tests.mast3r.perfect_model import PerfectModel, pixels_of, views_of_room

    views = views_of_room(3, size=(80, 96))
    folder = tmp_path_factory.mktemp("room")
    for i, view in enumerate(views):
        Image.fromarray(pixels_of(view)).save(folder / f"{i}.png")
    return sorted(map(str, folder.iterdir())), PerfectModel(views, side=96), views


def test_sparse_global_alignment_script(room, tmp_path):
    import mast3r.utils.path_to_dust3r  # noqa: F401
    from dust3r.utils.device import to_numpy
    from dust3r.utils.image import load_images
    from mast3r.cloud_opt.sparse_ga import sparse_global_alignment
    from mast3r.image_pairs import make_pairs

    files, model, views = room
    images = load_images(files, size=96, verbose=False)
    pairs = make_pairs(images, scene_graph="complete", prefilter=None, symmetrize=True)
    scene = sparse_global_alignment(
        files, pairs, str(tmp_path / "cache"), model, lr1=0.07, niter1=60, lr2=0.014, niter2=60, device="cpu",
        opt_depth=True, shared_intrinsics=False, matching_conf_thr=0.0,
    )  # fmt: skip
    points, depth, confidence = to_numpy(scene.get_dense_pts3d(clean_depth=True))
    colours, focals, poses = scene.imgs, scene.get_focals().cpu(), scene.get_im_poses().cpu()
    sparse, sparse_colours = scene.get_sparse_pts3d(), scene.get_pts3d_colors()
    assert scene.get_principal_points().shape == (3, 2)
    assert scene.intrinsics.shape == (3, 3, 3)
    assert len(scene.get_masks()) == len(scene.get_depthmaps()) == 3
    assert list(scene.img_paths) == files
    for i, view in enumerate(views):
        height, width = colours[i].shape[:2]
        assert (height, width) == view.points.shape[:2]
        assert points[i].reshape(-1, 3).shape == (height * width, 3)
        assert np.asarray(confidence[i]).size == np.asarray(depth[i]).size == height * width
        assert len(sparse[i]) == len(sparse_colours[i]) > 0
        assert float(focals[i]) == pytest.approx(view.K[0, 0], rel=0.1)
    assert poses.shape == (3, 4, 4)
    between = [np.linalg.inv(poses[0].double().numpy()) @ poses[i].double().numpy() for i in (1, 2)]
    truth = [np.linalg.inv(views[0].pose) @ views[i].pose for i in (1, 2)]
    ratio = np.linalg.norm(between[0][:3, 3]) / np.linalg.norm(between[1][:3, 3])
    assert ratio == pytest.approx(np.linalg.norm(truth[0][:3, 3]) / np.linalg.norm(truth[1][:3, 3]), rel=0.1)


def test_gaussian_splatting_initialiser_script(room):
    from dust3r.cloud_opt import GlobalAlignerMode, global_aligner
    from dust3r.image_pairs import make_pairs
    from dust3r.inference import inference
    from dust3r.utils.device import to_numpy
    from dust3r.utils.image import load_images

    files, model, _ = room
    images = load_images(files, size=96, verbose=False)
    pairs = make_pairs(images, scene_graph="complete", prefilter=None, symmetrize=True)
    output = inference(pairs, model, "cpu", batch_size=1, verbose=False)
    scene = global_aligner(output, device="cpu", mode=GlobalAlignerMode.PointCloudOptimizer, verbose=False)
    scene.compute_global_alignment(init="mst", niter=5, schedule="linear", lr=0.01)
    scene = scene.clean_pointcloud()
    intrinsics = scene.get_intrinsics().detach().cpu().numpy()
    poses = scene.get_im_poses().detach().cpu().numpy()
    scene.min_conf_thr = float(scene.conf_trf(torch.tensor(2.0)))
    masks = to_numpy(scene.get_masks())
    confidence = [conf.detach().cpu().numpy() for conf in scene.im_conf]
    depth = to_numpy([d.detach() for d in scene.get_depthmaps()])
    points = np.concatenate([p[m] for p, m in zip(to_numpy([p.detach() for p in scene.get_pts3d()]), masks)])
    colours = np.concatenate([image[mask] for image, mask in zip(to_numpy(scene.imgs), masks)])
    assert intrinsics.shape == (3, 3, 3)
    assert poses.shape == (3, 4, 4)
    assert points.shape == colours.shape
    assert len(points) > 0
    assert 0 <= colours.min() <= colours.max() <= 1
    assert [c.shape for c in confidence] == [d.shape for d in depth] == [image.shape[:2] for image in scene.imgs]


def test_names_of_the_demos():
    import mast3r.demo
    from dust3r.demo import get_args_parser, main_demo, set_print_with_timestamp

    assert callable(main_demo)
    assert callable(set_print_with_timestamp)
    assert get_args_parser().parse_args(["--weights", "w.pth"]).image_size == 512
    args = mast3r.demo.get_args_parser().parse_args(["--model_name", "m", "--retrieval_model", "r", "--local_network"])
    assert (args.model_name, args.retrieval_model, args.local_network) == ("m", "r", True)
