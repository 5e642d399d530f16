"""Frames of video files. PyAV is imported when a video is opened (`pip install 'mast3r[video]'`)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multiview.images import Image

if TYPE_CHECKING:
    import av.container
    import av.video.stream

VIDEO_SUFFIXES = frozenset((".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mts", ".3gp"))
"""Endings of files that are taken for videos."""

_SEEK_SECONDS = 10.0  # a gap this long is jumped over, a shorter one is decoded


class VideoError(ValueError):
    """A video that cannot be used; the message is one sentence."""


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """One frame.

    Attributes:
        image: The upright picture; its path is None.
        seconds: Time since the beginning of the video.
    """

    image: Image
    seconds: float


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether a file's name ends like a video's."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def read_frames(
    path: str | os.PathLike[str], *, count: int | None = None, fps: float | None = None
) -> Iterator[VideoFrame]:
    """Frames of a video, chosen evenly in time. Give one of the two.

    Args:
        path: The file.
        count: Number of frames, in the middles of as many equal parts of the video; fewer come if it has
            fewer.
        fps: Frames per second of the video, from its beginning; each frame comes once at most.

    Yields:
        The frames in order of time, each decoded when it is asked for.

    Raises:
        ImportError: If PyAV is not installed.
        VideoError: If the file is missing, holds no video or cannot be decoded.
        ValueError: If not exactly one of `count` and `fps` is given, or it is not positive.
    """
    if (count is None) == (fps is None):
        raise ValueError("read_frames() takes either count or fps.")
    if not (count or 0) > 0 and not (fps or 0) > 0:
        raise ValueError(f"count and fps must be positive, got {count if fps is None else fps}.")
    av = _require_av(path)
    if not Path(path).is_file():
        raise VideoError(f"There is no video file {str(path)!r}.")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError(f"{str(path)!r} holds no video.")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield from _frames_at(container, stream, _times(_duration(container, stream), count, fps))
    except av.FFmpegError as error:
        raise VideoError(f"{str(path)!r} cannot be read as a video ({error.strerror}).") from error


def _require_av(path: str | os.PathLike[str]) -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError(f"Reading the video {str(path)!r} needs PyAV: pip install 'mast3r[video]'.") from error
    return av


def _duration(container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> float:
    """Seconds; where the file does not say, from its last packet."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None:
        return container.duration / 1_000_000
    last = 0.0
    for packet in container.demux(stream):
        if packet.pts is not None and packet.time_base is not None:
            last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base) - _start(stream))
    container.seek(0)
    return last


def _times(duration: float, count: int | None, fps: float | None) -> np.ndarray:
    """Wanted times in seconds, ascending."""
    if count is not None:
        return (np.arange(count) + 0.5) * duration / count
    number = max(1, int(np.ceil(duration * (fps or 1.0) - 1e-6)))
    return np.arange(number) / (fps or 1.0)


def _start(stream: av.video.stream.VideoStream) -> float:
    if stream.start_time is None or stream.time_base is None:
        return 0.0
    return float(stream.start_time * stream.time_base)


def _frames_at(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, times: Sequence[float] | np.ndarray
) -> Iterator[VideoFrame]:
    """The frame shown at each time, without repetitions."""
    start, half = _start(stream), 0.5 / float(stream.average_rate or 30)
    decoded = container.decode(stream)
    now = -np.inf
    for time in times:
        if time - max(now, 0.0) > _SEEK_SECONDS and stream.time_base is not None:
            container.seek(int((time + start) / stream.time_base), stream=stream, backward=True)
            decoded = container.decode(stream)
        if now + half >= time:
            continue  # the last frame is still the nearest one
        for frame in decoded:
            seconds = (frame.time or 0.0) - start
            if seconds + half >= time:
                now = seconds
                pixels = upright(frame.to_ndarray(format="rgb24"), frame.rotation)
                yield VideoFrame(Image(pixels), seconds)
                break


def upright(pixels: np.ndarray, rotation: int) -> np.ndarray:
    """A stored frame as it is to be shown.

    Args:
        pixels: (h, w, 3) as stored.
        rotation: Degrees counterclockwise by which players turn it; the nearest multiple of 90 is taken.

    Returns:
        The turned frame.
    """
    return np.ascontiguousarray(np.rot90(pixels, round(rotation / 90) % 4))
