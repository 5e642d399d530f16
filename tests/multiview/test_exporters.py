"""Exports of reconstructions, read back by what they are made for: pycolmap, trimesh, and formulas."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh

from multiview.cameras import Camera
from multiview.files import atomic_folder, atomic_path
from multiview.nerfstudio import NERFSTUDIO_FROM_WORLD
from multiview.poses import Pose
from multiview.reconstruction import ReconstructedImage, Reconstruction, Tracks
from multiview.trajectory import quaternion_xyzw, read_tum, rotation_from_xyzw, write_tum
from tests.multiview.synthetic_pair import make_pair, rotation
from tests.multiview.synthetic_scene import Scene, make_reconstruction, make_scene

FAILED = ReconstructedImage("lost.jpg", (30, 20), "failed", "It has no matches with any other image.")


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Eight cameras and points."""
    return make_scene()


@pytest.fixture(scope="module")
def whole(scene: Scene) -> Reconstruction:
    """Pointmaps and tracks; one lens is distorted, one image failed."""
    made = make_reconstruction(scene, pointmaps=True)
    lens = Camera(scene.cameras[1].K, 640, 480, "OPENCV", (0.05, -0.02, 0.001, 0.002))
    bent = make_bent(made, lens)
    return replace(
        bent, images=(FAILED, *bent.images), tracks=replace(bent.tracks, image_index=bent.tracks.image_index + 1)
    )


def make_bent(made: Reconstruction, lens: Camera) -> Reconstruction:
    """The second image through a distorting lens, its observations moved accordingly."""
    images = list(made.images)
    images[1] = replace(images[1], camera=lens, pointmap=None, colors=None, transform=None)
    here, xy = made.tracks.image_index == 1, made.tracks.xy.copy()
    local = images[1].pose.inverse().apply(made.tracks.points[made.tracks.point_index[here]])
    xy[here] = lens.project(local)
    return replace(made, images=tuple(images), tracks=replace(made.tracks, xy=xy))


@pytest.mark.parametrize("binary", [True, False])
def test_colmap_round_trip(tmp_path: Path, whole: Reconstruction, binary: bool):
    pytest.importorskip("pycolmap")
    folder = whole.to_colmap(tmp_path / "sparse" / "0", binary=binary)
    suffix = ".bin" if binary else ".txt"
    assert {"cameras" + suffix, "images" + suffix, "points3D" + suffix} <= {path.name for path in folder.iterdir()}
    back = Reconstruction.from_colmap(folder)
    assert [image.name for image in back.images] == [image.name for image in whole.images[1:]]
    assert back.scale_status == "arbitrary"
    for a, b in zip(back.images, whole.images[1:]):
        np.testing.assert_allclose(a.camera.K, b.camera.K, atol=1e-9)
        assert a.camera.distortion == pytest.approx(b.camera.distortion)
        assert (a.camera.model, a.size) == (b.camera.model, b.size)
        np.testing.assert_allclose(a.pose.world_from_cam, b.pose.world_from_cam, atol=1e-9)
    np.testing.assert_allclose(back.tracks.points, whole.tracks.points, atol=1e-9)
    np.testing.assert_array_equal(back.tracks.colors, whole.tracks.colors)
    order = [np.lexsort((tracks.image_index, tracks.point_index)) for tracks in (back.tracks, whole.tracks)]
    np.testing.assert_array_equal(back.tracks.image_index[order[0]], whole.tracks.image_index[order[1]] - 1)
    assert np.abs(back.tracks.xy[order[0]] - whole.tracks.xy[order[1]]).max() < 1e-3


