"""Clients' connections with TLS, and what accepts them."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from gevent import ssl

from ..relay.linger import give_way
from .socket import Listener

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


class TLSListener(Listener):
    """Accepts connections with TLS.

    :param context: has the server's certificate.
    """

    def __init__(self, context: ssl.SSLContext, *args: Any) -> None:
        super().__init__(*args)
        # https://docs.python.org/3/library/ssl.html#ssl.SSLContext.sslsocket_class
        context.sslsocket_class = TLSClient
        self._context = context

    def handle(self, client: Any, address: Any) -> None:
        """Agree on TLS and serve a connection."""
        # gevent would do it, and write a traceback for each health check, port scan and plain request.
        client.settimeout(HANDSHAKE_TIME)
        try:
            secured = self._context.wrap_socket(client, server_side=True)
        except OSError as error:
            self._log.debug("Connection from %s ended before TLS was agreed: %s", address, error)
            return
        with closing(secured):
            super().handle(secured, address)
