"""COLMAP as a back end, for real: bundle adjustment and both mappers on projected points."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pycolmap")

from multiview.cameras import Camera
from multiview.colmap import (
    BundleConfig,
    MapperConfig,
    bundle_adjust,
    reconstruct_from_matches,
    triangulate,
    write_database,
)
from multiview.matches import Matches
from multiview.poses import Pose
from multiview.reconstruction import Reconstruction, Tracks
from multiview.similarity import similarity_from_poses
from multiview.track_building import link_matches
from multiview.triangulation import reprojection_errors
from tests.multiview.synthetic_pair import rotation
from tests.multiview.synthetic_scene import Scene, make_matches, make_reconstruction, make_scene

ONE_THREAD = MapperConfig(num_threads=1)


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Eight cameras and points."""
    return make_scene()


def pictures(scene: Scene) -> dict[str, np.ndarray]:
    return {name: np.full((height, width, 3), 7, np.uint8) for name, (width, height) in scene.sizes.items()}


def errors(found: Reconstruction, scene: Scene) -> tuple[float, float]:
    """Largest error of a centre (of a scene 3 wide) and of a rotation in degrees, after a similarity."""
    numbers = found.registered
    truth = [scene.poses[i] for i in numbers]
    similarity = similarity_from_poses([found.images[i].pose for i in numbers], truth)
    moved = [similarity.apply_pose(found.images[i].pose) for i in numbers]
    centers = max(float(np.linalg.norm(a.center - b.center)) for a, b in zip(moved, truth))
    return centers, max(a.relative(b).angle_deg for a, b in zip(moved, truth))


def shaken(made: Reconstruction, *, focal: float = 1.0, seed: int = 0) -> Reconstruction:
    """Poses and points a little off."""
    rng = np.random.default_rng(seed)
    images = []
    for image in made.images:
        R = rotation(rng.normal(size=3), 0.5) @ image.pose.rotation
        pose = Pose.from_rt(R, image.pose.center + rng.normal(0, 0.03, 3))
        camera = Camera.from_focal(image.camera.focal[0] * focal, *image.size)
        images.append(replace(image, pose=pose, camera=camera))
    points = made.tracks.points + rng.normal(0, 0.03, made.tracks.points.shape)
    return replace(made, images=tuple(images), tracks=replace(made.tracks, points=points))


def test_bundle_adjustment_finds_the_truth(scene: Scene):
    start = shaken(make_reconstruction(scene, pointmaps=True), focal=1.02)
    assert errors(start, scene)[0] > 0.02
    refined = bundle_adjust(start, BundleConfig(num_threads=1))
    assert np.median(reprojection_errors(refined.images, refined.tracks)) < 1e-3
    assert errors(refined, scene)[0] < 1e-4
    assert [i.camera.focal[0] for i in refined.images] == pytest.approx([c.focal[0] for c in scene.cameras], rel=1e-4)
    back = similarity_from_poses(list(refined.poses.values()), list(start.poses.values()))
    assert back.scale == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(back.R, np.eye(3), atol=1e-6)
    for new, old in zip(refined.images, start.images):
        # the same depth in the same pixels, though the focal length is another
        rays = [image.pose.inverse().apply(image.pointmap.points) @ image.camera.K.T for image in (new, old)]
        np.testing.assert_allclose(rays[0], rays[1], rtol=1e-4, atol=1e-3)
    assert refined.scale_status == start.scale_status


def test_bundle_adjustment_keeps_what_is_fixed(scene: Scene):
    start = shaken(make_reconstruction(scene), focal=1.01)
    poses_only = bundle_adjust(start, BundleConfig(refine_focal=False, num_threads=1))
    assert [i.camera.focal for i in poses_only.images] == [i.camera.focal for i in start.images]
    assert poses_only.images[3].pose.center != pytest.approx(start.images[3].pose.center, abs=1e-3)
    for config in (BundleConfig(refine_poses=False), BundleConfig(fixed_poses=scene.names)):
        still = bundle_adjust(start, replace(config, num_threads=1))
        for a, b in zip(still.images, start.images):
            np.testing.assert_allclose(a.pose.world_from_cam, b.pose.world_from_cam, atol=1e-12)
    held = scene.names[:3]
    truth = make_reconstruction(scene)
    images = tuple(t if t.name in held else s for t, s in zip(truth.images, shaken(truth).images))
    exact = bundle_adjust(replace(shaken(truth), images=images), BundleConfig(fixed_poses=held, num_threads=1))
    for a, b in zip(exact.images, truth.images):
        np.testing.assert_allclose(a.pose.world_from_cam, b.pose.world_from_cam, atol=1e-12 if a.name in held else 1e-4)


