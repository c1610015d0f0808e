"""What gunicorn's worker does with streams: those that wait take no greenlet, and nothing else is different."""

from __future__ import annotations

import json
import os
import re
import resource
import select
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import trustme

from ..support.relay import Relay
from ..support.service import PATIENCE, Process, RawClient, Service, call
from ..support.upstream import EVENT_STREAM, LAST_CHUNK, Connection, Upstream, chunk, head, respond

EVENT = b"data: a\n\n"
STREAMS = 20


class Held:
    """Upstreams' answers that begin with an event and then wait until they may go on."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()

    def __call__(self, connection: Connection) -> None:
        while True:
            connection.read_request()
            connection.send(head(200, EVENT_STREAM, "Transfer-Encoding: chunked") + chunk(EVENT))
            connection.wait_for(self.may_go_on)
            connection.send(chunk(EVENT) + LAST_CHUNK)


def follow(client: RawClient) -> RawClient:
    """Read until the first event has come."""
    assert client.read_head().status == 200
    client.read_until(EVENT)
    return client


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
def serve(service: Callable[..., Service]) -> Callable[..., Service]:
    """`serve(upstream)` starts a service that reports its greenlets."""

    def start(upstream: Upstream, *args: str, **settings: object) -> Service:
        given = {"SSE_UPSTREAMS": {"test": upstream.url}, "SSE_THROTTLE": "", **settings}
        return service(*args, app="tests.apps.waiting:app", **given)

    return start


def greenlets(service: Service) -> int:
    with call(service, "GET", "/greenlets") as client:
        return int(client.read_body())


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_streams_that_wait_take_no_greenlet(
    upstream: Callable[..., Upstream], serve: Callable[..., Service], held: Held, tls: bool
) -> None:
    server = upstream(held, tls=tls)
    running = serve(server, SSE_CA_FILE=str(server.ca_file) if tls else "")
    with ExitStack() as stack:
        # The first starts what looks after all of them.
        follow(stack.enter_context(call(running, "GET", "/upstream/test/")))
        before = greenlets(running)
        clients = [follow(stack.enter_context(call(running, "GET", "/upstream/test/"))) for _ in range(STREAMS)]
        assert greenlets(running) == before
        held.may_go_on.set()
        for client in clients:
            assert client.read_body() == EVENT * 2
            assert client.is_complete


def test_a_connection_carries_one_stream_after_another(relay: Relay) -> None:
    held = Held()
    client = follow(relay.call(held, "GET"))
    held.may_go_on.set()
    assert client.read_body() == EVENT * 2
    for _ in range(3):
        client.request("GET", "/upstream/test/")
        assert client.read_body() == EVENT * 2
        assert client.is_complete
    client.request("GET", "/healthz")
    assert client.read_body() == b"ok\n"


@pytest.mark.parametrize("is_early", [True, False], ids=["together", "later"])
def test_a_request_behind_a_stream_is_served_in_its_turn(relay: Relay, is_early: bool) -> None:
    """One that came with the request before it is in gunicorn's hands, a later one still in the system's."""
    relay.upstream.script = held = Held()
    first, second = (
        f"GET {target} HTTP/1.1\r\nHost: {relay.service.host}\r\n{fields}\r\n".encode()
        for target, fields in (("/upstream/test/", ""), ("/healthz", "Connection: close\r\n"))
    )
    with RawClient(relay.service.host, relay.service.port) as client:
        client.send(first + (second if is_early else b""))
        data = b""
        while EVENT not in data:
            data += client.recv_some()
        if not is_early:
            client.send(second)
        held.may_go_on.set()
        data += b"".join(iter(client.recv_some, b""))
    _, found, rest = data.partition(chunk(EVENT) * 2 + LAST_CHUNK)
    assert found
    assert rest.startswith(b"HTTP/1.1 200 OK\r\n")
    assert rest.endswith(b"\r\n\r\nok\n")


def test_the_access_log_has_a_stream_when_it_has_ended(
    upstream: Callable[..., Upstream], service: Callable[..., Service], held: Held
) -> None:
    server = upstream(held)
    settings = {"SSE_UPSTREAMS": {"test": server.url}, "SSE_THROTTLE": ""}
    running = service("--access-logfile", "-", "--access-logformat", "access %(U)s %(s)s %(B)s", **settings)
    with call(running, "GET", "/upstream/test/") as client:
        follow(client)
        assert "access /upstream/test/" not in running.log()
        held.may_go_on.set()
        client.read_body()
    assert running.wait_log("access /upstream/test/ (.*)")[1] == f"200 {2 * len(EVENT)}"


def test_statsd_counts_a_stream(upstream: Callable[..., Upstream], service: Callable[..., Service], held: Held) -> None:
    """Its logger counts requests where there is no access log."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
        statsd.bind(("127.0.0.1", 0))
        statsd.settimeout(PATIENCE)
        settings = {"SSE_UPSTREAMS": {"test": upstream(held).url}, "SSE_THROTTLE": ""}
        running = service("--statsd-host", f"127.0.0.1:{statsd.getsockname()[1]}", **settings)
        with call(running, "GET", "/upstream/test/") as client:
            follow(client)
            held.may_go_on.set()
            client.read_body()
        counted = 0
        # One of them is the service's own question whether it is ready.
        while counted < 2:
            counted += statsd.recv(1000).startswith(b"gunicorn.requests:")


