"""Names that other projects do not promise are few, and all of them are in sse/compat/."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from sse import compat

from ..support.service import ROOT

#: Most names of other projects that may break with any of their releases.
MOST = 25

#: With an underscore, and documented: https://werkzeug.palletsprojects.com/en/stable/local/
DOCUMENTED = {"_get_current_object"}

NAMES = {
    module.name: importlib.import_module(f"sse.compat.{module.name}").NAMES
    for module in pkgutil.iter_modules(compat.__path__)
}

MODULES = [path for path in sorted((ROOT / "sse").rglob("*.py")) if path.parent.name != "compat"]


def own_names() -> set[str]:
    """Return the names with an underscore that the package defines itself."""
    found = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    return found


def used(path: Path) -> Iterator[tuple[str, str]]:
    """Yield each name that a module uses of something else, with the expression."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            yield node.attr, ast.unparse(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # An environ's key, or an argument of `getattr`.
            yield node.value, repr(node.value)


def test_the_names_are_few() -> None:
    assert sum(map(len, NAMES.values())) <= MOST, NAMES


OWN = own_names()
#: The last parts of the names that are listed, which nothing else is called.
LISTED = {name.rpartition(".")[2] for names in NAMES.values() for name in names} - {
    # What the package, or the standard library, calls something of its own.
    *("handle", "wsgi", "headers", "sent", "access", "alive", "cfg", "socket", "__self__", "StopIteration", "db"),
    # What gunicorn's worker calls itself, and what the adapter of it is called.
    *("GeventWorker", "ALREADY_HANDLED"),
} | {"gunicorn.socket"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_are_used_in_compat_alone(path: Path) -> None:
    foreign = [
        text
        for name, text in used(path)
        if name in LISTED
        or (name.startswith("_") and not name.startswith("__") and name.isidentifier() and name not in OWN | DOCUMENTED)
    ]
    assert not foreign, "use it in sse/compat/, and list it there; or find a public way"


def test_the_documentation_lists_every_name() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    rows = [f"| `{module}` | `{name}` | {use} |" for module, names in NAMES.items() for name, use in names.items()]
    assert [line for line in text.splitlines() if line.startswith(tuple(f"| `{module}` |" for module in NAMES))] == rows
    assert f"is {len(rows)} names" in text
