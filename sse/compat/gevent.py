"""What we use of gevent beyond its documentation."""

from __future__ import annotations

import socket
from typing import Any

from gevent.pool import Pool
from gevent.socket import socket as GeventSocket


def system_socket(connection: socket.socket) -> socket.socket:
    """Return the system's socket below gevent's, which never waits and never switches; another socket as it is.

    gevent keeps it in `socket._sock`.
    """
    below: socket.socket = getattr(connection, "_sock", connection)
    return below


def take_place(pool: Pool) -> None:
    """Take one of a pool's places for something that is no greenlet; there must be one that is free.

    A server stops to accept connections by the state of `Pool._semaphore`, and begins again when that is released.
    """
    pool._semaphore.acquire(blocking=False)


def give_place_back(pool: Pool) -> None:
    """Release a place that `take_place` took."""
    pool._semaphore.release()


def unexpected() -> list[str]:
    """Return a sentence for each name that is not as this module expects it."""
    found = []
    connection: Any = GeventSocket()
    with connection:
        if not hasattr(getattr(connection, "_sock", None), "recv"):
            found.append("gevent.socket.socket has no system socket in _sock")
    pool: Any = Pool(1)
    if not all(hasattr(getattr(pool, "_semaphore", None), name) for name in ("acquire", "release", "rawlink")):
        found.append("gevent.pool.Pool has no _semaphore that counts its places")
    return found
