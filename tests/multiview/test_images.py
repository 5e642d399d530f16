"""Reading images: every accepted form, and one clear sentence for everything that is refused."""

from __future__ import annotations

import io
import re
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiview import images
from multiview.images import (
    Image,
    ImageError,
    ImageNotFoundError,
    ImageTransform,
    as_image,
    fit_for_model,
    read_image,
    resample,
    rotated,
)


def gradient(width: int = 40, height: int = 30) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x // (width - 1), 255 * y // (height - 1), (7 * x + 3 * y) % 256], axis=-1).astype(np.uint8)


def is_one_sentence(error: BaseException) -> bool:
    text = str(error)
    return text.endswith(".") and "\n" not in text and re.search(r"\.\s+[A-Z]", text) is None


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing: a decompression bomb without the bomb."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 64)
    chunks = [header, data, b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    )


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".ppm"])
def test_lossless_formats_read_exactly(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    PIL.Image.fromarray(gradient()).save(path)
    image = read_image(path)
    assert image.size == (40, 30)
    assert image.path == path
    np.testing.assert_array_equal(image.pixels, gradient())


def test_image_passes_through_and_round_trips_pil():
    image = as_image(gradient())
    assert as_image(image) is image
    np.testing.assert_array_equal(as_image(image.to_pil()).pixels, image.pixels)
    assert "40x30" in repr(image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turn_matches_its_transform(tmp_path, orientation):
    stored = gradient()
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    PIL.Image.fromarray(stored).save(path, exif=exif)
    image = read_image(path)
    assert image.orientation == orientation
    turn = ImageTransform.turn((40, 30), orientation)
    assert turn.size_to == image.size
    ys, xs = np.mgrid[:30, :40]
    uv = turn.apply(np.stack([xs, ys], axis=-1)).round().astype(int)
    np.testing.assert_array_equal(image.pixels[uv[..., 1], uv[..., 0]], stored)
    np.testing.assert_array_equal(as_image(PIL.Image.open(path)).pixels, image.pixels)


def test_broken_exif_is_ignored(tmp_path):
    path = tmp_path / "exif.jpg"
    PIL.Image.fromarray(gradient()).save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff" + b"\xff" * 20)
    assert read_image(path).size == (40, 30)


def test_sixteen_bit_grey_is_toned_down_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 40 * 30).round().astype(np.uint16).reshape(30, 40)
    path = tmp_path / "deep.png"
    PIL.Image.fromarray(values).save(path)
    for source in (path, values):
        pixels = as_image(source).pixels
        np.testing.assert_allclose(pixels[..., 0], values / 257, atol=0.5)
        assert (pixels[..., 0] == pixels[..., 2]).all()
    assert (pixels == 255).mean() < 0.01


def test_sixteen_bit_colour_array():
    values = gradient().astype(np.uint16) * 257
    np.testing.assert_array_equal(as_image(values).pixels, gradient())


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV"])
def test_other_modes_equal_pillows_conversion(mode):
    pil = PIL.Image.fromarray(gradient()).convert(mode)
    np.testing.assert_array_equal(as_image(pil).pixels, np.array(pil.convert("RGB")))


def test_alpha_is_composited_on_white(tmp_path):
    rgba = np.dstack([gradient(), np.full((30, 40), 255, np.uint8)])
    np.testing.assert_array_equal(as_image(rgba).pixels, gradient())
    rgba[:10, :, 3] = 0
    PIL.Image.fromarray(rgba).save(tmp_path / "alpha.png")
    for source in (rgba, tmp_path / "alpha.png"):
        pixels = as_image(source).pixels
        assert (pixels[:10] == 255).all()
        np.testing.assert_array_equal(pixels[10:], gradient()[10:])


def test_transparent_palette_is_composited_on_white(tmp_path):
    palette = PIL.Image.fromarray(np.zeros((30, 40), np.uint8), mode="P")
    palette.putpalette([10, 20, 30] + [0] * 765)
    palette.info["transparency"] = 0
    palette.save(tmp_path / "palette.png", transparency=0)
    assert (read_image(tmp_path / "palette.png").pixels == 255).all()


def test_arrays_of_other_types():
    expected = gradient()
    np.testing.assert_array_equal(as_image(expected.astype(np.float32) / 255).pixels, expected)
    np.testing.assert_array_equal(as_image(expected.astype(np.int64)).pixels, expected)
    np.testing.assert_array_equal(as_image(expected[..., :1]).pixels, np.repeat(expected[..., :1], 3, axis=2))
    np.testing.assert_array_equal(as_image(expected[..., 0]).pixels[..., 1], expected[..., 0])
    assert as_image(expected > 100).pixels.max() == 255


def test_array_is_copied():
    source = gradient()
    image = as_image(source)
    source[:] = 0
    assert image.pixels.any()


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.full((20, 20, 3), np.nan), "NaN"),
        (np.full((20, 20, 3), np.inf), "NaN"),
        (np.full((20, 20, 3), 200.0), r"\[0, 1\]"),
        (np.full((20, 20, 3), -0.5), r"\[0, 1\]"),
        (np.full((20, 20, 3), 300), "0..255"),
        (np.full((20, 20, 3), -1), "0..255"),
        (np.zeros((3, 20, 20), np.uint8), "last axis"),
        (np.zeros((20, 20, 2), np.uint8), "shape"),
        (np.zeros(20, np.uint8), "shape"),
        (np.zeros((0, 20, 3), np.uint8), "empty"),
        (np.zeros((15, 40, 3), np.uint8), "at least 16"),
        (np.full((20, 20, 3), "a"), "integers or floats"),
        (np.full((20, 20, 3), 1j), "integers or floats"),
    ],
)
def test_bad_arrays(array, word):
    with pytest.raises(ImageError, match=word) as caught:
        as_image(array)
    assert is_one_sentence(caught.value)


