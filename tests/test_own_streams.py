"""Own streams on the wire, under every server they are made for."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .support.ending import error_event
from .support.service import PATIENCE, ROOT, Process, RawClient, Service, call

#: How each server is started on a port of its own choice, and what it says then.
COMMANDS = {
    "gevent": ["-m", "gunicorn", "tests.apps.streams:app", "-b", "127.0.0.1:0"],
    "gthread": ["-m", "gunicorn", "tests.apps.streams:app", "-b", "127.0.0.1:0", "-k", "gthread", "--threads", "9"],
    "flask": ["-m", "flask", "--app", "tests.apps.streams", "run", "--port", "0"],
    "waitress": ["-m", "waitress", "--listen", "127.0.0.1:0", "--threads", "9", "tests.apps.streams:app"],
}
LISTENING = r"(?:Listening at|Running on|Serving on):? http://127\.0\.0\.1:(\d+)"


@dataclass
class Site:
    """The site of `streams`, running under a server."""

    server: str
    process: Process
    port: int
    host: str = "127.0.0.1"

    #: The request id of the latest stream.
    stream_id: str = ""

    @property
    def opening(self) -> bytes:
        """What a stream begins with: waitress sends no head before the first byte."""
        return b":\n" if self.server == "waitress" else b""

    def ask(self, path: str, method: str = "GET") -> bytes:
        """Return the body of a response."""
        with RawClient(self.host, self.port) as client:
            client.request(method, path, body=b"" if method == "POST" else None)
            return client.read_body()

    def stream(self, path: str, method: str = "GET", **options: Any) -> RawClient:
        """Open a stream; the caller closes."""
        self.stream_id = uuid.uuid4().hex
        client = RawClient(self.host, self.port, **options)
        client.request(method, path, {"X-Request-Id": self.stream_id})
        return client

    def wait_end(self, reason: str) -> str:
        """Return the log line of the latest stream's end, which must be for that reason."""
        line = self.process.wait_log(rf"stream end=(\w+) .*request_id={self.stream_id}$")
        assert line[1] == reason
        return line[0]

    def wait_closed(self, timeout: float = PATIENCE) -> None:
        """Wait until the iterable of the latest stream has been closed."""
        self.process.wait_log(f"^closed {self.stream_id}", timeout)


def start_site(server: str, directory: Path, **settings: float) -> Iterator[Site]:
    # Without a file of its own gunicorn takes ours, which patches for gevent.
    (directory / "plain.conf.py").write_text("control_socket_disable = True\n")
    config = ["-c", str(directory / "plain.conf.py")] if server == "gthread" else []
    inherited: dict[str, Any] = {name: value for name, value in os.environ.items() if not name.startswith("FLASK_")}
    ours: dict[str, Any] = {f"FLASK_SSE_{key}": str(value) for key, value in settings.items()}
    environment = {**inherited, "PYTHONUNBUFFERED": "1", **ours}
    with Process([sys.executable, *COMMANDS[server], *config], env=environment, cwd=ROOT) as process:
        site = Site(server, process, int(process.wait_log(LISTENING)[1]))
        assert site.ask("/healthz") == b"ok"
        yield site


@pytest.fixture(scope="module", params=list(COMMANDS))
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    yield from start_site(request.param, tmp_path_factory.mktemp("site"), HEARTBEAT=0.1, SEND_TIMEOUT=1)


@pytest.fixture
def site(running: Site) -> Iterator[Site]:
    """A site with heartbeats every 100 ms, its gate closed."""
    running.ask("/close-gate", "POST")
    yield running
    running.ask("/open-gate", "POST")


