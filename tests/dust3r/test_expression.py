"""Constructor expressions: what is understood, and that nothing else is."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dust3r.utils.expression import build, parse_call


@dataclass(frozen=True)
class Term:
    """Records how it was combined."""

    text: str

    def __add__(self, other):
        return Term(f"({self.text}+{getattr(other, 'text', other)})")

    def __mul__(self, other):
        return Term(f"({self.text}*{other})")

    __rmul__ = __mul__

    def __rmatmul__(self, other):
        return Term(f"({other}@{self.text})")


def term(*args, **kwargs):
    items = [str(getattr(a, "text", a)) for a in args] + [f"{k}={getattr(v, 'text', v)}" for k, v in kwargs.items()]
    return Term(f"t({','.join(items)})")


REGISTRY = {"T": term, "L21": Term("L21"), "torch.float16": Term("half")}

literals = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple),
    max_leaves=8,
)


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True).map("k".__add__), literals, max_size=5))
def test_every_literal_call_round_trips(kwargs):
    text = f"Model({', '.join(f'{key}={value!r}' for key, value in kwargs.items())})"
    assert parse_call(text) == ("Model", kwargs)


@given(st.text(max_size=60))
def test_arbitrary_text_never_raises_anything_else(text):
    for function in (parse_call, lambda t: build(t, REGISTRY)):
        with contextlib.suppress(ValueError):
            function(text)


def test_model_string():
    name, kwargs = parse_call("Net(size=(512, 512), mode=('exp', -inf, inf), n=nan, flag = True, deep=[(1, [2.5])])")
    assert name == "Net"
    assert math.isnan(kwargs.pop("n"))
    assert kwargs == {
        "size": (512, 512),
        "mode": ("exp", -math.inf, math.inf),
        "flag": True,
        "deep": [(1, [2.5])],
    }


ATTACKS = [
    "__import__('os').system('echo owned')",
    "Net(size=__import__('os').getcwd())",
    "Net(size=open('/etc/passwd').read())",
    "Net(**{'size': 1})",
    "Net(*[1])",
    "Net(size=[].__class__.__base__.__subclasses__())",
    "Net(size=(lambda: 1)())",
    "Net(size=[x for x in (1, 2)])",
    "Net(size=f'{1}')",
    "Net(size='a' * 10**9)",
    "Net(size=10**10**10)",
    "Net(size={1: 2})",
    "Net(size=b'x')",
    "Net(size=1 if True else 2)",
    "Net(size=1, size=2)",
    "Net(size:=1)",
    "Net(size=not 1)",
    "Net(size=-'a')",
    "Net(size=...)",
    "Net(size=1j)",
    "Net.build(size=1)",
    "Net(size=1); Net()",
    "Net",
    "",
    "(" * 3000,
    "-" * 100_000 + "1",
    "Net(size=" + "[" * 150 + "]" * 150 + ")",
    "x" * 200_000,
]


@pytest.mark.parametrize("text", ATTACKS, ids=range(len(ATTACKS)))
def test_refused(text):
    with pytest.raises(ValueError, match=r"\w"):
        parse_call(text)
    with pytest.raises(ValueError, match=r"\w"):
        build(text, {"T": term})


@pytest.mark.parametrize("text", ["Net(1)", "Net(size=Other())", "Net(size=1 + 1)", "Net(size=other)"])
def test_model_strings_are_literal(text):
    with pytest.raises(ValueError, match=r"\w"):
        parse_call(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("L21", "L21"),
        ("T()", "t()"),
        ("T(L21, alpha=0.2)", "t(L21,alpha=0.2)"),
        (
            "T(T(L21, norm='?avg'), 0.2) + 0.075*T(x=(1, -inf))",
            "(t(t(L21,norm=?avg),0.2)+(t(x=(1, -inf))*0.075))",
        ),
        ("T() - T(1)", "(t()+(t(1)*-1))"),
        ("-T()", "(t()*-1)"),
        ("1000 @ T(split='train') + 2*T()", "((1000@t(split=train))+(t()*2))"),
        ("T(nq='torch', fp16=torch.float16)", "t(nq=torch,fp16=half)"),
        ("T(10_000 * 2 + 1)", "t(20001)"),
    ],
)
def test_build(text, expected):
    assert build(text, REGISTRY).text == expected


@pytest.mark.parametrize(
    "text",
    [
        "U()", "T(U)", "L21()", "T().text", "T()()", "T('a' * 3)", "T([1] * 3)", "T('a' + 'b')", "T() / 2",
        "T() ** 2",         "T()[0]", "T() and T()", "T() < T()", "torch.load", "torch.float16.name",
        "T() @ T()", "~T()", "True + 1",
    ],
)  # fmt: skip
def test_build_refuses(text):
    with pytest.raises(ValueError, match=r"\w"):
        build(text, REGISTRY)


def test_errors_of_constructors_pass_through():
    with pytest.raises(ZeroDivisionError):
        build("F(0)", {"F": lambda x: 1 / x})


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match=r"unknown name 'L22'.*L21"):
        build("T(L22)", REGISTRY)