@pytest.mark.parametrize("source", [None, 3, [1, 2], b"x", {}])
def test_bad_types(source):
    with pytest.raises(ImageError, match="must be a path") as caught:
        as_image(source)
    assert is_one_sentence(caught.value)


def test_missing_file_is_a_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no image file") as caught:
        read_image(tmp_path / "none.png")
    assert isinstance(caught.value, ImageNotFoundError | ValueError)
    assert is_one_sentence(caught.value)


def test_directory_empty_and_text(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("not an image, surely")
    for path, word in (
        (tmp_path, "directory"),
        (tmp_path / "empty.jpg", "empty"),
        (tmp_path / "text.png", "not an image"),
        ("bad\0name.png", "no image file|cannot be opened"),
        ("x" * 5000, "cannot be opened"),
    ):
        with pytest.raises(ImageError, match=word) as caught:
            read_image(path)
        assert is_one_sentence(caught.value)


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "TIFF", "GIF", "BMP", "WEBP"])
def test_truncated_files(tmp_path, suffix):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(buffer, suffix)
    whole = buffer.getvalue()
    for share in (0.05, 0.3, 0.6):
        path = tmp_path / f"cut.{suffix.lower()}"
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ImageError) as caught:
            read_image(path)
        assert "\n" not in str(caught.value)


def test_damaged_bytes_never_raise_anything_else(tmp_path):
    rng = np.random.default_rng(1)
    path = tmp_path / "damaged"
    for kind in ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP"):
        buffer = io.BytesIO()
        PIL.Image.fromarray(gradient()).save(buffer, kind)
        for _ in range(25):
            data = bytearray(buffer.getvalue())
            for position in rng.integers(0, len(data), 6):
                data[position] = rng.integers(0, 256)
            path.write_bytes(data)
            try:
                image = read_image(path)
            except ImageError:
                continue
            assert image.pixels.dtype == np.uint8


def test_tiny_and_huge(tmp_path, monkeypatch):
    PIL.Image.fromarray(gradient(40, 15)).save(tmp_path / "tiny.png")
    with pytest.raises(ImageError, match="at least 16"):
        read_image(tmp_path / "tiny.png")
    (tmp_path / "bomb.png").write_bytes(png_header(60_000, 60_000))
    (tmp_path / "large.png").write_bytes(png_header(13_000, 12_000))
    for name in ("bomb.png", "large.png"):
        with pytest.raises(ImageError, match="pixels") as caught:
            read_image(tmp_path / name)
        assert is_one_sentence(caught.value)
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    for source in (gradient(), PIL.Image.fromarray(gradient())):
        with pytest.raises(ImageError, match="limit"):
            as_image(source)


def test_deep_pil_modes():
    deep = PIL.Image.fromarray(np.full((20, 20), 300, np.int32))
    assert (as_image(deep).pixels == 1).all()
    with pytest.raises(ImageError, match="16-bit"):
        as_image(PIL.Image.fromarray(np.full((20, 20), -5, np.int32)))
    assert (as_image(PIL.Image.fromarray(np.full((20, 20), 0.5, np.float32))).pixels == 128).all()
    with pytest.raises(ImageError, match="NaN"):
        as_image(PIL.Image.fromarray(np.full((20, 20), np.nan, np.float32)))


def test_image_refuses_other_pixels():
    with pytest.raises(ImageError, match="uint8"):
        Image(np.zeros((20, 20, 3)))


