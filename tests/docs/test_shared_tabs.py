"""Tabs of one browser that share a stream: one reads for all, and another one goes on when it closes."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from ..support.document import block
from ..support.ending import eventually
from ..support.service import ROOT, Process, RawClient, environment

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Route

COMMAND = ["-m", "gunicorn", "tests.apps.channels:app", "-b", "127.0.0.1:0", "-c", str(ROOT / "gunicorn.conf.py")]

#: Milliseconds that a page may take on a busy machine.
PATIENCE = 30_000

OPEN = """async () => {
    const { openSSE } = await import("/sse-static/sse.js");
    Object.assign(window, { events: [], states: [] });
    const state = (name) => (error) => states.push(error ? `${name} ${error.code} ${error.status}` : name);
    window.connection = openSSE("/read?c=a", {
        shared: true,
        onEvent: ({ data }) => events.push(data),
        onOpen: state("open"),
        onError: state("error"),
    });
}"""


class Site(Process):
    """The site of `tests.apps.channels` in one process."""

    def __init__(self, **settings: object) -> None:
        super().__init__([sys.executable, *COMMAND], env=environment(settings, {}))
        self.port = int(self.wait_log(r"Listening at: http://127\.0\.0\.1:(\d+)", 20)[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: bytes | None = None) -> str:
        with RawClient("127.0.0.1", self.port) as client:
            client.request(method, path, body=body)
            assert client.read_head().status == 200
            return client.read_body().decode()

    def publish(self, data: str) -> str:
        return self.ask("POST", "/publish/a", data.encode())

    def readers(self) -> int:
        return int(json.loads(self.ask("GET", "/info/a"))["readers"])


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as site:
        yield site


@pytest.fixture
def context(chromium: Browser, site: Site) -> Iterator[BrowserContext]:
    """A browser's profile, which is closed before the site, so that the site has no stream to end."""
    context = chromium.new_context()
    yield context
    context.close()


def open_tabs(context: BrowserContext, site: Site, count: int) -> list[Page]:
    """Open tabs, the first of which reads, and wait until the stream is open for all."""
    tabs = [context.new_page() for _ in range(count)]
    for tab in tabs:
        tab.goto(f"{site.url}/healthz")
        tab.evaluate(OPEN)
        wait_for(tab, "states.includes('open')")
    return tabs


def wait_for(tab: Page, condition: str) -> None:
    tab.wait_for_function(f"() => {condition}", timeout=PATIENCE)


def events(tab: Page, last: str) -> Any:
    """Return what a tab has received when the last event has come."""
    wait_for(tab, f"events.includes({last!r})")
    return tab.evaluate("() => events")


def test_four_tabs_have_one_reader_and_lose_nothing(context: BrowserContext, site: Site) -> None:
    """The reading tab closes while events are published, and again: the tabs that are left get each event once."""
    tabs = open_tabs(context, site, 4)
    assert site.readers() == 1
    numbers = [str(number) for number in range(120)]
    publisher = threading.Thread(target=lambda: list(map(site.publish, numbers)))
    publisher.start()
    for number in ("20", "60"):
        events(tabs[-1], number)
        tabs.pop(0).close()
    publisher.join()
    for tab in tabs:
        assert events(tab, numbers[-1]) == numbers
    eventually(lambda: site.readers() == 1, "one reader")


@pytest.mark.parametrize("how", ["close", "abort"])
def test_what_comes_while_no_tab_reads_is_not_lost(context: BrowserContext, site: Site, how: str) -> None:
    """Also if the tab that read had no event yet, only the id with which the stream begins."""
    tabs = open_tabs(context, site, 3)

    def hold(route: Route) -> None:
        site.publish("meanwhile")
        route.continue_()

    for tab in tabs:
        tab.route("**/read*", hold)
    if how == "abort":
        tabs[0].evaluate("() => connection.controller.abort()")
    else:
        tabs[0].close()
    for tab in tabs[1:]:
        assert events(tab, "meanwhile") == ["meanwhile"]
    site.publish("last")
    for tab in tabs[1:]:
        assert events(tab, "last") == ["meanwhile", "last"]


def test_all_tabs_get_the_end_and_its_reason(context: BrowserContext, site: Site) -> None:
    tabs = open_tabs(context, site, 2)
    context.route("**/read*", lambda route: route.fulfill(status=403, body="no"))
    site.ask("POST", "/close/a", b"")
    for tab in tabs:
        wait_for(tab, "states.includes('error http_error 403')")


def test_a_handler_that_throws_ends_no_stream(context: BrowserContext, site: Site) -> None:
    tabs = open_tabs(context, site, 2)
    tabs[0].evaluate("() => (events.push = () => { throw new Error('of the page'); })")
    with tabs[0].expect_event("pageerror", timeout=PATIENCE):
        site.publish("1")
    site.publish("2")
    assert events(tabs[1], "2") == ["1", "2"]


@pytest.mark.parametrize("what", ["navigator.locks", "window.BroadcastChannel"])
def test_without_the_browsers_help_each_tab_reads(context: BrowserContext, site: Site, what: str) -> None:
    holder, _, name = what.partition(".")
    context.add_init_script(f"Object.defineProperty({holder}, '{name}', {{ value: undefined }})")
    tabs = open_tabs(context, site, 2)
    assert site.readers() == 2
    site.publish("1")
    for tab in tabs:
        assert events(tab, "1") == ["1"]


def test_browser_shared(context: BrowserContext, site: Site) -> None:
    """The block of docs/browser.md."""
    html = block("browser_shared").replace("/orders/events", "/read?c=a")
    context.route("**/page", lambda route: route.fulfill(content_type="text/html", body=html))
    page = context.new_page()
    page.goto(f"{site.url}/page")
    eventually(lambda: site.readers() == 1, "one reader")
    with page.expect_console_message(lambda message: message.text.endswith(" message hello"), timeout=PATIENCE):
        site.publish("hello")
