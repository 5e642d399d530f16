"""Focal lengths and relative pose of two images from their matches and what is known of the focal lengths.

Matches say little about focal lengths when the cameras look the same way, the scene is flat or far, or many matches
are wrong. So nothing is solved for in closed form: the most probable pose and focal lengths are sought, given the
matches and a prior (maximum a posteriori). Where the matches are silent the prior stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from multiview.cameras import Camera
from multiview.epipolar import NUM_PARAMETERS, EpipolarGeometry
from multiview.robust import estimate_relative_pose

FOV_RANGE_DEG = (20.0, 120.0)
"""Estimated cameras see the longer side of the image under an angle in this range."""

_STARTS = (0.5, 0.75, 1.1, 1.7, 2.6)  # focal lengths that are tried, in units of the longer side
_START_ROUNDS = 300
_REFINED_STARTS = 3
_MAX_MATCHES = 600  # more matches of the same images add time, not information
_KNOWN = 1e-4  # deviation of a given focal length
_SURE = 0.05  # a prior this narrow needs no other starts
_TIE_SAME, _TIE_OTHER = 0.1, 0.5  # deviation of the log ratio of the focals of images of one size, of two sizes
_TRUST = 0.3  # information of a match: errors of neighbours are alike, lenses are no pinholes
_MIN_SUPPORT, _LEAST_TRUST = 0.2, 0.02
_STEPS = 15
_MIN_GAIN = 1e-3
_MAX_STEP = np.array([0.3] * 5 + [0.4] * 2)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Cameras of two images, as far as their matches tell.

    Attributes:
        cameras: Intrinsics; only focal lengths differ from those given.
        geometry: Relative pose, and the focal lengths in units of `pixel`.
        distances: (N,) epipolar distances of all matches in pixels, infinite for matches that are not finite.
        support: Soft share of the matches that agree, 0..1.
        covariance: (7, 7) of the step of `EpipolarGeometry.moved`.
        pixel: Unit of the geometry in pixels.
        success: False if no relative pose was found; the cameras are then those given.
    """

    cameras: tuple[Camera, Camera]
    geometry: EpipolarGeometry
    distances: np.ndarray
    support: float
    covariance: np.ndarray
    pixel: float
    success: bool

    def rays(self, xy0: np.ndarray, xy1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, 3) pixels of both images as `EpipolarGeometry` takes them."""
        return _rays(xy0, self.cameras[0], self.pixel), _rays(xy1, self.cameras[1], self.pixel)


@dataclass(frozen=True, eq=False)
class _Problem:
    """What is minimised: truncated epipolar distances plus squared distances from the prior.

    The unit of pixels is the noise of the matches.
    """

    rays0: np.ndarray
    rays1: np.ndarray
    trust: float
    log_focals: np.ndarray  # (2,) prior
    precision: np.ndarray  # (2,) of the prior
    sizes: np.ndarray  # (2,) log of the longer sides
    tie: float  # precision of the log ratio of the focal lengths in units of the longer sides

    def cost(self, geometry: EpipolarGeometry) -> float:
        square = geometry.distances(self.rays0, self.rays1) ** 2
        return 0.5 * self.trust * float((square / (square + 1)).sum()) + self.prior_cost(geometry)

    def prior_cost(self, geometry: EpipolarGeometry) -> float:
        off = geometry.log_focals - self.log_focals
        ratio = np.diff(geometry.log_focals - self.sizes)[0]
        return 0.5 * float((self.precision * off**2).sum() + self.tie * ratio**2)

    def support(self, geometry: EpipolarGeometry) -> float:
        square = geometry.distances(self.rays0, self.rays1) ** 2
        return float((1 / (square + 1)).mean())

    def normal_equations(self, geometry: EpipolarGeometry) -> tuple[np.ndarray, np.ndarray]:
        distances = geometry.distances(self.rays0, self.rays1)
        slopes = geometry.derivatives(self.rays0, self.rays1)
        weight = self.trust / (distances**2 + 1) ** 2  # of the Geman-McClure loss
        matrix, vector = (slopes * weight[:, None]).T @ slopes, (slopes * weight[:, None]).T @ distances
        across = np.array([-1.0, 1.0])
        matrix[5:, 5:] += np.diag(self.precision) + self.tie * np.outer(across, across)
        vector[5:] += self.precision * (geometry.log_focals - self.log_focals)
        vector[5:] += self.tie * across * np.diff(geometry.log_focals - self.sizes)[0]
        return matrix, vector


def calibrate(
    xy0: np.ndarray,
    xy1: np.ndarray,
    cameras: tuple[Camera, Camera],
    deviations: tuple[float, float],
    *,
    noise_px: float = 1.0,
    threshold_px: float = 1.5,
    seed: int = 0,
) -> Calibration:
    """Most probable focal lengths and relative pose.

    RANSAC is run at several focal lengths; the best results are refined together with the focal lengths
    (Levenberg-Marquardt on Sampson distances under a Geman-McClure loss and normal priors of the log focals).
    The pose is that of a longer RANSAC with the focal lengths found.

    Args:
        xy0: (N, 2) pixels in image 0.
        xy1: (N, 2) pixels in image 1.
        cameras: Principal points, and the most probable focal lengths before looking at the matches.
        deviations: Standard deviation of the logarithm of each focal length; 0 for a given one.
        noise_px: Usual epipolar distance of a right match, in pixels.
        threshold_px: Largest epipolar distance of an inlier of RANSAC, in pixels.
        seed: Seed of the sampling.

    Returns:
        The calibration. `success` is False where `multiview.robust.estimate_relative_pose` finds no pose.

    Raises:
        ValueError: If array shapes are wrong, a deviation is negative or the noise is not positive.
    """
    if min(deviations) < 0 or not noise_px > 0:
        raise ValueError(
            f"deviations must not be negative and noise_px must be positive, got {deviations} and {noise_px}."
        )
    sample = _Sample(np.asarray(xy0, np.float64), np.asarray(xy1, np.float64), noise_px, threshold_px, seed)
    best = _best_focals(sample, cameras, deviations)
    if best is None:
        return _failed(sample, cameras)
    problem, guess = best
    found = _with_focals(cameras, guess, deviations, noise_px)
    geometry = sample.pose(found, quick=False)
    if geometry is None:
        return _failed(sample, cameras)
    matrix, _ = problem.normal_equations(geometry)
    return Calibration(
        found,
        geometry,
        sample.distances(geometry, found),
        problem.support(geometry),
        np.linalg.pinv(matrix, hermitian=True),
        noise_px,
        success=True,
    )


@dataclass(frozen=True, eq=False)
class _Sample:
    """The matches, and how they are looked at."""

    xy0: np.ndarray
    xy1: np.ndarray
    noise_px: float
    threshold_px: float
    seed: int

    @cached_property
    def finite(self) -> np.ndarray:
        """Positions of finite matches."""
        return np.flatnonzero(np.isfinite(np.column_stack([self.xy0, self.xy1])).all(axis=1))

    @cached_property
    def chosen(self) -> np.ndarray:
        """Positions of at most `_MAX_MATCHES` of them."""
        if len(self.finite) <= _MAX_MATCHES:
            return self.finite
        rng = np.random.default_rng(self.seed)
        return np.sort(rng.choice(self.finite, _MAX_MATCHES, replace=False))

    def pose(self, cameras: Sequence[Camera], *, quick: bool) -> EpipolarGeometry | None:
        """RANSAC with these cameras: a first guess from few matches and rounds, or as sure as it gets."""
        K0, K1 = (camera.K for camera in cameras)
        options: dict[str, Any] = {"threshold_px": self.threshold_px, "seed": self.seed}
        if quick:
            options.update(max_iterations=_START_ROUNDS, accept="any")
        rows = self.chosen if quick else self.finite
        found = estimate_relative_pose(self.xy0[rows], self.xy1[rows], K0, K1, **options)
        if not found.success:
            return None
        log_focals = np.log([camera.focal[0] / self.noise_px for camera in cameras])
        return EpipolarGeometry(found.R, found.t, log_focals)

    def distances(self, geometry: EpipolarGeometry, cameras: Sequence[Camera]) -> np.ndarray:
        """(N,) epipolar distances of all matches in pixels, infinite where these are not finite."""
        rays = [_rays(xy[self.finite], camera, self.noise_px) for xy, camera in zip((self.xy0, self.xy1), cameras)]
        distances = np.full(len(self.xy0), np.inf)
        distances[self.finite] = np.abs(geometry.distances(*rays)) * self.noise_px
        return distances


def _best_focals(
    sample: _Sample, cameras: tuple[Camera, Camera], deviations: tuple[float, float]
) -> tuple[_Problem, EpipolarGeometry] | None:
    """The most probable geometry, and the problem it solves; None without any."""
    tried = (sample.pose(start, quick=True) for start in _start_cameras(cameras, deviations))
    starts = [start for start in tried if start is not None]
    if not starts:
        return None
    problem = _problem(sample, cameras, deviations)
    support = max(problem.support(start) for start in starts)
    reliable = max(_LEAST_TRUST, (support - _MIN_SUPPORT) / (1 - _MIN_SUPPORT))
    problem = replace(problem, trust=_TRUST * reliable * len(sample.finite) / len(sample.chosen))
    starts = sorted(starts, key=problem.cost)[:_REFINED_STARTS]
    return problem, min((_refined(problem, start) for start in starts), key=problem.cost)


def _start_cameras(cameras: tuple[Camera, Camera], deviations: tuple[float, float]) -> list[tuple[Camera, ...]]:
    """Pairs of cameras to begin with; sure focal lengths stay."""
    if max(deviations) <= _SURE:
        return [cameras]
    return [
        tuple(
            camera if deviation <= _SURE else _zoomed(camera, share * max(camera.width, camera.height))
            for camera, deviation in zip(cameras, deviations)
        )
        for share in _STARTS
    ]


def _problem(sample: _Sample, cameras: tuple[Camera, Camera], deviations: tuple[float, float]) -> _Problem:
    rows, unit = sample.chosen, sample.noise_px
    sizes = [(camera.width, camera.height) for camera in cameras]
    same = sorted(sizes[0]) == sorted(sizes[1])  # a turned camera is the same camera
    return _Problem(
        _rays(sample.xy0[rows], cameras[0], unit),
        _rays(sample.xy1[rows], cameras[1], unit),
        trust=_TRUST,
        log_focals=np.log([camera.focal[0] / unit for camera in cameras]),
        precision=np.maximum(deviations, _KNOWN) ** -2.0,
        sizes=np.log([max(size) for size in sizes]),
        tie=(_TIE_SAME if same else _TIE_OTHER) ** -2.0,
    )


def _refined(problem: _Problem, geometry: EpipolarGeometry) -> EpipolarGeometry:
    """Levenberg-Marquardt from a geometry."""
    cost, damping = problem.cost(geometry), 1e-3
    for _ in range(_STEPS):
        matrix, vector = problem.normal_equations(geometry)
        while damping < 1e5:
            step = -np.linalg.solve(matrix + np.diag(damping * np.diag(matrix) + 1e-12), vector)
            tried = geometry.moved(np.clip(step, -_MAX_STEP, _MAX_STEP))
            cost_tried = problem.cost(tried)
            if cost_tried < cost:
                break
            damping *= 10
        else:
            return geometry
        gain, geometry, cost = cost - cost_tried, tried, cost_tried
        damping = max(damping / 10, 1e-7)
        if gain < _MIN_GAIN:
            return geometry
    return geometry


def _with_focals(
    cameras: tuple[Camera, Camera], geometry: EpipolarGeometry, deviations: tuple[float, float], unit: float
) -> tuple[Camera, Camera]:
    """The cameras with the focal lengths of a geometry, where these are not given."""
    camera0, camera1 = (
        camera if deviation == 0 else _zoomed(camera, _in_range(focal * unit, camera))
        for camera, deviation, focal in zip(cameras, deviations, geometry.focals)
    )
    return camera0, camera1


def _in_range(focal: float, camera: Camera) -> float:
    half_side = max(camera.width, camera.height) / 2
    widest, longest = (half_side / np.tan(np.radians(angle / 2)) for angle in FOV_RANGE_DEG[::-1])
    expected = camera.focal[0]  # may well be outside the range if it is known, for instance of a telephoto lens
    return float(np.clip(focal, min(widest, expected), max(longest, expected)))


def _zoomed(camera: Camera, focal: float) -> Camera:
    """The camera with another focal length (in x) in pixels."""
    K = camera.K.copy()
    K[:2, :2] *= focal / camera.focal[0]
    return replace(camera, K=K)


def _rays(xy: np.ndarray, camera: Camera, unit: float) -> np.ndarray:
    """(N, 3) pixels from the principal point in units of `unit`, without distortion and oblong pixels."""
    rays = camera.unproject(xy)
    rays[:, :2] *= camera.focal[0] / unit
    return rays


def _failed(sample: _Sample, cameras: tuple[Camera, Camera]) -> Calibration:
    log_focals = np.log([camera.focal[0] / sample.noise_px for camera in cameras])
    geometry = EpipolarGeometry(np.eye(3), np.zeros(3), log_focals)
    nothing = np.zeros((NUM_PARAMETERS, NUM_PARAMETERS))
    return Calibration(
        cameras, geometry, np.full(len(sample.xy0), np.inf), 0.0, nothing, sample.noise_px, success=False
    )
