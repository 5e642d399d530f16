"""The geometry that several sets of matches between two photos have in common.

Where photos can hardly be told apart by what they show (repeated windows, planks, weak texture), a set of matches may
be wrong as a whole and its patches still look alike. Sets that come from different parts of the photos then contradict
each other, while those that are right follow one epipolar geometry. Each set proposes one, and the proposal that most
matches of all sets agree with decides which matches are right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from multiview.matches import Matches, concatenated
from multiview.metrics import epipolar_distances
from multiview.photometric import PlacedMatches, confirmed_share
from multiview.robust import estimate_fundamental, estimate_shared_focal_fundamental

_UNIT = 1000.0  # the photos' longer sides in the coordinates that are computed with
_NEAR = 3.0  # tolerances: of the matches that a proposal is refined with


@dataclass(frozen=True)
class ConsensusConfig:
    """How the common geometry is found.

    Attributes:
        tolerance: Distance from the epipolar line, as a share of the photo's longer side, up to which a confirmed match
            speaks for a proposal.
        kept: The same for the matches that are kept in the end; matches without texture of their own are less exact.
        least_set: Confirmed matches that a set needs to propose a geometry.
        least: Confirmed matches of all sets that must speak for it.
        max_iterations: Bound of RANSAC rounds per proposal.
        seed: Seed of the sampling.

    Raises:
        ValueError: If a value is out of its range.
    """

    tolerance: float = 0.002
    kept: float = 0.008
    least_set: int = 20
    least: int = 50
    max_iterations: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.tolerance <= self.kept:
            raise ValueError(f"tolerance and kept must be positive and in order, got {self.tolerance}, {self.kept}.")
        if min(self.least_set, self.least, self.max_iterations) < 1:
            raise ValueError(
                "least_set, least and max_iterations must be positive, got "
                f"{self.least_set}, {self.least} and {self.max_iterations}."
            )


def agreeing_matches(sets: Sequence[PlacedMatches], config: ConsensusConfig | None = None) -> list[Matches] | None:
    """The checked matches of each set that follow the geometry which most confirmed matches of all sets follow.

    Args:
        sets: Matches of the same two photos, placed and checked by them.
        config: How it is done.

    Returns:
        Matches of each set, some perhaps empty; None if too few confirmed matches agree with any geometry.
    """
    return Consensus(sets, config).agreeing()


class Consensus:
    """What sets of matches of two photos propose, and how far they agree; each set is asked once, as it comes.

    Args:
        sets: The first sets, placed and checked by the photos.
        config: How geometries are found.
    """

    def __init__(self, sets: Sequence[PlacedMatches] = (), config: ConsensusConfig | None = None) -> None:
        self._config = config or ConsensusConfig()
        self._sets: list[PlacedMatches] = []
        self._confirmed: list[Matches] = []
        self._proposals: list[np.ndarray] = []
        self.add(sets)

    def add(self, sets: Iterable[PlacedMatches]) -> None:
        """Let more sets of the same two photos take part."""
        for placed in sets:
            confirmed = _best_first(placed)
            self._sets.append(placed)
            self._confirmed.append(confirmed)
            if len(confirmed) >= self._config.least_set:
                self._proposals += _proposals(confirmed, self._config)

    def rivals(self, count: int) -> list[Matches]:
        """The confirmed matches of all sets that follow each of the geometries which most of them follow.

        Args:
            count: Most geometries. Two that agree on half of the matches of either count as one.

        Returns:
            Matches of each geometry, the most first.
        """
        if not self._proposals:
            return []
        matches = concatenated(self._confirmed)
        followers = [_distances(F, matches) < self._config.tolerance for F in self._proposals]
        rivals: list[np.ndarray] = []
        for mask in sorted(followers, key=np.count_nonzero, reverse=True):
            if all(2 * (mask & other).sum() < min(mask.sum(), other.sum()) for other in rivals):
                rivals.append(mask)
        return [matches.filter(mask) for mask in rivals[:count]]

    def agreeing(self) -> list[Matches] | None:
        """The checked matches of each set that follow the common geometry, see `agreeing_matches`."""
        if not self._proposals:
            return None
        matches, tolerance = concatenated(self._confirmed), self._config.tolerance
        # Few matches are confirmed where a set is wrong: each has the share of its set as weight.
        shares = [np.full(len(m), confirmed_share(placed)) for m, placed in zip(self._confirmed, self._sets)]
        weights = np.concatenate(shares)

        def support(F: np.ndarray) -> float:
            return float(weights[_distances(F, matches) < tolerance].sum())

        found = max(self._proposals, key=support)
        distances = _distances(found, matches)
        if (distances < tolerance).sum() < self._config.least:
            return None
        near = matches.filter(distances < _NEAR * tolerance)
        found = max([found, *_proposals(near, self._config)], key=support)
        checked = [one.matches.filter(one.checked) for one in self._sets]
        return [one.filter(_distances(found, one) < self._config.kept) for one in checked]


def _best_first(placed: PlacedMatches) -> Matches:
    """The confirmed matches, those whose patches and neighbours agree most first."""
    order = np.flatnonzero(placed.confirmed)
    return placed.matches.filter(order[np.argsort(-(placed.correlation * placed.support)[order], kind="stable")])


def _proposals(matches: Matches, config: ConsensusConfig) -> list[np.ndarray]:
    """Geometries of some matches, best first: that of one camera, and that of any two."""
    xy0, xy1 = _scaled(matches)
    estimators = (partial(estimate_shared_focal_fundamental, principal_point=(0.0, 0.0)), estimate_fundamental)
    found = [
        estimate(
            xy0,
            xy1,
            threshold_px=config.tolerance * _UNIT,
            seed=config.seed,
            max_iterations=config.max_iterations,
            best_first=True,
            accept="any",
        )
        for estimate in estimators
    ]
    return [one.F for one in found if one.success]


def _scaled(matches: Matches) -> tuple[np.ndarray, np.ndarray]:
    """Both ends relative to the photos' centres, in thousandths of their longer sides."""
    ends = ((matches.xy0, matches.size0), (matches.xy1, matches.size1))
    first, second = ((xy - (np.array(size) - 1) / 2) * (_UNIT / max(size)) for xy, size in ends)
    return first, second


def _distances(F: np.ndarray, matches: Matches) -> np.ndarray:
    """(N,) distances from the epipolar lines, as shares of the photos' longer sides."""
    return epipolar_distances(F, *_scaled(matches)) / _UNIT
