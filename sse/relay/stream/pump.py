"""Ties a source to a client: passes bytes on, notices every ending, and gives back what was taken.

The contract is design's "How a stream ends": one end reason each, a truncated answer never looks complete, nothing
is appended inside a half-sent event.
"""

from __future__ import annotations

import errno
import json
import random
import re
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from ...protocol.boundary import Boundary
from ...protocol.event import ServerSentEvent, encode_comment
from ..exchange import LAST_WORDS, EndReason, Stage, Watch, reset_on_close
from ..upstream.body import TruncatedBody

HEARTBEAT = encode_comment()
#: Seconds between the last words and the abort.
HEARING_TIME = 0.1
#: Milliseconds after which a client of a stopping process may come back: not all of them at once.
RETURN_TIMES = range(1000, 5000)

_LINE = re.compile(rb"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")


class StreamAborted(ConnectionError):
    """Ends the response without its last chunk, so that the client's `fetch` rejects.

    To the server it says "connection reset": the one error on which every WSGI server closes the connection at once
    and writes neither an error page into the open stream nor a traceback into the log.
    """

    def __init__(self, reason: EndReason) -> None:
        super().__init__(errno.ECONNRESET, f"the stream was aborted: {reason}")


@dataclass(frozen=True, kw_only=True)
class StreamEnd:
    """What there is to say of a stream when it has ended."""

    reason: EndReason
    status: int
    #: Events that ended; 0 where the answer is no event stream.
    events: int
    bytes: int
    #: Seconds from the request to the upstream's head, to the first byte of the body (None: none came), and to the end.
    head: float
    first_byte: float | None
    #: Seconds of the longest wait for the source between two pieces; None where there were not two.
    longest_gap: float | None
    total: float


class Source(Protocol):
    """What a pump reads: an upstream's answer, or a producer."""

    status: int

    def iter_chunks(self, *, silence: float | None = None) -> Iterator[bytes]:
        """Yield the body's pieces, and b"" after so many seconds without one."""

    def wait_outside(self) -> int | None:
        """Let `iter_chunks()` yield b"" where it would wait; return the descriptor to wait for, None if it cannot."""

    def close(self) -> None:
        """Let go of what is behind it; may be called again."""


