"""The command `mast3r`: answers, exit codes, inputs."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors import safe_open

import mast3r.scenes.reconstruction
from croco.checkpoint import OFFICIAL_NAMES
from croco.models.croco import CroCoNet
from dust3r.checkpoint import save_safetensors
from mast3r import cli
from mast3r.cli.inputs import FrameChoice, collect_photos, has_video
from mast3r.cli.pair import intrinsics_of
from mast3r.loading import read_card
from mast3r.model import AsymmetricMASt3R
from mast3r.models import SHIPPED, find_record, list_models
from mast3r.training import PRESETS
from multiview.cameras import Camera
from multiview.images import ImageNotFoundError, ImageTransform
from multiview.matches import Matches
from multiview.pointmaps import Pointmap
from multiview.poses import Pose
from multiview.reconstruction import ReconstructedImage, Reconstruction, Tracks
from multiview.results import PairResult

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with weights and three photos of odd sizes."""
    path = tmp_path_factory.mktemp("cli")
    torch.manual_seed(0)
    save_safetensors(AsymmetricMASt3R(**PRESETS["tiny"].model), path / "tiny.safetensors")
    rng = np.random.default_rng(0)
    (path / "photos").mkdir()
    for name, shape in (("a.jpg", (75, 101, 3)), ("b.png", (120, 83, 4)), ("c.jpg", (75, 101, 3))):
        PIL.Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path / "photos" / name)
    (path / "photos" / "notes.txt").write_text("no photo")
    return path


@pytest.fixture(autouse=True)
def _log_levels_as_before():
    names = ("croco", "dust3r", "mast3r", "multiview")
    levels = [logging.getLogger(name).level for name in names]
    yield
    for name, level in zip(names, levels):
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def mast3r_command(folder, capsys):
    """Runs `mast3r`: exit code, stdout, stderr."""

    def run(name: str, *arguments: object, weights: bool = True) -> tuple[int, str, str]:
        flags = ["--weights", folder / "tiny.safetensors", "--device", "cpu"] if weights else []
        code = cli.main([str(part) for part in (name, *arguments, *flags)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


# --- the command itself ---


def test_overview_names_every_command(capsys):
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in cli.COMMANDS)
    assert cli.main([]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main([name, "--help"])
    assert done.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_wrong_usage(capsys, folder):
    assert cli.main(["mach"]) == 2
    assert "'match'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as done:
        cli.main(["match", "a.jpg", "b.jpg", "--no-such-flag"])
    assert done.value.code == 2


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"mast3r {mast3r.__version__}\n"


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (ValueError("two\nlines"), 1, "x: two lines\n"),
        (OSError(28, "No space left on device", "out.glb"), 1, "x: out.glb: No space left on device\n"),
        (torch.OutOfMemoryError("CUDA out of memory"), 1, "out of memory"),
        (MemoryError(), 1, "out of memory"),
    ],
)
def test_errors_of_the_user_are_one_sentence(error, code, sentence, capsys):
    def fail(arguments, prog):
        raise error

    assert cli.run_guarded(fail, [], prog="x") == code
    assert sentence in capsys.readouterr().err
    if code == 1:
        with pytest.raises(type(error)):
            cli.run_guarded(fail, ["--debug"], prog="x")


def test_errors_of_ours_keep_their_trace():
    def fail(arguments, prog):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        cli.run_guarded(fail, [], prog="x")


def test_as_a_program_it_needs_no_torch_to_help():
    code = "import sys, mast3r.cli; mast3r.cli.main(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
    done = subprocess.run([sys.executable, "-m", "mast3r", "models", "x-files"], cwd=ROOT, capture_output=True)
    assert done.returncode == 1


# --- inputs ---


