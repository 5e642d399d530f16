"""The evaluation on photos with ground truth, on scenes whose geometry is known."""

from __future__ import annotations

import json
import sys

import numpy as np
import PIL.Image
import pytest
import torch

import mast3r.training
from mast3r.evaluate import main
from mast3r.evaluation import (
    DatasetError,
    EvaluationConfig,
    EvaluationPair,
    RootSift,
    Thresholds,
    baselines,
    evaluate_folder,
    judge_pair,
    load_reports,
    read_pair_list,
    read_scene,
    read_scenes,
    save_reports,
    table,
)
from mast3r.evaluation.baselines import mutual_ratio_matches
from mast3r.evaluation.datasets import DepthTruth, evenly
from mast3r.evaluation.quick import evaluate_real
from mast3r.evaluation.report import summarise
from mast3r.model import AsymmetricMASt3R
from mast3r.training import PRESETS
from multiview.cameras import Camera
from multiview.images import ImageTransform, fit_for_model, read_image
from multiview.matches import Matches
from multiview.metrics import pose_auc
from multiview.pointmaps import Pointmap
from multiview.poses import Pose
from multiview.results import PairResult
from tests.plane_engine import PlaneEngine

WIDTH, HEIGHT = 96, 64
SIZE = (WIDTH, HEIGHT)
K = np.array([[80.0, 0, 47.5], [0, 80.0, 31.5], [0, 0, 1]])
ANGLE = 0.1
T = np.array(
    [
        [np.cos(ANGLE), 0, np.sin(ANGLE), -0.5],
        [0, 1, 0, 0.1],
        [-np.sin(ANGLE), 0, np.cos(ANGLE), 0.05],
        [0, 0, 0, 1],
    ]
)
SHIFT = 12
H = np.array([[1.0, 0, -SHIFT], [0, 1, 0], [0, 0, 1]])


def visible_points(n: int = 200) -> np.ndarray:
    """(N, 3) points of camera 0's frame that both cameras see."""
    rng = np.random.default_rng(0)
    points = rng.uniform((-1.5, -1, 2), (1.5, 1, 6), (8 * n, 3))
    seen = [np.all((xy >= 0) & (xy <= np.array(SIZE) - 1), axis=1) for xy in (xy0_of(points), xy1_of(points))]
    return points[seen[0] & seen[1]][:n]


def xy0_of(points):
    return Camera(K, *SIZE).project(points)


def xy1_of(points):
    return Camera(K, *SIZE).project(points @ T[:3, :3].T + T[:3, 3])


def noise_texture() -> np.ndarray:
    """(H, W + SHIFT, 3) blobs of several sizes."""
    rng = np.random.default_rng(1)
    total = np.zeros((HEIGHT, WIDTH + SHIFT))
    for cells in (8, 16, 32):
        small = PIL.Image.fromarray((rng.random((cells, cells)) * 255).astype(np.uint8))
        total += np.asarray(small.resize((WIDTH + SHIFT, HEIGHT), PIL.Image.Resampling.BICUBIC), float)
    return np.repeat((total / 3).astype(np.uint8)[..., None], 3, axis=2)


def write_scene(folder, pairs, **content):
    folder.mkdir()
    whole = noise_texture()
    PIL.Image.fromarray(whole[:, :WIDTH]).save(folder / "a.png")
    PIL.Image.fromarray(whole[:, SHIFT:]).save(folder / "b.png")
    content = {"scene": folder.name, "gt_confidence": "high", **content}
    (folder / "gt.json").write_text(json.dumps({**content, "pairs": pairs}))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    names = {"image0": "a.png", "image1": "b.png"}
    posed = {**names, "K0": K.tolist(), "K1": K.tolist(), "T_0to1": T.tolist()}
    points = visible_points(20)
    corrs = np.concatenate([xy0_of(points), xy1_of(points)], axis=1).tolist()
    write_scene(root / "posed", [posed, posed, posed], metric=True)
    write_scene(root / "flat", [{**names, "H_0to1": H.tolist()}])
    write_scene(root / "points", [{**names, "corrs": corrs}])
    write_scene(root / "vague", [posed], gt_confidence="low")
    write_scene(root / "unknown", [names])
    return root


