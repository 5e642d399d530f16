"""What a user knows of an image, and how it follows the image when it is resized."""

from __future__ import annotations

import numpy as np
import pytest

from multiview.cameras import Camera
from multiview.images import ImageTransform
from multiview.poses import Pose
from multiview.views import Known, View, ViewConstraints, as_view, fixed, prior

K = np.array([[500.0, 0, 319.5], [0, 510.0, 239.5], [0, 0, 1]])
SIZE = (640, 480)


def test_values_come_from_arrays_cameras_and_poses():
    assert np.array_equal(fixed(Camera(K, *SIZE)).value, K)
    assert np.array_equal(fixed(Pose.identity()).value, np.eye(4))
    assert fixed(K).role == "fixed"
    assert (prior(K, 3.0).role, prior(K, 3.0).weight) == ("prior", 3.0)


def test_nothing_known_is_free():
    assert ViewConstraints().is_free
    assert not ViewConstraints(K=fixed(K)).is_free
    assert as_view("x.jpg").constraints.is_free
    view = View("x.jpg", ViewConstraints(K=fixed(K)))
    assert as_view(view) is view


def test_wrong_values_are_refused():
    with pytest.raises(ValueError, match="role"):
        Known(K, "free")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weight"):
        Known(K, "prior", 0.0)
    with pytest.raises(ValueError, match="K must be"):
        ViewConstraints(K=fixed(-K))
    with pytest.raises(ValueError, match="world_from_cam"):
        ViewConstraints(pose=fixed(2 * np.eye(4)))
    with pytest.raises(ValueError, match="depth"):
        ViewConstraints(depth=fixed(np.ones(3)))
    with pytest.raises(ValueError, match="mask"):
        ViewConstraints(mask=np.ones((2, 2, 3)))


def test_intrinsics_follow_a_resize_and_keep_their_role():
    transform = ImageTransform.resize(SIZE, (320, 240))
    moved = ViewConstraints(K=prior(K, 2.0), pose=fixed(np.eye(4))).transformed(transform)
    assert moved.K is not None
    assert moved.pose is not None
    assert (moved.K.role, moved.K.weight) == ("prior", 2.0)
    np.testing.assert_allclose(moved.K.value, Camera(K, *SIZE).transformed(transform).K)
    assert np.array_equal(moved.pose.value, np.eye(4))


@pytest.mark.parametrize("map_size", [(640, 480), (320, 240), (160, 120)])
def test_depth_of_any_resolution_is_sampled_where_the_pixels_are(map_size):
    """A ramp over the original image reads back at the same places."""
    width, height = map_size
    ramp = (np.arange(width) + 0.5) / width * SIZE[0] - 0.5  # the original column of each map pixel
    known = ViewConstraints(depth=fixed(np.tile(ramp + 1, (height, 1))), mask=np.tile(ramp < 320, (height, 1)))
    transform = ImageTransform.resize(SIZE, (64, 48)).compose(ImageTransform.crop((64, 48), (8, 0, 56, 48)))
    moved = known.transformed(transform)
    assert moved.depth is not None
    assert moved.mask is not None
    assert moved.depth.value.shape == moved.mask.shape == (48, 48)
    columns = transform.inverse().apply(np.stack([np.arange(48), np.zeros(48)], axis=1))[:, 0]
    np.testing.assert_allclose(moved.depth.value[0] - 1, columns, atol=0.5 * SIZE[0] / width + 1e-6)
    assert moved.mask[:, :23].all()
    assert not moved.mask[:, 25:].any()


def test_what_lies_outside_is_unknown():
    known = ViewConstraints(depth=fixed(np.ones((4, 4))), mask=np.ones((4, 4), bool))
    moved = known.transformed(ImageTransform.crop((4, 4), (-2, 0, 4, 4)))
    assert moved.depth is not None
    assert moved.mask is not None
    assert np.isnan(moved.depth.value[:, :2]).all()
    assert not moved.mask[:, :2].any()
    assert (moved.depth.value[:, 2:] == 1).all()
