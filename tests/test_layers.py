"""The package has three rings and folders around them; imports point inward only, and never in a circle."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions

import pytest

from .support.service import ROOT

PACKAGE = ROOT / "sse"

#: What each part, a folder or a module of the package, may import of the others.
PARTS: dict[str, set[str]] = {
    "errors": set(),
    "protocol": {"errors"},
    "compat": set(),
    "relay": {"compat", "errors", "protocol"},
    "gunicorn": {"compat", "errors", "relay"},
    "demo": {"protocol"},
    "setting_name": set(),
    "signals": set(),
    "settings": {"errors", "protocol", "relay", "setting_name"},
    "web": {"compat", "errors", "protocol", "relay", "settings", "signals"},
    "assembly": {"compat", "demo", "errors", "protocol", "relay", "settings", "web"},
    "cli": {"compat", "errors", "protocol", "relay", "settings", "web"},
    "extension": {"assembly", "compat", "cli", "errors", "protocol", "relay", "settings", "web"},
    "flask_sse": {"extension", "protocol", "relay", "web"},
    "testing": {"protocol", "signals"},
    # The public names.
    "": {"extension", "protocol", "web"},
}

#: What a module may import beside what its folder may.
EXCEPTIONS: dict[str, set[str]] = {
    # A site's gunicorn.conf.py, which calls the public API in its hooks.
    "sse.gunicorn.settings": {"", "settings"},
}

#: What each part may import from outside, beside the standard library; those that are not named may import anything.
OUTSIDE = {
    "errors": set[str](),
    "protocol": {"idna"},
    "relay": {"certifi", "gevent", "opentelemetry", "redis", "requests"},
    # gunicorn's settings inform prometheus-client of workers that have ended.
    "gunicorn": {"gevent", "gunicorn", "prometheus_client", "werkzeug"},
    # It is a small Flask app.
    "demo": {"flask", "werkzeug"},
}

#: Modules of the standard library that have no place in what is pure.
IMPURE = {
    *("socket", "select", "selectors", "ssl", "http", "asyncio", "threading", "subprocess", "signal", "os", "io"),
    *("time", "datetime", "random", "secrets", "uuid", "contextvars", "logging", "tempfile", "pathlib", "shutil"),
}

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def part(module: str) -> str:
    """Return which part of the package a module belongs to."""
    return f"{module}.".split(".")[1]


@cache
def imports(module: str) -> frozenset[str]:
    """Return the modules that a module imports anywhere, for type checkers and within functions too."""
    found = {name for node in ast.walk(ast.parse(MODULES[module].read_text())) for name in _named(module, node)}
    # A module imports itself where a package's __init__ imports a name that is one of its modules.
    return frozenset(found - {module})


def _named(module: str, node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            is_package = MODULES[module].name == "__init__.py"
            parents = module.split(".")[: len(module.split(".")) + is_package - node.level]
            base = ".".join([*parents, base]).rstrip(".")
        # `from a import b` is the module a.b if there is one, else a.
        yield from {f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names}


def ours(module: str) -> set[str]:
    return {name for name in imports(module) if name in MODULES}


def theirs(module: str) -> set[str]:
    return {name.partition(".")[0] for name in imports(module) if name not in MODULES}


def test_every_import_of_the_package_is_found() -> None:
    """Otherwise the tests below would look at nothing."""
    assert "sse.errors" in ours("sse.protocol.field")
    assert {name for module in MODULES for name in theirs(module)} >= {"flask", "gevent", "requests", "time"}
    unknown = {name for module in MODULES for name in imports(module) - MODULES.keys() if f"{name}.".startswith("sse.")}
    assert not unknown


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_inward(module: str) -> None:
    allowed = PARTS[part(module)] | EXCEPTIONS.get(module, set()) | {part(module)}
    assert {part(name) for name in ours(module)} <= allowed


@pytest.mark.parametrize("module", [module for module in MODULES if part(module) in OUTSIDE])
def test_what_is_imported_from_outside_is_few(module: str) -> None:
    assert theirs(module) <= OUTSIDE[part(module)] | sys.stdlib_module_names


@pytest.mark.parametrize("module", [module for module in MODULES if part(module) == "protocol"])
def test_the_protocol_ring_is_pure(module: str) -> None:
    assert not theirs(module) & IMPURE


@pytest.mark.parametrize("module", [module for module in MODULES if part(module) in ("protocol", "relay", "gunicorn")])
def test_flask_is_the_web_rings(module: str) -> None:
    assert not [name for name in theirs(module) if name.startswith("flask")]


def test_there_are_no_circles() -> None:
    """Those that are for type checkers alone, or close within a function, count too."""
    try:
        TopologicalSorter({module: ours(module) for module in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_part_has_its_rule() -> None:
    assert {part(module) for module in MODULES} == set(PARTS)


def test_everything_that_is_imported_is_declared() -> None:
    """In pyproject.toml, as a dependency or as an extra."""
    text = (ROOT / "pyproject.toml").read_text().lower().replace("_", "-")
    # The standard library's stubs, and what is used where a site has it.
    optional = {"_typeshed", "opentelemetry", "uwsgi"}
    distributions = packages_distributions()
    for name in {name for module in MODULES for name in theirs(module)} - sys.stdlib_module_names - optional:
        wanted = [rf'"{re.escape(each.lower().replace("_", "-"))}(\[[\w,]+\])?>=' for each in distributions[name]]
        assert any(re.search(each, text) for each in wanted), name
