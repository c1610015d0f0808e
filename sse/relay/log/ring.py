"""A recording of this process: a ring of bytes, and its readers."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import gevent

from ..stream.end import EndReason
from ..stream.source import TruncatedBody
from .base import READ_SIZE, Header, Interrupted, Snapshot, Trimmed, Wake


class Bells:
    """Who is called when there is something new. Iterating needs no copy: each change makes a new tuple."""

    __slots__ = ("_lock", "all")

    def __init__(self) -> None:
        self.all: tuple[Wake, ...] = ()
        self._lock = threading.Lock()

    def add(self, wake: Wake) -> Wake:
        """Call `wake()` from now on; return what ends that."""

        def remove() -> None:
            with self._lock:
                at = next((at for at, known in enumerate(self.all) if known is wake), len(self.all))
                self.all = self.all[:at] + self.all[at + 1 :]

        with self._lock:
            self.all = (*self.all, wake)
        return remove

    def ring(self) -> None:
        """Call all of them, from the event loop where there is one: a greenlet that a bell switches to never returns.

        :raises Exception: what a bell raises.
        """
        if self.all and isinstance(gevent.getcurrent(), gevent.Greenlet):
            gevent.get_hub().loop.run_callback(self._ring)
        else:
            self._ring()

    def _ring(self) -> None:
        for wake in self.all:
            wake()


class Recording:
    """The bytes of a recording that this process records: a ring, and the bells of its readers.

    :param max_bytes: kept at most; older ones are dropped.
    :param cancel: stops the recorder, for a reason.
    """

    __slots__ = (
        "_kept", "_most", "bells", "cancel", "end", "header", "id", "lonely_since", "readers", "reason",
        "until",
    )  # fmt: skip

    def __init__(self, id: str, header: Header, *, max_bytes: int, cancel: Callable[[EndReason], None]) -> None:
        self.id = id
        self.header = header
        self.cancel = cancel
        self.end = 0
        self.reason: EndReason | None = None
        self.bells = Bells()
        self.readers = 0
        #: When the last reader left (the log's clock), and when a finished recording expires.
        self.lonely_since = math.inf
        self.until = 0.0
        self._most = max_bytes
        # The position of the first byte, and the bytes: one value, so that a thread that reads sees both or neither.
        self._kept = 0, bytearray()

    def append(self, piece: bytes) -> None:
        """Keep what follows, and wake the readers."""
        data = self._kept[1]
        data += piece
        self.end += len(piece)
        # Not with each piece, because all that is kept is copied.
        if len(data) > self._most * 1.25:
            self._kept = self.end - self._most, data[-self._most :]
        for wake in self.bells.all:
            wake()

    def finish(self, reason: EndReason) -> None:
        """Let nothing follow, and wake the readers."""
        self.reason = reason
        start, data = self._kept
        # Growing has reserved more than is needed.
        self._kept = start, data[:]
        self.bells.ring()

    def read(self, offset: int, limit: int = READ_SIZE) -> bytes:
        """Return the bytes from a position on, b"" if there are none yet.

        :raises Trimmed: if they are not kept any more.
        """
        start, data = self._kept
        if offset < start:
            raise Trimmed(start)
        return bytes(data[offset - start : offset - start + limit])

    def snapshot(self) -> Snapshot:
        return Snapshot(header=self.header, start=self.start, end=self.end, reason=self.reason)

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return len(self._kept[1])

    @property
    def start(self) -> int:
        """Position of the first byte that is kept."""
        return self._kept[0]


class Reader:
    """A position in a recording that moves on with each read; a `Source` of a pump."""

    def __init__(self, header: Header, offset: int, on_close: Wake) -> None:
        self.header = header
        #: Position of the next byte.
        self.offset = offset
        self._on_close: Wake | None = on_close
        self._is_cancelled = False
        self._bells = Bells()

    def _next(self) -> bytes | None:
        """Return what follows the position, as `Reader.read()` does."""
        raise NotImplementedError

    def read(self) -> bytes | None:
        """Return what follows, None if nothing does yet, b"" at the end of a complete recording; never wait.

        :raises Interrupted: at the end of one that is not complete.
        :raises Trimmed: if the next byte is not kept any more.
        """
        if self._is_cancelled:
            raise TruncatedBody("the reader was cancelled")
        piece = self._next()
        if piece:
            self.offset += len(piece)
        return piece

    def wait(self, timeout: float | None) -> None:
        woken = threading.Event()
        unsubscribe = self.subscribe(woken.set)
        try:
            woken.wait(timeout)
        finally:
            unsubscribe()

    def _is_ready(self) -> bool:
        """Return whether `read()` would return something else than None."""
        raise NotImplementedError

    def subscribe(self, wake: Wake) -> Wake:
        unsubscribe = self._bells.add(wake)
        self._wake_if_ready(wake)
        return unsubscribe

    def _wake_if_ready(self, wake: Wake) -> None:
        """Wake at once if something has come between the last read and the subscribing."""
        if self._is_ready():
            if isinstance(gevent.getcurrent(), gevent.Greenlet):
                gevent.get_hub().loop.run_callback(wake)
            else:
                wake()

    def cancel(self) -> None:
        """Make the next `read()` raise."""
        self._is_cancelled = True
        self._bells.ring()

    def close(self) -> None:
        """Leave the recording."""
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()


class LocalReader(Reader):
    """A reader of what this process records."""

    def __init__(self, recording: Recording, offset: int, on_close: Wake) -> None:
        super().__init__(recording.header, offset, on_close)
        self._recording = recording

    def read(self) -> bytes | None:
        # One function, because it is called twice for each event.
        if self._is_cancelled:
            raise TruncatedBody("the reader was cancelled")
        recording = self._recording
        # The reason before the bytes: what is appended in between is read the next time.
        reason, (start, data) = recording.reason, recording._kept
        at = self.offset - start
        if at < 0:
            raise Trimmed(start)
        piece = bytes(data[at : at + READ_SIZE])
        if piece:
            self.offset += len(piece)
        elif reason is None:
            return None
        elif reason is not EndReason.COMPLETE:
            raise Interrupted(reason)
        return piece

    def _is_ready(self) -> bool:
        recording = self._recording
        return self._is_cancelled or recording.reason is not None or self.offset < recording.end

    def subscribe(self, wake: Wake) -> Wake:
        # The recording's bells, for that is one call less for each event.
        removers = self._recording.bells.add(wake), self._bells.add(wake)

        def unsubscribe() -> None:
            for remove in removers:
                remove()

        self._wake_if_ready(wake)
        return unsubscribe
