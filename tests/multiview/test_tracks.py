"""Keypoints shared by pairs, tracks through many images, and their points."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from multiview.cameras import Camera
from multiview.keypoint_graph import KeypointGraph, Observations
from multiview.matches import Matches
from multiview.reconstruction import Reconstruction
from multiview.track_building import build_tracks, cell_sizes, link_matches, tracks_from_matches
from multiview.triangulation import reprojection_errors, triangulate_tracks
from tests.multiview.synthetic_scene import Scene, make_matches, make_reconstruction, make_scene


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Eight cameras and points."""
    return make_scene()


def pair(xy0, xy1, confidence=None, size=(100, 100), model_size=None) -> Matches:
    confidence = np.ones(len(xy0)) if confidence is None else confidence
    return Matches(xy0, xy1, confidence, size, size, model_size, model_size)


def test_keypoints_are_shared():
    graph = link_matches(
        ["a", "b", "c"],
        {("a", "b"): pair([(10, 10), (50, 50)], [(20, 20), (60, 60)]), ("c", "a"): pair([(30, 30)], [(10, 10)])},
    )
    assert [len(xy) for xy in graph.keypoints] == [2, 2, 1]
    assert set(graph.pairs) == {(0, 1), (0, 2)}
    (a, c), *_ = graph.pairs[0, 2].tolist()
    np.testing.assert_array_equal(graph.keypoints[0][a], (10, 10))
    np.testing.assert_array_equal(graph.keypoints[2][c], (30, 30))
    tracks = build_tracks(graph)
    assert sorted(np.bincount(tracks.point_index).tolist()) == [2, 3]


def test_cells_are_the_pixels_of_the_network():
    """A pixel of a 4x smaller image, found by two pairs with subpixel differences, is one keypoint."""
    rng = np.random.default_rng(0)
    model = np.stack(np.meshgrid(np.arange(3, 20), np.arange(3, 20)), axis=-1).reshape(-1, 2)
    centers = (model + 0.5) * 4 - 0.5
    found = {
        (name, "x"): pair(
            rng.uniform(0, 99, centers.shape), centers + rng.uniform(-1.9, 1.9, centers.shape), model_size=(25, 25)
        )
        for name in ("a", "b", "c")
    }
    graph = link_matches(["a", "b", "c", "x"], found)
    assert len(graph.keypoints[3]) == len(model)
    assert len(link_matches(["a", "b", "c", "x"], found, cell_px=0.01).keypoints[3]) == 3 * len(model)
    assert cell_sizes(["a", "b", "c", "x"], found) == [4.0] * 4


def test_each_keypoint_matches_once_and_the_best_wins():
    matches = pair([(1, 1), (1, 1), (5, 5), (9, 9)], [(2, 2), (3, 3), (3, 3), (2, 2)], [3, 5, 1, 2])
    graph = link_matches(["a", "b"], {("a", "b"): matches})
    ends = {
        tuple(np.concatenate([graph.keypoints[0][i], graph.keypoints[1][j]]).tolist()) for i, j in graph.pairs[0, 1]
    }
    assert ends == {(1, 1, 3, 3), (9, 9, 2, 2)}
    both_ways = link_matches(["a", "b"], {("a", "b"): matches, ("b", "a"): matches.swapped()})
    np.testing.assert_array_equal(both_ways.pairs[0, 1], graph.pairs[0, 1])


def test_linking_refusals():
    one = pair([(1, 1)], [(2, 2)])
    for names, matches, message in (
        (["a"], {("a", "b"): one}, "not among"),
        (["a"], {("a", "a"): one}, "itself"),
        (["a", "a"], {}, "differ"),
        (["a", "b", "c"], {("a", "b"): one, ("a", "c"): pair([(1, 1)], [(2, 2)], size=(9, 9))}, "in another"),
    ):
        with pytest.raises(ValueError, match=message):
            link_matches(names, matches)
    with pytest.raises(ValueError, match="cell_px"):
        link_matches(["a", "b"], {("a", "b"): one}, cell_px=0)


def test_nothing_gives_nothing():
    for matches in ({}, {("a", "b"): pair(np.zeros((0, 2)), np.zeros((0, 2)))}):
        tracks = tracks_from_matches(["a", "b"], matches)
        assert tracks.num_tracks == 0
        assert len(triangulate_tracks(make_reconstruction(make_scene(2)).images, tracks)) == 0


def chain(confidence) -> KeypointGraph:
    """a0 - b0 - c0 - a1: joining all would show image a twice."""
    xy = tuple(np.zeros((count, 2), np.float32) for count in (2, 1, 1))
    edges = {(0, 1): np.array([[0, 0]]), (1, 2): np.array([[0, 0]]), (0, 2): np.array([[1, 0]])}
    return KeypointGraph(("a", "b", "c"), xy, edges, {p: np.array([c]) for p, c in zip(edges, confidence)})


@pytest.mark.parametrize(("confidence", "expected"), [((3, 2, 1), [3]), ((1, 2, 3), [3]), ((3, 1, 2), [2, 2])])
def test_no_track_shows_an_image_twice(confidence, expected):
    tracks = build_tracks(chain(confidence))
    assert sorted(np.bincount(tracks.point_index).tolist()) == expected
    for track in range(tracks.num_tracks):
        images = tracks.image_index[tracks.point_index == track]
        assert len(set(images.tolist())) == len(images)


