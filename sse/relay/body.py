"""The body of an upstream's answer: one piece for each read of the socket, whatever its framing.

urllib3 gives one piece for each chunk, or holds everything back until the end where a body is not chunked.
"""

from __future__ import annotations

import functools
import itertools
import ssl
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import gevent
from gevent import socket as gevent_socket

from ..protocol.framing import ChunkedDecoder, Framing, MalformedChunk, parse_framing
from .connection import Head
from .watch import current

#: Bytes asked of the socket at a time.
READ_SIZE = 64 * 1024
#: Reads after which others have their turn: where there is always something to read, nothing ever waits.
TURN = 16


class TruncatedBody(Exception):
    """The upstream's body ended, or went wrong, before its framing said so."""


def _take_turns() -> Callable[[], None]:
    """Return what lets others run once in `TURN` calls."""
    turns = itertools.cycle([False] * (TURN - 1) + [True])

    def wait() -> None:
        if next(turns):
            time.sleep(0)

    return wait


class RawBody:
    """What `requests.Response.raw` is here: `stream()` yields what one read of the socket brought, at once.

    It yields b"" when a read was given a time-out and nothing came; the caller may then read on.
    """

    def __init__(self, response: Any, *, method: str) -> None:
        self._response = response
        self._connection: Any = response.connection
        self._head: Head = self._connection.head
        self._wire = self._head.wire
        self.headers = response.headers
        self.status: int = response.status
        self.reason: str = response.reason
        self._watch = current.get()
        try:
            self._framing: Framing = parse_framing(self.headers.items(), method=method, status=self.status)
        except ValueError:
            self._release(reusable=False)
            raise
        if self._framing.kind == "none" or (self._framing.kind == "length" and not self._framing.length):
            # After a 101 the connection speaks something else.
            self._release(reusable=not self._wire.buffer and self.status >= 200)

    def settimeout(self, seconds: float | None) -> None:
        """Set how long a read waits before it yields b""; None is for ever."""
        self._wire.connection.settimeout(seconds)

    def stream(self, amt: int | None = None, decode_content: bool | None = None) -> Iterator[bytes]:
        """Yield the body's bytes as they come, still encoded, and keep the connection if it ended as it should.

        :param amt: ignored, as is decode_content; they are requests' arguments.
        :raises TruncatedBody: if it did not; what came before has been yielded.
        """
        del amt, decode_content
        if self._head.isclosed():
            return
        reusable = False
        try:
            if self._framing.kind == "chunked":
                reusable = yield from self._chunked()
            elif self._framing.kind == "length":
                reusable = yield from self._counted(self._framing.length)
            else:
                yield from self._reads()
        finally:
            self._release(reusable=reusable)

    def _reads(self) -> Iterator[bytes]:
        """Yield each read of the socket, b"" for one that timed out, until the upstream closes."""
        piece, self._wire.buffer = self._wire.buffer, b""
        if piece:
            yield piece
        recv = self._wire.connection.recv
        wait = self._waiter() or _take_turns()
        while True:
            try:
                wait()
                piece = recv(READ_SIZE)
            except TimeoutError:
                yield b""
                continue
            except (OSError, ValueError) as error:
                # ValueError is what TLS says of a connection that was shut down under it.
                raise TruncatedBody("the connection broke") from error
            if not piece:
                return
            yield piece

    def _waiter(self) -> Callable[[], object] | None:
        """Return what waits until a read will give something, None where reading itself has to wait.

        gevent's `recv` first tries, fails and only then waits; to wait first saves that, a fifth of an event's cost,
        and gives the other greenlets their turn before every read.
        """
        connection = self._wire.connection
        if not isinstance(connection, gevent_socket.socket) or isinstance(connection, ssl.SSLSocket):
            return None
        if connection.gettimeout() is not None:
            return None
        hub = gevent.get_hub()
        return functools.partial(hub.wait, hub.loop.io(connection.fileno(), 1))

    def _chunked(self) -> Generator[bytes, None, bool]:
        decoder = ChunkedDecoder()
        for data in self._reads():
            try:
                piece = decoder.feed(data) if data else data
            except MalformedChunk as error:
                if error.payload:
                    yield error.payload
                raise TruncatedBody("a chunk is malformed") from error
            # A read that brought only a part of a chunk's frame is no silence, and nothing to pass on.
            if piece or not data:
                yield piece
            if decoder.finished:
                return not decoder.rest
        raise TruncatedBody("the last chunk is missing")

    def _counted(self, length: int) -> Generator[bytes, None, bool]:
        for data in self._reads():
            yield data[:length]
            length -= len(data)
            if length <= 0:
                return length == 0
        raise TruncatedBody("the body is shorter than its Content-Length")

    def _may_persist(self) -> bool:
        # RFC 9112, section 9.3: HTTP/1.0 keeps a connection only if both sides say so, and 6.1 wants it closed after
        # a Transfer-Encoding there; few speak it, so none of theirs is kept.
        return not self._head.will_close and self._head.version > 10

    def close(self) -> None:
        """Let go of the upstream; a body that was not read to its end takes the connection with it."""
        self._release(reusable=False)

    def release_conn(self) -> None:
        """Do nothing: `close()` and the end of `stream()` have done it. requests calls it."""

    def _release(self, *, reusable: bool) -> None:
        if self._head.isclosed():
            return
        self._head.close()
        if reusable and self._framing.reusable and self._may_persist():
            self.settimeout(None)
            if self._watch is not None:
                self._watch.detach()
            self._connection.keep()
        else:
            self._connection.close()
        self._response.release_conn()
