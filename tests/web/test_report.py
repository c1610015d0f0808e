"""What is said of a request: one line, with the id that everybody else has too."""

from __future__ import annotations

import io
import json
import logging
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from flask import Flask

from app import create_app
from sse import SSE
from sse.web.log import JSONFormatter, TextFormatter

from ..support.ending import silent
from ..support.relay import Relay
from ..support.service import RawClient, Service, call, forward
from ..support.upstream import Upstream, respond

EVENT = b"data: a\n\n"


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [
        pytest.param("my-id.1", True, id="valid"),
        pytest.param("a b", False, id="space"),
        pytest.param('a"b', False, id="quote"),
        pytest.param("a=b", False, id="equals-sign"),
        pytest.param("x" * 129, False, id="long"),
        pytest.param("", False, id="empty"),
        pytest.param("\u00e9", False, id="not-ascii"),
    ],
)
def test_a_valid_request_id_is_kept_and_goes_to_the_upstream(relay: Any, given: str, is_kept: bool) -> None:
    client = relay.forward(respond(EVENT), http_fields={"X-Request-Id": given})
    answered = client.read_head().field("X-Request-Id")
    client.read_body()
    assert (answered == given) == is_kept
    assert relay.upstream.requests[-1].field("X-Request-Id") == answered
    relay.service.wait_log(f"stream end=complete .*request_id={re.escape(answered)}$")


def test_the_upstreams_own_id_stands_beside_ours(relay: Relay) -> None:
    """There were two fields of one name, and clients took the wrong one or both."""
    script = respond(EVENT, fields=["Content-Type: text/event-stream", "X-Request-ID: theirs"])
    head = relay.forward(script, http_fields={"X-Request-Id": "ours-1"}).read_head()
    assert (head.field("X-Request-Id"), head.field("X-Upstream-Request-Id")) == ("ours-1", "theirs")


# One line each


def lines(log: str, id_: str) -> list[str]:
    """Return the lines of the `sse` log that are of a request."""
    return [line for line in log.splitlines() if re.search(rf"request_id={id_}\b", line)]


Send = Callable[[Relay, dict[str, str]], RawClient]