@pytest.mark.parametrize("binary", [True, False])
def test_colmap_projects_with_half_a_pixel_more(tmp_path: Path, whole: Reconstruction, binary: bool):
    pycolmap = pytest.importorskip("pycolmap")
    model = pycolmap.Reconstruction(str(whole.to_colmap(tmp_path / "model", binary=binary)))
    assert model.compute_mean_reprojection_error() < 1e-3
    assert model.num_reg_images() == 8
    assert model.is_valid() if hasattr(model, "is_valid") else True
    assert model.compute_num_observations() == len(whole.tracks.xy)
    for image_id, image in model.images.items():
        ours = whole.images[image_id - 1]
        point = whole.tracks.points[0]
        expected = ours.camera.project(ours.pose.inverse().apply(point)) + 0.5
        np.testing.assert_allclose(image.project_point(point), expected, atol=1e-3)
        assert image.name == ours.name
    for point_id, point in model.points3D.items():
        assert point.track.length() == whole.tracks.lengths[point_id - 1]
        np.testing.assert_array_equal(point.color, whole.tracks.colors[point_id - 1])


def test_equal_cameras_are_one_colmap_camera(tmp_path: Path):
    pycolmap = pytest.importorskip("pycolmap")
    model = pycolmap.Reconstruction(str(make_reconstruction(make_scene(4, one_camera=True)).save(tmp_path / "model")))
    assert model.num_cameras() == 1


def test_colmap_folder_keeps_strangers_and_drops_stale_files(tmp_path: Path, whole: Reconstruction):
    pytest.importorskip("pycolmap")
    folder = tmp_path / "model"
    whole.to_colmap(folder)
    (folder / "notes.md").write_text("mine")
    first = whole.part(0)
    moved = first.transformed(2.0)
    moved.to_colmap(folder, binary=False)
    assert (folder / "notes.md").read_text() == "mine"
    assert not list(folder.glob("*.bin"))
    back = Reconstruction.from_colmap(folder)
    np.testing.assert_allclose(back.tracks.points, moved.tracks.points, atol=1e-9)
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".part")]


