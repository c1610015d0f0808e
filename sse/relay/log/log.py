"""What a log does, whatever store it is in, and the recordings of this process, which are in its memory."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from ..stream.end import EndReason
from .base import Claim, Header, Snapshot, Wake
from .ring import LocalReader, Reader, Recording

#: Bytes that an open recording is expected to need: a long response of a language model. New ones are admitted by it.
EXPECTED_SIZE = 256 * 1024


class Log(ABC):
    """All recordings of a store.

    :param max_bytes: bytes that are kept of one recording.
    :param memory: bytes that the recordings of this process may take in its memory.
    :param clock: returns seconds.
    :param on_used: called about once a second with the bytes that they take.
    """

    #: Whether other processes can read what this one records.
    is_shared: ClassVar[bool]

    def __init__(
        self,
        *,
        max_bytes: int,
        memory: int,
        clock: Callable[[], float] = time.monotonic,
        on_used: Callable[[int], object] = bool,
    ) -> None:
        self._max_bytes = max_bytes
        self._memory = memory
        self._clock = clock
        self._on_used = on_used
        self._open: dict[str, Recording] = {}
        #: In the order in which they ended.
        self._finished: dict[str, Recording] = {}
        self._finished_bytes = 0

    # What a recorder calls.

    def create(self, id: str, header: Header, cancel: Callable[[EndReason], None]) -> Recording | None:
        """Begin a recording, None if there is no room for it.

        :param cancel: stops the recorder, for a reason; called from anywhere, never waits.
        """
        if not self._make_room():
            return None
        self._open[id] = recording = Recording(id, header, max_bytes=self._max_bytes, cancel=cancel)
        return recording

    def finish(self, recording: Recording, reason: EndReason) -> None:
        """End a recording after its last byte was appended; never waits."""
        recording.until = self._clock() + recording.header.ttl
        if self._open.pop(recording.id, None) is not None:
            self._finished[recording.id] = recording
            self._finished_bytes += recording.size
        recording.finish(reason)

    def attend(self, recording: Recording) -> Reader:
        """Return a reader for the client whose request is recorded, from the first byte on; to be closed."""
        return self._join(recording, 0)

    @abstractmethod
    def has_written(self) -> bool:
        """Return whether other processes can read all recordings of this process that have ended."""

    # What a reader calls.

    @abstractmethod
    def look(self, id: str) -> Snapshot:
        """Return the state of a recording.

        :raises StreamNotFound, Expired, StoreUnavailable: if there is none to read.
        """

    @abstractmethod
    def read(self, id: str, offset: int, limit: int) -> bytes:
        """Return up to `limit` bytes that are there from a position on.

        :raises Trimmed, StreamNotFound, Expired, StoreUnavailable: if they are not.
        """

    @abstractmethod
    def follow(self, id: str, snapshot: Snapshot, offset: int) -> Reader:
        """Return a reader, to be closed.

        :raises TooManyStreams, StreamNotFound, Expired, StoreUnavailable: if there can be none.
        """

    @abstractmethod
    def stop(self, id: str, *, erase: bool) -> None:
        """End a recording as `EndReason.STOPPED` if it is open, and erase it if that is wanted; again is no error.

        :raises StoreUnavailable: if the store cannot be reached.
        """

    # Idempotency keys.

    @abstractmethod
    def claim(self, key: str, claim: Claim, *, instead_of: Claim | None = None) -> Claim:
        """Return the claim that the key has now: the one given, if there was none or `instead_of`.

        :raises StoreUnavailable: if the store cannot be reached.
        """

    @abstractmethod
    def release(self, key: str, claim: Claim) -> None:
        """Give up a claim whose recording has not begun."""

    # The recordings of this process.

    @property
    def used(self) -> int:
        """Bytes that they take."""
        return self._finished_bytes + sum(recording.size for recording in list(self._open.values()))

    def _own(self, id: str) -> Recording | None:
        return self._open.get(id) or self._finished.get(id)

    def _make_room(self) -> bool:
        """Drop finished recordings, the one that ended first before others, until another one has room."""
        expected = min(EXPECTED_SIZE, self._max_bytes)
        # An open recording counts for what it is expected to need, if it has not more already.
        left = self._memory - expected - sum(max(r.size, expected) for r in list(self._open.values()))
        for id_ in list(self._finished) if left < self._finished_bytes else ():
            self._drop(id_)
            if left >= self._finished_bytes:
                break
        return left >= 0

    def _drop(self, id: str) -> Recording | None:
        """Forget a recording and return it, None if there was none."""
        recording = self._finished.pop(id, None)
        if recording is not None:
            self._finished_bytes -= recording.size
        return recording or self._open.pop(id, None)

    def _join(self, recording: Recording, offset: int, on_close: Wake | None = None) -> LocalReader:
        """Return a reader.

        :param on_close: called when it has left.
        """
        recording.readers += 1

        def leave() -> None:
            recording.readers -= 1
            if on_close is not None:
                on_close()
            if not recording.readers and recording.reason is None:
                recording.lonely_since = self._clock()
                if not recording.header.leave:
                    self._on_left(recording)

        return LocalReader(recording, offset, leave)

    @abstractmethod
    def _on_left(self, recording: Recording) -> None:
        """End a recording that goes on for no time without readers, if it has none anywhere."""

    def _lonely(self, now: float) -> list[Recording]:
        """Return the open recordings that have had no reader here for as long as they go on without one."""
        return [r for r in list(self._open.values()) if not r.readers and now - r.lonely_since >= r.header.leave]
