"""Recordings in the memory of one process, which alone can read them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ..stream.end import EndReason
from .base import MAX_READERS, TOMBSTONE, Claim, Expired, Header, NotKept, Snapshot, TooManyReaders
from .ring import LocalReader, Own, Recording

#: Seconds between two looks for what has expired or has no reader.
SWEEP_INTERVAL = 1.0


class MemoryLog:
    """A log within a budget of bytes; the contract is `Log`'s.

    :param max_bytes: bytes that are kept of one recording.
    :param memory: bytes that all recordings may take.
    :param clock: returns seconds.
    :param on_used: called about once a second with the bytes that recordings take.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        memory: int,
        clock: Callable[[], float] = time.monotonic,
        on_used: Callable[[int], object] = bool,
    ) -> None:
        self._own = Own(max_bytes=max_bytes, memory=memory, clock=clock)
        self._clock = clock
        self._on_used = on_used
        #: Owners of recordings that have expired, and until when that is known.
        self._tombstones: dict[str, tuple[str, float]] = {}
        self._claims: dict[str, Claim] = {}
        self._lock = threading.Lock()
        self._is_sweeping = False

    def __len__(self) -> int:
        """Return how much is kept, be it a recording, a claim or a tombstone."""
        return len(self._own) + len(self._claims) + len(self._tombstones)

    @property
    def used(self) -> int:
        """Bytes that recordings take."""
        return self._own.used()

    def create(self, id: str, header: Header, cancel: Callable[[EndReason], None]) -> Recording | None:
        recording = self._own.admit(id, header, cancel, self._drop)
        if recording is not None:
            self._ensure_sweeping()
        return recording

    def finish(self, recording: Recording, reason: EndReason) -> None:
        self._own.finish(recording, reason)

    def attend(self, recording: Recording) -> LocalReader:
        return self._own.join(recording, 0, self._on_left)

    def look(self, id: str) -> Snapshot:
        return self._find(id).snapshot()

    def read(self, id: str, offset: int, limit: int) -> bytes:
        return self._find(id).read(offset, limit)

    def follow(self, id: str, snapshot: Snapshot, offset: int) -> LocalReader:
        recording = self._find(id)
        if recording.readers >= MAX_READERS:
            raise TooManyReaders
        return self._own.join(recording, offset, self._on_left)

    def stop(self, id: str, *, erase: bool) -> None:
        recording = self._own.get(id)
        if recording is None:
            return
        if recording.reason is None:
            recording.cancel(EndReason.STOPPED)
        if erase:
            self._drop(id)

    def claim(self, key: str, claim: Claim, *, instead_of: Claim | None = None) -> Claim:
        with self._lock:
            known = self._claims.get(key)
            if known is None or known.id == (instead_of.id if instead_of else None):
                self._claims[key] = known = claim
        recording = self._own.get(known.id)
        return Claim(id=known.id, fingerprint=known.fingerprint, has_begun=recording is not None)

    def is_alive(self, claim: Claim) -> bool:
        return True

    def release(self, key: str, claim: Claim) -> None:
        with self._lock:
            if key in self._claims and self._claims[key].id == claim.id:
                del self._claims[key]

    def has_written(self) -> bool:
        return True

    def _find(self, id: str) -> Recording:
        recording = self._own.get(id)
        if recording is not None and not self._has_expired(recording):
            return recording
        self.sweep()
        if id in self._tombstones:
            raise Expired(self._tombstones[id][0])
        raise NotKept

    def _has_expired(self, recording: Recording) -> bool:
        return recording.reason is not None and self._clock() >= recording.until

    def _drop(self, id: str) -> None:
        recording = self._own.drop(id)
        if recording is None:
            return
        self._tombstones[id] = recording.header.owner, self._clock() + TOMBSTONE
        if recording.header.claim:
            self.release(recording.header.claim, Claim(id=id, fingerprint=""))

    def _on_left(self, recording: Recording) -> None:
        if not recording.header.leave:
            recording.cancel(EndReason.CLIENT_GONE)

    def sweep(self) -> None:
        """Forget what has expired, and stop what has had no reader for too long."""
        now = self._clock()
        for recording in list(self._own.finished.values()):
            if self._has_expired(recording):
                self._drop(recording.id)
        for id, (_, until) in list(self._tombstones.items()):
            if now < until:
                # The others were made later.
                break
            self._tombstones.pop(id, None)
        for recording in self._own.lonely(now):
            recording.cancel(EndReason.CLIENT_GONE)
        self._on_used(self.used)

    def _ensure_sweeping(self) -> None:
        with self._lock:
            if self._is_sweeping:
                return
            self._is_sweeping = True
        threading.Thread(target=self._sweep_all, name="sse-log", daemon=True).start()

    def _sweep_all(self) -> None:
        while True:
            time.sleep(SWEEP_INTERVAL)
            self.sweep()
            with self._lock:
                if not (len(self._own) or self._tombstones):
                    self._is_sweeping = False
                    return
