"""OpenEXR files: files of the reference library, round trips, damaged files."""

from __future__ import annotations

import base64
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from multiview.exr import read_exr, write_exr
from multiview.images import ImageError, ImageNotFoundError

# written by the OpenEXR library 3.5: channel Y, half floats, 20 rows of (6 k .. 6 k + 2) / 8 - 3 and three times 2.5
LIBRARY = {
    "RLE": (
        "b}umj0ssI2V`yP+Ze?t90ApxuX>)V{6951JSpWe50000000031000310001EZ*6dLWpi_BZ*Bl%Z*6dLWpi_BZ*Bkq00001WMOn+"
        "S7~l!Z+8G<Z+J3k01yBG000000000000jU5022TJ0Ay)%aBN|DS7~l!Z+8G<Z+J3k01yBG000000000000jU5022TJ0BmV)WlwTs"
        "WpV&)X>Mgta%5$400961003}lcx7xsb8uy2bW&k-X>R~#Y;R$700aO40001hKXYSpWo2$xX>Me1cSB`vbY*e?b~0uF2mk;800000"
        "00000b7OL4Wo}n#Ze(wFS7~H)XaHtxZ((!*1ONa4004kLba`-P0CRM5X>Ml#4FCWDb7Ns{Y-w&~X>DO=WdPCv00000008Cz00000"
        "008;{00000000dF00000001BY00000001%q00000002b-00000003A500000003+P00000004jj00000005K%00000005{000000"
        "006uK00000007Ve000000086y00000008&`00000000aF00000001BZ00000001-t00000002k>0000000000000aC0002Oz`=mQ"
        "06_pj06_r&000aC004l%K)?XN06_pj06_u(000XB000620)YBHe}DvlfCB&k01E&B0RI34fciRre+htq1ONa43IG5A{{RJm`>=$K"
        "fPe)6000XB009301c3Uwfq{j9fCc~n01E&B00IC4fcn0Gfr5a52LJ#73;+NCfIz@N06_pj06_pj2mk;83;+NC075`QfI<L406_pj"
        "2><{93;+NCfJ4AT07L*m06_pj3IG5A3;+NCfJC4~z(fE+06_pj3jhEB3;+NCKt*6hfJFd706_pj3;+NC3;+NC07f82Kt=#T06_pj"
        "4FCWD3;+NCz((Lk07n2p06_pj4gdfE3;+NCfJdN5z()W<06_pj4*&oF3;+NCAV@GsKu7>V06_pj5C8xG3;+NCfJl%?phy5g06_pj"
        "5dZ)H3;+NC;7IUD07(Er06_pj5&!@I3;+NCKuJ(ZU`YT$06_pj6951J3;+NCph>Vvz)1i>06_pj"
    ),
    "ZIPS": (
        "b}umj0ssI2V`yP+Ze?t90ApxuX>)V{6951JSpWe50000000031000310001EZ*6dLWpi_BZ*Bl%Z*6dLWpi_BZ*Bkq00002WMOn+"
        "S7~l!Z+8G<Z+J3k01yBG000000000000jU5022TJ0Ay)%aBN|DS7~l!Z+8G<Z+J3k01yBG000000000000jU5022TJ0BmV)WlwTs"
        "WpV&)X>Mgta%5$400961003}lcx7xsb8uy2bW&k-X>R~#Y;R$700aO40001hKXYSpWo2$xX>Me1cSB`vbY*e?b~0uF2mk;800000"
        "00000b7OL4Wo}n#Ze(wFS7~H)XaHtxZ((!*1ONa4004kLba`-P0CRM5X>Ml#4FCWDb7Ns{Y-w&~X>DO=WdPCv00000008Cz00000"
        "008;{00000000gG00000001Ha00000001@u00000002q?00000003SB000000043V00000004#p00000005c-00000006E600000"
        "006=Q00000007nk00000008O&000000090100000000sL00000001Tf000000024z00000002${0000000000000aC0002Oz`=mQ"
        "06_pj06_r&000aC004l%K)?XN06_pj06_u(000aC0002KfV}{{06_pj06_x)000aC0002G0J#9T06_pj06_!*000aC0000005AYF"
        "06_pj06_%+000aC0000w06PFY06_pj06_)-000aC0000!fIa{}06_pj06_-;000aC004kMz(4>&06_pj06_=<000aC0000&Ktg~*"
        "06_pj06_@=000aC004kPz(W8;06_pj06_`>000aC004kQphUn#06_pj06_}?000aC002NmU`2pM06_pj06`1@000aC0000+AVxq&"
        "06_pj06`4^000aC006*7;6?yP06_pj06`7_000aC004kTphv(*06_pj06`A`000aC001CJFi1d106_pj06`D{000aC004kUkVv3N"
        "06_pj06`G|000aC007`f@JIkj06_pj06`J}000aC002NqP)T4(06_pj06`M~000aC005v#ut~s406_pj06_"
    ),
    "ZIP": (
        "b}umj0ssI2V`yP+Ze?t90ApxuX>)V{6951JSpWe50000000031000310001EZ*6dLWpi_BZ*Bl%Z*6dLWpi_BZ*Bkq00003WMOn+"
        "S7~l!Z+8G<Z+J3k01yBG000000000000jU5022TJ0Ay)%aBN|DS7~l!Z+8G<Z+J3k01yBG000000000000jU5022TJ0BmV)WlwTs"
        "WpV&)X>Mgta%5$400961003}lcx7xsb8uy2bW&k-X>R~#Y;R$700aO40001hKXYSpWo2$xX>Me1cSB`vbY*e?b~0uF2mk;800000"
        "00000b7OL4Wo}n#Ze(wFS7~H)XaHtxZ((!*1ONa4004kLba`-P0CRM5X>Ml#4FCWDb7Ns{Y-w&~X>DO=WdK3}00000006@Q00000"
        "00000004Oa004MiZH&nc!cYuEjl_kj_@XP8$j>3b2`MGG1WNdAaX>K6fm1AbJetMUnt`>3#zfa<(XIF5y;pwWmZ{S-%g)q`migCn"
        "o~0ZdxnJ18$JxT$eFyv3^n_!?4F+NaC)CwCjKl!fvY6lkik%DN1a}ZVREHnSby~s@0000i0001ZUOmJy0RRvH1i&hyiNSUz#*bta"
        "Llm1EPI9RUc2X$G=Fpi&WAT4!K^Vd"
    ),
}