def test_bundle_adjustment_drops_outliers(scene: Scene):
    made = make_reconstruction(scene)
    rng = np.random.default_rng(0)
    wrong = rng.random(len(made.tracks.xy)) < 0.05
    xy = made.tracks.xy + np.where(wrong[:, None], 40, 0)
    start = shaken(replace(made, tracks=replace(made.tracks, xy=xy)))
    refined = bundle_adjust(start, BundleConfig(max_error_px=2, num_threads=1))
    assert errors(refined, scene)[0] < 1e-2
    assert len(refined.tracks.xy) == pytest.approx((~wrong).sum(), rel=0.01)


def test_bundle_adjustment_of_components(scene: Scene):
    made = make_reconstruction(scene)
    images = tuple(replace(image, component=int(i > 3)) for i, image in enumerate(made.images))
    second = made.tracks.image_index > 3
    tracks = [made.tracks.filter_observations(keep, least=2) for keep in (~second, second)]
    both = Tracks(
        np.concatenate([t.points for t in tracks]),
        np.concatenate([t.colors for t in tracks]),
        np.concatenate([tracks[0].point_index, tracks[1].point_index + len(tracks[0])]),
        np.concatenate([t.image_index for t in tracks]),
        np.concatenate([t.xy for t in tracks]),
    )
    refined = bundle_adjust(shaken(replace(made, images=images, tracks=both)), BundleConfig(num_threads=1))
    assert np.median(reprojection_errors(refined.images, refined.tracks)) < 1e-3


