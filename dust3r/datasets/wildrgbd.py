"""WildRGB-D as prepared for DUSt3R."""

from __future__ import annotations

from pathlib import Path

from dust3r.datasets.sequences import SequenceDataset
from dust3r.datasets.utils.files import Frame, load_arrays, read_depth_png, read_mask, read_photo

_MILLIMETRE = 1e-3


class WildRGBD(SequenceDataset):
    """RGB-D objects in the wild (Xia et al., CVPR 2024), in metres.

    Folder: `CATEGORY/SEQUENCE/` with `rgb/%05d.jpg`, `depth/%05d.png` (16 bit, millimetres), `masks/%05d.png` and
    `metadata/%05d.npz` (camera_intrinsics, camera_pose); lists as in `SequenceDataset`.
    """

    def _frame(self, folder: Path, frame: int, masked: bool) -> Frame:
        stem = f"{frame:05d}"
        camera = load_arrays(folder / "metadata" / f"{stem}.npz", "camera_intrinsics", "camera_pose")
        found = Frame(
            read_photo(folder / "rgb" / f"{stem}.jpg"),
            read_depth_png(folder / "depth" / f"{stem}.png", _MILLIMETRE),
            camera["camera_intrinsics"],
            camera["camera_pose"],
            f"{folder}/{stem}",
        )
        return found.masked(read_mask(folder / "masks" / f"{stem}.png")) if masked else found