def test_folders_patterns_and_files(folder):
    photos, frames = folder / "photos", FrameChoice()
    expected = [photos / name for name in ("a.jpg", "b.png", "c.jpg")]
    assert collect_photos([str(photos)], frames, folder) == expected
    assert collect_photos([str(photos / "*.jpg")], frames, folder) == [expected[0], expected[2]]
    assert collect_photos([str(photos / "c.jpg"), str(photos)], frames, folder) == [expected[2], *expected[:2]]
    for wrong in ("none.jpg", "*.gif", str(folder)):
        with pytest.raises(ImageNotFoundError):
            collect_photos([wrong], frames, folder)


def test_videos_become_photos(tmp_path):
    av = pytest.importorskip("av")
    clip = tmp_path / "clip.mp4"
    write_clip(av, clip, frames=20)
    assert has_video([str(clip)])
    found = collect_photos([str(clip)], FrameChoice(count=4), tmp_path / "frames")
    assert [path.name for path in found] == [f"clip_{i:04d}.jpg" for i in range(4)]
    levels = [np.asarray(PIL.Image.open(path)).mean() for path in found]
    assert levels == sorted(levels)
    assert len(collect_photos([str(clip)], FrameChoice(fps=5.0), tmp_path / "more")) == 10


def test_videos_without_pyav_are_refused(folder, monkeypatch, mast3r_command, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "clip.mp4").write_bytes(b"")
    code, _, told = mast3r_command("scene", tmp_path / "clip.mp4")
    assert code == 1
    assert "pip install 'mast3r[video]'" in told
    assert told.count("\n") == 1


