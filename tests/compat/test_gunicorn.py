"""What is used of gunicorn without its promise is as sse/compat/gunicorn.py expects it."""

from __future__ import annotations

from typing import Any

import gunicorn
import pytest
from gunicorn.glogging import Logger
from gunicorn.http import wsgi
from gunicorn.http.parser import Parser
from gunicorn.http.unreader import Unreader
from gunicorn.workers.base_async import AsyncWorker
from gunicorn.workers.ggevent import GeventWorker

from sse.compat import gunicorn as compat

pytestmark = pytest.mark.skipif(
    gunicorn.version_info < (27,), reason="the worker needs gunicorn 27; with an older one gunicorn's own serves"
)

REMEDY = "change sse/compat/gunicorn.py to what gunicorn does now, and run tests/gunicorn; or cap gunicorn's version"


def test_gunicorn_is_as_expected() -> None:
    assert compat.unexpected() == [], REMEDY


def other(self: Any, given: Any) -> None:
    """Stand for a method that takes something else."""


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        pytest.param(wsgi.Response, "default_headers", None, id="no method"),
        pytest.param(Unreader, "unread", other, id="another argument"),
        pytest.param(GeventWorker, "handle", other, id="other arguments"),
        pytest.param(GeventWorker, "server_class", object, id="server_class"),
        pytest.param(Logger, "access_log_enabled", True, id="no property"),
        pytest.param(compat, "ALREADY_HANDLED", None, id="already handled"),
        pytest.param(Parser, "finish_body", other, id="failed body"),
        pytest.param(AsyncWorker, "handle", other, id="end of a connection"),
        pytest.param(AsyncWorker, "handle_request", other, id="call of the app"),
        pytest.param(wsgi, "default_environ", other, id="client's socket"),
    ],
)
def test_what_differs_is_named(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, value: Any) -> None:
    monkeypatch.setattr(owner, name, value)
    (sentence,) = compat.unexpected()
    assert name in sentence
    assert "gunicorn 2" in sentence
