"""`load_images` and its helpers against the golden numbers."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from dust3r.utils.image import (
    ImgNorm,
    _resize_pil_image,
    img_to_arr,
    imread_cv2,
    load_images,
    rgb,
)
from multiview.images import ImageError, as_image, fit_for_model

FOLDER = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parents[1] / "golden")


@pytest.fixture(scope="module")
def loaded():
    """Views of the fixture folder per option set, each loaded once."""
    cache: dict[str, list] = {}

    def load(folder, combo):
        key = repr(sorted(combo.items()))
        if key not in cache:
            cache[key] = load_images(folder, verbose=False, **combo)
        return cache[key]

    return load


def eight_bit(view) -> np.ndarray:
    return ((view["img"][0].double() * 0.5 + 0.5) * 255).round().byte().numpy()


def test_golden_pixels(golden, loaded):
    meta = golden("load_images").meta
    stored = np.load(FOLDER / "load_images.npz")
    identical = 0
    for row in meta["rows"]:
        view = loaded(FOLDER / meta["source_folder"], row["combo"])[row["idx"]]
        assert view["true_shape"].tolist() == row["true_shape"]
        assert view["true_shape"].dtype == np.int32
        assert list(view["img"].shape) == row["img_shape"]
        assert (view["idx"], view["instance"]) == (row["idx"], row["instance"])
        pixels = eight_bit(view)
        tolerance = 3 if row["file"].endswith("jpg") else 1
        for suffix, part in ((".sub", pixels[:, ::8, ::8]), (".full", pixels)):
            if row["key"] + suffix in stored:
                difference = np.abs(part.astype(int) - stored[row["key"] + suffix].astype(int))
                assert difference.max() <= tolerance, row["key"]
        identical += hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest() == row["sha256_u8"]
        assert abs(view["img"].double().mean().item() - row["mean"]) < 0.01
        assert torch.equal(view["img"][0], (torch.from_numpy(pixels) / 255 - 0.5) / 0.5)
    # Decoders differ between Pillow versions, the resize rule does not.
    assert identical >= len(meta["rows"]) // 2


def test_model_pixels_are_those_of_fit_for_model(golden, loaded):
    meta = golden("load_images").meta
    for row in meta["rows"]:
        path = FOLDER / meta["source_folder"] / row["file"]
        pixels, transform = fit_for_model(path, **row["combo"])
        view = loaded(FOLDER / meta["source_folder"], row["combo"])[row["idx"]]
        np.testing.assert_array_equal(eight_bit(view), pixels.transpose(2, 0, 1))
        assert transform.size_from == as_image(path).size


def test_list_input_and_folder_rule(tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    for name in ("b.PNG", "a.jpg", "note.txt", "c.gif"):
        if name.endswith("txt"):
            (tmp_path / name).write_text("x")
        else:
            PIL.Image.fromarray(array).save(tmp_path / name, format=name[-3:].upper().replace("JPG", "JPEG"))
    views = load_images(str(tmp_path), size=64)
    assert [view["idx"] for view in views] == [0, 1]
    assert torch.equal(views[1]["img"], load_images([array], size=64)[0]["img"])
    mixed = load_images([tmp_path / "b.PNG", str(tmp_path / "c.gif"), PIL.Image.fromarray(array), array], 64)
    assert [view["instance"] for view in mixed] == ["0", "1", "2", "3"]
    assert set(mixed[0]) == {"img", "true_shape", "idx", "instance"}


def test_refusals(tmp_path):
    with pytest.raises(ImageError, match="no image"):
        load_images(tmp_path, 512)
    with pytest.raises(ImageError, match="not a folder"):
        load_images(tmp_path / "missing", 512)
    with pytest.raises(ImageError, match="empty"):
        load_images([], 512)
    with pytest.raises(ImageError, match="got int"):
        load_images(3, 512)
    with pytest.raises(FileNotFoundError):
        load_images([tmp_path / "missing.png"], 512)


def test_verbose_logs_and_never_prints(caplog, capsys):
    with caplog.at_level("INFO"):
        load_images([np.zeros((64, 64, 3), np.uint8)], 64)
    assert "64x64" in caplog.text
    assert capsys.readouterr().out == ""


def test_rgb_undoes_the_normalisation():
    pixels = np.random.default_rng(0).integers(0, 255, (8, 10, 3), dtype=np.uint8)
    tensor = ImgNorm(pixels)
    np.testing.assert_allclose(rgb(tensor), pixels / 255, atol=1e-6)
    assert rgb(tensor).dtype == np.float32
    np.testing.assert_allclose(rgb(tensor[None]), pixels[None] / 255, atol=1e-6)
    np.testing.assert_allclose(rgb(pixels), pixels / 255, atol=1e-6)
    np.testing.assert_allclose(rgb(tensor, true_shape=(5, 6)), pixels[:5, :6] / 255, atol=1e-6)
    assert [item.shape for item in rgb([tensor, tensor])] == [(8, 10, 3)] * 2
    assert rgb(np.full((8, 10, 3), 3.0)).max() == 1
    with pytest.raises(ValueError, match="shape"):
        rgb(np.zeros((4, 4)))


def test_img_norm_takes_pil_and_arrays_only_of_bytes():
    pixels = np.random.default_rng(0).integers(0, 255, (8, 10, 3), dtype=np.uint8)
    assert torch.equal(ImgNorm(pixels), ImgNorm(PIL.Image.fromarray(pixels)))
    with pytest.raises(ValueError, match="uint8"):
        ImgNorm(pixels / 255)


def test_resize_pil_image_rule():
    image = PIL.Image.new("RGB", (333, 250))
    assert _resize_pil_image(image, 512).size == (512, round(250 * 512 / 333))
    assert max(_resize_pil_image(image, 100).size) == 100


def test_imread_cv2(tmp_path):
    depth = (np.arange(20 * 30).reshape(20, 30) * 100).astype(np.uint16)
    PIL.Image.fromarray(depth).save(tmp_path / "depth.png")
    unchanged = imread_cv2(tmp_path / "depth.png", -1)
    assert unchanged.dtype == np.uint16
    np.testing.assert_array_equal(unchanged, depth)
    color = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    PIL.Image.fromarray(color).save(tmp_path / "color.png")
    np.testing.assert_array_equal(imread_cv2(tmp_path / "color.png"), color)
    np.testing.assert_array_equal(imread_cv2(tmp_path / "color.png", -1), color)
    assert imread_cv2(tmp_path / "color.png", 0).shape == (20, 30)
    np.testing.assert_array_equal(img_to_arr(str(tmp_path / "color.png")), color)
    for flag in (1, -1):
        with pytest.raises(FileNotFoundError):
            imread_cv2(tmp_path / "none.png", flag)
    (tmp_path / "bad.exr").write_bytes(b"nothing")
    with pytest.raises(ImageError, match="exr"):
        imread_cv2(tmp_path / "bad.exr")
