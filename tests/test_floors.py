"""The house: imports only point down the floors, and the code keeps its shape."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"croco": 1, "multiview": 1, "dust3r": 2, "mast3r": 3}
ENTRANCES = ("demo.py", "train.py", "mast3r/__main__.py", "mast3r/cli", "mast3r/demo", "mast3r/evaluate.py")
MODULES = [*sorted(p for name in FLOORS for p in (ROOT / name).rglob("*.py")), ROOT / "demo.py", ROOT / "train.py"]
IDS = [str(p.relative_to(ROOT)) for p in MODULES]


def is_entrance(path: Path) -> bool:
    return str(path.relative_to(ROOT)).startswith(ENTRANCES)


def floor_of(path: Path) -> tuple[int, str]:
    package = path.relative_to(ROOT).parts[0]
    return (4, package) if is_entrance(path) else (FLOORS[package], package)


def imported_packages(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_imports_point_down(path: Path):
    floor, package = floor_of(path)
    for module in imported_packages(ast.parse(path.read_text())):
        other = module.split(".")[0]
        if other in FLOORS and other != package:
            assert FLOORS[other] < floor, f"{path.relative_to(ROOT)} imports {module}, which is not on a lower floor"


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_library_does_not_reach_for_its_entrances(path: Path):
    if is_entrance(path):
        return
    for module in imported_packages(ast.parse(path.read_text())):
        assert not module.startswith(("mast3r.cli", "mast3r.demo", "mast3r.evaluate.")), f"{path}: {module}"


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_code_style(path: Path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 80, f"{node.name} has {length} lines"
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), "star import"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec"}, f"{node.func.id}() at line {node.lineno}"
        assert not isinstance(node, ast.Assert), f"assert at line {node.lineno}: raise ValueError instead"


def test_functions_are_short():
    lengths = sorted(
        (node.end_lineno or 0) - node.lineno + 1
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    )
    assert lengths[len(lengths) // 2] <= 15
    assert lengths[int(0.9 * len(lengths))] <= 40
