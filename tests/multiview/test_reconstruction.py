"""Reconstructions: honest fields, worlds and scales, round trips."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from multiview.cameras import Camera
from multiview.images import ImageTransform
from multiview.pointmaps import Pointmap
from multiview.poses import Pose
from multiview.reconstruction import ReconstructedImage, Reconstruction, Tracks
from multiview.triangulation import reprojection_errors
from tests.multiview.synthetic_pair import make_pair, rotation
from tests.multiview.synthetic_scene import Scene, make_reconstruction, make_scene

FAILED = ReconstructedImage("lost.jpg", (30, 20), "failed", "It has no matches with any other image.")


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Eight cameras and points."""
    return make_scene()


@pytest.fixture(scope="module")
def whole(scene: Scene) -> Reconstruction:
    """The truth with pointmaps and a failed image at the end."""
    made = make_reconstruction(scene, pointmaps=True)
    return replace(made, images=(*made.images, FAILED))


def two_parts(scene: Scene) -> Reconstruction:
    """The first five images in component 0, the others in a world of their own."""
    made = make_reconstruction(scene, pointmaps=True)
    images = tuple(replace(image, component=int(i > 4)) for i, image in enumerate(made.images))
    first = np.isin(made.tracks.point_index, made.tracks.point_index[made.tracks.image_index > 4], invert=True)
    return replace(made, images=images, tracks=made.tracks.filter_observations(first | (made.tracks.image_index > 4)))


def check_consistent(reconstruction: Reconstruction, tolerance_px: float = 1e-2) -> None:
    """Tracks and pointmaps agree with the cameras."""
    assert reprojection_errors(reconstruction.images, reconstruction.tracks).max() < tolerance_px
    for image in (reconstruction.images[i] for i in reconstruction.registered):
        if image.pointmap is None:
            continue
        ys, xs = np.nonzero(image.pointmap.valid)
        seen = image.camera.project(image.pose.inverse().apply(image.pointmap.points[ys, xs]))
        np.testing.assert_allclose(image.transform.apply(seen), np.stack([xs, ys], axis=1), atol=tolerance_px)


def test_facts(whole: Reconstruction, scene: Scene):
    assert len(whole) == 9
    assert whole.registered == tuple(range(8))
    assert whole.components == (0,)
    assert list(whole.poses) == list(scene.names)
    assert "8 of 9 images registered" in repr(whole)
    assert "metric-predicted" in repr(whole)
    assert "failed: It has no matches" in repr(whole.image("lost.jpg"))
    assert "FAILED".lower() in whole._repr_html_()
    summary = json.loads(json.dumps(whole.summary()))
    assert summary["num_registered"] == 8
    assert summary["images"][-1]["reason"] == FAILED.reason
    with pytest.raises(ValueError, match=r"no image named 'x\.jpg'"):
        whole.image("x.jpg")
    check_consistent(whole)


def test_reconstructed_image_refuses_contradictions():
    camera, pose = Camera.from_focal(50, 30, 20), Pose.identity()
    good = {"name": "a", "size": (30, 20), "status": "registered", "camera": camera, "pose": pose}
    ReconstructedImage(**good)
    transform = ImageTransform.resize((30, 20), (15, 10))
    pointmap = Pointmap(np.zeros((10, 15, 3)), np.ones((10, 15)), "world")
    for change, message in (
        ({"name": ""}, "name"),
        ({"status": "lost"}, "one of"),
        ({"camera": None}, "camera and a pose"),
        ({"status": "failed", "reason": "why"}, "no camera"),
        ({"status": "failed", "camera": None, "pose": None}, "reason"),
        ({"component": -1}, "component"),
        ({"size": (20, 30)}, "original size"),
        ({"transform": transform, "pointmap": pointmap, "colors": np.zeros((9, 15, 3), np.uint8)}, "model size"),
        ({"colors": np.zeros((10, 15, 3))}, "uint8"),
    ):
        with pytest.raises(ValueError, match=message):
            ReconstructedImage(**good | change)


def test_tracks_refuse_contradictions():
    good = {
        "points": np.zeros((2, 3)),
        "colors": np.zeros((2, 3)),
        "point_index": [0, 1],
        "image_index": [0, 0],
        "xy": np.zeros((2, 2)),
    }
    assert len(Tracks(**good)) == 2
    for change in ({"points": np.zeros((2, 2))}, {"colors": np.zeros((3, 3))}, {"xy": np.zeros((3, 2))}):
        with pytest.raises(ValueError, match="Tracks needs"):
            Tracks(**good | change)
    for change in ({"point_index": [0, 2]}, {"image_index": [-1, 0]}):
        with pytest.raises(ValueError, match="index"):
            Tracks(**good | change)
    with pytest.raises(ValueError, match="mask"):
        Tracks(**good).filter(np.ones(3, bool))
    with pytest.raises(ValueError, match="mask"):
        Tracks(**good).filter_observations(np.ones(3, bool))
    assert len(Tracks.empty()) == 0
    assert "0 points" in repr(Tracks.empty())


