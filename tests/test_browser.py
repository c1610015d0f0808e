"""A real Chromium: the page, the seed's own front-end code from another origin, and nothing the policy forbids."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .service import ROOT, Service
from .upstream import EVENT_STREAM, LAST_CHUNK, Connection, Upstream, chunk, head

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

SEED = r"""
async function fetchSSESimple(onMessage) {
  const eventSource = new EventSource(`${beUrl}/hackathon/sse`);
  eventSource.onmessage = (event) => {
    if (onMessage) {
      onMessage(event.data);
    }
  };
  eventSource.onerror = (error) => {
    console.error('SSE error:', error);
  };
  setTimeout(() => {
    eventSource.close();
  }, 30 * 1000);
}

const fetchSSE = async (content, onMessage, onFinished) => {
  const controller = new AbortController();
  fetch(`${beUrl}/forward-sse`, {
    signal: controller.signal,
    method: 'POST',
    headers: {
      'Content-Type': 'application/json',
      'Accept': 'text/event-stream',
    },
    body: JSON.stringify({
      targetUrl: aecGptUrls.ragAppUrl,
      method: 'post',
      body: JSON.stringify({
        content,
        chatMode: 1,
        knowledges: getKnowledges(content),
        promptVariables: {},
        stream: true,
      }),
      header: JSON.stringify({
        'authorization': localStorage.getItem('AecGptToken'),
        'content-type': 'application/json',
      }),
      passcode,
    }),
  })
    .then((response) => {
      const reader = response.body.getReader();
      const decoder = new TextDecoder();
      function read() {
        reader.read().then((res) => {
          const { done, value } = res;
          if (done) {
            console.log('Stream finished');
            if (onFinished) {
              onFinished();
            }
            return;
          }
          const chunk = decoder.decode(value, { stream: true });
          if (onMessage) {
            onMessage(chunk);
          }
          read();
        });
      }
      read();
    })
    .catch((error) => {
      console.error('Error in POST SSE request:', error);
    });
  return { controller };
};
"""


@contextmanager
def other_origin() -> Iterator[str]:
    """Serve an empty page on a port of its own, which makes it another origin."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", "15")
            self.end_headers()
            self.wfile.write(b"<!doctype html>")

        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A page of its own; what the browser complains about fails the test, a cut answer, which some want, excepted."""
    complaints: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.startswith("Failed to load resource: net::ERR_INCOMPLETE"):
            complaints.append(message.text)

    context = chromium.new_context(locale="en-US", permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", note)
    yield page
    context.close()
    assert not complaints


def test_the_page_streams_an_answer_token_by_token(page: Page, shared_service: Service) -> None:
    from playwright.sync_api import expect

    page.goto(shared_service.url)
    page.click("#send")
    expect(page.locator("#end")).to_have_text("streaming")
    partial = page.inner_text("#text")
    expect(page.locator("#end")).to_have_text("complete", timeout=15_000)
    whole = page.inner_text("#text")
    assert len(partial) < len(whole)
    assert "demonstration" in whole and "演示" in whole
    assert "[DONE]" in page.inner_text("#raw")
    assert page.text_content("#wire").endswith("data: [DONE]␊\n␊\n")
    assert re.fullmatch(r"\d+ ms", page.inner_text("#first"))
    assert int(page.inner_text("#events")) == page.locator("#plot line").count() > 10


def test_stop_aborts_and_the_relay_notices(page: Page, shared_service: Service) -> None:
    from playwright.sync_api import expect

    page.goto(shared_service.url)
    start = len(shared_service.log())
    page.click("#send")
    expect(page.locator("#events")).to_have_text(re.compile(r"[3-9]|\d\d"))
    page.click("#stop")
    expect(page.locator("#end")).to_have_text("stopped")
    shared_service.wait_log("end=client_gone status=200 upstream=demo", start=start)


def test_every_example_of_the_page_streams(page: Page, shared_service: Service) -> None:
    from playwright.sync_api import expect

    page.goto(shared_service.url)
    page.select_option("#preset", "1")
    page.click("#send")
    expect(page.locator("#end")).to_have_text("complete", timeout=15_000)
    assert "演示" in page.inner_text("#text")


def test_the_page_shows_why_a_stream_was_cut(page: Page, service: Callable[..., Service], upstream: Any) -> None:
    from playwright.sync_api import expect

    def cut(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, "Transfer-Encoding: chunked") + chunk(b"data: so far\n\n"))

    server: Upstream = upstream(cut)
    gateway = service(SSE_UPSTREAMS={"test": server.url}, SSE_PASSCODES={"page": "open sesame"})
    page.goto(gateway.url)
    page.fill("#target", "x")
    page.fill("#passcode", "open sesame")
    page.click("#send")
    expect(page.locator("#end")).to_have_text("upstream_truncated")
    assert "so far" in page.inner_text("#text")
    assert page.evaluate("() => localStorage.length + sessionStorage.length + document.cookie.length") == 0


def test_the_page_speaks_chinese_and_is_reached_by_keyboard(page: Page, shared_service: Service) -> None:
    from playwright.sync_api import expect

    page.goto(shared_service.url)
    page.focus("#language")
    page.keyboard.press("Enter")
    expect(page.locator("#send")).to_have_text("发送")
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("() => document.activeElement.id") == "send":
            break
    page.keyboard.press("Enter")
    expect(page.locator("#end")).to_have_text("完成", timeout=15_000)


@pytest.mark.parametrize("width", [375, 1440])
def test_the_page_fits_its_window(chromium: Browser, shared_service: Service, width: int) -> None:
    page = chromium.new_page(viewport={"width": width, "height": 900})
    page.goto(shared_service.url)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    page.close()


@pytest.mark.parametrize(("kind", "begins"), [("curl", "curl -N"), ("fetch", "await fetch("), ("python", "import req")])
def test_a_call_can_be_copied(page: Page, shared_service: Service, kind: str, begins: str) -> None:
    from playwright.sync_api import expect

    page.goto(shared_service.url)
    expect(page.locator("#target")).not_to_have_value("")
    page.click(f"[data-copy={kind}]")
    expect(page.locator("#copied")).to_have_text("copied")
    text = page.evaluate("() => navigator.clipboard.readText()")
    assert text.startswith(begins) and "/upstream/demo/v1/chat/completions" in text


HACKATHON = """
from flask import Flask
from sse import SSE

