"""docs/browser.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..support.document import HERE, PATIENCE, block
from ..support.service import Service
from ..support.upstream import Upstream, respond

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@contextmanager
def opened(chromium: Browser, service: Service, upstream: Callable[..., Upstream], name: str) -> Iterator[Page]:
    """Open a block as a page of another origin; the caller waits for what it logs."""
    html = block(name).replace(HERE, service.url).encode()
    site = upstream(respond(html, fields=["Content-Type: text/html"], framing="length"))
    page = chromium.new_page()
    with page.expect_console_message(lambda message: message.text == "3 Message 2", timeout=PATIENCE * 1000):
        page.goto(site.url)
    yield page
    page.close()


def test_event_source(chromium: Browser, shared_service: Service, upstream: Callable[..., Upstream]) -> None:
    with opened(chromium, shared_service, upstream, "event_source") as page:
        page.wait_for_event("console", lambda message: message.text == "5 Message 4")


def test_browser_abort(chromium: Browser, shared_service: Service, upstream: Callable[..., Upstream]) -> None:
    start = len(shared_service.log())
    with opened(chromium, shared_service, upstream, "browser_abort"):
        shared_service.wait_log("stream end=client_gone .*upstream=own:sse", start=start)
