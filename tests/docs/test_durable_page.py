"""docs/durable.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sse.errors import REFUSALS

from ..support.document import HERE, PATIENCE, block, codes, page, run, run_python, table
from ..support.service import Service
from ..support.upstream import Upstream, respond

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PAGE = "docs/durable.md"


def test_durable_resume(shared_service: Service, tmp_path: Path) -> None:
    """The first 100 bytes of one connection and the rest of another one are one response."""
    text = block("durable_resume").replace(HERE, shared_service.url)
    # curl has to notice that its pipe is closed.
    printed = run(text.replace("set -e", "").replace("| head -c 100", "| head -c 100 || true"), cwd=tmp_path)
    for field in ("Location: /streams/", "Stream-Next-Offset: 0000000000000000", "Stream-TTL: 300"):
        assert field in printed
    first, _, rest = printed.partition("Location:")
    assert len(first.encode()) == 100
    assert first.startswith('data: {"id"')
    assert rest.endswith("data: [DONE]\n\n")


def test_durable_events(chromium: Browser, service: Callable[..., Service], upstream: Callable[..., Upstream]) -> None:
    source = upstream(respond(b"data: a\n\n", b"data: b\n\n"))
    gateway = service(SSE_UPSTREAMS={"test": source.url})
    html = block("durable_events").replace(HERE, gateway.url).replace("TARGET", source.url + "/").encode()
    site = upstream(respond(html, fields=["Content-Type: text/html"], framing="length"))
    opened = chromium.new_page()
    with opened.expect_console_message(lambda message: message.text == "closed", timeout=PATIENCE * 1000):
        with opened.expect_console_message(lambda message: message.text == "18 b", timeout=PATIENCE * 1000):
            with opened.expect_console_message(lambda message: message.text == "9 a", timeout=PATIENCE * 1000):
                opened.goto(site.url)
    opened.close()
    assert len(source.requests) == 1


def test_durable_openai(shared_service: Service) -> None:
    pytest.importorskip("openai")
    start = len(shared_service.log())
    printed = run_python(block("durable_openai").replace(HERE, shared_service.url)).splitlines()
    assert printed[0].startswith("chatcmpl-")
    assert len(printed[1]) > 20
    shared_service.wait_log("recording end=complete upstream=demo", start=start)
    assert shared_service.log()[start:].count("recording end=") == 1


def test_the_codes_of_the_states_are_those_of_the_refusals() -> None:
    known = {refusal.code: str(refusal.status) for refusal in REFUSALS}
    rows = [row[1] for row in table(page(PAGE), "at the client's position")]
    found = [(code, row) for row in rows for code in codes(row) if code in known]
    assert len(found) == 6
    assert all(known[code] in row for code, row in found)
