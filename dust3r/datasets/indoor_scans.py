"""Indoor scans with one table of all images and pairs, `all_metadata.npz`."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from dust3r.datasets.base.base_stereo_view_dataset import BaseStereoViewDataset, Resolution, View
from dust3r.datasets.utils.files import Frame, load_arrays, read_depth_png, read_photo, text_of

_MILLIMETRE = 1e-3
_TABLE = ("scenes", "sceneids", "images", "intrinsics", "trajectories", "pairs")


class ScanDataset(BaseStereoViewDataset):
    """Pairs listed in a table: scenes, sceneids, images, intrinsics (n, 3, 3), trajectories (n, 4, 4), pairs (m, 2..).

    Args:
        ROOT: Folder of the prepared data set.
        **options: Options of `BaseStereoViewDataset`.

    Raises:
        ValueError: If the table is missing or damaged, or the split is unknown.
    """

    folders: tuple[str, str]
    """Names of the folders of photos and of depth maps in a scene."""

    def __init__(self, *, ROOT: str | Path, **options: Any) -> None:
        super().__init__(**options)
        self.ROOT = Path(ROOT)
        self._folder = self.ROOT / self._split_folder()
        table = load_arrays(self._folder / "all_metadata.npz", *_TABLE)
        self.scenes, self.images = table["scenes"], table["images"]
        self.sceneids, self.pairs = table["sceneids"], table["pairs"][:, :2].astype(np.int64)
        self.intrinsics = table["intrinsics"].astype(np.float32)
        self.trajectories = table["trajectories"].astype(np.float32)

    @abstractmethod
    def _split_folder(self) -> str:
        """Sub-folder of the split; empty if there is none."""

    def __len__(self) -> int:
        return len(self.pairs)

    def _get_views(self, idx: int, resolution: Resolution, rng: np.random.Generator) -> list[View]:
        return [
            self._view(self._frame(image), resolution, rng, label=self._scene(image))
            for image in self.pairs[idx].tolist()
        ]

    def _scene(self, image: int) -> str:
        return text_of(self.scenes[int(self.sceneids[image])])

    def _frame(self, image: int) -> Frame:
        photos, depths = (self._folder / self._scene(image) / name for name in self.folders)
        stem = Path(text_of(self.images[image])).stem
        return Frame(
            read_photo(photos / f"{stem}.jpg"),
            read_depth_png(depths / f"{stem}.png", _MILLIMETRE),
            self.intrinsics[image],
            self.trajectories[image],
            f"{photos}/{stem}",
        )
