"""Sub-pixel positions of matches from the descriptors around them.

A descriptor q of image 0 and the descriptors D of the pixels around its match in image 1 tell where between
the pixels the match lies. Three ways, from the most exact on smooth fields to the most forgiving:

* "descriptor": D is modelled channel by channel as a quadratic function of the offset, and |q - D(offset)| is
  minimised by Gauss-Newton steps. Exact for fields without third derivatives; no bias at whole pixels.
* "quadratic": the similarity q.D is modelled as a paraboloid. Its top is pulled by skewed peaks.
* "softargmax": neighbours averaged with weights exp(similarity / temperature). Pulled towards the centre.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

_MATCHES_AT_ONCE = 1 << 14  # bounds the memory of the gathered neighbourhoods

MAX_STEP = 1.0
"""Pixels: a peak farther away than this on either axis is not the match's, which then stays as it is."""


Method = Literal["descriptor", "quadratic", "softargmax"]


def refine_matches(
    desc0: Tensor,
    desc1: Tensor,
    xy0: Tensor,
    xy1: Tensor,
    *,
    radius: int = 1,
    method: Method = "descriptor",
    temperature: float = 0.01,
) -> Tensor:
    """Move the second end of matches to where its descriptor fits best.

    Args:
        desc0: (H0, W0, D) descriptors of image 0.
        desc1: (H1, W1, D) descriptors of image 1.
        xy0: (N, 2) integer pixels (x, y) in image 0; they stay.
        xy1: (N, 2) integer pixels (x, y) in image 1.
        radius: half side of the neighbourhood: 1 looks at 3x3 pixels, 2 at 5x5.
        method: see the module.
        temperature: of the soft argmax, in units of similarity.

    Returns:
        (N, 2) pixels in image 1, of the descriptors' dtype. Matches next to the border, and those without a
        best place within `MAX_STEP`, keep their position. Differentiable with respect to the descriptors.

    Raises:
        ValueError: shapes do not fit or an option is unknown.
    """
    if len(xy0) != len(xy1):
        raise ValueError(f"Both ends need the same number of points, got {len(xy0)} and {len(xy1)}.")
    queries = desc0[xy0[:, 1], xy0[:, 0]]
    return refine_positions(queries, desc1, xy1, radius=radius, method=method, temperature=temperature)


def refine_positions(
    queries: Tensor,
    desc: Tensor,
    xy: Tensor,
    *,
    radius: int = 1,
    method: Method = "descriptor",
    temperature: float = 0.01,
) -> Tensor:
    """Move pixels to where given descriptors fit best (see `refine_matches`).

    Args:
        queries: (N, D) descriptors that are looked for.
        desc: (H, W, D) descriptors among which they are looked for.
        xy: (N, 2) integer pixels (x, y) where they have been found.
        radius: half side of the neighbourhood in pixels.
        method: see the module.
        temperature: of the soft argmax, in units of similarity.

    Returns:
        (N, 2) pixels of the descriptors' dtype.

    Raises:
        ValueError: an option is unknown.
    """
    if radius < 1 or method not in get_args(Method):
        raise ValueError(f"Need radius >= 1 and a method of {get_args(Method)}, got {radius} and {method!r}.")
    steps = [
        _step(query, neighbourhood(desc, place, radius), method, temperature)
        for query, place in zip(queries.split(_MATCHES_AT_ONCE), xy.split(_MATCHES_AT_ONCE))
    ]
    step = torch.cat(steps)
    limit = torch.tensor([desc.shape[1], desc.shape[0]], device=xy.device)
    near_border = ((xy < radius) | (xy >= limit - radius)).any(1, keepdim=True)
    return xy.to(step.dtype) + torch.where(near_border, torch.zeros_like(step), step)


def sample_map(values: Tensor, xy: Tensor) -> Tensor:
    """Values between the pixels of a map, bilinear, edges repeated.

    Args:
        values: (H, W, D) map.
        xy: (N, 2) pixels (x, y), integer at pixel centres.

    Returns:
        (N, D) values of the map's dtype.
    """
    H, W = values.shape[:2]
    xy = xy.to(values.dtype)
    x, y = xy[:, 0].clamp(0, W - 1), xy[:, 1].clamp(0, H - 1)
    left, top = x.floor().long().clamp(max=max(0, W - 2)), y.floor().long().clamp(max=max(0, H - 2))
    right, bottom = (left + 1).clamp(max=W - 1), (top + 1).clamp(max=H - 1)
    u, v = (x - left)[:, None], (y - top)[:, None]
    upper = torch.lerp(values[top, left], values[top, right], u)
    lower = torch.lerp(values[bottom, left], values[bottom, right], u)
    return torch.lerp(upper, lower, v)


