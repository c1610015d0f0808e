"""What we use of gunicorn beyond its documentation: how its gevent worker calls the app, and its response."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import Any

import gunicorn
from gunicorn.config import Setting
from gunicorn.glogging import Logger
from gunicorn.http import message, wsgi
from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.http.message import Message
from gunicorn.http.parser import Parser
from gunicorn.http.unreader import Unreader
from gunicorn.workers import base_async
from gunicorn.workers.base_async import AsyncWorker
from gunicorn.workers.ggevent import GeventWorker

#: What the app returns where the response has been sent: gunicorn goes on with the next request of the connection.
ALREADY_HANDLED: Any = getattr(base_async, "ALREADY_HANDLED", None)

#: What a read of a request body raises if that is malformed, or ends early.
BODY_ERRORS: tuple[type[Exception], ...] = (ParseException, NoMoreData)


class EndOfConnection(StopIteration):
    """Raised by the app to end the greenlet of the connection; gunicorn logs it at debug, and closes its socket."""


def response_of(start_response: Any) -> Any:
    """Return gunicorn's response, whose method the app is given as `start_response`."""
    return start_response.__self__


def replace_app(worker: Any, wrap: Callable[[Any], Any]) -> None:
    """Replace the app that a worker has loaded by what `wrap` makes of it."""
    worker.wsgi = wrap(worker.wsgi)


def keep_all_fields(cfg: Any) -> None:
    """Make the parser keep fields whose names have underscores, which it drops by default."""
    if cfg.header_map == "drop":
        cfg.set("header_map", "dangerous")


def keep_settings(cfg: Any) -> None:
    """Keep the values of all settings as attributes: a request reads 34, which gunicorn finds by name each time."""
    vars(cfg).update({name: setting.get() for name, setting in cfg.settings.items()})


def replace_body(req: Any, body: Any) -> None:
    """Make the app and the parser read another body of a request.

    :param body: its `failed` is true if the connection must not be read any more.
    """
    req.body = body


def client_of(environ: dict[str, Any]) -> Any:
    """Return the client's socket, None if environ has none."""
    return environ.get("gunicorn.socket")


def is_http_1(response: Any) -> bool:
    """Return whether a response is sent as HTTP/1."""
    return type(response) is wsgi.Response


def encode_head(response: Any) -> bytes:
    """Return the head that gunicorn would send."""
    fields = [f"{name}: {value}\r\n" for name, value in response.headers]
    return "".join([*response.default_headers(), *fields, "\r\n"]).encode("latin-1")


def close_behind(response: Any) -> None:
    """Close the connection behind a response."""
    response.force_close()


def has_read_ahead(response: Any) -> bool:
    """Return whether bytes of the next request of the connection have been read together with this one's."""
    unreader = response.req.unreader
    data = unreader.take_buffered()
    unreader.unread(data)
    return bool(data)


def forwarder_fields(req: Any) -> Collection[str]:
    """Return the names in upper case of the fields that a request's peer may set although they have underscores."""
    allowed: Collection[str] = req._peer_trusted_for_forwarded()[1]
    return allowed


def logs_access(log: Any) -> bool:
    """Return whether responses are logged; statsd's logger counts what others leave out."""
    return bool(log.access_log_enabled) or type(log).access is not Logger.access


def log_access(log: Any, response: Any, environ: dict[str, Any], sent: int, duration: timedelta) -> None:
    """Log a response that has been sent.

    :param sent: bytes of the body.
    """
    response.sent = sent
    log.access(response, response.req, environ, duration)


def unexpected() -> list[str]:
    """Return a sentence for each name that is not as this module, or the worker, expects it."""
    expected: list[tuple[Any, str, tuple[str, ...]]] = [
        (wsgi.Response, "start_response", ("status", "headers")),
        (wsgi.Response, "default_headers", ()),
        (wsgi.Response, "force_close", ()),
        (getattr(message, "HeaderPolicy", Message), "_peer_trusted_for_forwarded", ()),
        (Unreader, "take_buffered", ()),
        (Unreader, "unread", ("data",)),
        (Setting, "get", ()),
        (Logger, "access", ("resp", "req", "environ", "request_time")),
        (GeventWorker, "handle", ("listener", "client", "addr")),
        (GeventWorker, "handle_request", ("listener_name", "req", "sock", "addr")),
        (GeventWorker, "handle_error", ("req", "client", "addr", "exc")),
    ]
    found = [sentence for owner, name, arguments in expected for sentence in _differences(owner, name, arguments)]
    if getattr(GeventWorker, "server_class", ...) is not None:
        found.append("gunicorn's GeventWorker has no server_class that is None")
    if ALREADY_HANDLED is None:
        found.append("gunicorn.workers.base_async has no ALREADY_HANDLED")
    if not isinstance(getattr(Logger, "access_log_enabled", None), property):
        found.append("gunicorn's Logger has no property access_log_enabled")
    for owner, names in ((wsgi.Response, ("req", "sent", "headers")), (Message, ("headers", "body"))):
        source = inspect.getsource(owner)
        found += [f"gunicorn's {owner.__name__} has no {name}" for name in names if f"self.{name} =" not in source]
    texts: list[tuple[Any, str, str, str]] = [
        (Parser, "finish_body", '"failed"', "does not check whether a body has failed"),
        (AsyncWorker, "handle", "except StopIteration", "does not end the connection at a StopIteration"),
        (AsyncWorker, "handle_request", "self.wsgi(environ, resp.start_response)", "does not call worker.wsgi"),
        (wsgi, "default_environ", '"gunicorn.socket": sock', "does not give the app its client's socket"),
    ]
    for owner, name, text, difference in texts:
        # A method that is not there may be part of another.
        if text not in inspect.getsource(getattr(owner, name, owner)):
            found.append(f"gunicorn's {owner.__name__}.{name} {difference}")
    return [f"{sentence} (gunicorn {gunicorn.__version__})" for sentence in found]


def _differences(owner: Any, name: str, arguments: tuple[str, ...]) -> list[str]:
    function = getattr(owner, name, None)
    if not inspect.isfunction(function):
        return [f"gunicorn's {owner.__name__} has no method {name}"]
    given = tuple(inspect.signature(function).parameters)[1 : len(arguments) + 1]
    if given != arguments:
        return [f"gunicorn's {owner.__name__}.{name} takes {', '.join(given)}, not {', '.join(arguments)}"]
    return []
