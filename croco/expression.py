"""Constructor expressions as text, evaluated without `eval`.

Checkpoints and command lines of the family describe models, losses and datasets as Python-like text:
`CroCoNet(img_size=224)` or `1000 @ Pairs(split='train') + Loss(L21, alpha=0.2)`. Here such text is parsed to
a syntax tree and walked; only literals, registered names, calls of them and a few operators exist.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

MAX_LENGTH = 100_000
MAX_DEPTH = 100

_NAMES: dict[str, float] = {"inf": math.inf, "nan": math.nan}
_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: lambda a, b: a + -1 * b,  # criteria define + and *, not -
    ast.Mult: operator.mul,
    ast.MatMult: operator.matmul,
}


def parse_call(text: str) -> tuple[str, dict[str, Any]]:
    """Parse a model string such as `"CroCoNet(img_size=(512, 512), depth_mode=('exp', -inf, inf))"`.

    Args:
        text: Exactly one call with keyword arguments, whose values are literals: numbers, strings, True,
            False, None, tuples, lists, the names inf and nan, and unary minus of numbers.

    Returns:
        The called name and its keyword arguments.

    Raises:
        ValueError: If the text is anything else.
    """
    node = _parse(text)
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        _refuse(node, "a model string is one call such as Model(size=1)")
    if node.args:
        _refuse(node, "a model string has keyword arguments only")
    return node.func.id, _keywords(node, {}, 1)


def build(text: str, registry: Mapping[str, object]) -> Any:
    """Evaluate an expression of registered names.

    Args:
        text: Literals (as in `parse_call`), registered names (dotted ones too, if registered so), calls of
            registered names with positional and keyword arguments, and `+`, `-`, `*`, `@`, unary minus
            between results and numbers.
        registry: What each name stands for; callables may be called.

    Returns:
        Whatever the expression builds.

    Raises:
        ValueError: If the text is anything else. Errors of the called objects pass through.
    """
    return _value(_parse(text), registry, 1)


def _parse(text: str) -> ast.expr:
    if len(text) > MAX_LENGTH:
        raise ValueError(f"expression of {len(text)} characters is too long; the limit is {MAX_LENGTH}.")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"cannot parse the expression {_short(text)}: {error}.") from None


def _value(node: ast.expr, registry: Mapping[str, object], depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError(f"expression is nested deeper than {MAX_DEPTH} levels; simplify it.")
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str | None):
        return node.value
    if isinstance(node, ast.Tuple | ast.List):
        items = [_value(item, registry, depth + 1) for item in node.elts]
        return tuple(items) if isinstance(node, ast.Tuple) else items
    if isinstance(node, ast.Name | ast.Attribute):
        return _lookup(node, registry)
    if isinstance(node, ast.UnaryOp):
        return _signed(node, registry, depth)
    if isinstance(node, ast.BinOp) and registry:
        return _combined(node, registry, depth)
    if isinstance(node, ast.Call) and registry:
        return _called(node, registry, depth)
    _refuse(node, "only literals are allowed" if not registry else "only calls, literals, + - * @ are allowed")


def _lookup(node: ast.Name | ast.Attribute, registry: Mapping[str, object]) -> Any:
    name = _dotted(node)
    if name in registry:
        return registry[name]
    if name in _NAMES:
        return _NAMES[name]
    known = ", ".join(sorted({*registry, *_NAMES}))
    raise ValueError(f"unknown name {name!r} in an expression; known names: {known}.")


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    if isinstance(node, ast.Name):
        return node.id
    _refuse(node, "attributes of results are not accessible")


def _signed(node: ast.UnaryOp, registry: Mapping[str, object], depth: int) -> Any:
    operand = _value(node.operand, registry, depth + 1)
    if isinstance(node.op, ast.USub | ast.UAdd) and _is_operand(operand, registry):
        return operand if isinstance(node.op, ast.UAdd) else -1 * operand
    _refuse(node, "only a sign in front of a number or result is allowed")


def _combined(node: ast.BinOp, registry: Mapping[str, object], depth: int) -> Any:
    function = _OPERATORS.get(type(node.op))
    left, right = (_value(side, registry, depth + 1) for side in (node.left, node.right))
    if function is None or not (_is_operand(left, registry) and _is_operand(right, registry)):
        _refuse(node, "only + - * @ between results and numbers are allowed")
    try:
        return function(left, right)
    except TypeError as error:
        raise ValueError(f"cannot combine the two sides of {_short(ast.unparse(node))}: {error}.") from None


def _is_operand(value: object, registry: Mapping[str, object]) -> bool:
    """Numbers, and with a registry built objects; never strings or sequences, whose products can explode."""
    if isinstance(value, bool | str | tuple | list) or value is None:
        return False
    return bool(registry) or isinstance(value, int | float)


def _called(node: ast.Call, registry: Mapping[str, object], depth: int) -> Any:
    function = _lookup(node.func, registry) if isinstance(node.func, ast.Name | ast.Attribute) else None
    if not callable(function):
        _refuse(node, "only registered names can be called")
    args = [_value(arg, registry, depth + 1) for arg in node.args]
    return function(*args, **_keywords(node, registry, depth))


def _keywords(node: ast.Call, registry: Mapping[str, object], depth: int) -> dict[str, Any]:
    names = [str(keyword.arg) for keyword in node.keywords if keyword.arg is not None]
    if len(set(names)) != len(node.keywords):
        _refuse(node, "each argument is named once and ** is not allowed")
    return {name: _value(k.value, registry, depth + 1) for name, k in zip(names, node.keywords)}


def _refuse(node: ast.AST, rule: str) -> NoReturn:
    raise ValueError(f"expression not allowed: {_short(ast.unparse(node))} ({rule}).")


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
