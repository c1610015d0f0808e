"""One HTTP/1.1 connection to an upstream: sends a request, and reads the head of its response.

The parser is in `protocol.http1`; this moves bytes between it and a transport.
"""

from __future__ import annotations

import ssl

from ...protocol.http1.head import Head, HeadReader, InvalidResponse
from .. import tcp
from ..exchange import Side, Stage
from .transport import READ, WRITE, Transport

#: Bytes read at a time for a head.
HEAD_READ_SIZE = 8 * 1024

#: Bytes of a request that the system sends soon, whatever the upstream does.
SYSTEM_BUFFER = 64 * 1024
#: Seconds between two looks at how much of a longer one it still holds.
UNSENT_INTERVAL = 0.25

#: What a pool distinguishes connections by: scheme, host, port.
Key = tuple[str, str, int]


class NoResponse(ConnectionResetError):
    """The upstream closed the connection without a response."""


class StaleConnection(NoResponse):
    """The upstream closed a kept connection before it sent anything back.

    :param nothing_sent: whether not even the first byte of the request was sent.
    """

    def __init__(self, *, nothing_sent: bool) -> None:
        super().__init__("the upstream had closed a kept connection")
        self.nothing_sent = nothing_sent


class Connection:
    """A connection that carries one exchange after the other.

    :param transport: connected, and past the handshake of TLS.
    """

    __slots__ = ("idle_since", "is_reused", "is_sent", "key", "sent", "transport")

    def __init__(self, transport: Transport, key: Key) -> None:
        self.transport = transport
        self.key = key
        #: Whether it carried an exchange before this one.
        self.is_reused = False
        #: Bytes of this exchange's request that were sent, and whether those are all.
        self.sent = 0
        self.is_sent = False
        #: time.monotonic() at which the pool got it.
        self.idle_since = 0.0

    def exchange(self, data: bytes, side: Side) -> tuple[Head, bytes]:
        """Send a request and return the head of its response, and what came of the body with it.

        The clock of the head starts when the request has been sent whole. What the upstream responds before that is its
        response; the rest of the request is not sent.

        :param data: the request, head and body, to be sent with one write.
        :raises StaleConnection: the connection was kept, and is closed.
        :raises InvalidResponse: what came is not HTTP, or ends early.
        :raises OSError: the connection broke.
        """
        side.attach(self.transport)
        side.enter(Stage.HEAD)
        self.sent, self.is_sent = 0, False
        reader = HeadReader()
        try:
            head = self._send(data, reader, side) or self._read(reader)
        except (ConnectionError, ssl.SSLEOFError) as error:
            if self.is_reused and not reader.received:
                raise StaleConnection(nothing_sent=not self.sent) from error
            raise
        return head, reader.rest

    def _send(self, data: bytes, reader: HeadReader, side: Side) -> Head | None:
        """Send a request; return the head of the response if that comes first."""
        rest, transport = memoryview(data), self.transport
        try:
            while True:
                sent = transport.send(rest)
                self.sent += sent
                rest = rest[sent:]
                if not rest and not transport.has_unsent:
                    break
                transport.wait(events=READ | WRITE)
                if (head := self._receive(reader)) is not None:
                    return head
                # A slow upload that makes progress is not late.
                side.enter(Stage.HEAD)
        except (BrokenPipeError, ConnectionResetError):
            # A server that refuses a request before it has come whole may have sent its response.
            if not self.sent:
                raise
            return None
        self.is_sent = True
        if len(data) > SYSTEM_BUFFER:
            return self._read_while_it_leaves(reader, side)
        return None

    def _read_while_it_leaves(self, reader: HeadReader, side: Side) -> Head | None:
        """Wait until the system has sent what it took, which may be megabytes; return a head that comes first."""
        side.enter(Stage.HEAD)
        unsent = tcp.unsent(self.transport.socket)
        while unsent:
            if self.transport.wait(UNSENT_INTERVAL) and (head := self._receive(reader)) is not None:
                return head
            before, unsent = unsent, tcp.unsent(self.transport.socket)
            if unsent < before:
                side.enter(Stage.HEAD)
        return None

    def _read(self, reader: HeadReader) -> Head:
        while True:
            self.transport.wait()
            if (head := self._receive(reader)) is not None:
                return head

    def _receive(self, reader: HeadReader) -> Head | None:
        try:
            piece = self.transport.reader()(HEAD_READ_SIZE)
        except BlockingIOError:
            return None
        if not piece and reader.received:
            raise InvalidResponse("the head is truncated")
        if not piece:
            raise NoResponse("the upstream closed the connection without a response")
        return reader.feed(piece)
