"""What accepts the connections of clients."""

from __future__ import annotations

import pytest
from gevent import socket

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
