"""CO3Dv2 as prepared for DUSt3R."""

from __future__ import annotations

from pathlib import Path

from dust3r.datasets.sequences import SequenceDataset
from dust3r.datasets.utils.files import Frame, load_arrays, read_depth_png, read_mask, read_photo

_LEVELS = 65535


class Co3d(SequenceDataset):
    """Common Objects in 3D (Reizenstein et al., ICCV 2021); lengths have an arbitrary unit per sequence.

    Folder: `CATEGORY/SEQUENCE/` with `images/frame%06d.jpg`, `images/frame%06d.npz` (camera_intrinsics, camera_pose,
    maximum_depth), `depths/frame%06d.jpg.geometric.png` (16 bit, full range = maximum_depth) and
    `masks/frame%06d.png`; lists as in `SequenceDataset`.
    """

    def _frame(self, folder: Path, frame: int, masked: bool) -> Frame:
        stem = f"frame{frame:06d}"
        camera = load_arrays(folder / "images" / f"{stem}.npz", "camera_intrinsics", "camera_pose", "maximum_depth")
        unit = float(camera["maximum_depth"]) / _LEVELS
        found = Frame(
            read_photo(folder / "images" / f"{stem}.jpg"),
            read_depth_png(folder / "depths" / f"{stem}.jpg.geometric.png", unit),
            camera["camera_intrinsics"],
            camera["camera_pose"],
            f"{folder}/{stem}",
        )
        return found.masked(read_mask(folder / "masks" / f"{stem}.png")) if masked else found
