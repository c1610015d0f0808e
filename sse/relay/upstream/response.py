"""An upstream's response: a source that yields one piece for each read of the socket, whatever the framing.

urllib3's yields one piece for each chunk, or holds everything back until the end where a body is not chunked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from ...protocol.http1.framing import MalformedBody, parse_framing
from ...protocol.http1.head import Head
from ..stream.source import Tap, TruncatedBody
from .connection import Connection
from .request import PreparedUpstreamRequest
from .transport import READ_SIZE

#: Full reads after which the body pauses, because where there is always something to read nothing else would run.
READS_PER_TURN = 16
#: Seconds after which it pauses although there were fewer: a full read of the smallest chunks takes 40 ms.
TURN = 0.01

_NOTHING: Iterator[bytes | None] = iter(())


class UpstreamResponse:
    """An upstream's response, whose head has come; a `Source` that its owner closes.

    It is what `requests.Response.raw` is here: requests' `iter_content` hands through what `stream()` yields.

    :param rest: what came of the body with the head.
    :param release: called with the connection when it may carry another exchange.
    :raises InvalidResponse: if the fields frame no body.
    """

    __slots__ = (
        "_connection",
        "_decoder",
        "_is_reusable",
        "_release",
        "_rest",
        "_side",
        "_transport",
        "fields",
        "is_complete",
        "pieces",
        "status",
        "tap",
    )

    def __init__(
        self,
        connection: Connection,
        request: PreparedUpstreamRequest,
        head: Head,
        rest: bytes,
        release: Callable[[Connection], None],
    ) -> None:
        self._connection: Connection | None = connection
        self._transport = connection.transport
        self._side = request.side
        self._release = release
        self._rest = rest
        self.status = head.status
        #: All fields as they came, repeated ones apart.
        self.fields = head.fields
        #: Whether the body was read to the end that its framing promised.
        self.is_complete = False
        #: What looks at the bytes as they are read.
        self.tap: Tap | None = None
        #: What requests gives of `stream()`.
        self.pieces = _NOTHING
        self._decoder, is_reusable = parse_framing(head.fields, method=request.method or "", status=head.status)
        self._is_reusable = is_reusable and head.persists and connection.is_sent and request.may_keep
        if self._decoder.finished:
            self.is_complete = True
            # After a 101 the connection speaks another protocol.
            self._end(reusable=not rest and head.status >= 200)

    def read(self) -> bytes | None:
        """Return what has arrived, one piece for a read of the socket; None if nothing has yet, b"" at the end.

        :raises TruncatedBody: if the body ends before the end of its framing; what came before has been returned.
        """
        piece = next(self.pieces, b"")
        if piece == b"" and not self.is_complete:
            raise TruncatedBody("the body was closed, or has ended early before")
        if self.tap is not None and piece:
            self.tap.feed(piece)
        return piece

    def stream(self, amt: int | None = None, decode_content: bool | None = None) -> Iterator[bytes | None]:
        """Yield the body's bytes as they come, still encoded, and None where nothing has come.

        The connection is kept if the body ends as it should.

        :param amt: ignored, as is decode_content; they are requests' arguments.
        :raises TruncatedBody: as `read`.
        """
        del amt, decode_content
        if self._connection is None:
            return
        read, decoder = self._transport.reader(), self._decoder
        received: bytes | None = self._rest
        self._rest = b""
        reads, end_of_turn = 0, time.monotonic() + TURN
        try:
            while True:
                if received and (piece := decoder.feed(received)):
                    yield piece
                if decoder.finished:
                    break
                reads += 1
                # After a read that brought less than it might have, another one would find nothing.
                is_full = received is not None and len(received) == READ_SIZE
                if not is_full or not reads % READS_PER_TURN or time.monotonic() > end_of_turn:
                    # What is waited for may take hours; until then nothing holds what came before.
                    received, piece = None, b""
                    yield None
                    end_of_turn = time.monotonic() + TURN
                try:
                    received = read(READ_SIZE)
                except BlockingIOError:
                    received = None
                    continue
                if not received:
                    self._check_end()
            self.is_complete = True
            self._end(reusable=not decoder.rest)
        except MalformedBody as error:
            if error.payload:
                yield error.payload
            raise TruncatedBody(str(error)) from error
        except OSError as error:
            raise TruncatedBody("the connection broke") from error
        finally:
            self.close()

    def _check_end(self) -> None:
        """Check that the body may end with the connection."""
        if self._transport.is_cancelled:
            raise MalformedBody("the stream was cancelled")
        self._decoder.end()

    def wait(self, timeout: float | None = None) -> None:
        """Block until `read()` may return something else than None, or for `timeout` seconds (None: for ever)."""
        if self._connection is not None:
            self._transport.wait(timeout)

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None] | None:
        """Call `wake()` from the event loop each time `read()` may return something; return what unsubscribes."""
        return self._transport.subscribe(wake)

    def cancel(self) -> None:
        """End the response now, waking its reader; idempotent, never waits, callable from any thread."""
        self._transport.cancel()

    def close(self) -> None:
        """Close the connection, unless the body was read to its end; idempotent."""
        self._end(reusable=False)

    def _end(self, *, reusable: bool) -> None:
        connection, self._connection = self._connection, None
        # They hold requests' response, and that holds this.
        self.pieces = _NOTHING
        if connection is None:
            return
        # From here on the connection may be another exchange's.
        self._side.detach()
        if reusable and self._is_reusable:
            self._release(connection)
        else:
            connection.transport.close()

    def __enter__(self) -> UpstreamResponse:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