def test_whom_a_proxy_named_it_names_for_the_whole_connection(
    upstream: Callable[..., Upstream], service: Callable[..., Service], held: Held
) -> None:
    """Behind a stream the line was looked for again, and a client could write it itself."""
    settings = {"SSE_UPSTREAMS": {"test": upstream(held).url}, "SSE_THROTTLE": ""}
    log = ("--access-logfile", "-", "--access-logformat", "access %(h)s %(U)s")
    # The service's own question whether it is ready has no such line, which is no fault.
    running = service("--proxy-protocol", *log, **settings)
    with RawClient(running.host, running.port) as client:
        client.send(b"PROXY TCP4 192.0.2.9 127.0.0.1 1234 80\r\n")
        client.request("GET", "/upstream/test/")
        follow(client)
        held.may_go_on.set()
        assert client.read_body() == EVENT * 2
        client.request("GET", "/upstream/test/")
        assert client.read_body() == EVENT * 2
        client.send(b"PROXY TCP4 192.0.2.6 127.0.0.1 1234 80\r\n")
        client.request("GET", "/upstream/test/")
        assert client.read_head().status == 400
    running.wait_log(r"access 192\.0\.2\.9 /upstream/test/\n(.*\n)*access 192\.0\.2\.9 /upstream/test/")
    found = re.findall("^access (.*) /upstream/test/$", running.log(), re.MULTILINE)
    assert found == ["192.0.2.9"] * 2


def test_a_length_that_a_site_sets_is_kept_to(upstream: Callable[..., Upstream], serve: Callable[..., Service]) -> None:
    """What is more would be taken for the next response."""
    running = serve(upstream(respond(EVENT, EVENT)))
    with call(running, "GET", "/upstream/test/?length=9") as client:
        assert client.read_body() == EVENT
        client.request("GET", "/healthz")
        assert client.read_body() == b"ok\n"


def test_streams_that_wait_count_as_connections(
    upstream: Callable[..., Upstream], service: Callable[..., Service], held: Held
) -> None:
    """`worker_connections` would bound nothing if they did not."""
    server = upstream(held)
    running = service("--worker-connections", "2", SSE_UPSTREAMS={"test": server.url}, SSE_THROTTLE="")
    with ExitStack() as stack:
        clients = [follow(stack.enter_context(call(running, "GET", "/upstream/test/"))) for _ in range(2)]
        late = stack.enter_context(call(running, "GET", "/healthz"))
        for _ in range(20):
            # To pass it on, the hub has looked at what there is to accept.
            server.connections[0].send(chunk(EVENT))
            assert clients[0].read_piece() is not None
        assert not select.select([late.sock], [], [], 0)[0]
        clients[1].close()
        assert late.read_body() == b"ok\n"
        held.may_go_on.set()
        assert clients[0].read_body() == EVENT * 22


