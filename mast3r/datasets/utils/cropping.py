"""Crops as homographies, correspondences from geometry and random crops: the MASt3R data pipeline."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np

from dust3r.utils.geometry import geotrf, inv


class RandomSource(Protocol):
    """What is needed of `numpy.random` or a `numpy.random.Generator`."""

    def permutation(self, x: Any, /) -> np.ndarray:
        """Shuffled range or array."""
        ...

    def random(self, size: Any = None, /) -> Any:
        """Uniform draws in [0, 1)."""
        ...


def crop_to_homography(
    K: np.ndarray, crop: Any, target_size: tuple[int, int] | None = None
) -> tuple[tuple[int, int], np.ndarray, np.ndarray, np.ndarray]:
    """The rotated camera with a centred principal point that replaces a crop.

    A crop away from the principal point gives an off-centre camera. This one has its principal point in the
    middle and is tilted, as little as possible, so that the crop's corner farthest from the original
    principal point stays on its ray; the images differ by a homography.

    Args:
        K: (3, 3) intrinsics of the original image.
        crop: (left, top, right, bottom) in pixels, right and bottom exclusive; rounded.
        target_size: (W, H) of the new image; default the size of the crop. The zoom is the smaller side
            ratio.

    Returns:
        size: (W, H) of the new image.
        K_new: (3, 3) its intrinsics.
        R: (3, 3) rotation old_from_new: a ray of the new camera in the axes of the old one.
        H: (3, 3) homography K R inv(K_new) from new to old pixels.
    """
    left, top, right, bottom = np.round(np.asarray(crop, dtype=np.float64))
    size = np.array([right - left, bottom - top])
    K = np.asarray(K, dtype=np.float64)
    K_new = K.copy()
    K_new[:2, 2] = size / 2
    far_x = left if abs(left - K[0, 2]) > abs(right - K[0, 2]) else right
    far_y = top if abs(top - K[1, 2]) > abs(bottom - K[1, 2]) else bottom
    old_ray = np.linalg.solve(K, [far_x, far_y, 1])
    new_ray = np.linalg.solve(K_new, [far_x - left, far_y - top, 1])
    R = _tilt_to(old_ray) @ _tilt_to(new_ray).T
    if target_size is not None:
        K_new[:2, :2] *= np.min(np.asarray(target_size) / size)
        size = np.asarray(target_size)
        K_new[:2, 2] = size / 2
    return (int(size[0]), int(size[1])), K_new, R, K @ R @ np.linalg.inv(K_new)


def _tilt_to(ray: np.ndarray) -> np.ndarray:
    """(3, 3) rotation of least angle that turns the optical axis into a ray in front of the camera."""
    x, y, z = ray / np.linalg.norm(ray)
    skew = np.array([[0, 0, x], [0, 0, y], [-x, -y, 0]])
    return np.eye(3) + skew + skew @ skew / (1 + z)


def gen_random_crops(
    imsize: tuple[int, int],
    n_crops: int,
    resolution: tuple[int, int],
    aug_crop: float | Literal["auto"],
    rng: Any = np.random,
) -> np.ndarray:
    """Random crops with the aspect ratio of a target resolution.

    All have the same zoom, exp(U(0, log(1 + aug / S))) relative to the largest fitting crop, S being the shorter
    image side; the position is uniform.

    Args:
        imsize: (W, H) of the image.
        n_crops: number of crops.
        resolution: target (W, H).
        aug_crop: aug in pixels; "auto" allows zooming until the crop has the target's size, and at least 10
            %.
        rng: `numpy.random` or a `Generator`.

    Returns:
        (n_crops, 4) int (left, top, right, bottom).
    """
    boxes = random_boxes(imsize, n_crops, resolution, aug_crop, rng)
    corner, size = np.floor(boxes[:, :2] + 1e-9), np.round(boxes[:, 2:] - boxes[:, :2])
    return np.concatenate([corner, corner + size], axis=1).astype(int)


def random_boxes(
    imsize: tuple[int, int],
    count: int,
    resolution: tuple[int, int],
    aug_crop: float | Literal["auto"],
    rng: Any,
) -> np.ndarray:
    """`gen_random_crops` before rounding, (count, 4) float64."""
    shorter = min(imsize)
    if aug_crop == "auto":
        aug_crop = max(0.1 * shorter, shorter * (shorter - min(resolution)) / min(resolution))
    max_log_zoom = math.log(1 + float(aug_crop) / shorter)
    image = np.asarray(imsize, dtype=np.float64)
    largest = np.asarray(resolution) * np.min(image / np.asarray(resolution))
    size = largest / math.exp(float(rng.random()) * max_log_zoom)
    corner = (image - size) * np.asarray(rng.random((count, 2)))
    return np.concatenate([corner, corner + size], axis=1)


def extract_correspondences_from_pts3d(
    view1: Mapping[str, Any],
    view2: Mapping[str, Any],
    target_n_corres: int | None,
    rng: Any = np.random,
    ret_xy: bool = True,
    nneg: float = 0,
) -> tuple[np.ndarray, ...]:
    """Pixels of two views that see the same surface point, from their depth and cameras.

    A pixel is projected into the other view, rounded (and clamped to the image) and projected back; it
    matches if it comes back to itself. Pixels without valid depth and points behind a camera match nothing.

    Args:
        view1: training view with pts3d (H, W, 3) world points, camera_pose, camera_intrinsics and,
            optionally, valid_mask (H, W).
        view2: the same; sizes may differ.
        target_n_corres: number of rows to return; None returns all matches.
        rng: `numpy.random` or a `Generator`.
        ret_xy: return pixels (x, y) instead of flat indices y * W + x.
        nneg: fraction of rows that are wrong on purpose (random pixels that match nothing). There are more
            when matches are rare, and fewer when nearly every pixel matches.

    Returns:
        Pixels of view 1, pixels of view 2 ((N, 2) int64, or (N,) flat), and with a target the (N,) bool
        mask of true matches, which come first.

    Raises:
        ValueError: if the two views can fill the target neither with matches nor with wrong rows.
    """
    index_2_of_1 = _project_to_pixels(view1, view2)
    index_1_of_2 = _project_to_pixels(view2, view1)
    matched1 = _returns_home(index_2_of_1, index_1_of_2)
    positives = np.flatnonzero(matched1)
    if target_n_corres is None:
        rows1, rows2, valid = positives, index_2_of_1[positives], None
    else:
        negatives1 = np.flatnonzero(~matched1)
        negatives2 = np.flatnonzero(~_returns_home(index_1_of_2, index_2_of_1))
        n_unmatched = min(len(negatives1), len(negatives2))
        n_pos, n_neg = _row_counts(target_n_corres, nneg, len(positives), n_unmatched)
        chosen = positives[rng.permutation(len(positives))[:n_pos]]
        rows1 = np.concatenate([chosen, _draw(negatives1, n_neg, rng)])
        rows2 = np.concatenate([index_2_of_1[chosen], _draw(negatives2, n_neg, rng)])
        valid = np.arange(target_n_corres) < n_pos
    if ret_xy:
        rows1, rows2 = (_flat_to_xy(rows, view) for rows, view in ((rows1, view1), (rows2, view2)))
    return (rows1, rows2) if valid is None else (rows1, rows2, valid)


def _project_to_pixels(source: Mapping[str, Any], target: Mapping[str, Any]) -> np.ndarray:
    """Flat (clamped) pixel of `target` nearest to each pixel of `source`; -1 where there is none."""
    H, W = target["pts3d"].shape[:2]
    points = geotrf(inv(np.asarray(target["camera_pose"])), np.asarray(source["pts3d"]).reshape(-1, 3))
    usable = np.isfinite(points).all(axis=-1) & (points[:, 2] > 0)
    if "valid_mask" in source:
        usable &= np.asarray(source["valid_mask"]).reshape(-1)
    points = np.where(usable[:, None], points, [0, 0, 1])
    # Clamping before rounding keeps far-away projections inside the integer range.
    uv = geotrf(np.asarray(target["camera_intrinsics"]), points, norm=1, ncol=2)
    uv = np.round(uv.clip(0, [W - 1, H - 1])).astype(np.int64)
    return np.where(usable, uv[:, 0] + W * uv[:, 1], -1)


def _returns_home(there: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Which indices i satisfy back[there[i]] == i; index -1 is a dead end."""
    return (there >= 0) & (back[there] == np.arange(len(there)))


