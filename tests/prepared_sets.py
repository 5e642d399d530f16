"""Tiny data sets in the published prepared layouts, all showing one wall whose colour tells the place.

The wall is the world plane z = 4. At (x, y) it has the colour (128 + 24 x, 128 + 24 y, 96), so that points, colours
and cameras of what a loader returns can be checked against each other.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from multiview.exr import write_exr

WALL = 4.0
SIZE = (96, 72)
BLENDED_ROW = np.dtype([("seq_high", "u4"), ("seq_low", "u8"), ("img1", "u4"), ("img2", "u4"), ("score", "f4")])


@dataclass(frozen=True)
class Shot:
    """One exact view of the wall."""

    image: PILImage.Image
    depth: np.ndarray
    K: np.ndarray
    world_from_cam: np.ndarray


def wall_colour(points: np.ndarray) -> np.ndarray:
    """(..., 3) float colours of world points (..., 3)."""
    blue = np.full(points.shape[:-1], 96.0)
    return np.stack([128 + 24 * points[..., 0], 128 + 24 * points[..., 1], blue], axis=-1)


def shoot(number: int, size: tuple[int, int] = SIZE) -> Shot:
    """View `number` of the wall; neighbours overlap."""
    width, height = size
    K = np.array([[80, 0, width / 2 - 0.5], [0, 82, height / 2 - 0.5], [0, 0, 1]], dtype=np.float32)
    angle = 0.04 * (number % 5 - 2)
    pose = np.eye(4, dtype=np.float32)
    pose[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    pose[:3, 3] = [0.15 * (number % 7) - 0.4, 0.1 * (number % 3), 0.2 * (number % 2)]
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    rays = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(u)], axis=-1) @ pose[:3, :3].T
    depth = (WALL - pose[2, 3]) / rays[..., 2]
    points = pose[:3, 3] + rays * depth[..., None]
    image = PILImage.fromarray(wall_colour(points).round().clip(0, 255).astype(np.uint8))
    return Shot(image, depth.astype(np.float32), K, pose)


def save_photo(path: Path, shot: Shot) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shot.image.save(path, format="JPEG", quality=98, subsampling=0)


def save_png16(path: Path, depth: np.ndarray, unit: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.fromarray(np.round(depth / unit).astype(np.uint16)).save(path)


def save_arrays(path: Path, **arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez(file, **arrays)


def save_mask(path: Path) -> None:
    """The right third is background."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.full(SIZE[::-1], 255, np.uint8)
    mask[:, 2 * SIZE[0] // 3 :] = 0
    PILImage.fromarray(mask).save(path)


def parts(shot: Shot) -> dict[str, np.ndarray]:
    return {"R_cam2world": shot.world_from_cam[:3, :3], "t_cam2world": shot.world_from_cam[:3, 3]}


def list_sequences(root: Path, frames: int) -> None:
    for split in ("train", "test"):
        listed = {"cup": {"110_1": list(range(frames))}, "hat": {"7_2": list(range(0, frames, 2)), "empty": []}}
        (root / f"selected_seqs_{split}.json").write_text(json.dumps(listed))


def make_co3d(root: Path) -> None:
    for folder in (root / "cup" / "110_1", root / "hat" / "7_2"):
        for number in range(12):
            shot, stem = shoot(number), f"frame{number:06d}"
            deepest = float(shot.depth.max())
            save_photo(folder / "images" / f"{stem}.jpg", shot)
            save_png16(folder / "depths" / f"{stem}.jpg.geometric.png", shot.depth, deepest / 65535)
            save_mask(folder / "masks" / f"{stem}.png")
            save_arrays(
                folder / "images" / f"{stem}.npz",
                camera_intrinsics=shot.K, camera_pose=shot.world_from_cam, maximum_depth=deepest,
            )  # fmt: skip
    list_sequences(root, 12)


def make_wildrgbd(root: Path) -> None:
    for folder in (root / "cup" / "110_1", root / "hat" / "7_2"):
        for number in range(12):
            shot, stem = shoot(number), f"{number:05d}"
            save_photo(folder / "rgb" / f"{stem}.jpg", shot)
            save_png16(folder / "depth" / f"{stem}.png", shot.depth, 1e-3)
            save_mask(folder / "masks" / f"{stem}.png")
            metadata = folder / "metadata" / f"{stem}.npz"
            save_arrays(metadata, camera_intrinsics=shot.K, camera_pose=shot.world_from_cam)
    list_sequences(root, 12)


def make_scan(root: Path, photos: str, depths: str, suffix: str) -> None:
    shots = [shoot(number) for number in range(4)]
    names = [f"{number:03d}" for number in range(4)]
    for number, (shot, name) in enumerate(zip(shots, names)):
        scene = root / ("room_a", "room_b")[number // 2]
        save_photo(scene / photos / f"{name}.jpg", shot)
        save_png16(scene / depths / f"{name}.png", shot.depth, 1e-3)
    save_arrays(
        root / "all_metadata.npz",
        scenes=np.array(["room_a", "room_b"]), sceneids=np.array([0, 0, 1, 1]),
        images=np.array([f"{name}{suffix}" for name in names]), intrinsics=np.stack([shot.K for shot in shots]),
        trajectories=np.stack([shot.world_from_cam for shot in shots]),
        pairs=np.array([[0, 1, 7], [3, 2, 5]]), counts=np.array([2, 2]),
    )  # fmt: skip


def make_arkitscenes(root: Path) -> None:
    for split in ("Training", "Test"):
        make_scan(root / split, "vga_wide", "lowres_depth", ".png")


def make_scannetpp(root: Path) -> None:
    make_scan(root, "images", "depth", "")


def make_blendedmvs(root: Path) -> None:
    rows = [(0x5A, 20, 0, 1, 0.5), (0x5B, 31, 1, 2, 0.4)]
    np.save(root / "blendedmvs_pairs.npy", np.array(rows, dtype=BLENDED_ROW))
    for high, low, *_ in rows:
        for number in range(3):
            shot, stem = shoot(number), root / f"{high:08x}{low:016x}" / f"{number:08d}"
            save_photo(stem.with_suffix(".jpg"), shot)
            write_exr(stem.with_suffix(".exr"), shot.depth)
            save_arrays(stem.with_suffix(".npz"), intrinsics=shot.K, **parts(shot))


def make_megadepth(root: Path) -> None:
    scenes, names = ("0015 0", "0004 1"), ("a.jpg", "b.JPG", "c.png")
    for scene in scenes:
        for number, name in enumerate(names):
            shot, folder = shoot(number), root.joinpath(*scene.split())
            save_photo(folder / f"{name}.jpg", shot)
            write_exr(folder / f"{name}.exr", shot.depth)
            save_arrays(folder / f"{name}.npz", intrinsics=shot.K, cam2world=shot.world_from_cam)
    row = np.dtype([("scene_id", "i8"), ("im1_id", "i8"), ("im2_id", "i8"), ("score", "f4")])
    pairs = np.array([(0, 0, 1, 0.3), (1, 1, 2, 0.2), (1, 2, 0, 0.2)], dtype=row)
    save_arrays(root / "all_metadata.npz", scenes=np.array(scenes), images=np.array(names), pairs=pairs)


def make_staticthings(root: Path) -> None:
    row = np.dtype([("scene", "S8"), ("seq", "i4"), ("cam1", "S1"), ("im1", "i4"), ("cam2", "S1"), ("im2", "i4")])
    pairs = np.array([(b"TRAIN/A", 3, b"l", 6, b"r", 7), (b"B", 4, b"r", 6, b"r", 7)], dtype=row)
    np.save(root / "staticthings_pairs.npy", pairs)
    for scene, sequence in (("A", 3), ("B", 4)):
        for number, side in ((6, "left"), (7, "right"), (6, "right")):
            shot, folder = shoot(number), root / "TRAIN" / scene / f"{sequence:04d}" / side
            depth = shot.depth.copy()
            depth[:, : SIZE[0] // 4] = 500  # background
            for kind in ("clean", "final"):
                save_photo(folder / f"{number:04d}_{kind}.jpg", shot)
            write_exr(folder / f"{number:04d}.exr", depth)
            save_arrays(folder / f"{number:04d}.npz", intrinsics=shot.K, cam2world=shot.world_from_cam)


def make_waymo(root: Path) -> None:
    frames = ("00000_1", "00001_1", "00001_2")
    for scene in ("segment-1.tfrecord", "segment-2.tfrecord"):
        for number, name in enumerate(frames):
            shot = shoot(number)
            sparse = np.where(np.arange(SIZE[0] * SIZE[1]).reshape(SIZE[::-1]) % 3 == 0, shot.depth, 0)
            save_photo(root / scene / f"{name}.jpg", shot)
            write_exr(root / scene / f"{name}.exr", sparse.astype(np.float32))
            camera = {"intrinsics": shot.K, "cam2world": shot.world_from_cam, "distortion": np.zeros(5)}
            save_arrays(root / scene / f"{name}.npz", **camera)
    scenes = np.array(["segment-1.tfrecord", "segment-2.tfrecord"])
    save_arrays(
        root / "waymo_pairs.npz", scenes=scenes, frames=np.array(frames), pairs=np.array([[0, 0, 1], [1, 1, 2]])
    )


def make_habitat(root: Path) -> None:
    for place in ("house/a", "house/b", "flat/c"):
        for number in range(1, 6):
            shot, name = shoot(number), f"{place}_{number}"
            save_photo(root / f"{name}.jpeg", shot)
            write_exr(root / f"{name}_depth.exr", shot.depth, half=True)
            camera = {"camera_intrinsics": shot.K.tolist(), **{k: v.tolist() for k, v in parts(shot).items()}}
            (root / f"{name}_camera_params.json").write_text(json.dumps(camera))
    (root / "Habitat_1000_scenes_train.txt").write_text("house/a\nhouse/b\nflat/c\n")
    (root / "Habitat_1000_scenes_val.txt").write_text("house\n")


@dataclass(frozen=True)
class Layout:
    """How to make a data set, build its loader, and what to expect."""

    make: Callable[[Path], None]
    arguments: tuple = ()
    options: dict | None = None
    length: int = 2
    metric: bool = False


LAYOUTS = {
    "Co3d": Layout(make_co3d, (), {"split": "train"}, 2 * 495),
    "WildRGBD": Layout(make_wildrgbd, (), {"split": "test"}, 2 * 495, metric=True),
    "ARKitScenes": Layout(make_arkitscenes, (), {"split": "test"}, metric=True),
    "ScanNetpp": Layout(make_scannetpp, (), {"split": "train"}, metric=True),
    "BlendedMVS": Layout(make_blendedmvs, (), {"split": None}),
    "MegaDepth": Layout(make_megadepth, (), {"split": "train"}),
    "StaticThings3D": Layout(make_staticthings, (), {"mask_bg": True}),
    "Waymo": Layout(make_waymo, (), {}, metric=True),
    "Habitat": Layout(make_habitat, (1000,), {"split": "train"}, 3, metric=True),
}
