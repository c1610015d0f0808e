"""Record what an upstream sends, so that clients may leave, come back and read it again.

The recorder reads the upstream as fast as it sends, whatever its clients do; each client, the one whose request it was
too, has a reader of the log.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..protocol.boundary import Boundary
from .drain import Phase
from .exchange import STOPPED, Exchange, Limits, Stage
from .log.base import Log
from .log.ring import Recording
from .monitor import Monitor
from .stream.end import EndReason
from .stream.source import Source, TruncatedBody

#: Bytes of the end of a recording that show whether an event has just ended.
_TAIL = 4


@dataclass(frozen=True, kw_only=True)
class RecordingEnd:
    """What is reported of a recording when it has ended."""

    reason: EndReason
    bytes: int
    #: Seconds from the upstream's head to the end.
    total: float


class _Tail:
    """Whether a recording has just ended an event; it is looked at only when the process stops."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    @property
    def at_boundary(self) -> bool:
        recording = self._recording
        boundary = Boundary()
        # Whatever was before, it was no beginning of the stream.
        boundary.feed(b"x")
        boundary.feed(recording.read(max(recording.start, recording.end - _TAIL)))
        return boundary.at_boundary


class RecordedExchange(Exchange):
    """The side of a recorded exchange that has no client: its deadlines are the upstream's alone."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(None, limits)
        self.client.stop()
        self.tail: _Tail | None = None

    def drain(self, phase: Phase) -> None:
        """End as late as possible, and at the end of an event if there is one in time."""
        self.ends_at_boundary = phase >= Phase.FINISHING
        is_silent = self.upstream.stage is Stage.READ and self.upstream.since != STOPPED
        if phase >= Phase.ABORTING or (is_silent and self.tail is not None and self.tail.at_boundary):
            self.cancel(EndReason.DRAINING)


class Recorder:
    """Reads an upstream's response into a log until it ends, or `cancel()` is called.

    :param source: closed at the end.
    :param exchange: whose upstream side has opened the source.
    :param is_event_stream: whether the recording should end with a whole event when the process stops.
    :param on_end: called exactly once, from a thread that may wait.
    """

    def __init__(
        self,
        source: Source,
        exchange: RecordedExchange,
        monitor: Monitor,
        *,
        is_event_stream: bool,
        on_end: Callable[[RecordingEnd], None],
    ) -> None:
        self._source = source
        self._exchange = exchange
        self._monitor = monitor
        self._is_event_stream = is_event_stream
        self._on_end = on_end
        self._started = time.monotonic()
        self._unsubscribe: Callable[[], None] | None = None
        self._log: Log | None = None
        self._recording: Recording | None = None
        self._has_ended = False

    def cancel(self, reason: str) -> None:
        """End the recording; idempotent, never waits, callable from anywhere."""
        self._exchange.upstream.cancel(EndReason(reason))

    def start(self, log: Log, recording: Recording) -> None:
        """Begin to read; from now on only the recorder closes the source."""
        self._log, self._recording = log, recording
        if self._is_event_stream:
            self._exchange.tail = _Tail(recording)
        self._exchange.upstream.enter(Stage.READ)
        # What came together with the head.
        self._step()
        if self._has_ended:
            return
        self._unsubscribe = self._source.subscribe(self._step)
        if self._unsubscribe is None:
            threading.Thread(target=self._run, name="sse-recorder", daemon=True).start()
        elif self._has_ended:
            self._unsubscribe()

    def _run(self) -> None:
        """Read where there is no event loop."""
        while not self._has_ended:
            self._source.wait(None)
            self._step()

    def _step(self) -> None:
        """Append what has come; called from the event loop, so it never waits."""
        recording, upstream = self._recording, self._exchange.upstream
        assert recording is not None
        if self._has_ended:
            return
        try:
            while piece := self._source.read():
                recording.append(piece)
        except TruncatedBody:
            self._finish(upstream.reason or EndReason.UPSTREAM_TRUNCATED)
            return
        if upstream.reason is not None:
            self._finish(upstream.reason)
        elif piece is not None:
            self._finish(EndReason.COMPLETE)
        elif self._exchange.ends_at_boundary and self._exchange.tail is not None and self._exchange.tail.at_boundary:
            self.cancel(EndReason.DRAINING)
        else:
            upstream.since = time.monotonic()

    def _finish(self, reason: EndReason) -> None:
        assert self._log is not None and self._recording is not None
        self._has_ended = True
        if self._unsubscribe is not None:
            self._unsubscribe()
        self._log.finish(self._recording, reason)
        # To close a connection may take time.
        threading.Thread(target=self._close, args=(reason,), name="sse-recorder-end", daemon=True).start()

    def _close(self, reason: EndReason) -> None:
        assert self._recording is not None
        self._monitor.discard(self._exchange)
        try:
            self._source.close()
        finally:
            total = time.monotonic() - self._started
            self._on_end(RecordingEnd(reason=reason, bytes=self._recording.end, total=total))
