"""The page as a tool: it stays smooth under load, keeps what was typed, and shows what a response holds."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from .support.page import cpu_times_of_tasks, expect_end, faults, opened, stream, visit
from .support.relay import Relay
from .support.upstream import EVENT_STREAM, LAST_CHUNK, Connection, Script, chunk, head, respond

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

#: Seconds between the two events of a stream whose tokens are counted.
PAUSE = 0.5
#: The longest task that a page may have and still seem to react at once (W3C, Long Tasks API): milliseconds.
LONG_TASK = 50


def event(**delta: str) -> bytes:
    """Return an event of OpenAI's chat completions."""
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta}]}, ensure_ascii=False)}\n\n".encode()


def in_pieces(texts: Sequence[str], size: int = 50) -> Script:
    """Return a script that responses with an event for each text, `size` events in a chunk, as fast as it can."""
    events = [event(content=text) for text in texts]
    pieces = [b"".join(events[at : at + size]) for at in range(0, len(events), size)]
    return stream(*pieces, b"data: [DONE]\n\n")


def ask(page: Page, relay: Relay, script: Script, end: str = "complete") -> None:
    """Open the page, send what it fills in, and wait for the end of the response."""
    relay.upstream.script = script
    visit(page, relay.service.url)
    page.click("#send", no_wait_after=True)
    expect_end(page, end)


# Under load


FLOOD = [f"w{n} " for n in range(5000)]
LONG = ["天地玄黄 宇宙洪荒 lorem ipsum dolor sit amet consectetur\n"] * 6000


@pytest.mark.parametrize(
    "texts", [pytest.param(FLOOD, id="5,000 events at once"), pytest.param(LONG, id="300 kB of text")]
)
def test_no_answer_makes_the_page_stutter(page: Page, chromium: Browser, relay: Relay, texts: list[str]) -> None:
    """Each event once made its own row and read the layout: 5,000 of them were one task of seconds."""
    relay.upstream.script = in_pieces(texts)
    visit(page, relay.service.url)
    chromium.start_tracing(page=page, categories=["toplevel", "devtools.timeline"])
    page.click("#send", no_wait_after=True)
    expect_end(page, "complete")
    shown = "length => document.getElementById('text').textContent.length === length"
    page.wait_for_function(shown, arg=len("".join(texts)))
    page.wait_for_selector("#list li:last-child:has-text('[DONE]')")
    times = cpu_times_of_tasks(chromium.stop_tracing())
    assert len(times) > 20
    assert max(times) <= LONG_TASK
    assert page.inner_text("#events") == f"{len(texts) + 1:,}"
    # What is kept is bounded, and what is gone is counted.
    assert page.locator("#list li").count() == 500
    assert f"{len(texts) - 499:,}" in str(page.get_attribute("#list", "data-earlier"))
    assert page.locator("#raw > div").count() <= 300


def test_the_end_of_an_answer_is_in_view(page: Page, relay: Relay) -> None:
    ask(page, relay, in_pieces([f"line {n}\n" for n in range(300)]))
    page.wait_for_function("() => document.getElementById('text').textContent.includes('line 299')")
    below = "(id) => { const e = document.getElementById(id); return e.scrollHeight - e.scrollTop - e.clientHeight }"
    assert page.evaluate(below, "reading") <= 2
    page.wait_for_selector("#list li:last-child:has-text('[DONE]')")
    assert page.evaluate(below, "list") <= 2


def test_who_has_scrolled_up_is_left_there(page: Page, relay: Relay) -> None:
    def respond(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, "Transfer-Encoding: chunked"))
        connection.send(chunk(b"".join(event(content=f"line {n}\n") for n in range(300))))
        connection.wait_for(scrolled)
        connection.send(chunk(event(content="the last line")) + LAST_CHUNK)

    scrolled = threading.Event()
    relay.upstream.script = respond
    visit(page, relay.service.url)
    page.click("#send", no_wait_after=True)
    page.wait_for_function("() => document.getElementById('text').textContent.includes('line 299')")
    page.hover("#reading")
    page.mouse.wheel(0, -3000)
    above = "() => { const e = reading; return e.scrollHeight - e.scrollTop - e.clientHeight }"
    page.wait_for_function(f"() => ({above})() > 1000")
    scrolled.set()
    expect_end(page, "complete")
    page.wait_for_function("() => document.getElementById('text').textContent.includes('the last line')")
    assert page.evaluate(above) > 1000


