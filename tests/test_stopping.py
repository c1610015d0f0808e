"""What a restart looks like from outside: SIGTERM, SIGHUP and max_requests, with a real gunicorn."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .support.ending import EVENT, LAST_WORDS, STREAM, ending, eventually, headless, new_mark
from .support.program import RedisServer
from .support.service import ROOT, RawClient, Service, call, forward
from .support.upstream import LAST_CHUNK, Connection, SilentListener, Upstream, chunk

if TYPE_CHECKING:
    from playwright.sync_api import Browser

#: Of these, gunicorn's own polls, keep-alive and the error event take 4 s; 2 s are left for the last event.
BRISK = ("--graceful-timeout", "6")
#: As above, and for 4 s streams just go on.
PATIENT = ("--graceful-timeout", "10")


@contextmanager
def stopping(*args: str, script: Callable[[Connection], object], **settings: Any) -> Iterator[tuple[Service, Upstream]]:
    """A service, and an upstream in its table."""
    with Upstream(script) as upstream, Service(*args, SSE_UPSTREAMS={"test": upstream.url}, **settings) as service:
        yield service, upstream


def stops_politely(service: Service) -> None:
    """Wait until the master has gone, which must not have had to kill a worker."""
    assert service.wait_exit(30) == 0
    # The master does not say whom it killed; a worker that was not says that it goes.
    started, gone = (set(re.findall(rf"{word} .*pid:? (\d+)", service.log())) for word in ("Booting", "exiting"))
    assert started
    assert gone == started


class Steps:
    """A script that sends an event when the test has it do so, then whatever it is given."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __call__(self, connection: Connection) -> None:
        connection.read_request()
        connection.send(STREAM + chunk(EVENT))
        connection.wait_for(self.go)
        connection.send(chunk(b"data: last\n\n") + LAST_CHUNK)


def silent(connection: Connection) -> None:
    connection.read_request()
    connection.send(STREAM + chunk(EVENT))
    connection.wait_closed()


def half_an_event(connection: Connection) -> None:
    connection.read_request()
    connection.send(STREAM + chunk(EVENT + b"data: be"))
    connection.wait_closed()


def never_between_events(connection: Connection) -> None:
    """Flood, and let no piece end where an event does."""
    connection.read_request()
    connection.send(STREAM + chunk(EVENT + b"data: "))
    # Longer than a read, so that none ends where an event does.
    connection.flood(chunk(b"x" * 100_001 + b"\n\ndata: "))


def test_a_silent_stream_ends_with_an_error_event_at_a_stop() -> None:
    mark = new_mark()
    with stopping(*BRISK, script=silent) as (service, upstream):
        with forward(service, upstream.url, **mark) as client:
            client.read_until(EVENT)
            service.terminate()
            body = client.read_body()
        assert LAST_WORDS.sub(b"", body) == EVENT
        assert LAST_WORDS.search(body)
        assert client.ending == "aborted"
        assert ending(service, mark) == "draining"
        upstream.wait_connection().wait_closed()
        stops_politely(service)


def test_a_busy_stream_ends_between_events_inside_a_piece() -> None:
    mark = new_mark()
    with stopping(*BRISK, script=never_between_events) as (service, upstream):
        with forward(service, upstream.url, **mark) as client:
            client.read_until(EVENT)
            service.terminate()
            body = client.read_body()
        events = LAST_WORDS.sub(b"", body)
        assert re.fullmatch(EVENT + b"(data: x{100001}\n\n)+", events)
        assert LAST_WORDS.search(body)
        assert ending(service, mark) == "draining"
        stops_politely(service)


def test_a_stream_inside_an_event_ends_with_nothing_appended() -> None:
    mark = new_mark()
    with stopping(*BRISK, script=half_an_event) as (service, upstream):
        with forward(service, upstream.url, **mark) as client:
            client.read_until(b"data: be")
            service.terminate()
            assert client.read_body() == EVENT + b"data: be"
        assert client.ending == "aborted"
        assert ending(service, mark) == "draining"
        stops_politely(service)


