"""Clients' connections without TLS, and what accepts them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import gevent
from gevent import socket

from ..relay.linger import give_way
from .balance import PAUSE, Balance
from .pool import ConnectionPool

#: Seconds until connections are accepted again after the system could give none, for want of file descriptors say: at
#: first, and at most.
MIN_RETRY, MAX_RETRY = 0.01, 1.0
#: Most connections that are accepted in one go; where other workers want their share, `Balance` ends it earlier.
MAX_ACCEPT = 100


class Client(socket.socket):  # type: ignore[misc]  # gevent leaves its sockets untyped
    """A client's connection that gives way to others where bytes are always there.

    :param accepted: gevent's, which is closed afterwards.
    """

    __slots__ = ("_has_read", "_is_ahead", "body", "request")

    def __init__(self, accepted: Any) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, accepted.detach())
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


class ListenerName:
    """Stands for a listener, whose address gunicorn reads for each connection, also when it has been closed since."""

    def __init__(self, listener: Any) -> None:
        self._name = listener.getsockname()

    def getsockname(self) -> Any:
        """Return the address."""
        return self._name


class Listener:
    """Accepts connections; gunicorn uses it as it does a server of gevent's.

    :param listener: a socket of gevent's.
    :param handle: serves a connection, given its peer's address too.
    :param balance: set where several workers accept from one socket.
    :param log: gunicorn's logger.
    """

    def __init__(
        self,
        listener: Any,
        handle: Callable[[Client, Any], None],
        pool: ConnectionPool,
        balance: Balance | None,
        log: Any,
    ) -> None:
        self._listener = listener
        self._handle = handle
        self._balance = balance
        self._log = log
        self._accepting: Any = None
        self.pool = pool
        #: Most connections that are accepted in one go.
        self.max_accept = MAX_ACCEPT

    def start(self) -> None:
        """Begin to accept."""
        self._listener.setblocking(False)
        if self._balance is not None:
            # Now, because the kernel may wake another worker for each of the first connections.
            self._balance.enter()
        self._accepting = gevent.spawn(self._run)

    def close(self) -> None:
        """Stop accepting; connections that are open stay."""
        if self._balance is not None:
            self._balance.leave()
        self._accepting.kill()
        self._listener.close()

    def stop(self, timeout: float) -> None:
        """Stop accepting, and end the connections that are still open after so many seconds."""
        self.close()
        self.pool.join(timeout)
        self.pool.kill(timeout=timeout)

    def _run(self) -> None:
        retry = MIN_RETRY
        while True:
            socket.wait_read(self._listener.fileno())
            try:
                pause = self._accept()
                retry = MIN_RETRY
            except OSError as error:
                self._log.error("Cannot accept connections, trying again in %g s: %s", retry, error)
                pause, retry = retry, min(2 * retry, MAX_RETRY)
            if pause:
                gevent.sleep(pause)

    def _accept(self) -> float:
        """Accept connections that wait, and return for how many seconds others are left to other workers."""
        for _ in range(self.max_accept):
            if self.pool.full() or (self._balance is not None and self._balance.must_wait()):
                return PAUSE
            try:
                accepted, address = self._listener.accept()
            except BlockingIOError:
                break
            self.pool.spawn(self._serve, Client(accepted), address)
        return 0

    def _serve(self, client: Client, address: Any) -> None:
        try:
            self._handle(client, address)
        finally:
            client.close()