class Oracle:
    """Knows the truth, and adds noise to it."""

    name = "oracle"

    def __init__(self, noise: float = 0.0):
        self.noise = noise

    def __call__(self, image0, image1):
        if image0.parent.name == "flat":
            xy0 = np.random.default_rng(2).uniform((SHIFT, 0), (WIDTH - 1, HEIGHT - 1), (100, 2))
            xy1 = xy0 - (SHIFT, 0)
        else:
            points = visible_points()
            xy0, xy1 = xy0_of(points), xy1_of(points)
        xy1 = xy1 + np.random.default_rng(3).normal(size=xy1.shape) * self.noise
        return Matches(xy0, xy1, np.ones(len(xy0)), SIZE, SIZE)


class Guesser:
    """Matches at random."""

    name = "guesser"

    def __call__(self, image0, image1):
        rng = np.random.default_rng(4)
        xy0, xy1 = (rng.uniform((0, 0), SIZE, (150, 2)) for _ in range(2))
        return Matches(xy0, xy1, rng.random(150), SIZE, SIZE)


class Silent:
    """Finds nothing."""

    name = "silent"

    def __call__(self, image0, image1):
        return Matches(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0), SIZE, SIZE)


def by_scene(report):
    return {summary.name: summary for summary in report.scene_summaries()}


def test_perfect_matches_score_perfectly(folder):
    report = evaluate_folder(Oracle(), folder)
    scenes = by_scene(report)
    assert [info.name for info in report.scenes] == ["flat", "points", "posed", "vague"]
    assert all(pair.pose.max_deg < 1e-2 for pair in report.pairs if pair.pose)
    assert scenes["posed"].auc == pytest.approx((1, 1, 1), abs=2e-3)
    assert scenes["posed"].precision == 1.0
    assert scenes["posed"].within_20 == 1.0
    assert report.pairs[0].homography.corner_error_px < 1e-2
    assert scenes["flat"].precision == 1.0
    assert scenes["points"].maa == 1.0
    assert scenes["points"].points_within_px == (1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("matcher", [Guesser(), Silent()])
def test_bad_matches_score_badly(folder, matcher):
    report = evaluate_folder(matcher, folder)
    scenes = by_scene(report)
    assert scenes["posed"].auc[2] < 0.2
    assert scenes["posed"].precision < 0.3
    assert scenes["flat"].auc[2] < 0.2
    assert scenes["points"].points_within_px[0] < 0.2
    assert scenes["points"].maa < 0.7
    assert report.headline()["mean_scene_score"] < 0.35


def test_totals_leave_out_low_confidence(folder):
    report = evaluate_folder(Oracle(), folder)
    posed = next(total for total in report.totals() if total.truth == "pose")
    assert posed.pairs == 3
    assert len(report.pairs) == 6
    assert "vague*" in table([report])


def test_auc_is_that_of_metrics(folder):
    report = evaluate_folder(Oracle(noise=0.5), folder, EvaluationConfig(scenes=["posed"]))
    errors = [pair.pose.max_deg for pair in report.pairs]
    assert by_scene(report)["posed"].auc == pose_auc(errors, (5, 10, 20))
    failed = [*report.pairs, *evaluate_folder(Silent(), folder, EvaluationConfig(scenes=["posed"])).pairs]
    assert summarise("both", failed).auc == pose_auc([*errors, *[np.inf] * 3], (5, 10, 20))


def test_config_limits_pairs_and_matches(folder, tmp_path):
    config = EvaluationConfig(scenes=["posed"], max_pairs=2, max_matches=30, pictures=tmp_path / "pictures")
    report = evaluate_folder(Oracle(), folder, config)
    assert [pair.matches for pair in report.pairs] == [30, 30]
    assert (tmp_path / "pictures" / "oracle" / "posed" / "a__b.jpg").is_file()
    with pytest.raises(ValueError, match="at least 1"):
        EvaluationConfig(max_pairs=0)
    assert evenly("abcdefg", 3) == ("a", "d", "g")


def test_json_round_trip(folder, tmp_path):
    reports = [evaluate_folder(matcher, folder) for matcher in (Oracle(), Silent())]
    path = save_reports(tmp_path / "out" / "report.json", reports)
    assert load_reports(path) == reports
    content = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert content["reports"][0]["headline"]["auc20"] > 0.99
    path.write_text("{}")
    with pytest.raises(ValueError, match="not a file written by save_reports"):
        load_reports(path)


def test_table_has_a_row_per_scene_and_matcher(folder):
    reports = [evaluate_folder(matcher, folder) for matcher in (Oracle(), Guesser())]
    lines = table(reports).splitlines()
    for scene in ("flat", "points", "posed", "all posed pairs"):
        assert sum(line.startswith(scene + " ") for line in lines) == 2
    assert len({len(line.rstrip()) for line in lines[2:10]}) == 1


# --- depth, pointmaps, focal length ---


def plane_result(pair: EvaluationPair, *, scale: float, focal: float = 1.0) -> PairResult:
    """A prediction of the plane z = 2 of both cameras, which differ by a sideways step."""
    images = (read_image(pair.image0), read_image(pair.image1))
    transforms = tuple(fit_for_model(image, 48)[1] for image in images)
    maps = []
    for i, transform in enumerate(transforms):
        width, height = transform.size_to
        grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)
        points = Camera(K, *SIZE).transformed(transform).unproject(grid, 2.0) + np.array([0.3 * i, 0, 0])
        maps.append(Pointmap(scale * points, np.ones((height, width)), "camera 0"))
    camera = Camera(np.diag([focal, focal, 1.0]) @ (K - [[0, 0, 47.5], [0, 0, 31.5], [0, 0, 0]]), *SIZE)
    pose = Pose.from_rt(np.eye(3), np.array([0.3 * scale, 0, 0]))
    matches = Silent()(pair.image0, pair.image1)
    return PairResult(images, transforms, tuple(maps), matches, (camera, camera), pose, 0, "metric-predicted")


