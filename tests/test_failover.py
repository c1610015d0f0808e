"""Upstreams with several targets: which one gets a request, and when another one does; never two that may run it."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

import pytest
from flask import Flask, Response

from sse import SSE, Refused
from sse.protocol.target.entry import parse_upstream
from sse.protocol.target.order import order_targets

from .support.ending import EVENT, STREAM, error_event, eventually
from .support.program import free_port
from .support.service import RawClient, Service, call, forward
from .support.upstream import LAST_CHUNK, Connection, Script, SilentListener, Upstream, chunk, head, respond

#: Seconds.
RESPONSE_TIMEOUT = 1.5
IDS = ("a", "b", "c", "d")


def _orders() -> Iterator[str]:
    """Yield, for 2 targets, for 3 and so on, a value of the field that gives the order of their names."""
    for count in range(2, len(IDS) + 1):
        entry = {"url": "http://127.0.0.1/", "targets": [{"id": id} for id in IDS[:count]]}
        targets = parse_upstream("x", entry).targets
        yield next(
            text
            for text in map(str, itertools.count())
            if [target.id for target in order_targets(text, targets)] == list(IDS[:count])
        )


ORDERS = dict(enumerate(_orders(), 2))


def limited(retry_after: str = "", body: bytes = b'{"error": "slow down"}', status: int = 429) -> Script:
    """Return a script that responds as an upstream does whose limit is reached."""
    fields = ["Content-Type: application/json", *([f"Retry-After: {retry_after}"] if retry_after else [])]
    return respond(body, status=status, fields=fields, framing="length")


def silent(connection: Connection) -> None:
    """Take a request, and send nothing."""
    connection.read_request()
    connection.wait_closed()


def closing(connection: Connection) -> None:
    """Take a request, and close the connection."""
    connection.read_request()


def endless(connection: Connection) -> None:
    """Reach a limit, and send about it as fast as the peer takes it."""
    connection.read_request()
    connection.send(head(429, "Content-Type: application/json", "Transfer-Encoding: chunked"))
    connection.flood()


def dripping(connection: Connection) -> None:
    """Reach a limit, and never send all about it."""
    connection.read_request()
    connection.send(head(429, "Content-Type: application/json", "Content-Length: 1000") + b"{")
    connection.wait_closed()


STREAMING = respond(EVENT)


@dataclass
class Targets:
    """A service whose upstreams have several targets, and those: `a` is the first of each entry, `b` the next."""

    service: Service
    a: Upstream
    b: Upstream
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    #: The entry that the test uses; what is counted and benched is its own.
    name: str = ""

    def use(self, kind: str = "pair") -> str:
        """Use an entry that no other test does."""
        self.name = f"{kind}-{next(self._numbers)}"
        return self.name

    def call(
        self, method: str = "POST", path: str = "v1/chat", fields: Mapping[str, str] | None = None, *, count: int = 2
    ) -> RawClient:
        sent = {"X-Session": ORDERS[count], "X-Request-Id": self.name, **(fields or {})}
        return call(self.service, method, f"/upstream/{self.name}/{path}", sent, b"{}" if method == "POST" else None)

    def relay(self, method: str = "POST", **options: Any) -> tuple[int, bytes, str]:
        """Return the status and the body of a request's response, and its log line."""
        start = len(self.service.log())
        with self.call(method, **options) as client:
            status, body = client.read_head().status, client.read_body()
        return status, body, self.log(start)

    def log(self, start: int = 0) -> str:
        """Return the log line of a request, which comes when its lease is released."""
        return self.service.wait_log(f"stream end=.* request_id={self.name}$", start=start)[0]

    def counted(self) -> dict[tuple[str, str], int]:
        """Return how many attempts there were, by target and outcome."""
        with call(self.service, "GET", "/metrics") as client:
            lines = client.read_body().decode().splitlines()
        found = [line for line in lines if line.startswith("sse_attempts_total") and f'"{self.name}"' in line]
        return {(line.split('"')[3], line.split('"')[1]): int(float(line.split()[-1])) for line in found}

    @property
    def requests(self) -> tuple[int, int]:
        """How many requests each target got."""
        return len(self.a.requests), len(self.b.requests)


