"""The gateway as the base URL of clients of other projects."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import anyio
import dashscope
import httpx
import httpx2
import httpx_sse
import openai
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from sse.demo.server import KEY, TEXT, DemonstrationServer

from .support.dialect import chat_events, speak
from .support.program import run_node
from .support.servers import Server
from .support.service import Service, call, forward
from .support.upstream import EVENT_STREAM, LAST_CHUNK, Connection, Script, Upstream, chunk, head, respond

PASSCODE = "a long random text"

MESSAGES: list[Any] = [{"role": "user", "content": "Hello"}]


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """A service that wants a passcode, and what is behind it."""

    service: Service
    upstream: Upstream
    #: An address of sse-starlette's server, for a direct call.
    starlette: str

    def base_url(self, name: str, path: str = "") -> str:
        return f"{self.service.url}/upstream/{name}{path}"


@pytest.fixture(scope="module")
def whole_gateway() -> Iterator[Gateway]:
    demonstration = DemonstrationServer(delay=0.001)
    demonstration.ensure_started()
    with Upstream() as upstream, Server("sse_starlette_app") as starlette, Server("mcp_app") as mcp:
        upstreams = {
            "demo": {"url": demonstration.url, "headers": {"Authorization": f"Bearer {KEY}"}},
            "expired": {"url": demonstration.url, "headers": {"Authorization": "Bearer sk-of-last-year"}},
            "test": {"url": upstream.url, "headers": {"X-Api-Key": "sk-test"}},
            "starlette": starlette.url,
            "mcp": mcp.url,
        }
        settings: dict[str, Any] = {"SSE_UPSTREAMS": upstreams, "SSE_PASSCODES": {"sdk": PASSCODE}, "SSE_THROTTLE": ""}
        # One second, for connections that a client keeps are waited for at the end.
        with Service("--keep-alive", "1", **settings) as service:
            yield Gateway(service=service, upstream=upstream, starlette=starlette.url)
    demonstration.close()


@pytest.fixture
def gateway(whole_gateway: Gateway) -> Iterator[Gateway]:
    """The gateway, with nothing left of the test before."""
    yield whole_gateway
    whole_gateway.upstream.settle()


def each_request(respond: Callable[[int], bytes]) -> Script:
    """Return a script that responses each request by its number over all connections, the first being 1."""
    numbers = itertools.count(1)

    def script(connection: Connection) -> None:
        while True:
            connection.read_request()
            connection.send(respond(next(numbers)))

    return script


def stop_after(first: bytes) -> Script:
    """Return a script that sends one event, and then nothing until the client leaves."""

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, "Transfer-Encoding: chunked") + chunk(first))
        connection.wait_closed()

    return script


# OpenAI's Python SDK


@pytest.fixture
def openai_client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    """OpenAI's client with the passcode for a key."""
    with openai.OpenAI(base_url=gateway.base_url("demo", "/v1"), api_key=PASSCODE, max_retries=0) as client:
        yield client


