"""Clients' connections without TLS, and what accepts connections."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import gevent
from gevent import socket
from gevent.server import StreamServer

from ..relay.linger import give_way
from .balance import PAUSE, Balance
from .pool import ConnectionPool


class Client(socket.socket):  # type: ignore[misc]  # gevent leaves its sockets untyped
    """A client's connection that gives way to others where bytes are always there.

    :param accepted: gevent's, which is closed afterwards.
    :param listener: what has accepted it.
    :param address: of the peer.
    """

    __slots__ = ("_has_read", "_is_ahead", "address", "body", "listener", "request")

    def __init__(self, accepted: Any, listener: Listener, address: Any) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, accepted.detach())
        self.listener = listener
        self.address = address
        #: Whether the last read did not have to wait.
        self._is_ahead = False
        #: Whether anything was read since the last request.
        self._has_read = False
        #: The request that is being served, and its body if it has one.
        self.request: Any = None
        self.body: Any = None

    def recv(self, size: int, *flags: int) -> bytes:
        """Return what has arrived; give way to others where that is always there at once."""
        self._has_read = True
        try:
            # The system's own read never waits and never switches.
            data = os.read(self.fileno(), size)
        except BlockingIOError:
            self._is_ahead = False
            return bytes(super().recv(size, *flags))
        if self._is_ahead and data:
            give_way()
        self._is_ahead = True
        return data

    def take_turn(self) -> None:
        """Begin a request; give way to others if it came together with the one before."""
        if not self._has_read:
            give_way()
        self._has_read = False


class Listener(StreamServer):  # type: ignore[misc]  # gevent leaves its servers untyped
    """Accepts connections, as gevent's server does, and waits where another worker should, or the system has no more.

    It stands for its socket too, whose address gunicorn reads for each connection, also when it has been closed since.

    :param listener: a socket of gevent's.
    :param serve: serves a connection, given this, the client's socket and its address.
    :param balance: set where several workers accept from one socket.
    :param log: gunicorn's logger.
    """

    def __init__(
        self,
        listener: Any,
        serve: Callable[[Listener, Any, Any], None],
        pool: ConnectionPool,
        balance: Balance | None,
        log: Any,
    ) -> None:
        self._serve = serve
        self._balance = balance
        self._log = log
        self._retry = self.min_delay
        super().__init__(listener, spawn=pool.spawn)
        # Set here, because to gevent a place is free when its greenlet has ended: where parked streams have all places,
        # it would look for one again and again.
        self.pool = pool

    def getsockname(self) -> Any:
        """Return the address."""
        return self.address

    def handle(self, client: Any, address: Any) -> None:
        """Serve a connection."""
        self._serve(self, client, address)

    def start(self) -> None:
        """Begin to accept."""
        if self._balance is not None:
            # Now, because the kernel may wake another worker for each of the first connections.
            self._balance.enter()
        super().start()

    def close(self) -> None:
        """Stop accepting; connections that are open stay."""
        if self._balance is not None:
            self._balance.leave()
        super().close()

    def do_read(self) -> tuple[Client, Any] | None:
        """Return a connection that waits; None if there is none, no place, or another worker should accept it."""
        if self.pool.full() or (self._balance is not None and self._balance.must_wait()):
            self._pause(PAUSE)
            return None
        try:
            accepted = super().do_read()
        except OSError as error:
            # For want of file descriptors, say.
            self._log.error("Cannot accept connections, trying again in %g s: %s", self._retry, error)
            self._pause(self._retry)
            self._retry = min(2 * self._retry, self.max_delay)
            return None
        self._retry = self.min_delay
        return None if accepted is None else (Client(accepted[0], self, accepted[1]), accepted[1])

    def _pause(self, seconds: float) -> None:
        self.stop_accepting()
        gevent.spawn_later(seconds, self._go_on)

    def _go_on(self) -> None:
        if self.started:
            self.start_accepting()
