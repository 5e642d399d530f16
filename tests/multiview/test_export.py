"""Exports read back with trimesh: axes, colours, cameras, sizes."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import trimesh

from multiview.cameras import Camera
from multiview.export import (
    GLTF_FROM_OPENCV,
    DrawnCamera,
    Surface,
    build_scene,
    grid_faces,
    pair_surfaces,
    write_glb,
    write_ply,
)
from multiview.poses import Pose
from multiview.results import PairResult
from tests.multiview.synthetic_pair import make_pair


@pytest.fixture
def pair() -> PairResult:
    """The synthetic pair."""
    return make_pair()


def load_scene(path) -> trimesh.Scene:
    scene = trimesh.load(path)
    assert isinstance(scene, trimesh.Scene)
    return scene


def geometry_in_world(scene: trimesh.Scene, name: str) -> tuple[np.ndarray, trimesh.PointCloud | trimesh.Trimesh]:
    for node in scene.graph.nodes_geometry:
        transform, geometry = scene.graph[node]
        if geometry == name:
            item = scene.geometry[geometry]
            return trimesh.transform_points(item.vertices, transform), item
    raise AssertionError(f"no {name} in {list(scene.geometry)}")


def test_glb_points_have_gltf_axes_and_image_colours(tmp_path, pair):
    scene = load_scene(pair.save(tmp_path / "pair.glb", confidence_percentile=0))
    assert {"surface_0", "surface_1", "camera_0", "camera_1"} <= set(scene.geometry)
    points, cloud = geometry_in_world(scene, "surface_0")
    colors = np.asarray(cloud.colors)[:, :3].astype(int)
    expected = pair.pointmaps[0].points.reshape(-1, 3) * (1, -1, -1)
    np.testing.assert_allclose(points, expected, atol=1e-5)
    np.testing.assert_array_equal(colors, pair.colors(0).reshape(-1, 3))
    assert (points[:, 2] < 0).all(), "what camera 0 sees lies along -z"
    right, top = points[:, 0] > 0.5, points[:, 1] > 0.4
    assert colors[right, 0].mean() > 150 > colors[~right, 0].mean(), "red grows to the right"
    assert colors[top, 1].mean() < 80 < colors[~top, 1].mean(), "green grows downwards"


def test_glb_is_valid_binary_gltf(tmp_path, pair):
    data = pair.save(tmp_path / "pair.glb").read_bytes()
    magic, version, length = struct.unpack("<4sII", data[:12])
    assert (magic, version, length) == (b"glTF", 2, len(data))


def test_confidence_percentile_drops_points(tmp_path, pair):
    whole = load_scene(pair.save(tmp_path / "whole.glb", confidence_percentile=0))
    half = load_scene(pair.save(tmp_path / "half.glb", confidence_percentile=50))
    counts = [len(geometry_in_world(scene, "surface_0")[0]) for scene in (whole, half)]
    assert counts[1] == pytest.approx(counts[0] / 2, abs=2)


def test_glb_mesh(tmp_path, pair):
    path = pair.save(tmp_path / "mesh.glb", confidence_percentile=0, as_mesh=True)
    points, mesh = geometry_in_world(load_scene(path), "surface_0")
    height, width = pair.confidences[0].shape
    assert len(mesh.faces) == 2 * (height - 1) * (width - 1)
    normals = np.cross(
        points[mesh.faces[:, 1]] - points[mesh.faces[:, 0]],
        points[mesh.faces[:, 2]] - points[mesh.faces[:, 0]],
    )
    assert (normals[:, 2] > 0).all(), "triangles face camera 0"
    data = path.read_bytes()
    header = json.loads(data[20 : 20 + struct.unpack("<I", data[12:16])[0]])
    assert all(
        material["doubleSided"]
        for material in header["materials"]
        if "name" not in material or material.get("doubleSided")
    )
    assert any(material.get("doubleSided") for material in header["materials"])
    colors = mesh.visual.to_color().vertex_colors[:, :3].astype(int)
    expected = np.stack([points[:, 0] / 2, points[:, 1] / -2], axis=1)
    for channel in (0, 1):
        assert np.corrcoef(colors[:, channel], expected[:, channel])[0, 1] > 0.99


def test_mesh_is_cut_at_depth_jumps_and_masks():
    points = np.zeros((4, 6, 3))
    points[..., 0], points[..., 1] = np.meshgrid(np.arange(6) * 0.01, np.arange(4) * 0.01)
    points[..., 2] = 1
    points[:, 3:, 2] = 3
    colors = np.zeros((4, 6, 3), np.uint8)
    mask = np.ones((4, 6), bool)
    assert len(grid_faces(Surface(points, colors, mask))) == 2 * 3 * (2 + 2)
    mask[0, 0] = False
    assert len(grid_faces(Surface(points, colors, mask))) == 2 * 3 * (2 + 2) - 1
    points[0, 5] = np.nan
    assert len(grid_faces(Surface(points, colors, mask))) < 2 * 3 * 4 - 1
    with pytest.raises(ValueError, match="triangle"):
        grid_faces(Surface(points, colors, np.zeros((4, 6), bool)))


def test_cameras_are_pyramids_over_their_field_of_view(tmp_path, pair):
    scene = load_scene(pair.save(tmp_path / "pair.glb", camera_size=0.3))
    for i, pose in enumerate(pair.poses):
        vertices, mesh = geometry_in_world(scene, f"camera_{i}")
        in_world = vertices @ GLTF_FROM_OPENCV[:3, :3]
        in_camera = pose.inverse().apply(in_world)
        apex = np.linalg.norm(in_camera, axis=1).argmin()
        np.testing.assert_allclose(in_camera[apex], 0, atol=1e-5)
        corners = np.delete(in_camera, apex, axis=0)
        np.testing.assert_allclose(corners[:, 2], 0.3, atol=1e-5)
        projected = pair.cameras[i].project(corners)
        width, height = pair.images[i].size
        assert set(projected[:, 0].round(2)) == {-0.5, width - 0.5}
        assert set(projected[:, 1].round(2)) == {-0.5, height - 0.5}
        faces = {tuple(sorted(face)) for face in mesh.faces.tolist()}
        assert len(mesh.faces) == 2 * len(faces), "visible from both sides"


def test_ply_keeps_opencv_axes(tmp_path, pair):
    cloud = trimesh.load(pair.save(tmp_path / "pair.ply", confidence_percentile=0))
    count = pair.confidences[0].size
    assert len(cloud.vertices) == count + pair.confidences[1].size
    np.testing.assert_allclose(cloud.vertices[:count], pair.pointmaps[0].points.reshape(-1, 3), atol=1e-6)
    np.testing.assert_array_equal(cloud.colors[:count, :3], pair.colors(0).reshape(-1, 3))


def test_non_finite_points_never_reach_a_file(tmp_path, pair):
    surface = pair_surfaces(pair)[0]
    points = surface.points.copy()
    points[::2] = np.nan
    broken = Surface(points, surface.colors, surface.mask)
    path = write_glb(tmp_path / "a.glb", [broken])
    assert np.isfinite(geometry_in_world(load_scene(path), "surface_0")[0]).all()
    assert np.isfinite(trimesh.load(write_ply(tmp_path / "a.ply", [broken])).vertices).all()


def test_nothing_to_export(tmp_path, pair):
    surface = pair_surfaces(pair)[0]
    empty = Surface(surface.points, surface.colors, np.zeros_like(surface.mask))
    for write in (write_glb, write_ply):
        with pytest.raises(ValueError, match="no point"):
            write(tmp_path / "empty.glb", [empty])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="Surface needs"):
        Surface(surface.points, surface.colors[:3], surface.mask)


def test_scene_from_one_surface_and_free_cameras():
    pair = make_pair(own=False)
    camera = DrawnCamera(Camera.from_focal(50, 64, 48), Pose.identity(), (1, 2, 3))
    scene = build_scene(pair_surfaces(pair)[:1], [camera] * 3)
    assert len(scene.geometry) == 4