def refused(method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> Send:
    def send(relay: Relay, fields: dict[str, str]) -> RawClient:
        return call(relay.service, method, path, {"Content-Type": kind, **fields}, body)

    return send


@pytest.mark.parametrize(
    ("send", "status", "line"),
    [
        pytest.param(
            lambda relay, fields: relay.forward(respond(EVENT), http_fields=fields),
            200,
            "stream end=complete status=200 upstream=test client=- events=1 bytes=9 ",
            id="complete",
        ),
        pytest.param(
            lambda relay, fields: relay.call(respond(EVENT), "HEAD", fields=fields),
            200,
            "stream end=complete status=200 upstream=test client=- events=0 bytes=0 first_byte=- longest_gap=- ",
            id="head",
        ),
        pytest.param(
            lambda relay, fields: relay.call(respond(b"no", status=500), "GET", fields=fields),
            500,
            "stream end=complete status=500 upstream=test client=- events=0 bytes=2 ",
            id="upstream-error",
        ),
        pytest.param(
            lambda relay, fields: relay.forward(lambda connection: connection.read_request(), http_fields=fields),
            502,
            "stream end=upstream_failed status=502 upstream=test .* code=upstream_bad_response ",
            id="no-answer",
        ),
        pytest.param(
            refused("POST", "/forward-sse", b'{"targetUrl": "http://10.0.0.1/"}'),
            403,
            'refused status=403 upstream=- .* cause="no upstream covers http://10.0.0.1" code=target_not_allowed ',
            id="target",
        ),
        pytest.param(refused("POST", "/forward-sse", b"["), 400, "refused .* code=invalid_request ", id="json"),
        pytest.param(refused("POST", "/forward-sse", b"", "a/b"), 415, "refused status=415 .*_media_type ", id="type"),
        pytest.param(refused("GET", "/forward-sse"), 405, "refused .* code=method_not_allowed ", id="method"),
        pytest.param(refused("BREW", "/upstream/test/"), 405, "refused .* code=method_not_allowed ", id="brew"),
        pytest.param(refused("GET", "/upstream/x/"), 404, "refused .* code=not_found ", id="upstream"),
        pytest.param(refused("GET", "/nowhere"), 404, "refused .* code=not_found ", id="path"),
        pytest.param(refused("POST", "/sse"), 405, "refused .* code=method_not_allowed ", id="own"),
    ],
)
def test_each_request_has_one_line_and_one_id(relay: Relay, send: Send, status: int, line: str) -> None:
    id_ = uuid.uuid4().hex
    with closing(send(relay, {"X-Request-Id": id_})) as client:
        head = client.read_head()
        assert (head.status, head.field("X-Request-Id")) == (status, id_)
        client.read_body()
        if head.field("Content-Type") == "application/problem+json":
            assert json.loads(client.body)["request_id"] == id_
    relay.service.wait_log(rf" INFO {line}.*request_id={id_}$")
    # The next request's line comes after all that is said of this one.
    relay.forward(respond(EVENT), http_fields={"X-Request-Id": "next-of-" + id_}).read_body()
    relay.service.wait_log(f"request_id=next-of-{id_}$")
    assert len(lines(relay.service.log(), id_)) == 1


def test_a_client_that_leaves_has_one_line(relay: Relay) -> None:
    id_ = uuid.uuid4().hex
    client = relay.forward(silent, http_fields={"X-Request-Id": id_})
    client.read_until(EVENT)
    client.close()
    relay.service.wait_log(rf"stream end=client_gone status=200 .* request_id={id_}$")
    relay.forward(respond(EVENT), http_fields={"X-Request-Id": "next-of-" + id_}).read_body()
    relay.service.wait_log(f"request_id=next-of-{id_}$")
    assert len(lines(relay.service.log(), id_)) == 1


def test_refusals_of_who_calls_have_a_line(service: Callable[..., Service], upstream: Callable[..., Upstream]) -> None:
    server = upstream(silent)
    settings = {"SSE_PASSCODES": {"ann": "right"}, "SSE_MAX_STREAMS": 1, "SSE_THROTTLE": "2 per hour"}
    gateway = service(SSE_UPSTREAMS={"test": server.url}, **settings)
    with forward(gateway, server.url, passcode="right") as held:
        held.read_until(EVENT)
        for passcode, client, status, code in [
            ("wrong", "-", 401, "unauthenticated"),
            ("right", "ann", 503, "at_capacity"),
            ("right", "ann", 429, "throttled"),
        ]:
            id_ = uuid.uuid4().hex
            with forward(gateway, server.url, passcode=passcode, http_fields={"X-Request-Id": id_}) as asking:
                problem = asking.json()
            assert (problem["status"], problem["code"], problem["request_id"]) == (status, code, id_)
            upstream_ = "test" if code == "at_capacity" else "-"
            found = f"refused status={status} upstream={upstream_} client={client} code={code} request_id={id_}$"
            gateway.wait_log(found)


# As JSON


def test_each_line_of_the_service_is_an_object_if_that_is_wanted(
    service: Callable[..., Service], upstream: Callable[..., Upstream]
) -> None:
    server = upstream(respond(EVENT, b"data: b\n\n"))
    settings = {"SSE_PASSCODES": {"ann": "right"}, "SSE_LOG_FORMAT": "json"}
    gateway = service(SSE_UPSTREAMS={"test": server.url}, **settings)
    with forward(gateway, server.url, passcode="right", http_fields={"X-Request-Id": "one"}) as client:
        client.read_body()
    with forward(gateway, server.url, passcode="wrong", http_fields={"X-Request-Id": "two"}) as client:
        client.read_body()
    gateway.wait_log('"two"}$')
    stream, refusal = (json.loads(line) for line in gateway.log().splitlines() if not line.startswith("["))
    times = {name: stream.pop(name) for name in ("time", "first_byte", "longest_gap", "total")}
    assert 0 < times["first_byte"] <= times["total"] < 10
    assert times["longest_gap"] is None or 0 <= times["longest_gap"] < 10
    assert stream == {
        "level": "INFO",
        "logger": "sse",
        "message": "stream",
        "end": "complete",
        "status": 200,
        "upstream": "test",
        "client": "ann",
        "events": 2,
        "bytes": 18,
        "request_id": "one",
    }
    assert (refusal["message"], refusal["code"], refusal["request_id"]) == ("refused", "unauthenticated", "two")


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What the `sse` log says, as JSON: set up as a site would."""
    output, log = io.StringIO(), logging.getLogger("sse")
    handler = logging.StreamHandler(output)
    handler.setFormatter(JSONFormatter())
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield output
    log.removeHandler(handler)
    log.setLevel(level)


def test_a_fault_of_ours_is_one_object_with_its_traceback(
    written: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app({"SSE_UPSTREAMS": {"test": "http://127.0.0.1:1/"}, "SSE_METRICS": True})

    def break_down(*_: object) -> None:
        raise RuntimeError("a defect\nof two lines")

    monkeypatch.setattr(type(app.extensions["sse"].upstreams), "open", break_down)
    client = app.test_client()
    response = client.get("/upstream/test/", headers={"X-Request-Id": "failing"})
    assert (response.status_code, response.headers["X-Request-Id"]) == (500, "failing")
    assert response.get_json()["request_id"] == "failing"
    shown = json.loads(written.getvalue())
    assert (shown["level"], shown["message"], shown["error"]) == ("ERROR", "failed", "RuntimeError")
    assert (shown["upstream"], shown["code"], shown["request_id"]) == ("test", "internal_error", "failing")
    assert "break_down" in shown["exception"] and "a defect\nof two lines" in shown["exception"]
    figures = client.get("/metrics").text
    assert 'sse_requests_total{code="internal_error",status="500",upstream="test"} 1.0' in figures
    assert 'sse_streams_open{upstream="test"} 0.0' in figures


# In a site


@pytest.mark.parametrize("name", ["ann\n2026-01-01 INFO stream end=complete", 'a" end="x', "\udc80", "x" * 10_000])
def test_a_client_name_of_the_sites_forges_nothing(
    upstream: Callable[..., Upstream], written: io.StringIO, name: str
) -> None:
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(TextFormatter())
    logging.getLogger("sse").addHandler(handler)
    app = Flask(__name__)
    app.config["SSE_UPSTREAMS"] = {"test": upstream(respond(EVENT)).url}
    SSE(app, authorize=lambda request: name)
    try:
        app.test_client().get("/upstream/test/", headers={"X-Request-Id": "one"}).close()
    finally:
        logging.getLogger("sse").removeHandler(handler)
    (line,) = text.getvalue().splitlines()
    assert line.isascii() and line.isprintable() and len(line) < 1000
    assert re.search(r" INFO stream end=client_gone status=200 upstream=test client=\S", line)
    assert line.endswith(" request_id=one")
    shown = json.loads(written.getvalue())
    assert (shown["client"], shown["end"], shown["request_id"]) == (name[:64], "client_gone", "one")
