"""docs/channels.md."""

from __future__ import annotations

import re
import sys
import types
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from sse.settings import Settings
from sse.testing import read_events

from ..support.document import block, codes, page, run, site_of, table
from ..support.program import RedisServer
from ..support.service import ROOT, Service

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def test_channels_orders() -> None:
    client = site_of(block("channels_orders")).test_client()
    assert client.get("/orders/events").status_code == 401
    with client.session_transaction() as store:
        store["user"] = "ann"
    response = client.get("/orders/events")
    assert client.post("/orders", json={"id": 7}).status_code == 201
    (event,) = read_events(response, limit=1)
    assert (event.event, event.data) == ("created", '{"id": 7}')


#: A page of the site, whose visitor is logged in.
INDEX = """
@app.get("/")
def index():
    session["user"] = "ann"
    return "<p></p><script>const show = ({id}) => document.querySelector('p').append(id);" + %r + "</script>"


app.add_url_rule("/healthz", "healthz", lambda: "ok")
"""


def test_channels_browser(chromium: Browser, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(block("channels_orders") + INDEX % block("channels_browser"))
    (tmp_path / "gunicorn.conf.py").write_text("worker_class = 'gevent'\n")
    with Service(root=tmp_path, env={"PYTHONPATH": str(ROOT)}) as service:
        page = chromium.new_page()
        page.goto(service.url)
        page.wait_for_function("events.readyState === 1")
        assert httpx.post(f"{service.url}/orders", json={"id": 7}).status_code == 201
        page.wait_for_function("document.querySelector('p').textContent === '7'")
        page.close()


def test_channels_command(redis_server: RedisServer, tmp_path: Path) -> None:
    extra = {"FLASK_APP": "app", "FLASK_SSE_STORAGE_URI": redis_server.url, "PYTHONPATH": str(ROOT)}
    made = "app = Flask(__name__)\n"
    text = block("channels_orders").replace(made, f"{made}app.config.from_prefixed_env()\n")
    (tmp_path / "app.py").write_text(text)
    assert re.fullmatch(r"[0-9a-f]{8}-1\n", run(block("channels_command"), cwd=tmp_path, **extra))


def test_channels_endpoint() -> None:
    client = site_of(block("channels_endpoint")).test_client()
    assert client.get("/channels?channel=secret").get_json()["code"] == "channel_not_allowed"
    response = client.get("/channels?channel=public.a")
    assert response.status_code == 200
    response.close()


def test_channels_flask_sse() -> None:
    app = site_of(block("channels_flask_sse"))
    response = app.test_client().get("/stream")
    assert app.test_client().get("/hello").data == b"Message sent!"
    (event,) = read_events(response, limit=1)
    assert (event.event, event.data) == ("greeting", '{"message": "Hello!"}')


def test_channels_testing() -> None:
    module = types.ModuleType("site_with_tests")
    sys.modules[module.__name__] = module
    exec(block("channels_testing"), module.__dict__)
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()


def test_the_table_of_bounds_says_what_the_settings_are() -> None:
    defaults = {f"SSE_{field.name.upper()}": field.default for field in fields(Settings)}
    words = {"1 MiB": 1024 * 1024, "64 KiB": 64 * 1024, "300 s": 300}
    rows = table(page("docs/channels.md"), "what")
    assert len(rows) == 6
    for _, much, setting in rows:
        assert words.get(much, much.replace(",", "")) in (defaults[codes(setting)[0]], str(defaults[codes(setting)[0]]))
