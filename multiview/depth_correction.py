"""Dense depth maps bent smoothly onto sparse depths.

A network's depth map is right in detail and wrong at large, depths triangulated from matches are right at large
and sparse and noisy. Here a map is multiplied by a smooth field of factors, known at the samples up to their noise:
the logarithm of the field minimises

    sum_samples (field - difference)^2 / deviation^2  (robust)  +  stiffness sum_edges w (field_a - field_b)^2

on a coarse grid, where w is small between cells of different colour or depth: the field may jump where objects
end. How stiff it is follows from how much samples and map disagree: a map that agrees with its samples up to their
noise is left alone.

Samples of several maps may have errors in common, for instance those of a wrong relative pose. They are given as
derivatives of the samples by a few shared unknowns of known covariance, which are solved for along with the fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


@dataclass(frozen=True)
class FieldConfig:
    """How a field is fitted.

    Attributes:
        cells: Most cells of the grid along the longer side.
        least_cell_px: Least side of a cell in pixels of the map.
        color_scale: Difference of colours (0..1 per channel) at which two cells hardly hold together.
        depth_scale: The same for log depths.
        least_tie: Least weight of an edge.
        pull: Weight that pulls the field of a cell back to the common factor, in units of the stiffness.
        noise_floor: Deviation of log depth that every sample has.
        least_deviation: Least deviation of the field, of log depth: where map and samples agree better, the field
            is as stiff as for this.
        robust: Samples farther off than so many deviations lose weight.
        rounds: Rounds of reweighting.
    """

    cells: int = 64
    least_cell_px: int = 4
    color_scale: float = 0.1
    depth_scale: float = 0.15
    least_tie: float = 0.05
    pull: float = 1e-3
    noise_floor: float = 0.03
    least_deviation: float = 0.02
    robust: float = 1.5
    rounds: int = 4


@dataclass(frozen=True, eq=False)
class DepthMap:
    """A depth map to correct.

    Attributes:
        depth: (H, W) positive depth; pixels that are not finite and positive are left out.
        colors: (H, W, 3) uint8 image, whose edges the field respects.
    """

    depth: np.ndarray
    colors: np.ndarray


@dataclass(frozen=True, eq=False)
class DepthSamples:
    """Sparse depths of a map.

    Attributes:
        xy: (N, 2) pixels of the map.
        log_depth: (N,) logarithms of the depths.
        deviation: (N,) their standard deviations, independent errors.
        modes: (N, M) derivatives of `log_depth` by unknowns that all samples of all maps share.
    """

    xy: np.ndarray
    log_depth: np.ndarray
    deviation: np.ndarray
    modes: np.ndarray


@dataclass(frozen=True, eq=False)
class CorrectedDepths:
    """Result of `correct_depths`.

    Attributes:
        depths: The corrected maps, (H, W) float64; NaN where the map had no depth.
        step: (M,) estimate of the shared unknowns.
        disagreement: Robust deviation of the maps from their samples before, in log depth.
    """

    depths: tuple[np.ndarray, ...]
    step: np.ndarray
    disagreement: float


def correct_depths(
    maps: Sequence[DepthMap],
    samples: Sequence[DepthSamples],
    covariance: np.ndarray,
    config: FieldConfig | None = None,
) -> CorrectedDepths:
    """Bend depth maps smoothly onto their samples.

    Args:
        maps: The maps.
        samples: The samples of each; at least one finite sample on a pixel with depth is needed in each.
        covariance: (M, M) of the shared unknowns before looking at the maps.
        config: How the fields are fitted.

    Raises:
        ValueError: If a map has no sample.
    """
    config = config or FieldConfig()
    fields = [_Field.build(*pair, config) for pair in zip(maps, samples)]
    difference = np.concatenate([field.difference for field in fields])
    disagreement = 1.4826 * float(np.median(np.abs(difference)))
    noise = float(np.median(np.concatenate([field.deviation for field in fields]) ** 2))
    spread = max(disagreement**2 - noise, config.least_deviation**2)
    step, values = _solved(fields, np.linalg.pinv(covariance), _stiffness(spread), config)
    depths = tuple(field.corrected(depth_map.depth, v) for field, depth_map, v in zip(fields, maps, values))
    return CorrectedDepths(depths, step, disagreement)


def _stiffness(variance: float) -> float:
    """Stiffness at which a free field on some 50 x 50 cells varies by this much."""
    return float(np.log(50) / (2 * np.pi) / variance)


@dataclass(frozen=True, eq=False)
class _Field:
    """One map's part of the equations."""

    cells: int
    at_samples: csr_matrix  # (N, cells): values of the field at the samples
    at_pixels: csr_matrix  # (H W, cells)
    rigid: csr_matrix  # (cells, cells): the sum over edges as a quadratic form
    difference: np.ndarray  # (N,) samples minus map, without their median
    offset: float  # that median
    deviation: np.ndarray
    modes: np.ndarray

    @classmethod
    def build(cls, depth_map: DepthMap, samples: DepthSamples, config: FieldConfig) -> _Field:
        """The equations of one map; raises ValueError if no sample lies on a pixel with depth."""
        log_depth = _log(depth_map.depth)
        height, width = log_depth.shape
        column, row = np.rint(samples.xy).astype(int).clip(0, (width - 1, height - 1)).T
        difference = samples.log_depth - log_depth[row, column]
        modes = np.asarray(samples.modes, dtype=np.float64)
        used = np.isfinite(difference) & np.isfinite(samples.deviation) & np.isfinite(modes).all(axis=1)
        if not used.any():
            raise ValueError("Every depth map needs at least one sample on a pixel with known depth, got none.")
        difference, deviation = difference[used], np.hypot(samples.deviation[used], config.noise_floor)
        offset = _weighted_median(difference, deviation**-2)
        grid = _Grid.over(height, width, config)
        return cls(
            grid.rows * grid.columns,
            grid.interpolation(samples.xy[used]),
            grid.interpolation(grid.pixels()),
            grid.ties(depth_map.colors, log_depth, config),
            difference - offset,
            offset,
            deviation,
            modes[used],
        )

    def corrected(self, depth: np.ndarray, values: np.ndarray) -> np.ndarray:
        """(H, W) map times the field."""
        return np.exp(_log(depth) + self.offset + (self.at_pixels @ values).reshape(depth.shape))