def test_reconstruction_refuses_contradictions(whole: Reconstruction):
    with pytest.raises(ValueError, match="repeats"):
        Reconstruction((FAILED, FAILED), Tracks.empty(), "arbitrary")
    with pytest.raises(ValueError, match="scale_status"):
        replace(whole, scale_status="metric")
    with pytest.raises(ValueError, match="only 3 images"):
        replace(whole, images=whole.images[:3])
    with pytest.raises(ValueError, match="not registered"):
        replace(whole, images=(FAILED, *whole.images[1:8]))


def test_tracks_filter(whole: Reconstruction):
    tracks = whole.tracks
    kept = tracks.filter(tracks.lengths >= 6)
    assert len(kept) == (tracks.lengths >= 6).sum()
    assert (kept.lengths >= 6).all()
    check_consistent(replace(whole, tracks=kept))
    fewer = tracks.filter_observations(tracks.image_index < 3, least=2)
    assert fewer.image_index.max() == 2
    assert fewer.lengths.min() >= 2
    check_consistent(replace(whole, tracks=fewer))


def test_points_are_the_confident_ones(whole: Reconstruction, scene: Scene):
    points, colors = whole.points(0)
    assert len(points) == sum(image.pointmap.valid.sum() for image in whole.images if image.pointmap)
    assert points.dtype == np.float32
    assert colors.dtype == np.uint8
    half, _ = whole.points(50)
    assert len(half) == pytest.approx(len(points) / 2, rel=0.02)
    sparse, colors = make_reconstruction(scene).points()
    np.testing.assert_allclose(sparse, whole.tracks.points, atol=1e-6)
    np.testing.assert_array_equal(colors, whole.tracks.colors)
    assert len(Reconstruction((FAILED,), Tracks.empty(), "arbitrary").points()[0]) == 0


def test_transformed_moves_everything(whole: Reconstruction):
    moved = whole.transformed(2.0, rotation((1, 2, 3), 40), np.array([1, -2, 3]))
    check_consistent(moved)
    assert moved.images[0].pose.center == pytest.approx(
        2 * rotation((1, 2, 3), 40) @ whole.images[0].pose.center + (1, -2, 3)
    )
    assert whole.transformed().images[0].pose.center == pytest.approx(whole.images[0].pose.center)
    assert moved.scale_status == whole.scale_status


def test_rescale_by_a_known_distance(whole: Reconstruction, scene: Scene):
    arbitrary = replace(whole.transformed(0.37), scale_status="arbitrary")
    a, b = scene.names[0], scene.names[5]
    pixel_a, pixel_b = (200.3, 400.2), (320.0, 433.7)  # both on the floor
    truth = np.linalg.norm(whole.point_at(a, pixel_a) - whole.point_at(b, pixel_b))
    assert truth > 0.5
    rays = [whole.image(name).camera.unproject(np.array(xy)) for name, xy in ((a, pixel_a), (b, pixel_b))]
    for name, ray, xy in zip((a, b), rays, (pixel_a, pixel_b)):
        direction = whole.image(name).pose.rotation @ ray
        center = whole.image(name).pose.center
        exact = center + direction * (1.2 - center[1]) / direction[1]
        np.testing.assert_allclose(whole.point_at(name, xy), exact, atol=2e-2)
    metric = arbitrary.rescale(known_distance=((a, pixel_a), (b, pixel_b), truth))
    assert metric.scale_status == "metric-given"
    np.testing.assert_allclose(metric.tracks.points, whole.tracks.points, rtol=1e-4)
    check_consistent(metric)


def test_rescale_by_tracked_points(scene: Scene):
    sparse = make_reconstruction(scene)
    first, second = np.flatnonzero(sparse.tracks.image_index == 2)[:2]
    pixels = [tuple(sparse.tracks.xy[m] + 0.4) for m in (first, second)]
    a, b = sparse.tracks.points[sparse.tracks.point_index[[first, second]]]
    name = scene.names[2]
    found = sparse.transformed(3).rescale(known_distance=((name, pixels[0]), (name, pixels[1]), np.linalg.norm(a - b)))
    np.testing.assert_allclose(found.tracks.points, sparse.tracks.points)
    with pytest.raises(ValueError, match="no tracked point near"):
        sparse.point_at(name, (-99, -99))


