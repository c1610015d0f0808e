"""The connections of one listener: those that a greenlet serves, and those whose stream is parked."""

from __future__ import annotations

import time
from typing import Any, Protocol

import gevent
from gevent.event import Event
from gevent.pool import Pool


class Parked(Protocol):
    """A stream without a greenlet."""

    def leave_loop(self) -> None:
        """Have the event loop call no more; never waits."""

    def abort(self, error: BaseException) -> None:
        """End the stream where it is; called in a greenlet when it has left the loop."""


class ConnectionPool(Pool):  # type: ignore[misc]  # gevent leaves its compiled parts untyped
    """Counts both, so that gunicorn's `worker_connections` bounds both, and its graceful stop waits for both.

    :param size: most connections.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._parked: set[Parked] = set()
        self._none_parked = Event()
        self._none_parked.set()

    def __len__(self) -> int:
        return len(self._parked) + int(super().__len__())

    def __contains__(self, item: object) -> bool:
        return item in self._parked or bool(super().__contains__(item))

    def park(self, stream: Parked) -> None:
        """Give a stream the place of the current greenlet, which is about to end."""
        self.discard(gevent.getcurrent())
        self._parked.add(stream)
        self._none_parked.clear()

    def unpark(self, stream: Parked, function: Any) -> None:
        """Call a function in a greenlet that has the stream's place."""
        self._parked.discard(stream)
        if not self._parked:
            self._none_parked.set()
        self.spawn(function)

    def join(self, timeout: float | None = None, raise_error: bool = False) -> bool:
        """Wait until there is no connection."""
        begin = time.monotonic()
        if not self._none_parked.wait(timeout):
            return False
        left = None if timeout is None else max(timeout - (time.monotonic() - begin), 0)
        return bool(super().join(left, raise_error))

    def kill(
        self, exception: type[BaseException] = gevent.GreenletExit, block: bool = True, timeout: float | None = None
    ) -> None:
        """End all connections, the parked ones first."""
        enders = []
        while self._parked:
            stream = self._parked.pop()
            # At once: what arrives for it before the greenlet begins would have it resumed.
            stream.leave_loop()
            enders.append(gevent.spawn(stream.abort, exception()))
        self._none_parked.set()
        if block:
            gevent.joinall(enders, timeout)
        super().kill(exception, block, timeout)
