"""How often a request waits for the shared store, counted on the wire."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest

from ...support.ending import EVENT, STREAM, eventually
from ...support.program import RedisServer
from ...support.redis_proxy import CountingProxy
from ...support.service import Service, call
from ...support.upstream import Connection, Upstream, chunk


def gated(connection: Connection) -> None:
    """Send an event, and the end when the test lets it."""
    connection.read_request()
    connection.send(STREAM + chunk(EVENT))
    connection.wait_closed()


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="open"),
        pytest.param({"SSE_PASSCODES": {"a": "secret"}}, id="passcodes"),
        pytest.param({"SSE_PASSCODES": {"a": "secret"}, "SSE_THROTTLE": "9 per second; 99 per hour"}, id="two-limits"),
    ],
)
def test_a_request_waits_twice_for_the_shared_store(settings: dict[str, Any], redis_server: RedisServer) -> None:
    """It waited four or five times: for failed logins, its count, its lease, its window, and the lease again."""
    fields = {"Authorization": "Bearer secret"} if settings else {}
    with ExitStack() as stack:
        upstream = stack.enter_context(Upstream(gated))
        proxy = stack.enter_context(CountingProxy(redis_server.port))
        uri = f"redis://127.0.0.1:{proxy.port}/0"
        service = stack.enter_context(
            Service("--workers", "1", SSE_UPSTREAMS={"test": upstream.url}, SSE_STORAGE_URI=uri, **settings)
        )
        counts = []
        for _ in range(3):
            before = proxy.round_trips
            with call(service, "GET", "/upstream/test/", fields) as client:
                assert client.read_head().status == 200
                assert client.head and client.head.field("X-RateLimit-Remaining")
                client.read_until(EVENT)
                at_head = proxy.round_trips - before
            expected = before + at_head

            def is_released(expected: int = expected) -> bool:
                return proxy.round_trips > expected

            eventually(is_released, "the lease is not released")
            counts.append((at_head, proxy.round_trips - before))
    # Nothing waits for the third, which releases the lease when the stream has ended.
    assert counts == [(2, 3)] * 3
