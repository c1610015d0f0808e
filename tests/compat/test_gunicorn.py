"""What is used of gunicorn without its promise is as sse/compat/gunicorn.py expects it."""

from __future__ import annotations

from typing import Any

import gunicorn
import pytest
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.http import wsgi
from gunicorn.http.message import Message
from gunicorn.http.unreader import Unreader
from gunicorn.workers.base import Worker
from gunicorn.workers.base_async import AsyncWorker
from gunicorn.workers.ggevent import GeventWorker

from sse.compat import gunicorn as compat

pytestmark = pytest.mark.skipif(
    gunicorn.version_info < compat.OLDEST, reason="with an older gunicorn, its own gevent worker serves"
)

REMEDY = "change sse/compat/gunicorn.py to what gunicorn does now, and run tests/gunicorn; or cap gunicorn's version"


def test_gunicorn_is_as_expected() -> None:
    assert compat.unexpected() == [], REMEDY


def other(self: Any, given: Any) -> None:
    """Stand for a method that takes something else, and does nothing."""


@pytest.mark.parametrize(
    ("owner", "name", "value", "said"),
    [
        pytest.param(wsgi.Response, "start_response", None, "start_response", id="start_response.__self__"),
        pytest.param(wsgi.Response, "default_headers", None, "default_headers", id="Response.default_headers"),
        pytest.param(wsgi.Response, "force_close", None, "force_close", id="Response.force_close"),
        pytest.param(wsgi.Response, "__init__", other, "sent|headers", id="Response.sent"),
        pytest.param(wsgi.Response, "__init__", other, "headers|sent", id="Response.headers"),
        pytest.param(Message, "__init__", other, "headers|unreader", id="Request.headers"),
        pytest.param(Message, "__init__", other, "unreader|headers", id="Request.unreader"),
        pytest.param(Unreader, "__init__", other, "buf", id="Unreader.buf"),
        pytest.param(Logger, "access", other, "access", id="Logger.access"),
        pytest.param(GeventWorker, "handle", other, "handle takes", id="GeventWorker.handle"),
        pytest.param(GeventWorker, "handle_request", other, "handle_request", id="GeventWorker.handle_request"),
        pytest.param(GeventWorker, "handle_error", other, "handle_error", id="GeventWorker.handle_error"),
        pytest.param(GeventWorker, "server_class", object, "server_class", id="GeventWorker.server_class"),
        pytest.param(GeventWorker, "run", other, "call server_class", id="GeventWorker"),
        pytest.param(AsyncWorker, "handle_request", other, "worker.wsgi", id="GeventWorker.wsgi"),
        pytest.param(AsyncWorker, "handle", other, "StopIteration", id="StopIteration"),
        pytest.param(compat, "ALREADY_HANDLED", None, "ALREADY_HANDLED", id="ALREADY_HANDLED"),
        pytest.param(wsgi, "default_environ", other, "client's socket", id="gunicorn.socket"),
        pytest.param(Worker, "__init__", other, "alive|cfg", id="Worker.alive"),
        pytest.param(Worker, "__init__", other, "cfg|alive", id="Worker.cfg"),
        pytest.param(Config, "__init__", other, "env_orig", id="Config.env_orig"),
    ],
)
def test_what_differs_is_named(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, value: Any, said: str, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(owner, name, value)
    sentences = compat.unexpected()
    assert all(any(word in sentence for sentence in sentences) for word in said.split("|")), sentences
    assert len(sentences) <= len(said.split("|")), sentences
    assert "gunicorn 2" in sentences[0]


def test_every_name_is_removed_once(request: pytest.FixtureRequest) -> None:
    """A merge once lost the cases of three names."""
    [marker] = [each for each in test_what_differs_is_named.pytestmark if each.name == "parametrize"]
    # An exception that is not there fails at the import.
    assert {case.id for case in marker.args[1]} | {"AppImportError"} == compat.NAMES.keys() | {"gunicorn.socket"}


def test_an_old_gunicorn_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gunicorn, "version_info", (26, 9, 9))
    [sentence] = compat.unexpected()
    assert "older than 27" in sentence
