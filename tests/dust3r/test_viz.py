"""Drawing helpers under the names scripts import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from dust3r.cloud_opt import global_aligner
from dust3r.viz import (
    CAM_COLORS,
    OPENGL,
    SceneViz,
    add_scene_cam,
    auto_cam_size,
    cat_meshes,
    pts3d_to_trimesh,
    segment_sky,
)
from tests.dust3r.room_scene import complete_edges, perfect_output, room_views


def grid(height=4, width=5):
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    points = np.stack([columns, rows, np.ones_like(rows)], axis=-1).astype(np.float32)
    return points, np.random.default_rng(0).random((height, width, 3))


def test_constants():
    np.testing.assert_array_equal(OPENGL @ OPENGL, np.eye(4))
    assert all(len(color) == 3 and max(color) <= 255 for color in CAM_COLORS)


def test_importing_does_not_load_trimesh():
    code = "import sys, dust3r.viz; sys.exit('trimesh' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=root).returncode == 0


def test_grid_mesh_is_two_sided_and_respects_the_mask():
    points, colors = grid()
    mesh = pts3d_to_trimesh(colors, points)
    assert mesh["faces"].shape == (4 * 3 * 4, 3)
    assert mesh["face_colors"].shape == mesh["faces"].shape
    surface = trimesh.Trimesh(mesh["vertices"], mesh["faces"], process=False)
    assert surface.area == pytest.approx(2 * 3 * 4)
    np.testing.assert_allclose(surface.face_normals.sum(axis=0), 0, atol=1e-6)
    valid = np.ones((4, 5), dtype=bool)
    valid[0, 0] = False
    masked = pts3d_to_trimesh(torch.from_numpy(colors), torch.from_numpy(points), torch.from_numpy(valid))
    assert 0 not in masked["faces"]
    with pytest.raises(ValueError, match="one shape"):
        pts3d_to_trimesh(colors, points[:2])


def test_cat_meshes_shifts_faces():
    points, colors = grid()
    mesh = pts3d_to_trimesh(colors, points)
    both = cat_meshes([mesh, mesh])
    count = len(mesh["vertices"])
    np.testing.assert_array_equal(both["faces"][len(mesh["faces"]) :], mesh["faces"] + count)
    with pytest.raises(ValueError, match="no meshes"):
        cat_meshes([])


def test_camera_pyramid_has_its_size_and_place():
    scene = trimesh.Scene()
    pose = np.eye(4)
    pose[:3, 3] = (1, 2, 3)
    image = np.zeros((6, 8, 3), dtype=np.uint8)
    add_scene_cam(scene, pose, (255, 0, 0), image, focal=16.0, screen_width=0.4, marker="o")
    pyramid, picture, ball = scene.geometry.values()
    np.testing.assert_allclose(pyramid.vertices[0], (1, 2, 3))
    np.testing.assert_allclose(np.ptp(picture.vertices, axis=0), (0.4, 0.3, 0), atol=1e-7)
    np.testing.assert_allclose(picture.vertices[:, 2], 3 + 0.4 * 16 / 8)
    np.testing.assert_allclose(ball.centroid, (1, 2, 3), atol=1e-6)
    with pytest.raises(ValueError, match="marker"):
        add_scene_cam(scene, pose, (255, 0, 0), marker="x")


def test_scene_of_an_aligner_exports():
    views = room_views(2, size=(12, 16))
    aligner = global_aligner(perfect_output(views, complete_edges(2)), "cpu", verbose=False)
    aligner.compute_global_alignment(init="mst", niter=0)
    viz = aligner.draw(show_pw_cams=True)
    clouds = [part for part in viz.scene.geometry.values() if isinstance(part, trimesh.PointCloud)]
    assert [len(cloud.vertices) for cloud in clouds] == [12 * 16] * 2
    assert len(viz.scene.export(file_type="glb")) > 1000


def test_rgbd_and_denoised_points():
    points, colors = grid()
    viz = SceneViz()
    depth = points[..., 2].copy()
    depth[0, 0] = np.nan
    K = np.array([[10.0, 0, 2], [0, 10, 1.5], [0, 0, 1]])
    viz.add_rgbd(colors, depth, K, cam2world=np.eye(4), zfar=5)
    mesh = next(iter(viz.scene.geometry.values()))
    assert 0 not in mesh.faces
    np.testing.assert_allclose(mesh.vertices[-1], ((4 - 2) / 10, (3 - 1.5) / 10, 1))
    points[0, 0] = 1e4
    viz.add_pointcloud([points], [colors], mask=[np.ones((4, 5), dtype=bool)], denoise=True)
    viz.add_pointcloud(points, (10, 20, 30))
    clouds = [part for part in viz.scene.geometry.values() if isinstance(part, trimesh.PointCloud)]
    assert [len(cloud.vertices) for cloud in clouds] == [19, 20]
    np.testing.assert_array_equal(clouds[1].colors[0][:3], (10, 20, 30))
    viz.add_cameras(np.stack([np.eye(4)] * 2), focals=[K, 10.0], imsizes=[(5, 4)] * 2)
    assert len(viz.scene.geometry) == 5


def test_auto_cam_size():
    poses = np.stack([np.eye(4)] * 2)
    assert auto_cam_size(poses) > 0
    poses[1, 0, 3] = 2
    assert auto_cam_size(poses) == pytest.approx(0.2)


def test_sky_is_masked_from_above_only():
    image = np.full((40, 40, 3), (90, 70, 50), dtype=np.uint8)
    image[:20] = (120, 170, 250)
    image[30:36, 10:30] = (120, 170, 250)  # a pond
    sky = segment_sky(image)
    assert sky[:16].all()
    assert not sky[24:].any()
    views = room_views(2, size=(12, 16))
    aligner = global_aligner(perfect_output(views, complete_edges(2)), "cpu", verbose=False)
    aligner.imgs = [np.zeros((*shape, 3)) for shape in aligner.imshapes]
    aligner.imgs[0][:6] = (0.5, 0.7, 1.0)
    masked = aligner.mask_sky()
    assert not masked.im_conf[0][:3].any()
    assert masked.im_conf[0][-3:].all()
    assert aligner.im_conf[0].all()