@pytest.fixture
def special(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """`special("gevent", HEARTBEAT=0)` starts a site with other settings."""
    sites: list[Iterator[Site]] = []

    def start(server: str, **settings: float) -> Site:
        sites.append(start_site(server, tmp_path, **settings))
        return next(sites[-1])

    yield start
    for running in sites:
        assert next(running, None) is None


def test_every_kind_of_item_becomes_an_event(site: Site) -> None:
    with site.stream("/kinds") as client:
        head = client.read_head()
        body = client.read_body()
    assert client.is_complete
    assert head.field("Content-Type") == "text/event-stream; charset=utf-8"
    assert head.field("Cache-Control") == "no-cache, no-transform"
    assert head.field("X-Accel-Buffering") == "no"
    assert head.field("Content-Length") is None
    json_ = b'data: {"a": 1}\n\ndata: [1, "\\u00fc"]\n\n'
    assert body == site.opening + b"event: news\nid: 7\ndata: a\ndata: b\n\ndata: text\n\n" + json_
    line = site.wait_end("complete")
    assert "status=200 upstream=own:kinds client=- events=4" in line


def test_an_event_arrives_before_the_next_is_there(site: Site) -> None:
    with site.stream("/gated") as client:
        client.read_until(b"data: one\n\n")
        site.ask("/open-gate", "POST")
        client.read_until(b"data: two\n\n")


def test_comments_are_sent_while_the_iterable_is_silent(site: Site) -> None:
    with site.stream("/gated") as client:
        assert client.read_until(b":\n:\n:\n") == site.opening + b"data: one\n\n:\n:\n:\n"


def test_a_client_that_leaves_a_silent_stream_is_noticed(site: Site) -> None:
    """Under gevent the iterable is closed although it waits; a thread cannot be woken, only its stream."""
    with site.stream("/gated") as client:
        client.read_until(b"data: one\n\n")
    if site.server == "gevent":
        site.wait_closed(1)
    site.wait_end("client_gone")
    site.ask("/open-gate", "POST")
    site.wait_closed()


def test_a_leaving_client_of_a_busy_stream_closes_the_iterable(site: Site) -> None:
    with site.stream("/ticks") as client:
        client.read_until(b"tick")
        client.reset()
    site.wait_closed()
    site.wait_end("client_gone")


@pytest.mark.parametrize("kind", ["value", "os"])
def test_what_the_iterable_raises_is_logged_and_cuts_the_stream(site: Site, kind: str) -> None:
    start = len(site.process.log())
    with site.stream(f"/broken?kind={kind}") as client:
        body = client.read_body()
    assert body == site.opening + b"data: one\n\n" + error_event("internal_error")
    assert client.ending == "aborted"
    site.wait_end("internal_error")
    site.process.wait_log("Error: of the iterable", start=start)


def test_a_head_request_ends_at_once(site: Site) -> None:
    with site.stream("/ticks", "HEAD") as client:
        assert client.read_head().field("Content-Type") == "text/event-stream; charset=utf-8"
    site.wait_end("complete")


def test_the_last_event_id_of_field_or_query_is_handed_over(site: Site) -> None:
    with RawClient(site.host, site.port) as client:
        client.request("GET", "/resume", {"Last-Event-ID": "ü".encode().decode("latin-1")})
        assert b'"\\u00fc"' in client.read_body()
    assert b'"41"' in site.ask("/resume?lastEventId=41")


def test_a_client_that_does_not_read_pauses_the_iterable(site: Site) -> None:
    if site.server == "waitress":
        pytest.skip("waitress takes 16 MiB into its own buffer, and has no send timeout")
    before = int(site.ask("/produced"))
    with site.stream("/flood", receive_buffer=4096):
        site.wait_end("send_timeout")
        site.wait_closed()
    # What the kernel's buffers hold, and one more.
    assert int(site.ask("/produced")) - before < 100


@pytest.mark.parametrize("server", ["gevent", "gthread", "flask"])
def test_a_leaving_client_is_noticed_before_a_heartbeat(special: Callable[..., Site], server: str) -> None:
    site = special(server, HEARTBEAT=60)
    with site.stream("/gated") as client:
        client.read_until(b"data: one\n\n")
    site.wait_end("client_gone")
    site.ask("/open-gate", "POST")
    site.wait_closed()


@pytest.mark.parametrize("server", ["gevent", "gthread"])
def test_a_stream_ends_after_its_longest_life(special: Callable[..., Site], server: str) -> None:
    site = special(server, MAX_DURATION=0.3)
    with site.stream("/gated") as client:
        body = client.read_body()
    assert body == b"data: one\n\n" + error_event("max_duration")
    assert client.ending == "aborted"
    site.wait_end("max_duration")
    site.ask("/open-gate", "POST")


def test_a_silent_iterable_is_closed_at_once_under_gevent(special: Callable[..., Site]) -> None:
    site = special("gevent", HEARTBEAT=0)
    with site.stream("/gated") as client:
        client.read_until(b"data: one\n\n")
    site.wait_closed(1)
    site.wait_end("client_gone")


def test_the_demonstration_continues_after_last_event_id(shared_service: Service) -> None:
    with call(shared_service, "GET", "/sse", {"Last-Event-ID": "41"}) as client:
        client.read_until(b"id: 43\ndata: Message 42\n\n")
        assert client.body.startswith(b"id: 42\ndata: Message 41\n\n")
    with call(shared_service, "HEAD", "/sse") as client:
        assert client.read_head().field("Content-Type") == "text/event-stream; charset=utf-8"
        client.request("GET", "/healthz")
        assert client.read_head().status == 200
