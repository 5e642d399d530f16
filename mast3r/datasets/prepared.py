"""The prepared data sets of DUSt3R with correspondences and MASt3R's augmentation."""

from __future__ import annotations

from dust3r import datasets as dust3r_datasets
from mast3r.datasets.base.mast3r_base_stereo_view_dataset import MASt3RBaseStereoViewDataset


class Co3d(dust3r_datasets.Co3d, MASt3RBaseStereoViewDataset):
    """See `dust3r.datasets.Co3d`; options of `MASt3RBaseStereoViewDataset`."""


class WildRGBD(dust3r_datasets.WildRGBD, MASt3RBaseStereoViewDataset):
    """See `dust3r.datasets.WildRGBD`; options of `MASt3RBaseStereoViewDataset`."""

    is_metric_scale = True


class ARKitScenes(dust3r_datasets.ARKitScenes, MASt3RBaseStereoViewDataset):
    """See `dust3r.datasets.ARKitScenes`; options of `MASt3RBaseStereoViewDataset`."""

    is_metric_scale = True


class ScanNetpp(dust3r_datasets.ScanNetpp, MASt3RBaseStereoViewDataset):
    """See `dust3r.datasets.ScanNetpp`; options of `MASt3RBaseStereoViewDataset`."""

    is_metric_scale = True


class BlendedMVS(dust3r_datasets.BlendedMVS, MASt3RBaseStereoViewDataset):
    """See `dust3r.datasets.BlendedMVS`; options of `MASt3RBaseStereoViewDataset`."""


class MegaDepth(dust3r_datasets.MegaDepth, MASt3RBaseStereoViewDataset):
    """See `dust3r.datasets.MegaDepth`; options of `MASt3RBaseStereoViewDataset`."""


class StaticThings3D(dust3r_datasets.StaticThings3D, MASt3RBaseStereoViewDataset):
    """See `dust3r.datasets.StaticThings3D`; options of `MASt3RBaseStereoViewDataset`."""


class Waymo(dust3r_datasets.Waymo, MASt3RBaseStereoViewDataset):
    """See `dust3r.datasets.Waymo`; options of `MASt3RBaseStereoViewDataset`."""

    is_metric_scale = True


class Habitat(dust3r_datasets.Habitat, MASt3RBaseStereoViewDataset):
    """See `dust3r.datasets.Habitat`; options of `MASt3RBaseStereoViewDataset`."""

    is_metric_scale = True
