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

    take_turn = staticmethod(give_way)

    def recv(self, *args: Any) -> bytes:
        """Return what has arrived."""
        self.take_turn()
        return bytes(super().recv(*args))


class TLSListener(StreamServer):  # type: ignore[misc]  # gevent leaves its compiled parts untyped
    """Accepts connections with TLS.

    :param serve: serves a connection, given its peer's address too.
    :param connections: what it is served in, a greenlet for each.
    :param log: gunicorn's logger.
    """

    def __init__(
        self, listener: Any, serve: Callable[[Any, Any], None], connections: Pool, context: ssl.SSLContext, log: Any
    ) -> None:
        # https://docs.python.org/3/library/ssl.html#ssl.SSLContext.sslsocket_class
        context.sslsocket_class = TLSClient
        super().__init__(listener, handle=serve, spawn=connections, ssl_context=context)
        self._log = log

    def wrap_socket_and_handle(self, client_socket: Any, address: Any) -> None:
        """Serve a connection as soon as TLS is agreed; gevent's hook, which would write a traceback for each failure.

        Health checks that only connect, port scans and plain HTTP are everyday events.
        """
        client_socket.settimeout(HANDSHAKE_TIME)
        try:
            client = self.wrap_socket(client_socket, **self.ssl_args)
        except OSError as error:
            self._log.debug("Connection from %s ended before TLS was agreed: %s", address, error)
            client_socket.close()
            return
        with closing(client):
            self.handle(client, address)
