"""The matches of a scene's pairs, placed by full-size photos."""

from __future__ import annotations

import logging
from dataclasses import astuple
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from mast3r.alignment.problem import AlignmentProblem
from mast3r.pairs.config import PairConfig
from mast3r.pairs.map_matching import match_pairs
from mast3r.pairs.two_view import TokenCache, decode, encode
from mast3r.scenes.pair_cache import PairCache
from mast3r.scenes.pair_store import OrderMaps, PairEntry, PairStore
from mast3r.scenes.photos import Photo, list_photos, read_photos
from mast3r.scenes.placed_pairs import placed_by_photos
from multiview.images import as_image
from tests.mast3r.stand_in_models import PatchModel, texture

SIZE = 480, 360
BOX = (284, 213, 480, 360)  # the part of the first photo that the second one shows
MODEL = PatchModel(side=96)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    """Two photos: a picture, and an enlarged part of it."""
    folder, picture = tmp_path_factory.mktemp("photos"), PIL.Image.fromarray(texture(*SIZE))
    picture.save(folder / "a.png")
    picture.resize(SIZE, PIL.Image.Resampling.BICUBIC, box=BOX).save(folder / "b.png")
    return [folder / "a.png", folder / "b.png"]


def problem_of(photos: list[Photo], folder: Path) -> AlignmentProblem:
    """The pair of two photos, as the network sees it."""
    inputs = [photo.input for photo in photos if photo.input is not None]
    store, orders = PairStore(PairCache(folder), "patches"), [(0, 1), (1, 0)]
    with torch.inference_mode():
        seen = decode(MODEL, encode(MODEL, inputs), [x.shape for x in inputs], orders)
        matches = match_pairs([seen], PairConfig())[0]
    passes = [OrderMaps(*(np.array(m) for m in astuple(OrderMaps.of(order)))) for order in seen]
    store.put_pair(*(x.key for x in inputs), PairEntry(*passes, matches))
    return AlignmentProblem(tuple(inputs), tuple(photo.constraints for photo in photos), ((0, 1),), store)


def share_right(problem: AlignmentProblem, matches) -> float:
    """Share of matches within 2 pixels of the second photo."""
    xy0, xy1 = (x.transform.inverse().apply(xy) for x, xy in zip(problem.inputs, (matches.xy0, matches.xy1)))
    scale = SIZE[0] / (BOX[2] - BOX[0])
    return float((np.linalg.norm((xy0 + 0.5 - BOX[:2]) * scale - 0.5 - xy1, axis=1) < 2).mean())


def test_a_closer_look_finds_what_the_network_missed(files, tmp_path):
    photos = read_photos(MODEL, list_photos(files))
    problem = problem_of(photos, tmp_path)
    closer = TokenCache(MODEL), PairConfig()
    found = placed_by_photos(photos, problem, closer=closer)[0, 1].matches
    assert share_right(problem, found) > 0.9 > 0.5 > share_right(problem, problem.matches((0, 1)))
    again = placed_by_photos(photos, problem, closer=closer)[0, 1].matches
    np.testing.assert_array_equal(found.xy1, again.xy1)
    without = placed_by_photos(photos, problem)[0, 1].matches
    assert share_right(problem, without) < 0.5, "another way to place is another entry of the cache"


def test_a_photo_that_is_gone_leaves_the_matches_as_they_are(files, tmp_path, caplog):
    copies = [tmp_path / file.name for file in files]
    for copy, file in zip(copies, files):
        copy.write_bytes(file.read_bytes())
    photos = read_photos(MODEL, list_photos(copies))
    problem = problem_of(photos, tmp_path / "cache")
    copies[1].unlink()
    with caplog.at_level(logging.WARNING):
        assert placed_by_photos(photos, problem) == {}
    assert "a.png and b.png stay as they are" in caplog.text


def test_progress_counts_pairs(files, tmp_path):
    photos = read_photos(MODEL, list_photos([as_image(file) for file in files]))
    told: list[tuple[int, int]] = []
    placed = placed_by_photos(
        photos, problem_of(photos, tmp_path), device=torch.device("cpu"), on_done=lambda *n: told.append(n)
    )
    assert told == [(1, 1)]
    assert list(placed) == [(0, 1)]


def test_fewer_points_of_each_photo_where_there_are_many_pairs(files, tmp_path, monkeypatch):
    moved = as_image(np.roll(np.asarray(as_image(files[0]).pixels), 10, axis=1))
    photos = read_photos(MODEL, list_photos([as_image(files[0]), moved]))
    problem = problem_of(photos, tmp_path)
    many = placed_by_photos(photos, problem)[0, 1].matches
    monkeypatch.setattr("mast3r.scenes.placed_pairs._CARRIED", 200)
    monkeypatch.setattr("mast3r.scenes.placed_pairs._LEAST_POINTS", 60)
    few = placed_by_photos(photos, problem)[0, 1].matches
    assert 50 <= len(few.xy0) < 0.8 * len(many.xy0)
    monkeypatch.setattr("mast3r.scenes.placed_pairs._LEAST_POINTS", 10_000)
    np.testing.assert_array_equal(placed_by_photos(photos, problem)[0, 1].matches.xy1, many.xy1)


def test_how_far_the_photos_believe_a_pair(files, tmp_path):
    shown = as_image(files[0])
    moved = as_image(np.roll(np.asarray(shown.pixels), 10, axis=1))
    other = as_image(texture(*SIZE, seed=9))
    for second, low, high in ((moved, 0.7, 1.0), (other, 0.0, 0.2)):
        photos = read_photos(MODEL, list_photos([shown, second]))
        pair = placed_by_photos(photos, problem_of(photos, tmp_path))[0, 1]
        assert low <= pair.believed <= high
        assert placed_by_photos(photos, problem_of(photos, tmp_path))[0, 1].believed == pair.believed
