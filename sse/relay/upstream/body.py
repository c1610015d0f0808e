"""The body of an upstream's answer: one piece for each read of the socket, whatever its framing.

urllib3 gives one piece for each chunk, or holds everything back until the end where a body is not chunked.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from typing import Any

from gevent import socket as gevent_socket
from urllib3 import HTTPHeaderDict

from ...protocol.http1.framing import Framing, MalformedBody, parse_framing
from ..exchange import current
from .connection import Answer, take_turns

#: Bytes asked of the socket at a time.
READ_SIZE = 64 * 1024


class TruncatedBody(Exception):
    """The upstream's body ended, or went wrong, before its framing said so."""


def _go_on() -> None:
    """Do not wait."""


class RawBody:
    """What `requests.Response.raw` is here: `stream()` yields what one read of the socket brought, at once.

    It yields b"" when a read was given a time-out and nothing came, or, after `wait_outside()`, when it would have to
    wait; the caller may then read on.
    """

    def __init__(self, answer: Answer, connection: Any, release: Callable[[Any], None], *, method: str) -> None:
        self._answer = answer
        self._connection = connection
        self._release_conn = release
        self.status = answer.head.status
        self.reason = answer.reason
        #: All fields as they came, repeated ones apart.
        self.fields = answer.head.fields
        self._watch = current.get()
        self._waits = True
        try:
            self._framing: Framing = parse_framing(self.fields, method=method, status=self.status)
        except ValueError:
            self._release(reusable=False)
            raise
        if self._framing.kind == "none" or (self._framing.kind == "length" and not self._framing.length):
            # After a 101 the connection speaks something else.
            self._release(reusable=not self._answer.buffer and self.status >= 200)

    @property
    def headers(self) -> HTTPHeaderDict:
        """The fields as urllib3 gives them; who instruments it looks at them, and at the version."""
        return self._answer.headers

    @property
    def version(self) -> int:
        return self._answer.version

    def settimeout(self, seconds: float | None) -> None:
        """Set how long a read waits before it yields b""; None is for ever."""
        self._answer.connection.settimeout(seconds)

    def wait_outside(self) -> int | None:
        """Let `stream()` yield b"" where it would wait; whoever asks for it waits until there is something to read.

        :return: the descriptor to wait for, None where the connection is not gevent's: then nothing has changed.
        """
        connection = self._answer.connection
        if self._answer.isclosed() or not isinstance(connection, gevent_socket.socket):
            return None
        self._waits = False
        self._answer.wait = _go_on
        connection.settimeout(0.0)
        return int(connection.fileno())

    def stream(self, amt: int | None = None, decode_content: bool | None = None) -> Iterator[bytes]:
        """Yield the body's bytes as they come, still encoded, and keep the connection if it ended as it should.

        :param amt: ignored, as is decode_content; they are requests' arguments.
        :raises TruncatedBody: if it did not; what came before has been yielded.
        """
        del amt, decode_content
        if self._answer.isclosed():
            return
        decoder = self._framing.decoder()
        wait, recv = self._reading()
        pending = self._pending()
        data, self._answer.buffer = self._answer.buffer, b""
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
        """Return what waits for a read, and the read; one with a time-out waits itself."""
        connection = self._answer.connection
        if self._waits and connection.gettimeout() is not None:
            return take_turns(), connection.recv
        return self._answer.wait, self._answer.recv

    def _pending(self) -> Callable[[], int]:
        """Return what tells how many bytes TLS has read that its descriptor does not tell of any more; else 0."""
        connection = self._answer.connection
        return connection.pending if isinstance(connection, ssl.SSLSocket) else int

    def close(self) -> None:
        """Let go of the upstream; a body that was not read to its end takes the connection with it."""
        self._release(reusable=False)

    def release_conn(self) -> None:
        """Do nothing: `close()` and the end of `stream()` have done it. requests calls it."""

    def _release(self, *, reusable: bool) -> None:
        if self._answer.isclosed():
            return
        self._answer.close()
        if reusable and self._framing.reusable and self._answer.head.persists:
            self.settimeout(None)
            if self._watch is not None:
                self._watch.detach()
            self._connection.keep()
        else:
            self._connection.close()
        self._release_conn(self._connection)
