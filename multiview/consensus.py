"""The geometry that several sets of matches between two photos have in common.

Where photos can hardly be told apart by what they show (repeated windows, planks, weak texture), a set of matches may
be wrong as a whole and its patches still look alike. Sets that come from different parts of the photos then contradict
each other, while those that are right follow one epipolar geometry. Each set proposes one, and the proposal that most
matches of all sets agree with decides which matches are right.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    config = config or ConsensusConfig()
    if not sets:
        return None
    votes = _Votes.of(sets, config)
    if not votes.proposals:
        return None
    found = max(votes.proposals, key=votes.support)
    if votes.followers(found).sum() < config.least:
        return None
    near = votes.matches.filter(_distances(found, votes.matches) < _NEAR * config.tolerance)
    found = max([found, *_proposals(near, config)], key=votes.support)
    checked = [one.matches.filter(one.checked) for one in sets]
    return [one.filter(_distances(found, one) < config.kept) for one in checked]


def rival_geometries(sets: Sequence[PlacedMatches], count: int, config: ConsensusConfig | None = None) -> list[Matches]:
    """The confirmed matches of all sets that follow each of the geometries which most of them follow.

    Args:
        sets: Matches of the same two photos, placed and checked by them; at least one set.
        count: Most geometries. Two that agree on half of the matches of either count as one.
        config: How geometries are found.

    Returns:
        Matches of each geometry, the most first.
    """
    votes = _Votes.of(sets, config or ConsensusConfig())
    rivals: list[np.ndarray] = []
    for mask in sorted(map(votes.followers, votes.proposals), key=np.count_nonzero, reverse=True):
        if all(2 * (mask & other).sum() < min(mask.sum(), other.sum()) for other in rivals):
            rivals.append(mask)
    return [votes.matches.filter(mask) for mask in rivals[:count]]


@dataclass(frozen=True, eq=False)
class _Votes:
    """What sets of matches propose, and their say on it.

    Attributes:
        proposals: Fundamental matrices.
        matches: Confirmed matches of all sets.
        weights: (N,) of each match the share of its set that the photos confirm: few are where a set is wrong.
        tolerance: As in `ConsensusConfig`.
    """

    proposals: list[np.ndarray]
    matches: Matches
    weights: np.ndarray
    tolerance: float

    @classmethod
    def of(cls, sets: Sequence[PlacedMatches], config: ConsensusConfig) -> _Votes:
        """The votes of some sets."""
        confirmed = [_best_first(one) for one in sets]
        weights = [np.full(len(one), confirmed_share(placed)) for one, placed in zip(confirmed, sets)]
        proposals = [F for one in confirmed if len(one) >= config.least_set for F in _proposals(one, config)]
        return cls(proposals, concatenated(confirmed), np.concatenate(weights), config.tolerance)

    def followers(self, F: np.ndarray) -> np.ndarray:
        """(N,) bool: the matches that agree with a geometry."""
        return _distances(F, self.matches) < self.tolerance

    def support(self, F: np.ndarray) -> float:
        """Sum of their weights."""
        return float(self.weights[self.followers(F)].sum())


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
