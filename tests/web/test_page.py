"""`sse.js` for those who embed the relay, and what the page's data says to whom."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask, url_for
from flask.testing import FlaskClient

from sse import SSE

from ..support.service import ROOT

UPSTREAMS = {"rag": "http://127.0.0.1:9/", "a-secret-project": "http://127.0.0.1:9/"}
NAMES = sorted(UPSTREAMS)
PASSCODE = "a long random text"


def site(config: dict[str, Any] | None = None, **parts: Any) -> Flask:
    app = Flask(__name__)
    app.config.update({"SSE_UPSTREAMS": UPSTREAMS, **(config or {})})
    SSE(app, url_prefix="/ai", **parts)
    return app


def status(client: FlaskClient, path: str) -> int:
    with client.get(path) as response:
        return response.status_code


# sse.js


@pytest.mark.parametrize(
    ("name", "content_type"),
    [
        ("sse.js", "text/javascript; charset=utf-8"),
        ("sse.d.ts", "text/plain; charset=utf-8"),
        ("shared.js", "text/javascript; charset=utf-8"),
    ],
)
@pytest.mark.parametrize("parts", [{}, {"relay": False}, {"playground": True}, {"playground": True, "client": False}])
def test_the_browser_client_is_served(parts: dict[str, Any], name: str, content_type: str) -> None:
    with site(**parts).test_client().get(f"/ai/sse-static/{name}") as response:
        assert (response.status_code, response.content_type) == (200, content_type)
        assert response.data == (ROOT / "sse/static" / name).read_bytes()
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_flask_knows_its_url() -> None:
    app = site()
    with app.test_request_context():
        assert url_for("sse_static.file", name="sse.js") == "/ai/sse-static/sse.js"


def test_the_pages_files_are_served_with_the_page_only() -> None:
    names = sorted(path.name for path in (ROOT / "sse/static").iterdir())

    def served(**parts: Any) -> set[str]:
        client = site(**parts).test_client()
        return {name for name in names if status(client, f"/ai/sse-static/{name}") == 200}

    assert served() == {"sse.js", "sse.d.ts", "shared.js"}
    assert served(playground=True) == set(names)
    assert served(client=False) == set()


@pytest.mark.parametrize("name", ["../settings.py", "..%2Fsettings.py", "nothing.js", "%00"])
def test_nothing_else_is_served(name: str) -> None:
    assert status(site(playground=True).test_client(), f"/ai/sse-static/{name}") == 404


# What the page gets


def upstreams(app: Flask, **fields: str) -> list[str]:
    response = app.test_client().get("/ai/playground.json", headers=fields)
    assert response.status_code == 200
    return sorted(response.get_json()["upstreams"])


def test_an_open_gateway_names_its_upstreams() -> None:
    assert upstreams(site(playground=True)) == NAMES


def test_names_are_for_those_who_have_the_passcode() -> None:
    app = site({"SSE_PASSCODES": {"page": PASSCODE}}, playground=True)
    assert upstreams(app) == []
    assert upstreams(app, **{"X-Passcode": "wrong"}) == []
    assert upstreams(app, **{"X-Passcode": PASSCODE}) == NAMES
    assert upstreams(app, Authorization=f"Bearer {PASSCODE}") == NAMES


def test_names_are_for_those_whom_the_site_knows() -> None:
    app = site(playground=True, authorize=lambda request: request.headers.get("X-User"))
    assert upstreams(app) == []
    assert upstreams(app, **{"X-User": "ann"}) == NAMES


def test_a_passcode_cannot_be_guessed_by_it() -> None:
    config = {"SSE_PASSCODES": {"page": PASSCODE}, "SSE_THROTTLE": "3 per hour"}
    app = site(config, playground=True)
    for _ in range(4):
        assert upstreams(app, **{"X-Passcode": "wrong"}) == []
    assert upstreams(app, **{"X-Passcode": PASSCODE}) == []


# The demonstration stream


@pytest.mark.parametrize("path", ["/sse", "/hackathon/sse"])
def test_the_demonstration_stream_is_beside_forward_sse(path: str) -> None:
    app = site(demonstration=True)
    with app.test_client().get(f"/ai{path}", headers={"Origin": "http://other.test"}) as response:
        assert (response.status_code, response.mimetype) == (200, "text/event-stream")
        assert response.headers["Access-Control-Allow-Origin"] == "*"