@pytest.fixture(scope="module")
def shared() -> Iterator[Targets]:
    with Upstream() as a, Upstream() as b, SilentListener() as unanswered:
        first = {
            "pair": f"{a.url}/v1",
            "closed": f"http://127.0.0.1:{free_port()}/",
            "unanswered": unanswered.url,
            "tls": a.url.replace("http", "https"),
        }
        keys = [{"X-Key": f"key-of-{id}"} for id in IDS]
        table: dict[str, Any] = {}
        for number in range(60):
            for kind, url in first.items():
                targets = [
                    {"id": "a", "url": url, "headers": keys[0]},
                    {"id": "b", "url": f"{b.url}/deep/", "headers": keys[1]},
                ]
                table[f"{kind}-{number}"] = {"url": f"{a.url}/v1", "targets": targets}
            table[f"many-{number}"] = {
                "url": a.url,
                "targets": [{"id": id, "url": f"{a.url}/{id}/"} for id in IDS],
            }
        for entry in table.values():
            entry.update(headers={"X-Team": "red"}, retry=[429, 503], affinity="X-Session")
        with Service(
            SSE_UPSTREAMS=table,
            SSE_OPEN=True,
            SSE_METRICS=True,
            SSE_CONNECT_TIMEOUT=0.5,
            SSE_RESPONSE_TIMEOUT=RESPONSE_TIMEOUT,
            SSE_THROTTLE="10000 per hour",
            # A lease that is not released refuses the next request.
            SSE_MAX_STREAMS_PER_CLIENT=1,
        ) as service:
            yield Targets(service, a, b)


@pytest.fixture
def targets(shared: Targets) -> Iterator[Targets]:
    shared.use()
    shared.a.script = shared.b.script = STREAMING
    yield shared
    shared.a.settle()
    shared.b.settle()


def test_the_first_target_gets_the_request_with_its_key(targets: Targets) -> None:
    status, body, line = targets.relay(path="v1/%7Echat?q=%2F")
    assert (status, body) == (200, EVENT)
    assert " target=a attempts=1 " in line
    request = targets.a.wait_request()
    assert (request.target, request.body) == ("/v1/v1/%7Echat?q=%2F", b"{}")
    assert (request.values("X-Key"), request.field("X-Team")) == (["key-of-a"], "red")
    assert targets.requests == (1, 0)
    assert targets.counted() == {("a", "200"): 1}


def test_a_limited_target_gives_way_to_the_next(targets: Targets) -> None:
    targets.a.script = limited()
    with targets.call(path="%7Echat?q=%2F", fields={"X-Key": "of-the-client"}) as client:
        answered = client.read_head()
        assert (answered.status, answered.field("Retry-After"), client.read_body()) == (200, None, EVENT)
    line = targets.log()
    assert " status=200 " in line and " target=b attempts=2 " in line
    request = targets.b.wait_request()
    # Below the target's own URL, with its own key.
    assert (request.target, request.body) == ("/deep/%7Echat?q=%2F", b"{}")
    assert (request.values("X-Key"), request.field("X-Team")) == (["key-of-b"], "red")
    assert request.values("Host") == [f"127.0.0.1:{targets.b.port}"]
    assert targets.requests == (1, 1)
    assert targets.counted() == {("a", "429"): 1, ("b", "200"): 1}
    assert "key-of" not in targets.service.log()


def test_a_request_is_counted_once_however_many_attempts(targets: Targets) -> None:
    targets.a.script = limited()
    left = []
    for _ in range(2):
        targets.use()
        with targets.call() as client:
            left.append(int(client.read_head().field("X-RateLimit-Remaining") or 0))
            client.read_body()
        targets.log()
    assert targets.requests == (2, 2)
    assert left[0] - left[1] == 1


@pytest.mark.parametrize(
    ("kind", "code"),
    [("closed", "upstream_unreachable"), ("unanswered", "upstream_timeout"), ("tls", "upstream_unreachable")],
)
def test_without_a_connection_the_next_target_gets_the_request(targets: Targets, kind: str, code: str) -> None:
    targets.use(kind)
    targets.a.script = lambda connection: connection.send(b"no TLS")
    status, body, line = targets.relay()
    assert (status, body) == (200, EVENT)
    assert " target=b attempts=2 " in line
    assert targets.requests == (0, 1)
    assert targets.counted() == {("a", code): 1, ("b", "200"): 1}


