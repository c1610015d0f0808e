"""The house has three rings, and imports point inward only."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sse"

#: What each ring may import from the package, and from outside besides the standard library.
RINGS = {
    "protocol": ({"errors", "protocol"}, {"idna"}),
    "relay": ({"compat", "errors", "protocol", "relay"}, {"certifi", "gevent", "opentelemetry", "redis", "requests"}),
}
#: Modules of the standard library that have no place in what is pure.
IMPURE = {"socket", "ssl", "time", "threading", "asyncio", "logging", "os", "select", "selectors", "subprocess"}


def imports(path: Path) -> set[tuple[str, bool]]:
    """Return the names a module imports: (first name, whether it is of the package)."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {(alias.name.partition(".")[0], False) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(((node.module or "").partition(".")[0], False))
        elif isinstance(node, ast.ImportFrom):
            here = path.relative_to(PACKAGE).parts[: -node.level]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {((*here, *name.split("."))[0], True) for name in names}
    return found


@pytest.mark.parametrize(
    "path", [path for ring in RINGS for path in sorted((PACKAGE / ring).rglob("*.py"))], ids=lambda path: path.stem
)
def test_imports_point_inward(path: Path) -> None:
    inner, outer = RINGS[path.relative_to(PACKAGE).parts[0]]
    for name, ours in imports(path):
        assert name in inner if ours else name in outer | set(sys.stdlib_module_names), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "protocol").rglob("*.py")), ids=lambda path: path.stem)
def test_the_protocol_ring_is_pure(path: Path) -> None:
    assert not {name for name, ours in imports(path) if not ours} & IMPURE


def test_the_rings_have_modules_to_look_at() -> None:
    assert all(list((PACKAGE / ring).rglob("*.py")) for ring in RINGS)
