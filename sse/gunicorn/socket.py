"""Clients' connections without TLS, and what accepts them."""

from __future__ import annotations

from typing import Any

from gevent import socket
from gevent.server import StreamServer

from ..compat.gevent import system_socket
from ..relay.linger import give_way
from .balance import PAUSE, Balance


class Client(socket.socket):  # type: ignore[misc]  # gevent leaves its sockets untyped
    """A client's connection that gives way to others where bytes are always there.

    :param accepted: gevent's, which is closed afterwards.
    """

    __slots__ = ("_has_read", "_is_ahead")

    def __init__(self, accepted: Any) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, accepted.detach())
        #: Whether the last read did not have to wait.
        self._is_ahead = False
        #: Whether anything was read since the last request.
        self._has_read = False

    def recv(self, *args: Any) -> bytes:
        """Return what has arrived; give way to others where that is always there at once."""
        self._has_read = True
        try:
            data = bytes(system_socket(self).recv(*args))
        except BlockingIOError:
            self._is_ahead = False
            return bytes(super().recv(*args))
        if self._is_ahead and data:
            give_way()
        self._is_ahead = True
        return data

    def take_turn(self) -> None:
        """Begin a request; give way to others if it came together with the one before."""
        if not self._has_read:
            give_way()
        self._has_read = False


class Listener(StreamServer):  # type: ignore[misc]  # gevent leaves its compiled parts untyped
    """Accepts connections."""

    #: Set where several workers accept from one socket.
    balance: Balance | None = None

    def do_read(self) -> tuple[Client, Any] | None:
        """Return the next connection and its peer's address, None if there is none; gevent's hook."""
        if self.balance is not None and self.balance.must_wait():
            self.stop_accepting()
            self._pause = self.loop.timer(PAUSE)
            self._pause.start(self._go_on)
            return None
        accepted = super().do_read()
        return (Client(accepted[0]), accepted[1]) if accepted else None

    def _go_on(self) -> None:
        if self.started:
            self.start_accepting()

    def close(self) -> None:
        """Stop accepting; connections that are open stay."""
        if self.balance is not None:
            self.balance.leave()
        super().close()
