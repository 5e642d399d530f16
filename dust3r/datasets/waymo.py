"""Waymo Open Dataset as prepared for DUSt3R."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dust3r.datasets.base.base_stereo_view_dataset import BaseStereoViewDataset, Resolution, View
from dust3r.datasets.utils.files import Frame, check_split, load_arrays, read_depth_exr, read_photo, text_of


class Waymo(BaseStereoViewDataset):
    """Driving scenes with sparse lidar depth (Sun et al., CVPR 2020), in metres.

    Folder: `waymo_pairs.npz` with scenes ('SEQUENCE.tfrecord'), frames ('%05d_CAMERA') and pairs (scene, frame 1,
    frame 2); in each scene's folder `FRAME.jpg`, `FRAME.exr` and `FRAME.npz` (intrinsics, cam2world).

    Args:
        ROOT: Folder of the prepared data set.
        **options: Options of `BaseStereoViewDataset`.

    Raises:
        ValueError: If the list of pairs is missing or damaged, or the split is unknown.
    """

    def __init__(self, *, ROOT: str | Path, **options: Any) -> None:
        super().__init__(**options)
        check_split(type(self).__name__, self.split, ("train", None))
        self.ROOT = Path(ROOT)
        table = load_arrays(self.ROOT / "waymo_pairs.npz", "scenes", "frames", "pairs")
        self.scenes, self.frames = ([text_of(name) for name in table[key]] for key in ("scenes", "frames"))
        self.pairs = table["pairs"][:, :3].astype(np.int64)

    def __len__(self) -> int:
        return len(self.pairs)

    def _get_views(self, idx: int, resolution: Resolution, rng: np.random.Generator) -> list[View]:
        scene, *frames = self.pairs[idx].tolist()
        folder = self.ROOT / self.scenes[scene]
        found = (self._frame(folder, self.frames[frame]) for frame in frames)
        return [self._view(frame, resolution, rng, label=self.scenes[scene]) for frame in found]

    @staticmethod
    def _frame(folder: Path, name: str) -> Frame:
        camera = load_arrays(folder / f"{name}.npz", "intrinsics", "cam2world")
        photo, depth = read_photo(folder / f"{name}.jpg"), read_depth_exr(folder / f"{name}.exr")
        return Frame(photo, depth, camera["intrinsics"], camera["cam2world"], f"{folder}/{name}")
