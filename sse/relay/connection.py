"""Connections to upstreams below urllib3's: made by the `Dialer`, their heads read within bounds."""

from __future__ import annotations

import email.errors
import http.client
import socket
import ssl
from typing import Any

from urllib3.connection import HTTPConnection, HTTPSConnection

from .dial import Dialer, no_socket
from .watch import Stage, current, is_gone

#: Bytes of heads, 1xx ones included, before the final head must be whole.
MAX_HEAD = 64 * 1024
#: Bytes asked of the socket at a time for a head, whose lines are cut off one by one.
HEAD_READ_SIZE = 8 * 1024

#: What email's parser says of a head that it could not make out whole.
HEAD_DEFECTS = (
    email.errors.FirstHeaderLineIsContinuationDefect,
    email.errors.MisplacedEnvelopeHeaderDefect,
    email.errors.MissingHeaderBodySeparatorDefect,
)


class StaleConnection(Exception):
    """A kept connection was closed by the upstream before it gave anything back.

    :param nothing_sent: whether not even the first byte of the request went out.
    """

    def __init__(self, *, nothing_sent: bool) -> None:
        super().__init__("the upstream had closed a kept connection")
        self.nothing_sent = nothing_sent


class Wire:
    """A connection, as http.client reads a head from it: bounded, and with what was read too much in plain sight."""

    def __init__(self, connection: socket.socket) -> None:
        # http.client closes its socket early when the answer is the last one; this keeps it open for the body.
        self._file = connection.makefile("rb", buffering=0)
        self.connection = connection
        self.buffer = b""
        self.received = 0

    def readline(self, limit: int = -1) -> bytes:
        while not (end := self.buffer.find(b"\n") + 1):
            if self.received >= MAX_HEAD:
                raise http.client.HTTPException("the head is too large")
            piece = self.connection.recv(HEAD_READ_SIZE)
            if not piece:
                if self.received:
                    # http.client would take what there is for the whole head.
                    raise http.client.HTTPException("the head is truncated")
                return b""
            self.received += len(piece)
            self.buffer += piece
        line, self.buffer = self.buffer[:end], self.buffer[end:]
        return line

    def flush(self) -> None:
        """Do nothing; http.client calls it before it closes."""

    def close(self) -> None:
        self._file.close()


class Head(http.client.HTTPResponse):
    """http.client's reader of heads, over a `Wire`."""

    def __init__(self, connection: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(connection, *args, **kwargs)
        self.fp.close()
        self.wire = Wire(connection)
        self.fp = self.wire  # type: ignore[assignment]  # it reads lines and closes, no more is asked of it

    def _read_status(self) -> tuple[str, int, str]:
        # RFC 9110, section 15.2: "A client MUST be able to parse one or more 1xx responses received prior to a final
        # response"; http.client skips 100 alone.
        version, status, reason = super()._read_status()  # type: ignore[misc]
        if 101 < status < 200:
            status = http.client.CONTINUE
        return version, status, reason

    def begin(self) -> None:
        super().begin()
        # What email's parser could not make out would be dropped in silence, and two readers would differ.
        # What it says of a multipart type is of the body, which it never sees.
        if any(isinstance(defect, HEAD_DEFECTS) for defect in self.msg.defects):
            raise http.client.HTTPException("the head is malformed")


class _Relayed:
    """What our connections do differently, whether plain or with TLS; mixed into urllib3's."""

    # mypy cannot know what a mixin's super() will be; hence the ignores below.
    dialer: Dialer
    sock: socket.socket | None
    head: Head | None = None
    _is_kept = False
    _sent = False
    _parts: list[bytes] | None = None
    _handle: socket.socket | None = None

    def _new_conn(self) -> socket.socket:
        connection = self.dialer.dial(self.host, self.port)  # type: ignore[attr-defined]
        watch = current.get()
        if watch is not None and isinstance(self, HTTPSConnection):
            # TLS takes over the descriptor before it greets, which may last; this one leads to the same connection.
            try:
                self._handle = connection.dup()
            except OSError as error:
                connection.close()
                raise no_socket() from error
            watch.attach(self._handle)
        return connection

    def connect(self) -> None:
        self._is_kept = False
        try:
            super().connect()  # type: ignore[misc]
            self._note()
        finally:
            if self._handle is not None:
                self._handle.close()
                self._handle = None

    def request(self, *args: Any, **kwargs: Any) -> None:
        self.head = None
        self._sent = False
        if self._is_kept:
            self._note()
        # http.client sends head and body apart: two calls, two segments, and two reads at the other end.
        self._parts = []
        try:
            super().request(*args, **kwargs)  # type: ignore[misc]
        finally:
            parts, self._parts = self._parts, None
        self.send(b"".join(parts))

    def _note(self) -> None:
        """Let the watch look after this connection from now on."""
        if isinstance(self.sock, ssl.SSLSocket):
            # RFC 9112, section 9.8: without a closure alert, an end of the connection is no end of the body.
            self.sock.suppress_ragged_eofs = False  # type: ignore[attr-defined]  # the hints leave it out
        watch = current.get()
        if watch is not None and self.sock is not None:
            watch.attach(self.sock)
            watch.enter(Stage.HEAD)

    def keep(self) -> None:
        """Take note that the connection goes back to its pool."""
        self._is_kept = True

    @property
    def is_connected(self) -> bool:
        # Bytes that wait on an idle connection would be taken for the answer to the next request.
        return self.sock is not None and not is_gone(self.sock) and not _has_input(self.sock)

    def send(self, data: bytes) -> None:
        if self._parts is not None:
            self._parts.append(data)
            return
        try:
            super().send(data)  # type: ignore[misc]
        except OSError as error:
            if self._is_kept and not self._sent:
                raise StaleConnection(nothing_sent=True) from error
            raise
        self._sent = True

    def response_class(self, connection: socket.socket, *args: Any, **kwargs: Any) -> Head:
        self.head = Head(connection, *args, **kwargs)
        return self.head

    def getresponse(self) -> Any:
        try:
            return super().getresponse()  # type: ignore[misc]
        except (ConnectionError, ssl.SSLEOFError) as error:
            if self._is_kept and self.head is not None and not self.head.wire.received:
                raise StaleConnection(nothing_sent=False) from error
            raise


def _has_input(connection: socket.socket) -> bool:
    plain = getattr(connection, "_sock", connection)
    if isinstance(connection, ssl.SSLSocket):
        return connection.pending() > 0
    try:
        return bool(plain.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False
    except OSError:
        return True


def connection_classes(dialer: Dialer) -> tuple[type[HTTPConnection], type[HTTPSConnection]]:
    """Return urllib3's connections, plain and with TLS, that a dialer makes."""

    class PlainConnection(_Relayed, HTTPConnection):  # type: ignore[misc]
        pass

    class TLSConnection(_Relayed, HTTPSConnection):  # type: ignore[misc]
        pass

    PlainConnection.dialer = TLSConnection.dialer = dialer
    return PlainConnection, TLSConnection