def test_bundle_adjustment_refusals(scene: Scene):
    made = make_reconstruction(scene, tracks=False)
    with pytest.raises(ValueError, match="needs tracks"):
        bundle_adjust(made)
    with pytest.raises(ValueError, match="no image named"):
        bundle_adjust(make_reconstruction(scene), BundleConfig(fixed_poses=["x"]))
    for wrong in (
        {"loss": "l7"},
        {"loss_scale_px": 0},
        {"max_error_px": -1},
        {"max_iterations": 0},
        {"tolerance": -1e-9},
        {"shared_focal": 1},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            BundleConfig(**wrong)


def test_triangulate_makes_tracks(scene: Scene):
    made = triangulate(make_reconstruction(scene, tracks=False), make_matches(scene, noise_px=0.3, outliers=0.1))
    assert len(made.tracks) > 250
    distance = np.linalg.norm(made.tracks.points[:, None] - scene.points[None], axis=-1).min(axis=1)
    assert np.median(distance) < 5e-3


@pytest.mark.parametrize("mapper", ["incremental", "global"])
@pytest.mark.parametrize("known", [True, False])
def test_mappers_find_the_cameras(scene: Scene, mapper, known: bool, caplog: pytest.LogCaptureFixture):
    cameras = dict(zip(scene.names, scene.cameras)) if known else None
    matches = make_matches(scene, noise_px=0.3, outliers=0.15)
    found = reconstruct_from_matches(pictures(scene), cameras, matches, mapper=mapper, config=ONE_THREAD)
    assert found.registered == tuple(range(8))
    assert found.components == (0,)
    assert found.scale_status == "arbitrary"
    centers, degrees = errors(found, scene)
    assert centers < 0.05
    assert degrees < 0.5
    assert [i.camera.focal[0] for i in found.images] == pytest.approx([c.focal[0] for c in scene.cameras], rel=0.02)
    assert len(found.tracks) > 200
    assert np.median(reprojection_errors(found.images, found.tracks)) < 1
    assert (found.tracks.colors == 7).all()
    assert set(found.timings) == {"link", "verify", "map"}


def test_fixed_intrinsics_stay(scene: Scene):
    cameras = dict(zip(scene.names, scene.cameras))
    matches = make_matches(scene, noise_px=0.3)
    found = reconstruct_from_matches(
        pictures(scene), cameras, matches, config=MapperConfig(fix_intrinsics=True, num_threads=1)
    )
    for image, camera in zip(found.images, scene.cameras):
        np.testing.assert_allclose(image.camera.K, camera.K, atol=1e-9)


def test_pixels_are_ours_again(scene: Scene):
    """Exact matches and cameras: half a pixel lost anywhere would show."""
    cameras = dict(zip(scene.names, scene.cameras))
    found = reconstruct_from_matches(
        pictures(scene), cameras, make_matches(scene), config=MapperConfig(fix_intrinsics=True, num_threads=1)
    )
    assert errors(found, scene)[0] < 1e-4
    assert reprojection_errors(found.images, found.tracks).max() < 1e-2


def test_failures_are_sentences(scene: Scene):
    rng = np.random.default_rng(0)
    matches = make_matches(scene, pairs=[(i, j) for i in range(5) for j in range(i + 1, 5)])
    size = scene.sizes[scene.names[6]]
    noise = rng.uniform(0, 400, (2, 40, 2))
    matches[scene.names[5], scene.names[6]] = Matches(
        noise[0], noise[1], np.ones(40), scene.sizes[scene.names[5]], size
    )
    found = reconstruct_from_matches(pictures(scene), dict(zip(scene.names, scene.cameras)), matches, config=ONE_THREAD)
    assert found.registered == tuple(range(5))
    assert "agrees" in found.images[5].reason
    assert found.images[7].reason == "It has no matches with any other image."
    nothing = reconstruct_from_matches(pictures(scene), None, {}, config=ONE_THREAD)
    assert nothing.registered == ()
    with_global = reconstruct_from_matches(pictures(scene), None, {}, mapper="global", config=ONE_THREAD)
    assert with_global.registered == ()


def test_focal_lengths_that_no_camera_has_are_failures(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    pycolmap = pytest.importorskip("pycolmap")
    mapped = pycolmap.incremental_mapping

    def confused(*arguments):
        models = mapped(*arguments)
        for model in models.values():
            camera = model.cameras[model.images[3].camera_id]
            camera.params = [-1000 * camera.params[0], *camera.params[1:]]
        return models

    monkeypatch.setattr(pycolmap, "incremental_mapping", confused)
    found = reconstruct_from_matches(pictures(scene), None, make_matches(scene), config=ONE_THREAD)
    assert found.registered == (0, 1, 3, 4, 5, 6, 7)
    assert "could not place it" in found.images[2].reason
    assert 2 not in found.tracks.image_index


def test_separate_sets_are_components():
    """Two sets of images without matches between them."""
    scenes = [make_scene(5, seed=seed) for seed in (0, 1)]
    images, cameras, matches = {}, {}, {}
    for scene, prefix in zip(scenes, ("a/", "b/")):
        images |= {prefix + name: picture for name, picture in pictures(scene).items()}
        cameras |= {prefix + name: camera for name, camera in zip(scene.names, scene.cameras)}
        matches |= {(prefix + a, prefix + b): found for (a, b), found in make_matches(scene).items()}
    found = reconstruct_from_matches(images, cameras, matches, config=ONE_THREAD)
    assert found.components == (0, 1)
    assert len({image.component for image in found.images[:5]}) == 1
    assert reprojection_errors(found.images, found.tracks).max() < 4


def test_odd_names_pass(tmp_path: Path):
    scene = make_scene(4, spaces="my [odd] ")
    cameras = dict(zip(scene.names, scene.cameras))
    found = reconstruct_from_matches(pictures(scene), cameras, make_matches(scene), config=ONE_THREAD)
    assert [image.name for image in found.images] == list(scene.names)
    assert found.registered == (0, 1, 2, 3)


def test_database(tmp_path: Path, scene: Scene):
    import pycolmap

    graph = link_matches(scene.names, make_matches(scene))
    path = write_database(tmp_path / "deep" / "database.db", dict(zip(scene.names, scene.cameras)), graph)
    database = pycolmap.Database.open(str(path))
    assert (database.num_images(), database.num_matched_image_pairs()) == (8, 28)
    np.testing.assert_allclose(database.read_keypoints(3)[:, :2], graph.keypoints[2] + 0.5, atol=1e-5)
    np.testing.assert_array_equal(database.read_matches(1, 2), graph.pairs[0, 1])
    database.close()
    assert [file.name for file in path.parent.iterdir()] == ["database.db"]
    with pytest.raises(ValueError, match="no camera for image"):
        write_database(path, {}, graph)


def test_mapping_refusals(scene: Scene):
    cameras = dict(zip(scene.names, scene.cameras))
    matches = make_matches(scene, pairs=[(0, 1)])
    with pytest.raises(ValueError, match="mapper must be"):
        reconstruct_from_matches(pictures(scene), cameras, matches, mapper="magic")
    with pytest.raises(ValueError, match="its camera is of size"):
        reconstruct_from_matches(pictures(scene), {scene.names[0]: Camera.from_focal(9, 9, 9)}, matches)
    small = {name: picture[::2] for name, picture in pictures(scene).items()}
    with pytest.raises(ValueError, match="its matches"):
        reconstruct_from_matches(small, None, matches)
    for wrong in ({"max_error_px": 0}, {"min_inliers": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            MapperConfig(**wrong)


def test_colmap_does_not_talk(scene: Scene, capfd: pytest.CaptureFixture):
    logging.getLogger().handlers.clear()
    reconstruct_from_matches(pictures(scene), None, make_matches(scene), config=ONE_THREAD)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
