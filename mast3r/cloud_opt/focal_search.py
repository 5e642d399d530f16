"""Focal lengths of all images from all matches: the one with which most matches fit one motion per pair.

Photos of one size are taken for photos of one camera, to begin with: one pair says little about a focal length,
many pairs together say much. Later stages refine every image's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mast3r.cloud_opt.observations import MapSize, PairObservation
from multiview.metrics import epipolar_errors
from multiview.robust import estimate_relative_pose

TRIED = np.geomspace(0.5, 2.6, 10)
"""Focal lengths that are tried, in units of the longer side: fields of view of 90 to 22 degrees."""

_ORDINARY, _ORDINARY_DEVIATION = 0.95, 0.45
_POINTMAP_DEVIATION = 0.4  # of the logarithm of a focal read off a weak network's pointmap
_MAX_PAIRS, _MIN_PAIRS = 24, 3
_MAX_SAMPLE = 250  # matches of a pair
_ROUNDS = 300
_NOISE = 1.2 / 224  # epipolar distance of a good match, as a share of the longer side
_INFORMATION = 20.0  # independent matches of a pair: neighbours err alike
_USABLE = 0.7  # misfit of a pair with the best focal; wrong matches have more
_MIXED = 0.02  # share of matches that the pointmaps' own focals explain beyond any common one, if cameras differ


@dataclass(frozen=True, eq=False)
class _Sample:
    """Some matches of a pair, centred on the principal points, and both focals, in units of the longer side."""

    xy_i: np.ndarray
    xy_j: np.ndarray
    focals: tuple[float, float]


def search_focals(
    pairs: Sequence[PairObservation], sizes: Sequence[MapSize], K: np.ndarray, known: Sequence[bool], *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Better focal lengths than those the pointmaps suggest.

    Args:
        pairs: Matches in model pixels; many may be wrong.
        sizes: (W, H) of each image.
        K: (N, 3, 3) approximate intrinsics in model pixels.
        known: Which intrinsics are given and stay.
        seed: Seed of the sampling.

    Returns:
        (N, 3, 3) intrinsics, and (N,) bool, which of them are new: images of sizes that fewer than three pairs
        have, or whose own focals explain the matches better than a common one, keep theirs.
    """
    K, found = K.copy(), np.zeros(len(K), dtype=bool)
    groups: dict[tuple[int, ...], list[int]] = {}
    for image, size in enumerate(sizes):
        if not known[image]:
            groups.setdefault(tuple(sorted(size)), []).append(image)  # a turned camera is the same camera
    for size, images in groups.items():
        inside = [pair for pair in pairs if pair.i in images and pair.j in images and len(pair) >= _INFORMATION]
        if len(inside) < _MIN_PAIRS:
            continue
        best = sorted(inside, key=lambda pair: -float(pair.confidence.sum()))[:_MAX_PAIRS]
        guess = float(np.exp(np.median(np.log(np.sqrt(K[images, 0, 0] * K[images, 1, 1]))))) / size[-1]
        samples = [_sample(pair, K, size[-1], seed) for pair in best]
        cost = np.array([[_misfit(sample, focal, seed) for focal in TRIED] for sample in samples])
        usable = cost.min(axis=1) < _USABLE
        if usable.sum() < _MIN_PAIRS:
            continue
        samples = [sample for sample, good in zip(samples, usable) if good]
        focal = _most_probable(cost[usable].sum(axis=0), guess)
        own, new = (np.mean([_misfit(s, f, seed) for s in samples]) for f in (None, focal))
        if new - own > _MIXED:
            continue
        focal *= size[-1]
        for image in images:
            K[image, :2, :2] *= focal / np.sqrt(K[image, 0, 0] * K[image, 1, 1])
            found[image] = True
    return K, found


def _sample(pair: PairObservation, K: np.ndarray, side: float, seed: int) -> _Sample:
    rows = np.random.default_rng(seed).permutation(len(pair))[:_MAX_SAMPLE]
    xy_i, xy_j = (
        (xy[rows].astype(np.float64) - K[image, :2, 2]) / side
        for xy, image in ((pair.xy_i, pair.i), (pair.xy_j, pair.j))
    )
    focal_i, focal_j = (float(np.sqrt(K[image, 0, 0] * K[image, 1, 1])) / side for image in (pair.i, pair.j))
    return _Sample(xy_i, xy_j, (focal_i, focal_j))


def _most_probable(misfit: np.ndarray, guess: float) -> float:
    """The focal of least cost in units of the longer side, between the tried ones by a parabola.

    Args:
        misfit: Sum over pairs of `_misfit` for each of `TRIED`.
        guess: What the pointmaps suggest.
    """
    log = np.log(TRIED)
    cost = _INFORMATION * misfit + _prior_cost(log, np.log(guess))
    k = int(cost.argmin())
    if not 0 < k < len(TRIED) - 1:
        return float(TRIED[k])
    before, here, after = cost[k - 1 : k + 2]
    shift = 0.5 * (before - after) / max(before - 2 * here + after, 1e-9)
    return float(np.exp(log[k] + shift * (log[1] - log[0])))


def _misfit(sample: _Sample, focal: float | None, seed: int) -> float:
    """Mean truncated squared distance of matches from their epipolar lines, 0..1, for the best motion.

    Args:
        sample: Matches.
        focal: Focal length of both images; None takes their own.
        seed: Seed of the sampling.
    """
    focals = sample.focals if focal is None else (focal, focal)
    K_i, K_j = (np.diag([f, f, 1.0]) for f in focals)
    found = estimate_relative_pose(
        sample.xy_i, sample.xy_j, K_i, K_j, threshold_px=_NOISE, seed=seed, max_iterations=_ROUNDS, accept="any"
    )
    if not found.success:
        return 1.0
    square = epipolar_errors(sample.xy_i, sample.xy_j, K_i, K_j, found.pose1.inverse().world_from_cam)
    return float(np.minimum(square * focals[0] * focals[1] / 4 / _NOISE**2, 1.0).mean())


def _prior_cost(log: np.ndarray, guess: float) -> np.ndarray:
    ordinary = (log - np.log(_ORDINARY)) / _ORDINARY_DEVIATION
    pointmap = (log - guess) / _POINTMAP_DEVIATION
    return 0.5 * (ordinary**2 + pointmap**2)