def test_openai_streams_a_chat(openai_client: openai.OpenAI) -> None:
    stream = openai_client.chat.completions.create(
        model="demo", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens > 0


def test_openai_reads_a_whole_answer(openai_client: openai.OpenAI) -> None:
    answered = openai_client.chat.completions.create(model="demo", messages=MESSAGES)
    assert answered.choices[0].message.content == TEXT
    assert [model.id for model in openai_client.models.list()] == ["demo"]


def test_openai_reports_the_upstreams_refusal(gateway: Gateway, openai_client: openai.OpenAI) -> None:
    client = openai_client.with_options(base_url=gateway.base_url("expired", "/v1"))
    with pytest.raises(openai.AuthenticationError) as refused:
        client.chat.completions.create(model="demo", messages=MESSAGES, stream=True)
    assert refused.value.code == "invalid_api_key"
    assert refused.value.response.headers["X-Upstream-Status"] == "401"


def test_openai_reports_the_gateways_refusal(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        openai_client.with_options(api_key="guessed").chat.completions.create(model="demo", messages=MESSAGES)
    assert refused.value.response.json()["code"] == "unauthenticated"
    assert "X-Upstream-Status" not in refused.value.response.headers
    assert refused.value.request_id == refused.value.response.json()["request_id"]


def test_an_open_gateway_passes_the_key_of_openais_client_on(shared_service: Service) -> None:
    with openai.OpenAI(base_url=f"{shared_service.url}/upstream/demo/v1", api_key=KEY, max_retries=0) as client:
        assert client.chat.completions.create(model="demo", messages=MESSAGES).choices[0].message.content == TEXT
        with pytest.raises(openai.AuthenticationError) as refused:
            client.with_options(api_key="sk-wrong").chat.completions.create(model="demo", messages=MESSAGES)
    assert refused.value.code == "invalid_api_key"


def test_openai_aborts_in_mid_stream(gateway: Gateway, openai_client: openai.OpenAI) -> None:
    gateway.upstream.script = stop_after(next(chat_events(["Hel"])))
    client = openai_client.with_options(base_url=gateway.base_url("test", "/v1"))
    stream = client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
    assert next(stream).choices[0].delta.content == "Hel"
    stream.close()
    gateway.upstream.wait_connection().wait_closed()


def test_openai_takes_no_cut_for_an_end(gateway: Gateway, openai_client: openai.OpenAI) -> None:
    def cut(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, "Transfer-Encoding: chunked") + chunk(next(chat_events(["Hel"]))))

    gateway.upstream.script = cut
    client = openai_client.with_options(base_url=gateway.base_url("test", "/v1"))
    with pytest.raises(openai.APIError, match="broke off"):
        list(client.chat.completions.create(model="m", messages=MESSAGES, stream=True))


def test_openai_waits_as_long_as_the_upstream_says(gateway: Gateway, openai_client: openai.OpenAI) -> None:
    """OpenAI's clients look at `Retry-After-Ms` first; without it they wait half a second or more."""
    busy = head(429, "Content-Type: application/json", "Retry-After: 7", "Retry-After-Ms: 1", "Content-Length: 2")

    document = {"id": "1", "object": "list", "data": []}
    body = json.dumps(document).encode()
    whole = head(200, "Content-Type: application/json", f"Content-Length: {len(body)}") + body
    gateway.upstream.script = each_request(lambda number: busy + b"{}" if number == 1 else whole)
    client = openai_client.with_options(base_url=gateway.base_url("test", "/v1"), max_retries=1)
    assert client.models.list().data == []
    first, second = gateway.upstream.wait_request(1), gateway.upstream.wait_request(2)
    assert second.at - first.at < 0.4


# OpenAI's JavaScript SDK, and the npm package eventsource


@pytest.mark.parametrize("ending", ["stream", "whole"])
def test_openai_js_reads_an_answer(gateway: Gateway, node_modules: Path, ending: str) -> None:
    assert run_node(node_modules, "openai.mjs", gateway.base_url("demo", "/v1"), PASSCODE, ending) == {"text": TEXT}


@pytest.mark.parametrize(
    ("name", "passcode", "upstream", "type_"),
    [
        pytest.param("expired", PASSCODE, "401", "application/json", id="of-the-upstream"),
        pytest.param("demo", "guessed", None, "application/problem+json", id="of-the-gateway"),
    ],
)
def test_openai_js_reports_a_refusal(
    gateway: Gateway, node_modules: Path, name: str, passcode: str, upstream: str | None, type_: str
) -> None:
    said = run_node(node_modules, "openai.mjs", gateway.base_url(name, "/v1"), passcode, "stream")
    assert said == {"error": "AuthenticationError", "status": 401, "upstream": upstream, "type": type_}


def test_openai_js_aborts_in_mid_stream(gateway: Gateway, node_modules: Path) -> None:
    gateway.upstream.script = stop_after(next(chat_events(["Hel"])))
    said = run_node(node_modules, "openai.mjs", gateway.base_url("test", "/v1"), PASSCODE, "abort")
    assert said == {"text": "Hel"}
    gateway.upstream.wait_connection().wait_closed()


def test_eventsource_goes_on_after_its_last_event(gateway: Gateway, node_modules: Path) -> None:
    streams = [b"retry: 10\nevent: price\nid: 7\ndata: 41.5\n\n", b"event: end\nid: 8\ndata: bye\n\n"]
    stream_head = head(200, EVENT_STREAM, "Transfer-Encoding: chunked")
    gateway.upstream.script = each_request(lambda number: stream_head + chunk(streams[number - 1]) + LAST_CHUNK)
    seen = run_node(node_modules, "eventsource.mjs", gateway.base_url("test", "/feed"), PASSCODE)
    assert seen == [["price", "7", "41.5"], ["end", "8", "bye"]]
    first, second = gateway.upstream.requests
    assert (first.field("Last-Event-ID"), second.field("Last-Event-ID")) == (None, "7")
    assert first.field("X-Passcode") is None


# Anthropic


def test_anthropic_streams_a_message(gateway: Gateway) -> None:
    gateway.upstream.script = speak("Grüße", ", ", "世界")
    with (
        anthropic.Anthropic(base_url=gateway.base_url("test"), auth_token=PASSCODE, max_retries=0) as client,
        client.messages.stream(model="m", max_tokens=9, messages=MESSAGES) as stream,
    ):
        assert "".join(stream.text_stream) == "Grüße, 世界"
        assert stream.get_final_message().stop_reason == "end_turn"
        assert stream.response.headers["request-id"] == "req_1"
    request = gateway.upstream.wait_request()
    assert request.target == "/v1/messages"
    assert request.field("X-Api-Key") == "sk-test"
    assert request.field("Anthropic-Version") is not None
    assert request.field("Authorization") is None


# DashScope, by its native protocol


@pytest.fixture
def generate(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`generate("demo", prompt="Hello")` calls a generation of that upstream, with the passcode for a key."""

    def call(name: str, **options: Any) -> Any:
        # The SDK has one base URL, a global one.
        monkeypatch.setattr(dashscope, "base_http_api_url", gateway.base_url(name, "/api/v1"))
        return dashscope.Generation.call("demo", api_key=PASSCODE, **options)

    return call


def test_dashscope_streams_a_generation(generate: Callable[..., Any]) -> None:
    parts = list(generate("demo", messages=MESSAGES, result_format="message", stream=True, incremental_output=True))
    assert {part.status_code for part in parts} == {200}
    assert "".join(part.output.choices[0].message.content for part in parts) == TEXT


def test_dashscope_reads_a_whole_answer(generate: Callable[..., Any]) -> None:
    answered = generate("demo", prompt="Hello")
    assert (answered.status_code, answered.output.text) == (200, TEXT)


def test_dashscope_reports_the_upstreams_refusal(generate: Callable[..., Any]) -> None:
    refused = generate("expired", prompt="Hello")
    assert (refused.status_code, refused.code) == (401, "InvalidApiKey")


# httpx-sse


def test_httpx_sse_reads_every_part_of_an_event(gateway: Gateway) -> None:
    gateway.upstream.script = respond(b"event: a\nid: 1\nretry: 5\ndata: x\ndata: y\n\n: comment\n", b"data: z\n\n")
    bearer = {"Authorization": f"Bearer {PASSCODE}"}
    with (
        httpx.Client(headers=bearer) as client,
        httpx_sse.connect_sse(client, "POST", gateway.base_url("test", "/feed"), json={"a": 1}) as source,
    ):
        events = [(event.event, event.id, event.retry, event.data) for event in source.iter_sse()]
    assert events == [("a", "1", 5, "x\ny"), ("message", "1", None, "z")]
    assert gateway.upstream.wait_request().body == b'{"a":1}'


# The Model Context Protocol


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_mcp_calls_a_tool_and_hears_of_its_progress(gateway: Gateway, mode: str) -> None:
    """`legacy` opens a session, with a stream of its own beside the calls; `auto` does without one."""
    received: list[float] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        received.append(progress)

    async def use() -> None:
        bearer = {"Authorization": f"Bearer {PASSCODE}"}
        async with httpx2.AsyncClient(headers=bearer) as http_client:
            transport = streamable_http_client(gateway.base_url("mcp", "/mcp"), http_client=http_client)
            await count(transport)

    async def count(transport: Any) -> None:
        async with Client(transport, mode=mode) as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == ["count"]
            result = await client.call_tool("count", {"to": 3}, progress_callback=note)
            assert not result.is_error
            assert "counted to 3" in str(result.content)

    anyio.run(use)
    assert received == [1, 2, 3]


# sse-starlette on uvicorn


@pytest.mark.parametrize("way", ["forward", "upstream"])
def test_the_bytes_of_sse_starlette_arrive_as_it_sent_them(gateway: Gateway, way: str) -> None:
    direct = httpx.get(f"{gateway.starlette}/feed").content
    bearer = {"Authorization": f"Bearer {PASSCODE}"}
    if way == "forward":
        client = forward(gateway.service, f"{gateway.starlette}/feed", http_fields=bearer, body={})
    else:
        client = call(gateway.service, "GET", "/upstream/starlette/feed", bearer)
    with client:
        relayed = client.read_body()
        assert client.is_complete
    assert len(direct) > 50_000
    assert hashlib.sha256(relayed).hexdigest() == hashlib.sha256(direct).hexdigest()