def test_rescale_by_known_poses(whole: Reconstruction, scene: Scene):
    other = replace(whole.transformed(0.2, rotation((3, 1, 0), 77), np.ones(3)), scale_status="arbitrary")
    for count in (2, 3, 8):
        given = dict(zip(scene.names[:count], scene.poses))
        back = other.rescale(poses=given)
        assert back.scale_status == "metric-given"
        np.testing.assert_allclose(back.tracks.points, whole.tracks.points, atol=1e-6)
        check_consistent(back)


def test_rescale_refusals(whole: Reconstruction, scene: Scene):
    name, inside = scene.names[0], (200.0, 400.0)
    for given, message in (
        ({}, "either"),
        ({"known_distance": ((name, inside), (name, inside), 1.0)}, "same point"),
        ({"known_distance": ((name, inside), (name, (99, 399)), -1.0)}, "positive"),
        ({"known_distance": ((name, inside), ("x", inside), 1.0)}, "no image named"),
        ({"known_distance": ((name, inside), ("lost.jpg", (3, 3)), 1.0)}, "no pointmap"),
        ({"known_distance": ((name, inside), (name, (9999, 0)), 1.0)}, "outside"),
        ({"poses": {name: scene.poses[0]}}, "at least two"),
        ({"poses": {name: scene.poses[0], "x": scene.poses[1]}}, "no image named"),
        ({"poses": {name: scene.poses[0], scene.names[1]: scene.poses[0]}}, "different places"),
    ):
        with pytest.raises(ValueError, match=message):
            whole.rescale(**given)
    with pytest.raises(ValueError, match="2 components"):
        two_parts(scene).rescale(poses=dict(zip(scene.names, scene.poses)))


def test_point_at_an_edge_takes_one_surface():
    """Between a near and a far pixel there is nothing to interpolate."""
    points = np.zeros((4, 4, 3))
    points[..., 2] = np.where(np.arange(4) < 2, 1.0, 5.0)
    image = ReconstructedImage(
        "a",
        (16, 16),
        "registered",
        camera=Camera.from_focal(9, 16, 16),
        pose=Pose.identity(),
        pointmap=Pointmap(points, np.ones((4, 4)), "world"),
        transform=ImageTransform.resize((16, 16), (4, 4)),
    )
    depths = [image.point_at((x, 8))[2] for x in np.linspace(0, 15, 50)]
    assert set(np.round(depths, 6)) == {1.0, 5.0}


@pytest.mark.parametrize("level", [True, False])
def test_align_by_given_gravity(whole: Reconstruction, level: bool):
    R = rotation((1, 0.2, 0.5), 65)
    turned = whole.transformed(R=R)
    gravity = R @ (0, 1, 0)
    back = turned.align(3 * gravity) if level else turned.align(-gravity)
    up = 1 if level else -1
    floor = np.concatenate([image.pointmap.points.reshape(-1, 3) for image in back.images[:8]])
    assert np.nanmin(np.abs(up * floor[:, 1] - 1.2)) < 1e-5
    check_consistent(back)
    assert back.scale_status == whole.scale_status


def test_align_estimates_gravity(whole: Reconstruction):
    """Cameras that are held level but for a few degrees, and a floor that makes it exact."""
    rng = np.random.default_rng(0)
    R = rotation((1, 0.2, 0.5), 65)
    for with_maps, tolerance in ((True, 0.2), (False, 3.0)):
        images = []
        for image in whole.images[:8]:
            roll = Pose.from_rt(image.pose.rotation @ rotation((0, 0, 1), rng.normal(0, 2)), image.pose.center)
            images.append(replace(image, pose=roll, pointmap=image.pointmap if with_maps else None))
        aligned = Reconstruction(tuple(images), Tracks.empty(), "arbitrary").transformed(R=R).align()
        down = aligned.images[0].pose.rotation @ images[0].pose.rotation.T @ (0, 1, 0)
        assert np.degrees(np.arccos(np.clip(down[1], -1, 1))) < tolerance


def test_align_one_camera(whole: Reconstruction):
    """A single camera's y axis decides."""
    one = replace(whole.images[0], pose=Pose.from_rt(rotation((0, 0, 1), 90), np.zeros(3)), pointmap=None)
    aligned = Reconstruction((one,), Tracks.empty(), "arbitrary").align()
    np.testing.assert_allclose(aligned.images[0].pose.rotation[:, 1], (0, 1, 0), atol=1e-6)