def test_a_stream_that_ends_in_time_is_complete() -> None:
    script, mark = Steps(), new_mark()
    with stopping(*PATIENT, script=script) as (service, upstream):
        with forward(service, upstream.url, **mark) as client:
            client.read_until(EVENT)
            service.terminate()
            eventually(lambda: not serves(service), "the worker does not stop")
            script.go.set()
            assert client.read_body() == EVENT + b"data: last\n\n"
        assert client.is_complete
        assert ending(service, mark) == "complete"
        stops_politely(service)


def test_who_waits_for_a_head_may_come_again() -> None:
    mark = new_mark()
    with stopping(*BRISK, script=headless) as (service, upstream):
        with forward(service, upstream.url, **mark) as client:
            upstream.wait_request()
            service.terminate()
            head = client.read_head()
            assert head.status == 503
            assert head.field("Retry-After") == "1"
            assert client.json()["code"] == "draining"
        stops_politely(service)


def test_who_waits_for_a_connection_may_come_again() -> None:
    with SilentListener() as listener:
        upstreams = {"test": f"http://127.0.0.1:{listener.port}/"}
        with Service(*BRISK, SSE_UPSTREAMS=upstreams, SSE_CONNECT_TIMEOUT=60) as service:
            mark = new_mark()
            with forward(service, upstreams["test"], **mark) as client:
                # It has been let in, and is connecting: the health of the service is asked after it on the same worker.
                with call(service, "GET", "/healthz") as health:
                    assert health.read_head().status == 200
                service.terminate()
                assert client.read_head().status == 503
                assert client.json()["code"] == "draining"
            assert ending(service, mark) == "draining"
            stops_politely(service)


@pytest.mark.parametrize("endpoint", ["/forward-sse", "/upstream/test/"])
def test_whose_request_has_not_arrived_may_come_again(endpoint: str) -> None:
    """A passcode in a JSON that was cut is no wrong passcode."""
    passcodes: dict[str, Any] = {"SSE_PASSCODES": {"ann": "right"}}
    with stopping(*BRISK, script=silent, **passcodes) as (service, _), RawClient(service.host, service.port) as client:
        client.method = "POST"
        passcode = "X-Passcode: right\r\n" if endpoint != "/forward-sse" else ""
        fields = f"Host: x\r\n{passcode}Content-Type: application/json\r\nContent-Length: 1000"
        with call(service, "GET", "/healthz") as health:
            health.read_head()
        client.send(f'POST {endpoint} HTTP/1.1\r\n{fields}\r\n\r\n{{"passcode": "right"'.encode())
        with call(service, "GET", "/healthz") as health:
            assert health.read_head().status == 200
        service.terminate()
        head = client.read_head()
        assert (head.status, head.field("Retry-After")) == (503, "1")
        assert client.json()["code"] == "draining"
        stops_politely(service)


