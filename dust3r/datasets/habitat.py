"""Renderings of indoor scans by the Habitat simulator, as prepared for DUSt3R."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dust3r.datasets.base.base_stereo_view_dataset import BaseStereoViewDataset, Resolution, View
from dust3r.datasets.utils.files import Frame, check_split, load_json, pose_from_parts, read_depth_exr, read_photo

_VIEWS = 5


class Habitat(BaseStereoViewDataset):
    """Five rendered views of each place (Savva et al., ICCV 2019), in metres; the first is paired with another one.

    Folder: `Habitat_{size}_scenes_{split}.txt` with one line per place, `SCENE/KEY`, or per folder of places; views
    `KEY_1.jpeg` .. `KEY_5.jpeg`, `KEY_1_depth.exr` and `KEY_1_camera_params.json` (camera_intrinsics, R_cam2world,
    t_cam2world).

    Args:
        size: Number in the name of the list.
        ROOT: Folder of the prepared data set.
        **options: Options of `BaseStereoViewDataset`; split 'train' or 'val'.

    Raises:
        ValueError: If the list is missing or the split is unknown.
    """

    def __init__(self, size: int, *, ROOT: str | Path, **options: Any) -> None:
        super().__init__(**options)
        check_split(type(self).__name__, self.split, ("train", "val"))
        self.ROOT = Path(ROOT)
        path = self.ROOT / f"Habitat_{size}_scenes_{self.split}.txt"
        try:
            lines = path.read_text().split()
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error}); check size, split and ROOT") from error
        self.places = [place for line in lines for place in self._places(line)]

    def __len__(self) -> int:
        return len(self.places)

    def _places(self, line: str) -> list[str]:
        """The place of a line, or all places of a folder."""
        folder = self.ROOT / line
        if not folder.is_dir():
            return [line]
        return sorted(f"{line}/{file.name.removesuffix('_1.jpeg')}" for file in folder.glob("*_1.jpeg"))

    def _get_views(self, idx: int, resolution: Resolution, rng: np.random.Generator) -> list[View]:
        place = self.places[idx]
        numbers = 1, int(rng.integers(2, _VIEWS + 1))
        frames = (self._frame(f"{place}_{number}") for number in numbers)
        return [self._view(frame, resolution, rng, label=place) for frame in frames]

    def _frame(self, name: str) -> Frame:
        path = self.ROOT / name
        file = path.with_name(f"{path.name}_camera_params.json")
        camera = load_json(file)
        try:
            K, pose = np.array(camera["camera_intrinsics"], dtype=np.float32), pose_from_parts(camera)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} must hold camera_intrinsics, R_cam2world and t_cam2world ({error})") from error
        photo = read_photo(path.with_name(f"{path.name}.jpeg"))
        return Frame(photo, read_depth_exr(path.with_name(f"{path.name}_depth.exr")), K, pose, str(path))
