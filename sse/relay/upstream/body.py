"""The body of an upstream's answer: one piece for each read of the socket, whatever its framing.

urllib3 gives one piece for each chunk, or holds everything back until the end where a body is not chunked.
"""

from __future__ import annotations

import select
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import gevent
from gevent import socket as gevent_socket
from urllib3 import HTTPHeaderDict

from ...protocol.http1.framing import Framing, MalformedBody, parse_framing
from ..exchange import current
from ..stream.source import TruncatedBody
from .connection import Answer, take_turns

#: Bytes asked of the socket at a time.
READ_SIZE = 64 * 1024


class RawBody:
    """What `requests.Response.raw` is here: `stream()` yields what one read of the socket brought, at once.

    It yields None when it would have to wait; the caller waits, with `wait()` or `subscribe()`, and reads on.
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
        self._may_read = False
        self._turns = take_turns()
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

    def wait(self, timeout: float | None) -> None:
        """Wait until there is something to read, or for so many seconds."""
        connection = self._answer.connection
        if self._answer.isclosed():
            return
        self._may_read = True
        if isinstance(connection, ssl.SSLSocket) and connection.pending():
            return
        if not isinstance(connection, gevent_socket.socket):
            poll = select.poll()
            poll.register(connection.fileno(), select.POLLIN)
            poll.poll(None if timeout is None else timeout * 1000)
            self._turns()
            return
        hub = gevent.get_hub()
        with hub.loop.io(connection.fileno(), 1) as io, gevent.Timeout(timeout, False):
            hub.wait(io)

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None] | None:
        """Call `wake()` when there is something to read; None where the connection is not gevent's."""
        connection = self._answer.connection
        if self._answer.isclosed() or not isinstance(connection, gevent_socket.socket):
            return None
        io = gevent.get_hub().loop.io(connection.fileno(), 1)
        io.start(self._on_readable, wake)
        unsubscribe: Callable[[], None] = io.close
        return unsubscribe

    def _on_readable(self, wake: Callable[[], None]) -> None:
        self._may_read = True
        wake()

    def stream(self, amt: int | None = None, decode_content: bool | None = None) -> Iterator[Any]:
        """Yield the body's bytes as they come, still encoded, and keep the connection if it ended as it should.

        :param amt: ignored, as is decode_content; they are requests' arguments.
        :raises TruncatedBody: if it did not; what came before has been yielded.
        """
        del amt, decode_content
        if self._answer.isclosed():
            return
        decoder = self._framing.decoder()
        recv, pending = self._answer.recv, self._pending()
        self._answer.connection.settimeout(0.0)
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
                if not (self._may_read or pending()):
                    yield None
                    continue
                self._may_read = False
                try:
                    data = recv(READ_SIZE)
                except (BlockingIOError, ssl.SSLWantReadError):
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
            self._answer.connection.settimeout(None)
            if self._watch is not None:
                self._watch.detach()
            self._connection.keep()
        else:
            self._connection.close()
        self._release_conn(self._connection)
