"""What is said of a stream that has ended: the log line and the metrics."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from ..service import Service, call, forward
from ..upstream import EVENT_STREAM, LAST_CHUNK, Connection, Upstream, answer, chunk, head


def metrics(service: Service) -> str:
    with call(service, "GET", "/metrics") as client:
        return client.read_body().decode()


def test_every_ending_is_counted_once_under_its_reason(
    upstream: Callable[..., Upstream], service: Callable[..., Service]
) -> None:
    def script(connection: Connection) -> None:
        is_cut = connection.read_request().target.startswith("/cut")
        connection.send(head(200, EVENT_STREAM, "Transfer-Encoding: chunked") + chunk(b"data: a\n\n"))
        if not is_cut:
            connection.send(chunk(b"data: b\n\n") + LAST_CHUNK)

    server = upstream(script)
    gateway = service(SSE_UPSTREAMS={"test": server.url}, SSE_METRICS=True)
    with forward(gateway, server.url + "/secret-path?key=secret") as client:
        assert client.read_body() == b"data: a\n\ndata: b\n\n"
    gateway.wait_log("end=complete .*events=2 bytes=18")
    with forward(gateway, server.url + "/cut") as client:
        client.read_body()
    gateway.wait_log("end=upstream_truncated")

    text = metrics(gateway)
    assert 'sse_streams_ended_total{reason="complete",status="200",upstream="test"} 1.0' in text
    assert 'sse_streams_ended_total{reason="upstream_truncated",status="200",upstream="test"} 1.0' in text
    assert 'sse_bytes_total{upstream="test"} 27.0' in text
    assert 'sse_events_total{upstream="test"} 3.0' in text
    assert re.search(r"^sse_streams_open 0\.0$", text, re.MULTILINE)
    assert "secret" not in text


def test_metrics_are_served_only_where_they_are_on(shared_service: Service) -> None:
    with call(shared_service, "GET", "/metrics") as client:
        assert client.read_head().status == 404


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [
        pytest.param("my-id.1", True, id="valid"),
        pytest.param("a b", False, id="space"),
        pytest.param("x" * 129, False, id="long"),
        pytest.param("\u00e9", False, id="not-ascii"),
    ],
)
def test_a_valid_request_id_is_kept_and_goes_to_the_upstream(relay: Any, given: str, is_kept: bool) -> None:
    client = relay.forward(answer(b"data: a\n\n"), http_fields={"X-Request-Id": given})
    answered = client.read_head().field("X-Request-Id")
    client.read_body()
    assert (answered == given) == is_kept
    assert relay.upstream.requests[-1].field("X-Request-Id") == answered
    relay.service.wait_log(f"request_id={re.escape(answered)}")
