"""Unchanged SDKs of LLM APIs report why the gateway refused a call, or why a stream broke off."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anthropic
import dashscope
import openai
import pytest

from .support.dialect import chat_events
from .support.program import run_node
from .support.service import Service, call
from .support.upstream import EVENT_STREAM, Connection, Upstream, chunk, head

MESSAGES: list[Any] = [{"role": "user", "content": "Hello"}]

#: A call's passcode, and the code and the text that name the cause of its failure.
CASES = {
    401: ("wrong", "unauthenticated", "No credential, or a wrong one"),
    429: ("right", "too_many_streams", "Too many open streams of this client"),
    503: ("right", "at_capacity", "The gateway has as many open streams as it may have"),
}
CUT = ("upstream_truncated", "the upstream's response broke off")


@pytest.fixture(scope="module")
def full() -> Iterator[dict[int, str]]:
    """The base URLs of gateways that refuse a call for each of the causes."""

    def silent(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, "Transfer-Encoding: chunked"))
        connection.wait_closed(60)

    with Upstream(silent) as upstream, ExitStack() as stack:
        urls = {}
        for status, limit in {429: "SSE_MAX_STREAMS_PER_CLIENT", 503: "SSE_MAX_STREAMS"}.items():
            settings: dict[str, Any] = {
                "SSE_UPSTREAMS": {"test": upstream.url},
                "SSE_PASSCODES": {"a": "right"},
                limit: 1,
            }
            service = stack.enter_context(Service(**settings))
            client = stack.enter_context(call(service, "GET", "/upstream/test/v1", {"X-Passcode": "right"}))
            assert client.read_head().status == 200
            urls[status] = f"{service.url}/upstream/test/v1"
        yield {**urls, 401: urls[429]}


@contextmanager
def broken_off(first: bytes) -> Iterator[str]:
    """Give the base URL of an upstream whose streams break off after an event."""

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, "Transfer-Encoding: chunked") + chunk(first))

    with Upstream(script) as upstream, Service(SSE_UPSTREAMS={"test": upstream.url}, SSE_THROTTLE="") as service:
        yield f"{service.url}/upstream/test/v1"


@pytest.fixture(scope="module")
def cut() -> Iterator[str]:
    with broken_off(next(chat_events(["Hel"]))) as url:
        yield url


@pytest.mark.parametrize("status", sorted(CASES))
def test_openai_reports_a_refusal(full: dict[int, str], status: int) -> None:
    passcode, code, message = CASES[status]
    with openai.OpenAI(base_url=full[status], api_key=passcode, max_retries=0) as client:
        with pytest.raises(openai.APIStatusError) as refused:
            client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
    assert (refused.value.status_code, refused.value.code) == (status, code)
    assert message in str(refused.value)


def test_openai_reports_a_cut(cut: str) -> None:
    with openai.OpenAI(base_url=cut, api_key="none", max_retries=0) as client:
        with pytest.raises(openai.APIError) as failed:
            list(client.chat.completions.create(model="m", messages=MESSAGES, stream=True))
    assert (failed.value.code, failed.value.message) == CUT


@pytest.mark.parametrize("status", sorted(CASES))
def test_anthropic_reports_a_refusal(full: dict[int, str], status: int) -> None:
    passcode, code, message = CASES[status]
    with anthropic.Anthropic(base_url=full[status], auth_token=passcode, max_retries=0) as client:
        with pytest.raises(anthropic.APIStatusError) as refused:
            client.messages.create(model="m", max_tokens=9, messages=MESSAGES, stream=True)
    body: Any = refused.value.body
    assert (refused.value.status_code, body["error"]["code"], body["error"]["message"]) == (status, code, message)
    assert message in str(refused.value)


def test_anthropic_reports_a_cut(cut: str) -> None:
    with anthropic.Anthropic(base_url=cut, auth_token="none", max_retries=0) as client:
        with pytest.raises(anthropic.APIStatusError) as failed:
            list(client.messages.create(model="m", max_tokens=9, messages=MESSAGES, stream=True))
    assert CUT[1] in str(failed.value)


@pytest.mark.parametrize("status", sorted(CASES))
def test_dashscope_reports_a_refusal(full: dict[int, str], status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    passcode, code, message = CASES[status]
    monkeypatch.setattr(dashscope, "base_http_api_url", full[status])
    responses: Any = dashscope.Generation.call("m", api_key=passcode, messages=MESSAGES, stream=True)
    refused = next(iter(responses))
    assert refused.status_code == status
    assert code in str(refused.message) and message in str(refused.message)


def test_dashscope_reports_a_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    first = b'id:1\nevent:result\n:HTTP_STATUS/200\ndata:{"output":{"text":"Hel"}}\n\n'
    with broken_off(first) as url:
        monkeypatch.setattr(dashscope, "base_http_api_url", url)
        responses: Any = dashscope.Generation.call("m", api_key="none", messages=MESSAGES, stream=True)
        *parts, last = responses
    assert [part.output.text for part in parts] == ["Hel"]
    assert last.code == CUT[0]


@pytest.fixture(scope="module")
def node_reports(full: dict[int, str], cut: str, node_modules: Path) -> Callable[[str], str]:
    """`node_reports("401 openai")` returns what that SDK says of that failure."""
    calls = [(str(status), full[status], CASES[status][0]) for status in CASES]
    said = run_node(node_modules, "refusals.mjs", json.dumps([*calls, ("cut", cut, "none")]))
    return lambda name: str(said[name])


@pytest.mark.parametrize("sdk", ["openai", "anthropic", "ai"])
@pytest.mark.parametrize("status", sorted(CASES))
def test_javascript_reports_a_refusal(node_reports: Callable[[str], str], sdk: str, status: int) -> None:
    said = node_reports(f"{status} {sdk}")
    assert CASES[status][2] in said
    assert str(status) in said


@pytest.mark.parametrize("sdk", ["openai", "anthropic", "ai"])
def test_javascript_reports_a_cut(node_reports: Callable[[str], str], sdk: str) -> None:
    assert CUT[1] in node_reports(f"cut {sdk}")
