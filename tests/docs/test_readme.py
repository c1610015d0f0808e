"""README.md and README.zh-CN.md, which have the same blocks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..support.document import HERE, OLLAMA, PATIENCE, block, clean_environment, playground, run, site_of, started
from ..support.service import ROOT, Service
from ..support.upstream import Upstream, respond

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def test_command_one() -> None:
    assert block("command one") == "pip install -r requirements.txt && gunicorn app:app\n"
    command = [sys.executable, "-m", "gunicorn", "--print-config", "app:app"]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert re.search(r"^bind\s+= \['127\.0\.0\.1:8000'\]$", done.stdout, re.MULTILINE), done.stdout + done.stderr


def test_command_two() -> None:
    assert block("command two") == "pip install -r tests/requirements.txt && pytest\n"
    assert "<!-- command two -->" in (ROOT / ".ci/run").read_text(), "CI takes it from the README"


def test_demo(shared_service: Service) -> None:
    text = run(block("demo").replace(HERE, shared_service.url))
    assert text.endswith("data: [DONE]\n\n")
    assert json.loads(text.split("\n\n")[0].removeprefix("data: "))["object"] == "chat.completion.chunk"


def test_service() -> None:
    with started(block("service")) as url:
        shown = playground(url)
    assert (shown["upstreams"], shown["open"]) == (["deepseek"], False)


def test_embed(upstream: Callable[..., Upstream]) -> None:
    """A name that the client only claims is worth nothing: it takes a session that the site has signed."""
    ollama = upstream(respond(b"data: hello\n\n"))
    app = site_of(block("embed").replace(OLLAMA, ollama.url))
    app.secret_key = "signs the session cookie"
    client, path = app.test_client(), "/ai/upstream/ollama/api/chat"
    for claim in ({}, {"X-User": "ann"}, {"Authorization": "Bearer ann"}, {"Cookie": "session=ann; user=ann"}):
        assert client.post(path, headers=claim).get_json()["code"] == "unauthenticated"
    with client.session_transaction() as session:
        session["user"] = "ann"
    assert client.post(path).data == b"data: hello\n\n"
    assert len(block("embed").splitlines()) <= 8


def test_own_streams() -> None:
    response = site_of(block("own_streams")).test_client().get("/count", headers={"Last-Event-ID": "7"})
    assert response.mimetype == "text/event-stream"
    assert response.data == b"".join(b"id: %d\ndata: event %d\n\n" % (n, n) for n in (8, 9, 10))


def test_browser(chromium: Browser, shared_service: Service, upstream: Callable[..., Upstream]) -> None:
    html = block("browser").replace(HERE, shared_service.url).encode()
    # Really served, because Chromium does not let a made-up page call a local address.
    site = upstream(respond(html, fields=["Content-Type: text/html"], framing="length"))
    page = chromium.new_page()
    with page.expect_console_message(lambda message: message.text == "complete", timeout=PATIENCE * 1000):
        page.goto(site.url)
    page.close()
