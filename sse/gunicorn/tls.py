"""Clients' connections with TLS, and what accepts them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

from gevent import ssl
from gevent.pool import Pool
from gevent.server import StreamServer

from ..relay.linger import give_way

#: Seconds in which a client must have agreed on TLS.
HANDSHAKE_TIME = 10.0


class TLSClient(ssl.SSLSocket):  # type: ignore[misc]  # gevent leaves its sockets untyped
    """A client's connection that gives way to others before each read and each request."""

    #: The request that is being served, and its body if it has one.
    request: Any = None
    body: Any = None

    take_turn = staticmethod(give_way)

    def recv(self, *args: Any) -> bytes:
        """Return what has arrived."""
        self.take_turn()
        return bytes(super().recv(*args))


def tls_server(
    listener: Any, serve: Callable[[Any, Any], None], connections: Pool, context: ssl.SSLContext, log: Any
) -> StreamServer:
    """Return what accepts connections with TLS.

    :param serve: serves a connection, given its peer's address too.
    :param connections: what it is served in, a greenlet for each.
    :param log: gunicorn's logger.
    """
    # https://docs.python.org/3/library/ssl.html#ssl.SSLContext.sslsocket_class
    context.sslsocket_class = TLSClient

    def handle(plain: Any, address: Any) -> None:
        # gevent would do it, and write a traceback for each health check, port scan and plain request.
        plain.settimeout(HANDSHAKE_TIME)
        try:
            client = context.wrap_socket(plain, server_side=True)
        except OSError as error:
            log.debug("Connection from %s ended before TLS was agreed: %s", address, error)
            return
        with closing(client):
            serve(client, address)

    return StreamServer(listener, handle=handle, spawn=connections)
