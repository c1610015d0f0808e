"""A real Chromium: the page, the seed's own front-end code from another origin, and nothing the policy forbids."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from .support.page import expect_end, stream, visit
from .support.program import program
from .support.service import ROOT, Service
from .support.upstream import Upstream

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

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
    """Serve an empty page, sse.js and the format table on a port of its own, which makes it another origin."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, body = other_files(self.path)
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


FORMAT: list[dict[str, Any]] = json.loads((ROOT / "tests/js/format.json").read_text())


def other_files(path: str) -> tuple[str, bytes]:
    """Return content type and body of what the other origin has at a path: `/case/3` is a stream of the table."""
    if path == "/sse.js":
        return "text/javascript", (ROOT / "sse/static/sse.js").read_bytes()
    if path.startswith("/case/"):
        case = FORMAT[int(path.removeprefix("/case/"))]
        return case.get("contentType", "text/event-stream"), case["stream"].encode()
    return "text/html", b'<!doctype html><link rel="icon" href="data:,">'


# The page


def test_the_page_streams_an_answer_token_by_token(page: Page, shared_service: Service) -> None:
    visit(page, shared_service.url)
    page.click("#send")
    page.wait_for_function("() => document.getElementById('text').textContent.length > 5")
    partial = page.inner_text("#text")
    assert page.get_attribute("#end", "data-end") == "streaming"
    expect_end(page, "complete")
    whole = page.inner_text("#text")
    assert whole.startswith(partial) and len(partial) < len(whole)
    assert "demonstration" in whole and "演示" in whole
    assert re.fullmatch(r"\d+ ms", page.inner_text("#first"))
    assert page.inner_text("#status") == "200"
    events = page.inner_text("#events")
    assert int(events) == page.locator("#list li").count() == int(page.get_attribute("#plot", "data-events") or "") > 10
    assert str(page.get_attribute("#plot", "aria-label")).startswith(f"{events} events in ")


def test_the_page_shows_the_very_bytes(page: Page, relay: Any) -> None:
    relay.upstream.script = stream("\ufeffdata: 你\n\n".encode(), b": x\r\n")
    visit(page, relay.service.url)
    page.fill("#target", "/x")
    page.click("#send")
    expect_end(page, "complete")
    assert relay.upstream.requests[-1].target == "/x"
    page.click("#tab-raw")
    assert page.inner_text("#bytes") == "19"
    assert "".join(page.locator("#raw .as-text").all_inner_texts()).replace("\n", "") == "⟨BOM⟩data: 你↵↵: x←↵"
    page.click("[data-form=hex]")
    assert "ef bb bf 64 61 74 61 3a" in page.inner_text("#raw")
    page.click("#tab-head")
    assert "x-request-id" in page.inner_text("#head")


def test_stop_aborts_and_the_relay_notices(page: Page, shared_service: Service) -> None:
    from playwright.sync_api import expect

    visit(page, shared_service.url)
    start = len(shared_service.log())
    page.click("#send")
    expect(page.locator("#events")).to_have_text(re.compile(r"[3-9]|\d\d"))
    page.click("#stop")
    expect_end(page, "aborted")
    expect(page.locator("#end")).to_have_text("stopped")
    shared_service.wait_log("end=client_gone status=200 upstream=demo", start=start)


def test_a_new_call_takes_the_place_of_the_one_before(page: Page, shared_service: Service) -> None:
    from playwright.sync_api import expect

    visit(page, shared_service.url)
    start = len(shared_service.log())
    page.click("#send")
    expect(page.locator("#events")).to_have_text(re.compile(r"[3-9]|\d\d"))
    page.click("#send")
    shared_service.wait_log("end=client_gone", start=start)
    expect_end(page, "complete")
    assert page.inner_text("#text").count("你好") == 1
    assert page.locator("#list li").count() == int(page.inner_text("#events"))


