"""No module of multiview needs, directly or through others, one that needs it."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "multiview"


def needed(tree: ast.AST) -> set[str]:
    """Modules of the package that are imported at run time, on top or inside functions."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "multiview":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("multiview.")}
        else:
            found |= needed(node)
    return found


def test_imports_form_no_circle():
    graph = {p.stem: needed(ast.parse(p.read_text())) for p in PACKAGE.glob("*.py") if p.stem != "__init__"}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert order.index("matches") < order.index("results")
    assert order.index("reconstruction") < order.index("colmap")


def test_one_module_imports_pycolmap():
    importers = []
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            importers += [path.stem] * any(name.split(".")[0] == "pycolmap" for name in names)
    assert importers == ["colmap_model"]
