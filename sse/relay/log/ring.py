"""A recording of this process: a ring of bytes, and its readers."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from ..background import wake_soon
from ..stream.end import EndReason
from ..stream.source import TruncatedBody
from .base import READ_SIZE, Header, Interrupted, Snapshot, Trimmed, Wake


class Recording:
    """The bytes of a recording that this process records: a ring, and the bells of its readers.

    :param max_bytes: kept at most; older ones are dropped.
    :param cancel: stops the recorder, for a reason.
    """

    __slots__ = (
        "_bells", "_kept", "_lock", "_most", "cancel", "end", "header", "id", "lonely_since", "readers", "reason",
        "until",
    )  # fmt: skip

    def __init__(self, id: str, header: Header, *, max_bytes: int, cancel: Callable[[EndReason], None]) -> None:
        self.id = id
        self.header = header
        self.cancel = cancel
        self.end = 0
        self.reason: EndReason | None = None
        self.readers = 0
        #: When the last reader left (the log's clock), and when a finished recording expires.
        self.lonely_since = math.inf
        self.until = 0.0
        self._most = max_bytes
        # Each change makes a new tuple, so that an append needs no copy.
        self._bells: tuple[Wake, ...] = ()
        self._lock = threading.Lock()
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
        for wake in self._bells:
            wake()

    def listen(self, wake: Wake) -> Wake:
        """Call `wake()` with each append, and at the end; return what ends that."""

        def stop() -> None:
            with self._lock:
                self._bells = tuple(known for known in self._bells if known is not wake)

        with self._lock:
            self._bells = (*self._bells, wake)
        return stop

    def finish(self, reason: EndReason) -> None:
        """Let nothing follow, and wake the readers."""
        self.reason = reason
        start, data = self._kept
        # Growing has reserved more than is needed.
        self._kept = start, data[:]
        for wake in self._bells:
            wake_soon(wake)

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

    def __init__(self, offset: int, on_close: Wake) -> None:
        #: Position of the next byte.
        self.offset = offset
        self._on_close: Wake | None = on_close
        self._is_cancelled = False
        self._wake: Wake | None = None

    def read(self) -> bytes | None:
        """Return what follows, None if nothing does yet, b"" at the end of a complete recording; never wait.

        :raises Interrupted: at the end of one that is not complete.
        :raises Trimmed: if the next byte is not kept any more.
        """
        raise NotImplementedError

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
        self._wake = wake
        # Something may have come between the last read and the subscribing.
        if self._is_ready():
            wake_soon(wake)
        return self._unsubscribe

    def _unsubscribe(self) -> None:
        self._wake = None

    def ring(self) -> None:
        """Wake what has subscribed; callable from anywhere."""
        if (wake := self._wake) is not None:
            wake_soon(wake)

    def cancel(self) -> None:
        """Make the next `read()` raise."""
        self._is_cancelled = True
        self.ring()

    def close(self) -> None:
        """Leave the recording."""
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()


class LocalReader(Reader):
    """A reader of what this process records."""

    def __init__(self, recording: Recording, offset: int, on_close: Wake) -> None:
        super().__init__(offset, on_close)
        self._recording = recording

    def read(self) -> bytes | None:
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
        # The recording calls it without a detour, for that is one call less for each event.
        removers = self._recording.listen(wake), super().subscribe(wake)

        def unsubscribe() -> None:
            for remove in removers:
                remove()

        return unsubscribe
