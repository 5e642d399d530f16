"""Training data: data-set arithmetic, photometric transforms and the loader that feeds a training loop."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
)

from dust3r.datasets.arkitscenes import ARKitScenes
from dust3r.datasets.base.base_stereo_view_dataset import BaseStereoViewDataset
from dust3r.datasets.blendedmvs import BlendedMVS
from dust3r.datasets.co3d import Co3d
from dust3r.datasets.easy_dataset import CatDataset, EasyDataset, MulDataset, ResizedDataset
from dust3r.datasets.habitat import Habitat
from dust3r.datasets.megadepth import MegaDepth
from dust3r.datasets.scannetpp import ScanNetpp
from dust3r.datasets.staticthings3d import StaticThings3D
from dust3r.datasets.utils.transforms import ColorJitter, ImgNorm
from dust3r.datasets.waymo import Waymo
from dust3r.datasets.wildrgbd import WildRGBD

__all__ = [
    "ARKitScenes",
    "BaseStereoViewDataset",
    "BlendedMVS",
    "CatDataset",
    "Co3d",
    "ColorJitter",
    "EasyDataset",
    "Habitat",
    "ImgNorm",
    "MegaDepth",
    "MulDataset",
    "ResizedDataset",
    "ScanNetpp",
    "StaticThings3D",
    "Waymo",
    "WildRGBD",
    "get_data_loader",
]


def get_data_loader(
    dataset: Dataset,
    batch_size: int,
    num_workers: int = 8,
    shuffle: bool = True,
    drop_last: bool = True,
    pin_mem: bool = True,
) -> DataLoader[Any]:
    """Loader of one process of a (possibly distributed) training.

    Shuffled batches of a data set with several resolutions each have one resolution, chosen at random. Call
    `loader.dataset.set_epoch(e)` and `loader.sampler.set_epoch(e)` before epoch e where those methods exist.

    Args:
        dataset: what to load.
        batch_size: samples per batch and process.
        num_workers: loading processes; never more than there are CPUs.
        shuffle: random order.
        drop_last: leave an incomplete last batch out.
        pin_mem: allocate batches in page-locked memory (when CUDA is there).

    Raises:
        ValueError: if `dataset` is text; build it first.
    """
    if isinstance(dataset, str):
        raise ValueError("get_data_loader needs a data set, got text; build it with dust3r.utils.expression.build")
    return DataLoader(
        dataset,
        sampler=_sampler(dataset, batch_size, shuffle, drop_last),
        batch_size=batch_size,
        num_workers=min(num_workers, os.cpu_count() or 1),
        pin_memory=pin_mem and torch.cuda.is_available(),
        drop_last=drop_last,
    )


def _sampler(dataset: Any, batch_size: int, shuffle: bool, drop_last: bool) -> Sampler[Any]:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    world_size = torch.distributed.get_world_size() if distributed else 1
    rank = torch.distributed.get_rank() if distributed else 0
    if shuffle and drop_last and isinstance(dataset, EasyDataset):
        return dataset.make_sampler(batch_size, True, world_size, rank, drop_last)
    if world_size > 1:
        return DistributedSampler(dataset, world_size, rank, shuffle=shuffle, drop_last=drop_last)
    return RandomSampler(dataset) if shuffle else SequentialSampler(dataset)
