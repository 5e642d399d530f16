"""The public names and signatures of all packages are those written down in `api_surface.txt`.

A change that is meant: `python tests/test_api_surface.py` writes the file anew; look at its diff before committing.
"""

from __future__ import annotations

import ast
import difflib
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LISTING = ROOT / "tests" / "api_surface.txt"
PACKAGES = ("croco", "dust3r", "mast3r", "multiview")
ENTRANCES = ("mast3r/__main__.py", "mast3r/cli", "mast3r/demo", "mast3r/evaluate.py", "dust3r/demo.py")
"""Programs are used by their flags, not by their names."""
OPTIONAL = {"gradio"}
"""Packages of extras: modules that need them are not imported here if they are missing."""

Function = (ast.FunctionDef, ast.AsyncFunctionDef)


def public_modules() -> list[Path]:
    """Modules of the library, packages too."""
    files = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
    hidden = [any(part.startswith("_") for part in module_name(path).split(".")) for path in files]
    return [
        path
        for path, private in zip(files, hidden)
        if not private and not str(path.relative_to(ROOT)).startswith(ENTRANCES)
    ]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_public(name: str) -> bool:
    return not name.startswith("_") or name in ("__init__", "__call__", "__len__", "__getitem__", "__iter__")


def describe(path: Path) -> list[str]:
    """Lines `module.name(...)` of one module."""
    tree, name = ast.parse(path.read_text()), module_name(path)
    lines = [f"{name}.{line}" for node in tree.body for line in describe_statement(node)]
    return lines + [f"{name}: {export}" for export in sorted(reexports(tree))]


def describe_statement(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, Function):
        if is_public(node.name):
            yield f"{node.name}{signature(node)}"
    elif isinstance(node, ast.ClassDef):
        if is_public(node.name):
            yield from describe_class(node)
    elif isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        yield from (f"{name} =" for name in names if is_public(name) and name not in ("logger", "log"))


def describe_class(node: ast.ClassDef) -> Iterator[str]:
    """The class with its bases or, in braces, its fields; then its methods and properties."""
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    fields = [ast.unparse(item) for item in node.body if isinstance(item, (ast.AnnAssign, ast.Assign))]
    fields = [text for text in fields if is_public(text)]
    yield node.name + (f"({bases})" if bases else "") + (f" {{{'; '.join(fields)}}}" if fields else "")
    for item in node.body:
        if isinstance(item, Function) and is_public(item.name):
            marks = {ast.unparse(mark).split("(")[0].split(".")[-1] for mark in item.decorator_list}
            if "setter" not in marks:
                form = "" if marks & {"property", "cached_property"} else signature(item)
                yield f"{node.name}.{item.name}{form}"


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"({ast.unparse(node.args)}){returns}"


def reexports(tree: ast.Module) -> set[str]:
    """Names of `__all__` that are not defined in the module itself."""
    listed: set[str] = set()
    defined: set[str] = set()
    for node in tree.body:
        if isinstance(node, (*Function, ast.ClassDef)):
            defined.add(node.name)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            defined.add(node.targets[0].id)
            if node.targets[0].id == "__all__" and isinstance(node.value, (ast.List, ast.Tuple)):
                listed |= {item.value for item in node.value.elts if isinstance(item, ast.Constant)}
    return {str(name) for name in listed - defined}


def current_listing() -> str:
    return "".join(f"{line}\n" for path in public_modules() for line in describe(path))


def test_public_names_are_those_written_down():
    written = (LISTING.read_text() if LISTING.exists() else "").splitlines()
    changes = list(difflib.unified_diff(written, current_listing().splitlines(), "written", "now", n=0, lineterm=""))
    shown = "\n".join(changes[:60])
    assert not changes, f"the public API changed; if that is meant, run `python tests/test_api_surface.py`:\n{shown}"


@pytest.mark.parametrize("path", public_modules(), ids=module_name)
def test_modules_import_and_keep_their_promises(path: Path):
    try:
        module = importlib.import_module(module_name(path))
    except ImportError as error:
        if (error.name or "").split(".")[0] in OPTIONAL:
            pytest.skip(f"needs {error.name}")
        raise
    missing = [name for name in getattr(module, "__all__", ()) if not hasattr(module, name)]
    assert not missing


if __name__ == "__main__":
    LISTING.write_text(current_listing())
