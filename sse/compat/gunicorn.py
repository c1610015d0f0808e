"""What we use of gunicorn beyond its documentation: how its gevent worker calls the app, and its response."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from typing import Any

import gunicorn
from gunicorn.config import Config
from gunicorn.errors import AppImportError
from gunicorn.glogging import Logger
from gunicorn.http import wsgi as http_wsgi
from gunicorn.http.message import Message
from gunicorn.http.unreader import Unreader
from gunicorn.workers import base_async
from gunicorn.workers.base import Worker
from gunicorn.workers.base_async import AsyncWorker
from gunicorn.workers.ggevent import GeventWorker

from .environ import GUNICORN_SOCKET

NAMES = {
    "GeventWorker": "the worker that is extended",
    "GeventWorker.server_class": "makes what accepts connections",
    "GeventWorker.handle": "serves a connection",
    "GeventWorker.handle_request": "serves a request",
    "GeventWorker.handle_error": "responds to a request that cannot be read",
    "GeventWorker.wsgi": "the app that is called",
    "StopIteration": "ends a connection, if the app raises it",
    "ALREADY_HANDLED": "returned by the app if it has sent the response",
    "start_response.__self__": "the response",
    "Response.headers": "the fields that the app has set",
    "Response.default_headers": "the status line and gunicorn's own fields",
    "Response.force_close": "closes the connection behind a response",
    "Response.sent": "bytes of the body, for the access log",
    "Logger.access": "logs a response",
    "Request.headers": "the fields of a request, as they came",
    "Request.unreader": "what has been read of the connection",
    "Unreader.buf": "what of it belongs to the next request",
    "Worker.alive": "whether the worker goes on",
    "Worker.cfg": "the settings, in a worker",
    "AppImportError": "stops the start with one line instead of a traceback",
    "Config.env_orig": "the environment of the next master",
}

#: The first version with which the worker was tried.
OLDEST = (27,)

#: What the app returns where the response has been sent: gunicorn goes on with the next request of the connection.
ALREADY_HANDLED: Any = getattr(base_async, "ALREADY_HANDLED", None)

#: The settings with which gunicorn logs responses, and the logger that leaves them out without these.
_ACCESS_SETTINGS = ("accesslog", "logconfig", "logconfig_dict", "logconfig_json", "syslog", "statsd_host")
_LOGGER = "gunicorn.glogging.Logger"

Environ = dict[str, Any]
App = Callable[[Environ, Any], Iterable[bytes]]


class EndOfConnection(StopIteration):
    """Raised by the app to end the greenlet of the connection; gunicorn logs it at debug, and closes its socket."""


class HookedWorker(GeventWorker):  # type: ignore[misc]  # gunicorn leaves it untyped
    """gunicorn's gevent worker, whose parts are replaced by the methods that raise here."""

    wsgi: Any

    def run_hooked(self) -> None:
        """Serve until the worker is stopped, through the methods below."""
        self.wsgi = partial(self.respond, self.wsgi)
        self.server_class = self.listen
        # The parser drops names with underscores by default. With HTTP/2 it has to, because the worker sees such fields
        # only when they are in environ.
        if self.cfg.header_map == "drop" and "h2" not in self.cfg.http_protocols:
            self.cfg.set("header_map", "dangerous")
        # As attributes: a request reads 34 settings, which gunicorn finds by their names each time.
        kept: dict[str, Any] = self.cfg.__dict__
        kept.update({name: setting.get() for name, setting in self.cfg.settings.items()})
        super().run()

    def listen(self, listener: Any, *, spawn: Any, ssl_context: Any = None, **options: Any) -> Any:
        """Return what accepts connections; gunicorn calls it as a server's class.

        :param spawn: gunicorn's pool, of which the size is the most connections.
        :param ssl_context: for TLS.
        :param options: those of gevent's pywsgi.
        """
        raise NotImplementedError

    def serve_request(self, client: Any, address: Any, request: Any, serve: Callable[[], None]) -> bool:
        """Serve a request, and return whether the connection ends with it.

        :param serve: what gunicorn does, which calls `respond`.
        """
        raise NotImplementedError

    def respond(self, app: App, environ: Environ, start_response: Any) -> Iterable[bytes]:
        """Return the app's response, or ALREADY_HANDLED."""
        raise NotImplementedError

    def refuse(self, client: Any, error: BaseException, write: Callable[[Any], None]) -> None:
        """Respond to a request that cannot be served.

        :param write: writes to a socket what gunicorn would respond.
        """
        raise NotImplementedError

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        if self.server_class is None:
            super().handle_request(listener_name, req, sock, addr)
            return
        if self.serve_request(sock, addr, req, partial(super().handle_request, listener_name, req, sock, addr)):
            raise EndOfConnection

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        handle_error = super().handle_error
        self.refuse(client, exc, lambda target: handle_error(req, target, addr, exc))


