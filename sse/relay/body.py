"""The body of an upstream's answer: one piece for each read of the socket, whatever its framing.

urllib3 gives one piece for each chunk, or holds everything back until the end where a body is not chunked.
"""

from __future__ import annotations

import functools
import itertools
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
from gevent import socket as gevent_socket

from ..protocol.framing import Framing, MalformedBody, parse_framing
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


def _go_on() -> None:
    """Do not wait."""


class RawBody:
    """What `requests.Response.raw` is here: `stream()` yields what one read of the socket brought, at once.

    It yields b"" when a read was given a time-out and nothing came, or, after `wait_outside()`, when it would have to
    wait; the caller may then read on.
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
        self._waits = True
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

    def wait_outside(self) -> int | None:
        """Let `stream()` yield b"" where it would wait; whoever asks for it waits until there is something to read.

        :return: the descriptor to wait for, None where the connection is not gevent's: then nothing has changed.
        """
        connection = self._wire.connection
        if self._head.isclosed() or not isinstance(connection, gevent_socket.socket):
            return None
        self._waits = False
        connection.settimeout(0.0)
        return int(connection.fileno())

    def stream(self, amt: int | None = None, decode_content: bool | None = None) -> Iterator[bytes]:
        """Yield the body's bytes as they come, still encoded, and keep the connection if it ended as it should.

        :param amt: ignored, as is decode_content; they are requests' arguments.
        :raises TruncatedBody: if it did not; what came before has been yielded.
        """
        del amt, decode_content
        if self._head.isclosed():
            return
        decoder = self._framing.decoder()
        wait, recv = self._reading()
        pending = self._pending()
        data, self._wire.buffer = self._wire.buffer, b""
        reusable = False
        # One generator does it all: each that hands on what another yields costs as much as the work itself.
        try:
            while not decoder.finished:
                if data:
                    # It may have been only a part of a chunk's frame, and nothing to pass on.
                    if piece := decoder.feed(data):
                        yield piece
                    data = b""
                    continue
                if not (self._waits or pending()):
                    yield b""
                try:
                    wait()
                    data = recv(READ_SIZE)
                except (BlockingIOError, ssl.SSLWantReadError):
                    continue
                except TimeoutError:
                    yield b""
                    continue
                if not data:
                    decoder.end()
            reusable = not decoder.rest
        except MalformedBody as error:
            if error.payload:
                yield error.payload
            raise TruncatedBody(str(error)) from error
        except (OSError, ValueError) as error:
            # ValueError is what TLS says of a connection that was shut down under it.
            raise TruncatedBody("the connection broke") from error
        finally:
            self._release(reusable=reusable)

    def _reading(self) -> tuple[Callable[[], object], Callable[[int], bytes]]:
        """Return what waits until a read will give something, or does nothing where reading itself waits, and a read.

        gevent's `recv` first tries, fails and only then waits; to wait first saves that, a fifth of an event's cost,
        and gives the other greenlets their turn before every read.
        """
        connection = self._wire.connection
        if not self._waits:
            return _go_on, connection._sock.recv if self._is_plain() else connection.recv
        if not self._is_plain() or connection.gettimeout() is not None:
            return _take_turns(), connection.recv
        hub = gevent.get_hub()
        # Below gevent's socket is the system's, whose read never waits.
        return functools.partial(hub.wait, hub.loop.io(connection.fileno(), 1)), connection._sock.recv

    def _pending(self) -> Callable[[], int]:
        """Return what tells how many bytes TLS has read that its descriptor does not tell of any more; else 0."""
        connection = self._wire.connection
        return connection.pending if isinstance(connection, ssl.SSLSocket) else int

    def _is_plain(self) -> bool:
        return type(self._wire.connection) is gevent_socket.socket

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