def _step(queries: Tensor, patches: Tensor, method: Method, temperature: float) -> Tensor:
    """Offset (N, 2) for queries (N, D) among patches (N, S, S, D)."""
    if method == "descriptor":
        return descriptor_peak(queries, patches)
    similarity = torch.einsum("nd,nyxd->nyx", queries, patches)
    return paraboloid_peak(similarity) if method == "quadratic" else soft_peak(similarity, temperature)


def neighbourhood(desc: Tensor, xy: Tensor, radius: int) -> Tensor:
    """Descriptors (N, S, S, D) around pixels (N, 2) of an (H, W, D) map, S = 2 radius + 1, edges repeated."""
    H, W = desc.shape[:2]
    offset = torch.arange(-radius, radius + 1, device=xy.device)
    x = (xy[:, 0, None, None] + offset).clamp(0, W - 1)  # (N, 1, S)
    y = (xy[:, 1, None, None] + offset[:, None]).clamp(0, H - 1)  # (N, S, 1)
    return desc[y, x]


def descriptor_peak(queries: Tensor, patches: Tensor, steps: int = 3) -> Tensor:
    """Offset (N, 2) as (x, y) where patches (N, S, S, D), modelled as quadratic, are closest to (N, D)."""
    flat = patches.flatten(1, 2)
    terms = _quadratic_terms(patches.shape[1] // 2, patches)
    c, cx, cy, cxx, cxy, cyy = torch.einsum("kp,npd->knd", torch.linalg.pinv(terms), flat)
    offset = torch.zeros_like(queries[:, :2])
    for _ in range(steps):
        x, y = offset[:, :1], offset[:, 1:]
        residual = queries - (c + cx * x + cy * y + cxx * x * x / 2 + cxy * x * y + cyy * y * y / 2)
        jacobian = torch.stack([cx + cxx * x + cxy * y, cy + cxy * x + cyy * y], 1)  # (N, 2, D)
        normal = jacobian @ jacobian.mT
        rounding = 100 * torch.finfo(queries.dtype).eps * queries.square().sum(1)
        offset = offset + _solve_2x2(normal, (jacobian @ residual[..., None])[..., 0], rounding)
    return _near_or_zero(offset)


def _solve_2x2(matrix: Tensor, vector: Tensor, damping: Tensor) -> Tensor:
    """Solve positive semi-definite (N, 2, 2) systems, damped by (N,) so that flat ones do not move."""
    a, b, d = matrix[:, 0, 0], matrix[:, 0, 1], matrix[:, 1, 1]
    damping = damping + 1e-4 * (a + d) + torch.finfo(matrix.dtype).tiny
    a, d = a + damping, d + damping
    x, y = vector.unbind(1)
    return torch.stack([d * x - b * y, a * y - b * x], 1) / (a * d - b * b)[:, None]


def _near_or_zero(step: Tensor) -> Tensor:
    near = (step.abs() <= MAX_STEP).all(1, keepdim=True)
    return torch.where(near, step, torch.zeros_like(step))


def paraboloid_peak(values: Tensor) -> Tensor:
    """Offset (N, 2) as (x, y) of the top of the least-squares paraboloid through (N, S, S) values.

    Zero where the fit has no top, or one farther than `MAX_STEP` away.
    """
    radius = values.shape[-1] // 2
    terms = _quadratic_terms(radius, values)
    _, gx, gy, hxx, hxy, hyy = (values.flatten(1) @ torch.linalg.pinv(terms).T).unbind(1)
    determinant = hxx * hyy - hxy * hxy
    peaked = (hxx < 0) & (determinant > 0)
    safe = torch.where(peaked, determinant, torch.ones_like(determinant))
    step = torch.stack([hxy * gy - hyy * gx, hxy * gx - hxx * gy], 1) / safe[:, None]
    return _near_or_zero(torch.where(peaked[:, None], step, torch.zeros_like(step)))


def soft_peak(values: Tensor, temperature: float) -> Tensor:
    """Mean offset (N, 2) as (x, y), weighted by exp(value / temperature), of (N, S, S) values."""
    weight = (values.flatten(1) / temperature).softmax(1)
    y, x = (t.flatten() for t in _offsets(values.shape[-1] // 2, values))
    return weight @ torch.stack([x, y], 1)


def _quadratic_terms(radius: int, like: Tensor) -> Tensor:
    """(S * S, 6) values of 1, x, y, x^2 / 2, x y, y^2 / 2 on the neighbourhood."""
    y, x = (t.flatten() for t in _offsets(radius, like))
    return torch.stack([torch.ones_like(x), x, y, x * x / 2, x * y, y * y / 2], 1)


def _offsets(radius: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Grids (S, S) of y and x offsets."""
    offset = torch.arange(-radius, radius + 1, device=like.device, dtype=like.dtype)
    y, x = torch.meshgrid(offset, offset, indexing="ij")
    return y, x
