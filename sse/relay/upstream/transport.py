"""A connected socket that never blocks, and how to wait for it: in gevent's event loop, or in a thread by poll(2).

Both use the system's own sockets: gevent's would prepare for waiting at every read. TLS runs between memory buffers
(`ssl.MemoryBIO`), so one read takes all bytes that have arrived, and cancelling never touches the state of TLS.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

import gevent
import gevent.monkey
from gevent import socket as gevent_socket

#: Bytes read from a socket at a time.
READ_SIZE = 64 * 1024
#: Bytes encrypted at a time.
WRITE_SIZE = 64 * 1024
#: What to wait for; libev's values.
READ, WRITE = 1, 2

#: Seconds without data after which a connection is probed, seconds between two probes, and how many may be lost: NATs
#: forget a silent connection after 2 to 6 minutes.
KEEP_ALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))


def uses_gevent() -> bool:
    """Return whether sockets wait in gevent's event loop here."""
    return bool(gevent.monkey.is_module_patched("socket"))


def new_socket(family: int) -> socket.socket:
    """Return a TCP socket of the system's that does not block."""
    connection: socket.socket = gevent.monkey.get_original("socket", "socket")(family, socket.SOCK_STREAM)
    connection.setblocking(False)
    return connection


def enable_keep_alive(connection: socket.socket) -> None:
    """Let the system probe a silent TCP connection; for a listener, each connection that it accepts."""
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE:
        if (option := getattr(socket, name, None)) is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


