"""Photos on a command line: files, folders, patterns and videos."""

from __future__ import annotations

import argparse
import glob
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mast3r.pairs.options import positive_int
from multiview.files import atomic_write
from multiview.images import ImageNotFoundError
from multiview.video import VideoFrame, is_video, read_frames

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif"))
"""Endings of the files that are taken from a folder."""

INPUT_HELP = "photos: files, folders, patterns such as 'hall/*.jpg', or video files"
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class FrameChoice:
    """Which frames of a video are taken: `fps` per second, else `count` evenly."""

    count: int = 40
    fps: float | None = None

    def read(self, path: Path) -> Iterator[VideoFrame]:
        """The chosen frames."""
        return read_frames(path, count=None if self.fps else self.count, fps=self.fps)


def add_frame_options(parser: argparse.ArgumentParser, *, count: int) -> None:
    """Flags for videos.

    Args:
        parser: Gets the flags.
        count: Default number of frames.
    """
    group = parser.add_argument_group("videos")
    group.add_argument(
        "--frames", type=positive_int, default=count, help="take so many frames, evenly (default %(default)s)"
    )
    group.add_argument("--fps", type=float, help="take so many frames per second of the video instead")
    group.add_argument("--frames_dir", type=Path, help="folder to write them to (default: beside --out)")


def collect_photos(inputs: Sequence[str], frames: FrameChoice, folder: Path) -> list[Path]:
    """The image files that inputs stand for, in their order, each once.

    Args:
        inputs: Files, folders, patterns and videos.
        frames: Which frames of videos.
        folder: Where frames are written to, as JPEG files; made if there are any.

    Raises:
        ImageNotFoundError: If an input leads to no file.
        VideoError: If a video cannot be read.
        ImportError: If there is a video but no PyAV.
    """
    found: list[Path] = []
    for text in inputs:
        for path in _files(text):
            found += _write_frames(path, frames, folder) if is_video(path) else [path]
    return list(dict.fromkeys(found))


def has_video(inputs: Sequence[str]) -> bool:
    """Whether a single video is all that was given: its frames are a sequence."""
    return len(inputs) == 1 and is_video(inputs[0])


def _files(text: str) -> list[Path]:
    """The files behind one input."""
    path = Path(text).expanduser()
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
        if not found:
            raise ImageNotFoundError(f"the folder {text!r} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}).")
        return found
    if path.is_file():
        return [path]
    matched = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
    found = [p for p in matched if p.is_file() and (p.suffix.lower() in IMAGE_SUFFIXES or is_video(p))]
    if not found:
        raise ImageNotFoundError(f"there is no photo, folder or video {text!r}.")
    return found


def _write_frames(path: Path, frames: FrameChoice, folder: Path) -> list[Path]:
    written = []
    for i, frame in enumerate(frames.read(path)):
        target = folder / f"{path.stem}_{i:04d}.jpg"
        with atomic_write(target) as file:
            frame.image.to_pil().save(file, "JPEG", quality=_JPEG_QUALITY)
        written.append(target)
    logger.info("%d frames of %s written to %s", len(written), path, folder)
    return written
