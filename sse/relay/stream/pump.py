"""Reads a source for a client and decides what is sent: bytes, heartbeats, an error event, the end.

Each stream has exactly one end reason; a truncated response never looks complete; nothing is appended inside an event
that has been sent in part.
"""

from __future__ import annotations

import enum
import json
import random
import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ...errors import SSEError, error_object
from ...protocol.boundary import Boundary, event_ends, rest_of_event
from ...protocol.event import ServerSentEvent, encode_comment
from ..exchange import FINAL_WRITE_TIMEOUT, STOPPED, Exchange, Stage
from ..tcp import reset, shut_down
from .end import MESSAGES, STATUSES, Abort, EndReason, StreamAborted, StreamEnd
from .source import Source, Tap, TruncatedBody

#: The key of WSGI's environ by which an app gives its server a `Handover`.
HANDOVER = "sse.stream"

HEARTBEAT = encode_comment()
#: Seconds between an error event and the abort. A browser whose body breaks off discards what its script has not taken
#: yet (WHATWG Streams: to error a stream empties its queue), and the error event with it.
ERROR_EVENT_DELAY = 0.1
#: Milliseconds after which a client of a stopping process may come back: not all of them at once.
RETRY_TIMES = range(1000, 5000)

#: A field in an event stream whose colons have no space behind them.
_UNSPACED = re.compile(rb"^(?:event|data|id):[^ \r\n]", re.MULTILINE)

#: Bytes that are held back at most while an event is not whole.
MAX_HELD = 1024 * 1024


class Wait(enum.Enum):
    """Wait for the source, but not longer than `Pump.patience()`."""

    WAIT = enum.auto()