def test_a_parked_stream_is_cut_when_its_worker_is_killed(
    upstream: Callable[..., Upstream], service: Callable[..., Service], held: Held, tmp_path: Path
) -> None:
    """Without `end_with_worker`, gunicorn kills the greenlets of a worker that is replaced; a stream may have none."""
    server = upstream(held)
    conf = tmp_path / "gunicorn.conf.py"
    conf.write_text(
        "from gevent import monkey\nmonkey.patch_all()\n"
        "worker_class = 'sse.gunicorn.StreamWorker'\ngraceful_timeout = 1\n"
    )
    running = service("-c", str(conf), SSE_UPSTREAMS={"test": server.url}, SSE_THROTTLE="")
    with call(running, "GET", "/upstream/test/") as client:
        follow(client)
        os.kill(running.pid, signal.SIGHUP)
        client.read_body()
        assert client.ending == "aborted"
    server.connections[0].wait_closed()
    running.wait_log("^.*INFO stream end=internal_error .*events=1 ")


BARE = """
from gevent import monkey
monkey.patch_all()
worker_class = 'sse.gunicorn.StreamWorker'
graceful_timeout = 1
"""


def test_a_view_that_is_killed_with_the_worker_still_ends(
    upstream: Callable[..., Upstream], service: Callable[..., Service], held: Held, tmp_path: Path
) -> None:
    """A parked stream on one listener broke the killing, and views on the next never ran their `finally`."""
    conf = tmp_path / "gunicorn.conf.py"
    conf.write_text(BARE)
    args = ("-c", str(conf), "-b", "127.0.0.1:0", "-b", "127.0.0.1:0")
    running = service(*args, app="tests.apps.waiting:app", SSE_UPSTREAMS={"test": upstream(held).url}, SSE_THROTTLE="")
    ports = [int(port) for port in re.findall(r"http://127\.0\.0\.1:(\d+)", running.log())]
    with RawClient("127.0.0.1", ports[0]) as stream, RawClient("127.0.0.1", ports[-1]) as view:
        stream.request("GET", "/upstream/test/")
        follow(stream)
        view.request("GET", "/wait")
        running.wait_log("view begins")
        os.kill(running.pid, signal.SIGHUP)
        running.wait_log("view ended")
        running.wait_log("stream end=internal_error ")
        exiting = running.wait_log(r"Worker exiting \(pid: \d+\)")
        assert running.log().index("view ended") < exiting.start()


@pytest.mark.parametrize("parks", [True, False], ids=["parked", "at once"])
def test_call_on_close_runs_when_a_relayed_response_is_closed(
    upstream: Callable[..., Upstream], serve: Callable[..., Service], held: Held, parks: bool
) -> None:
    """It never was: the response was not built as others are."""
    running = serve(upstream(held))
    if not parks:
        held.may_go_on.set()
    with call(running, "GET", "/upstream/test/?reported") as client:
        follow(client)
        if parks:
            assert "response closed" not in running.log()
            held.may_go_on.set()
        client.read_body()
        assert client.is_complete
    running.wait_log("response closed")
    running.wait_log("stream end=complete")
    assert running.log().count("response closed") == 1


def test_what_a_site_makes_of_the_body_is_sent(
    upstream: Callable[..., Upstream], service: Callable[..., Service]
) -> None:
    """A middleware that changes bytes is not passed by."""
    running = service(
        app="tests.apps.shouting:app", SSE_UPSTREAMS={"test": upstream(respond(EVENT, EVENT)).url}, SSE_THROTTLE=""
    )
    with call(running, "GET", "/upstream/test/") as client:
        assert client.read_body() == EVENT.upper() * 2


@pytest.mark.parametrize("kind", ["relayed", "own"])
def test_heartbeats_cost_no_greenlet(
    upstream: Callable[..., Upstream], serve: Callable[..., Service], held: Held, kind: str
) -> None:
    """A stream with heartbeats kept its greenlet."""
    running = serve(upstream(held), SSE_RELAY_HEARTBEAT=0.2, SSE_HEARTBEAT=0.2)
    path = "/upstream/test/" if kind == "relayed" else "/hold"
    with ExitStack() as stack:
        clients = [stack.enter_context(call(running, "GET", path)) for _ in range(3)]
        for client in clients:
            follow(client)
        before = greenlets(running)
        more = [stack.enter_context(call(running, "GET", path)) for _ in range(STREAMS)]
        for client in more:
            follow(client)
        # An own stream's iterable has one.
        assert greenlets(running) - before == (0 if kind == "relayed" else STREAMS)
        for client in more:
            client.read_until(b":\n:\n")


