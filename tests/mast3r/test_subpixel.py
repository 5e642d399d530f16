from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mast3r.pairs.subpixel import descriptor_peak, neighbourhood, paraboloid_peak, refine_matches


def wave_field(x: torch.Tensor, y: torch.Tensor, seed: int = 0, D: int = 24, wavelength: float = 24.0) -> torch.Tensor:
    """Smooth unit-norm descriptors at any (also fractional) position."""
    g = torch.Generator().manual_seed(seed)
    frequency = torch.randn(D, 4, 2, generator=g, dtype=torch.float64) * 2 * torch.pi / wavelength / 2
    phase = 6.28 * torch.rand(D, 4, generator=g, dtype=torch.float64)
    angle = frequency[..., 0] * x[..., None, None] + frequency[..., 1] * y[..., None, None] + phase
    return torch.nn.functional.normalize(angle.sin().sum(-1), dim=-1)


def shifted_maps(shift, size=48, seed=0, dtype=torch.float64, D=24):
    y, x = torch.meshgrid(*[torch.arange(size, dtype=torch.float64)] * 2, indexing="ij")
    return wave_field(x + shift[0], y + shift[1], seed, D).to(dtype), wave_field(x, y, seed, D).to(dtype)


def interior_matches(shift, size=48):
    """Pixels of map 0 and the nearest pixels to their true places in map 1."""
    xy0 = torch.cartesian_prod(torch.arange(6, size - 6, 3), torch.arange(6, size - 6, 3))
    return xy0, (xy0 + torch.tensor(shift)).round().long()


shifts = st.tuples(st.floats(-2, 2), st.floats(-2, 2))


@settings(max_examples=20, deadline=None)
@given(shift=shifts, seed=st.integers(0, 100), radius=st.sampled_from([1, 2]))
def test_known_shift_is_recovered(shift, seed, radius):
    desc0, desc1 = shifted_maps(shift, seed=seed)
    xy0, xy1 = interior_matches(shift)
    truth = xy0 + torch.tensor(shift, dtype=torch.float64)
    refined = refine_matches(desc0, desc1, xy0, xy1, radius=radius)
    error = (refined - truth).norm(dim=1)
    assert error.median() < 0.03
    assert error.mean() < 0.06


@pytest.mark.parametrize("method", ["descriptor", "quadratic", "softargmax"])
def test_refinement_beats_whole_pixels(method):
    shift = (0.4, -0.3)
    desc0, desc1 = shifted_maps(shift, dtype=torch.float32)
    xy0, xy1 = interior_matches(shift)
    refined = refine_matches(desc0, desc1, xy0, xy1, method=method, radius=2, temperature=0.02)
    truth = xy0 + torch.tensor(shift)
    assert (refined - truth).norm(dim=1).mean() < 0.5 * (xy1 - truth).norm(dim=1).mean()


@settings(deadline=None)
@given(
    peak=st.tuples(st.floats(-0.9, 0.9), st.floats(-0.9, 0.9)),
    curvature=st.tuples(st.floats(0.1, 2), st.floats(0.1, 2)),
    twist=st.floats(-0.9, 0.9),
    radius=st.integers(1, 3),
)
def test_paraboloid_is_exact(peak, curvature, twist, radius):
    offset = torch.arange(-radius, radius + 1, dtype=torch.float64)
    y, x = torch.meshgrid(offset - peak[1], offset - peak[0], indexing="ij")
    cross = twist * (curvature[0] * curvature[1]) ** 0.5
    values = 3 - (curvature[0] * x**2 + curvature[1] * y**2 + 2 * cross * x * y)
    torch.testing.assert_close(
        paraboloid_peak(values[None])[0], torch.tensor(peak, dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_flat_saddle_and_far_peaks_stay():
    y, x = torch.meshgrid(torch.arange(-1.0, 2), torch.arange(-1.0, 2), indexing="ij")
    values = torch.stack([torch.zeros(3, 3), x * y, x**2 + y**2, -((x - 5) ** 2) - y**2])
    assert not paraboloid_peak(values).any()
    assert descriptor_peak(torch.ones(1, 4), torch.ones(1, 3, 3, 4)).abs().max() < 1e-6
    assert not descriptor_peak(torch.full((1, 4), 9.0), torch.arange(9.0).view(1, 3, 3, 1).expand(1, 3, 3, 4)).any()


def test_border_matches_stay():
    desc0, desc1 = shifted_maps((0.4, 0.4), size=12)
    xy = torch.tensor([[0, 5], [5, 0], [11, 5], [5, 11], [6, 6]])
    refined = refine_matches(desc0, desc1, xy, xy)
    assert torch.equal(refined[:4], xy[:4].double())
    assert not torch.equal(refined[4], xy[4].double())


def test_no_matches_and_dtype():
    desc0, desc1 = shifted_maps((0, 0), size=12, dtype=torch.float32)
    none = torch.zeros(0, 2, dtype=torch.int64)
    assert refine_matches(desc0, desc1, none, none).shape == (0, 2)
    one = torch.tensor([[5, 5]])
    assert refine_matches(desc0, desc1, one, one).dtype == torch.float32
    assert neighbourhood(desc1, one, 2).shape == (1, 5, 5, 24)


def test_gradients():
    desc0, desc1 = (d.requires_grad_() for d in shifted_maps((0.3, 0.2), size=4, D=5))
    xy = torch.tensor([[1, 2], [2, 1]])
    assert torch.autograd.gradcheck(lambda a, b: refine_matches(a, b, xy, xy), (desc0, desc1))


def test_errors_name_the_problem():
    desc0, desc1 = shifted_maps((0, 0), size=12)
    xy = torch.tensor([[3, 4], [4, 3]])
    with pytest.raises(ValueError, match="same number"):
        refine_matches(desc0, desc1, xy, xy[:1])
    with pytest.raises(ValueError, match="method"):
        refine_matches(desc0, desc1, xy, xy, method="cubic")  # type: ignore[arg-type]