WAIT = Wait.WAIT


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait so many seconds: what was sent before is the last of the stream."""

    seconds: float


@dataclass(frozen=True, slots=True)
class End:
    """End the response: complete, or aborted by an exception."""

    error: BaseException | None


#: The next thing to do; bytes must be sent.
Step = bytes | Wait | Pause | End


class Pump:
    """The body of a response: iterate it once, then close it; closing without iterating is fine too.

    `step()` decides and never waits. A driver acts on it: an iterator that blocks (here, for any server), or by an
    event loop that does not (gunicorn's worker).

    :param source: closed by the pump.
    :param exchange: whose sides the pump looks at; the caller ends it in `on_end`.
    :param status: of the response.
    :param is_event_stream: whether comments and a last `event: error` may be put between events.
    :param heartbeat: seconds of silence after which a comment is sent between two events; 0 is never.
    :param limit: bytes that are passed on; where there are more, the response is aborted. 0 is no limit.
    :param has_body: False where the head is all that is sent (HEAD, 204, 304), and servers do not iterate.
    :param abort: how the client is shown that the response is not whole.
    :param holds_back: whether only whole events are sent, because the client may not be shown that.
    :param opening: a comment to begin with, where the server sends no head before the first byte.
    :param taps: what looks on, besides the one that follows the events.
    :param on_end: called exactly once.
    """

    def __init__(
        self,
        source: Source,
        exchange: Exchange,
        *,
        status: int,
        is_event_stream: bool,
        heartbeat: float = 0.0,
        limit: int = 0,
        has_body: bool = True,
        abort: Abort = Abort.RAISE,
        holds_back: bool = False,
        opening: bytes = b"",
        taps: Sequence[Tap] = (),
        on_end: Callable[[StreamEnd], None],
    ) -> None:
        self.source = source
        self.exchange = exchange
        self.has_body = has_body
        self._status = status
        self._boundary = exchange.boundary = Boundary() if is_event_stream else None
        self._taps: Sequence[Tap] = (*([self._boundary] if self._boundary is not None else ()), *taps)
        self.heartbeat = heartbeat if is_event_stream else 0.0
        self._limit = limit
        self._abort_by = abort
        # What follows the last whole event, and where it ends.
        self._held = b""
        self._ahead = Boundary() if is_event_stream and holds_back else None
        self._opening = opening
        self._on_end: Callable[[StreamEnd], None] | None = on_end
        # What close() reports if nothing else has been found until then.
        self._outcome = EndReason.CLIENT_GONE if has_body else EndReason.COMPLETE
        self._end: End | None = None
        self._pause: Pause | None = None
        self._head = time.monotonic() - exchange.started
        self._first: float | None = None
        self._is_spaced = True
        self._gap = 0.0
        #: When the last piece came or the last heartbeat was sent.
        self._last = 0.0
        exchange.upstream.stage = Stage.READ
        exchange.upstream.since = STOPPED
        self._pieces: Generator[bytes, None, None] | None = None

    def step(self) -> Step:
        """Decide what comes next."""
        if self._end is not None:
            pause, self._pause = self._pause, None
            return pause or self._end
        exchange, upstream, boundary = self.exchange, self.exchange.upstream, self._boundary
        if upstream.since == STOPPED:
            upstream.since = self._last = time.monotonic()
            if exchange.ends_at_boundary and boundary is not None and boundary.at_boundary:
                exchange.cancel(exchange.end_reason)
        try:
            piece = self.source.read()
        except TruncatedBody as error:
            return self._abort(upstream.reason or error.reason, event_id=error.event_id)
        except Exception as error:
            self._outcome = EndReason.INTERNAL_ERROR
            return self._abort(upstream.reason or self._outcome, error)
        if upstream.reason is not None:
            return self._abort(upstream.reason)
        if piece is None:
            return WAIT if not self.heartbeat else self._silence(time.monotonic())
        if not piece:
            return self._complete()
        return self._pass(piece, time.monotonic())

    def _pass(self, piece: bytes, now: float) -> Step:
        exchange, upstream, boundary = self.exchange, self.exchange.upstream, self._boundary
        if self._ahead is not None and not (piece := self._whole_events(piece, self._ahead)):
            upstream.since = now
            # Only a read that brings nothing shows that there is something to wait for.
            return self.step()
        if self._first is None:
            self._first = now - exchange.started
            self._is_spaced = _UNSPACED.search(piece) is None
        elif now - upstream.since > self._gap:
            self._gap = now - upstream.since
        # The client is waited for now, not the upstream.
        upstream.since = STOPPED
        is_limited = 0 < self._limit < exchange.bytes + len(piece)
        if is_limited:
            piece = piece[: self._limit - exchange.bytes]
        if boundary is not None and exchange.ends_at_boundary:
            piece = rest_of_event(piece, boundary)
        # `_feed`, written out: this is done for each piece.
        exchange.bytes += len(piece)
        for tap in self._taps:
            tap.feed(piece)
        if is_limited:
            # So that what is missing is seen.
            end = self._abort(EndReason.UPSTREAM_TRUNCATED)
            return piece or end
        return piece

    def _feed(self, piece: bytes) -> None:
        self.exchange.bytes += len(piece)
        for tap in self._taps:
            tap.feed(piece)

    def _whole_events(self, piece: bytes, ahead: Boundary) -> bytes:
        """Return what has been held back and what follows, up to the end of the last whole event."""
        *_, end = 0, *event_ends(piece, ahead)
        if len(self._held) + len(piece) > MAX_HELD:
            end = len(piece)
        if not end:
            self._held += piece
            return b""
        whole, self._held = self._held + piece[:end], piece[end:]
        return whole

    def _silence(self, now: float) -> Step:
        """Return a heartbeat if it is time for one; it is no sign of life of the upstream, whose clock goes on."""
        if now - self._last < self.heartbeat:
            return WAIT
        self._last = now
        return HEARTBEAT if self._boundary is not None and self._boundary.at_boundary else WAIT

    def patience(self) -> float | None:
        """Return for how many seconds nothing but the source can bring a step, None if there is no limit."""
        if not self.heartbeat:
            return None
        return max(self._last + self.heartbeat - time.monotonic(), 0.0)

    def _complete(self) -> Step:
        self._outcome = EndReason.COMPLETE
        self._end = End(None)
        rest, self._held = self._held, b""
        if rest:
            self._feed(rest)
        for tap in self._taps:
            tap.finish()
        return rest or self._end

    def _abort(self, reason: EndReason, error: BaseException | None = None, *, event_id: str | None = None) -> Step:
        self._outcome = reason
        for tap in self._taps:
            tap.finish()
        self._end = End(error or StreamAborted(reason))
        if self._boundary is not None and self._boundary.at_boundary and self.exchange.client.reason is None:
            self._pause = Pause(ERROR_EVENT_DELAY)
            return encode_error(reason, event_id, is_spaced=self._is_spaced)
        return self._end

    def fail(self, error: BaseException) -> End:
        """End the stream where it is, because its server raises; return how."""
        if self._end is None:
            self._outcome = self.exchange.reason or EndReason.INTERNAL_ERROR
            self._end = End(error)
        return self._end

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Let the client's clock run, and the upstream's stand still."""
        client, upstream = self.exchange.client, self.exchange.upstream
        since = upstream.since
        upstream.since = STOPPED
        client.enter(Stage.WRITE)
        begin = client.since
        try:
            yield
        finally:
            client.since = STOPPED
            upstream.since = since + time.monotonic() - begin

    def __iter__(self) -> Generator[bytes, None, None]:
        if self._pieces is None:
            self._pieces = self._drive()
        return self._pieces

    def _drive(self) -> Generator[bytes, None, None]:
        """Yield the bytes to send, waiting where it has to."""
        client = self.exchange.client
        # A server sends the head together with the first piece, so an empty one sends it now.
        client.enter(Stage.WRITE)
        yield self._opening
        client.stop()
        try:
            while not isinstance(step := self.step(), End):
                if isinstance(step, bytes):
                    # `writing()`, written out: this is what is done for each piece.
                    client.enter(Stage.WRITE)
                    yield step
                    client.stop()
                elif isinstance(step, Pause):
                    time.sleep(step.seconds)
                else:
                    self.source.wait(self.patience())
        except GeneratorExit:
            # The server closes a body that it could not write to the end; close() reports why.
            raise
        except BaseException as error:
            step = self.fail(error)
        # The last chunk is still to be written.
        client.enter(Stage.WRITE)
        is_shown = self.finish(step)
        # A connection that has ended is no fault of the app's, which what wraps it may report for each exception.
        if step.error is not None and not (is_shown and isinstance(step.error, StreamAborted)):
            raise step.error

    def finish(self, end: End) -> bool:
        """Release the source; return whether the client has been shown that the response is not whole."""
        self.source.close()
        if end.error is None:
            return False
        connection, how = self.exchange.client.connection, self._abort_by
        # First, so that a client that sees the end may have the next stream.
        self._report(self._outcome)
        if connection is None or how is Abort.RAISE:
            return False
        if how is Abort.RESET:
            reset(connection, patience=FINAL_WRITE_TIMEOUT)
        else:
            shut_down(connection)
        return True

    def close_unsent(self) -> None:
        """Close a stream whose response the server never got; do nothing if it has begun."""
        if self._pieces is None and not self._last:
            self.exchange.cancel(EndReason.INTERNAL_ERROR)
            self.close()

    def close(self) -> None:
        """End the stream if it has not ended; servers call it always, also when they never iterated."""
        if self._pieces is not None:
            self._pieces.close()
        self._report(self.exchange.upstream.reason or self._outcome)

    def _report(self, reason: EndReason) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is None:
            return
        try:
            self.source.close()
        finally:
            on_end(
                StreamEnd(
                    reason=reason,
                    status=self._status,
                    events=self._boundary.events if self._boundary is not None else 0,
                    bytes=self.exchange.bytes,
                    head=self._head,
                    first_byte=self._first,
                    longest_gap=self._gap or None,
                    total=time.monotonic() - self.exchange.started,
                )
            )


@dataclass(slots=True)
class Handover:
    """A stream that a server may send itself, without iterating the body; the request has been read whole.

    :param body: what the app returns, if nothing has wrapped it on its way to the server, which closes it.
    """

    body: Any
    pump: Pump


def encode_error(reason: EndReason, id: str | None = None, *, is_spaced: bool = True) -> bytes:
    """Return the event that precedes the abort where one can be sent.

    :param is_spaced: whether a space stands behind colons. DashScope's stream has none, and its SDK accepts no other.
    """
    retry = random.choice(RETRY_TIMES) if reason is EndReason.DRAINING else None
    message = MESSAGES.get(reason, SSEError.title)
    error = error_object(str(reason), message, status=STATUSES.get(reason, 500))
    data = {"code": str(reason), "error": error}
    event = ServerSentEvent(event="error", data=json.dumps(data), id=id, retry=retry).encode()
    return event if is_spaced else re.sub(rb"^(\w+): ", rb"\1:", event, flags=re.MULTILINE)
