"""Exports read back with trimesh: axes, colours, cameras, sizes."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import trimesh

from multiview.cameras import Camera
from multiview.export import (
    CAMERA_COLORS,
    GLTF_FROM_OPENCV,
    DrawnCamera,
    Surface,
    build_scene,
    grid_faces,
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


def read_glb(path) -> tuple[dict, bytes]:
    """JSON tree and binary part of a .glb file."""
    data = path.read_bytes()
    length = struct.unpack("<I", data[12:16])[0]
    return json.loads(data[20 : 20 + length]), data[28 + length :]


def attribute(tree: dict, blob: bytes, mesh: str, name: str) -> np.ndarray:
    """One vertex attribute of a mesh, as the standard says it must be read."""
    primitive = next(item for item in tree["meshes"] if item["name"] == mesh)["primitives"][0]
    accessor = tree["accessors"][primitive["attributes"][name]]
    view = tree["bufferViews"][accessor["bufferView"]]
    dtype, width = {5126: "<f4", 5123: "<u2"}[accessor["componentType"]], int(accessor["type"][-1])
    raw = blob[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
    values = np.frombuffer(raw, dtype).reshape(-1, width)
    return values / 65535 if accessor.get("normalized") else values


def srgb(linear: np.ndarray) -> np.ndarray:
    """What a screen shows for linear light: 0..255."""
    linear = np.asarray(linear, dtype=float)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def test_glb_points_have_gltf_axes_and_image_colours(tmp_path, pair):
    path = pair.save(tmp_path / "pair.glb", confidence_percentile=0)
    scene = load_scene(path)
    assert {"surface_0", "surface_1", "camera_0", "camera_1"} <= set(scene.geometry)
    points, _ = geometry_in_world(scene, "surface_0")
    colors = srgb(attribute(*read_glb(path), "surface_0", "COLOR_0")[:, :3])
    np.testing.assert_allclose(colors, pair.colors(0).reshape(-1, 3), atol=0.1)
    expected = pair.pointmaps[0].points.reshape(-1, 3) * (1, -1, -1)
    np.testing.assert_allclose(points, expected, atol=1e-5)
    assert (points[:, 2] < 0).all(), "what camera 0 sees lies along -z"
    right, top = points[:, 0] > 0.5, points[:, 1] > 0.4
    assert colors[right, 0].mean() > 150 > colors[~right, 0].mean(), "red grows to the right"
    assert colors[top, 1].mean() < 80 < colors[~top, 1].mean(), "green grows downwards"


def test_glb_is_valid_binary_gltf(tmp_path, pair):
    data = pair.save(tmp_path / "pair.glb").read_bytes()
    magic, version, length = struct.unpack("<4sII", data[:12])
    assert (magic, version, length) == (b"glTF", 2, len(data))


@pytest.mark.parametrize("as_mesh", [False, True])
def test_colours_need_no_lamp(tmp_path, pair, as_mesh):
    tree, blob = read_glb(pair.save(tmp_path / "pair.glb", as_mesh=as_mesh))
    assert tree["extensionsUsed"] == ["KHR_materials_unlit"]
    assert all("KHR_materials_unlit" in material["extensions"] for material in tree["materials"])
    assert all(material["doubleSided"] for material in tree["materials"])
    assert tree["buffers"] == [{"byteLength": len(blob)}]
    for mesh in tree["meshes"]:
        material = tree["materials"][mesh["primitives"][0]["material"]]["pbrMetallicRoughness"]
        factor = srgb(material["baseColorFactor"][:3])
        drawn = mesh["name"].startswith("camera")
        expected = CAMERA_COLORS[int(mesh["name"][-1])] if drawn else (255, 255, 255)
        np.testing.assert_allclose(factor, expected, atol=0.1)
        assert ("baseColorTexture" in material) == (as_mesh and not drawn)
    for accessor in tree["accessors"]:
        assert tree["bufferViews"][accessor["bufferView"]]["byteOffset"] % 4 == 0


def test_ply_with_cameras(tmp_path, pair):
    surfaces, cameras = pair.surfaces(0), pair.drawn_cameras()
    path = write_ply(tmp_path / "scene.ply", surfaces, cameras, camera_size=0.3)
    mesh = trimesh.load(path, process=False)
    count = sum(surface.mask.sum() for surface in surfaces)
    assert len(mesh.vertices) == count + 5 * len(cameras)
    assert set(np.unique(mesh.faces)) == set(range(count, count + 10))
    np.testing.assert_allclose(mesh.vertices[count + 5], pair.pose1.center, atol=1e-6)


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
    surface = pair.surfaces(0)[0]
    points = surface.points.copy()
    points[::2] = np.nan
    broken = Surface(points, surface.colors, surface.mask)
    path = write_glb(tmp_path / "a.glb", [broken])
    assert np.isfinite(geometry_in_world(load_scene(path), "surface_0")[0]).all()
    assert np.isfinite(trimesh.load(write_ply(tmp_path / "a.ply", [broken])).vertices).all()


def test_nothing_to_export(tmp_path, pair):
    surface = pair.surfaces(0)[0]
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
    scene = build_scene(pair.surfaces(0)[:1], [camera] * 3)
    assert len(scene.geometry) == 4
