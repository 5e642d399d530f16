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