def test_colmap_refusals(tmp_path: Path, whole: Reconstruction):
    pytest.importorskip("pycolmap")
    with pytest.raises(ValueError, match="no registered image"):
        Reconstruction((FAILED,), Tracks.empty(), "arbitrary").to_colmap(tmp_path / "a")
    with pytest.raises(ValueError, match="no COLMAP model"):
        Reconstruction.from_colmap(tmp_path)
    spaced = make_reconstruction(make_scene(3, spaces="my "))
    with pytest.raises(ValueError, match="space"):
        spaced.to_colmap(tmp_path / "b", binary=False)
    assert Reconstruction.from_colmap(spaced.to_colmap(tmp_path / "b")).images[0].name == spaced.images[0].name
    for name in ("cameras", "images", "points3D"):
        (tmp_path / "b" / f"{name}.bin").write_bytes(b"\0\1\2")
    with pytest.raises(ValueError, match="cannot be read"):
        Reconstruction.from_colmap(tmp_path / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        whole.to_colmap(tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "file"]


def test_colmap_camera_models(tmp_path: Path):
    pycolmap = pytest.importorskip("pycolmap")
    from multiview.colmap_model import our_camera

    for model, params, distortion in (
        ("SIMPLE_PINHOLE", [50, 20.5, 10.5], ()),
        ("SIMPLE_RADIAL", [50, 20.5, 10.5, 0.1], (0.1, 0, 0, 0)),
        ("RADIAL", [50, 20.5, 10.5, 0.1, 0.2], (0.1, 0.2, 0, 0)),
    ):
        theirs = pycolmap.Camera(camera_id=1, model=model, width=41, height=21, params=params)
        ours = our_camera(theirs)
        assert (ours.focal, ours.principal_point) == ((50, 50), (20, 10))
        assert ours.distortion == distortion
        point = np.array([0.1, -0.05, 1.0])
        np.testing.assert_allclose(ours.project(point) + 0.5, theirs.img_from_cam(point), atol=1e-9)
    with pytest.raises(ValueError, match="FULL_OPENCV"):
        our_camera(pycolmap.Camera(camera_id=1, model="FULL_OPENCV", width=41, height=21, params=[50.0] * 12))


def test_pair_to_colmap(tmp_path: Path):
    pycolmap = pytest.importorskip("pycolmap")
    pair = make_pair()
    model = pycolmap.Reconstruction(str(pair.to_colmap(tmp_path / "model")))
    assert model.num_reg_images() == 2
    assert model.num_points3D() > 0.9 * len(pair.matches)
    assert model.compute_mean_reprojection_error() < 0.05


def test_nerfstudio(tmp_path: Path, whole: Reconstruction):
    photo = tmp_path / "photos" / "x.jpg"
    images = tuple(
        replace(image, path=photo) if image.name == whole.images[2].name else image for image in whole.images
    )
    out = replace(whole, images=images).save(tmp_path / "out" / "transforms.json", confidence_percentile=0)
    tree = json.loads(out.read_text())
    assert len(tree["frames"]) == 8
    assert tree["frames"][0]["file_path"] == whole.images[1].name
    assert tree["frames"][1]["file_path"] == "../photos/x.jpg"
    applied = np.vstack([tree["applied_transform"], [0, 0, 0, 1]])
    np.testing.assert_array_equal(applied @ [0, -1, 0, 1], [0, 0, 1, 1])  # up is z there
    for frame, image in zip(tree["frames"], whole.images[1:]):
        # As an OpenGL renderer would: y up, looking along -z, pixels from the corner.
        theirs = np.linalg.inv(np.array(frame["transform_matrix"]))
        for point in whole.tracks.points[:5]:
            x, y, z, _ = theirs @ applied @ [*point, 1]
            plane = image.camera._distort(np.array([x / -z, -y / -z]))
            pixel = plane * (frame["fl_x"], frame["fl_y"]) + (frame["cx"], frame["cy"])
            expected = image.camera.project(image.pose.inverse().apply(point)) + 0.5
            np.testing.assert_allclose(pixel, expected, atol=1e-6)
        assert (frame["w"], frame["h"]) == image.size
        distortion = tuple(frame[key] for key in ("k1", "k2", "p1", "p2"))
        assert distortion == pytest.approx(image.camera.distortion or (0,) * 4)
    cloud = trimesh.load(out.with_name(tree["ply_file_path"]))
    points, colors = whole.points(0)
    np.testing.assert_allclose(cloud.vertices, points @ NERFSTUDIO_FROM_WORLD[:3, :3].T, atol=1e-5)
    np.testing.assert_array_equal(cloud.colors[:, :3], colors)


def test_trajectory(tmp_path: Path, whole: Reconstruction):
    path = whole.save(tmp_path / "path.tum")
    entries = read_tum(path)
    assert [time for time, _ in entries] == list(range(8))
    for (_, pose), true in zip(entries, whole.poses.values()):
        np.testing.assert_allclose(pose.world_from_cam, true.world_from_cam, atol=1e-6)
    times = {name: 0.5 * i for i, name in enumerate(whole.poses)}
    timed = read_tum(write_tum(path, whole.poses, timestamps=times))
    assert [time for time, _ in timed] == list(times.values())
    with pytest.raises(ValueError, match="timestamps lacks"):
        write_tum(path, whole.poses, timestamps={})
    with pytest.raises(ValueError, match="no camera pose"):
        write_tum(path, {})
    path.write_text("# ok\n0 1 2 3\n")
    with pytest.raises(ValueError, match="Line 2"):
        read_tum(path)


@pytest.mark.parametrize("degrees", [0, 1e-6, 33, 179.9999, 180])
def test_quaternions(degrees: float):
    rng = np.random.default_rng(0)
    for axis in (*np.eye(3), *rng.normal(size=(5, 3))):
        R = rotation(axis, degrees)
        quaternion = quaternion_xyzw(R)
        assert np.linalg.norm(quaternion) == pytest.approx(1)
        assert quaternion[3] >= 0
        np.testing.assert_allclose(rotation_from_xyzw(quaternion), R, atol=1e-9)
    with pytest.raises(ValueError, match="quaternion"):
        rotation_from_xyzw(np.zeros(4))


def test_glb_and_ply(tmp_path: Path, whole: Reconstruction):
    scene = trimesh.load(whole.save(tmp_path / "scene.glb", confidence_percentile=10))
    surfaces = [name for name in scene.geometry if name.startswith("surface")]
    assert len(surfaces) == 7
    assert sum(name.startswith("camera") for name in scene.geometry) == 8
    count = sum(len(scene.geometry[name].vertices) for name in surfaces)
    assert count == len(whole.points(10)[0])
    mesh = trimesh.load(whole.save(tmp_path / "mesh.glb", as_mesh=True, draw_cameras=False))
    assert len(mesh.geometry) == 7
    assert all(len(part.faces) > 100 for part in mesh.geometry.values())
    cloud = trimesh.load(whole.save(tmp_path / "cloud.ply"))
    np.testing.assert_allclose(cloud.vertices, whole.points()[0], atol=1e-6)
    drawn = trimesh.load(whole.save(tmp_path / "cloud.ply", draw_cameras=True, camera_size=0.2), process=False)
    assert len(drawn.vertices) == len(cloud.vertices) + 8 * 5


def test_tracks_alone_can_be_drawn(tmp_path: Path, scene: Scene):
    sparse = make_reconstruction(scene)
    drawn = trimesh.load(sparse.save(tmp_path / "scene.glb"))
    assert len(drawn.geometry["surface_0"].vertices) == len(sparse.tracks)
    with pytest.raises(ValueError, match="triangle"):
        sparse.save(tmp_path / "mesh.glb", as_mesh=True)
    assert not (tmp_path / "mesh.glb").exists()


def test_suffix_chooses_the_form(tmp_path: Path, whole: Reconstruction):
    assert json.loads(whole.save(tmp_path / "facts.json").read_text())["num_registered"] == 8
    with pytest.raises(ValueError, match="saved as"):
        whole.save(tmp_path / "scene.obj")
    nothing = Reconstruction((FAILED,), Tracks.empty(), "arbitrary")
    for name in ("a.glb", "a.ply", "a.tum", "transforms.json"):
        with pytest.raises(ValueError, match="no registered"):
            nothing.save(tmp_path / name)
    assert Reconstruction.load(nothing.save(tmp_path / "a.npz")).images[0].reason == FAILED.reason


def test_each_component_is_a_scene(tmp_path: Path, scene: Scene, caplog: pytest.LogCaptureFixture):
    made = make_reconstruction(scene, tracks=False)
    parts = replace(made, images=tuple(replace(image, component=int(i > 4)) for i, image in enumerate(made.images)))
    for component, count in ((0, 5), (1, 3)):
        assert len(read_tum(parts.save(tmp_path / "path.tum", component=component))) == count
        assert "world of its own" in caplog.text
    with pytest.raises(ValueError, match="component must be"):
        parts.save(tmp_path / "path.tum", component=2)


def test_folders_appear_whole_or_not_at_all(tmp_path: Path):
    def fail(folder: Path) -> None:
        with atomic_folder(folder) as part:
            (part / "a").write_text("new")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail(tmp_path / "x" / "new")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a").write_text("old")
    with pytest.raises(OSError, match="disk full"):
        fail(tmp_path / "old")
    assert (tmp_path / "old" / "a").read_text() == "old"
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["a"]
    assert not (tmp_path / "x" / "new").exists()
    with atomic_folder(tmp_path / "old", stale=["gone"]) as part:
        (part / "deep").mkdir()
        (part / "deep" / "b").write_text("b")
    assert (tmp_path / "old" / "deep" / "b").read_text() == "b"
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "file"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "x"]


def test_a_half_turned_pose_survives(tmp_path: Path):
    """Network poses are rotations to three digits only."""
    pytest.importorskip("pycolmap")
    matrix = np.eye(4)
    matrix[:3, :3] = rotation((1, 2, 3), 180) + 1e-4 * np.random.default_rng(0).normal(size=(3, 3))
    image = ReconstructedImage("a", (30, 20), "registered", camera=Camera.from_focal(9, 30, 20), pose=Pose(matrix))
    back = Reconstruction.from_colmap(Reconstruction((image,), Tracks.empty(), "arbitrary").save(tmp_path / "m"))
    np.testing.assert_allclose(back.images[0].pose.world_from_cam, matrix, atol=1e-3)