def test_the_time_runs_from_the_stop_although_nothing_is_open(tmp_path: Path) -> None:
    """It ran from the first question, which a stream asked that came later: the master killed it."""
    (tmp_path / "app.py").write_text(LATE)
    for name in ("sse", "gunicorn.conf.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    with Service("--graceful-timeout", "8", root=tmp_path) as service, call(service, "GET", "/slow") as client:
        service.wait_log("slow begins")
        service.terminate()
        assert client.read_body() == b"slow"
        assert client.head is not None
        if client.head.field("Connection") == "keep-alive":
            client.request("GET", "/own")
            assert LAST_WORDS.search(client.read_body())
        stops_politely(service)


def test_a_stalled_client_does_not_delay_the_stop() -> None:
    def flood(connection: Connection) -> None:
        connection.read_request()
        connection.send(STREAM)
        connection.flood()

    mark = new_mark()
    with stopping(*BRISK, script=flood) as (service, upstream):
        with forward(service, upstream.url, **mark):
            upstream.wait_request()
            service.terminate()
            stops_politely(service)
        assert ending(service, mark) == "draining"


def test_a_stopping_service_serves_open_connections() -> None:
    script = Steps()
    with (
        stopping(*PATIENT, script=script) as (service, upstream),
        forward(service, upstream.url) as client,
        call(service, "GET", "/healthz") as health,
        call(service, "GET", "/readyz") as ready,
        call(service, "GET", "/healthz") as other,
    ):
        client.read_until(EVENT)
        for connection in (health, ready, other):
            assert (connection.read_head().status, connection.read_body()) == (200, b"ok\n")
        service.terminate()
        eventually(lambda: not serves(service), "the worker does not stop")
        for connection, path in ((health, "/healthz"), (ready, "/readyz")):
            connection.request("GET", path)
            assert (connection.read_head().status, connection.read_body()) == (503, b"draining\n"), path
            assert connection.head is not None
            assert connection.head.field("Connection") == "close"
        body = json.dumps({"targetUrl": upstream.url}).encode()
        other.request("POST", "/forward-sse", {"Content-Type": "application/json"}, body)
        assert other.read_head().status == 200
        other.read_until(EVENT)
        script.go.set()
        assert other.read_body() == client.read_body() == EVENT + b"data: last\n\n"


def serves(service: Service) -> bool:
    """Return whether a new connection gets a response that shows it."""
    try:
        with call(service, "GET", "/healthz") as client:
            return client.read_head().status == 200
    except ConnectionError:
        return False


def reload(service: Service) -> None:
    """Send SIGHUP, and wait until the new worker serves."""
    start = len(service.log())
    os.kill(service.pid, signal.SIGHUP)
    service.wait_log("Booting worker", start=start)


def test_a_reload_leaves_open_streams_alone_and_serves_new_ones() -> None:
    script = Steps()
    with stopping(*PATIENT, script=script) as (service, upstream), forward(service, upstream.url) as old:
        old.read_until(EVENT)
        first = service.worker_pids()
        reload(service)
        eventually(lambda: len(service.worker_pids()) == 2, "no new worker beside the old one")
        # The old worker takes none any more after a second at most; each that comes until then is served as well.
        for _ in range(20):
            with call(service, "GET", "/healthz") as client:
                assert client.read_head().status in (200, 503)
        with forward(service, upstream.url) as new:
            new.read_until(EVENT)
            script.go.set()
            assert old.read_body() == new.read_body() == EVENT + b"data: last\n\n"
            assert old.is_complete
            assert new.is_complete
        eventually(lambda: not set(first) & set(service.worker_pids()), "the old worker stays")


def test_max_requests_replaces_a_worker_without_a_pause() -> None:
    script = Steps()
    args = ("--workers", "2", "--max-requests", "5", "--max-requests-jitter", "0", *PATIENT)
    with stopping(*args, script=script, SSE_THROTTLE="") as (service, upstream), forward(service, upstream.url) as old:
        old.read_until(EVENT)
        first = set(service.worker_pids())
        asked = 0
        while len(re.findall("Autorestarting", service.log())) < 2:
            asked += 1
            assert asked < 1000
            with call(service, "GET", "/sse", {"Accept": "text/event-stream"}) as client:
                assert client.read_head().status == 200
        script.go.set()
        assert old.read_body() == EVENT + b"data: last\n\n"
        assert old.is_complete
        eventually(lambda: not first & set(service.worker_pids()), "the old workers stay")


def test_a_browser_comes_back_by_itself_and_misses_nothing(chromium: Browser) -> None:
    with Service(*BRISK, SSE_THROTTLE="") as service, chromium.new_context() as context:
        page = context.new_page()
        page.goto(f"{service.url}/healthz")
        page.evaluate(
            """() => {
                window.ids = [];
                window.opened = 0;
                const source = new EventSource("/sse");
                source.onopen = () => window.opened++;
                source.onmessage = ({ lastEventId }) => window.ids.push(Number(lastEventId));
            }"""
        )
        page.wait_for_function("() => window.ids.length > 2")
        reload(service)
        page.wait_for_function("() => window.opened > 1")
        seen = page.evaluate("() => window.ids.length")
        page.wait_for_function(f"() => window.ids.length > {seen + 2}")
        ids = page.evaluate("() => window.ids")
        assert ids == list(range(1, len(ids) + 1))
        assert "end=draining" in service.log()


def test_several_workers_without_a_store_are_warned_of() -> None:
    with Service("--workers", "2") as service:
        assert len(service.worker_pids()) == 2
        assert "2 workers, each with counts of its own" in service.log()
    with Service() as service:
        assert len(service.worker_pids()) == 1
        assert "counts of its own" not in service.log()


@pytest.mark.parametrize("how", ["environment", "file"])
def test_a_shared_store_brings_one_worker_for_each_core(how: str, redis_server: RedisServer, tmp_path: Any) -> None:
    config = tmp_path / "sse.toml"
    config.write_text(f'SSE_STORAGE_URI = "{redis_server.url}"\n')
    settings: dict[str, Any] = {"SSE_STORAGE_URI": redis_server.url} if how == "environment" else {}
    env = {"SSE_CONFIG": str(config)} if how == "file" else {}
    with Service(env=env, **settings) as service:
        assert len(service.worker_pids()) == len(os.sched_getaffinity(0))
        assert "counts of its own" not in service.log()


def test_a_service_whose_store_is_away_is_alive_but_not_ready(redis_server: RedisServer) -> None:
    def status(service: Service, path: str) -> int:
        with call(service, "GET", path) as client:
            return client.read_head().status

    with Service(SSE_STORAGE_URI=redis_server.url) as service:
        assert (status(service, "/healthz"), status(service, "/readyz")) == (200, 200)
        redis_server.stop()
        assert (status(service, "/healthz"), status(service, "/readyz")) == (200, 503)
        redis_server.start()
        # It is not asked all the time.
        eventually(lambda: status(service, "/readyz") == 200, "it is still not ready")
        assert status(service, "/healthz") == 200


#: A site with a page that takes longer than the time in which streams go on.
LATE = """
import time
from flask import Flask
from sse import SSE, EventSourceResponse

app = Flask(__name__)
SSE(app)
app.add_url_rule("/healthz", view_func=lambda: "ok")

def ticks():
    while True:
        time.sleep(0.1)
        yield "tick"

@app.get("/slow")
def slow():
    print("slow begins", flush=True)
    time.sleep(6.5)
    return "slow"

@app.get("/own")
def own():
    return EventSourceResponse(ticks())
"""

PROBE = """
import socket, ssl, sys, threading
import gevent.monkey, gevent.socket, gevent.ssl, urllib3.connection, urllib3.util.ssl_
import redis.connection, requests.adapters
from flask import Flask
from sse import SSE

app = Flask(__name__)
SSE(app)
app.add_url_rule("/healthz", view_func=lambda: "ok")

@app.get("/probe")
def probe():
    return {
        "socket": socket.socket is gevent.socket.socket,
        "urllib3": urllib3.connection.socket.create_connection is gevent.socket.create_connection,
        "redis": redis.connection.socket.socket is gevent.socket.socket,
        "context": urllib3.util.ssl_.SSLContext is gevent.ssl.SSLContext,
        "lock": type(threading.Lock()).__module__.startswith("gevent"),
        "patched": gevent.monkey.is_module_patched("threading"),
    }
"""


def test_everything_is_patched_before_it_is_imported(tmp_path: Any) -> None:
    """With --preload too, where the app is imported in the master."""
    (tmp_path / "app.py").write_text(PROBE)
    for name in ("sse", "gunicorn.conf.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    for args in ([], ["--preload"]):
        with Service(*args, root=tmp_path) as service:
            with call(service, "GET", "/probe") as client:
                body = client.json()
            assert set(body.values()) == {True}, (args, body)
            assert "MonkeyPatchWarning" not in service.log()


def test_patching_comes_first_and_once() -> None:
    """What took `socket` earlier would keep the blocking one."""
    settings = ROOT / "sse/gunicorn/settings.py"
    source = settings.read_text()
    statements = [line for line in source.splitlines() if line and not line.startswith(("#", '"""'))]
    assert statements[:2] == ["from gevent import monkey", "monkey.patch_all()"]
    call_ = re.compile(r"^\s*(?:\w+ = )?(?:\w+\.)*patch_\w+\(", re.MULTILINE)
    patches = [path for path in [*ROOT.glob("*.py"), *ROOT.glob("sse/**/*.py")] if call_.search(path.read_text())]
    assert patches == [settings]
