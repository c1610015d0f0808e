"""What the operating system shows of a connection, and how one is shut down or reset.

The facts are Linux's; where a system does not have them, the functions return what is safe.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import sys
import time
from collections.abc import Iterator

from gevent.monkey import get_original

#: Seconds between two looks at whether a client has received everything before its connection is reset.
DRAIN_INTERVAL = 0.01

#: tcp(7): struct tcp_info begins with the state; ESTABLISHED is 1 in the kernel's list of states.
_TCP_ESTABLISHED = 1
#: Offsets of tcpi_bytes_acked and tcpi_bytes_received in struct tcp_info (Linux 4.1 and newer), 64-bit counts: of what
#: the peer has acknowledged so far, and of what has arrived, read or not.
BYTES_ACKED, BYTES_RECEIVED = 120, 128


def is_gone(connection: socket.socket) -> bool:
    """Return whether the peer of a connection has closed it, or its half of it.

    Bytes that it sent before closing may still be unread (a pipelined request, TLS's close_notify), so the state of
    the connection is looked at, not its data. A half-closed connection looks just like one that was left.
    """
    try:
        if connection.family != socket.AF_UNIX:
            return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _TCP_ESTABLISHED
        return _peek(connection) == b""
    except (AttributeError, OSError):
        # No TCP_INFO on this system: only reading shows it, and only where TLS does not forbid to peek.
        return not isinstance(connection, ssl.SSLSocket) and _peek(connection) == b""


def _peek(connection: socket.socket) -> bytes | None:
    """Return what a read would give, without taking it; None if it would block."""
    try:
        with _borrow(connection) as borrowed:
            return borrowed.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    except OSError:
        return b""


@contextlib.contextmanager
def _borrow(connection: socket.socket) -> Iterator[socket.socket]:
    """Yield a socket of the system's for the same connection, which never waits and has no TLS.

    :raises OSError: if the connection is closed.
    """
    if (descriptor := connection.fileno()) < 0:
        raise OSError("the connection is closed")
    borrowed: socket.socket = get_original("socket", "socket")(fileno=descriptor)
    try:
        yield borrowed
    finally:
        borrowed.detach()


def count(connection: socket.socket, offset: int) -> int | None:
    """Return one of the counts of `struct tcp_info`, None where the system does not count that."""
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, offset + 8)
        return int(struct.unpack_from("=Q", info, offset)[0])
    except (AttributeError, OSError, struct.error):
        return None


def unsent(connection: socket.socket) -> int:
    """Return how many bytes the peer has not acknowledged yet; 0 where the system does not count them."""
    try:
        import fcntl
        import termios

        return int.from_bytes(fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (ImportError, OSError, ValueError):
        return 0


def shut_down(connection: socket.socket | None, how: int = socket.SHUT_RDWR) -> None:
    """Shut down one or both directions of a connection, waking whatever is blocked on it.

    The server sees just what it sees of a client that left. A shutdown of `ssl` would remove the TLS state under a
    blocked read; one of gevent's would raise EBADF where the connection is waited for.
    """
    if connection is None:
        return
    try:
        with _borrow(connection) as borrowed:
            borrowed.shutdown(how)
    except OSError:
        # ENOTCONN, EBADF: it is closed already.
        return


def reset(client: socket.socket, *, patience: float) -> None:
    """Reset a client's connection, after what was sent has arrived as far as possible.

    The server's socket is left with another, closed connection: a server that shuts a connection down before it closes
    it would send a FIN before the reset.

    :param patience: seconds to wait for the arrival; a reset discards what is still on its way.
    """
    deadline = time.monotonic() + patience
    while unsent(client) and time.monotonic() < deadline and not is_gone(client):
        time.sleep(DRAIN_INTERVAL)
    with contextlib.suppress(OSError):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        ours, theirs = socket.socketpair()
        with ours, theirs:
            os.dup2(ours.fileno(), client.fileno())
