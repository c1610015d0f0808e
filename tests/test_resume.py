"""Answers that go on: sse.js and the page in Chromium, behind the real gateway, with connections that break."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from .support.page import expect_end, opened, visit
from .support.service import Service
from .support.upstream import EVENT_STREAM, LAST_CHUNK, Connection, Upstream, chunk, head

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

#: Characters of two to four bytes and every line end, so that a break can be in any of them.
EVENTS = [f"data: {n} é流🙂{end}{end}" for n, end in enumerate(["\n", "\r\n", "\r"] * 6)]


class Gate:
    """An upstream's response that comes in two halves: the second one when the test says so."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.count = 0

    def respond(self, connection: Connection) -> None:
        connection.read_request()
        self.count += 1
        # This connection ends with the script, and the gateway must not send another request on it.
        connection.send(head(200, EVENT_STREAM, "Transfer-Encoding: chunked", "Connection: close"))
        for event in EVENTS[:9]:
            connection.send(chunk(event.encode()))
        connection.wait_for(self.opened)
        for event in EVENTS[9:]:
            connection.send(chunk(event.encode()))
        connection.send(LAST_CHUNK)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def gateway(gate: Gate, upstream: Callable[..., Upstream], service: Callable[..., Service]) -> Service:
    server = upstream(gate.respond)
    return service(SSE_UPSTREAMS={"test": server.url}, SSE_THROTTLE="")


#: What the page makes of the events: a line each.
TEXT = "".join(f"{n} é流🙂\n" for n in range(len(EVENTS)))


def send_kept(page: Page, gateway: Service) -> None:
    visit(page, gateway.url)
    page.check("#keep")
    page.click("#send", no_wait_after=True)
    page.wait_for_function("() => document.getElementById('events').textContent === '9'")


def expect_all(page: Page, gate: Gate) -> None:
    expect_end(page, "complete")
    page.wait_for_function("(length) => document.getElementById('text').textContent.length >= length", arg=len(TEXT))
    assert page.locator("#text").text_content() == TEXT
    assert gate.count == 1


def test_a_dropped_connection_goes_on_without_a_seam(page: Page, gateway: Service, gate: Gate) -> None:
    send_kept(page, gateway)
    page.click("#drop")
    page.wait_for_function("() => document.getElementById('end').dataset.end === 'reconnecting'")
    gate.opened.set()
    expect_all(page, gate)
    assert page.inner_text("#bytes") == str(len("".join(EVENTS).encode()))


def test_an_answer_goes_on_while_the_browser_is_offline(chromium: Browser, gateway: Service, gate: Gate) -> None:
    with opened(chromium) as page:
        send_kept(page, gateway)
        page.context.set_offline(True)
        with page.expect_event("requestfailed"):
            page.click("#drop")
        assert page.get_attribute("#end", "data-end") == "reconnecting"
        gate.opened.set()
        page.context.set_offline(False)
        expect_all(page, gate)


def test_an_answer_goes_on_after_a_reload(page: Page, gateway: Service, gate: Gate) -> None:
    send_kept(page, gateway)
    page.reload()
    page.wait_for_function("() => document.getElementById('events').textContent === '9'")
    gate.opened.set()
    expect_all(page, gate)
    # It is over, so the next reload begins anew.
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert page.get_attribute("#end", "data-end") == "idle"


def test_stop_ends_the_upstream(page: Page, gateway: Service, gate: Gate) -> None:
    start = len(gateway.log())
    send_kept(page, gateway)
    page.click("#stop")
    expect_end(page, "aborted")
    gateway.wait_log("end=stopped", start=start)
    gate.opened.set()


CUT_EVERYWHERE = """async ([url, length]) => {
    // The wait before a connection is continued is not what is tested here.
    const wait = setTimeout;
    window.setTimeout = (done, time, ...rest) => wait(done, time > 400 ? 10 : time, ...rest);
    const { fetchSSE } = await import("/sse-static/sse.js");
    const read = (cut) => new Promise((done) => {
        const events = [];
        // A connection that breaks after so many bytes, once.
        const send = async (url, init) => {
            const response = await fetch(url, init);
            if (init.method !== "POST") return response;
            const reader = response.body.getReader();
            let left = cut;
            const read = async () => {
                if (left <= 0) { reader.cancel(); throw new TypeError("network error"); }
                const { done, value } = await reader.read();
                if (done) { left = 0; return read(); }
                const piece = value.subarray(0, left);
                left -= piece.length;
                return { done: false, value: piece };
            };
            const { headers, ok, status } = response;
            const body = { getReader: () => ({ read, cancel: () => reader.cancel() }) };
            return { body, headers, ok, status, url: response.url, text: () => response.text() };
        };
        const init = { method: "POST", body: "{}", resume: 60, fetch: send };
        const end = (error) => done([error?.code ?? "done", events]);
        fetchSSE(url, init, { onEvent: ({ data }) => events.push(data), onDone: end, onError: end });
    });
    const whole = await read(Infinity);
    const wrong = [];
    const cuts = Array.from({ length }, (_, index) => index);
    for (let at = 0; at < cuts.length; at += 6) {
        const group = cuts.slice(at, at + 6);
        const results = await Promise.all(group.map(read));
        const isRight = (result) => JSON.stringify(result) === JSON.stringify(whole);
        results.forEach((result, index) => isRight(result) || wrong.push([group[index], result]));
    }
    return { whole, wrong };
}"""


def test_a_stream_is_continued_from_any_byte(page: Page, gateway: Service, gate: Gate) -> None:
    gate.opened.set()
    page.goto(gateway.url)
    length = len("".join(EVENTS).encode())
    found = page.evaluate(CUT_EVERYWHERE, [f"{gateway.url}/upstream/test/x", length])
    assert found["whole"] == ["done", [f"{n} é流🙂" for n in range(len(EVENTS))]]
    assert found["wrong"] == []