def test_random_graphs_never_conflict():
    rng = np.random.default_rng(1)
    names = [str(i) for i in range(6)]
    matches = {
        (a, b): pair(rng.integers(0, 30, (80, 2)), rng.integers(0, 30, (80, 2)), rng.random(80))
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    }
    tracks = tracks_from_matches(names, matches, min_length=3)
    cells = tracks.point_index * 6 + tracks.image_index
    assert len(np.unique(cells)) == len(cells)
    assert tracks.num_tracks > 10
    assert np.bincount(tracks.point_index).min() >= 3


def test_exact_matches_give_the_true_points(scene: Scene):
    truth = make_reconstruction(scene)
    tracks = triangulate_tracks(truth.images, tracks_from_matches(scene.names, make_matches(scene)))
    seen = np.stack(scene.visible).sum(axis=0) >= 2
    assert len(tracks) == seen.sum()
    distance = np.linalg.norm(tracks.points[:, None] - scene.points[seen], axis=-1)
    assert distance.min(axis=1).max() < 1e-5
    assert len(np.unique(distance.argmin(axis=1))) == len(tracks)
    assert reprojection_errors(truth.images, tracks).max() < 1e-3


def test_wrong_observations_are_dropped(scene: Scene):
    truth = make_reconstruction(scene)
    exact = tracks_from_matches(scene.names, make_matches(scene))
    rng = np.random.default_rng(2)
    wrong = rng.random(len(exact.xy)) < 0.1
    shifted = exact.xy + np.where(wrong[:, None], rng.uniform(20, 60, exact.xy.shape), 0).astype(np.float32)
    tracks = triangulate_tracks(truth.images, replace(exact, xy=shifted))
    distance = np.linalg.norm(tracks.points[:, None] - scene.points[None], axis=-1).min(axis=1)
    assert np.median(distance) < 1e-4
    assert (distance < 0.02).mean() > 0.98
    assert len(tracks) > 0.95 * exact.num_tracks
    assert reprojection_errors(truth.images, tracks).max() <= 4


def test_noise_is_averaged_as_well_as_the_optimum(scene: Scene):
    """The angles' least squares come close to the reprojection error's minimum."""
    from scipy.optimize import least_squares

    truth = make_reconstruction(scene)
    exact = tracks_from_matches(scene.names, make_matches(scene))
    noisy = replace(exact, xy=exact.xy + np.random.default_rng(0).normal(0, 1, exact.xy.shape).astype(np.float32))
    tracks = triangulate_tracks(truth.images, noisy, max_error_px=99)
    for p in range(5):
        here = tracks.point_index == p

        def residual(point, here=here):
            ends = zip(tracks.image_index[here], tracks.xy[here])
            return np.concatenate(
                [truth.images[i].camera.project(truth.images[i].pose.inverse().apply(point)) - xy for i, xy in ends]
            )

        best = least_squares(residual, tracks.points[p])
        assert (residual(tracks.points[p]) ** 2).sum() < 1.05 * 2 * best.cost


def test_flat_angles_have_no_depth(scene: Scene):
    truth = make_reconstruction(scene)
    exact = tracks_from_matches(scene.names, make_matches(scene, pairs=[(0, 1)]))
    assert len(triangulate_tracks(truth.images, exact)) == exact.num_tracks
    assert len(triangulate_tracks(truth.images, exact, min_angle_deg=40)) == 0


def test_failed_images_and_other_components_do_not_count(scene: Scene):
    truth = make_reconstruction(scene)
    failed = replace(truth.images[0], status="failed", reason="No.", camera=None, pose=None)
    images = (failed, *truth.images[1:5], *(replace(image, component=1) for image in truth.images[5:]))
    tracks = triangulate_tracks(images, tracks_from_matches(scene.names, make_matches(scene)))
    assert tracks.image_index.min() == 1
    components = np.array([image.component for image in images])[tracks.image_index]
    for p in range(len(tracks)):
        assert len(set(components[tracks.point_index == p].tolist())) == 1
    assert {0, 1} <= set(components.tolist())
    Reconstruction(images, tracks, "arbitrary")


def test_colours_come_from_the_images(scene: Scene):
    truth = make_reconstruction(scene, pointmaps=True)
    colors = np.zeros((60, 80, 3), np.uint8)
    colors[..., 0] = 200
    only = [replace(i, colors=colors if n == 1 else None) for n, i in enumerate(truth.images)]
    tracks = triangulate_tracks(only, tracks_from_matches(scene.names, make_matches(scene)))
    seen = np.zeros(len(tracks), bool)
    seen[tracks.point_index[tracks.image_index == 1]] = True
    assert (tracks.colors[seen] == (200, 0, 0)).all()
    assert (tracks.colors[~seen] == 128).all()


def test_observations_of_distorted_lenses():
    scene = make_scene(3)
    lens = Camera(scene.cameras[0].K, 480, 640, "OPENCV", (0.1, 0.01, 0.002, -0.001))
    images = list(make_reconstruction(scene).images)
    images[0] = replace(images[0], camera=lens)
    xy = [image.camera.project(image.pose.inverse().apply(scene.points[:7])) for image in images]
    observations = Observations(np.tile(np.arange(7), 3), np.repeat(np.arange(3), 7), np.concatenate(xy).astype("f4"))
    np.testing.assert_allclose(triangulate_tracks(images, observations).points, scene.points[:7], atol=1e-5)