def expected() -> np.ndarray:
    image = np.arange(20 * 6).reshape(20, 6) / 8 - 3
    image[:, 3:] = 2.5
    return image


@pytest.mark.parametrize("compression", LIBRARY)
def test_files_of_the_reference_library(tmp_path, compression):
    path = tmp_path / "library.exr"
    path.write_bytes(base64.b85decode(LIBRARY[compression]))
    image = read_exr(path)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, expected())


shapes = st.one_of(
    st.tuples(st.integers(1, 40), st.integers(1, 30)),
    st.tuples(st.integers(1, 40), st.integers(1, 30), st.sampled_from([3, 4])),
)


@settings(deadline=None, max_examples=40)
@given(
    hnp.arrays(np.float32, shapes, elements=st.floats(-6e4, 6e4, width=16)),
    st.booleans(),
    st.sampled_from(["none", "ZIPS", "ZIP"]),
)
def test_round_trip(tmp_path_factory, image, half, compression):
    path = tmp_path_factory.mktemp("exr") / "a.exr"
    write_exr(path, image, half=half, compression=compression)
    np.testing.assert_array_equal(read_exr(path), image)


def test_special_values(tmp_path: Path):
    image = np.array([[np.inf, -np.inf, np.nan, 0.0]], dtype=np.float32)
    write_exr(tmp_path / "a.exr", image)
    np.testing.assert_array_equal(read_exr(tmp_path / "a.exr"), image)
    write_exr(tmp_path / "b.exr", np.zeros((300, 300), np.float32))
    assert (tmp_path / "b.exr").stat().st_size < 10_000


def test_damaged_and_foreign_files_are_refused(tmp_path: Path):
    path = tmp_path / "a.exr"
    write_exr(path, np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32))
    whole = path.read_bytes()
    for length in (0, 3, 8, 20, 100, 300, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ImageError):
            read_exr(path)
    rng = np.random.default_rng(1)
    for _ in range(300):  # any byte may be wrong: an image or a clear refusal, never another error
        broken = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            broken[place] = rng.integers(256)
        path.write_bytes(bytes(broken))
        try:
            read_exr(path)
        except ImageError:
            pass
    for version, message in ((0x202, "tiles"), (0x802, "deep"), (0x1002, "parts")):
        path.write_bytes(whole[:4] + struct.pack("<i", version) + whole[8:])
        with pytest.raises(ImageError, match=message):
            read_exr(path)
    place = whole.index(b"compression\0compression\0") + len(b"compression\0compression\0") + 4
    path.write_bytes(whole[:place] + b"\x04" + whole[place + 1 :])
    with pytest.raises(ImageError, match="PIZ"):
        read_exr(path)
    with pytest.raises(ImageNotFoundError):
        read_exr(tmp_path / "missing.exr")
    for shape in ((3,), (2, 2, 2), (0, 4)):
        with pytest.raises(ValueError, match="shape"):
            write_exr(path, np.zeros(shape, np.float32))
