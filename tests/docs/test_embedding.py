"""docs/embedding.md, docs/own-streams.md and docs/migration.md."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from flask import session
from flask_login import UserMixin, login_user

from sse import SSE

from ..support.document import OLLAMA, PATIENCE, block, codes, page, site_of, table
from ..support.ending import eventually
from ..support.service import ROOT, Service, call
from ..support.upstream import Upstream, respond

CHAT = "/ai/upstream/ollama/v1/chat/completions"


def test_embed_login(upstream: Callable[..., Upstream]) -> None:
    app = site_of(block("embed_login").replace(OLLAMA, upstream(respond(b"data: hello\n\n")).url))
    app.secret_key = "signs the session cookie"

    @app.post("/login")
    def login() -> str:
        user = UserMixin()
        user.id = "ann"
        login_user(user)
        return ""

    client = app.test_client()
    assert client.post(CHAT).get_json()["code"] == "unauthenticated"
    client.post("/login")
    assert client.post(CHAT).data == b"data: hello\n\n"


def test_embed_relay(upstream: Callable[..., Upstream]) -> None:
    """The body is the site's: the client's own words are a part of it, and its other fields go nowhere."""
    ollama = upstream(respond(b"data: bonjour\n\n"))
    app = site_of(block("embed_relay").replace(OLLAMA, ollama.url))
    app.secret_key = "signs the session cookie"
    client = app.test_client()
    question = {"text": "good day", "model": "an-expensive-one"}
    assert client.post("/translate", json=question).status_code == 401
    with client.session_transaction() as store:
        store["user"] = "ann"
    assert client.post("/translate", json=question).data == b"data: bonjour\n\n"
    request = ollama.wait_request()
    body = json.loads(request.body)
    assert (request.target, body["model"]) == ("/v1/chat/completions", "llama3.2")
    assert body["messages"] == [{"role": "user", "content": "Translate into French: good day"}]
    assert client.post("/forward-sse", json={}).status_code == 404


def test_embed_factory(upstream: Callable[..., Upstream]) -> None:
    names: dict[str, Any] = {"__name__": "site"}
    exec(block("embed_factory"), names)
    ollama = upstream(respond(b"data: hello\n\n"))
    apps = [names["create_app"]({"SSE_UPSTREAMS": {"ollama": ollama.url}, "SECRET_KEY": "x"}) for _ in range(2)]
    for app in apps:
        client = app.test_client()
        assert client.post(CHAT).status_code == 401
        with client.session_transaction() as store:
            store["user"] = "ann"
        assert client.post(CHAT).data == b"data: hello\n\n"


def test_embed_streams_only() -> None:
    client = site_of(block("embed_streams_only")).test_client()
    assert client.get("/news").data == b'data: first\n\ndata: {"second": 2}\n\n'
    assert client.post("/forward-sse", json={}).status_code == 404


def test_embed_limiter() -> None:
    client = site_of(block("embed_limiter")).test_client()
    assert [client.get("/upstream/demo/v1/models").status_code for _ in range(3)][2] == 429


def test_the_arguments_are_those_of_the_constructor() -> None:
    parameters = inspect.signature(SSE.__init__).parameters
    for name, default, _ in table(page("docs/embedding.md"), "argument"):
        assert str(parameters[codes(name)[0]].default) == codes(default)[0]


def test_own_streams_resume() -> None:
    client = site_of(block("own_streams_resume")).test_client()
    assert client.get("/news", headers={"Last-Event-ID": "2"}).data == b"event: news\nid: 3\ndata: three\n\n"
    assert client.get("/news?lastEventId=2").data.count(b"\n\n") == 1


def test_own_streams_queue(tmp_path: Path) -> None:
    """What is published reaches each client, and a client that has left is forgotten at once."""
    more = "app.add_url_rule('/publish', 'publish', lambda: publish('now') or str(len(listeners)))\n"
    health = "app.add_url_rule('/healthz', 'healthz', lambda: 'ok')\n"
    (tmp_path / "app.py").write_text(block("own_streams_queue") + more + health)
    (tmp_path / "gunicorn.conf.py").write_text("worker_class = 'gevent'\n")
    with Service(root=tmp_path, env={"PYTHONPATH": str(ROOT)}) as service:

        def listeners() -> int:
            return int(httpx.get(f"{service.url}/publish", timeout=PATIENCE).text)

        with call(service, "GET", "/feed") as client:
            eventually(lambda: listeners() == 1, "the view has not begun to listen")
            client.read_until(b"data: now\n\n")
        eventually(lambda: listeners() == 0, "the client has left, and is still listened for")


def test_migration_before(upstream: Callable[..., Upstream]) -> None:
    """The view that will be replaced works as the page says, in fair weather."""
    ollama = upstream(respond(b"data: hello\n\n"))
    app = site_of(block("migration_before").replace(OLLAMA, ollama.url))
    assert app.test_client().post("/chat", json={"messages": []}).data == b"data: hello\n\n"


def test_migration_after(upstream: Callable[..., Upstream]) -> None:
    ollama = upstream(respond(b"data: hello\n\n"))
    app = site_of(block("migration_after").replace(OLLAMA, ollama.url))
    app.secret_key = "signs the session cookie"
    app.add_url_rule("/login", "login", lambda: session.update(user="ann") or "")
    client = app.test_client()
    assert client.post(CHAT, json={}).status_code == 401
    client.get("/login")
    assert client.post(CHAT, json={"messages": []}).data == b"data: hello\n\n"
    assert ollama.wait_request().target == "/v1/chat/completions"