@pytest.mark.parametrize("incremental", [True, False])
def test_the_page_understands_dashscope(page: Page, shared_service: Service, incremental: bool) -> None:
    visit(page, shared_service.url)
    page.check("[value=dashscope]")
    if not incremental:
        page.fill("#body", page.input_value("#body").replace('"incremental_output": true', '"result_format": "text"'))
    page.click("#send")
    expect_end(page, "complete")
    text = page.inner_text("#text")
    assert text.count("演示") == text.count("built-in demonstration") == 1


@pytest.mark.parametrize(
    ("content_type", "body", "events"),
    [
        pytest.param(
            "application/x-ndjson", '{"response":"so "}\n{"response":"far"}\n', 2, id="a line of NDJSON is an event"
        ),
        pytest.param("application/json", '{"choices":[{"message":{"content":"so far"}}]}', 1, id="JSON is one event"),
    ],
)
def test_the_page_shows_answers_that_are_no_event_stream(
    page: Page, relay: Any, content_type: str, body: str, events: int
) -> None:
    relay.upstream.script = stream(
        *(body[at : at + 7].encode() for at in range(0, len(body), 7)), field=f"Content-Type: {content_type}"
    )
    visit(page, relay.service.url)
    page.fill("#target", "x")
    page.click("#send")
    expect_end(page, "complete")
    assert page.inner_text("#text") == "so far"
    assert page.inner_text("#events") == str(events)
    assert page.inner_text("#bytes") == str(len(body))


def test_the_page_shows_why_a_stream_was_cut(page: Page, service: Callable[..., Service], upstream: Any) -> None:
    from playwright.sync_api import expect

    server: Upstream = upstream(stream(b"data: so far\n\n", last=b""))
    gateway = service(SSE_UPSTREAMS={"test": server.url}, SSE_PASSCODES={"page": "芝麻开门"})
    visit(page, gateway.url)
    page.fill("#target", server.url)
    page.click("#send")
    expect(page.locator("#end")).to_have_text("unauthenticated")
    assert "401" in page.inner_text("#failure")
    page.fill("#passcode", "芝麻开门")
    page.press("#passcode", "Tab")
    # Which upstreams there are is said only to those who have the passcode.
    expect(page.locator("#upstream")).to_have_value("test")
    page.fill("#target", "x")
    page.click("#send")
    expect(page.locator("#end")).to_have_text("upstream_truncated")
    assert "so far" in page.inner_text("#text")
    page.click("#tab-code")
    assert "YOUR_PASSCODE" in page.inner_text("#snippet") and "芝麻" not in page.inner_text("#snippet")
    kept = "() => JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
    assert "芝麻" not in page.evaluate(kept)
    assert page.evaluate("async () => (await indexedDB.databases()).length + (await caches.keys()).length") == 0
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert page.input_value("#passcode") == ""


def test_the_page_calls_a_free_target(page: Page, relay: Any) -> None:
    from playwright.sync_api import expect

    relay.upstream.script = stream(b"data: reached\n\n")
    visit(page, relay.service.url)
    page.select_option("#upstream", "?")
    page.fill("#target", relay.upstream.url + "/free?q=1")
    page.fill("#fields", "X-Mine: 1\n\nContent-Type: text/plain")
    page.fill("#body", "hello")
    page.click("#send")
    expect_end(page, "complete")
    request = relay.upstream.requests[-1]
    assert (request.method, request.target, request.body) == ("POST", "/free?q=1", b"hello")
    assert request.field("X-Mine") == "1"
    page.fill("#target", "https://127.0.0.1:1/")
    page.click("#send")
    expect(page.locator("#end")).to_have_text("target_not_allowed")


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        pytest.param("#fields", "no colon", "no colon", id="a field without a colon"),
        pytest.param("#fields", "a b: c", "a b: c", id="a name that is no token"),
        pytest.param("#fields", "a: 你", "ISO-8859-1", id="a value that fetch refuses"),
    ],
)
def test_what_cannot_be_sent_is_shown(
    page: Page, shared_service: Service, field: str, value: str, problem: str
) -> None:
    visit(page, shared_service.url)
    page.fill(field, value)
    page.click("#send")
    assert page.inner_text("#problem") and problem in page.inner_text("#problem")
    assert page.get_attribute("#end", "data-end") == "idle"


