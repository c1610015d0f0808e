"""Fixtures for all tests: an upstream that answers as told, the real service, a browser, Redis, Node."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from .service import ROOT, Process, RawClient, Service, call, forward
from .upstream import Script, Upstream

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def missing(what: str, package: str) -> NoReturn:
    """Skip a test because `what` is not on this machine; with `CI=true` that is a failure."""
    reason = f"{what} is not installed; on Debian: apt install {package}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def program(name: str, package: str) -> str:
    """Return the path of a program, or skip the test."""
    return shutil.which(name) or missing(name, package)


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


@dataclass
class Relay:
    """A service without throttle and an upstream in its table, as `test`; one pair serves all tests."""

    service: Service
    upstream: Upstream
    _clients: list[RawClient] = field(default_factory=list)

    def forward(self, script: Script, path: str = "/", **options: Any) -> RawClient:
        """Let the upstream answer by `script`, and send `POST /forward-sse` for it; see `service.forward`."""
        self.upstream.script = script
        self._clients.append(forward(self.service, self.upstream.url + path, **options))
        return self._clients[-1]

    def call(self, script: Script, method: str, path: str = "", **options: Any) -> RawClient:
        """Let the upstream answer by `script`, and call `/upstream/test/<path>`; see `service.call`."""
        self.upstream.script = script
        self._clients.append(call(self.service, method, f"/upstream/test/{path}", **options))
        return self._clients[-1]

    def settle(self) -> None:
        """Close what the test has opened, and raise what went wrong in a script."""
        for client in self._clients:
            client.close()
        self._clients.clear()
        self.upstream.settle()


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
    from playwright.sync_api import sync_playwright

    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-quic", *quiet]
        browser = playwright.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()


@pytest.fixture
def node() -> str:
    """The path of Node.js."""
    return program("node", "nodejs")


@pytest.fixture(scope="session")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the npm packages, and the scripts that use them."""
    directory = tmp_path_factory.mktemp("sdk")
    program("node", "nodejs")
    npm = program("npm", "npm")
    for source in (ROOT / "tests/sdk").iterdir():
        (directory / source.name).write_bytes(source.read_bytes())
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120)
    if done.returncode:
        missing(f"what npm should have installed ({done.stderr.strip()[-300:]})", "npm")
    return directory


class RedisServer:
    """A Redis of the test's own that keeps nothing; it may be stopped, and started again on the same port."""

    def __init__(self, path: str, directory: Path) -> None:
        self._command = [path, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(directory)]
        self.port = 0
        self._process: Process | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def start(self) -> None:
        """Return when it accepts connections."""
        # Redis takes port 0 for "do not listen", so the port is chosen here, and another one if somebody was faster.
        for _ in range(5):
            port = self.port or _free_port()
            process = Process([*self._command, "--port", str(port)])
            if "Ready to accept" in process.wait_log("Ready to accept connections|Address already in use")[0]:
                self.port, self._process = port, process
                return
            process.stop()
        raise AssertionError("no free port for redis-server")

    def stop(self) -> None:
        if self._process:
            self._process.stop()
            self._process = None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A running Redis."""
    server = RedisServer(program("redis-server", "redis-server"), tmp_path)
    server.start()
    yield server
    server.stop()


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
