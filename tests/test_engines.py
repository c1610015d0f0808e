"""Firefox and WebKit: how ends are reported where engines differ, and the parser beside their own EventSource."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .support.browser import run_in
from .support.ending import error_event
from .support.relay import Relay
from .support.service import ROOT
from .support.upstream import EVENT_STREAM, LAST_CHUNK, Connection, chunk, head

#: The browsers of tests/support/browser.py, beside Chromium, which test_browser.py drives.
BROWSERS = ["firefox", "webkit"]

FORMAT: list[dict[str, Any]] = json.loads((ROOT / "tests/js/format.json").read_text())

#: What the upstream sends, and whether it ends its body; and what `sse.js` makes of it behind the gateway.
ENDS: dict[str, tuple[bytes, bytes, list[str]]] = {
    "complete": (b"data: a\n\n", LAST_CHUNK, ["a", "onDone"]),
    "cut between two events": (
        b"data: a\n\n",
        b"",
        [
            "a",
            error_event("upstream_truncated").decode().partition("data: ")[2].strip(),
            "onError upstream_truncated",
        ],
    ),
    "cut inside an event": (b"data: a\n\ndata: b", b"", ["a", "onError connection_lost"]),
    "ended inside an event": (b"data: a\n\ndata: b", LAST_CHUNK, ["a", "onError connection_lost"]),
    "ended inside a line": (b"data: a\n\nda", LAST_CHUNK, ["a", "onError connection_lost"]),
}

READ = """
import { createParser, fetchSSE } from "/sse.js";
const gateway = %s;
const read = (path, init = {}) => new Promise((done) => {
    const calls = [];
    const end = (name) => (error) => done([...calls, error ? `${name} ${error.code}` : name]);
    const onEvent = ({ data }) => calls.push(data);
    fetchSSE(gateway + path, init, { onEvent, onDone: end("onDone"), onError: end("onError") });
});
"""


def sse_js() -> tuple[str, bytes]:
    return "text/javascript", (ROOT / "sse/static/sse.js").read_bytes()


def respond_by_path(connection: Connection) -> None:
    """Answer as the path says: by the number of an end, with what the request said, or not at all."""
    request = connection.read_request()
    name = request.target.strip("/")
    if name == "mute":
        connection.wait_closed()
        return
    connection.send(head(200, EVENT_STREAM, "Transfer-Encoding: chunked"))
    if name == "silent":
        connection.send(chunk(b"data: a\n\n"))
        connection.wait_closed()
    elif name == "id":
        value = request.field("Last-Event-ID") or ""
        connection.send(chunk(f"retry: 1\nid: 流\ndata: {value.encode('latin-1').hex()}\n\n".encode()) + LAST_CHUNK)
    else:
        body, last, _ = list(ENDS.values())[int(name)]
        connection.send(chunk(body))
        connection.send(last)


@pytest.mark.parametrize("browser", BROWSERS)
def test_no_engine_takes_a_truncation_for_an_end(browser: str, relay: Relay, tmp_path: Path) -> None:
    """WebKitGTK ends a body that broke off as if it were complete."""
    relay.upstream.script = respond_by_path
    script = READ % json.dumps(f"{relay.service.url}/upstream/test/")
    script += f"""
export default async () => {{
    const ends = [];
    for (let index = 0; index < {len(ENDS)}; index++) ends.push(await read(String(index)));
    return {{
        ends,
        mute: await read("mute", {{ connectTimeout: 500 }}),
        silent: await read("silent", {{ idleTimeout: 500, connectTimeout: 10000 }}),
    }};
}};"""
    found = run_in(browser, tmp_path, script, {"/sse.js": sse_js()})
    assert dict(zip(ENDS, found["ends"], strict=True)) == {name: want for name, (_, _, want) in ENDS.items()}
    assert found["mute"] == ["onError connect_timeout"]
    assert found["silent"] == ["a", "onError read_timeout"]


@pytest.mark.parametrize(
    "browser",
    [
        "firefox",
        # It takes the bytes of a header field for letters of Latin-1, and sends those as UTF-8.
        pytest.param("webkit", marks=pytest.mark.xfail(strict=True, reason="a fault of WebKitGTK 2.50's fetch")),
    ],
)
def test_an_id_of_other_letters_comes_back(browser: str, relay: Relay, tmp_path: Path) -> None:
    relay.upstream.script = respond_by_path
    script = READ % json.dumps(f"{relay.service.url}/upstream/test/")
    script += """
export default () => new Promise((done) => {
    const sent = [];
    const { controller } = fetchSSE(gateway + "id", { reconnect: true }, {
        onEvent: ({ data }) => sent.push(data) === 2 && done(sent),
    });
});"""
    assert run_in(browser, tmp_path, script, {"/sse.js": sse_js()}) == ["", "流".encode().hex()]


#: Where an engine's EventSource is not as the standard says, and the parser is.
FAULTS = {
    # Firefox forgets an ID that no data follows, and ends a stream at U+0000 in one.
    "firefox": {"format-field-id-3", "format-field-id-null", "blank lines alone dispatch nothing"},
    "webkit": set[str](),
}


@pytest.mark.parametrize("browser", BROWSERS)
def test_the_parser_reads_as_the_engine_does(browser: str, tmp_path: Path) -> None:
    """The oracle is the engine's own EventSource; our parser gets each stream whole and in single characters."""
    cases = [case for case in FORMAT if "contentType" not in case]
    script = f"""
import {{ createParser }} from "/sse.js";
const cases = {json.dumps(cases)};
const plain = ({{ type, data, lastEventId }}) => ({{ type, data, lastEventId }});
const parse = (pieces) => {{
    const events = [];
    const parser = createParser({{ onEvent: (event) => events.push(event) }});
    for (const piece of pieces) parser.feed(piece);
    return events;
}};
const native = (index, types) => new Promise((resolve) => {{
    const events = [], source = new EventSource(`/case/${{index}}`);
    const end = () => (source.close(), resolve(events));
    const receive = (event) => event instanceof MessageEvent ? events.push(plain(event)) : end();
    for (const type of new Set(["message", "error", ...types])) source.addEventListener(type, receive);
}});
export default async () => {{
    const found = [];
    for (const [index, {{ stream, events }}] of cases.entries()) {{
        found.push([await native(index, events.map(({{ type }}) => type)), parse([stream]), parse(stream.split(""))]);
    }}
    return found;
}};"""
    streams = {f"/case/{n}": ("text/event-stream", case["stream"].encode()) for n, case in enumerate(cases)}
    found = run_in(browser, tmp_path, script, {"/sse.js": sse_js(), **streams})
    read = {case["name"]: read for case, read in zip(cases, found, strict=True)}
    want = {case["name"]: case["events"] for case in cases}
    assert {name: parsed for name, (_, *parsed) in read.items() if parsed != [want[name]] * 2} == {}
    assert {name for name, (native, *_) in read.items() if native != want[name]} == FAULTS[browser]