def test_the_page_speaks_chinese_and_english(page: Page, shared_service: Service) -> None:
    from playwright.sync_api import expect

    visit(page, shared_service.url)
    expect(page.locator("#send")).to_contain_text("Send")
    page.click("[data-language=zh]")
    expect(page.locator("#send")).to_contain_text("发送")
    assert page.get_attribute("html", "lang") == "zh-CN"
    assert page.evaluate("() => [...document.querySelectorAll('[data-text]')].every((e) => e.textContent)")
    assert "什么是服务器发送事件" in page.input_value("#body")
    page.reload()
    expect(page.locator("#send")).to_contain_text("发送")


def test_the_page_speaks_the_browsers_language(chromium: Browser, shared_service: Service) -> None:
    page = chromium.new_page(locale="zh-CN")
    visit(page, shared_service.url)
    assert "发送" in page.inner_text("#send")
    page.close()


def test_everything_is_reached_by_keyboard(page: Page, shared_service: Service) -> None:
    visit(page, shared_service.url)
    reached = []
    for _ in range(24):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("() => document.activeElement.id || document.activeElement.value"))
    wanted = [
        "openai",
        "upstream",
        "method",
        "target",
        "question",
        "model",
        "fields",
        "body",
        "send",
        "tab-events",
        "list",
    ]
    assert [name for name in reached if name in wanted][: len(wanted)] == wanted
    page.focus("#tab-events")
    for tab in ["tab-raw", "tab-head", "tab-code", "tab-calls", "tab-events"]:
        page.keyboard.press("ArrowRight")
        assert page.evaluate("() => document.activeElement.id") == tab
        assert page.is_visible(f"[aria-labelledby={tab}][role=tabpanel]")
    page.focus("#body")
    page.keyboard.press("Control+Enter")
    expect_end(page, "complete")
    page.focus("[value=openai]")
    page.keyboard.press("ArrowRight")
    assert page.input_value("#target").startswith("api/v1/services")


def test_focus_is_not_lost_when_a_stream_is_stopped(page: Page, shared_service: Service) -> None:
    visit(page, shared_service.url)
    page.check("[value=ticks]")
    page.click("#send")
    page.focus("#stop")
    page.keyboard.press("Enter")
    expect_end(page, "aborted")
    assert page.evaluate("() => document.activeElement.id") == "send"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 820, 1440])
def test_the_page_fits_its_window(
    chromium: Browser, shared_service: Service, tmp_path: Path, width: int, scheme: Literal["light", "dark"]
) -> None:
    page = chromium.new_page(
        viewport={"width": width, "height": 900}, color_scheme=scheme, locale="zh-CN" if scheme == "dark" else "en-US"
    )
    visit(page, shared_service.url)
    page.click("#send")
    expect_end(page, "complete")
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert page.evaluate("() => document.documentElement.scrollWidth") == width
    cut_off = """() => [...document.querySelectorAll("h1, h2, dt, dd, label, button, p, #target-label")]
        .filter((element) => element.offsetParent && !element.closest(".unseen, .scroll"))
        .filter((element) => element.scrollWidth > element.clientWidth + 1 && element.clientWidth)
        .map((element) => element.outerHTML)"""
    assert page.evaluate(cut_off) == []
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_colours_are_legible(chromium: Browser, shared_service: Service, scheme: Literal["light", "dark"]) -> None:
    page = chromium.new_page(color_scheme=scheme)
    visit(page, shared_service.url)
    pairs = [
        *((text, ground) for text in ("ink", "quiet") for ground in ("ground", "surface", "sunken")),
        *((text, "surface") for text in ("accent", "wait", "good", "bad")),
        ("on-accent", "accent"),
        ("accent", "accent-soft"),
        ("ink", "accent-soft"),
        ("wait", "wait-soft"),
        ("bad", "bad-soft"),
    ]
    read = "(name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim()"
    low = {(a, b): contrast(page.evaluate(read, a), page.evaluate(read, b)) for a, b in pairs}
    page.close()
    # WCAG 2.2, 1.4.3: "a contrast ratio of at least 4.5:1"
    assert {pair: ratio for pair, ratio in low.items() if ratio < 4.5} == {}


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours, `#rrggbb`, as WCAG 2.2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_policy_lets_nothing_else_run(chromium: Browser, shared_service: Service) -> None:
    page = chromium.new_page()
    response = page.goto(shared_service.url)
    assert response is not None
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    injected = """() => new Promise((resolve) => {
        addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
        const script = document.createElement("script");
        script.textContent = "window.ran = true";
        document.body.append(script);
    })"""
    assert page.evaluate(injected) == "script-src-elem"
    assert page.evaluate("() => window.ran") is None
    page.close()


