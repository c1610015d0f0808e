"""Record what an upstream sends, so that clients may leave, come back and read it again.

The recorder reads the upstream as fast as it sends, whatever its clients do; each client, the one whose request it was
too, has a reader of the log.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..protocol.boundary import Boundary, rest_of_event
from ..protocol.field import is_event_stream
from .background import run_soon
from .drain import Phase
from .exchange import Exchange, Limits, Stage
from .log.base import Header
from .log.log import Log
from .log.ring import Reader, Recording
from .monitor import Monitor
from .stream.end import EndReason
from .stream.source import Source, TruncatedBody

#: Bytes at the end of a recording that show whether an event has just ended.
_TAIL = 4
#: Seconds between two looks at whether all recorders have ended, while the process stops.
_POLL = 0.05


@dataclass(frozen=True, kw_only=True)
class RecordingEnd:
    """What is reported of a recording when it has ended."""

    reason: EndReason
    bytes: int
    #: Seconds from the upstream's head to the end.
    total: float


class Recorder(Exchange):
    """Reads an upstream's response into a log until it ends, or `stop()` is called: an exchange that has no client.

    :param exchange: of the request; its upstream's side has opened the source, and is the recorder's from now on.
    :param source: closed at the end.
    :param on_end: called exactly once, from a thread that may wait.
    """

    def __init__(
        self, log: Log, limits: Limits, exchange: Exchange, source: Source, on_end: Callable[[RecordingEnd], None]
    ) -> None:
        super().__init__(None, limits)
        self.client.stop()
        self.upstream = exchange.upstream
        self.report = exchange.report
        self._log = log
        self._source = source
        self._on_end = on_end
        self._unsubscribe: Callable[[], None] | None = None
        self._has_ended = False

    @property
    def state(self) -> str:
        return "ending" if self.ends_at_boundary or self.reason is not None else "record"

    def stop(self, reason: EndReason) -> None:
        """End the recording; idempotent, never waits, callable from anywhere."""
        self.upstream.cancel(reason)

    def position(self) -> Boundary:
        """Return where in its events the recording is; looked at only when it is about to end."""
        recording, boundary = self._recording, Boundary()
        # Whatever came before, it was not the beginning of the stream.
        boundary.feed(b"x")
        boundary.feed(recording.read(max(recording.start, recording.end - _TAIL)))
        return boundary

    def drain(self, phase: Phase) -> None:
        """End the recording together with its readers, unless `Recordings.finish()` does it as late as possible."""
        if not self._log.is_shared:
            self.finish(at_boundary=phase is Phase.FINISHING)

    def finish(self, reason: EndReason = EndReason.DRAINING, *, at_boundary: bool) -> None:
        """End the recording now, or as soon as an event has ended."""
        if not self.ends_at_boundary:
            self.ends_at_boundary, self.end_reason = at_boundary, reason
        if not at_boundary or self.position().at_boundary:
            self.cancel(self.end_reason)

    def _end_soon(self, reason: EndReason) -> None:
        fields = self._recording.header.fields
        kind = next((value for name, value in fields if name.lower() == "content-type"), "")
        self.finish(reason, at_boundary=is_event_stream(kind))

    def start(self, recording: Recording) -> None:
        """Begin to read; from now on only the recorder closes the source."""
        self._recording = recording
        self.upstream.enter(Stage.READ)
        # What came together with the head.
        self._step()
        if self._has_ended:
            return
        self._unsubscribe = self._source.subscribe(self._step)
        if self._unsubscribe is None:
            threading.Thread(target=self._run, name="sse-recorder", daemon=True).start()

    def _run(self) -> None:
        """Read where there is no event loop."""
        while not self._has_ended:
            self._source.wait(None)
            self._step()

    def _step(self) -> None:
        """Append what has come; called from the event loop, so it never waits."""
        recording, upstream = self._recording, self.upstream
        if self._has_ended:
            return
        try:
            while piece := self._source.read():
                if self.ends_at_boundary:
                    piece = rest_of_event(piece, self.position())
                recording.append(piece)
                self.bytes = recording.end
                if self.ends_at_boundary and self.position().at_boundary:
                    break
        except TruncatedBody:
            self._finish(upstream.reason or EndReason.UPSTREAM_TRUNCATED)
            return
        except Exception:
            self._finish(upstream.reason or EndReason.INTERNAL_ERROR)
            raise
        if upstream.reason is not None:
            self._finish(upstream.reason)
        elif piece == b"":
            self._finish(EndReason.COMPLETE)
        elif self.ends_at_boundary and self.position().at_boundary:
            self.stop(self.end_reason)
        else:
            upstream.since = time.monotonic()

    def _finish(self, reason: EndReason) -> None:
        self._has_ended = True
        if self._unsubscribe is not None:
            self._unsubscribe()
        self._log.finish(self._recording, reason)
        # To close a connection may take time.
        run_soon(self._close, reason)

    def _close(self, reason: EndReason) -> None:
        try:
            self._source.close()
        finally:
            total = time.monotonic() - self.started
            self._on_end(RecordingEnd(reason=reason, bytes=self._recording.end, total=total))


class Recordings:
    """The recordings of one app.

    :param log: where they are kept.
    """

    def __init__(self, log: Log, monitor: Monitor, limits: Limits) -> None:
        self.log = log
        #: Whether other processes can read them.
        self.is_shared = log.is_shared
        self._monitor = monitor
        self._limits = limits
        self._open: set[Recorder] = set()

    def __len__(self) -> int:
        return len(self._open)

    def record(
        self, id: str, header: Header, source: Source, exchange: Exchange, on_end: Callable[[RecordingEnd], None]
    ) -> Reader | None:
        """Record a response, and return the reader of the client whose request it was; None if there is no room.

        :param source: closed by the recorder, unless there is no room.
        :param exchange: of the request; its upstream's side has opened the source, and is the recorder's from now on.
        :param on_end: called once, when the upstream has been closed.
        """

        def end(what: RecordingEnd) -> None:
            self._monitor.discard(recorder)
            self._open.discard(recorder)
            on_end(what)

        recorder = Recorder(self.log, self._limits, exchange, source, end)
        recording = self.log.create(id, header, recorder.stop)
        if recording is None:
            return None
        # The client that began it reads to its end.
        recorder.is_admitted, exchange.is_admitted = exchange.is_admitted, None
        reader = self.log.attend(recording)
        exchange.read_recording(reader, ends_early=self.is_shared)
        self._open.add(recorder)
        self._monitor.add(recorder)
        recorder.start(recording)
        return reader

    def finish(self, *, until: float, last: float, keep_alive: Callable[[], None]) -> None:
        """Let open recordings go on while the process stops, and return when they are stored.

        :param until: second (`time.monotonic()`) from which on they end with an event.
        :param last: second at which they end wherever they are.
        :param keep_alive: called again and again.
        """
        while self.is_shared and (self._open or not self.log.has_written()):
            now = time.monotonic()
            if now >= until:
                for recorder in list(self._open):
                    recorder.finish(at_boundary=now < last)
            if now >= last + 1:
                return
            keep_alive()
            time.sleep(_POLL)