@pytest.fixture
def pair_with_depth(tmp_path):
    step = np.eye(4)
    step[0, 3] = -0.3
    names = {
        "image0": "a.png",
        "image1": "b.png",
        "K0": K.tolist(),
        "K1": K.tolist(),
        "T_0to1": step.tolist(),
    }
    images = {"a.png": {"depth": "a_depth.png"}, "b.png": {"depth": "b_depth.png"}}
    write_scene(tmp_path / "room", [names], metric=True, images=images, depth_scale=1000)
    stored = np.full((HEIGHT, WIDTH), 2000, np.uint16)
    stored[:10] = 0
    for name in ("a", "b"):
        PIL.Image.fromarray(stored).save(tmp_path / "room" / f"{name}_depth.png")
    return read_scene(tmp_path / "room").pairs[0]


def test_depth_pointmap_and_focal(pair_with_depth):
    score = judge_pair("room", pair_with_depth, plane_result(pair_with_depth, scale=1.5, focal=1.1), metric=True)
    assert score.depth.abs_rel == pytest.approx(0, abs=1e-6)
    assert score.depth.delta1 == 1.0
    assert score.depth.metric_abs_rel == pytest.approx(0.5, abs=1e-6)
    assert score.depth.metric_delta1 == 0.0
    assert score.depth.pointmap == pytest.approx(0, abs=1e-6)
    assert score.focal_error == pytest.approx(0.1)
    unscaled = judge_pair("room", pair_with_depth, plane_result(pair_with_depth, scale=1.0))
    assert unscaled.depth.metric_abs_rel is None


def test_disparity_is_turned_into_depth(tmp_path):
    disparity = np.array([[0, 256 * 10], [256 * 30, 256 * 90]], np.uint16)
    PIL.Image.fromarray(disparity).save(tmp_path / "d.png")
    depth = DepthTruth(tmp_path / "d.png", 256, (100.0, 0.2, 10.0)).read()
    np.testing.assert_allclose(depth, [[0, 1.0], [0.5, 0.2]], rtol=1e-6)
    with pytest.raises(DatasetError, match="cannot be read"):
        DepthTruth(tmp_path / "none.png", 256).read()


# --- data ---


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON file"),
        ("[]", "not in the gt.json format"),
        ({"pairs": [{"image0": "a.png"}]}, "not in the gt.json format"),
        ({"pairs": [{"image0": "a.png", "image1": "c.png"}]}, "c.png, which does not exist"),
        ({"pairs": [{"image0": "a.png", "image1": "b.png", "H_0to1": [[1, 2]]}]}, "H_0to1 must be"),
        ({"pairs": [{"image0": "a.png", "image1": "b.png", "T_0to1": np.ones((4, 4)).tolist()}]}, "rotation"),
        ({"pairs": [{"image0": "a.png", "image1": "b.png", "K0": [[1]]}]}, "K must be"),
    ],
)
def test_broken_ground_truth_gives_one_sentence(tmp_path, content, message):
    write_scene(tmp_path / "scene", [])
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "scene" / "gt.json").write_text(text)
    with pytest.raises(DatasetError, match=message):
        read_scene(tmp_path / "scene")


