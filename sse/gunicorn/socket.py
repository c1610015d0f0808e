"""Clients' connections, and what accepts them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gevent import socket
from gevent.pool import Pool
from gevent.server import StreamServer

from ..relay.linger import give_way


class Client(socket.socket):  # type: ignore[misc]  # gevent leaves its sockets untyped
    """A client's connection that sends at once, as mostly it can; gevent's own prepares for what does not fit.

    :param server: what accepted it.
    :param address: its peer's.
    """

    __slots__ = ("_is_ahead", "address", "is_kept", "server")

    def __init__(self, server: Listener, descriptor: int, address: Any) -> None:
        super().__init__(server.family, socket.SOCK_STREAM, 0, descriptor)
        self.server = server
        self.address = address
        #: Whether its greenlet ended and left it open.
        self.is_kept = False
        #: Whether the last read did not have to wait.
        self._is_ahead = False

    def recv(self, *args: Any) -> bytes:
        """Return what has arrived; give way to others where that is always there at once."""
        try:
            # The system's socket, which never waits.
            data = bytes(self._sock.recv(*args))
        except BlockingIOError:
            self._is_ahead = False
            return bytes(super().recv(*args))
        self.take_turn()
        return data

    def take_turn(self) -> None:
        """Give way to others unless the client was waited for since the last turn."""
        if self._is_ahead:
            give_way()
        self._is_ahead = True

    def renewed(self) -> Client:
        """Return the connection as one that greenlets close again."""
        return Client(self.server, self.detach(), self.address)

    def send_now(self, data: Any, flags: int = 0) -> int:
        """Send what fits, and return how many bytes that was; never waits."""
        try:
            # The system's socket, which never waits.
            return int(self._sock.send(data, flags))
        except BlockingIOError:
            return 0

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send all, and wait only where the client does not take it."""
        sent = self.send_now(data, flags)
        if sent < len(data):
            super().sendall(memoryview(data).cast("B")[sent:], flags)

    def close(self) -> None:
        """Close it, unless its greenlet ends because none is needed."""
        if not self.is_kept:
            super().close()


class Listener(StreamServer):  # type: ignore[misc]  # gevent leaves its compiled parts untyped
    """Accepts connections.

    :param serve: serves a connection, given its peer's address too.
    :param connections: what it is served in, a greenlet for each.
    """

    def __init__(self, listener: Any, serve: Callable[[Client, Any], None], connections: Pool) -> None:
        super().__init__(listener, handle=serve, spawn=connections)
        self.serve = serve
        self.connections = connections

    def do_read(self) -> tuple[Client, Any] | None:
        """Return the next connection and its peer's address, None if there is none; gevent's hook."""
        try:
            descriptor, address = self.socket._accept()
        except BlockingIOError:
            return None
        return Client(self, descriptor, address), address
