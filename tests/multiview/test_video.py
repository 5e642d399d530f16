"""Frames of videos."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from multiview.video import VideoError, is_video, read_frames, upright

av = pytest.importorskip("av")
RATE, COUNT = 10, 60


@pytest.fixture(scope="module", params=["mp4", "mkv"])
def clip(request, tmp_path_factory) -> Path:
    """Six seconds that get lighter, frame by frame."""
    path = tmp_path_factory.mktemp("clip") / f"clip.{request.param}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, "yuv420p", 12
        for i in range(COUNT):
            pixels = np.full((48, 64, 3), 4 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def levels(frames) -> np.ndarray:
    """Number of each frame in the clip, from its brightness."""
    return np.array([frame.image.pixels.mean() / 4 for frame in frames])


@pytest.mark.parametrize("count", [1, 4, 7])
def test_frames_are_taken_evenly(clip, count):
    frames = list(read_frames(clip, count=count))
    wanted = (np.arange(count) + 0.5) * COUNT / count
    assert len(frames) == count
    assert np.abs(levels(frames) - wanted).max() < 1.5
    assert np.abs([frame.seconds * RATE for frame in frames] - wanted).max() <= 0.5 + 1e-6


def test_frames_per_second(clip):
    frames = list(read_frames(clip, fps=2))
    assert [round(frame.seconds * 2) for frame in frames] == list(range(12))


def test_no_frame_comes_twice(clip):
    for wish in ({"count": 500}, {"fps": 1000}):
        times = [frame.seconds for frame in read_frames(clip, **wish)]
        assert len(times) == COUNT
        assert times == sorted(set(times))


def test_long_gaps_are_jumped_over(clip, monkeypatch):
    plain = levels(read_frames(clip, count=3))
    monkeypatch.setattr("multiview.video._SEEK_SECONDS", 0.5)
    np.testing.assert_allclose(levels(read_frames(clip, count=3)), plain)


def test_frames_are_read_one_by_one(clip):
    frames = read_frames(clip, count=3)
    assert next(frames).image.size == (64, 48)
    frames.close()


@pytest.mark.parametrize("rotation", [0, 90, -90, 180, -180, 270])
def test_frames_stand_upright(rotation):
    stored = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    shown = upright(stored, rotation)
    assert shown.shape[:2] == ((3, 2) if rotation % 180 else (2, 3))
    np.testing.assert_array_equal(upright(shown, -rotation), stored)
    if rotation == 90:
        np.testing.assert_array_equal(shown[0, 0], stored[0, -1])  # counterclockwise: the top right corner comes first


def test_wrong_files_and_wishes(tmp_path, clip):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clip.read_bytes()[:50] + b"\0" * 500)
    for path in (broken, tmp_path / "none.mp4"):
        with pytest.raises(VideoError, match=path.name):
            list(read_frames(path, count=1))
    for wish in ({}, {"count": 1, "fps": 1}, {"count": 0}, {"fps": -1.0}):
        with pytest.raises(ValueError, match="count"):
            list(read_frames(clip, **wish))


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match="no video"):
        list(read_frames(path, count=1))


def test_without_pyav(monkeypatch, clip):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install 'mast3r\[video\]'"):
        list(read_frames(clip, count=1))


def test_names_of_videos():
    assert is_video("a/b.MP4")
    assert not is_video("b.jpg")