def test_nothing_to_evaluate(folder, tmp_path):
    with pytest.raises(DatasetError, match=r"No gt\.json"):
        read_scenes(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="No scene attic"):
        read_scenes(folder, ["attic"])
    with pytest.raises(DatasetError, match="No pair with ground truth"):
        read_scenes(folder, ["unknown"])
    with pytest.raises(DatasetError, match="cannot be read"):
        read_scene(tmp_path)
    assert len(read_scenes(folder / "posed")) == 1


def numbers(*arrays) -> str:
    return " ".join(str(value) for array in arrays for value in np.asarray(array).ravel())


@pytest.mark.parametrize("form", ["superglue", "no rotations", "glue-factory"])
def test_pair_lists(folder, form):
    truth = {
        "superglue": "0 0 " + numbers(K, K, T),
        "no rotations": numbers(K, K, T),
        "glue-factory": numbers(K, K, T[:3, :3], T[:3, 3]),
    }[form]
    path = folder / "posed" / "pairs.txt"
    path.write_text(f"# a comment\n\na.png b.png {truth}\n")
    for scene in (read_pair_list(path), *read_scenes(path), read_pair_list(path, folder / "posed", name="x")):
        (pair,) = scene.pairs
        np.testing.assert_array_equal(pair.K0, K)
        np.testing.assert_array_equal(pair.T_0to1, T)
    report = evaluate_folder(Oracle(), path)
    assert report.headline()["auc20"] > 0.99


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.png b.png 1 2", "columns"),
        ("a.png c.png " + numbers(K, K, T), "no image"),
        ("a.png b.png " + numbers(K, K, T).replace("80.0", "x"), "line 1 of .* is broken"),
        ("a.png b.png " + numbers(K, K, 2 * T), "is broken"),
        ("", "names no pair"),
    ],
)
def test_broken_pair_lists(folder, line, message):
    path = folder / "posed" / "pairs.txt"
    path.write_text(line)
    with pytest.raises(DatasetError, match=message):
        read_pair_list(path)


def test_truth_of_a_turned_photo_refers_to_the_stored_pixels(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # shown upright after a quarter turn
    path = tmp_path / "turned.jpg"
    PIL.Image.fromarray(noise_texture()[:, :WIDTH]).save(path, exif=exif)
    turn = ImageTransform.turn(SIZE, 6)
    xy0 = np.random.default_rng(5).uniform((SHIFT, 0), (WIDTH - 1, HEIGHT - 1), (60, 2))
    upright = (turn.apply(xy0), turn.apply(xy0 - (SHIFT, 0)))
    matches = Matches(*upright, np.ones(60), turn.size_to, turn.size_to)
    pair = EvaluationPair(path, path, "0", "1", H_0to1=H)
    score = judge_pair("turned", pair, matches)
    assert score.homography is not None
    assert score.homography.precision == 1.0
    assert score.homography.corner_error_px < 1e-2


# --- matchers ---


def test_mutual_ratio_matches():
    basis = np.eye(4, dtype=np.float32)
    close = basis[2] + 0.9 * basis[3]
    first = np.stack([basis[0], basis[1], close / np.linalg.norm(close)])
    second = np.stack([basis[1], basis[0], basis[2], basis[3]])
    index0, index1, ratio = mutual_ratio_matches(first, second, ratio=0.8)
    assert index0.tolist() == [0, 1]  # the third is ambiguous
    assert index1.tolist() == [1, 0]
    assert ratio.max() < 1e-3
    assert all(len(x) == 0 for x in mutual_ratio_matches(first[:0], second, ratio=0.8))


def test_matches_do_not_depend_on_the_blocks(monkeypatch):
    rng = np.random.default_rng(6)
    first = rng.normal(size=(50, 16)).astype(np.float32)
    second = first[rng.permutation(50)] + 0.2 * rng.normal(size=(50, 16)).astype(np.float32)
    first, second = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second))
    whole = mutual_ratio_matches(first, second, ratio=0.9)
    monkeypatch.setattr(baselines, "_BLOCK", 7)
    assert len(whole[0]) > 10
    for a, b in zip(whole, mutual_ratio_matches(first, second, ratio=0.9)):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_rootsift_finds_the_shift(folder):
    pytest.importorskip("cv2")
    report = evaluate_folder(RootSift(), folder, EvaluationConfig(scenes=["flat"]))
    assert report.pairs[0].matches >= 10
    assert report.pairs[0].homography.precision > 0.9