def test_times_are_the_streams(page: Page, relay: Relay) -> None:
    """All events of one piece came at the same time, however long it takes to show them."""
    ask(page, relay, stream(b"".join(event(content=f"{n} ") for n in range(400)), b"data: [DONE]\n\n"))
    times = page.locator("#list time").all_inner_texts()
    assert len(set(times)) <= 2


# What was typed


def test_what_was_typed_survives_a_reload(page: Page, relay: Relay) -> None:
    visit(page, relay.service.url)
    page.fill("#target", "v1/mine")
    page.fill("#fields", "X-Mine: 1\nAuthorization: Bearer secret\nX-Api-Key: secret")
    page.fill("#body", '{"model": "mine"}')
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert [page.input_value(f"#{name}") for name in ("target", "body", "model")] == [
        "v1/mine",
        '{"model": "mine"}',
        "mine",
    ]
    # A secret does not go into any storage.
    assert page.input_value("#fields") == "X-Mine: 1"
    assert "secret" not in page.evaluate(
        "() => JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
    )


def test_the_choice_of_an_example_can_be_undone(page: Page, relay: Relay) -> None:
    visit(page, relay.service.url)
    mine = {"target": "v1/mine", "fields": "X-Mine: 1", "body": "a long prompt of my own"}
    for undo in ("button", "keys"):
        for name, text in mine.items():
            page.fill(f"#{name}", text)
        page.check("[value=dashscope]")
        assert "incremental_output" in page.input_value("#body")
        if undo == "keys":
            page.focus("#body")
            page.keyboard.press("Control+z")
            assert page.input_value("#body") == mine["body"]
        else:
            page.click("#undo")
            assert {name: page.input_value(f"#{name}") for name in mine} == mine
            assert page.is_hidden("#undo")


def test_question_and_model_stand_beside_the_json(page: Page, relay: Relay) -> None:
    visit(page, relay.service.url)
    page.fill("#question", 'Say "hi"')
    page.fill("#model", "other")
    body = json.loads(page.input_value("#body"))
    assert (body["model"], body["messages"][0]["content"]) == ("other", 'Say "hi"')
    page.fill("#body", '{"model": "third", "messages": [{"role": "user", "content": "why?"}]}')
    assert (page.input_value("#model"), page.input_value("#question")) == ("third", "why?")
    page.fill("#body", "not JSON")
    assert page.is_disabled("#question")


def test_broken_json_is_marked_before_it_is_sent(page: Page, relay: Relay) -> None:
    visit(page, relay.service.url)
    assert page.get_attribute("#body", "aria-invalid") == "false"
    page.fill("#body", '{"model": }')
    assert page.get_attribute("#body", "aria-invalid") == "true"
    assert page.inner_text("#body-problem").startswith("This is not JSON:")
    page.fill("#fields", "Content-Type: text/plain")
    page.fill("#body", "plain text")
    assert page.get_attribute("#body", "aria-invalid") == "false"
    assert page.is_hidden("#body-problem")


# What a response holds


def test_an_event_shows_its_token_and_opens_as_json(page: Page, relay: Relay) -> None:
    ask(page, relay, in_pieces(["你", "好"], size=1))
    rows = page.locator("#list li")
    assert rows.nth(0).locator("q").inner_text() == "你"
    assert rows.nth(0).locator("code").count() == 0
    page.focus("#list")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert json.loads(rows.nth(1).locator("pre").inner_text())["choices"][0]["delta"] == {"content": "好"}
    # However many rows there are, Tab stops at the list alone.
    stops = "() => [...document.querySelectorAll('#list, #list *')].filter((e) => e.tabIndex >= 0).map((e) => e.id)"
    assert page.evaluate(stops) == ["list"]


def test_reasoning_is_marked(page: Page, relay: Relay) -> None:
    pieces = [event(reasoning_content="Let me think."), event(content="So it is.")]
    ask(page, relay, stream(*pieces))
    assert page.inner_text("#reasoning").split("\n")[0] == "Reasoning"
    assert page.inner_text("#thought") == "Let me think."
    assert page.inner_text("#text") == "So it is."
    assert page.locator("#list q.thought").all_inner_texts() == ["Let me think."]