def original_environment(cfg: Any) -> dict[str, str]:
    """Return the environment with which the next master is executed."""
    environment: dict[str, str] = cfg.env_orig
    return environment


def setting_error(error: Exception) -> Exception:
    """Return what a worker raises to stop the start with one line instead of a traceback."""
    stopping: Exception = AppImportError(f"Error: {error}")
    return stopping


def response_of(start_response: Any) -> Any:
    """Return gunicorn's response, whose method the app is given as `start_response`."""
    return start_response.__self__


def client_of(environ: Environ) -> Any:
    """Return the client's socket."""
    return environ[GUNICORN_SOCKET]


def is_alive(worker: Any) -> bool:
    """Return whether a worker goes on."""
    return bool(worker.alive)


def graceful_times(worker: Any) -> tuple[float, float]:
    """Return the seconds after which a worker that stops is killed, and those for which idle connections are kept."""
    return worker.cfg.graceful_timeout, worker.cfg.keepalive


def encode_head(response: Any) -> bytes:
    """Return the head that gunicorn would send."""
    fields = [f"{name}: {value}\r\n" for name, value in response.headers]
    return "".join([*response.default_headers(), *fields, "\r\n"]).encode("latin-1")


def close_behind(response: Any) -> None:
    """Close the connection behind a response."""
    response.force_close()


def has_read_ahead(request: Any) -> bool:
    """Return whether bytes of the next request of the connection have been read together with this one's."""
    return bool(request.unreader.buf.getbuffer().nbytes)


def logs_access(cfg: Any) -> bool:
    """Return whether responses are logged, as far as the settings show it."""
    return any(getattr(cfg, name, None) for name in _ACCESS_SETTINGS) or cfg.settings["logger_class"].get() != _LOGGER


def log_access(log: Any, response: Any, request: Any, environ: Environ, sent: int, duration: timedelta) -> None:
    """Log a response that has been sent.

    :param sent: bytes of the body.
    """
    response.sent = sent
    log.access(response, request, environ, duration)


def unexpected() -> list[str]:
    """Return a sentence for each name that is not as this module expects it."""
    if gunicorn.version_info < OLDEST:
        return [f"gunicorn {gunicorn.__version__} is older than {OLDEST[0]}"]
    found = []
    if getattr(GeventWorker, "server_class", ...) is not None:
        found.append("gunicorn's GeventWorker has no server_class that is None")
    if ALREADY_HANDLED is None:
        found.append("gunicorn.workers.base_async has no ALREADY_HANDLED")
    expected: list[tuple[Any, str, str, str]] = [
        (http_wsgi.Response, "start_response", "(self, status, headers", "takes no status and headers"),
        (http_wsgi.Response, "default_headers", "(self)", "takes arguments"),
        (http_wsgi.Response, "force_close", "(self)", "takes arguments"),
        (Logger, "access", "(self, resp, req, environ, request_time)", "takes something else"),
        (GeventWorker, "handle", "(self, listener, client, addr)", "takes something else"),
        (GeventWorker, "handle_request", "(self, listener_name, req, sock, addr)", "takes something else"),
        (GeventWorker, "handle_error", "(self, req, client, addr, exc)", "takes something else"),
        (http_wsgi.Response, "__init__", "self.sent =", "sets no sent"),
        (http_wsgi.Response, "__init__", "self.headers =", "sets no headers"),
        (Message, "__init__", "self.headers =", "sets no headers"),
        (Message, "__init__", "self.unreader =", "sets no unreader"),
        (Unreader, "__init__", "self.buf = io.BytesIO()", "sets no buf"),
        (Worker, "__init__", "self.alive =", "sets no alive"),
        (Worker, "__init__", "self.cfg =", "sets no cfg"),
        (AsyncWorker, "handle", "except StopIteration", "does not end the connection at a StopIteration"),
        (AsyncWorker, "handle_request", "self.wsgi(environ, resp.start_response)", "does not call worker.wsgi"),
        (GeventWorker, "run", "self.server_class(", "does not call server_class"),
        (Config, "__init__", "self.env_orig =", "keeps no env_orig"),
        (http_wsgi, "default_environ", f'"{GUNICORN_SOCKET}": sock', "does not give the app its client's socket"),
    ]
    for owner, name, text, difference in expected:
        function = getattr(owner, name, None)
        if not inspect.isfunction(function):
            found.append(f"gunicorn's {owner.__name__} has no method {name}")
        elif text not in inspect.getsource(function):
            found.append(f"gunicorn's {owner.__name__}.{name} {difference}")
    return [f"{sentence} (gunicorn {gunicorn.__version__})" for sentence in found]