def test_rootsift_without_opencv(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ModuleNotFoundError, match="opencv-python-headless"):
        RootSift()(folder / "flat" / "a.png", folder / "flat" / "b.png")


def test_quick_evaluation_of_a_network(folder):
    torch.manual_seed(0)
    model = AsymmetricMASt3R(**PRESETS["tiny"].model).eval()
    metrics = evaluate_real(model, folder, max_pairs_per_scene=1)
    assert {"auc20", "within_20deg", "epipolar_precision", "matches", "points_maa"} <= metrics.keys()
    assert all(np.isfinite(value) for value in metrics.values())
    assert evaluate_real(model, read_scenes(folder), max_pairs_per_scene=1) == metrics
    with pytest.raises(TypeError, match="AsymmetricMASt3R"):
        evaluate_real(torch.nn.Identity(), folder)


# --- the command ---


def test_command_line(folder, tmp_path, capsys):
    pytest.importorskip("cv2")
    flags = ["--weights", "none", "--baseline", "--scenes", "flat", "--json", str(tmp_path / "r.json")]
    assert main([str(folder), *flags]) == 0
    assert "flat" in capsys.readouterr().out
    assert load_reports(tmp_path / "r.json")[0].matcher == "rootsift"


@pytest.fixture
def tiny_weights(tmp_path):
    from dust3r.checkpoint import save_safetensors

    torch.manual_seed(0)
    path = tmp_path / "tiny.safetensors"
    save_safetensors(AsymmetricMASt3R(**PRESETS["tiny"].model), path, dtype=torch.float32)
    return path


def test_command_line_on_a_network(folder, tiny_weights, capsys):
    assert main([str(folder), "--weights", str(tiny_weights), "--device", "cpu", "--scenes", "posed"]) == 0
    assert "posed" in capsys.readouterr().out


def test_resolution_and_refinement_are_passed_on(folder, tiny_weights, monkeypatch):
    from mast3r.evaluation import networks

    seen = []

    def fake(name, function):
        def call(model, *photos, **options):
            seen.append((name, options.get("resolution"), options["config"].refine_geometry))
            return function(model, *photos, **options)

        return call

    for name in ("match", "predict_pair"):
        monkeypatch.setattr(networks, name, fake(name, getattr(networks, name)))
    command = [str(folder), "--weights", str(tiny_weights), "--device", "cpu", "--scenes", "posed", "--max_pairs", "1"]
    for flags in ([], ["--no-refine"], ["--resolution", "fine"]):
        assert main([*command, *flags]) == 0
    assert seen == [("predict_pair", None, True), ("predict_pair", None, False), ("match", "fine", True)]


@pytest.mark.parametrize(
    ("flags", "message"), [(["--weights", "none"], "Nothing to measure"), (["--scenes", "attic"], "No scene")]
)
def test_command_line_errors_are_one_sentence(folder, capsys, flags, message):
    assert main([str(folder), *flags]) == 2
    assert message in capsys.readouterr().err


def test_thresholds_are_kept_in_the_report(folder):
    thresholds = Thresholds(pose_px=2.0, seed=3)
    config = EvaluationConfig(scenes=["posed"], max_pairs=1, thresholds=thresholds)
    assert evaluate_folder(Oracle(), folder, config).thresholds == thresholds


def test_training_evaluates_on_photos_and_goes_on(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(mast3r.training, "SceneEngine", PlaneEngine)
    flags = ["--preset", "tiny", "--device", "cpu", "--steps", "3", "--eval_every", "2"]
    flags += ["--eval_data", str(folder), "--eval_data_pairs", "1", "--output_dir", str(tmp_path / "run")]
    mast3r.training.train(mast3r.training.get_args_parser().parse_args(flags))
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if line["kind"] == "eval"]
    assert len(evaluations) == 2
    assert all({"within_8px", "photo_auc20", "photo_matches"} <= line.keys() for line in evaluations)
