"""Reading what visitors upload, within limits."""

from __future__ import annotations

import PIL.Image

from multiview.images import Image, ImageError, read_image

MAX_PIXELS = 64_000_000
"""Photos with more pixels are refused by the page."""

MAX_FILE_SIZE = "40mb"
"""Larger files are refused while they arrive."""


def read_upload(path: str, name: str) -> Image:
    """Read an uploaded photo; messages call it by `name` and do not tell where the server keeps it.

    Raises:
        ImageError: If it cannot be used or has more than `MAX_PIXELS` pixels.
    """
    check_pixels(path, name)
    try:
        return read_image(path)
    except ImageError as error:
        raise ImageError(str(error).replace(path, name)) from error


def check_upload(path: str, name: str) -> None:
    """Look whether an upload is a photo at all, and not too large, without decoding it.

    Raises:
        ImageError: If it is not.
    """
    check_pixels(path, name)
    try:
        with PIL.Image.open(path):
            pass
    except (OSError, PIL.Image.DecompressionBombError):
        read_upload(path, name)  # finds the words for it, or knows the format


def check_pixels(path: str, name: str) -> None:
    """Look at the size of a photo without decoding it.

    Raises:
        ImageError: If it has more than `MAX_PIXELS` pixels.
    """
    try:
        with PIL.Image.open(path) as header:
            pixels = header.width * header.height
    except (OSError, PIL.Image.DecompressionBombError):
        return  # read_image finds the words for it
    if pixels > MAX_PIXELS:
        raise ImageError(
            f"{name} has {pixels / 1e6:.0f} million pixels; this page takes up to {MAX_PIXELS / 1e6:.0f} million."
        )
