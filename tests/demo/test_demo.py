"""The demonstration upstream, over real connections."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from sse.demo.server import TEXT, DemonstrationServer, tokens_of
from sse.protocol.boundary import Boundary

from ..support.service import Process, RawClient

CHAT = "v1/chat/completions"
GENERATION = "api/v1/services/aigc/text-generation/generation"
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "你好 hello"}]
STREAMED = {"X-DashScope-SSE": "enable"}


@pytest.fixture(scope="module")
def server() -> Iterator[DemonstrationServer]:
    server = DemonstrationServer(delay=0)
    server.ensure_started()
    yield server
    server.close()


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


def events_of(response: requests.Response) -> list[str]:
    """Return the events of a whole stream, each as its text."""
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"].startswith("text/event-stream")
    *events, rest = response.content.decode().split("\n\n")
    assert rest == "", "the last event has no end"
    return events


def chat_chunks(response: requests.Response) -> list[dict[str, Any]]:
    *events, done = events_of(response)
    assert done == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_the_text_names_the_demonstration_in_both_languages() -> None:
    assert "演示" in TEXT and "demonstration" in TEXT


def test_tokens_make_up_the_text_and_are_small() -> None:
    tokens = tokens_of(TEXT)
    assert "".join(tokens) == TEXT
    assert len(tokens) > 60
    assert "" not in tokens


# OpenAI's dialect


def test_a_streamed_chat_is_sent_token_by_token(server: DemonstrationServer, session: requests.Session) -> None:
    chunks = chat_chunks(session.post(server.url + CHAT, json={"model": "x", "messages": HELLO, "stream": True}))
    first, *middle, last = [chunk["choices"][0] for chunk in chunks]
    assert first["delta"]["role"] == "assistant"
    assert "".join(choice["delta"]["content"] for choice in middle) == TEXT
    assert (last["delta"], last["finish_reason"]) == ({}, "stop")
    assert [choice["finish_reason"] for choice in [first, *middle]] == [None] * (len(middle) + 1)
    assert {(chunk["object"], chunk["model"]) for chunk in chunks} == {("chat.completion.chunk", "demo")}
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
    assert "usage" not in chunks[0]


def test_a_streamed_chat_ends_with_its_usage_on_request(server: DemonstrationServer, session: requests.Session) -> None:
    asked: dict[str, Any] = {"messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
    *others, last = chat_chunks(session.post(server.url + CHAT, json=asked))
    assert all(chunk["usage"] is None for chunk in others)
    assert last["choices"] == []
    assert last["usage"]["prompt_tokens"] == 2
    assert last["usage"]["completion_tokens"] == len(tokens_of(TEXT)) == last["usage"]["total_tokens"] - 2


@pytest.mark.parametrize("stream", [{}, {"stream": False}, {"stream": None}], ids=str)
def test_a_chat_that_is_not_streamed_is_one_response(
    server: DemonstrationServer, session: requests.Session, stream: dict[str, Any]
) -> None:
    response = session.post(server.url + CHAT, json={"model": "x", "messages": HELLO, **stream})
    body = response.json()
    assert (response.status_code, response.headers["Content-Type"]) == (200, "application/json")
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["content"] == TEXT
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["total_tokens"] == 2 + len(tokens_of(TEXT))


def test_text_in_parts_counts_as_text(server: DemonstrationServer, session: requests.Session) -> None:
    parts: list[Any] = [{"type": "text", "text": "two words"}, {"type": "image_url", "image_url": {"url": "data:"}}, 7]
    messages: list[dict[str, Any]] = [{"role": "user", "content": parts}, {"role": "assistant", "content": None}]
    assert session.post(server.url + CHAT, json={"messages": messages}).json()["usage"]["prompt_tokens"] == 2


def test_models_are_listed(server: DemonstrationServer, session: requests.Session) -> None:
    body = session.get(server.url + "v1/models").json()
    assert body["object"] == "list"
    assert [(model["id"], model["object"]) for model in body["data"]] == [("demo", "model")]


# DashScope's own dialect


def generation_events(response: requests.Response) -> list[dict[str, Any]]:
    values = []
    for number, event in enumerate(events_of(response), 1):
        *lines, data = event.split("\n")
        assert lines == [f"id:{number}", "event:result", ":HTTP_STATUS/200"]
        assert data.startswith("data:{")
        values.append(json.loads(data.removeprefix("data:")))
    return values


def generate(server: DemonstrationServer, session: requests.Session, **parameters: object) -> requests.Response:
    asked: dict[str, Any] = {"model": "qwen-turbo", "input": {"messages": HELLO}, "parameters": parameters}
    return session.post(server.url + GENERATION, json=asked, headers=STREAMED)


def test_a_streamed_generation_grows_by_default(server: DemonstrationServer, session: requests.Session) -> None:
    values = generation_events(generate(server, session))
    texts = [value["output"]["text"] for value in values]
    assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:], strict=False))
    assert texts[0] == tokens_of(TEXT)[0]
    assert texts[-1] == TEXT
    assert [value["output"]["finish_reason"] for value in values] == ["null"] * (len(values) - 1) + ["stop"]
    assert len({value["request_id"] for value in values}) == 1


def test_an_incremental_generation_sends_only_what_is_new(
    server: DemonstrationServer, session: requests.Session
) -> None:
    values = generation_events(generate(server, session, incremental_output=True))
    assert [value["output"]["text"] for value in values] == [*tokens_of(TEXT), ""]
    assert values[0]["usage"] == {"input_tokens": 2, "output_tokens": 1, "total_tokens": 3}
    assert values[-1]["usage"]["output_tokens"] == len(tokens_of(TEXT))


def test_a_generation_is_sent_as_messages_if_requested(server: DemonstrationServer, session: requests.Session) -> None:
    values = generation_events(generate(server, session, incremental_output=True, result_format="message"))
    choices = [value["output"]["choices"][0] for value in values]
    assert "".join(choice["message"]["content"] for choice in choices) == TEXT
    assert {choice["message"]["role"] for choice in choices} == {"assistant"}
    assert [choice["finish_reason"] for choice in choices] == ["null"] * (len(choices) - 1) + ["stop"]


def test_a_generation_that_is_not_streamed_is_one_response(
    server: DemonstrationServer, session: requests.Session
) -> None:
    response = session.post(server.url + GENERATION, json={"input": {"prompt": "a b c"}})
    answer = response.json()
    assert (response.status_code, response.headers["Content-Type"]) == (200, "application/json")
    assert answer["output"] == {"finish_reason": "stop", "text": TEXT}
    assert answer["usage"]["input_tokens"] == 3
    assert answer["request_id"]


# Refusals


@pytest.mark.parametrize("path", [CHAT, GENERATION])
@pytest.mark.parametrize("given", ["Bearer demo", "bearer demo", None])
def test_the_key_demo_or_none_is_let_in(
    server: DemonstrationServer, session: requests.Session, path: str, given: str | None
) -> None:
    asked: dict[str, Any] = {"messages": HELLO, "input": {"messages": HELLO}}
    fields = {} if given is None else {"Authorization": given}
    assert session.post(server.url + path, json=asked, headers=fields).status_code == 200


@pytest.mark.parametrize("given", ["Bearer sk-wrong", "Bearer", "Bearer ", "Basic demo", "demo", "Bearer Demo"])
def test_a_wrong_key_is_refused_in_the_shape_of_the_dialect(
    server: DemonstrationServer, session: requests.Session, given: str
) -> None:
    fields = {"Authorization": given, **STREAMED}
    chat = session.post(server.url + CHAT, json={"messages": HELLO, "stream": True}, headers=fields)
    assert (chat.status_code, chat.headers["Content-Type"]) == (401, "application/json")
    assert chat.json()["error"]["code"] == "invalid_api_key"
    assert chat.json()["error"]["type"] == "invalid_request_error"
    generation = session.post(server.url + GENERATION, json={"input": {"messages": HELLO}}, headers=fields)
    assert generation.status_code == 401
    assert generation.json()["code"] == "InvalidApiKey"
    assert set(generation.json()) == {"code", "message", "request_id"}
    assert "wrong" not in chat.text + generation.text
    assert session.get(server.url + "v1/models", headers=fields).status_code == 401


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="cut"),
        pytest.param(b"\xff", id="not-utf-8"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b"9" * 5000, id="long-number"),
        pytest.param(b"[]", id="list"),
        pytest.param(b"null", id="null"),
        pytest.param(b"{}", id="nothing-asked"),
        pytest.param(b'{"messages":[],"input":{"messages":[]}}', id="no-message"),
        pytest.param(b'{"messages":{},"input":{"messages":"x"}}', id="messages-no-list"),
        pytest.param(b'{"messages":["x"],"input":{"messages":[null]}}', id="message-no-object"),
        pytest.param(b'{"messages":[{"role":1}],"input":{"messages":[{"content":"x"}]}}', id="message-without-role"),
        pytest.param(b'{"messages":[{"role":"user"}],"stream":"yes","input":7}', id="flag-no-flag"),
        pytest.param(b'{"messages":[{"role":"user"}],"stream_options":1,"input":{"prompt":1}}', id="no-object"),
    ],
)
def test_a_malformed_request_is_400_in_the_dialect(
    server: DemonstrationServer, session: requests.Session, body: bytes
) -> None:
    chat = session.post(server.url + CHAT, body)
    assert (chat.status_code, chat.json()["error"]["type"]) == (400, "invalid_request_error"), chat.text
    generation = session.post(server.url + GENERATION, body, headers=STREAMED)
    assert (generation.status_code, generation.json()["code"]) == (400, "InvalidParameter"), generation.text


@pytest.mark.parametrize("parameters", [{"result_format": "xml"}, {"result_format": {}}, {"incremental_output": 1}])
def test_a_wrong_parameter_is_400(
    server: DemonstrationServer, session: requests.Session, parameters: dict[str, object]
) -> None:
    assert generate(server, session, **parameters).status_code == 400


@pytest.mark.parametrize(
    "method, path, status",
    [
        pytest.param("GET", CHAT, 405, id="method"),
        pytest.param("POST", "v1/embeddings", 404, id="path"),
        pytest.param("GET", "", 404, id="root"),
        pytest.param("GET", "api/v1/nothing", 404, id="dashscope-path"),
    ],
)
def test_what_is_not_there_is_refused_in_json(
    server: DemonstrationServer, session: requests.Session, method: str, path: str, status: int
) -> None:
    response = session.request(method, server.url + path)
    assert (response.status_code, response.headers["Content-Type"]) == (status, "application/json")
    assert ("code" if path.startswith("api/") else "error") in response.json()
    allowed = response.headers.get("Allow", "")
    assert set(allowed.split(", ")) == ({"OPTIONS", "POST"} if status == 405 else {""})


def test_a_body_that_is_too_long_is_413(server: DemonstrationServer, session: requests.Session) -> None:
    assert session.post(server.url + CHAT, b" " * (1024 * 1024 + 1)).status_code == 413


# The server


def connect(server: DemonstrationServer) -> RawClient:
    return RawClient("127.0.0.1", int(server.url.rstrip("/").rpartition(":")[2]))


def ask_for_stream(client: RawClient) -> None:
    body = json.dumps({"messages": HELLO, "stream": True}).encode()
    client.request("POST", f"/{CHAT}", {"Content-Type": "application/json"}, body)


def test_each_token_arrives_when_it_is_sent() -> None:
    delay = 0.01
    server = DemonstrationServer(delay=delay)
    server.ensure_started()
    with connect(server) as client:
        ask_for_stream(client)
        client.read_body()
    server.close()
    assert client.is_complete
    boundary, ends = Boundary(), []
    for piece in client.pieces:
        boundary.feed(piece.data)
        ends.append(boundary.at_boundary)
    assert all(ends), "an event came in parts"
    assert len(client.pieces) == boundary.events == len(tokens_of(TEXT)) + 3
    shown = client.pieces[-3].at - client.pieces[0].at
    assert shown >= 0.9 * delay * len(tokens_of(TEXT)), "they came all at once"


def test_several_are_served_at_the_same_time() -> None:
    server = DemonstrationServer(delay=0.02)
    server.ensure_started()
    with connect(server) as first, connect(server) as second:
        ask_for_stream(first)
        first.read_until(b"assistant")
        ask_for_stream(second)
        second.read_until(b"assistant")
        assert b"[DONE]" not in first.recv_some(), "the second had to wait until the first was over"
    server.close()


def test_it_serves_between_start_and_close() -> None:
    server = DemonstrationServer(delay=0)
    with connect(server) as early:
        ask_for_stream(early)
        early.sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            early.recv_some()
        early.sock.settimeout(10)
        server.ensure_started()
        early.read_body()
        assert early.is_complete
    server.close()
    server.close()
    with pytest.raises(ConnectionRefusedError):
        connect(server)


def test_starting_it_from_many_threads_starts_one_thread() -> None:
    server = DemonstrationServer(delay=0)
    before = threading.active_count()
    starters = [threading.Thread(target=server.ensure_started) for _ in range(20)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    assert threading.active_count() == before + 1
    server.close()


def test_a_server_that_was_never_started_leaves_no_open_socket() -> None:
    server = DemonstrationServer()
    client = connect(server)
    client.close()
    del server  # pytest makes an error of the ResourceWarning that an unclosed socket would give


def test_leaving_clients_and_garbage_are_not_logged(capfd: pytest.CaptureFixture[str]) -> None:
    server = DemonstrationServer(delay=0.001)
    server.ensure_started()
    running = threading.active_count()
    with connect(server) as leaving, connect(server) as garbage:
        ask_for_stream(leaving)
        leaving.read_until(b"assistant")
        leaving.reset()
        garbage.send(b"\x16\x03\x01 garbage\r\n\r\n")
        while garbage.recv_some():
            pass
    for thread in threading.enumerate()[running:]:
        thread.join(10)
    server.close()
    assert capfd.readouterr() == ("", "")


FORKED = """
import os, requests, threading
from sse.demo.server import DemonstrationServer