def test_tokens_and_the_reason_of_the_end_are_shown(page: Page, relay: Relay) -> None:
    usage = {"prompt_tokens": 12, "completion_tokens": 1234}
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}], "usage": usage}
    shown = threading.Event()

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, "Transfer-Encoding: chunked") + chunk(event(content="a")))
        connection.wait_for(shown)
        connection.send(chunk(f"data: {json.dumps(last)}\n\n".encode()) + LAST_CHUNK)

    relay.upstream.script = script
    visit(page, relay.service.url)
    sent = time.monotonic()
    page.click("#send", no_wait_after=True)
    page.wait_for_function("() => document.getElementById('events').textContent === '1'")
    page.wait_for_timeout(PAUSE * 1000)
    shown.set()
    expect_end(page, "complete")
    assert page.inner_text("#tokens") == "12 → 1,234"
    assert page.inner_text("#finish") == "length"
    # From the first event to the last.
    rate = int(page.inner_text("#rate").replace(",", ""))
    assert 1234 / (time.monotonic() - sent) - 1 <= rate <= 1234 / PAUSE + 1
    # What is not reported is not there.
    ask(page, relay, in_pieces(["a"]))
    assert page.is_hidden("#tokens") and page.is_hidden("#rate") and page.is_hidden("#finish")


def test_a_refusal_leads_with_the_upstreams_message(page: Page, relay: Relay) -> None:
    body = json.dumps({"error": {"message": "You exceeded your quota.", "code": "insufficient_quota"}}).encode()
    ask(
        page,
        relay,
        respond(body, fields=("Content-Type: application/json", "Retry-After: 2"), status=429, framing="close"),
        end="error",
    )
    assert page.inner_text("#failure-title") == "You exceeded your quota."
    assert "429 http_error" in page.inner_text("#failure-hint")
    assert page.inner_text("#failure-wait") in ("Try again in 2 s.", "Try again in 1 s.")
    assert page.locator("#failure-body").text_content() == json.dumps(json.loads(body), indent=2)
    page.wait_for_function("() => document.getElementById('failure-wait').textContent === ''")
    relay.upstream.script = in_pieces(["now"])
    page.click("#again")
    expect_end(page, "complete")
    assert page.is_hidden("#failure")


def test_an_answer_that_ends_inside_an_event_is_not_complete(page: Page, relay: Relay) -> None:
    ask(page, relay, stream(event(content="all but the"), b'data: {"choices": [{"delta"'), end="error")
    assert page.inner_text("#end") == "connection_lost"
    assert "all but the" in page.inner_text("#text")


MARKDOWN = """# A title

Some *words*, `code` &amp; a [link](https://example.com/ "title"), <b onclick="alert(1)">bold</b>.

| a | b |
|---|---|
| 1 | **2** |

- one
- [x] two

```js
const a = "<script>alert(1)</script>";
```

![picture](https://example.com/x.png) [bad](javascript:alert(1)) <script>alert(1)</script> <img src=x onerror=alert(1)>
"""


def test_markdown_is_rendered_on_demand_and_is_harmless(page: Page, relay: Relay) -> None:
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    ask(page, relay, in_pieces([MARKDOWN[at : at + 9] for at in range(0, len(MARKDOWN), 9)]))
    assert not any("marked" in url for url in requested)
    page.click("[data-answer=markdown]")
    rendered = page.locator("#rendered")
    page.wait_for_selector("#rendered table")
    assert rendered.locator("h3").inner_text() == "A title"
    assert rendered.locator("td strong").inner_text() == "2"
    assert rendered.locator("pre code").inner_text() == 'const a = "<script>alert(1)</script>";'
    assert "code & a link" in rendered.inner_text()
    assert [link.get_attribute("href") for link in rendered.locator("a").all()] == ["https://example.com/"]
    assert rendered.locator("script, img, b, [onclick], [onerror]").count() == 0
    assert page.is_hidden("#text")
    assert not any("example.com" in url for url in requested)
    # The text that came is one click away, and what is copied.
    page.click("[data-answer=text]")
    assert page.locator("#text").text_content() == MARKDOWN and rendered.is_hidden()
    page.click("#copy-answer")
    page.wait_for_function("() => document.getElementById('copied').textContent === 'Copied'")
    assert page.evaluate("() => navigator.clipboard.readText()") == MARKDOWN