def write_clip(av, path: Path, *, frames: int, fps: int = 10) -> None:
    """A video that gets lighter."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(frames):
            pixels = np.full((48, 64, 3), 255 * i // frames, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


# --- match and pair ---


def test_match_answers_in_json(folder, mast3r_command):
    code, out, _ = mast3r_command(
        "match", folder / "photos" / "a.jpg", folder / "photos" / "b.png", "--json", "--max_matches", 9
    )
    assert code == 0
    answer = json.loads(out)
    [pair] = answer["pairs"]
    assert pair["size0"] == [101, 75]
    assert pair["num_matches"] == len(pair["matches"]) <= 9
    assert all(len(row) == 5 for row in pair["matches"])
    assert answer["weights"]["name"] == "tiny"


@pytest.mark.parametrize("name", ["m.npz", "m.txt"])
def test_match_writes_files(folder, mast3r_command, tmp_path, name):
    out, picture = tmp_path / "new" / name, tmp_path / "pictures" / "m.jpg"
    photos = [folder / "photos" / "a.jpg", folder / "photos" / "c.jpg"]
    code, said, err = mast3r_command("match", *photos, "--out", out, "--picture", picture, "--quiet")
    assert (code, err) == (0, "")
    assert str(out) in said
    count = len(Matches.load(out)) if name == "m.npz" else len(np.loadtxt(out).reshape(-1, 5))
    assert said.startswith(f"{count} matches")
    assert PIL.Image.open(picture).width > 100


def test_match_of_a_folder_writes_a_file_per_pair(folder, mast3r_command, tmp_path):
    code, said, _ = mast3r_command(
        "match", folder / "photos", "--out", tmp_path / "m", "--scene_graph", "swin-1-noncyclic"
    )
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["a-b.npz", "b-c.npz"]
    assert "2 pairs of 3 photos" in said


def test_masks_are_pictures(folder, mast3r_command, tmp_path):
    photos = [folder / "photos" / "a.jpg", folder / "photos" / "c.jpg"]
    left = np.zeros((75, 101, 3), np.uint8)
    left[:, :50] = 255
    PIL.Image.fromarray(left).save(tmp_path / "left.png")
    code, out, _ = mast3r_command("match", *photos, "--mask_a", tmp_path / "left.png", "--json")
    assert code == 0
    assert all(row[0] < 50 for row in json.loads(out)["pairs"][0]["matches"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["photos/a.jpg"], "at least two photos"),
        (["photos", "--mask_a", "photos/a.jpg"], "go with two photos"),
        (["photos", "--out", "m.npz"], "must be a folder"),
        (["photos/a.jpg", "photos/c.jpg", "--out", "m.csv"], ".npz or .txt"),
        (["photos/a.jpg", "photos/notes.txt"], "notes.txt"),
        (["photos/a.jpg", "photos/c.jpg", "--weights", "none.pth"], "none.pth"),
    ],
)
def test_match_refuses_in_one_sentence(folder, mast3r_command, monkeypatch, arguments, sentence):
    monkeypatch.chdir(folder)
    code, out, err = mast3r_command("match", "--quiet", *arguments, weights="--weights" not in arguments)
    assert (code, out) == (1, "")
    assert sentence in err
    assert err.count("\n") == 1


def test_pair_writes_every_form(folder, mast3r_command, tmp_path):
    pytest.importorskip("pycolmap")
    names = ("p.glb", "p.ply", "p.npz", "p.json")
    outs = [part for name in names for part in ("--out", tmp_path / name)]
    photos = [folder / "photos" / "a.jpg", folder / "photos" / "c.jpg"]
    code, out, _ = mast3r_command(
        "pair", *photos, *outs, "--picture", tmp_path / "p.png", "--K0", "90,91,50,37", "--json"
    )
    assert code == 0
    answer = json.loads(out)
    assert [Path(file).name for file in answer["files"]] == [*names, "p.png"]
    result = PairResult.load(tmp_path / "p.npz")
    assert result.cameras[0].K[1, 1] == 91
    assert answer["num_matches"] == len(result.matches)
    code, out, _ = mast3r_command("convert", tmp_path / "p.npz", tmp_path / "q.glb", weights=False)
    assert code == 0
    assert (tmp_path / "q.glb").read_bytes()[:4] == b"glTF"


def test_pair_without_refinement(folder, mast3r_command, tmp_path, monkeypatch):
    from mast3r import predictor

    configs = []

    def fake(model, *photos, config, **options):
        configs.append(config)
        return original(model, *photos, config=config, **options)

    original = predictor.predict_pair
    monkeypatch.setattr(predictor, "predict_pair", fake)
    photos = [folder / "photos" / "a.jpg", folder / "photos" / "c.jpg"]
    for flags in ([], ["--no-refine"]):
        assert mast3r_command("pair", *photos, "--out", tmp_path / "p.json", *flags)[0] == 0
    assert [config.refine_geometry for config in configs] == [True, False]


def test_pair_wants_two_photos_and_known_forms(folder, mast3r_command):
    assert "`mast3r scene` takes more" in mast3r_command("pair", folder / "photos")[2]
    assert ".glb" in mast3r_command("pair", folder / "photos", "--out", "x.obj")[2]
    with pytest.raises(ValueError, match="FX,FY,CX,CY"):
        intrinsics_of("1,2,3")


# --- scene ---


def small_scene(count: int = 3, *, failed: int = 1) -> Reconstruction:
    """Cameras in a row that see a wall."""
    K = np.array([[60.0, 0, 31.5], [0, 60, 23.5], [0, 0, 1]])
    y, x = np.mgrid[0:48, 0:64]
    wall = np.stack([(x - 31.5) / 30, (y - 23.5) / 30, np.full(x.shape, 2.0)], axis=-1)
    images = []
    for i in range(count):
        pose = np.eye(4)
        pose[0, 3] = 0.2 * i
        seen = Pointmap((wall + pose[:3, 3]).astype(np.float32), np.full(x.shape, 2, np.float32), "world")
        images.append(
            ReconstructedImage(
                f"{i}.jpg",
                (64, 48),
                "registered",
                path=Path(f"{i}.jpg"),
                camera=Camera(K, 64, 48),
                pose=Pose(pose),
                pointmap=seen,
                transform=ImageTransform.identity((64, 48)),
                colors=np.full((48, 64, 3), 40 * i, np.uint8),
            )
        )
    images += [ReconstructedImage(f"bad{i}.jpg", (64, 48), "failed", "It shows another place.") for i in range(failed)]
    return Reconstruction(tuple(images), Tracks.empty(), "metric-predicted", {"pairs": 1.0})


def test_scene_writes_what_was_found(folder, mast3r_command, tmp_path, monkeypatch):
    asked = {}

    def reconstruct(model, images, **options):
        options["progress"](0.5, "pairs")
        asked.update(options, images=images)
        return small_scene()

    monkeypatch.setattr(mast3r.scenes.reconstruction, "reconstruct", reconstruct)
    names = ("s.glb", "s.ply", "s.npz", "s.json", "s.tum", "transforms.json")
    outs = [part for name in names for part in ("--out", tmp_path / name)]
    flags = ("--scene_graph", "swin-2", "--max_memory", "0.5", "--intrinsics", "90,90,50,37", "--ordered")
    code, said, _ = mast3r_command("scene", folder / "photos", *outs, *flags, "--tmp_dir", tmp_path / "cache")
    assert code == 0
    assert "3 of 4 photos placed" in said
    assert "bad0.jpg: It shows another place." in said
    assert all((tmp_path / name).is_file() for name in names)
    assert [path.name for path in asked["images"]] == ["a.jpg", "b.png", "c.jpg"]
    assert (asked["scene_graph"], asked["max_memory"], asked["config"].ordered) == ("swin-2", 500_000_000, True)
    assert asked["cache_dir"] == tmp_path / "cache"
    assert asked["views"][2].K.value[0, 0] == 90
    code, said, _ = mast3r_command("convert", tmp_path / "s.npz", tmp_path / "t.ply", "--json", weights=False)
    assert json.loads(said)["summary"]["num_registered"] == 3


def test_scene_with_no_placed_photo_fails(folder, mast3r_command, tmp_path, monkeypatch):
    monkeypatch.setattr(mast3r.scenes.reconstruction, "reconstruct", lambda *_, **__: small_scene(0))
    code, _, err = mast3r_command("scene", folder / "photos", "--out", tmp_path / "s.glb", "--quiet")
    assert code == 1
    assert "another place" in err
    assert not (tmp_path / "s.glb").exists()


def test_scene_runs_from_photos_to_files(folder, mast3r_command, tmp_path):
    """With weights that were never trained it may place no photo; then it must say so."""
    out = tmp_path / "s.npz"
    code, _, err = mast3r_command("scene", folder / "photos", "--out", out, "--quiet")
    assert code == (0 if out.exists() else 1), err


# --- models and convert ---


def test_registry_knows_all_weights():
    records = {record.name: record for record in list_models()}
    assert set(records) == {*SHIPPED, *OFFICIAL_NAMES}
    for name, record in records.items():
        assert record.commercial == (name in SHIPPED)
        assert (record.hub_id is None) == (name in SHIPPED)
        assert record.availability == "shipped" if name in SHIPPED else record.availability != "shipped"
    assert find_record("naver/CroCo") == records["CroCo"]
    assert find_record("nobody") is None


def test_registry_agrees_with_the_card_and_the_network():
    record = list_models()[0]
    model = mast3r.load(record.name, device="cpu")
    assert record.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert record.weights_licence == mast3r.card_of(model).licence
    assert record.image_size == max(model.config["img_size"])


def test_models_are_listed(mast3r_command):
    code, out, _ = mast3r_command("models", weights=False)
    assert code == 0
    assert all(name in out for name in OFFICIAL_NAMES)
    _, out, _ = mast3r_command("models", "--commercial", "--json", weights=False)
    assert [record["name"] for record in json.loads(out)["models"]] == list(SHIPPED)
    assert mast3r_command("models", "dust4r", weights=False)[0] == 1


@pytest.mark.parametrize("half", [False, True])
def test_weights_become_safetensors(tmp_path, mast3r_command, half):
    torch.manual_seed(0)
    model = AsymmetricMASt3R(**PRESETS["tiny"].model)
    text = "AsymmetricMASt3R(" + ", ".join(f"{k}={v!r}" for k, v in PRESETS["tiny"].model.items()) + ")"
    source = tmp_path / "MASt3R_mine.pth"
    torch.save({"model": model.state_dict(), "model_name": text}, source)
    target = tmp_path / "new" / "mine.safetensors"
    flags = ["--half"] if half else []
    code, said, _ = mast3r_command("convert", source, target, *flags, weights=False)
    assert code == 0
    assert "non-commercial" in said
    card = json.loads(target.with_suffix(".json").read_text())
    assert card["architecture"] == "AsymmetricMASt3R"
    assert read_card(target).licence == card["licence"]
    with safe_open(target, "pt") as file:
        kinds = {file.get_tensor(key).dtype for key in file.keys()}
    assert kinds == {torch.float16 if half else torch.float32}
    loaded = mast3r.load(target, device="cpu").state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded[name], tensor, rtol=2e-3 if half else 0, atol=1e-4 if half else 0)


def test_other_networks_are_converted_too(tmp_path, mast3r_command):
    kwargs = {"img_size": 32, "enc_embed_dim": 32, "enc_depth": 1, "enc_num_heads": 2, "pos_embed": "RoPE100"}
    kwargs |= {"dec_embed_dim": 32, "dec_depth": 1, "dec_num_heads": 2}
    torch.save({"model": CroCoNet(**kwargs).state_dict(), "croco_kwargs": kwargs}, tmp_path / "c.pth")
    out = tmp_path / "c.safetensors"
    code, said, _ = mast3r_command("convert", tmp_path / "c.pth", out, "--licence", "MIT", weights=False)
    assert code == 0
    assert "licence: MIT" in said
    assert CroCoNet.from_pretrained(out).config["enc_depth"] == 1


@pytest.mark.parametrize(
    ("source", "target", "sentence"),
    [
        ("tiny.safetensors", "x.pth", ".safetensors"),
        ("none.pth", "x.safetensors", "none.pth"),
        ("other.npz", "x.glb", "no result"),
    ],
)
def test_convert_refuses_in_one_sentence(folder, mast3r_command, monkeypatch, source, target, sentence):
    monkeypatch.chdir(folder)
    np.savez(folder / "other.npz", x=np.zeros(3))
    code, _, err = mast3r_command("convert", source, target, weights=False)
    assert code == 1
    assert sentence in err


# --- thin entrances ---


def test_train_and_evaluate_take_their_own_flags(mast3r_command, folder, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("mast3r.training.train", seen.append)
    flags = ("--preset", "tiny", "--batch_size", 3, "--output_dir", tmp_path)
    assert mast3r_command("train", *flags, weights=False)[0] == 0
    assert (seen[0].preset, seen[0].batch_size) == ("tiny", 3)
    code, _, err = mast3r_command("evaluate", folder / "nothing", "--weights", "none", weights=False)
    assert code == 1
    assert err.startswith("mast3r evaluate: ")


def test_demo_takes_the_official_flags(mast3r_command, folder, tmp_path):
    photos = [folder / "photos" / "a.jpg", folder / "photos" / "c.jpg"]
    code, said, _ = mast3r_command("demo", *photos, "--out", tmp_path / "d.glb", "--silent", "--image_size", 64)
    assert code == 0
    assert "d.glb" in said


def test_evaluate_prints_numbers_or_a_table(mast3r_command, folder, monkeypatch):
    monkeypatch.setattr("mast3r.cli.evaluate.run", lambda args: [])
    code, said, _ = mast3r_command("evaluate", folder, "--json", weights=False)
    assert (code, json.loads(said)) == (0, {"reports": []})
    monkeypatch.setattr("mast3r.cli.evaluate.answer", lambda args, reports: f"table for {args.json}")
    assert mast3r_command("evaluate", folder, "--json", "x.json", weights=False)[1] == "table for x.json\n"