def test_a_worker_on_another_gunicorn_serves_as_gevents_does(
    upstream: Callable[..., Upstream], service: Callable[..., Service], held: Held, tmp_path: Path
) -> None:
    conf = tmp_path / "gunicorn.conf.py"
    conf.write_text(BARE + "from gunicorn.http import wsgi\ndel wsgi.Response.force_close\n")
    running = service("-c", str(conf), SSE_UPSTREAMS={"test": upstream(held).url}, SSE_THROTTLE="")
    with call(running, "GET", "/upstream/test/") as client:
        follow(client)
        held.may_go_on.set()
        assert client.read_body() == EVENT * 2
        assert client.is_complete
    assert len(re.findall("gunicorn's own gevent worker: .*no method force_close", running.log())) == 1


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[ssl.SSLContext, list[str]]:
    """What a client trusts, and gunicorn's arguments for TLS."""
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context, ["--certfile", str(tmp_path / "server.pem"), "--keyfile", str(tmp_path / "server.pem")]


def test_over_tls_a_stream_keeps_its_greenlet_and_comes_as_it_is(
    upstream: Callable[..., Upstream], held: Held, certificate: tuple[ssl.SSLContext, list[str]]
) -> None:
    context, args = certificate
    env = {**os.environ, "FLASK_SSE_UPSTREAMS": json.dumps({"test": upstream(held).url})}
    command = [sys.executable, "-m", "gunicorn", "app:app", "-b", "127.0.0.1:0", *args]
    with Process(command, env=env) as process:
        port = int(process.wait_log(r"Listening at: https://127\.0\.0\.1:(\d+)")[1])
        with RawClient("127.0.0.1", port) as client:
            client.sock = context.wrap_socket(client.sock, server_hostname="127.0.0.1")
            for _ in range(2):
                client.request("GET", "/upstream/test/")
                follow(client)
                held.may_go_on.set()
                assert client.read_body() == EVENT * 2
                assert client.is_complete
        process.stop(number=signal.SIGQUIT)


def test_over_http_2_a_name_with_an_underscore_is_no_other(certificate: tuple[ssl.SSLContext, list[str]]) -> None:
    """It got into environ as X-Passcode, or as the X-Forwarded-For of a proxy."""
    context, args = certificate
    env = {**os.environ, "FLASK_SSE_UPSTREAMS": '{"test": "http://127.0.0.1:1/"}', "FLASK_SSE_PASSCODES": '{"me": "9"}'}
    command = [sys.executable, "-m", "gunicorn", "app:app", "-b", "127.0.0.1:0", "--http-protocols", "h2,h1", *args]
    with Process(command, env=env) as process, httpx.Client(verify=context, http1=False, http2=True) as client:
        url = f"https://127.0.0.1:{process.wait_log(r'Listening at: https://127.0.0.1:([0-9]+)')[1]}/upstream/test/"
        responses = [client.get(url, headers={name: "9"}) for name in ("X-Passcode", "X_Passcode")]
        assert [(each.http_version, each.status_code) for each in responses] == [("HTTP/2", 502), ("HTTP/2", 401)]
        process.stop(number=signal.SIGQUIT)


def test_a_malformed_request_is_refused_without_descriptors(service: Callable[..., Service]) -> None:
    """Each gave a traceback, and no response."""
    running = service()
    [worker] = running.worker_pids()
    with RawClient(running.host, running.port) as client:
        client.request("GET", "/healthz")
        client.read_body()
        soft = max(int(number) for number in os.listdir(f"/proc/{worker}/fd")) + 1
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (soft, resource.prlimit(worker, resource.RLIMIT_NOFILE)[1]))
        client.send(b"GET / HTTP/nine\r\n\r\n")
        assert client.read_head().status == 400
    assert "Traceback" not in running.log()