def test_the_last_calls_can_be_compared(page: Page, relay: Relay) -> None:
    ask(page, relay, in_pieces(["a"]))
    relay.upstream.script = respond(b"no", status=500, framing="close")
    page.click("#send")
    expect_end(page, "error")
    page.click("#tab-calls")
    rows = [row.inner_text().split("\t") for row in page.locator("#calls tr").all()]
    assert [(row[0], row[1], row[5]) for row in rows] == [
        ("test · gpt-4o-mini", "http_error", "0"),
        ("test · gpt-4o-mini", "complete", "2"),
    ]


def test_a_right_to_left_answer_is_set_so(page: Page, relay: Relay) -> None:
    ask(page, relay, in_pieces(["مرحبا بالعالم\n", "left to right"], size=1))
    page.wait_for_function("() => document.getElementById('text').textContent.includes('left')")
    side = """() => {
        const lines = [...document.createTreeWalker(document.getElementById("text"), 4).nextNode() ? [0, 14] : []];
        const node = document.getElementById("text").querySelector("div").firstChild;
        const box = document.getElementById("text").getBoundingClientRect();
        return lines.map((at) => {
            const range = document.createRange();
            range.setStart(node, at); range.setEnd(node, at + 3);
            return range.getBoundingClientRect().left > box.left + box.width / 2;
        });
    }"""
    assert page.evaluate(side) == [True, False]


# The page itself


def test_the_title_says_the_state(page: Page, relay: Relay) -> None:
    visit(page, relay.service.url)
    assert page.title().startswith("flask-sse-relay")
    ask(page, relay, in_pieces(["a"]))
    assert page.title() == "complete – flask-sse-relay"


def test_the_page_leads_to_the_documentation_and_the_client(page: Page, relay: Relay) -> None:
    visit(page, relay.service.url)
    for link in page.locator("nav a:visible").all():
        target = link.evaluate("(link) => link.href")
        assert page.request.get(target).status == 200, target
    assert page.is_visible("nav #docs")


@pytest.mark.parametrize(("platform", "keys"), [("MacIntel", "⌘ ↵"), ("Linux x86_64", "Ctrl ↵")])
def test_the_keys_are_those_of_the_machine(page: Page, relay: Relay, platform: str, keys: str) -> None:
    page.add_init_script(f"Object.defineProperty(navigator, 'platform', {{ value: '{platform}' }})")
    visit(page, relay.service.url)
    assert page.inner_text("#keys") == keys


@pytest.mark.parametrize(("width", "columns"), [(690, 1), (720, 2), (1440, 3)])
def test_a_wider_window_has_more_columns(page: Page, relay: Relay, width: int, columns: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    visit(page, relay.service.url)
    lefts = page.evaluate(
        "() => [...document.querySelectorAll('.pane')].map((e) => Math.round(e.getBoundingClientRect().left))"
    )
    assert len(set(lefts)) == columns


@pytest.fixture(scope="module")
def axe(js_modules: Path) -> str:
    return (js_modules / "axe-core/axe.min.js").read_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("language", ["en-US", "zh-CN"])
def test_axe_finds_nothing(
    chromium: Browser, relay: Relay, axe: str, scheme: Literal["light", "dark"], language: str
) -> None:
    with opened(chromium, color_scheme=scheme, locale=language) as page:
        visit(page, relay.service.url)
        assert faults(page, axe) == []
        ask(page, relay, stream(event(reasoning_content="hm"), event(content="# a\n\n- b\n\n[c](https://d.e/)")))
        page.click("[data-answer=markdown]")
        page.wait_for_selector("#rendered h3")
        for tab in ("events", "raw", "head", "code", "calls"):
            page.click(f"#tab-{tab}")
            assert faults(page, axe) == [], tab
        page.fill("#body", "{ broken")
        relay.upstream.script = respond(
            b'{"error": {"message": "no"}}', fields=["Retry-After: 30"], status=429, framing="close"
        )
        page.click("#send")
        expect_end(page, "error")
        assert faults(page, axe) == []
