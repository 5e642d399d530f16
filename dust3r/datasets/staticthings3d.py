"""StaticThings3D as prepared for DUSt3R."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dust3r.datasets.base.base_stereo_view_dataset import BaseStereoViewDataset, Resolution, View
from dust3r.datasets.sequences import MaskBackground
from dust3r.datasets.utils.files import (
    Frame,
    check_split,
    load_arrays,
    load_rows,
    read_depth_exr,
    read_photo,
    text_of,
)

_BACKGROUND = 200.0
_SIDES = {"l": "left", "r": "right"}


class StaticThings3D(BaseStereoViewDataset):
    """Rendered random objects (Schröppel et al., 3DV 2022); lengths have an arbitrary unit.

    Folder: `staticthings_pairs.npy` with rows (scene, sequence, camera 1, image 1, camera 2, image 2); renderings
    `TRAIN/SCENE/%04d/{left,right}/%04d_{clean,final}.jpg`, `%04d.exr` and `%04d.npz` (intrinsics, cam2world).

    Args:
        ROOT: Folder of the prepared data set.
        mask_bg: Drop depth beyond 200: always, never, or for every second pair at random ('rand').
        **options: Options of `BaseStereoViewDataset`.

    Raises:
        ValueError: If the list of pairs is missing or damaged, or an option is unknown.
    """

    def __init__(self, *, ROOT: str | Path, mask_bg: MaskBackground = "rand", **options: Any) -> None:
        super().__init__(**options)
        check_split(type(self).__name__, self.split, ("train", None))
        if mask_bg not in (True, False, "rand"):
            raise ValueError(f"mask_bg must be True, False or 'rand', got {mask_bg!r}")
        self.ROOT = Path(ROOT)
        self.mask_bg = mask_bg
        self.pairs = load_rows(self.ROOT / "staticthings_pairs.npy")

    def __len__(self) -> int:
        return len(self.pairs)

    def _get_views(self, idx: int, resolution: Resolution, rng: np.random.Generator) -> list[View]:
        scene, sequence, camera1, image1, camera2, image2 = self.pairs[idx].tolist()[:6]
        folder = self._scene_folder(text_of(scene)) / f"{int(sequence):04d}"
        masked = bool(rng.integers(2)) if self.mask_bg == "rand" else bool(self.mask_bg)
        views = []
        for camera, image in ((camera1, image1), (camera2, image2)):
            kind = ("clean", "final")[int(rng.integers(2))]
            frame = self._frame(folder / _SIDES[text_of(camera)[:1].lower()], int(image), kind)
            frame = frame.masked(frame.depthmap <= _BACKGROUND) if masked else frame
            views.append(self._view(frame, resolution, rng, label=f"{text_of(scene)}/{int(sequence):04d}"))
        return views

    def _scene_folder(self, scene: str) -> Path:
        """Folder of a scene, which may be listed with or without `TRAIN`."""
        plain = self.ROOT / scene
        return plain if plain.is_dir() else self.ROOT / "TRAIN" / scene

    @staticmethod
    def _frame(folder: Path, image: int, kind: str) -> Frame:
        stem = folder / f"{image:04d}"
        camera = load_arrays(stem.with_suffix(".npz"), "intrinsics", "cam2world")
        photo, depth = read_photo(folder / f"{image:04d}_{kind}.jpg"), read_depth_exr(stem.with_suffix(".exr"))
        return Frame(photo, depth, camera["intrinsics"], camera["cam2world"], str(stem))