@pytest.mark.parametrize(
    ("status", "code", "script"),
    [
        pytest.param(504, "upstream_timeout", silent, id="silent"),
        pytest.param(502, "upstream_bad_response", closing, id="closed"),
        pytest.param(502, "upstream_bad_response", respond(b"", status=302, framing="length"), id="redirect"),
        pytest.param(500, "500", respond(b"{}", status=500), id="another-status"),
    ],
)
def test_a_post_that_may_have_run_is_never_sent_twice(targets: Targets, status: int, code: str, script: Script) -> None:
    targets.a.script = script
    found, _, line = targets.relay()
    assert found == status
    assert " target=a attempts=1 " in line
    assert targets.requests == (1, 0)
    assert targets.counted() == {("a", code): 1}


def test_a_post_whose_stream_breaks_off_is_never_sent_twice(targets: Targets) -> None:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(STREAM + chunk(EVENT))
        connection.reset()

    targets.a.script = script
    status, body, line = targets.relay()
    assert (status, body) == (200, EVENT + error_event("upstream_truncated"))
    assert "end=upstream_truncated " in line and " target=a attempts=1 " in line
    assert targets.requests == (1, 0)


def test_a_post_on_a_kept_connection_is_never_sent_twice(targets: Targets) -> None:
    """The upstream closes the connection when it has read the request, so that it may have run."""

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(STREAM + chunk(EVENT) + LAST_CHUNK)
        connection.read_request()
        connection.reset()

    targets.a.script = script
    assert targets.relay()[0] == 200
    assert targets.relay()[0] == 502
    assert targets.requests == (2, 0)
    assert len(targets.a.connections) == 1


@pytest.mark.parametrize("script", [silent, closing])
def test_what_may_be_repeated_is_if_no_head_comes(targets: Targets, script: Script) -> None:
    """One time-out is for both, so the first target has a share of it only."""
    targets.a.script = script
    status, body, line = targets.relay("GET")
    assert (status, body) == (200, EVENT)
    assert " target=b attempts=2 " in line
    assert targets.requests == (1, 1)


def test_at_most_three_targets_share_one_time_out(targets: Targets) -> None:
    targets.use("many")
    targets.a.script = silent
    began = time.monotonic()
    status, _, line = targets.relay("GET", count=4)
    took = time.monotonic() - began
    assert (status, [request.target for request in targets.a.requests]) == (
        504,
        ["/a/v1/chat", "/b/v1/chat", "/c/v1/chat"],
    )
    assert " target=c attempts=3 " in line
    # Each of the three may be noticed a look at the clocks too late; a time-out for each would make it three times.
    assert RESPONSE_TIMEOUT * 0.9 < took < RESPONSE_TIMEOUT * 2.5


def test_the_last_response_is_the_clients(targets: Targets) -> None:
    targets.a.script = limited(body=b"of a")
    targets.b.script = limited(body=b"of b", status=503)
    with targets.call() as client:
        answered = client.read_head()
        assert (answered.status, answered.field("X-Upstream-Status"), client.read_body()) == (503, "503", b"of b")
    assert " target=b attempts=2 " in targets.log()


@pytest.mark.parametrize("retry_after", ["60", "date"])
def test_a_target_that_names_a_time_is_left_alone(targets: Targets, retry_after: str) -> None:
    targets.a.script = limited(formatdate(time.time() + 60, usegmt=True) if retry_after == "date" else retry_after)
    assert " target=b attempts=2 " in targets.relay()[2]
    assert " target=b attempts=1 " in targets.relay()[2]
    assert targets.requests == (1, 2)


@pytest.mark.parametrize("script", [limited(), limited("0"), limited("soon"), limited("60", status=503)])
def test_a_target_that_names_no_time_is_tried_again(targets: Targets, script: Script) -> None:
    targets.a.script = script
    for _ in range(2):
        assert " target=b attempts=2 " in targets.relay()[2]
    assert targets.requests == (2, 2)


