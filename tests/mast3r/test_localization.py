"""Placing a held-out photo in a reconstruction whose pointmaps are exact."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mast3r.pairs.config import PairConfig
from mast3r.scenes.localization import LocalizeConfig, Localizer, localize
from multiview.cameras import Camera
from multiview.images import ImageTransform
from multiview.pointmaps import Pointmap
from multiview.poses import Pose
from multiview.reconstruction import ReconstructedImage, Reconstruction
from multiview.tracks import Tracks
from tests.dust3r.room_scene import RoomView
from tests.mast3r.perfect_model import HEIGHT, WIDTH, PerfectModel, pixels_of, views_of_room

CONFIG = LocalizeConfig(references=3, pairs=PairConfig(image_size=128))


def reconstruction(views: list[RoomView], worlds: list[int] | None = None, shift: float = 0.0) -> Reconstruction:
    """The truth as a reconstruction; world 1 has a frame of its own, `shift` away."""
    images = []
    for k, view in enumerate(views):
        world = (worlds or [0] * len(views))[k]
        height, width = view.points.shape[:2]
        move = Pose.from_rt(np.eye(3), np.array([0.0, 0.0, shift * world]))
        images.append(
            ReconstructedImage(
                f"photo {k}",
                (width, height),
                "registered",
                camera=Camera(view.K, width, height),
                pose=move.compose(Pose(view.pose)),
                component=world,
                pointmap=Pointmap(move.apply(view.points), np.full((height, width), 10.0), "world"),
                transform=ImageTransform.identity((width, height)),
                colors=pixels_of(view),
            )
        )
    return Reconstruction(tuple(images), Tracks.empty(), "arbitrary")


@pytest.fixture(scope="module")
def views() -> list[RoomView]:
    return views_of_room(6, size=(HEIGHT, WIDTH))


@pytest.fixture(scope="module")
def model(views) -> PerfectModel:
    return PerfectModel(views, scale_noise=0.2)


@pytest.fixture(scope="module")
def scene(views) -> Reconstruction:
    return reconstruction([views[k] for k in (0, 1, 3, 5)])


def pose_error(found: Pose, view: RoomView) -> tuple[float, float]:
    truth = Pose(view.pose)
    return truth.relative(found).angle_deg, float(np.linalg.norm(found.center - truth.center))


@pytest.mark.parametrize("held_out", [2, 4])
@pytest.mark.parametrize("known", ["K", "focal", "nothing"])
def test_a_held_out_photo_is_placed(model, scene, views, held_out, known):
    view = views[held_out]
    given = {"K": {"K": view.K}, "focal": {"focal": view.K[0, 0]}, "nothing": {}}[known]
    place = localize(model, scene, pixels_of(view), config=CONFIG, **given)
    assert place.status == "localized"
    assert place.pose is not None
    assert place.camera is not None
    angle, distance = pose_error(place.pose, view)
    # without K the principal point is half a pixel off: the room's is at the corner of the central pixel
    assert angle < (0.1 if known == "K" else 0.4)
    assert distance < (0.01 if known == "K" else 0.04)
    assert place.camera.focal[0] == pytest.approx(view.K[0, 0], rel=0.02)
    assert place.num_inliers > 0.8 * place.num_matches > 100
    assert len(place.references) == 3
    assert set(place.references) <= {image.name for image in scene.images}


def test_photos_of_the_reconstruction_are_encoded_once(views):
    model = PerfectModel(views)
    scene = reconstruction(views[:4])
    for k in (4, 5):
        localize(model, scene, pixels_of(views[k]), config=CONFIG)
    assert sorted(model.encoded) == [0, 1, 2, 3, 4, 5]


def test_a_saved_reconstruction_places_photos_too(model, scene, views, tmp_path):
    again = Reconstruction.load(scene.save(tmp_path / "scene.npz"))
    one, other = (localize(model, s, pixels_of(views[2]), K=views[2].K, config=CONFIG) for s in (scene, again))
    assert one.pose is not None
    assert other.pose is not None
    np.testing.assert_allclose(one.pose.world_from_cam, other.pose.world_from_cam, atol=1e-6)


def test_the_pose_is_in_the_world_of_its_component():
    views = [*views_of_room(3), *views_of_room(4, seed=5)]
    worlds = [0, 0, 0, 1, 1, 1]
    model = PerfectModel(views, worlds=[*worlds, 1])
    scene = reconstruction(views[:6], worlds, shift=50.0)
    place = localize(model, scene, pixels_of(views[6]), K=views[6].K, config=replace(CONFIG, references=6))
    assert place.component == 1
    assert place.pose is not None
    angle, distance = pose_error(Pose.from_rt(place.pose.rotation, place.pose.center - (0, 0, 50)), views[6])
    assert angle < 0.1
    assert distance < 0.01


def test_a_photo_of_another_place_is_not_placed(views):
    elsewhere = views_of_room(1, seed=9)[0]
    model = PerfectModel([*views, elsewhere], worlds=[0] * len(views) + [1])
    for given in ({}, {"K": elsewhere.K}):
        place = localize(model, reconstruction(views), pixels_of(elsewhere), config=CONFIG, **given)
        assert place.status == "failed"
        assert "agree with one pose" in place.reason
        assert place.pose is None
        assert "failed" in repr(place)


def test_an_unreadable_photo_fails_with_a_reason(model, scene, tmp_path):
    place = localize(model, scene, tmp_path / "missing.jpg", config=CONFIG)
    assert place.status == "failed"
    assert "missing.jpg" in place.reason


def test_points_without_confidence_are_not_used(model, scene, views):
    first = scene.images[0]
    assert first.pointmap is not None
    wild = np.where(np.arange(first.size[0])[None, :, None] < 40, 1e3, first.pointmap.points)
    low = np.where(np.arange(first.size[0])[None] < 40, 1.0, first.pointmap.confidence)
    images = (replace(first, pointmap=Pointmap(wild, low, "world")),)
    config = replace(CONFIG, unsure_percentile=40.0)
    place = localize(model, Reconstruction(images, Tracks.empty(), "arbitrary"), pixels_of(views[1]), config=config)
    assert place.num_inliers > 0.9 * place.num_matches


def test_wrong_options_are_refused(model, scene, views):
    photo = pixels_of(views[2])
    with pytest.raises(ValueError, match="either K or focal"):
        localize(model, scene, photo, K=np.eye(3), focal=100.0)
    with pytest.raises(ValueError, match="positive number"):
        localize(model, scene, photo, focal=-1.0)
    with pytest.raises(ValueError, match="references"):
        LocalizeConfig(references=0)
    with pytest.raises(ValueError, match="unsure_percentile"):
        LocalizeConfig(unsure_percentile=100)
    bare = replace(scene, images=tuple(replace(image, pointmap=None) for image in scene.images))
    with pytest.raises(ValueError, match="has a pointmap"):
        Localizer(model, bare)
