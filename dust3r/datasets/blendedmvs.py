"""BlendedMVS as prepared for DUSt3R."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dust3r.datasets.base.base_stereo_view_dataset import BaseStereoViewDataset, Resolution, View
from dust3r.datasets.utils.files import (
    Frame,
    check_split,
    load_arrays,
    load_rows,
    pose_from_parts,
    read_depth_exr,
    read_photo,
)

_VALIDATION = 10  # every so many sequences are held back


class BlendedMVS(BaseStereoViewDataset):
    """Renderings of reconstructed scenes (Yao et al., CVPR 2020); lengths have an arbitrary unit per scene.

    Folder: `blendedmvs_pairs.npy` with rows (high, low, image 1, image 2, score), the second field named `seq_low`;
    sequences in folders named by the 24 hexadecimal digits of (high, low), with `%08d.jpg`, `%08d.exr` and `%08d.npz`
    (intrinsics, R_cam2world, t_cam2world).

    Args:
        ROOT: Folder of the prepared data set.
        **options: Options of `BaseStereoViewDataset`; split 'train', 'val' or None for both.

    Raises:
        ValueError: If the list of pairs is missing or damaged, or the split is unknown.
    """

    def __init__(self, *, ROOT: str | Path, **options: Any) -> None:
        super().__init__(**options)
        check_split(type(self).__name__, self.split, ("train", "val", None))
        self.ROOT = Path(ROOT)
        path = self.ROOT / "blendedmvs_pairs.npy"
        rows = load_rows(path)
        if rows.dtype.names is None or "seq_low" not in rows.dtype.names or len(rows.dtype.names) < 4:
            raise ValueError(f"{path} must hold rows (seq_high, seq_low, img1, img2, score), got {rows.dtype}")
        held_back = rows["seq_low"] % _VALIDATION == 0
        self.pairs = rows if self.split is None else rows[held_back == (self.split == "val")]

    def __len__(self) -> int:
        return len(self.pairs)

    def _get_views(self, idx: int, resolution: Resolution, rng: np.random.Generator) -> list[View]:
        high, low, *images = (int(value) for value in self.pairs[idx].tolist()[:4])
        sequence = f"{high:08x}{low:016x}"
        frames = (self._frame(self.ROOT / sequence / f"{image:08d}") for image in images)
        return [self._view(frame, resolution, rng, label=sequence) for frame in frames]

    @staticmethod
    def _frame(stem: Path) -> Frame:
        camera = load_arrays(stem.with_suffix(".npz"), "intrinsics", "R_cam2world", "t_cam2world")
        photo, depth = read_photo(stem.with_suffix(".jpg")), read_depth_exr(stem.with_suffix(".exr"))
        return Frame(photo, depth, camera["intrinsics"], pose_from_parts(camera), str(stem))
