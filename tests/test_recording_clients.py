"""Recordings as other people's clients read them: durable-streams, OpenAI's SDK, Chromium."""

from __future__ import annotations

import json
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .support.dialect import chat_events
from .support.recording import BODY, Paced, location, post
from .support.service import Service
from .support.upstream import EVENT_STREAM, LAST_CHUNK, Connection, Upstream, chunk, head, respond

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def gateway(upstream: Upstream) -> Iterator[Service]:
    with Service(SSE_UPSTREAMS={"test": upstream.url}, SSE_THROTTLE="") as service:
        yield service


@pytest.fixture(autouse=True)
def settled(upstream: Upstream) -> Iterator[None]:
    yield
    upstream.settle()


def durable(node: str, node_modules: Path, url: str, live: str, offset: str) -> subprocess.Popen[str]:
    command = [node, "durable.mjs", url, live, offset]
    return subprocess.Popen(command, cwd=node_modules, stdout=subprocess.PIPE, text=True)


def seen(process: subprocess.Popen[str]) -> Any:
    output, _ = process.communicate(timeout=30)
    return json.loads(output.splitlines()[-1])


@pytest.mark.parametrize("live", ["false", "long-poll"])
@pytest.mark.parametrize("cut", [0, 3, 20])
def test_a_durable_streams_client_reads_a_recording(
    gateway: Service, upstream: Upstream, node: str, node_modules: Path, live: str, cut: int
) -> None:
    upstream.script = respond(BODY)
    with closing(post(gateway)) as client:
        place = location(client)
        client.read_body()
    found = seen(durable(node, node_modules, gateway.url + place, live, f"{cut:016d}"))
    # The decoder removes a byte order mark.
    assert found["text"].encode() == (BODY[3:] if cut == 0 else BODY[cut:].decode(errors="replace").encode())
    assert (found["offset"], found["closed"]) == (f"{len(BODY):016d}", True)


def test_a_durable_streams_client_follows_a_recording(
    gateway: Service, upstream: Upstream, node: str, node_modules: Path
) -> None:
    upstream.script = script = Paced()
    with closing(post(gateway)) as client:
        place = location(client)
        script.send(b"data: a\n\n")
        client.read_until(b"a\n\n")
    process = durable(node, node_modules, gateway.url + place, "long-poll", "-1")
    for number in range(5):
        script.send(b"data: %d\n\n" % number)
    script.complete()
    expected = "data: a\n\n" + "".join(f"data: {number}\n\n" for number in range(5))
    assert seen(process)["text"] == expected


def test_a_durable_streams_client_never_takes_a_cut_for_the_end(
    gateway: Service, upstream: Upstream, node: str, node_modules: Path
) -> None:
    upstream.script = script = Paced()
    with closing(post(gateway)) as client:
        place = location(client)
        script.send(b"data: a\n\n")
        client.read_until(b"a\n\n")
    process = durable(node, node_modules, gateway.url + place, "long-poll", "-1")
    script.truncate()
    found = seen(process)
    assert "closed" not in found
    assert found["status"] == 410


def test_openai_runs_a_broken_request_once(gateway: Service, upstream: Upstream) -> None:
    """What the SDK does by itself after a lost connection: it sends the POST again, with the same key."""
    openai = pytest.importorskip("openai")
    may_go_on = threading.Event()
    words = ["Hello", " ", "wor", "ld"]

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, "Transfer-Encoding: chunked"))
        events = chat_events(words)
        connection.send(chunk(next(events)))
        connection.wait_for(may_go_on)
        for event in events:
            connection.send(chunk(event))
        connection.send(LAST_CHUNK)

    upstream.script = script
    client = openai.OpenAI(base_url=f"{gateway.url}/upstream/test/v1", api_key="unused", max_retries=2)
    key = {"Idempotency-Key": str(uuid.uuid4())}

    def ask() -> Any:
        messages = [{"role": "user", "content": "Hello"}]
        return client.chat.completions.create(model="m", messages=messages, stream=True, extra_headers=key)

    with ask() as first:
        assert next(iter(first)).choices[0].delta.content == words[0]
    # The connection is closed in the middle of the response, and the upstream goes on.
    may_go_on.set()
    assert "".join(part.choices[0].delta.content or "" for part in ask()) == "".join(words)
    assert len(upstream.requests) == 1


def test_chromium_goes_on_offline_and_after_a_reload(
    chromium: Browser, gateway: Service, upstream: Upstream, service: Callable[..., Service]
) -> None:
    """An EventSource of the events view, whose network goes away in mid-answer, misses no event and gets none twice."""
    upstream.script = script = Paced()
    with closing(post(gateway)) as client:
        place = location(client)
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"{gateway.url}/healthz")
    follow = """place => {
        window.seen = [];
        const source = new EventSource(place + "?live=events");
        source.onmessage = (event) => window.seen.push(event.data);
        source.onerror = () => { window.ended = source.readyState === EventSource.CLOSED; };
    }"""
    page.evaluate(follow, place)
    for number in range(3):
        script.send(b"data: %d\n\n" % number)
    page.wait_for_function("window.seen.length === 3")
    context.set_offline(True)
    for number in range(3, 6):
        script.send(b"data: %d\n\n" % number)
    context.set_offline(False)
    page.wait_for_function("window.seen.length === 6", timeout=20_000)
    assert page.evaluate("window.seen") == ["0", "1", "2", "3", "4", "5"]
    page.reload()
    page.evaluate(follow, place)
    script.send(b"data: 6\n\n")
    script.complete()
    page.wait_for_function("window.ended", timeout=20_000)
    assert page.evaluate("window.seen") == [str(number) for number in range(7)]
    context.close()
