"""The relay's way in Flask's test client: what an exchange holds is released however it fails."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

import sse.web.relay
import sse.web.stream
from app import create_app
from sse.relay.upstream.response import UpstreamResponse
from sse.web.report import StreamReport

from ..support.upstream import Upstream, respond


@pytest.mark.parametrize(
    "fails",
    [
        pytest.param((sse.web.relay, "response_fields"), id="fields"),
        pytest.param((sse.web.stream, "Pump"), id="body"),
        pytest.param((sse.web.relay, "stream_response"), id="response"),
        pytest.param((StreamReport, "count"), id="metrics"),
    ],
)
def test_a_stream_whose_response_cannot_be_made_is_released(
    upstream: Callable[..., Upstream], monkeypatch: pytest.MonkeyPatch, fails: tuple[object, str]
) -> None:
    """The upstream's connection once stayed open, held by a reference cycle."""

    def fail(*args: object, **options: object) -> None:
        raise LookupError("a defect")

    closed: list[UpstreamResponse] = []
    close = UpstreamResponse.close
    monkeypatch.setattr(UpstreamResponse, "close", lambda self: closed.append(self) or close(self))  # type: ignore[func-returns-value]  # "or" calls both
    there = upstream(respond(b"data: 1\n\n"))
    app = create_app({"SSE_UPSTREAMS": {"there": there.url}})
    monkeypatch.setattr(*fails, fail)
    assert app.test_client().get("/upstream/there/").status_code == 500
    state = app.extensions["sse"]
    assert (len(state.leases), len(state.monitor)) == (0, 0)
    assert closed


def test_a_client_is_not_watched_while_its_lease_is_released(
    upstream: Callable[..., Upstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that closed its connection behind a whole response was taken for one that leaves."""
    there = upstream(respond(b"data: 1\n\n"))
    app = create_app({"SSE_UPSTREAMS": {"there": there.url}})
    state, watched = app.extensions["sse"], []
    take = state.leases.take

    def take_one(*arguments: Any) -> Callable[[], None]:
        give_back = take(*arguments)

        def look() -> None:
            watched.extend([exchange.client.connection for exchange in state.monitor.exchanges()])
            give_back()

        return look

    monkeypatch.setattr(state.leases, "take", take_one)
    ours, other = socket.socketpair()
    with ours, other:
        response = app.test_client().get("/upstream/there/", environ_overrides={"werkzeug.socket": ours})
        assert (response.status_code, response.get_data()) == (200, b"data: 1\n\n")
        response.close()
    assert watched == [None]
    assert len(state.leases) == 0
