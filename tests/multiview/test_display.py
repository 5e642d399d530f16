"""Results in a notebook: pictures inside, text escaped, nothing fetched."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest

from multiview.display import contact_sheet, picture_html, table_html
from multiview.images import ImageTransform
from multiview.matches import Matches
from multiview.pointmaps import Pointmap
from multiview.reconstruction import ReconstructedImage, Reconstruction, Tracks
from tests.multiview.synthetic_pair import make_pair
from tests.multiview.synthetic_scene import make_scene

STATUS = "metric-predicted"


def pictures(text: str) -> list[PIL.Image.Image]:
    """The pictures inside some HTML."""
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    assert text.count("<img") == len(found)  # none comes from elsewhere
    return [PIL.Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


@pytest.fixture(scope="module")
def scene() -> Reconstruction:
    truth = make_scene(4)
    images = []
    for i, (name, camera, pose) in enumerate(zip(truth.names, truth.cameras, truth.poses)):
        size = (camera.width, camera.height)
        small = (size[0] // 20, size[1] // 20)
        points = np.tile(truth.points[:1].astype(np.float32), (small[1], small[0], 1))
        images.append(
            ReconstructedImage(
                name,
                size,
                "registered",
                camera=camera,
                pose=pose,
                component=i // 3,
                pointmap=Pointmap(points, np.full(points.shape[:2], 2, np.float32), "world"),
                transform=ImageTransform.resize(size, small),
                colors=np.full((*small[::-1], 3), 60 * i, np.uint8),
            )
        )
    images.append(ReconstructedImage("<b>.jpg", (0, 0), "failed", "It is <torn> & damaged."))
    return Reconstruction(tuple(images), Tracks.empty(), STATUS)


def test_matches_show_themselves():
    matches = Matches(np.eye(2) * 9, np.eye(2) * 8, np.ones(2), (40, 30), (30, 40))
    [picture] = pictures(matches._repr_html_())
    assert picture.height == 200
    assert pictures(matches.filter(np.zeros(2, bool))._repr_html_())


def test_pair_shows_itself():
    result = make_pair()
    text = result._repr_html_()
    [picture] = pictures(text)
    assert picture.width > picture.height / 3
    assert "PairResult(" in text
    assert result.plot(height=100).height > 300
    assert pictures(replace(result, pose1=None, own_pointmap1=None, num_inliers=0)._repr_html_())


def test_scene_shows_itself(scene):
    text = scene._repr_html_()
    assert len(pictures(text)) == 1 + len(scene.components)
    assert text.count("<tr>") == 1 + len(scene)
    assert "&lt;b&gt;.jpg" in text
    assert "It is &lt;torn&gt; &amp; damaged." in text
    assert len(text) < 200_000


def test_empty_and_failed_scenes_show_themselves(scene):
    failed = Reconstruction(scene.images[-1:], Tracks.empty(), "arbitrary")
    assert len(pictures(failed._repr_html_())) == 1
    empty = Reconstruction((), Tracks.empty(), "arbitrary")
    assert pictures(empty._repr_html_()) == []
    with pytest.raises(ValueError, match="no image"):
        contact_sheet(empty)


def test_contact_sheet_breaks_its_rows(scene):
    wide, narrow = contact_sheet(scene, height=40, width=10_000), contact_sheet(scene, height=40, width=60)
    assert wide.height == 40
    assert narrow.width <= 60
    assert narrow.height > 3 * 40
    assert contact_sheet(scene, height=40, width=10_000, limit=2).width < wide.width


def test_parts_are_escaped():
    assert table_html(["<"], [["&"]]) == "<table><tr><th>&lt;</th></tr><tr><td>&amp;</td></tr></table>"
    assert 'alt="&quot;"' in picture_html(PIL.Image.new("RGBA", (3, 2)), '"')
