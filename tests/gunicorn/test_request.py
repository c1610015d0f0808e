"""Requests that are refused, malformed or endless, while others have their streams."""

from __future__ import annotations

import contextlib
import itertools
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from ..support.service import PATIENCE, Process, RawClient, Service, call
from ..support.upstream import LAST_CHUNK, chunk

#: Seconds that a stream beside an attack may pause; without protection each attack stops it for seconds or for good.
LONGEST_GAP = 1.0
#: Events of it that are waited for at least.
EVENTS = 25


@pytest.fixture(scope="module")
def site() -> Iterator[Service]:
    """A site on this project's worker, with a relay that needs a passcode."""
    with Service(app="tests.apps.bodies:app", SSE_PASSCODES={"me": "secret"}, SSE_THROTTLE="") as service:
        yield service


@pytest.fixture(scope="module")
def textbook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The same site on gunicorn's own gevent worker."""
    empty = tmp_path_factory.mktemp("textbook") / "gunicorn.conf.py"
    empty.write_text("")
    args = ("-c", str(empty), "-k", "gevent", "--no-control-socket")
    with Service(*args, app="tests.apps.bodies:app", SSE_PASSCODES={"me": "secret"}, SSE_THROTTLE="") as service:
        yield service


def waited(task: str) -> float:
    """Return the seconds for which a task of Linux's has waited for a processor, 0 on other systems."""
    path = Path("/proc", task, "schedstat")
    return int(path.read_text().split()[1]) / 1e9 if path.exists() else 0.0


class Reader(threading.Thread):
    """Reads a paced stream and measures its gaps, until the block ends; at least as many as `EVENTS`.

    Time in which the worker or this thread wait for a processor is not part of a gap: others use the machine then.
    """

    def __init__(self, service: Service) -> None:
        super().__init__()
        [self._worker] = service.worker_pids()
        self._client = call(service, "GET", "/paced")
        self._client.read_until(b"tick")
        self._may_end = threading.Event()
        self.gaps: list[float] = []

    def run(self) -> None:
        last = self._time()
        while not self._may_end.is_set() or len(self.gaps) < EVENTS:
            assert self._client.read_piece() is not None
            now = self._time()
            self.gaps.append(now - last)
            last = now

    def _time(self) -> float:
        return time.monotonic() - waited(str(self._worker)) - waited("thread-self")

    def __enter__(self) -> Reader:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._may_end.set()
        self.join()
        self._client.close()


def drain(client: RawClient) -> int:
    """Read until the service closes, and return how many responses came."""
    count, tail = 0, b""
    with contextlib.suppress(ConnectionError):
        while data := client.recv_some():
            # The mark may lie across two reads.
            count += (tail + data).count(b"HTTP/1.1 ")
            tail = data[-8:] if data[-9:] != b"HTTP/1.1 " else b""
    return count


def attack(service: Service, first: bytes, pieces: Iterator[bytes], limit: float = 3.0) -> int:
    """Send bytes without a pause until the service closes or the time is over; return how many responses came."""
    deadline = time.monotonic() + limit
    counts: list[int] = []
    with RawClient(service.host, service.port) as client:
        reader = threading.Thread(target=lambda: counts.append(drain(client)))
        reader.start()
        # The connection may be closed in the middle of what is sent.
        with contextlib.suppress(ConnectionError):
            client.send(first)
            for piece in pieces:
                client.send(piece)
                if time.monotonic() > deadline:
                    break
            client.half_close()
        reader.join()
    return counts[0]


def head(target: str, *fields: str) -> bytes:
    return "\r\n".join([f"POST {target} HTTP/1.1", "Host: site", *fields, "", ""]).encode()


