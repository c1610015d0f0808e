"""Programs of this machine that tests need: found, or the test is skipped; a Redis of the test's own."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import NoReturn

import pytest

from .service import Process


def missing(what: str, package: str) -> NoReturn:
    """Skip a test because `what` is not on this machine; with `CI=true` that is a failure."""
    reason = f"{what} is not installed; on Debian: apt install {package}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def program(name: str, package: str) -> str:
    """Return the path of a program, or skip the test."""
    return shutil.which(name) or missing(name, package)


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
            port = self.port or free_port()
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


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
