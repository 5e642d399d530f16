"""Laws of the affine maps between pixel grids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multiview.cameras import Camera
from multiview.images import ImageTransform

sides = st.integers(16, 6000)
sizes = st.tuples(sides, sides)
coordinates = st.floats(-1e4, 1e4, allow_nan=False)
points = st.lists(st.tuples(coordinates, coordinates), min_size=1, max_size=5).map(np.array)


@st.composite
def steps(draw, size):
    """One resize, crop or turn that starts at `size`."""
    kind = draw(st.sampled_from(["resize", "crop", "turn"]))
    if kind == "resize":
        return ImageTransform.resize(size, draw(sizes))
    if kind == "turn":
        return ImageTransform.turn(size, draw(st.integers(1, 8)))
    left, top = draw(st.integers(0, size[0] - 1)), draw(st.integers(0, size[1] - 1))
    right, bottom = draw(st.integers(left + 1, size[0])), draw(st.integers(top + 1, size[1]))
    return ImageTransform.crop(size, (left, top, right, bottom))


@st.composite
def chains(draw, length=3):
    transform = ImageTransform.identity(draw(sizes))
    parts = []
    for _ in range(length):
        parts.append(draw(steps(transform.size_to)))
        transform = transform.compose(parts[-1])
    return transform, parts


@given(chains(), points)
@settings(deadline=None)
def test_compose_equals_applying_in_turn(chain, xy):
    transform, parts = chain
    expected = xy.astype(float)
    for part in parts:
        expected = part.apply(expected)
    # Relative to the size of the numbers involved: chains may enlarge by factors of thousands.
    np.testing.assert_allclose(transform.apply(xy), expected, rtol=1e-9, atol=1e-6)


@given(chains(), points)
@settings(deadline=None)
def test_inverse_returns_to_the_start(chain, xy):
    transform, _ = chain
    inverse = transform.inverse()
    assert inverse.size_from == transform.size_to
    assert inverse.size_to == transform.size_from
    np.testing.assert_allclose(inverse.apply(transform.apply(xy)), xy, atol=1e-6)
    round_trip = transform.compose(inverse)
    np.testing.assert_allclose(round_trip.apply(xy), xy, atol=1e-6)


@given(sizes, sizes)
@settings(deadline=None)
def test_resize_keeps_the_outer_edges(size_from, size_to):
    transform = ImageTransform.resize(size_from, size_to)
    corners = np.array([(-0.5, -0.5), (size_from[0] - 0.5, size_from[1] - 0.5)])
    expected = np.array([(-0.5, -0.5), (size_to[0] - 0.5, size_to[1] - 0.5)])
    np.testing.assert_allclose(transform.apply(corners), expected, atol=1e-6)
    xy = np.array([3.0, 7.0])
    scale = np.array(size_to) / size_from
    np.testing.assert_allclose(transform.apply(xy), (xy + 0.5) * scale - 0.5, atol=1e-6)


@given(sizes, st.integers(1, 8))
@settings(deadline=None)
def test_turns_map_the_image_onto_the_image(size, orientation):
    turn = ImageTransform.turn(size, orientation)
    corners = turn.apply([(0, 0), (size[0] - 1, size[1] - 1)])
    np.testing.assert_array_equal(corners.min(axis=0), (0, 0))
    np.testing.assert_array_equal(corners.max(axis=0), np.array(turn.size_to) - 1)
    assert abs(abs(np.linalg.det(turn.matrix)) - 1) < 1e-12


@given(sizes, sizes, points)
@settings(deadline=None)
def test_camera_of_resized_image_projects_to_mapped_pixels(size_from, size_to, xy):
    camera = Camera.from_focal(1.2 * max(size_from), *size_from)
    transform = ImageTransform.resize(size_from, size_to)
    rays = camera.unproject(xy)
    np.testing.assert_allclose(
        camera.transformed(transform).project(rays),
        transform.apply(camera.project(rays)),
        rtol=1e-9,
        atol=1e-6,
    )


@given(sizes, st.integers(0, 3))
def test_shapes_are_kept(size, ndim):
    xy = np.zeros((2,) * ndim + (2,), dtype=np.float32)
    out = ImageTransform.identity(size).apply(xy)
    assert out.shape == xy.shape
    assert out.dtype == np.float64


def test_inside_counts_pixel_areas():
    crop = ImageTransform.crop((100, 80), (10, 20, 30, 40))
    assert crop.inside(np.array([(9.4, 20), (9.5, 20), (29.4, 39.4), (29.5, 30)])).tolist() == [
        False,
        True,
        True,
        False,
    ]


def test_transform_is_immutable():
    transform = ImageTransform.identity((20, 20))
    with pytest.raises(ValueError, match="read-only"):
        transform.matrix[0, 0] = 2
    with pytest.raises(AttributeError):
        transform.size_to = (1, 1)


@pytest.mark.parametrize(
    ("matrix", "size", "word"),
    [
        (np.zeros((3, 3)), (10, 10), "invertible"),
        (np.full((3, 3), np.nan), (10, 10), "invertible"),
        (np.eye(4), (10, 10), "invertible"),
        (np.array([[1, 0, 0], [0, 1, 0], [1e-3, 0, 1]]), (10, 10), "affine"),
        (np.eye(3), (0, 10), "positive"),
    ],
)
def test_bad_transforms(matrix, size, word):
    with pytest.raises(ValueError, match=word):
        ImageTransform(matrix, size, size)


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="compose"):
        ImageTransform.identity((10, 10)).compose(ImageTransform.identity((11, 10)))
    with pytest.raises(ValueError, match=r"1\.\.8"):
        ImageTransform.turn((10, 10), 9)