class Transport:
    """A connection whose reads and writes return at once.

    :param connection: a socket that does not block; closed with the transport.
    """

    __slots__ = ("_in_gevent", "_watcher", "is_cancelled", "socket")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._in_gevent = uses_gevent()
        self.is_cancelled = False
        # Made for gevent's loop when the first wait needs it, and closed before the connection is stored.
        self._watcher: Any = None

    def reader(self) -> Callable[[int], bytes]:
        """Return what reads as a socket's `recv` does: at most so many bytes, b"" at the end of the connection.

        It raises BlockingIOError if nothing has arrived, and another OSError if the connection broke.
        """
        return self.socket.recv

    def send(self, data: bytes | memoryview) -> int:
        """Send what fits, and return how many bytes of the data that was.

        :raises OSError: if the connection broke.
        """
        try:
            return self.socket.send(data)
        except BlockingIOError:
            return 0

    @property
    def has_unsent(self) -> bool:
        """Whether bytes wait in memory that `send` has taken."""
        return False

    def is_idle(self) -> bool:
        """Return whether the connection is open and nothing has arrived on it."""
        try:
            self.reader()(1)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def wait(self, timeout: float | None = None, events: int = READ) -> bool:
        """Block until the connection is readable (or, with WRITE, writable); return False after the timeout."""
        if not self._in_gevent:
            return _poll(self.socket, events, timeout)
        if events != READ:
            return _wait(gevent.get_hub().loop.io(self.socket.fileno(), events), timeout, close=True)
        return _wait(self._read_watcher(), timeout)

    def _read_watcher(self) -> Any:
        if self._watcher is None:
            self._watcher = gevent.get_hub().loop.io(self.socket.fileno(), READ)
        return self._watcher

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None] | None:
        """Call `wake()` from gevent's event loop while the connection is readable; return what ends that.

        None: there is no event loop.
        """
        if not self._in_gevent:
            return None
        watcher = self._read_watcher()
        watcher.start(wake)
        unsubscribe: Callable[[], None] = watcher.stop
        return unsubscribe

    def rest(self) -> None:
        """Release what belongs to one exchange, before another one gets the connection."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.stop()
            watcher.close()

    def cancel(self) -> None:
        """End both directions, which wakes the reader; idempotent, callable from any thread."""
        self.is_cancelled = True
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            # ENOTCONN, EBADF: it has ended already.
            return

    def close(self) -> None:
        """Close the connection; idempotent."""
        self.rest()
        self.socket.close()


def _poll(connection: socket.socket, events: int, timeout: float | None) -> bool:
    poll = select.poll()
    flags = (select.POLLIN if events & READ else 0) | (select.POLLOUT if events & WRITE else 0)
    poll.register(connection, flags)
    return bool(poll.poll(None if timeout is None else timeout * 1000))


def _wait(watcher: Any, timeout: float | None, *, close: bool = False) -> bool:
    try:
        gevent_socket.wait(watcher, timeout)
    except TimeoutError:
        return False
    finally:
        if close:
            watcher.close()
    return True


class TLSTransport(Transport):
    """A connection under TLS; `handshake()` comes first.

    :param connection: a socket that does not block.
    :param context: verifies the peer.
    :param host: the name, or the address, that its certificate must be for.
    """

    __slots__ = ("_encrypted", "_failure", "_has_ended", "_tls", "_unsent", "_written")

    def __init__(self, connection: socket.socket, context: ssl.SSLContext, host: str) -> None:
        super().__init__(connection)
        self._encrypted, self._written = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._encrypted, self._written, server_hostname=host)
        self._unsent = b""
        self._has_ended = False
        self._failure: OSError | None = None

    def handshake(self) -> None:
        """Agree on keys and verify the peer.

        :raises OSError: if that fails; an ssl.SSLError if TLS itself refuses.
        """
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush_all()
                self._take_more()
            except ssl.SSLError:
                # The alert that gives the peer the reason, unless the peer has gone: the first error is the cause.
                with contextlib.suppress(OSError):
                    self._flush()
                raise
            else:
                return self._flush_all()

    def _take_more(self) -> None:
        while True:
            self.wait()
            try:
                return self._take()
            except BlockingIOError:
                continue

    def peer_certificate(self) -> dict[str, Any]:
        """Return the peer's certificate in the form of `ssl.SSLSocket.getpeercert`."""
        return dict(self._tls.getpeercert() or {})

    def reader(self) -> Callable[[int], bytes]:
        return self._read

    def _read(self, size: int) -> bytes:
        """Return all that has arrived: what is left inside TLS, its socket would not show as readable."""
        if self._failure is not None:
            raise self._failure
        if self._has_ended:
            return b""
        self._take()
        pieces: list[bytes] = []
        try:
            while piece := self._tls.read(READ_SIZE):
                pieces.append(piece)
            # b"" is the peer's closure alert.
            self._has_ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            # RFC 9112, section 9.8: without a closure alert, the end of the connection is no end of the body. What came
            # before it is returned first.
            self._failure = error
            if not pieces:
                raise
        self._acknowledge()
        if not pieces and not self._has_ended:
            raise BlockingIOError("a part of a TLS record")
        return b"".join(pieces)

    def _acknowledge(self) -> None:
        """Send TLS's own records, such as that it has changed its keys too."""
        try:
            if self._written.pending:
                self._flush()
        except OSError as error:
            self._failure = error

    def _take(self) -> None:
        """Read from the socket what has arrived.

        :raises BlockingIOError: if nothing has.
        """
        if data := self.socket.recv(READ_SIZE):
            self._encrypted.write(data)
        else:
            self._encrypted.write_eof()

    def send(self, data: bytes | memoryview) -> int:
        if not self._flush() or not data:
            return 0
        try:
            taken = self._tls.write(data[:WRITE_SIZE])
        except ssl.SSLWantReadError:
            return 0
        self._flush()
        return taken

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent or self._written.pending)

    def _flush(self) -> bool:
        """Send what TLS has written as far as it fits; return whether that was all."""
        self._unsent += self._written.read()
        if self._unsent:
            self._unsent = self._unsent[super().send(self._unsent) :]
        return not self._unsent

    def _flush_all(self) -> None:
        while not self._flush():
            self.wait(events=WRITE)


def connect(connection: Transport, address: tuple[str, int], timeout: float) -> None:
    """Connect a transport's socket.

    :param timeout: seconds.
    :raises TimeoutError: if there is no connection within the timeout.
    :raises OSError: if it fails.
    """
    deadline = time.monotonic() + timeout
    try:
        connection.socket.connect(address)
    except BlockingIOError:
        if not connection.wait(max(deadline - time.monotonic(), 0), WRITE):
            raise TimeoutError("no connection in time") from None
        error = connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, "the connection failed") from None