def test_the_soonest_of_benched_targets_is_tried_once(targets: Targets) -> None:
    targets.a.script = limited("60", b"of a")
    targets.b.script = limited("50", b"of b")
    assert targets.relay()[:2] == (429, b"of b")
    status, body, line = targets.relay()
    assert (status, body) == (429, b"of b")
    assert " target=b attempts=1 " in line
    assert targets.requests == (1, 2)


def test_a_bench_ends_when_its_time_has_passed(targets: Targets) -> None:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(429, "Retry-After: 1", "Content-Length: 0"))
        STREAMING(connection)

    targets.a.script = script
    began = time.monotonic()
    assert " target=b attempts=2 " in targets.relay()[2]
    eventually(lambda: " target=a attempts=1 " in targets.relay()[2], "the first target is tried again")
    assert time.monotonic() - began > 0.9


@pytest.mark.parametrize(
    ("is_kept", "script"),
    [
        pytest.param(True, limited(), id="short"),
        pytest.param(False, limited(body=b"x" * 1024 * 1024), id="long"),
        pytest.param(False, endless, id="endless"),
        pytest.param(False, dripping, id="dripping"),
    ],
)
def test_a_response_that_is_not_relayed_holds_no_connection(targets: Targets, is_kept: bool, script: Script) -> None:
    targets.a.script = script
    assert targets.relay()[0] == 200
    connection = targets.a.wait_connection()
    if not is_kept:
        connection.wait_closed()
        return
    assert targets.relay()[0] == 200
    assert (len(targets.a.connections), connection.closed_at) == (1, None)


def test_no_target_is_tried_for_a_client_that_leaves(targets: Targets) -> None:
    targets.a.script = silent
    with targets.call("GET"):
        targets.a.wait_request()
    line = targets.log()
    assert "end=client_gone status=499 " in line and " target=a attempts=1 " in line
    targets.a.wait_connection().wait_closed()
    assert targets.requests == (1, 0)


def test_no_target_is_tried_for_a_client_that_left_meanwhile(targets: Targets) -> None:
    """The worker finds both at once: the response that allows another attempt, and that the client has left."""

    called = threading.Event()

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.wait_for(called)
        [worker] = targets.service.worker_pids()
        os.kill(worker, signal.SIGSTOP)
        connection.send(head(429, "Content-Length: 0"))
        client.close()
        os.kill(worker, signal.SIGCONT)

    targets.a.script = script
    client = targets.call()
    called.set()
    line = targets.log()
    assert "end=client_gone status=499 " in line and " target=a attempts=1 " in line
    assert targets.requests == (1, 0)


def test_what_is_recorded_is_the_target_that_responded(targets: Targets) -> None:
    targets.a.script = limited()
    with targets.call(fields={"Stream-TTL": "60"}) as client:
        place = client.read_head().field("Location") or ""
        assert client.read_body() == EVENT
    with call(targets.service, "GET", place) as client:
        assert (client.read_head().status, client.read_body()) == (200, EVENT)
    line = targets.service.wait_log(f"^.* recording end=complete .* request_id={targets.name}$")[0]
    assert " target=b attempts=2 " in line
    assert targets.requests == (1, 1)


def test_a_client_that_can_come_back_may_leave_between_attempts(targets: Targets) -> None:
    called = threading.Event()

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.wait_for(called)
        client.close()
        connection.send(head(429, "Content-Length: 0"))

    targets.a.script = script
    client = targets.call(fields={"Idempotency-Key": f"{targets.name}-".ljust(16, "k"), "Stream-Leave": "60"})
    called.set()
    targets.service.wait_log(f"recording end=complete .* target=b attempts=2 .*request_id={targets.name}$")
    assert targets.requests == (1, 1)


def test_a_forward_request_names_the_upstream(targets: Targets) -> None:
    targets.a.script = limited()
    # The entries cover the same URLs; the first one gets them all.
    with forward(targets.service, f"{targets.a.url}/v1/chat?x=1", header={"X-Session": ORDERS[2]}, body="{}") as client:
        assert (client.read_head().status, client.read_body()) == (200, EVENT)
    assert (targets.requests, targets.b.requests[0].target) == ((1, 1), "/deep/chat?x=1")


