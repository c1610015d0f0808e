"""Fixtures for all tests: an upstream with a script, the real service, a browser, Redis, Node."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import pytest

from .support.fork import warm_programs
from .support.page import opened
from .support.program import RedisCluster, RedisSentinel, RedisServer, missing, program
from .support.relay import Relay
from .support.service import ROOT, Service
from .support.tier import missing_packages, tier
from .support.upstream import Upstream

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


#: Test files whose packages are not installed, with the packages.
_incomplete: dict[Path, frozenset[str]] = {}


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out a test file whose packages are not installed; with `CI=true` it fails instead."""
    if not collection_path.match("test_*.py") or os.environ.get("CI") == "true":
        return None
    if packages := missing_packages(collection_path):
        _incomplete[collection_path] = packages
        return True
    return None


#: The files that take more than 20 s, longest first. They are begun first, so that no process is left with one of them.
LONGEST = """
    test_browser.py test_servers.py test_doctor.py test_channels.py test_stopping.py test_page.py test_gateway.py
    test_recording_hosts.py test_npm.py test_benchmark.py test_redis_log.py test_endings.py test_master.py
    test_examples.py test_worker.py test_docs.py test_packaging.py test_quickstart.py test_clock.py
    test_contract.py test_shared_tabs.py test_streams_command.py test_proxies.py test_store.py
""".split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its tier, and put the longest files first, then those with the most tests."""
    for item in items:
        item.add_marker(tier(item.path, getattr(item, "fixturenames", ())))
    places = {name: place for place, name in enumerate(LONGEST)}
    sizes = Counter(item.path for item in items)
    items.sort(key=lambda item: (places.get(item.path.name, len(places)), -sizes[item.path]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the files that were left out."""
    for path, packages in sorted(_incomplete.items()):
        terminalreporter.write_line(f"LEFT OUT {path.name}: not installed: {', '.join(sorted(packages))}")


@pytest.fixture(scope="session", autouse=True)
def _warm_programs() -> Iterator[None]:
    """Services start as forks of a process that has their packages in memory; see `support/warm.py`."""
    with warm_programs():
        yield


@pytest.fixture
def upstream() -> Iterator[Callable[..., Upstream]]:
    """`upstream(script, tls=...)` starts an upstream for this test; what its scripts raise fails the test."""
    with ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(Upstream(*args, **options))


@pytest.fixture
def service() -> Iterator[Callable[..., Service]]:
    """`service("--workers", "2", SSE_THROTTLE="")` starts a service for this test."""
    with ExitStack() as stack:
        yield lambda *args, **settings: stack.enter_context(Service(*args, **settings))


@pytest.fixture(scope="session")
def shared_relay() -> Iterator[Relay]:
    with Upstream() as upstream, Service(SSE_UPSTREAMS={"test": upstream.url}, SSE_THROTTLE="") as service:
        yield Relay(service, upstream)


@pytest.fixture
def relay(shared_relay: Relay) -> Iterator[Relay]:
    """The shared service and upstream, with nothing left of the test before."""
    yield shared_relay
    shared_relay.settle()


@pytest.fixture(scope="session")
def shared_service() -> Iterator[Service]:
    """A service as it is without any setting, but the throttle is off, for many tests are one client."""
    with Service(SSE_THROTTLE="") as service:
        yield service


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, driven by playwright; a test opens its own context or page.

    One for each module: playwright keeps an event loop running, in which the tests of other modules cannot run theirs.
    """
    path = program("chromium", "chromium")
    if os.environ.get("CI") != "true":
        pytest.importorskip("playwright")
    from playwright.sync_api import sync_playwright

    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-quic", *quiet]
        browser = playwright.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A page of its own; what the browser complains about fails the test."""
    with opened(chromium) as page:
        yield page


@pytest.fixture(scope="session")
def js_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `node_modules` with what tests/js/package.json names: bundlers, TypeScript, axe."""
    return npm_installed(tmp_path_factory, [ROOT / "tests/js/package.json"]) / "node_modules"


def npm_installed(tmp_path_factory: pytest.TempPathFactory, sources: Iterable[Path]) -> Path:
    """Return a directory with these files, and what their package.json names; one for all processes of a run."""
    npm = program("npm", "npm")
    files = {source.name: source.read_bytes() for source in sources}
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"npm-{crc32(files['package.json'])}"
    directory.mkdir(exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "node_modules/.package-lock.json").exists():
            for name, data in files.items():
                (directory / name).write_bytes(data)
            command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline"]
            done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300)
            if done.returncode:
                missing(f"what npm should have installed ({done.stderr.strip()[-300:]})", "npm")
    return directory


@pytest.fixture
def node() -> str:
    """The path of Node.js."""
    return program("node", "nodejs")


@pytest.fixture(scope="session")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the npm packages, and the scripts that use them."""
    program("node", "nodejs")
    return npm_installed(tmp_path_factory, (ROOT / "tests/sdk").iterdir())


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A running Redis."""
    server = RedisServer(program("redis-server", "redis-server"), tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_cluster(tmp_path: Path) -> Iterator[RedisCluster]:
    """A running Redis Cluster of three nodes."""
    cluster = RedisCluster(program("redis-server", "redis-server"), tmp_path)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def redis_sentinel(tmp_path: Path) -> Iterator[RedisSentinel]:
    """A running primary and replica, and the Sentinel that watches them."""
    servers = RedisSentinel(program("redis-server", "redis-server"), tmp_path)
    try:
        servers.start()
        yield servers
    finally:
        servers.stop()


@pytest.fixture(scope="session")
def gunicorn_settings() -> dict[str, Any]:
    """What gunicorn.conf.py sets; run in a process of its own, for it patches the one it is in."""
    code = (
        "import json, runpy; all = runpy.run_path('gunicorn.conf.py').items(); "
        "print(json.dumps({name: value for name, value in all if isinstance(value, int | str)}))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    settings: dict[str, Any] = json.loads(done.stdout)
    return settings
