"""What `GET /metrics` says, of one process and of many, also when they are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from sse import SSE, EventSourceResponse
from sse.errors import REFUSALS
from sse.relay.stream.end import EndReason

from .support.ending import EVENT, STREAM, eventually
from .support.program import RedisServer
from .support.service import ROOT, RawClient, Service, call, forward
from .support.upstream import EVENT_STREAM, LAST_CHUNK, Connection, Upstream, chunk, head, respond

Labels = tuple[tuple[str, str], ...]


class Scrape:
    """What one look at `/metrics` shows."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples: dict[tuple[str, Labels], float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = sample.name, tuple(sorted(sample.labels.items()))
                assert key not in self.samples, f"{key} is there twice"
                self.samples[key] = sample.value

    def sum(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of a name that have those labels, and others perhaps."""
        return sum(
            value
            for (known, given), value in self.samples.items()
            if known == name and labels.items() <= dict(given).items()
        )

    def labels(self, label: str) -> set[str]:
        """Return the values that a label has anywhere."""
        return {value for _, given in self.samples for name, value in given if name == label}


def scrape(service: Service) -> Scrape:
    with call(service, "GET", "/metrics") as client:
        assert client.read_head().status == 200
        return Scrape(client.read_body().decode())


@contextmanager
def measured(*args: str, script: Callable[[Connection], object], **settings: Any) -> Iterator[tuple[Service, Upstream]]:
    """A service that counts, and an upstream in its table."""
    options: dict[str, Any] = {"SSE_METRICS": True, "SSE_THROTTLE": "", **settings}
    with Upstream(script) as upstream, Service(*args, SSE_UPSTREAMS={"test": upstream.url}, **options) as service:
        yield service, upstream


class Held:
    """A script that sends an event, and the rest when it may."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __call__(self, connection: Connection) -> None:
        connection.read_request()
        connection.send(STREAM + chunk(EVENT))
        connection.wait_for(self.go)
        connection.send(chunk(EVENT) + LAST_CHUNK)


def test_every_ending_is_counted_once_under_its_reason() -> None:
    def script(connection: Connection) -> None:
        is_cut = connection.read_request().target.startswith("/cut")
        connection.send(STREAM + chunk(b"data: a\n\n"))
        if not is_cut:
            connection.send(chunk(b"data: b\n\n") + LAST_CHUNK)

    with measured(script=script) as (service, upstream):
        for path in ("/cut", "/whole"):
            with forward(service, upstream.url + path) as client:
                client.read_body()
        service.wait_log("end=complete .*events=2 bytes=18")
        service.wait_log("end=upstream_truncated .*events=1 bytes=9")
        seen = scrape(service)
    for reason in EndReason:
        is_one = reason in (EndReason.COMPLETE, EndReason.UPSTREAM_TRUNCATED)
        assert seen.sum("sse_streams_ended_total", upstream="test", reason=reason) == is_one, reason
    assert seen.sum("sse_bytes_total", upstream="test") == 27
    assert seen.sum("sse_events_total", upstream="test") == 3
    assert seen.sum("sse_first_byte_seconds_count", upstream="test") == 2
    assert seen.sum("sse_streams_open") == 0


def test_requests_are_counted_by_what_was_answered() -> None:
    def script(connection: Connection) -> None:
        if connection.read_request().target.startswith("/missing"):
            connection.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno")
        else:
            connection.send(b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n")

    passcodes: dict[str, Any] = {
        "SSE_PASSCODES": {"ann": "right"},
        "SSE_THROTTLE": "9 per hour",
        "SSE_MAX_STREAMS_PER_CLIENT": 1,
    }
    with measured(script=script, **passcodes) as (service, upstream), ExitStack() as stack:

        def ask(target: str, **fields: str) -> int:
            given: dict[str, Any] = {"passcode": "right", **fields}
            client = stack.enter_context(forward(service, target, **given))
            return client.read_head().status

        asked = [
            ask(upstream.url + "/missing"),
            ask(upstream.url + "/redirect"),
            ask("http://10.0.0.1/"),
            ask(upstream.url, method="brew"),
            ask(upstream.url + "/", header="["),
            ask(upstream.url + "/", passcode="wrong"),
        ]
        assert asked == [404, 502, 403, 400, 400, 401]
        service.wait_log("end=complete status=404")
        held = upstream.script = Held()
        assert ask(upstream.url) == 200
        assert ask(upstream.url) == 429
        assert ask("http://10.0.0.1/") == 403
        assert ask("http://10.0.0.1/") == 403
        assert ask(upstream.url) == 429
        with call(service, "BREW", "/nowhere") as client:
            assert client.read_head().status == 404
        seen = scrape(service)
        assert seen.sum("sse_streams_open", upstream="test") == 1
        held.go.set()
    counted = {labels: value for (name, labels), value in seen.samples.items() if name == "sse_requests_total"}
    assert {(dict(labels)["upstream"], dict(labels)["status"], dict(labels)["code"]) for labels in counted} == {
        ("test", "404", "relayed"),
        ("test", "200", "relayed"),
        ("test", "502", "upstream_bad_response"),
        ("test", "400", "invalid_request"),
        ("test", "429", "too_many_streams"),
        ("-", "403", "target_not_allowed"),
        ("-", "400", "invalid_request"),
        ("-", "401", "unauthenticated"),
        ("-", "429", "throttled"),
        ("-", "404", "not_found"),
    }
    assert seen.sum("sse_requests_total", code="target_not_allowed") == 3
    assert sum(counted.values()) == len(asked) + 6


def test_nothing_that_a_client_sends_becomes_a_label() -> None:
    """Each new value of a label is a new time series, kept for ever by what reads them."""

    def script(connection: Connection) -> None:
        while True:
            status = connection.read_request().target.rpartition("/")[2]
            connection.send(f"HTTP/1.1 {status} X\r\n{EVENT_STREAM}\r\nContent-Length: 0\r\n\r\n".encode())

    settings: dict[str, Any] = {
        "SSE_PASSCODES": {"canary-client": "canary-pass"},
        "SSE_METRICS": True,
        "SSE_THROTTLE": "",
    }
    fields: dict[str, Any] = {
        "Authorization": "Bearer canary-pass",
        "X-Request-Id": "canary-id",
        "X-Forwarded-For": "canary",
    }
    with Upstream(script) as upstream, Service(SSE_UPSTREAMS={"test": upstream.url}, **settings) as service:
        for method in ("GET", "POST", "CANARY", "canary"):
            for path in ("/upstream/test/canary/250", "/upstream/canary/x", '/upstream/canary"%0A1', "/canary?canary"):
                with call(service, method, path, fields) as client:
                    client.read_body()
        for status in (200, 299, 218, 499, 599, 777, 999):
            with call(service, "GET", f"/upstream/test/canary/{status}", fields) as client:
                client.read_body()
        for target in (upstream.url + "/canary/200", "http://canary.test/", "canary", "http://canary@[::1]/", "\n"):
            with forward(service, target, method="post", passcode="canary-pass") as client:
                client.read_body()
        seen = scrape(service)
    assert "canary" not in seen.text.lower()
    assert seen.labels("upstream") == {"test", "-"}
    assert seen.labels("code") <= {"relayed", *(refusal.code for refusal in REFUSALS)}
    assert seen.labels("status") <= {"200", "499", "2xx", "5xx", "502", "400", "403", "404", "405"}
    # 777 and 999 are no statuses that can be relayed.
    assert {"2xx", "5xx", "502"} <= seen.labels("status")


def test_the_longest_gap_is_between_two_pieces() -> None:
    """Neither the wait for the first piece is one, nor is there any in a response of one piece."""
    opened, paused = threading.Event(), threading.Event()
    stream = head(200, EVENT_STREAM, "Transfer-Encoding: chunked", "Connection: close")

    def script(connection: Connection) -> None:
        if connection.read_request().target == "/one":
            connection.send(stream)
            threading.Event().wait(0.3)
            connection.send(chunk(EVENT) + LAST_CHUNK)
        else:
            connection.send(stream + chunk(EVENT))
            connection.wait_for(opened)
            paused.wait(0.3)
            connection.send(chunk(EVENT) + LAST_CHUNK)

    with measured(script=script) as (service, upstream):
        with forward(service, upstream.url + "/one") as client:
            assert client.read_body() == EVENT
        service.wait_log("stream end=complete .* longest_gap=- ")
        assert scrape(service).sum("sse_longest_gap_seconds_count") == 0
        with forward(service, upstream.url + "/two") as client:
            client.read_until(EVENT)
            opened.set()
            assert client.read_body() == 2 * EVENT
        service.wait_log(r"stream end=complete .* longest_gap=\d")
        seen = scrape(service)
    assert seen.sum("sse_longest_gap_seconds_count", upstream="test") == 1
    assert 0.25 < seen.sum("sse_longest_gap_seconds_sum", upstream="test") < 10


def test_an_unavailable_store_is_counted_and_logged_once(redis_server: RedisServer) -> None:
    settings: dict[str, Any] = {"SSE_STORAGE_URI": redis_server.url, "SSE_THROTTLE": "99 per hour"}
    with measured("--workers", "1", script=respond(EVENT), **settings) as (service, upstream):

        def ask() -> None:
            with forward(service, upstream.url) as client:
                assert client.read_body() == EVENT

        ask()
        seen = scrape(service)
        assert seen.labels("part") == {"throttle", "leases"}
        assert seen.sum("sse_store_errors_total") == 0
        redis_server.stop()
        for _ in range(3):
            ask()
        seen = scrape(service)
        assert seen.sum("sse_store_errors_total", part="throttle") == 3
        # One for each that is taken, and for each that is released.
        assert seen.sum("sse_store_errors_total", part="leases") >= 3
        service.wait_log("Redis unavailable")
        assert service.log().count("Redis unavailable") == 1


# Several processes


def open_streams(service: Service, upstream: Upstream, count: int, stack: ExitStack) -> list[RawClient]:
    clients = [stack.enter_context(forward(service, upstream.url)) for _ in range(count)]
    for client in clients:
        client.read_until(EVENT)
    return clients


def test_metrics_cover_all_workers_but_killed_ones() -> None:
    script = Held()
    with measured("--workers", "2", script=script) as (service, upstream), ExitStack() as stack:
        clients = open_streams(service, upstream, 8, stack)
        assert [scrape(service).sum("sse_streams_open", upstream="test") for _ in range(10)] == [8] * 10
        assert scrape(service).sum("sse_requests_total", code="relayed") == 8
        # The kernel may have given them all to one worker.
        for victim in service.worker_pids():
            start = len(service.log())
            os.kill(victim, signal.SIGKILL)
            service.wait_log("Booting worker", start=start)
            left = [client for client in clients if client.sock.fileno() >= 0 and not is_cut(client)]
            eventually(lambda: scrape(service).sum("sse_streams_open") == len(left), "killed streams are still open")  # noqa: B023  # called before the loop goes on
            if len(left) < 8:
                break
        assert len(left) < 8
        assert scrape(service).sum("sse_requests_total", code="relayed") == 8
        script.go.set()
        for client in left:
            assert client.read_body() == 2 * EVENT
        eventually(lambda: scrape(service).sum("sse_streams_open") == 0, "streams that ended are still open")
        assert scrape(service).sum("sse_streams_ended_total", reason="complete") == len(left)


def is_cut(client: RawClient) -> bool:
    """Return whether the connection has been closed from the other side; the kernel does that as the worker dies."""
    client.sock.setblocking(False)
    try:
        return not client.sock.recv(1, 2)  # MSG_PEEK
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
    finally:
        client.sock.settimeout(client.timeout)


def test_a_reload_loses_no_count_and_no_open_stream() -> None:
    script = Held()
    args = ("--graceful-timeout", "10")
    with measured(*args, script=script) as (service, upstream), ExitStack() as stack:
        (old,) = open_streams(service, upstream, 1, stack)
        first = service.worker_pids()
        start = len(service.log())
        os.kill(service.pid, signal.SIGHUP)
        service.wait_log("Booting worker", start=start)
        eventually(lambda: len(service.worker_pids()) == 2, "no new worker beside the old one")
        open_streams(service, upstream, 1, stack)
        assert scrape(service).sum("sse_streams_open") == 2
        script.go.set()
        old.read_body()
        eventually(lambda: service.worker_pids() != [] and not set(first) & set(service.worker_pids()), "it stays")
        seen = scrape(service)
        assert seen.sum("sse_requests_total", code="relayed") == 2
        assert seen.sum("sse_streams_ended_total", reason="complete") == 2
        assert seen.sum("sse_streams_open") == 0


def directories(path: Path) -> list[Path]:
    return sorted(path.glob("sse-metrics-*"))


def test_what_a_killed_run_left_behind_is_not_counted(tmp_path: Path) -> None:
    env = {"TMPDIR": str(tmp_path)}
    with measured(script=Held(), env=env) as (killed, upstream), ExitStack() as stack:
        open_streams(killed, upstream, 2, stack)
        assert scrape(killed).sum("sse_streams_open") == 2
        for pid in [killed.pid, *killed.worker_pids()]:
            os.kill(pid, signal.SIGKILL)
        killed.wait_exit()
        (left,) = directories(tmp_path)
        assert list(left.iterdir())
        with Service(SSE_UPSTREAMS={"test": upstream.url}, SSE_METRICS=True, env=env) as service:
            assert len(directories(tmp_path)) == 2
            seen = scrape(service)
            assert (seen.sum("sse_streams_open"), seen.sum("sse_requests_total")) == (0, 0)
        assert directories(tmp_path) == [left]


def test_a_directory_of_the_operators_is_used_and_left(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    env = {"TMPDIR": str(tmp_path), "PROMETHEUS_MULTIPROC_DIR": str(own)}
    with Service(SSE_METRICS=True, env=env) as service:
        scrape(service)
        assert list(own.iterdir())
        assert directories(tmp_path) == []
    assert own.exists()


def test_where_metrics_are_off_nothing_is_made_for_them(tmp_path: Path) -> None:
    with (
        Service("--workers", "2", env={"TMPDIR": str(tmp_path)}) as service,
        call(service, "GET", "/metrics") as client,
    ):
        assert client.read_head().status == 404
        assert directories(tmp_path) == []
    code = "import sys, app; assert 'prometheus_client' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=20)


# In a site


def site(upstream_url: str = "http://127.0.0.1:1/") -> FlaskClient:
    """Return a client of a site with our endpoints below `/ai`, and a stream of its own at `/own`."""
    app = Flask(__name__)
    app.config.update(SSE_METRICS=True, SSE_UPSTREAMS={"test": upstream_url})
    SSE(app, url_prefix="/ai")
    app.add_url_rule("/own", "own", lambda: EventSourceResponse(iter(["a", "b"])))
    return app.test_client()


def look(client: FlaskClient) -> Scrape:
    return Scrape(client.get("/ai/metrics").text)


def test_two_apps_in_one_process_have_counts_of_their_own(upstream: Callable[..., Upstream]) -> None:
    server = upstream(respond(EVENT))
    one, other = site(server.url), site(server.url)
    with one.get("/ai/upstream/test/") as relayed:
        assert relayed.data == EVENT
    assert look(one).sum("sse_requests_total", upstream="test", code="relayed") == 1
    assert look(one).sum("sse_events_total") == 1
    assert look(other).sum("sse_requests_total") == 0


def test_own_streams_are_counted_by_their_endpoint() -> None:
    client = site()
    with client.get("/own") as streaming:
        assert look(client).sum("sse_streams_open") == 0
        pieces = streaming.iter_encoded()
        while next(pieces) != b"data: a\n\n":
            pass
        assert look(client).sum("sse_streams_open", upstream="own:own") == 1
        assert list(pieces) == [b"data: b\n\n"]
    client.head("/own").close()
    seen = look(client)
    assert seen.sum("sse_streams_open") == 0
    assert seen.sum("sse_streams_ended_total", upstream="own:own", reason="complete") == 2
    assert seen.sum("sse_events_total", upstream="own:own") == 2


def test_apps_of_one_process_keep_separate_shared_counts(tmp_path: Path) -> None:
    """All that a process counts there lies in one file by name and labels: the last app that wrote had its own say."""
    code = """
from tests.test_metrics import look, site
apps = [site(), site()]
for app in (*apps, *apps, apps[0]):
    app.get("/own").close()
    app.get("/ai/upstream/nowhere/x")
for app in apps:
    print(int(look(app).sum("sse_streams_ended_total")), int(look(app).sum("sse_requests_total", code="not_found")))
"""
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=30)
    assert done.stdout == "5 5\n5 5\n", done.stderr


def test_workers_that_end_leave_no_files_and_all_their_counts(tmp_path: Path) -> None:
    """Each left two files for ever, which every scrape read."""
    with measured(script=respond(EVENT), env={"TMPDIR": str(tmp_path)}) as (service, upstream):

        def ask() -> None:
            with forward(service, upstream.url) as client:
                assert client.read_body() == EVENT

        ask()
        eventually(lambda: scrape(service).sum("sse_first_byte_seconds_count") == 1, "nothing is counted")
        [place] = directories(tmp_path)
        before = len(list(place.iterdir()))
        for number in range(3):
            [old] = service.worker_pids()
            os.kill(old, signal.SIGKILL)
            eventually(lambda: service.worker_pids() not in ([], [old]), "no new worker")  # noqa: B023  # called before the loop goes on
            ask()
            seen = scrape(service)
            assert seen.sum("sse_requests_total", code="relayed") == number + 2
            assert seen.sum("sse_first_byte_seconds_count") == number + 2
        assert len(list(place.iterdir())) == before