def test_animation_gives_first_frame(tmp_path):
    frames = [PIL.Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    assert (read_image(tmp_path / "film.gif").pixels[..., 0] > 250).all()


@pytest.mark.parametrize("size", [224, 256, 512])
@pytest.mark.parametrize("shape", [(300, 300), (200, 317), (317, 200), (90, 400)])
def test_fit_shapes_are_multiples_of_the_patch(size, shape):
    image = as_image(np.zeros((*shape, 3), np.uint8))
    pixels, transform = fit_for_model(image, size)
    assert pixels.shape[0] % 16 == pixels.shape[1] % 16 == 0
    assert transform.size_from == image.size
    assert transform.size_to == pixels.shape[1::-1]
    assert max(pixels.shape) == size


def test_fit_square_rule():
    square = np.zeros((100, 100, 3), np.uint8)
    assert fit_for_model(square, 512)[0].shape == (384, 512, 3)
    assert fit_for_model(square, 512, square_ok=True)[0].shape == (512, 512, 3)
    # 3/4 of 272 is no multiple of a patch: the height is cut down to one.
    assert fit_for_model(square, 272)[0].shape == (192, 272, 3)
    assert fit_for_model(square, 518, 14)[0].shape == (378, 518, 3)


def test_fit_pixel_centre_rule():
    """A bright dot lands where the transform says, to a tenth of a pixel, for shrinking and enlarging."""
    for size in (256, 1024):
        canvas = np.zeros((480, 640, 3), np.uint8)
        centre = np.array([413, 171])
        y, x = np.mgrid[:480, :640]
        canvas[:] = (255 * np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / 72))[..., None]
        pixels, transform = fit_for_model(canvas, size)
        weight = pixels[..., 0].astype(float)
        y, x = np.mgrid[: weight.shape[0], : weight.shape[1]]
        found = np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()
        np.testing.assert_allclose(found, transform.apply(centre), atol=0.1)
        scale = size / 640
        np.testing.assert_allclose(transform.apply(centre), (centre + 0.5) * scale - 0.5, atol=1e-9)


def test_fit_refusals(monkeypatch):
    with pytest.raises(ImageError, match="elongated"):
        fit_for_model(np.zeros((16, 2000, 3), np.uint8), 512)
    with pytest.raises(ValueError, match="at least one patch"):
        fit_for_model(np.zeros((32, 32, 3), np.uint8), 8)
    monkeypatch.setattr(images, "MAX_PIXELS", 100_000)
    with pytest.raises(ImageError, match="memory"):
        fit_for_model(np.zeros((16, 2000, 3), np.uint8), 224)


def test_resample_follows_the_transform():
    image = as_image(np.random.default_rng(0).integers(0, 255, (60, 81, 3), dtype=np.uint8))
    identity = ImageTransform.identity(image.size)
    np.testing.assert_array_equal(resample(image, identity), image.pixels)
    crop = ImageTransform.crop(image.size, (7, 5, 50, 45))
    np.testing.assert_array_equal(resample(image, crop), image.pixels[5:45, 7:50])
    outside = ImageTransform.crop(image.size, (-5, -5, 50, 45))
    np.testing.assert_array_equal(resample(image, outside)[5:, 5:], image.pixels[:45, :50])
    smooth = as_image(gradient(200, 150)[..., :1].repeat(3, axis=2))
    pixels, transform = fit_for_model(smooth, 160)
    np.testing.assert_allclose(resample(smooth, transform).astype(int), pixels.astype(int), atol=2)
    with pytest.raises(ValueError, match="resizing and cropping"):
        resample(image, ImageTransform.turn(image.size, 6))
    with pytest.raises(ValueError, match="size"):
        resample(image, ImageTransform.identity((5, 5)))


@given(width=st.integers(2, 90), height=st.integers(2, 90), degrees=st.floats(-360, 360))
def test_a_turned_canvas_holds_all_pixels(width, height, degrees):
    turn = ImageTransform.rotate((width, height), degrees)
    corners = np.array([(0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1)], dtype=float)
    ends = turn.apply(corners)
    assert (ends > -0.51).all()
    assert (ends < np.array(turn.size_to) - 0.49).all()
    np.testing.assert_allclose(turn.apply(corners.mean(0)[None])[0], (np.array(turn.size_to) - 1) / 2, atol=1e-9)
    np.testing.assert_allclose(turn.inverse().apply(ends), corners, atol=1e-9)


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_quarter_turns_are_exact(quarters):
    pixels = np.random.default_rng(0).integers(0, 256, (17, 20, 3), dtype=np.uint8)
    np.testing.assert_array_equal(rotated(Image(pixels), 90 * quarters), np.rot90(pixels, quarters))


def test_a_turned_photo_shows_what_its_transform_says():
    y, x = np.mgrid[:60, :80]
    image = Image(np.stack([3 * x, 4 * y, 0 * x], axis=-1).astype(np.uint8))
    turned, turn = rotated(image, 30), ImageTransform.rotate(image.size, 30)
    xy = np.stack([x, y], axis=-1)[10:50, 10:70].reshape(-1, 2)
    ends = turn.apply(xy)
    columns, rows = np.rint(ends).astype(int).T
    slope = np.abs(turned[rows, columns].astype(float) - image.pixels[xy[:, 1], xy[:, 0]])
    assert slope.max() <= 4  # half a pixel to the side
    assert (turned[0, 0] == 127).all()
