"""The relay's way in Flask's test client: what an exchange holds is released however it fails."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import sse.web.relay
from app import create_app
from sse.relay.upstream.client import UpstreamResponse
from sse.web.report import StreamReport

from ..support.upstream import Upstream, respond


@pytest.mark.parametrize(
    "fails",
    [
        pytest.param((sse.web.relay, "response_fields"), id="fields"),
        pytest.param((sse.web.relay, "Pump"), id="body"),
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
    monkeypatch.setattr(UpstreamResponse, "close", lambda self: closed.append(self) or close(self))  # type: ignore[func-returns-value]
    there = upstream(respond(b"data: 1\n\n"))
    app = create_app({"SSE_UPSTREAMS": {"there": there.url}})
    monkeypatch.setattr(*fails, fail)
    assert app.test_client().get("/upstream/there/").status_code == 500
    state = app.extensions["sse"]
    assert (len(state.leases), len(state.monitor)) == (0, 0)
    assert closed