def test_align_refusals(whole: Reconstruction, scene: Scene):
    with pytest.raises(ValueError, match="gravity"):
        whole.align(np.zeros(3))
    with pytest.raises(ValueError, match="registered"):
        Reconstruction((FAILED,), Tracks.empty(), "arbitrary").align()
    with pytest.raises(ValueError, match="2 components"):
        two_parts(scene).align(np.array([0, 1, 0]))


def test_components_have_worlds_of_their_own(scene: Scene):
    parts = two_parts(scene)
    assert parts.components == (0, 1)
    first, second = parts.part(0), parts.part(1)
    assert first.registered == tuple(range(5))
    assert second.registered == (5, 6, 7)
    assert "component 1" in first.images[6].reason
    assert len(first.tracks.point_index) + len(second.tracks.point_index) == len(parts.tracks.point_index)
    assert len(parts.points(0)[0]) + len(parts.points(0, component=1)[0]) == len(
        make_reconstruction(scene, pointmaps=True).points(0)[0]
    )
    with pytest.raises(ValueError, match="component must be"):
        parts.part(2)
    tilted = replace(
        parts,
        images=tuple(
            image.transformed(similarity_of(image.component)) if image.registered else image for image in parts.images
        ),
        tracks=Tracks.empty(),
    )
    aligned = tilted.align()
    for image, true in zip(aligned.images, parts.images):
        assert image.pose.rotation[1, 1] == pytest.approx(true.pose.rotation[1, 1], abs=0.02)


def similarity_of(component: int):
    from multiview.similarity import Similarity

    return Similarity(1.0, rotation((1, 1, 0), 20 + 30 * component), np.zeros(3))


def test_align_moves_tracks_with_their_component(scene: Scene):
    check_consistent(two_parts(scene).align())


def test_npz_holds_everything(tmp_path: Path, whole: Reconstruction, scene: Scene):
    original = replace(
        whole, images=(replace(whole.images[0], path=Path("x/a.jpg"), reason="few matches"), *whole.images[1:])
    )
    for saved in (original, two_parts(scene), make_reconstruction(scene)):
        loaded = Reconstruction.load(saved.save(tmp_path / "scene.npz"))
        assert loaded.summary() == saved.summary()
        for name in ("points", "colors", "point_index", "image_index", "xy"):
            np.testing.assert_array_equal(getattr(loaded.tracks, name), getattr(saved.tracks, name))
            assert getattr(loaded.tracks, name).dtype == getattr(saved.tracks, name).dtype
        for a, b in zip(loaded.images, saved.images):
            assert (a.pointmap is None, a.colors is None) == (b.pointmap is None, b.colors is None)
            if a.pointmap is not None and b.pointmap is not None:
                np.testing.assert_array_equal(a.pointmap.points, b.pointmap.points)
                np.testing.assert_array_equal(a.pointmap.confidence, b.pointmap.confidence)
                np.testing.assert_array_equal(a.colors, b.colors)


def test_loading_other_files_is_refused(tmp_path: Path):
    pair = make_pair().save(tmp_path / "pair.npz")
    (tmp_path / "text.npz").write_text("text")
    for path in (pair, tmp_path / "text.npz"):
        with pytest.raises(ValueError, match=path.name):
            Reconstruction.load(path)
    with pytest.raises(FileNotFoundError):
        Reconstruction.load(tmp_path / "none.npz")


def test_pair_becomes_a_reconstruction():
    pair = make_pair()
    scene = pair.to_reconstruction()
    assert scene.registered == (0, 1)
    assert scene.scale_status == pair.scale_status
    assert len(scene.tracks) > 0.9 * len(pair.matches)
    np.testing.assert_allclose(scene.tracks.points[:, 2], 2, atol=1e-3)
    check_consistent(scene, 0.05)
    assert [image.name for image in scene.images] == ["image0", "image1"]
    np.testing.assert_array_equal(scene.points(0)[1][: pair.colors(0).size // 3], pair.colors(0).reshape(-1, 3))
    alone = make_pair(pose=False).to_reconstruction(("a", "b"))
    assert alone.registered == (0,)
    assert "pose" in alone.image("b").reason
    assert len(alone.tracks) == 0


def test_plot(whole: Reconstruction):
    picture = whole.plot(height=120)
    assert picture.height == 120
    assert len(np.unique(np.array(picture).reshape(-1, 3), axis=0)) > 20
    assert Reconstruction((FAILED,), Tracks.empty(), "arbitrary").plot(height=50).height == 50
