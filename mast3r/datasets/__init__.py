"""MASt3R training data: correspondences and crop pairs on top of `dust3r.datasets`."""

from __future__ import annotations

from dust3r.datasets import (
    CatDataset,
    ColorJitter,
    EasyDataset,
    ImgNorm,
    MulDataset,
    ResizedDataset,
    get_data_loader,
)
from mast3r.datasets.utils.cropping import (
    crop_to_homography,
    extract_correspondences_from_pts3d,
    gen_random_crops,
)

__all__ = [
    "CatDataset",
    "ColorJitter",
    "EasyDataset",
    "ImgNorm",
    "MulDataset",
    "ResizedDataset",
    "crop_to_homography",
    "extract_correspondences_from_pts3d",
    "gen_random_crops",
    "get_data_loader",
]
