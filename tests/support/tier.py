"""The tiers of the tests: which a test belongs to, and which files need packages that are not installed."""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

TESTS = Path(__file__).parent.parent

#: The tier of a file, or of all in a folder; `service` is that of the others.
TIERS = {
    "protocol": "unit",
    "relay": "unit",
    "web": "unit",
    "compat": "unit",
    "demo": "unit",
    "test_layers.py": "unit",
    "test_style.py": "unit",
    "test_github.py": "unit",
    "docs/test_pages.py": "unit",
    "docs/test_contributing.py": "unit",
    "test_browser.py": "browser",
    "test_js.py": "browser",
    "docs/test_shared_tabs.py": "browser",
    "docs/test_browser_page.py": "browser",
    "test_sdk.py": "sdk",
    "test_sdk_refusals.py": "sdk",
    "docs/test_sdks.py": "sdk",
    "test_deploy.py": "deploy",
    "test_grafana.py": "deploy",
    "test_proxies.py": "deploy",
    "test_packaging.py": "deploy",
    "test_servers.py": "deploy",
    "docs/test_deployment.py": "deploy",
    "faults": "fault",
    "test_costs.py": "cost",
    "test_benchmark.py": "cost",
}

#: Fixtures that start a program, so that a test which uses one is no unit test.
PROGRAMS = {
    "chromium": "browser",
    "node": "browser",
    "node_modules": "sdk",
    "redis_cluster": "service",
    "redis_sentinel": "service",
    "redis_server": "service",
    "relay": "service",
    "service": "service",
    "shared_relay": "service",
    "shared_service": "service",
}


def tier(path: Path, fixtures: Collection[str]) -> str:
    """Return the tier of a test.

    :param path: its file.
    :param fixtures: the names of the fixtures that it uses.
    """
    parts = path.relative_to(TESTS).parts
    found = TIERS.get("/".join(parts)) or TIERS.get(parts[0], "service")
    if found in ("unit", "service"):
        started = {PROGRAMS[name] for name in fixtures if name in PROGRAMS}
        return next((each for each in ("browser", "sdk", "service") if each in started), found)
    return found


@cache
def missing_packages(path: Path) -> frozenset[str]:
    """Return the packages that a module of the tests imports, itself or by another, and that are not installed."""
    found: set[str] = set()
    for name in _imports(path):
        if isinstance(name, Path):
            found |= missing_packages(name)
        elif name not in sys.stdlib_module_names and not find_spec(name):
            found.add(name)
    return frozenset(found)


def _imports(path: Path) -> Iterator[str | Path]:
    """Yield what a module imports when it is imported: packages by name, modules of the tests by path."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            generated = TESTS.parent.joinpath(*node.module.split(".")).with_suffix(".py")
            yield generated if generated.is_relative_to(TESTS.parent / "docs") else node.module.partition(".")[0]
        elif isinstance(node, ast.ImportFrom):
            base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            modules = [base.with_suffix(".py"), *(base / f"{alias.name}.py" for alias in node.names)]
            yield from (module for module in modules if module.exists())
