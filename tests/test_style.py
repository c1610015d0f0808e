"""What the style requires of names and files, as far as a machine can check."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from .support.service import ROOT

#: Characters that a name may have.
LONGEST_NAME = 60

PATHS = [ROOT / "app.py", *(path for name in ("sse", "docs", "tests") for path in sorted((ROOT / name).rglob("*.py")))]


def names(tree: ast.AST) -> set[str]:
    """Return the names that a module defines: of functions, classes, variables, arguments and attributes."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
    return found


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_are_short_enough_to_read(path: Path) -> None:
    assert not [name for name in names(ast.parse(path.read_text())) if len(name) > LONGEST_NAME]


@pytest.mark.parametrize("path", [path for path in PATHS if path.name.startswith("test_")], ids=lambda path: path.stem)
def test_no_test_replaces_another_of_its_name(path: Path) -> None:
    defined = Counter(node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef))
    assert max(defined.values(), default=1) == 1


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_for(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) or not tree.body


@pytest.mark.parametrize("path", [path for path in PATHS if ROOT / "tests" in path.parents], ids=lambda path: path.stem)
def test_helpers_come_from_their_own_place(path: Path) -> None:
    """A test imports from no other test, and from no conftest."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names if not node.module)]
            assert not [part for part in parts if part == "conftest" or part.startswith("test_")], node.lineno