def ask(who):
    server.ensure_started()
    with requests.Session() as session:
        session.trust_env = False
        answer = session.post(server.url + "v1/chat/completions", json={"messages": [{"role": "user"}]})
    print(who, answer.status_code, [thread.name for thread in threading.enumerate()].count("demonstration"), flush=True)

server = DemonstrationServer(delay=0)
"""
CHILD_AND_PARENT = """
child = os.fork()
if child:
    os.waitpid(child, 0)
    ask("parent")
else:
    ask("child")
    os._exit(0)
"""


@pytest.mark.parametrize(
    "script, said",
    [
        pytest.param(FORKED + CHILD_AND_PARENT, "child 200 1\nparent 200 1\n", id="bound-before"),
        pytest.param(
            FORKED + "ask('before')" + CHILD_AND_PARENT,
            "before 200 1\nchild 200 1\nparent 200 1\n",
            id="started-before",
        ),
    ],
)
def test_each_forked_process_serves_the_socket(script: str, said: str) -> None:
    with Process([sys.executable, "-c", script]) as process:
        assert process.wait_exit() == 0, process.log()
        assert process.log() == said


def test_under_gevent_it_serves_while_the_same_process_reads() -> None:
    script = f"from gevent import monkey; monkey.patch_all(){FORKED}ask('greenlet')"
    with Process([sys.executable, "-c", script]) as process:
        assert process.wait_exit() == 0, process.log()
        assert process.log().startswith("greenlet 200 ")
