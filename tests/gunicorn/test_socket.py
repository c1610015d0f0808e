"""What accepts the connections of clients."""

from __future__ import annotations

import socket

import pytest

from sse.gunicorn.socket import ListenerName


def test_the_address_of_a_listener_outlives_it() -> None:
    """A connection that was accepted just before a stop was dropped with a traceback: its listener was closed."""
    listener = socket.create_server(("127.0.0.1", 0))
    address, name = listener.getsockname(), ListenerName(listener)
    listener.close()
    with pytest.raises(OSError):
        listener.getsockname()
    assert name.getsockname() == address
