"""Clients that send without end: give way to others, and close without losing the response."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent import socket as gevent_socket

#: Seconds and bytes that are spent on a client that still sends after its response. The bytes are more than the
#: default of SSE_MAX_BODY, so a client that sends its whole body before it reads gets through.
LINGER_TIME = 5.0
LINGER_BYTES = 16 * 1024 * 1024
#: Bytes that are read at once before others get their turn.
PIECE = 64 * 1024


def give_way() -> None:
    """Let every greenlet run that can, those included that wait for a socket or a timer.

    `gevent.sleep(0)` would run up to fifty callbacks before the loop looks at sockets and timers again.
    """
    hub = gevent.get_hub()
    with hub.loop.timer(0) as timer:
        hub.wait(timer)


def linger(client: Any) -> None:
    """Discard what the client still sends until it has closed, within bounds; the caller then closes.

    RFC 9112, section 9.6: "If a server performs an immediate close of a TCP connection, there is a significant risk
    that the client will not be able to read the last HTTP response."

    :param client: a connection of gevent's, whose response has been sent.
    """
    # A client that has reset the connection, or sends nothing any more, has nothing to lose.
    with contextlib.suppress(OSError):
        if not isinstance(client, ssl.SSLSocket):
            client.shutdown(socket.SHUT_WR)
        _drain(client.recv, client)


def discard(body: Any, client: socket.socket | None) -> None:
    """Discard the rest of a refused request body; end the connection if that is too long, or malformed.

    gunicorn's own gevent worker would read the rest without a bound and without a pause, and an app cannot mark
    the connection as unusable.

    :param body: the server's `wsgi.input`; None for one that is malformed.
    :param client: the connection, whose response has been sent; None or not gevent's: the server is left to itself.
    """
    if not isinstance(client, gevent_socket.socket):
        return
    # What a server raises for a malformed body does not matter here; the response has been sent.
    with contextlib.suppress(Exception):
        if body is not None and _drain(body.read, client):
            return
    linger(client)
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)


def _drain(read: Callable[[int], bytes], client: Any) -> bool:
    """Read to the end within bounds, and return whether that was reached."""
    deadline, left = time.monotonic() + LINGER_TIME, LINGER_BYTES
    while left > 0 and (patience := deadline - time.monotonic()) > 0:
        client.settimeout(patience)
        data = read(PIECE)
        if not data:
            client.settimeout(None)
            return True
        left -= len(data)
        give_way()
    # The client may wait for ever to send more: a close does not reach it while its window is full, but a reset does.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return False
