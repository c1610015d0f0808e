"""Streams under the WSGI servers that docs/servers.md names; its table is what is measured here."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from .support.ending import EVENT, STREAM, error_event, silent
from .support.service import PATIENCE, ROOT, Process
from .support.upstream import EVENT_STREAM, LAST_CHUNK, Connection, Script, Upstream, chunk, head, respond
from .support.wsgi_server import NAMES, start_server

#: Seconds in which a client that leaves is noticed, where that is noticed while the upstream is silent.
SOON = 2.0
ERROR_EVENT = error_event("upstream_truncated")


def table() -> dict[str, dict[str, str]]:
    """Return the rows of the documented table by the name of the server, their cells by the name of the column."""
    found = re.findall(r"^\|(.*)\|$", (ROOT / "docs/servers.md").read_text(), re.MULTILINE)
    lines = [[cell.strip() for cell in line.split("|")] for line in found]
    columns, _, *rows = lines
    return {row[0].split("`")[1]: dict(zip(columns, row, strict=True)) for row in rows}


TABLE = table()


@dataclass
class Running:
    """A server with a relay, and the upstream behind it."""

    name: str
    process: Process
    port: int
    upstream: Upstream

    def call(self, path: str = "/upstream/test/", version: str = "1.1", fields: str = "") -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
        client.sendall(f"GET {path} HTTP/{version}\r\nHost: site\r\n{fields}\r\n".encode())
        return client

    def says(self, column: str) -> str:
        return TABLE[self.name][column]


def run(name: str, app: str) -> Iterator[Running]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory()))
        upstream = stack.enter_context(Upstream())
        settings = {"FLASK_SSE_UPSTREAMS": json.dumps({"test": upstream.url}), "FLASK_SSE_THROTTLE": '""'}
        process, port = start_server(name, f"tests.apps.{app}:app", directory, settings)
        # Some wait 10 s for a connection to end. Apache leaves semaphores if it is killed.
        stack.callback(process.stop if name == "mod_wsgi" else process.kill)
        running = Running(name, process, port, upstream)
        with running.call("/healthz") as client:
            assert client.recv(1000)
        yield running


@pytest.fixture(scope="module", params=[name for name in NAMES if name in TABLE])
def running_server(request: pytest.FixtureRequest) -> Iterator[Running]:
    yield from run(request.param, "bodies")


@pytest.fixture(scope="module", params=["gunicorn", "gunicorn-gevent", "gunicorn-gthread", "flask", "uwsgi"])
def monitored(request: pytest.FixtureRequest) -> Iterator[Running]:
    yield from run(request.param, "monitored")


@pytest.fixture
def server(running_server: Running) -> Iterator[Running]:
    yield running_server
    running_server.upstream.settle()


def read_all(client: socket.socket) -> tuple[bytes, bytes, bool]:
    """Return the head and the body of a response, and whether its end looks like an end."""
    data, is_reset = b"", False
    try:
        while piece := client.recv(65536):
            data += piece
    except ConnectionResetError:
        is_reset = True
    head_, _, body = data.partition(b"\r\n\r\n")
    assert head_.startswith(b"HTTP/1."), "no response"
    if b"\r\ntransfer-encoding: chunked" in head_.lower():
        return head_, unchunk(body), body.endswith(LAST_CHUNK)
    return head_, body, not is_reset


def unchunk(body: bytes) -> bytes:
    data = b""
    while match := re.match(rb"([0-9A-Fa-f]+)\r\n", body):
        size = int(match[1], 16)
        data += body[match.end() :][:size]
        body = body[match.end() + size + 2 :]
    return data


def breaks_off(data: bytes) -> Script:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(data)
        # What has been sent arrives before the end of it.
        time.sleep(0.1)

    return script


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_whole_stream_is_passed_on(server: Running, version: str) -> None:
    pieces = (EVENT, EVENT + b"data: un", b"finished")
    server.upstream.script = respond(*pieces)
    with server.call(version=version, fields="Connection: close\r\n") as client:
        _, body, is_complete = read_all(client)
    assert body == b"".join(pieces)
    assert is_complete


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_an_event_arrives_at_once(server: Running, version: str) -> None:
    server.upstream.script = silent
    with server.call(version=version) as client:
        data = b""
        while EVENT not in data:
            data += client.recv(65536)


def test_the_head_arrives_as_the_table_says(server: Running) -> None:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, "Transfer-Encoding: chunked"))
        connection.wait_closed()

    server.upstream.script = script
    with server.call() as client:
        client.settimeout(1)
        try:
            said = "at once" if client.recv(1000) else ""
        except TimeoutError:
            said = "with the first byte"
    assert said == server.says("Response head")


def test_a_client_that_leaves_is_noticed_as_the_table_says(server: Running) -> None:
    may_go_on = threading.Event()

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(STREAM + chunk(EVENT))
        connection.wait_for(may_go_on)
        connection.flood()

    server.upstream.script = script
    with server.call() as client:
        data = b""
        while EVENT not in data:
            data += client.recv(65536)
    said = "at once" if is_closed_soon(server) else ""
    may_go_on.set()
    said = said or ("with the next bytes" if is_closed_soon(server) else "never")
    assert said == server.says("Client disconnect")


def is_closed_soon(server: Running) -> bool:
    try:
        server.upstream.connections[-1].wait_closed(SOON)
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("rest", [b"", b"data: ha", b"data: half\n"], ids=["between", "in a line", "in an event"])
def test_a_truncated_stream_never_looks_complete(server: Running, version: str, rest: bytes) -> None:
    server.upstream.script = breaks_off(STREAM + chunk(EVENT) + chunk(rest))
    with server.call(version=version) as client:
        _, body, is_complete = read_all(client)
    said = server.says(f"Truncated, HTTP/{version}")
    assert is_complete == (said == "error event")
    # An event that has begun is sent only where the abort shows that it is not whole.
    assert body == EVENT + (rest if said == "aborted" and rest else ERROR_EVENT)


def test_a_truncated_stream_writes_what_the_table_says(server: Running) -> None:
    start = len(server.process.log())
    server.upstream.script = breaks_off(STREAM + chunk(EVENT))
    with server.call() as client:
        read_all(client)
    # What is written comes before the next response.
    with server.call("/healthz", fields="Connection: close\r\n") as client:
        read_all(client)
    if server.says("Log") == "a traceback":
        # It is written, but may not have been read here yet.
        server.process.wait_log("Traceback", start=start)
    else:
        assert server.says("Log") == "quiet"
        assert "Traceback" not in server.process.log()[start:]


def test_an_own_stream_begins_before_its_first_event(server: Running) -> None:
    with server.call("/unbegun") as client:
        data = b""
        while b"\r\n\r\n" not in data:
            data += client.recv(1000)
    assert data.startswith(b"HTTP/1.1 200 ")


def test_every_server_of_the_table_is_tried() -> None:
    assert set(TABLE) <= set(NAMES)


@pytest.mark.parametrize("path", ["/upstream/test/", "/paced", "/silent"])
def test_a_client_that_leaves_is_no_error_of_the_site(monitored: Running, path: str) -> None:
    """What wraps the app counted each closed tab."""
    monitored.upstream.script = silent
    start = len(monitored.process.log())
    with monitored.call(path) as client:
        data = b""
        while b"data: " not in data:
            data += client.recv(65536)
    monitored.process.wait_log("stream end=client_gone", start=start)
    with monitored.call("/fault", fields="Connection: close\r\n") as client:
        read_all(client)
    monitored.process.wait_log("^reported ZeroDivisionError", start=start)
    assert monitored.process.log()[start:].count("reported") == 1
