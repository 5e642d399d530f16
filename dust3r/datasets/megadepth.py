"""MegaDepth as prepared for DUSt3R."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dust3r.datasets.base.base_stereo_view_dataset import BaseStereoViewDataset, Resolution, View
from dust3r.datasets.utils.files import Frame, check_split, load_arrays, read_depth_exr, read_photo, text_of

_VALIDATION = ("0015", "0022")


class MegaDepth(BaseStereoViewDataset):
    """Landmarks from photo collections (Li and Snavely, CVPR 2018); lengths have an arbitrary unit per scene.

    Folder: `all_metadata.npz` with scenes ('0015 0'), images and pairs (scene, image 1, image 2, score); photos
    `SCENE/PART/NAME.jpg`, `.exr` and `.npz` (intrinsics, cam2world), where NAME keeps its own extension.

    Args:
        split: 'train', 'val' (scenes 0015 and 0022) or None for both.
        ROOT: Folder of the prepared data set.
        **options: Options of `BaseStereoViewDataset`.

    Raises:
        ValueError: If the table is missing or damaged, or the split is unknown.
    """

    def __init__(self, *, split: str | None, ROOT: str | Path, **options: Any) -> None:
        super().__init__(split=split, **options)
        check_split(type(self).__name__, self.split, ("train", "val", None))
        self.ROOT = Path(ROOT)
        table = load_arrays(self.ROOT / "all_metadata.npz", "scenes", "images", "pairs")
        self.scenes, self.images = ([text_of(name) for name in table[key]] for key in ("scenes", "images"))
        pairs = np.array([tuple(row)[:3] for row in table["pairs"].tolist()], dtype=np.int64).reshape(-1, 3)
        held_back = np.array([scene.split()[0] in _VALIDATION for scene in self.scenes], dtype=bool)[pairs[:, 0]]
        self.pairs = pairs if split is None else pairs[held_back == (split == "val")]

    def __len__(self) -> int:
        return len(self.pairs)

    def _get_views(self, idx: int, resolution: Resolution, rng: np.random.Generator) -> list[View]:
        scene, *images = self.pairs[idx].tolist()
        folder = self.ROOT.joinpath(*self.scenes[scene].split())
        frames = (self._frame(folder, self.images[image]) for image in images)
        return [self._view(frame, resolution, rng, label=self.scenes[scene]) for frame in frames]

    @staticmethod
    def _frame(folder: Path, name: str) -> Frame:
        camera = load_arrays(folder / f"{name}.npz", "intrinsics", "cam2world")
        photo, depth = read_photo(folder / f"{name}.jpg"), read_depth_exr(folder / f"{name}.exr")
        return Frame(photo, depth, camera["intrinsics"], camera["cam2world"], f"{folder}/{name}")
