"""The tools of the other tests: what they report must be true, or those tests prove nothing."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .support.program import RedisServer, program
from .support.service import Process, RawClient, Service, call, start_refused
from .support.upstream import (
    EVENT_STREAM,
    LAST_CHUNK,
    Connection,
    Script,
    SilentListener,
    Upstream,
    chunk,
    head,
    in_turn,
    respond,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Starter = Callable[..., Upstream]


def get(upstream: Upstream, target: str = "/") -> RawClient:
    client = RawClient(upstream.host, upstream.port)
    client.request("GET", target)
    return client


def hold(connection: Connection) -> None:
    connection.read_request()
    connection.wait_closed()


@pytest.mark.parametrize("framing", ["chunked", "length", "close", "http/1.0"])
def test_an_answer_is_complete_in_every_framing(upstream: Starter, framing: str) -> None:
    with get(upstream(respond(b"data: 1\n\n", b"data: 2\n\n", framing=framing))) as client:
        assert client.read_body() == b"data: 1\n\ndata: 2\n\n"
        assert client.is_complete
        assert client.head is not None and client.head.field("content-type") == "text/event-stream"


@pytest.mark.parametrize(
    "ending, bytes_before",
    [
        pytest.param(Connection.close, chunk(b"data: 1\n\n"), id="no-last-chunk"),
        pytest.param(Connection.close, b"9\r\ndata: 1\n\n", id="fin-inside-a-chunk"),
        pytest.param(Connection.reset, chunk(b"data: 1\n\n"), id="reset"),
    ],
)
def test_a_cut_answer_is_aborted(upstream: Starter, ending: Callable[[Connection], None], bytes_before: bytes) -> None:
    arrived = threading.Event()

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, "Transfer-Encoding: chunked"))
        connection.wait_for(arrived)
        connection.send(bytes_before)
        ending(connection)

    with get(upstream(script)) as client:
        client.read_head()
        arrived.set()
        client.read_body()
        assert client.ending == "aborted"


def test_a_reset_is_an_rst(upstream: Starter) -> None:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.reset()

    with get(upstream(script)) as client, pytest.raises(ConnectionResetError):
        client.recv_some()


def test_a_request_is_kept_as_it_came(upstream: Starter) -> None:
    server = upstream(respond(framing="length"))
    with RawClient(server.host, server.port) as client:
        client.request("POST", "/a?b", {"X-Odd": "caf\xe9"}, b"1234")
        client.read_body()
        client.request("PUT", "/second", {"Transfer-Encoding": "chunked"})
        client.send(chunk(b"56") + chunk(b"7") + LAST_CHUNK)
        assert server.wait_request(2).body == b"567"
        client.read_body()
    first = server.requests[0]
    assert (first.method, first.target, first.body, first.field("x-odd")) == ("POST", "/a?b", b"1234", "caf\xe9")
    assert [request.connection for request in server.requests] == [0, 0]
    assert len(server.connections) == 1


def silent(connection: Connection) -> None:
    hold(connection)


def flooding(connection: Connection) -> None:
    connection.read_request()
    connection.send(head(200, "Transfer-Encoding: chunked"))
    connection.flood()


@pytest.mark.parametrize("script", [silent, flooding])
@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
@pytest.mark.parametrize("leave", [RawClient.close, RawClient.reset])
def test_the_moment_the_peer_leaves_is_seen(
    upstream: Starter, script: Script, tls: bool, leave: Callable[[RawClient], None]
) -> None:
    server = upstream(script, tls=tls)
    client = RawClient(server.host, server.port)
    if tls:
        client.sock = trusting(server).wrap_socket(client.sock, server_hostname="localhost")
    client.request("GET", "/")
    server.wait_request()
    left_at = time.monotonic()
    assert server.connections[0].closed_at is None
    leave(client)
    assert 0 <= server.connections[0].wait_closed() - left_at < 0.1


def trusting(server: Upstream) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=server.ca_file)


def test_waiting_for_a_peer_that_stays_fails(upstream: Starter) -> None:
    server = upstream(hold)
    with get(server):
        server.wait_request()
        with pytest.raises(TimeoutError):
            server.connections[0].wait_closed(0.01)


def test_a_stalled_peer_stops_the_flood_until_the_tests_end() -> None:
    with Upstream(flooding) as server, get(server):
        sent, connection = -1, server.wait_connection()
        while connection.sent != sent:
            sent = connection.sent
            time.sleep(0.05)  # there is no event for "nothing happens"
    assert not any(thread.name == "script" for thread in threading.enumerate())


def test_a_failing_script_fails_the_test() -> None:
    def script(connection: Connection) -> None:
        assert connection.read_request().target == "/expected"

    with pytest.raises(AssertionError, match="/other"), Upstream(script) as server, get(server, "/other") as client:
        assert client.recv_some() == b""


def test_a_script_that_waits_in_vain_is_ended_with_the_test() -> None:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.wait_for(threading.Event(), 60)

    started = time.monotonic()
    with Upstream(script) as server, get(server):
        server.wait_request()
    assert time.monotonic() - started < 2


def test_scripts_take_turns_by_connection(upstream: Starter) -> None:
    server = upstream(in_turn(respond(b"first"), respond(b"others")))
    bodies = []
    for _ in range(3):
        with get(server) as client:
            bodies.append(client.read_body())
    assert bodies == [b"first", b"others", b"others"]


def test_tls_is_trusted_by_its_own_authority_only(upstream: Starter) -> None:
    server = upstream(respond(b"secret"), tls=True)
    with socket.create_connection((server.host, server.port)) as sock:
        with trusting(server).wrap_socket(sock, server_hostname="localhost") as secured:
            secured.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert secured.recv(9) == b"HTTP/1.1 "
    with socket.create_connection((server.host, server.port)) as sock:
        with pytest.raises(ssl.SSLCertVerificationError):
            ssl.create_default_context().wrap_socket(sock, server_hostname="localhost")


def test_a_tls_upstream_closes_with_a_close_notify(upstream: Starter) -> None:
    server = upstream(respond(b"all", framing="close"), tls=True)
    with socket.create_connection((server.host, server.port)) as sock:
        context = trusting(server)
        with context.wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=False) as secured:
            secured.sendall(b"GET / HTTP/1.1\r\n\r\n")
            while secured.recv(4096):
                pass


def test_a_refusing_upstream_keeps_open_connections(upstream: Starter) -> None:
    server = upstream(respond(framing="length"))
    with get(server) as client:
        client.read_body()
        server.refuse()
        with pytest.raises(ConnectionRefusedError):
            RawClient(server.host, server.port)
        client.request("GET", "/again")
        client.read_body()
        assert client.is_complete


def test_a_silent_listener_neither_accepts_nor_refuses() -> None:
    with SilentListener() as silent, pytest.raises(TimeoutError):
        RawClient("127.0.0.1", silent.port, timeout=0.2)


def test_pieces_have_their_arrival_times(upstream: Starter) -> None:
    first_is_there = threading.Event()

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, "Transfer-Encoding: chunked") + chunk(b"1"))
        connection.wait_for(first_is_there)
        connection.send(chunk(b"2") + LAST_CHUNK)

    with get(upstream(script)) as client:
        client.read_until(b"1")
        between = time.monotonic()
        first_is_there.set()
        client.read_body()
    assert [piece.data for piece in client.pieces] == [b"1", b"2"]
    assert client.pieces[0].at < between < client.pieces[1].at


APP = """
import os
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    print("serving", environ["PATH_INFO"], flush=True)
    settings = sorted(f"{key}={value}" for key, value in os.environ.items() if key.startswith("FLASK_"))
    return [" ".join(settings).encode()]
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tiny app in place of the real one."""
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def test_a_service_is_ready_configured_and_stopped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_SSE_OPEN", "true")
    # One worker: a second may still be booting when the test is over, and then misses the signal to stop.
    with Service(root=root, SSE_THROTTLE="1 per second") as service:
        with call(service, "GET", "/hello") as client:
            assert client.read_body() == b'FLASK_SSE_THROTTLE="1 per second"'
        assert service.wait_log("serving /hello")
        workers = service.worker_pids()
        assert len(workers) == 1 and service.rss() > 1_000_000
        assert service.stop() == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in [service.pid, *workers])


def test_a_service_that_cannot_start_is_an_error_that_shows_why(root: Path) -> None:
    (root / "app.py").write_text("raise ValueError('SSE_THING: is wrong')")
    with pytest.raises(AssertionError, match="SSE_THING: is wrong"):
        Service(root=root)
    assert "SSE_THING: is wrong" in start_refused(root=root)


def test_a_missing_log_line_is_an_error_with_the_log() -> None:
    with Process(["echo", "something else"]) as process, pytest.raises(AssertionError, match="something else"):
        process.wait_log("what is wanted")


def test_a_missing_piece_skips_but_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "")
    with pytest.raises(pytest.skip.Exception, match="apt install no-such-package"):
        program("no-such-program", "no-such-package")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="apt install no-such-package"):
        program("no-such-program", "no-such-package")


def test_a_browser_runs_scripts(chromium: Browser) -> None:
    page = chromium.new_page()
    assert page.evaluate("1 + 1") == 2
    page.close()


def test_redis_stops_and_starts_again_on_the_same_port(redis_server: RedisServer) -> None:
    def ping() -> bytes:
        with socket.create_connection(("127.0.0.1", redis_server.port)) as sock:
            sock.sendall(b"PING\r\n")
            return sock.recv(64)

    assert ping() == b"+PONG\r\n"
    redis_server.stop()
    with pytest.raises(ConnectionRefusedError):
        ping()
    redis_server.start()
    assert ping() == b"+PONG\r\n"


def test_node_runs(node: str) -> None:
    with Process([node, "-e", "console.log(6 * 7)"]) as process:
        process.wait_log("^42$")
