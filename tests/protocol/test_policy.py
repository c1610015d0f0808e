"""Routes and models that a client may use; the refused list is longer than the allowed one."""

from __future__ import annotations

import json

import pytest

from sse.protocol.policy import are_models_allowed, is_route_allowed, parse_route

ROUTES = [parse_route("POST v1/chat/completions"), parse_route("GET v1/models")]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        pytest.param("POST", "v1/chat/completions", id="the-route"),
        pytest.param("POST", "/v1/chat/completions", id="leading-slash"),
        pytest.param("POST", "v1//chat/completions", id="double-slash"),
        pytest.param("GET", "v1/models/gpt-5", id="below-it"),
        pytest.param("HEAD", "v1/models", id="head-of-get"),
    ],
)
def test_routes_that_are_allowed(method: str, path: str) -> None:
    assert is_route_allowed(ROUTES, method, path)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        pytest.param("DELETE", "v1/chat/completions", id="other-method"),
        pytest.param("post", "v1/chat/completions", id="method-in-lower-case"),
        pytest.param("GET", "v1/chat/completions", id="get-of-post"),
        pytest.param("HEAD", "v1/chat/completions", id="head-of-post"),
        pytest.param("POST", "v1/chat", id="above-it"),
        pytest.param("POST", "v1/chat/completions2", id="not-a-whole-segment"),
        pytest.param("POST", "v1/chat%2Fcompletions", id="encoded-slash"),
        pytest.param("POST", "v1/chat/Completions", id="other-case"),
        pytest.param("POST", "x/v1/chat/completions", id="in-the-middle"),
        pytest.param("POST", "v1/../v1/chat/completions", id="dot-segments"),
        pytest.param("POST", "", id="empty"),
        pytest.param("POST", "v1/fine_tuning/jobs", id="another-route"),
    ],
)
def test_routes_that_are_refused(method: str, path: str) -> None:
    assert not is_route_allowed(ROUTES, method, path)


def test_no_routes_allow_all() -> None:
    assert is_route_allowed([], "DELETE", "v1/files/x")


@pytest.mark.parametrize(
    "text", ["", "POST", "POST ", "v1/models", "post v1/models", "POST ../x", "GET a?b", "GET a#b", "G3T a", "GET a b"]
)
def test_what_is_no_route_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_route(text)


def allowed(body: object = None, *, method: str = "POST", path: str = "v1/chat/completions", query: str = "") -> bool:
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    return are_models_allowed(["small", "qwen-*"], method=method, path=path, query=query, body=data)


def test_models_that_are_allowed() -> None:
    assert allowed({"model": "small"})
    assert allowed({"model": "qwen-max", "messages": [{"model": "other"}]})
    assert allowed(path="v1beta/models/small:generateContent")
    assert allowed({"model": "small"}, query="model=qwen-1")
    assert allowed(path="openai/deployments/small/chat/completions")
    assert allowed(method="GET", path="v1/files")
    assert are_models_allowed([], method="POST", path="x", query="", body=None)


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"body": {"model": "big"}}, id="another"),
        pytest.param({"body": {"model": "SMALL"}}, id="other-case"),
        pytest.param({"body": {"model": "small "}}, id="blank-behind"),
        pytest.param({"body": {"messages": []}}, id="none-named"),
        pytest.param({"body": None}, id="no-body"),
        pytest.param({"body": b"model=small"}, id="not-json"),
        pytest.param({"body": b"model=small", "query": "model=small"}, id="not-json-but-in-the-query"),
        pytest.param({"body": [{"model": "small"}]}, id="in-a-list"),
        pytest.param({"body": b'{"model":"small","model":"big"}'}, id="twice"),
        pytest.param({"body": b'{"model":"small","model":"small"}'}, id="twice-the-same"),
        pytest.param({"body": b'{"model":"small","mod\\u0065l":"big"}'}, id="twice-with-an-escape"),
        pytest.param({"body": {"model": ["small"]}}, id="a-list"),
        pytest.param({"body": {"model": None}}, id="null"),
        pytest.param({"body": {"model": "small"}, "query": "model=big"}, id="query-says-another"),
        pytest.param({"body": {"model": "small"}, "query": "model=small&model=big"}, id="query-says-two"),
        pytest.param({"body": {"model": "small"}, "query": "model="}, id="query-says-nothing"),
        pytest.param({"body": {"model": "small"}, "path": "v1/models/big:generateContent"}, id="path-says-another"),
        pytest.param({"body": {"model": "small"}, "path": "v1/mod%65ls/big"}, id="path-with-an-escape"),
        pytest.param({"body": {"model": "small"}, "path": "openai/deployments/big/chat"}, id="deployment-another"),
        pytest.param({"body": None, "method": "GET", "path": "v1/models/big"}, id="get-of-another"),
        pytest.param({"body": b'{"a":' * 100_000}, id="deep"),
    ],
)
def test_models_that_are_refused(given: dict[str, object]) -> None:
    assert not allowed(**given)  # type: ignore[arg-type]  # the wrong types are the case