def _row_counts(target: int, nneg: float, n_matches: int, n_unmatched: int) -> tuple[int, int]:
    """How many true and how many wrong rows make up the target."""
    positives = min(n_matches, int(target * (1 - nneg)))
    negatives = min(target - positives, n_unmatched)
    positives = min(target - negatives, n_matches)
    negatives = target - positives
    if negatives and not n_unmatched:
        raise ValueError(
            f"cannot give {target} correspondences: only {n_matches} pixels, all matched; lower the target"
        )
    return positives, negatives


def _draw(candidates: np.ndarray, count: int, rng: RandomSource) -> np.ndarray:
    """`count` random candidates, repeated only if there are fewer; what was drawn before is drawn again."""
    allowed = min(count, len(candidates))
    chosen = np.empty(0, dtype=np.int64)
    while len(chosen) < allowed:
        drawn = np.concatenate([chosen, (rng.random(allowed - len(chosen)) * len(candidates)).astype(np.int64)])
        chosen = drawn[np.sort(np.unique(drawn, return_index=True)[1])]
    return candidates[np.resize(chosen, count)] if count else candidates[:0]


def _flat_to_xy(index: np.ndarray, view: Mapping[str, Any]) -> np.ndarray:
    W = view["pts3d"].shape[1]
    return np.stack([index % W, index // W], axis=-1)
