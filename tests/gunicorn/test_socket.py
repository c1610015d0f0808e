"""What accepts the connections of clients."""

from __future__ import annotations

import gevent
import pytest
from gevent import socket

from sse.gunicorn import socket as module
from sse.gunicorn.pool import ConnectionPool
from sse.gunicorn.socket import Listener


def test_the_address_of_a_listener_outlives_it() -> None:
    """A connection that was accepted just before a stop was dropped with a traceback: its listener was closed."""
    with socket.socket() as plain:
        plain.bind(("127.0.0.1", 0))
        plain.listen()
        address = plain.getsockname()
        listener = Listener(plain, lambda *_: None, ConnectionPool(1), None, None)
        listener.start()
        listener.close()
        plain.close()
        with pytest.raises(OSError):
            plain.getsockname()
        assert listener.getsockname() == address


class Waiting:
    """A parked stream, to which nothing happens."""

    def leave_loop(self) -> None: ...

    def abort(self, error: BaseException) -> None: ...


def test_a_pool_full_of_parked_streams_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each turn of the event loop looked for a place again, and took all of the processor."""
    looks: list[bool] = []

    class Counted(ConnectionPool):
        def full(self) -> bool:
            looks.append(bool(super().full()))
            return looks[-1]

    monkeypatch.setattr(module, "PAUSE", 60)
    with socket.socket() as plain:
        plain.bind(("127.0.0.1", 0))
        plain.listen()
        pool = Counted(1)
        pool.spawn(pool.park, Waiting()).join()
        listener = Listener(plain, lambda *_: None, pool, None, None)
        listener.start()
        with socket.create_connection(plain.getsockname()):
            # As many turns in which the loop looks at sockets too.
            for _ in range(100):
                gevent.sleep(0.0001)
        listener.close()
    assert looks == [True]