class Pump:
    """The body of an answer: iterate it once, then close it; closing without iterating is fine too.

    :param source: the open answer, or what produces it; closed by the pump.
    :param watch: watches this exchange; the caller ends it in `on_end`.
    :param is_event_stream: whether comments and a last `event: error` may be put between events.
    :param heartbeat: seconds of silence after which a comment is sent between two events; 0 is never.
    :param limit: bytes that are passed on; the rest is not read. 0 is no limit.
    :param has_body: False where the head is all that is sent (HEAD, 204, 304), and servers do not iterate.
    :param is_framed: False where the client takes the connection's end for the body's (HTTP/1.0).
    :param on_end: called exactly once, with what there is to say.
    """

    def __init__(
        self,
        source: Source,
        watch: Watch,
        *,
        is_event_stream: bool,
        heartbeat: float = 0.0,
        limit: int = 0,
        has_body: bool = True,
        is_framed: bool = True,
        on_end: Callable[[StreamEnd], None],
    ) -> None:
        self._source = source
        self._watch = watch
        self._boundary = watch.boundary = Boundary() if is_event_stream else None
        self._heartbeat = heartbeat if is_event_stream else 0.0
        self._limit = limit
        self._is_framed = is_framed
        self._on_end: Callable[[StreamEnd], None] | None = on_end
        # What close() has to say if nothing else has been found until then.
        self._outcome = EndReason.CLIENT_GONE if has_body else EndReason.COMPLETE
        self._bytes = 0
        self._head = time.monotonic() - watch.started
        self._first: float | None = None
        self._gap = 0.0
        self._waits = True
        #: Whether the source has been read as far as it will be.
        self.is_ending = False
        self._pieces = self._pump()

    def __iter__(self) -> Generator[bytes, None, None]:
        return self._pieces

    def wait_outside(self) -> int | None:
        """Let the pump yield b"" where it would wait for its source, so that nobody needs to be blocked in it.

        Whoever iterates it then waits until there is something to read, unless `is_ending`: what is left to do may wait
        for something else.

        :return: the descriptor to wait for; None if the pump has to wait itself, and then nothing has changed.
        """
        descriptor = None if self._heartbeat or self._limit else self._source.wait_outside()
        self._waits = descriptor is None
        return descriptor

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Return a context in which the client is waited for, and not the source."""
        stage = self._watch.stage
        self._watch.enter(Stage.WRITE)
        yield
        self._watch.enter(stage)

    def _pump(self) -> Generator[bytes, None, None]:
        self._watch.enter(Stage.WRITE)
        try:
            # The server sends the head with the first item; an empty one sends it now and adds no byte.
            yield b""
            yield from self._relay()
            reason = self._watch.reason or EndReason.COMPLETE
        except TruncatedBody:
            reason = self._watch.reason or EndReason.UPSTREAM_TRUNCATED
        except GeneratorExit:
            # The server closes a body that it could not write to the end; close() says why.
            raise
        except Exception:
            # The server logs what an own stream's iterable raised.
            self._outcome = EndReason.INTERNAL_ERROR
            self._watch.enter(Stage.WRITE)
            yield from self._last_words(self._watch.reason or self._outcome)
            self._abort(self._watch.reason or self._outcome)
            raise
        except BaseException:
            self._abort(self._watch.reason or EndReason.INTERNAL_ERROR)
            raise
        self._watch.enter(Stage.WRITE)
        self._source.close()
        if reason is EndReason.COMPLETE:
            # The last chunk is still to be written.
            self._outcome = reason
            return
        yield from self._last_words(reason)
        self._abort(reason)
        raise StreamAborted(reason)

    def _last_words(self, reason: EndReason) -> Iterator[bytes]:
        self.is_ending = True
        if not self._waits:
            # Whoever iterates it where nothing may wait goes on elsewhere.
            yield b""
        if self._boundary is not None and self._boundary.at_boundary and reason is not EndReason.CLIENT_GONE:
            yield encode_error(reason)
            # A browser whose body breaks off throws away what its script has not taken yet (WHATWG Streams: to error a
            # stream empties its queue), and the last words with it: they get a moment to be heard.
            time.sleep(HEARING_TIME)

    def _relay(self) -> Iterator[bytes]:
        watch, boundary, clock = self._watch, self._boundary, time.monotonic
        # `watch.enter`, written out here and below: this is what is done for each piece.
        watch.stage, watch.since = Stage.READ, clock()
        for piece in self._source.iter_chunks(silence=self._heartbeat or None):
            if watch.reason is not None:
                return
            since, now = watch.since, clock()
            if piece:
                if self._first is None:
                    self._first = now - watch.started
                elif now - since > self._gap:
                    self._gap = now - since
                if self._limit:
                    piece = piece[: self._limit - self._bytes]
                self._bytes += len(piece)
                if boundary is not None and watch.is_ending:
                    piece = _rest_of_event(piece, boundary)
                elif boundary is not None:
                    boundary.feed(piece)
            elif not self._heartbeat:
                yield b""
                continue
            elif boundary is not None and boundary.at_boundary:
                piece = HEARTBEAT
            else:
                continue
            watch.stage, watch.since = Stage.WRITE, now
            yield piece
            if watch.is_ending and boundary is not None and boundary.at_boundary:
                watch.cut(EndReason.DRAINING)
                return
            if self._limit and self._bytes == self._limit:
                return
            # A comment of ours is no sign of life of the upstream's.
            watch.stage, watch.since = Stage.READ, since if piece is HEARTBEAT else clock()

    def close(self) -> None:
        """End the stream if it has not ended; servers call it always, also when they never iterated."""
        self._pieces.close()
        self._end(self._watch.reason or self._outcome)

    def _abort(self, reason: EndReason) -> None:
        """End the stream such that the client sees that it is not whole."""
        client = self._watch.client
        if client is not None and not self._is_framed:
            self._source.close()
            reset_on_close(client, patience=LAST_WORDS)
        self._end(reason)

    def _end(self, reason: EndReason) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is None:
            return
        try:
            self._source.close()
        finally:
            on_end(
                StreamEnd(
                    reason=reason,
                    status=self._source.status,
                    events=self._boundary.events if self._boundary is not None else 0,
                    bytes=self._bytes,
                    head=self._head,
                    first_byte=self._first,
                    longest_gap=self._gap or None,
                    total=time.monotonic() - self._watch.started,
                )
            )


def _rest_of_event(piece: bytes, boundary: Boundary) -> bytes:
    """Return what of a piece belongs to the event that has begun, all of it if that does not end there."""
    for line in _LINE.finditer(piece):
        boundary.feed(line[0])
        if boundary.at_boundary:
            return piece[: line.end()]
    return piece


def encode_error(reason: EndReason) -> bytes:
    """Return the event that precedes the abort where one can be sent."""
    retry = random.choice(RETURN_TIMES) if reason is EndReason.DRAINING else None
    return ServerSentEvent(event="error", data=json.dumps({"code": str(reason)}), retry=retry).encode()
