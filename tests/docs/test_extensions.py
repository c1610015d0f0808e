"""docs/extensions.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from ..support.document import block, site_of
from ..support.service import ROOT, Service, call

CHAT = "/ai/upstream/demo/v1/chat/completions"
QUESTION = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}


def statuses(client: FlaskClient, count: int) -> list[int]:
    return [client.post(CHAT, json=QUESTION).status_code for _ in range(count)]


@pytest.mark.parametrize(("is_exempt", "status"), [(True, 200), (False, 400)])
def test_extension_csrf(is_exempt: bool, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the exemption a call is refused, so the line is needed."""
    monkeypatch.setenv("FLASK_SECRET_KEY", "signs the session cookie")
    text = block("extension_csrf") if is_exempt else without_last_line(block("extension_csrf"))
    assert statuses(site_of(text).test_client(), 1) == [status]


@pytest.mark.parametrize(("is_exempt", "status"), [(True, 200), (False, 429)])
def test_extension_limiter(is_exempt: bool, status: int) -> None:
    text = block("extension_limiter") if is_exempt else without_last_line(block("extension_limiter"))
    assert statuses(site_of(text).test_client(), 2) == [200, status]


def without_last_line(text: str) -> str:
    *lines, last = text.splitlines()
    assert "exempt" in last
    return "\n".join(lines)


HEALTH = "\n@app.get('/healthz')\ndef healthz():\n    return 'ok'\n"


def site(directory: Path, app: str, settings: str = "") -> dict[str, Any]:
    """Write a site with gunicorn settings, and return options of a `Service` that serves it."""
    (directory / "app.py").write_text(app)
    (directory / "gunicorn.conf.py").write_text("from sse.gunicorn.settings import *\n" + settings)
    return {"root": directory, "env": {"PYTHONPATH": str(ROOT)}}


def test_extension_dispatcher(tmp_path: Path) -> None:
    """Below the prefix the stream is there, and it ends politely when the service stops."""
    text = (
        block("extension_dispatcher")
        .replace("NotFound()", "app.wsgi_app")
        .replace("app.wsgi_app = ", HEALTH + "\napp.wsgi_app = ")
    )
    with Service(**site(tmp_path, text)) as service, call(service, "GET", "/site/sse") as client:
        assert client.read_head().status == 200
        client.read_until(b"data: Message 0\n\n")


@pytest.mark.parametrize("has_hook", [True, False])
def test_extension_dispatcher_hook(tmp_path: Path, has_hook: bool) -> None:
    """Without the hook the service works as well, and says what is missing."""
    text = block("extension_dispatcher").replace("app.wsgi_app = ", HEALTH + "\nflask_app = app\napp = ")
    text = text.replace("NotFound()", "flask_app")
    options = site(tmp_path, text, block("extension_dispatcher_hook") if has_hook else "")
    with Service("--graceful-timeout", "5", **options) as service, call(service, "GET", "/site/sse") as client:
        client.read_until(b"data: Message 0\n\n")
        service.terminate()
        body = client.read_body()
        assert (b'"code": "draining"' in body) is has_hook
        service.wait_exit(20)
        assert ("end_with_worker" in service.log()) is not has_hook