app = Flask(__name__)
app.add_url_rule("/healthz", view_func=lambda: "ok")
SSE(app, url_prefix="/hackathon", demonstration=True)
"""


def test_the_seeds_event_source_works_from_another_origin(
    page: Page, service: Callable[..., Service], tmp_path: Path
) -> None:
    # The path of the seed's code has a prefix, so it is a site that the extension is part of.
    (tmp_path / "app.py").write_text(HACKATHON)
    gateway = service("-c", str(ROOT / "gunicorn.conf.py"), env={"PYTHONPATH": str(ROOT)}, root=tmp_path)
    with other_origin() as origin:
        page.goto(origin)
        messages = page.evaluate(
            f"""() => new Promise((resolve) => {{
                const beUrl = {gateway.url.removesuffix("/")!r}, got = [];
                {SEED}
                fetchSSESimple((message) => got.push(message) === 4 && resolve(got));
            }})"""
        )
        # The seed's function reads on for 30 s, and a service that stops waits for its streams.
        page.goto("about:blank")
    assert messages == ["Message 0", "Message 1", "Message 2", "Message 3"]


def test_the_seeds_fetch_works_from_another_origin(page: Page, relay: Any) -> None:
    pieces = ["data: 你好\n\n", "data: world\n\n"]

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, "Transfer-Encoding: chunked"))
        for piece in pieces:
            connection.send(chunk(piece.encode()))
        connection.send(LAST_CHUNK)

    relay.upstream.script = script
    with other_origin() as origin:
        page.goto(origin)
        got = page.evaluate(
            f"""() => new Promise((resolve) => {{
                const beUrl = {relay.service.url.removesuffix("/")!r}, passcode = "";
                const aecGptUrls = {{ ragAppUrl: {relay.upstream.url + "/rag"!r} }}, getKnowledges = () => [];
                localStorage.setItem("AecGptToken", "Bearer token of the seed");
                let text = "";
                {SEED}
                fetchSSE("hello", (chunk) => (text += chunk), () => resolve(text));
            }})"""
        )
    assert got == "".join(pieces)
    request = relay.upstream.requests[-1]
    assert request.field("authorization") == "Bearer token of the seed"
    assert b'"content":"hello"' in request.body


PARSE = """async ([url, cases]) => {
    const { createParser } = await import(url);
    const parse = (pieces) => {
        const events = [];
        const parser = createParser({ onEvent: (event) => events.push(event) });
        for (const piece of pieces) parser.feed(piece);
        return events;
    };
    return cases.map((stream) => [parse([stream]), parse(stream.split(""))]);
}"""


def test_the_parsers_table_holds_in_a_browser_too(page: Page, shared_service: Service) -> None:
    """The names are those of web-platform-tests; Node runs the same table in every split."""
    table = json.loads((ROOT / "tests/js/format.json").read_text())
    cases = [case for case in table if case["events"] or "contentType" not in case]
    assert len(cases) > 20
    page.goto(shared_service.url)
    url = shared_service.url + "/sse-static/sse.js"
    for case, results in zip(cases, page.evaluate(PARSE, [url, [case["stream"] for case in cases]]), strict=True):
        assert results == [case["events"]] * 2, case["name"]
