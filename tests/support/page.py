"""The page in Chromium: opened, watched, and waited for."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .upstream import EVENT_STREAM, LAST_CHUNK, Connection, chunk, head

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

WATCH_POLICY = """addEventListener("securitypolicyviolation", (event) =>
    console.error(`the policy forbids ${event.effectiveDirective} ${event.blockedURI} ${event.sourceFile}`));"""


#: What the browser says of responses that some tests want: refused, cut, or of another type.
WANTED = ("Failed to load resource:", "EventSource's response has a MIME type")


@contextmanager
def opened(chromium: Browser, **options: Any) -> Iterator[Page]:
    """Open a page of its own; what the browser complains about fails the test, refused and cut answers excepted.

    A violation of the Content-Security-Policy is such a complaint.
    """
    complaints: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.startswith(WANTED):
            complaints.append(message.text)

    settings = {"locale": "en-US", "viewport": {"width": 1440, "height": 900}, **options}
    context = chromium.new_context(permissions=["clipboard-read", "clipboard-write"], **settings)
    context.add_init_script(WATCH_POLICY)
    page = context.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", note)
    yield page
    context.close()
    assert not complaints


def cpu_times_of_tasks(trace: bytes) -> list[float]:
    """Return for each task of the page's main thread how many milliseconds of the processor it took.

    The browser's long tasks are of wall time, which other programs on the machine lengthen.

    :param trace: what `Browser.stop_tracing()` returns.
    """
    events = [entry for entry in json.loads(trace)["traceEvents"] if entry["ph"] == "X"]
    # The thread that runs the page's script is the one that fires its animation frames.
    thread = Counter(_thread(entry) for entry in events if entry["name"] == "FireAnimationFrame").most_common(1)[0][0]
    tasks = [entry for entry in events if entry["name"].endswith("RunTask") and _thread(entry) == thread]
    return [entry.get("tdur", 0) / 1000 for entry in tasks]


def _thread(entry: dict[str, Any]) -> tuple[int, int]:
    return entry["pid"], entry["tid"]


def visit(page: Page, url: str) -> None:
    """Open the page and wait until its form is filled."""
    page.goto(url)
    page.wait_for_selector("body[data-ready]")


def expect_end(page: Page, end: str) -> None:
    """Wait until the stream on the page has ended, or got, so far."""
    from playwright.sync_api import expect

    expect(page.locator("#end")).to_have_attribute("data-end", end, timeout=15_000)


def stream(*pieces: bytes, field: str = EVENT_STREAM, last: bytes = LAST_CHUNK) -> Callable[[Connection], None]:
    """Return a script that responses with these pieces, each in a chunk."""

    def respond(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, field, "Transfer-Encoding: chunked"))
        for piece in pieces:
            connection.send(chunk(piece))
        connection.send(last)

    return respond


def faults(page: Page, axe: str) -> list[str]:
    """Return what axe finds, each rule with the elements that break it."""
    page.evaluate(axe)
    found = page.evaluate("async () => (await axe.run()).violations")
    return [f"{rule['id']}: {[node['target'] for node in rule['nodes']]}" for rule in found]
