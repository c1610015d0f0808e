"""The client's connection, which WSGI does not give to an app, on the servers from which it can be had."""

from __future__ import annotations

import os
import socket
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..compat.environ import GUNICORN_SOCKET, input_descriptor
from ..relay.stream.end import Abort

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

#: Where gunicorn and werkzeug put it; both send the head before a byte of the body.
KEYS = (GUNICORN_SOCKET, "werkzeug.socket")


@dataclass(slots=True)
class ClientConnection:
    """What the server shows of a client's connection.

    :param socket: None where the server does not show it.
    :param abort: how a response is aborted on it.
    :param sends_head: whether the server sends the response head before the first byte of the body.
    """

    socket: socket.socket | None
    abort: Abort
    sends_head: bool


class BorrowedSocket(socket.socket):
    """A second socket for a descriptor of the server's, who alone closes it."""

    __slots__ = ()

    def __del__(self) -> None:
        self.detach()


def client_connection(environ: WSGIEnvironment) -> ClientConnection:
    """Return the connection of a request."""
    for key in KEYS:
        if key in environ:
            return ClientConnection(environ[key], _abort(environ), sends_head=True)
    is_uwsgi = "uwsgi.version" in environ
    descriptor = _uwsgi_descriptor() if is_uwsgi else input_descriptor(environ["wsgi.input"])
    if descriptor < 0 or not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        # Servers have a name; ASGI's adapters and test clients have none, and keep nothing waiting.
        return ClientConnection(None, Abort.RAISE, "SERVER_SOFTWARE" not in environ)
    return ClientConnection(BorrowedSocket(fileno=descriptor), _abort(environ), is_uwsgi)


def _abort(environ: WSGIEnvironment) -> Abort:
    protocol = environ.get("SERVER_PROTOCOL", "")
    if protocol.startswith("HTTP/2"):
        # The connection has other streams.
        return Abort.RAISE
    # uWSGI sends the bytes as they are, without chunks.
    return Abort.RESET if protocol == "HTTP/1.0" or "uwsgi.version" in environ else Abort.CLOSE


def _uwsgi_descriptor() -> int:
    # It exists only in a process of uWSGI's.
    import uwsgi

    return int(uwsgi.connection_fd())
