"""ScanNet++ as prepared for DUSt3R."""

from __future__ import annotations

from dust3r.datasets.indoor_scans import ScanDataset
from dust3r.datasets.utils.files import check_split


class ScanNetpp(ScanDataset):
    """Indoor laser scans (Yeshwanth et al., ICCV 2023), in metres.

    Folder: `all_metadata.npz` and `SCENE/images/NAME.jpg`, `SCENE/depth/NAME.png` (16 bit, millimetres).
    """

    folders = ("images", "depth")

    def _split_folder(self) -> str:
        check_split(type(self).__name__, self.split, ("train",))
        return ""