def copied(page: Page, service: Service, name: str) -> str:
    """Return the call that the page fills in at first, as copied from it."""
    from playwright.sync_api import expect

    visit(page, service.url)
    page.click("#tab-code")
    page.click(f'[data-snippet="{name}"]')
    page.click("#copy")
    expect(page.locator("#copied")).to_have_text("Copied")
    return str(page.evaluate("() => navigator.clipboard.readText()"))


def test_a_call_copied_as_curl_streams(page: Page, shared_service: Service) -> None:
    program("curl", "curl")
    done = subprocess.run(
        ["bash", "-c", copied(page, shared_service, "curl")], capture_output=True, text=True, timeout=30
    )
    assert done.stdout.endswith("data: [DONE]\n\n") and "你好" in done.stdout, done.stderr


def test_a_call_copied_as_python_streams(page: Page, shared_service: Service) -> None:
    script = copied(page, shared_service, "Python")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert "data: [DONE]" in done.stdout and "你好" in done.stdout, done.stderr


@pytest.mark.parametrize("name", ["fetch", "sse.js"])
def test_a_call_copied_as_javascript_streams_from_another_origin(
    page: Page, shared_service: Service, name: str
) -> None:
    script = copied(page, shared_service, name)
    logged: list[str] = []
    page.on("console", lambda message: logged.append(message.text))
    with other_origin() as origin:
        page.goto(origin)
        with page.expect_console_message(lambda message: "[DONE]" in message.text):
            page.add_script_tag(content=script, type="module")
    assert any("你好" in text for text in logged)


