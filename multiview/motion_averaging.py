"""Cameras of many images from the relative motions of pairs: rotations first, then positions.

Relative motions come from matches (`multiview.robust.estimate_relative_pose`); some of them may be wrong. Rotations
are averaged with iteratively reweighted least squares (Chatterjee and Govindu, "Efficient and robust large-scale
rotation averaging", ICCV 2013), started from a spanning tree of the best pairs. Positions follow from the directions
of the baselines; their lengths, where they are roughly known, decide what directions leave open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_ROUNDS = 40
_TURN = np.radians(3.0)  # error of a good relative rotation
_FIRST_TURN, _NARROWING = np.radians(60.0), 0.85  # error that counts as good in the first round, and its shrinking
_ASIDE = np.radians(6.0)  # error of a good direction
_ALONG = 0.5  # error of the logarithm of a length
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class RelativeMotion:
    """How camera j stands to camera i.

    Attributes:
        i: First image.
        j: Second image.
        R: (3, 3) rotation, camera j from camera i: `x_j = R x_i + t`.
        t: (3,) unit vector.
        weight: How much the motion is trusted, for example its number of inliers; positive.
        length: Length of the baseline, roughly; all of a scene in one unit.
    """

    i: int
    j: int
    R: np.ndarray
    t: np.ndarray
    weight: float
    length: float


def average_rotations(count: int, motions: Sequence[RelativeMotion]) -> np.ndarray:
    """Rotations of cameras that agree with most relative ones.

    Args:
        count: Number of images N; the motions connect them all.
        motions: At least N - 1.

    Returns:
        (N, 3, 3) cam_from_world.
    """
    R = _chained(count, motions)
    i, j = np.array([(m.i, m.j) for m in motions]).T
    trust = _trust(motions)
    for number in range(_ROUNDS):
        width = max(_TURN, _FIRST_TURN * _NARROWING**number)
        errors = _turns(R, motions)
        weight = trust / (1 + ((errors**2).sum(axis=1) / width**2)) ** 2
        step = _solved_laplacian(count, i, j, weight[:, None, None] * np.eye(3), weight[:, None] * errors)
        # x_j = R_j w: a turn of the world's axes by -d_j on its right brings R_j closer to the measured R R_i
        R = R @ rotations_from_vectors(step)
        if width == _TURN and np.abs(step).max() < 1e-9:
            break
    return R


def solve_centers(rotations: np.ndarray, motions: Sequence[RelativeMotion]) -> np.ndarray:
    """Positions of cameras from directions and rough lengths of baselines.

    Args:
        rotations: (N, 3, 3) cam_from_world.
        motions: They connect all images.

    Returns:
        (N, 3) centres in the unit of the lengths; the first is the origin.
    """
    i, j = np.array([(m.i, m.j) for m in motions]).T
    direction = np.stack([-rotations[m.j].T @ m.t for m in motions])
    length = np.maximum(np.array([m.length for m in motions]), _TINY)
    along = direction[:, :, None] * direction[:, None]
    aside = np.eye(3) - along
    turned = np.linalg.norm(_turns(rotations, motions), axis=1)
    trust = _trust(motions) / (1 + (turned / _TURN) ** 2) ** 2  # who errs about the rotation errs about the rest
    robust = np.ones(len(motions))
    centers = np.zeros((len(rotations), 3))
    for number in range(_ROUNDS):
        width = max(_ASIDE, _FIRST_TURN * _NARROWING**number)
        weight = (trust * robust / length**2)[:, None, None]
        matrices = weight * (aside / _ASIDE**2 + along / _ALONG**2)
        centers = _solved_laplacian(
            len(rotations), i, j, matrices, (matrices @ (length[:, None] * direction)[..., None])[..., 0]
        )
        off = centers[j] - centers[i]
        ahead = (off * direction).sum(axis=1)
        angle = np.arctan2(np.linalg.norm(off - ahead[:, None] * direction, axis=1), ahead)
        robust = 1 / (1 + (angle / width) ** 2) ** 2
    return centers - centers[0]


def rotation_vectors(R: np.ndarray) -> np.ndarray:
    """(N, 3) axes times angles of rotations (N, 3, 3)."""
    from scipy.spatial.transform import Rotation  # here: importing multiview must not need scipy

    return Rotation.from_matrix(R).as_rotvec()


def rotations_from_vectors(vectors: np.ndarray) -> np.ndarray:
    """(N, 3, 3) rotations about vectors (N, 3) by their lengths in radians."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_rotvec(vectors).as_matrix()


def _turns(R: np.ndarray, motions: Sequence[RelativeMotion]) -> np.ndarray:
    """(E, 3) turns of the world's axes between what motions and rotations say of their second camera."""
    i, j = np.array([(m.i, m.j) for m in motions]).T
    return rotation_vectors(R[j].transpose(0, 2, 1) @ np.stack([m.R for m in motions]) @ R[i])


def _trust(motions: Sequence[RelativeMotion]) -> np.ndarray:
    """(E,) weights around 1; many more inliers make a motion only somewhat surer."""
    weight = np.sqrt(np.array([m.weight for m in motions], dtype=np.float64))
    return weight / weight.mean()


def _chained(count: int, motions: Sequence[RelativeMotion]) -> np.ndarray:
    """(N, 3, 3) rotations along the spanning tree of the most trusted motions."""
    R: dict[int, np.ndarray] = {motions[0].i: np.eye(3)}
    by_trust = sorted(motions, key=lambda m: -m.weight)
    while len(R) < count:
        known = next((m for m in by_trust if (m.i in R) != (m.j in R)), None)
        if known is None:
            raise ValueError(f"The motions connect only {len(R)} of {count} images; solve every component by itself.")
        if known.i in R:
            R[known.j] = known.R @ R[known.i]
        else:
            R[known.i] = known.R.T @ R[known.j]
    return np.stack([R[k] for k in range(count)])


def _solved_laplacian(
    count: int, i: np.ndarray, j: np.ndarray, matrices: np.ndarray, vectors: np.ndarray
) -> np.ndarray:
    """(N, 3) values x that minimise sum (x_j - x_i)^T M (x_j - x_i) - 2 v^T (x_j - x_i); the first is zero."""
    system, right = np.zeros((count, 3, count, 3)), np.zeros((count, 3))
    for a, b, sign in ((i, i, 1), (j, j, 1), (i, j, -1), (j, i, -1)):
        np.add.at(system.transpose(0, 2, 1, 3), (a, b), sign * matrices)
    np.add.at(right, j, vectors)
    np.add.at(right, i, -vectors)
    matrix = system.reshape(3 * count, 3 * count)[3:, 3:]
    ridge = _TINY * max(float(np.trace(matrix)), _TINY)
    solution = np.linalg.solve(matrix + ridge * np.eye(len(matrix)), right.reshape(-1)[3:])
    return np.concatenate([np.zeros((1, 3)), solution.reshape(-1, 3)])
