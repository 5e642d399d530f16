"""ARKitScenes as prepared for DUSt3R."""

from __future__ import annotations

from dust3r.datasets.indoor_scans import ScanDataset
from dust3r.datasets.utils.files import check_split


class ARKitScenes(ScanDataset):
    """Indoor scans of a hand-held device with laser depth (Baruch et al., NeurIPS 2021), in metres.

    Folder: `Training` or `Test`, in it `all_metadata.npz` and `SCENE/vga_wide/NAME.jpg`,
    `SCENE/lowres_depth/NAME.png` (16 bit, millimetres, of the photo's size).
    """

    folders = ("vga_wide", "lowres_depth")

    def _split_folder(self) -> str:
        check_split(type(self).__name__, self.split, ("train", "test"))
        return "Training" if self.split == "train" else "Test"