def _solved(
    fields: Sequence[_Field], precision: np.ndarray, stiffness: float, config: FieldConfig
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Shared unknowns and the fields' values on their grids, by reweighted least squares."""
    from scipy.sparse import diags, identity
    from scipy.sparse.linalg import splu

    step = np.zeros(len(precision))
    values = [np.zeros(field.cells) for field in fields]
    for _ in range(config.rounds):
        matrix, vector, parts = precision.copy(), np.zeros(len(precision)), []
        for field, value in zip(fields, values):
            error = (field.difference + field.modes @ step - field.at_samples @ value) / field.deviation
            weight = 1 / (field.deviation**2 * (1 + (error / config.robust) ** 2))
            weighted: Any = field.at_samples.T @ diags(weight)
            free = stiffness * (field.rigid + config.pull * identity(len(value)))
            system = splu((weighted @ field.at_samples + free).tocsc())
            # The field follows both the differences and the shared unknowns: value = known + moved @ step.
            columns = np.asarray(system.solve(weighted @ np.column_stack([field.difference, field.modes])))
            known, moved = columns[:, 0], columns[:, 1:]
            parts.append((known, moved))
            rest = field.modes - field.at_samples @ moved
            matrix += field.modes.T @ (weight[:, None] * rest)
            vector -= field.modes.T @ (weight * (field.difference - field.at_samples @ known))
        step = np.linalg.solve(matrix, vector)
        values = [known + moved @ step for known, moved in parts]
    return step, values


@dataclass(frozen=True)
class _Grid:
    """Square cells over a map; values stand at their centres."""

    height: int
    width: int
    cell: int
    rows: int
    columns: int

    @classmethod
    def over(cls, height: int, width: int, config: FieldConfig) -> _Grid:
        cell = max(config.least_cell_px, -(-max(height, width) // config.cells))
        return cls(height, width, cell, max(2, -(-height // cell)), max(2, -(-width // cell)))

    def pixels(self) -> np.ndarray:
        """(H W, 2) all pixels of the map."""
        return np.stack(np.meshgrid(np.arange(self.width), np.arange(self.height)), axis=-1).reshape(-1, 2)

    def interpolation(self, xy: np.ndarray) -> csr_matrix:
        """(N, cells) matrix that interpolates bilinearly at (N, 2) pixels."""
        from scipy.sparse import csr_matrix

        place = np.clip((xy + 0.5) / self.cell - 0.5, 0, (self.columns - 1, self.rows - 1))
        low = np.minimum(place.astype(int), (self.columns - 2, self.rows - 2))
        (x, y), (column, row) = (place - low).T, low.T
        corner = row * self.columns + column
        index = np.stack([corner, corner + 1, corner + self.columns, corner + self.columns + 1], axis=1)
        weight = np.stack([(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y], axis=1)
        pointers = np.arange(0, 4 * len(xy) + 1, 4)
        return csr_matrix((weight.ravel(), index.ravel(), pointers), (len(xy), self.rows * self.columns))

    def ties(self, colors: np.ndarray, log_depth: np.ndarray, config: FieldConfig) -> csr_matrix:
        """(cells, cells) Laplacian of the grid; neighbours unlike in colour or depth hardly hold together."""
        from scipy.sparse import csr_matrix

        color, depth = self._means(colors / 255.0), self._means(np.nan_to_num(log_depth, nan=0.0)[..., None])
        index = np.arange(self.rows * self.columns).reshape(self.rows, self.columns)
        pairs, weights = [], []
        for here, there in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
            unlike = np.linalg.norm(color[here] - color[there], axis=-1) / config.color_scale
            uneven = np.abs(depth[here] - depth[there])[..., 0] / config.depth_scale
            weights.append(np.maximum(np.exp(-(unlike**2 + uneven**2) / 2), config.least_tie).ravel())
            pairs.append((index[here].ravel(), index[there].ravel()))
        a, b = (np.concatenate(ends) for ends in zip(*pairs))
        weight = np.concatenate(weights)
        entries = np.concatenate([weight, weight, -weight, -weight])
        return csr_matrix((entries, (np.concatenate([a, b, a, b]), np.concatenate([a, b, b, a]))), (index.size,) * 2)

    def _means(self, image: np.ndarray) -> np.ndarray:
        """(rows, columns, C) means of (H, W, C) over the cells."""
        rows, columns = (np.arange(n) * self.cell for n in (self.rows, self.columns))
        rows, columns = np.minimum(rows, self.height - 1), np.minimum(columns, self.width - 1)
        sums = np.add.reduceat(np.add.reduceat(image, rows, axis=0), columns, axis=1)
        heights = np.diff(np.append(rows, self.height))[:, None, None]
        widths = np.diff(np.append(columns, self.width))[None, :, None]
        return sums / np.maximum(heights * widths, 1)


def _log(depth: np.ndarray) -> np.ndarray:
    """Float64 logarithm, NaN where there is no positive depth."""
    depth = np.asarray(depth, dtype=np.float64)
    return np.log(np.where(np.isfinite(depth) & (depth > 0), depth, np.nan))


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])
