"""Pairs of frames of object-centred video sequences, listed in `selected_seqs_{split}.json`."""

from __future__ import annotations

from abc import abstractmethod
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dust3r.datasets.base.base_stereo_view_dataset import BaseStereoViewDataset, Resolution, View
from dust3r.datasets.utils.files import Frame, check_split, load_json

MaskBackground = bool | Literal["rand"]

_FRAMES = 100  # places of a sequence that pairs are made of
_STEP, _REACH = 5, 30  # distances of paired frames: 5, 10, .. 30
_JITTER = 4
_PAIRS = [(i, j) for i, j in combinations(range(_FRAMES), 2) if j - i <= _REACH and (j - i) % _STEP == 0]


class SequenceDataset(BaseStereoViewDataset):
    """Frames 5 to 30 places apart, moved at random by up to 4 places.

    Args:
        mask_bg: Drop the depth of the background: always, never, or for every second pair at random ('rand').
        ROOT: Folder of the prepared data set.
        **options: Options of `BaseStereoViewDataset`.

    Raises:
        ValueError: If the list of sequences is missing or damaged, or an option is unknown.
    """

    def __init__(self, mask_bg: MaskBackground = True, *, ROOT: str | Path, **options: Any) -> None:
        super().__init__(**options)
        check_split(type(self).__name__, self.split, ("train", "test"))
        if mask_bg not in (True, False, "rand"):
            raise ValueError(f"mask_bg must be True, False or 'rand', got {mask_bg!r}")
        self.ROOT = Path(ROOT)
        self.mask_bg = mask_bg
        path = self.ROOT / f"selected_seqs_{self.split}.json"
        listed = load_json(path)
        try:
            self.sequences = [
                (category, name, [int(frame) for frame in frames])
                for category, group in listed.items()
                for name, frames in group.items()
                if frames
            ]
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{path} must hold {{category: {{sequence: [frame numbers]}}}} ({error})") from error

    @abstractmethod
    def _frame(self, folder: Path, frame: int, masked: bool) -> Frame:
        """Read one frame of the sequence in `folder`, without the depth of the background if `masked`."""

    def __len__(self) -> int:
        return len(self.sequences) * len(_PAIRS)

    def _get_views(self, idx: int, resolution: Resolution, rng: np.random.Generator) -> list[View]:
        number, pair = divmod(idx, len(_PAIRS))
        category, name, frames = self.sequences[number]
        masked = bool(rng.integers(2)) if self.mask_bg == "rand" else bool(self.mask_bg)
        views = []
        for place in _PAIRS[pair]:
            moved = max(place + int(rng.integers(-_JITTER, _JITTER + 1)), 0)
            if len(frames) < _FRAMES:  # spread the places over a shorter sequence
                moved = round(moved * (len(frames) - 1) / (_FRAMES - 1))
            moved = min(moved, len(frames) - 1)
            frame = self._first_with_depth(self.ROOT / category / name, frames, moved, masked)
            views.append(self._view(frame, resolution, rng, label=f"{category}/{name}"))
        return views

    def _first_with_depth(self, folder: Path, frames: list[int], place: int, masked: bool) -> Frame:
        """The frame at a place, or the next one after it in which anything is known."""
        for k in range(len(frames)):
            frame = self._frame(folder, frames[(place + k) % len(frames)], masked)
            if frame.has_depth:
                return frame
        raise ValueError(f"no frame of {folder} has depth; take the sequence out of the list")