def test_the_page_reads_every_dialect_and_quotes_what_it_copies(node: str) -> None:
    path = str(ROOT / "tests/js/dialect.test.js")
    done = subprocess.run([node, "--test", path], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    # A runner that found nothing to run is content as well.
    assert "# tests 0" not in done.stdout


# sse.js


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
    cases = [case for case in FORMAT if case["events"] or "contentType" not in case]
    assert len(cases) > 20
    page.goto(shared_service.url)
    url = shared_service.url + "/sse-static/sse.js"
    for case, results in zip(cases, page.evaluate(PARSE, [url, [case["stream"] for case in cases]]), strict=True):
        assert results == [case["events"]] * 2, case["name"]


RUN_TABLE = """async (cases) => {
    const { fetchSSE, openSSE } = await import("/sse.js");
    const plain = ({ type, data, lastEventId }) => ({ type, data, lastEventId });
    const readers = {
        // What the browser itself makes of a stream: the oracle of the table.
        EventSource: (url, types) => new Promise((resolve) => {
            const events = [], source = new EventSource(url);
            const receive = (event) => {
                if (event instanceof MessageEvent) return events.push(plain(event));
                source.close();
                resolve(events);
            };
            for (const type of ["error", ...types]) source.addEventListener(type, receive);
        }),
        openSSE: (url, types) => new Promise((resolve) => {
            const events = [];
            const end = () => (controller.abort(), resolve(events));
            const onEvent = (event) => events.push(plain(event));
            const { controller } = openSSE(url, { types, onEvent, onReconnect: end, onError: end });
        }),
        fetchSSE: (url) => new Promise((resolve) => {
            const events = [];
            const end = () => resolve(events);
            fetchSSE(url, {}, { onEvent: (event) => events.push(event), onDone: end, onError: end });
        }),
    };
    const results = [];
    for (const [index, { events, contentType }] of cases.entries()) {
        const types = [...new Set(["message", ...events.map(({ type }) => type)])];
        for (const [name, read] of Object.entries(readers)) {
            // Chromium's EventSource refuses a charset that is not UTF-8, against the standard and this very case.
            if (/charset=windows/.test(contentType) && name !== "fetchSSE") continue;
            results.push([index, name, await read(`/case/${index}`, types)]);
        }
    }
    return results;
}"""


def test_the_browser_and_sse_js_read_the_table_alike(page: Page) -> None:
    with other_origin() as origin:
        page.goto(origin)
        results = page.evaluate(RUN_TABLE, FORMAT)
    assert len(results) == 3 * len(FORMAT) - 2
    wrong = [(FORMAT[index]["name"], name, got) for index, name, got in results if got != FORMAT[index]["events"]]
    assert wrong == []


def test_sse_js_tells_a_refusal_from_another_origin(page: Page, service: Callable[..., Service]) -> None:
    gateway = service(SSE_THROTTLE="1 per hour")
    call = f"""async () => {{
        const {{ fetchSSE }} = await import("/sse.js");
        const init = {{ method: "POST", headers: {{ "Content-Type": "application/json" }}, body: "{{}}" }};
        const one = () => new Promise((onError) => fetchSSE("{gateway.url}/forward-sse", init, {{ onError }}));
        const errors = [await one(), await one()];
        return errors.map(({{ code, status, retryAfter }}) => [code, status, retryAfter ?? 0]);
    }}"""
    with other_origin() as origin:
        page.goto(origin)
        first, second = page.evaluate(call)
    assert first == ["invalid_request", 400, 0]
    assert second[:2] == ["throttled", 429] and 3000 < second[2] <= 3600


def test_sse_js_takes_up_a_stream_from_another_origin(page: Page, shared_service: Service) -> None:
    read = f"""async (ways) => {{
        const {{ fetchSSE, openSSE }} = await import("/sse.js");
        const first = (open) => new Promise((resolve) => {{
            const onEvent = ({{ lastEventId, data }}) => resolve([lastEventId, data, controller.abort()]);
            const {{ controller }} = open({{ onEvent }});
        }});
        const url = "{shared_service.url}/sse", init = {{ headers: {{ "Last-Event-ID": "41" }}, reconnect: true }};
        return [
            await first((handlers) => fetchSSE(url, init, handlers)),
            await first((handlers) => openSSE(`${{url}}?lastEventId=41`, handlers)),
        ];
    }}"""
    with other_origin() as origin:
        page.goto(origin)
        assert [event[:2] for event in page.evaluate(read)] == [["42", "Message 41"]] * 2


# The seed


HACKATHON = """
from flask import Flask
from sse import SSE

app = Flask(__name__)
app.add_url_rule("/healthz", view_func=lambda: "ok")
SSE(app, url_prefix="/hackathon", demonstration=True, playground=True)
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
    # The page does not mind the prefix either.
    visit(page, f"{gateway.url}/hackathon/")
    page.click("#send")
    expect_end(page, "complete")


def test_the_seeds_fetch_works_from_another_origin(page: Page, relay: Any) -> None:
    pieces = ["data: 你好\n\n", "data: world\n\n"]
    relay.upstream.script = stream(*(piece.encode() for piece in pieces))
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
