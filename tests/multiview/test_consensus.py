"""Several sets of matches, some wrong as a whole, and the geometry that the right ones share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multiview.consensus import Consensus, ConsensusConfig, agreeing_matches
from multiview.matches import Matches, concatenated
from multiview.photometric import PlacedMatches
from tests.multiview.two_view_scene import TwoViewScene


def placed(matches: Matches, *, confirmed: float = 1.0, seed: int = 0) -> PlacedMatches:
    """Matches whose patches look alike, with texture in some of them."""
    count = len(matches)
    ones, told = np.ones(count), np.random.default_rng(seed).random(count) < confirmed
    return PlacedMatches(matches, ones, np.where(told, 0.1, 9.0), ones, np.ones(count, bool), told)


def shifted(scene: TwoViewScene, count: int, shift: tuple[float, float], seed: int) -> Matches:
    """A window taken for the next one: neighbours agree, all are wrong."""
    xy0 = np.random.default_rng(seed).uniform(40, 150, (count, 2))
    return Matches(xy0, xy0 + shift, np.ones(count), scene.size, scene.size)


def errors(scene: TwoViewScene, matches: Matches) -> np.ndarray:
    """Distances from where the scene's points are."""
    local = scene.pose1.inverse().apply(scene.points(0, matches.xy0))
    return np.linalg.norm(scene.cameras[1].project(local) - matches.xy1, axis=1)


@pytest.mark.parametrize("focals", [(300.0, 300.0), (300.0, 420.0)])
def test_sets_that_agree_outvote_larger_ones_that_do_not(focals):
    scene = TwoViewScene(focals)
    right = [scene.matches(60, noise=0.1, outliers=0.3, seed=k) for k in range(3)]
    wrong = [shifted(scene, 90, shift, k) for k, shift in enumerate(((70, 30), (-20, 60), (90, -25)))]
    found = agreeing_matches([placed(m) for m in (*wrong, *right)])
    assert found is not None
    assert [len(m) < 0.3 * 90 for m in found[:3]] == [True] * 3
    for one in found[3:]:
        assert len(one) > 0.65 * 60
        assert (errors(scene, one) < 1).mean() > 0.9


def test_matches_without_texture_follow_the_others():
    scene = TwoViewScene()
    matches = scene.matches(200, noise=0.1, outliers=0.4)
    found = agreeing_matches([placed(matches, confirmed=0.5)])
    assert found is not None
    assert len(found[0]) > 0.55 * 200
    assert (errors(scene, found[0]) < 1).mean() > 0.9


def test_nothing_in_common_gives_none():
    scene = TwoViewScene()
    rng = np.random.default_rng(0)
    unrelated = [
        placed(Matches(*rng.uniform(0, 200, (2, 60, 2)), np.ones(60), scene.size, scene.size)) for _ in range(4)
    ]
    assert agreeing_matches(unrelated) is None
    nothing = placed(scene.matches(10).filter(np.zeros(10, bool)))
    assert agreeing_matches([nothing, nothing]) is None
    assert agreeing_matches([]) is None
    untold = placed(scene.matches(200), confirmed=0.0)
    assert agreeing_matches([untold]) is None


def test_rival_geometries_come_apart():
    scene = TwoViewScene()
    right = [scene.matches(60, noise=0.1, seed=k) for k in range(3)]
    wrong = shifted(scene, 90, (70, 30), 1)
    found = Consensus([placed(m) for m in (wrong, *right)]).rivals(4)
    assert 2 <= len(found) <= 4
    counts = [len(one) for one in found]
    assert counts == sorted(counts, reverse=True)
    assert len(found[0]) > 0.9 * 180
    assert (errors(scene, found[0]) < 1).mean() > 0.9
    assert any(len(one) > 80 and (errors(scene, one) > 5).mean() > 0.9 for one in found[1:])
    assert len(Consensus([placed(m) for m in (wrong, *right)]).rivals(1)) == 1
    assert Consensus([placed(wrong.filter(np.zeros(90, bool)))]).rivals(4) == []


def test_sets_that_the_photos_confirm_outvote_larger_ones_that_they_do_not():
    scene = TwoViewScene()
    right = placed(scene.matches(60, noise=0.1, seed=0))
    window = shifted(scene, 90, (70, 30), 1)
    unlike = Matches(*np.random.default_rng(0).uniform(0, 200, (2, 400, 2)), np.ones(400), scene.size, scene.size)
    both = placed(concatenated([window, unlike]))
    wrong = replace(both, checked=np.arange(490) < 90)
    found = agreeing_matches([wrong, right])
    assert found is not None
    assert len(found[0]) < 0.3 * 90
    assert len(found[1]) > 0.9 * 60


@given(degrees=st.floats(-15, -5), scale=st.sampled_from([1, 4, 16]))
@settings(deadline=None, max_examples=10)
def test_the_size_of_the_photos_does_not_matter(degrees, scale):
    scene = TwoViewScene(degrees=degrees)
    matches = scene.matches(150, noise=0.05, outliers=0.3)
    larger = replace(
        matches,
        xy0=scale * (matches.xy0 + 0.5) - 0.5,
        xy1=scale * (matches.xy1 + 0.5) - 0.5,
        size0=(scale * 320, scale * 240),
        size1=(scale * 320, scale * 240),
    )
    small, large = (agreeing_matches([placed(m)]) for m in (matches, larger))
    assert small is not None
    assert large is not None
    np.testing.assert_array_equal(large[0].xy0, scale * (small[0].xy0 + 0.5) - 0.5)


@pytest.mark.parametrize("wrong", [{"tolerance": 0}, {"kept": 0.001}, {"least": 0}, {"max_iterations": 0}])
def test_options_are_checked(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}.*got"):
        ConsensusConfig(**wrong)