def test_a_site_relays_to_targets(upstream: Callable[..., Upstream], caplog: pytest.LogCaptureFixture) -> None:
    """Without gevent, and in a view that relays a second time after a refusal."""
    caplog.set_level("INFO", "sse")
    limit, there = upstream(limited()), upstream(STREAMING)
    pair = [{"id": "a", "url": limit.url}, {"id": "b", "url": there.url}]
    away = {"url": f"http://127.0.0.1:{free_port()}/", "targets": [{"id": "only"}]}
    app = Flask(__name__)
    app.config["SSE_UPSTREAMS"] = {
        "away": away,
        "pair": {"url": limit.url, "targets": pair, "retry": [429], "affinity": "X-Session"},
        "plain": there.url,
    }
    sse = SSE(app)

    @app.get("/<path:names>")
    def view(names: str) -> Response:
        for name in names.split("/"):
            try:
                return sse.relay(name, "x", json={}, headers={"X-Session": ORDERS[2]})
            except Refused:
                continue
        raise AssertionError

    for path, said in {"/pair": " target=b attempts=2 ", "/away/plain": " upstream=plain "}.items():
        with app.test_client().get(path) as response:
            assert response.get_data() == EVENT
        assert said in caplog.messages[-1]
    assert "target=" not in caplog.messages[-1]
    assert (len(limit.requests), len(there.requests)) == (1, 2)


def test_a_response_that_cannot_be_counted_is_closed(
    upstream: Callable[..., Upstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise LookupError("a defect")

    monkeypatch.setattr("sse.web.metrics.Metrics.count_attempt", fail)
    there = upstream(endless)
    app = Flask(__name__)
    app.config["SSE_UPSTREAMS"] = {"there": {"url": there.url, "targets": [{"id": "a"}]}}
    app.config["SSE_METRICS"] = True
    SSE(app)
    assert app.test_client().post("/upstream/there/").status_code == 500
    there.wait_connection().wait_closed()
    assert len(app.extensions["sse"].leases) == 0


def test_a_target_that_leads_inside_is_never_connected_to(
    upstream: Callable[..., Upstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A public name of a target is judged as that of any upstream; the next one gets the request."""
    inside, there = upstream(), upstream(STREAMING)
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", inside.port))]
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **options: found)
    pair = [{"id": "a", "url": f"http://api.example.com:{inside.port}/"}, {"id": "b", "url": there.url}]
    app = Flask(__name__)
    app.config["SSE_UPSTREAMS"] = {"pair": {"url": there.url, "targets": pair, "affinity": "X-Session"}}
    app.config["SSE_METRICS"] = True
    SSE(app)
    with app.test_client().post("/upstream/pair/", headers={"X-Session": ORDERS[2]}) as response:
        assert response.get_data() == EVENT
    counted = app.extensions["sse"].metrics.expose().decode()
    assert 'sse_attempts_total{outcome="target_not_allowed",target="a",upstream="pair"} 1.0' in counted
    assert not inside.connections


@pytest.mark.parametrize(
    ("affinity", "fields", "is_one"),
    [
        pytest.param("client", [{"X-Session": str(number)} for number in range(40)], True, id="client"),
        pytest.param("none", [{}] * 40, False, id="none"),
        pytest.param("X-Session", [{"X-Session": str(number)} for number in range(40)], False, id="field"),
        pytest.param("X-Session", [{}] * 40, True, id="field-that-is-missing"),
    ],
)
def test_requests_of_one_value_go_to_one_target(
    upstream: Callable[..., Upstream], affinity: str, fields: list[dict[str, str]], is_one: bool
) -> None:
    there = upstream(respond(EVENT, framing="close"))
    pair = [{"id": id, "url": f"{there.url}/{id}"} for id in "ab"]
    app = Flask(__name__)
    app.config["SSE_UPSTREAMS"] = {"pair": {"url": there.url, "targets": pair, "affinity": affinity}}
    app.config["SSE_THROTTLE"] = ""
    SSE(app)
    for sent in fields:
        with app.test_client().post("/upstream/pair/", headers=sent) as response:
            assert response.get_data() == EVENT
    used = {request.target for request in there.requests}
    assert len(used) == (1 if is_one else 2)
