"""What a client, and an upstream's entry in the table, allow of a call."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sse.errors import InvalidRequest, ModelNotAllowed, RouteNotAllowed, SSEError, TargetNotAllowed
from sse.protocol.policy import parse_route
from sse.protocol.target.entry import parse_upstream
from sse.protocol.target.parse import parse_target
from sse.relay.upstream.request import UpstreamRequest
from sse.web.access.clients import Client
from sse.web.access.policy import check_call
from sse.web.call import Call

BASE = "https://api.example.com/base/"
CHAT = {"model": "small", "stream": True, "messages": []}

CLIENTS = {
    "free": Client(name="free"),
    "bound": Client(
        name="bound",
        upstreams=frozenset({"main"}),
        routes=(parse_route("POST v1/chat"), parse_route("GET v1/models")),
        models=("small",),
    ),
    "barred": Client(name="barred", upstreams=frozenset()),
}


def check(
    client: str | None = "bound",
    body: object = None,
    *,
    path: str = "v1/chat",
    method: str = "POST",
    url: str = "",
    **entry: Any,
) -> None:
    """Check a call of an upstream of the table, or of a public URL."""
    upstream = parse_upstream("main", {"url": BASE, **entry}) if not url else None
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = UpstreamRequest(method=method, target=parse_target(url or BASE + path), fields=(), body=data)
    check_call(Call(id="1", rules=CLIENTS[client] if client else None), upstream, request)


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({}, id="route-and-model"),
        pytest.param({"client": "free", "path": "v1/files", "method": "DELETE", "body": b"\xff"}, id="no-rules"),
        pytest.param({"client": None, "path": "v1/files"}, id="no-client-of-a-file"),
        pytest.param({"client": "free", "url": "https://other.example/v1/files"}, id="public-target"),
        pytest.param({"client": "free", "allow": ["POST v1/chat"]}, id="route-of-the-table"),
        pytest.param({"client": "free", "body": b"[" * 100_000, "require_usage": True}, id="nested-json"),
        pytest.param({"client": "free", "body": b"\xff", "require_usage": True}, id="no-json"),
        pytest.param({"client": "free", "body": [1], "require_usage": True}, id="no-object"),
    ],
)
def test_calls_that_are_allowed(given: dict[str, Any]) -> None:
    check(**{"body": CHAT, **given})


@pytest.mark.parametrize(
    ("given", "refusal"),
    [
        pytest.param({"client": "barred"}, TargetNotAllowed, id="no-upstream"),
        pytest.param({"url": "https://other.example/v1/chat"}, TargetNotAllowed, id="public-target"),
        pytest.param({"path": "v1/files"}, RouteNotAllowed, id="route"),
        pytest.param({"path": "base/v1/chat"}, RouteNotAllowed, id="route-from-the-root"),
        pytest.param({"method": "PUT"}, RouteNotAllowed, id="method"),
        pytest.param({"body": {**CHAT, "model": "big"}}, ModelNotAllowed, id="model"),
        pytest.param({"path": "v1/models/big", "method": "GET", "body": None}, ModelNotAllowed, id="model-in-the-path"),
        pytest.param({"path": "v1/chat?model=big"}, ModelNotAllowed, id="model-in-the-query"),
        pytest.param({"client": "free", "allow": ["GET v1/chat"]}, RouteNotAllowed, id="route-of-the-table"),
        pytest.param({"client": None, "allow": ["GET v1/chat"]}, RouteNotAllowed, id="route-for-all"),
        pytest.param({"client": None, "require_usage": True}, InvalidRequest, id="usage"),
    ],
)
def test_calls_that_are_refused(given: dict[str, Any], refusal: type[SSEError]) -> None:
    with pytest.raises(refusal):
        check(**{"body": CHAT, **given})