REFUSED = "/upstream/demo/v1/chat/completions"
MEGABYTE = b"x" * 1_000_000
CODED = "Transfer-Encoding: chunked"
ATTACKS = {
    "a long body": (head(REFUSED, "Content-Length: 9000000000"), itertools.repeat(MEGABYTE)),
    "a long body that a site ignores": (head("/ignored", "Content-Length: 9000000000"), itertools.repeat(MEGABYTE)),
    "an endless chunked body": (head(REFUSED, CODED), itertools.repeat(b"F4240\r\n" + MEGABYTE + b"\r\n")),
    "tiny chunks": (head("/read", CODED), itertools.repeat(b"1\r\nx\r\n" * 10_000)),
    "chunk extensions": (head("/read", CODED), itertools.repeat((b"1;" + b"x" * 4000 + b"\r\nx\r\n") * 20)),
    "an endless chunk extension": (head("/read", CODED), itertools.chain([b"1;"], itertools.repeat(MEGABYTE))),
    "endless trailers": (head("/read", CODED), itertools.chain([b"0\r\n"], itertools.repeat(b"X: y\r\n" * 10_000))),
    "endless fields": (b"GET / HTTP/1.1\r\n", itertools.repeat(b"X: y\r\n" * 10_000)),
    "an endless request line": (b"GET /", itertools.repeat(MEGABYTE)),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_stream_beside_an_endless_request_goes_on(site: Service, name: str) -> None:
    with Reader(site) as reader:
        attack(site, *ATTACKS[name])
    assert max(reader.gaps) < LONGEST_GAP


@pytest.mark.parametrize("target", [REFUSED, "/healthz"], ids=["refused", "site"])
def test_a_stream_beside_requests_that_came_together_goes_on(site: Service, target: str) -> None:
    together = 4000
    with Reader(site) as reader:
        count = attack(site, b"", iter([f"GET {target} HTTP/1.1\r\nHost: site\r\n\r\n".encode() * together]))
    assert count == together
    assert max(reader.gaps) < LONGEST_GAP


@pytest.mark.parametrize("name", ["a long body", "an endless chunked body"])
def test_on_gunicorns_own_worker_a_refused_body_delays_no_stream(textbook: Service, name: str) -> None:
    with Reader(textbook) as reader:
        attack(textbook, *ATTACKS[name])
    assert max(reader.gaps) < LONGEST_GAP


@pytest.mark.parametrize("target", [REFUSED, "/ignored"], ids=["refused", "site"])
@pytest.mark.parametrize("framing", ["Content-Length: 10000000", CODED], ids=["length", "chunked"])
def test_the_response_to_an_unread_body_arrives(site: Service, target: str, framing: str) -> None:
    """A close with unread bytes is a reset, which may overtake the response."""
    # Failed logins of another test count for its address.
    with RawClient(site.host, site.port, source="127.0.0.2") as client:
        client.method = "POST"
        body = MEGABYTE * 10 if framing != CODED else chunk(MEGABYTE) * 10 + LAST_CHUNK
        client.send(head(target, framing) + body)
        client.read_body()
        assert client.head is not None
        assert client.head.status == (401 if target == REFUSED else 200)
        assert client.head.field("Connection") == "close"
        assert client.is_complete
        assert client.recv_some() == b""


@pytest.mark.parametrize("target", [REFUSED, "/ignored"], ids=["refused", "site"])
def test_behind_a_short_unread_body_the_connection_goes_on(site: Service, target: str) -> None:
    with call(site, "POST", target, body=b"x" * 1000) as client:
        client.read_body()
        client.request("GET", "/healthz")
        assert client.read_body() == b"ok"


def test_an_unread_body_is_no_request(site: Service) -> None:
    """Behind a stream the connection's next request is looked for afresh."""
    smuggled = b"GET /healthz HTTP/1.1\r\nHost: site\r\n\r\n"
    with call(site, "POST", "/stream", body=smuggled) as client:
        assert client.read_body() == b"data: a\n\ndata: b\n\n"
        client.request("GET", "/healthz", {"Connection": "close"})
        assert client.read_body() == b"ok"
        assert client.recv_some() == b""


MALFORMED = {
    "no size": b"\r\nx\r\n",
    "a size that is none": b"xyz\r\nx\r\n",
    "a sign": b"+1\r\nx\r\n",
    "a negative size": b"-1\r\nx\r\n",
    "a prefix": b"0x1\r\nx\r\n",
    "an underscore": b"1_0\r\n" + b"x" * 16 + b"\r\n",
    "a bare CR in an extension": b"1;a\rb\r\nx\r\n",
    "an extension that is none": b"1;=\r\nx\r\n",
    "an endless extension": b"1;" + b"x" * 100_000,
    "no line end behind a chunk": b"1\r\nxyz\r\n",
    "a trailer that is none": b"0\r\nX Y: z\r\n\r\n",
    "a folded trailer": b"0\r\nX: y\r\n z\r\n\r\n",
    "a bare LF in the trailers": b"0\r\nX: y\nZ: z\r\n\r\n",
    "endless trailers": b"0\r\n" + b"X: y\r\n" * 200_000,
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("target", ["/forward-sse", "/read", "/lines"])
def test_a_malformed_body_is_a_bad_request(site: Service, target: str, name: str) -> None:
    """Each was a 500 with a traceback, whichever client sent it."""
    start = len(site.log())
    refuses_malformed(site, target, name)
    # Lines of requests before this one may come late.
    lines = site.log()[start:].splitlines()
    assert [line for line in lines if not line.startswith(("refused status=4", "stream end="))] == []
    assert "Traceback" not in site.log()


@pytest.mark.parametrize("name", MALFORMED)
def test_gunicorns_own_worker_refuses_a_malformed_body(textbook: Service, name: str) -> None:
    refuses_malformed(textbook, "/forward-sse", name)
    assert "Traceback" not in textbook.log()


def refuses_malformed(service: Service, target: str, name: str) -> None:
    with RawClient(service.host, service.port) as client:
        client.method = "POST"
        client.send(head(target, CODED, "Content-Type: application/json", "X-Passcode: secret") + MALFORMED[name])
        client.half_close()
        client.read_body()
        assert client.head is not None
        assert client.head.status == 400
        assert client.is_complete
        assert client.recv_some() == b""


def test_a_body_that_ends_early_is_a_bad_request(site: Service) -> None:
    with RawClient(site.host, site.port) as client:
        client.method = "POST"
        client.send(head("/read", CODED) + b"5\r\nx")
        client.half_close()
        assert client.read_head().status == 400
    assert "Traceback" not in site.log()


def test_what_fails_before_tls_is_agreed_writes_no_traceback(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    pem = str(tmp_path / "server.pem")
    command = [sys.executable, "-m", "gunicorn", "app:app", "-b", "127.0.0.1:0", "--certfile", pem, "--keyfile", pem]
    with Process(command) as process:
        port = int(process.wait_log(r"Listening at: https://127\.0\.0\.1:(\d+)")[1])
        for sent in (b"", b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01\x00\xff\x01"):
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as probe:
                probe.sendall(sent)
                probe.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionResetError):
                    while probe.recv(1000):
                        pass
        # A client that does not trust the certificate.
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as probe, pytest.raises(ssl.SSLError):
            ssl.create_default_context().wrap_socket(probe, server_hostname="127.0.0.1")
        with RawClient("127.0.0.1", port) as client:
            client.sock = context.wrap_socket(client.sock, server_hostname="127.0.0.1")
            client.request("GET", "/healthz")
            assert client.read_body() == b"ok\n"
        process.stop(number=signal.SIGQUIT)
        assert "Traceback" not in process.log()
        assert "Exception" not in process.log()
