"""A disk that is full, and a log without a reader: no stream and no response depends on what is written there."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ..support.crowd import Crowd, Spring
from ..support.ending import EVENT
from ..support.program import free_port
from ..support.service import ROOT, RawClient, Service, call, environment
from ..support.upstream import Upstream, respond

FULL = """
import os
there = os.open("/dev/full", os.O_WRONLY)
"""

UNREAD = """
import os
reader, there = os.pipe()
os.close(reader)
"""

#: In the worker alone, so that the master can say where it listens.
REST = """
os.dup2(there, 1)
os.dup2(there, 2)
from service_app import app
"""


@pytest.mark.parametrize("where", [pytest.param(FULL, id="a full disk"), pytest.param(UNREAD, id="a closed pipe")])
@pytest.mark.parametrize("unbuffered", ["1", ""])
def test_a_log_that_cannot_be_written_harms_no_stream(where: str, unbuffered: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(where + REST)
    for name, source in [("sse", "sse"), ("gunicorn.conf.py", "gunicorn.conf.py"), ("service_app.py", "app.py")]:
        (tmp_path / name).symlink_to(ROOT / source)
    settings: dict[str, Any] = {"SSE_THROTTLE": "", "SSE_MAX_STREAMS_PER_CLIENT": 0}
    with Spring(interval=0.1) as spring, Upstream(respond(EVENT)) as upstream:
        table = {"test": spring.url, "short": upstream.url}
        env = {"PYTHONUNBUFFERED": unbuffered}
        access_log = "/dev/full" if where is FULL else "-"
        with Service(
            "--access-logfile", access_log, root=tmp_path, env=env, SSE_UPSTREAMS=table, **settings
        ) as service:
            workers = service.worker_pids()
            with Crowd(service, 10) as crowd:
                for _ in range(30):
                    with call(service, "GET", "/upstream/short/") as client:
                        assert (client.read_head().status, client.read_body()) == (200, EVENT)
                        assert client.is_complete
                with call(service, "GET", "/upstream/none/") as client:
                    assert client.read_head().status == 404
                before = {reader: len(reader.data) for reader in crowd.readers}
                crowd.wait(lambda: all(len(reader.data) > before[reader] + 20 for reader in crowd.readers))
                assert crowd.streaming == 10
            spring.wait_open(0)
            assert service.worker_pids() == workers
            # Nothing of the worker's came out, so it was put to the test.
            assert "stream end=" not in service.log()
            assert service.stop() == 0


def test_a_log_pipe_that_is_not_read_stops_nothing() -> None:
    """A full pipe stopped the worker, then the master: no health check and no stream went on."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1 << 16)
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "app:app", "-b", f"127.0.0.1:{port}", "--access-logfile", "-"]
    settings: dict[str, Any] = {"SSE_THROTTLE": "", "SSE_MAX_STREAMS_PER_CLIENT": 0}
    with Spring(interval=0.1) as spring:
        env = environment({"SSE_UPSTREAMS": {"test": spring.url}, **settings}, {})
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=writer, stderr=writer)
        os.close(writer)
        try:
            log = _read_until(reader, b"Booting worker")
            with _opened(port, "/upstream/test/") as stream:
                stream.read_until(EVENT)
                # Two lines each, of 100 bytes and more: several times what the pipe holds.
                for _ in range(2000):
                    with _opened(port, "/nowhere") as client:
                        assert client.read_head().status == 404
                seen = len(stream.body)
                while len(stream.body) < seen + 10 * len(EVENT):
                    assert stream.read_piece()
            log += _read_until(reader, b"/nowhere")
        finally:
            process.terminate()
            while piece := os.read(reader, 1 << 16):
                log += piece
            os.close(reader)
            assert process.wait(20) == 0
    # Nothing was lost, because it fits into what a process keeps.
    assert log.count(b"GET /nowhere") == 2000


def _opened(port: int, target: str) -> RawClient:
    client = RawClient("127.0.0.1", port)
    client.request("GET", target)
    return client


def _read_until(reader: int, mark: bytes) -> bytes:
    data, deadline = b"", time.monotonic() + 20
    while mark not in data and time.monotonic() < deadline:
        data += os.read(reader, 4096)
    return data
