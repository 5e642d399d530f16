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
from mast3r.datasets.base.mast3r_base_stereo_view_dataset import MASt3RBaseStereoViewDataset
from mast3r.datasets.prepared import (
    ARKitScenes,
    BlendedMVS,
    Co3d,
    Habitat,
    MegaDepth,
    ScanNetpp,
    StaticThings3D,
    Waymo,
    WildRGBD,
)
from mast3r.datasets.utils.cropping import (
    crop_to_homography,
    extract_correspondences_from_pts3d,
    gen_random_crops,
)

__all__ = [
    "ARKitScenes",
    "BlendedMVS",
    "CatDataset",
    "Co3d",
    "ColorJitter",
    "EasyDataset",
    "Habitat",
    "ImgNorm",
    "MASt3RBaseStereoViewDataset",
    "MegaDepth",
    "MulDataset",
    "ResizedDataset",
    "ScanNetpp",
    "StaticThings3D",
    "Waymo",
    "WildRGBD",
    "crop_to_homography",
    "extract_correspondences_from_pts3d",
    "gen_random_crops",
    "get_data_loader",
]
