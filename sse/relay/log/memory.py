"""Recordings in the memory of one process, which alone can read them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from ...errors import StreamNotFound
from ..stream.end import EndReason
from .base import MAX_READERS, TOMBSTONE, Claim, Expired, Header, Snapshot, TooManyReaders
from .log import Log
from .ring import LocalReader, Recording

#: Seconds between two looks for what has expired or has no reader.
SWEEP_INTERVAL = 1.0


class MemoryLog(Log):
    """A log that ends with its process."""

    is_shared = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        #: Owners of recordings that have expired, and until when that is known.
        self._tombstones: dict[str, tuple[str, float]] = {}
        self._claims: dict[str, Claim] = {}
        self._lock = threading.Lock()
        self._is_sweeping = False

    def __len__(self) -> int:
        """Return how much is kept, be it a recording, a claim or a tombstone."""
        return len(self._open) + len(self._finished) + len(self._claims) + len(self._tombstones)

    def create(self, id: str, header: Header, cancel: Callable[[EndReason], None]) -> Recording | None:
        recording = super().create(id, header, cancel)
        if recording is not None:
            self._ensure_sweeping()
        return recording

    def has_written(self) -> bool:
        return True

    def look(self, id: str) -> Snapshot:
        return self._find(id).snapshot()

    def read(self, id: str, offset: int, limit: int) -> bytes:
        return self._find(id).read(offset, limit)

    def follow(self, id: str, snapshot: Snapshot, offset: int) -> LocalReader:
        recording = self._find(id)
        if recording.readers >= MAX_READERS:
            raise TooManyReaders
        return self._join(recording, offset)

    def stop(self, id: str, *, erase: bool) -> None:
        recording = self._own(id)
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
        return Claim(id=known.id, fingerprint=known.fingerprint, has_begun=self._own(known.id) is not None)

    def release(self, key: str, claim: Claim) -> None:
        with self._lock:
            if key in self._claims and self._claims[key].id == claim.id:
                del self._claims[key]

    def _find(self, id: str) -> Recording:
        recording = self._own(id)
        if recording is not None and not self._has_expired(recording):
            return recording
        self.sweep()
        if id in self._tombstones:
            raise Expired(self._tombstones[id][0])
        raise StreamNotFound

    def _has_expired(self, recording: Recording) -> bool:
        return recording.reason is not None and self._clock() >= recording.until

    def _drop(self, id: str) -> Recording | None:
        recording = super()._drop(id)
        if recording is not None:
            self._tombstones[id] = recording.header.owner, self._clock() + TOMBSTONE
            if recording.header.claim:
                self.release(recording.header.claim, Claim(id=id, fingerprint=""))
        return recording

    def _on_left(self, recording: Recording) -> None:
        recording.cancel(EndReason.CLIENT_GONE)

    def sweep(self) -> None:
        """Forget what has expired, and stop what has had no reader for too long."""
        now = self._clock()
        for recording in list(self._finished.values()):
            if self._has_expired(recording):
                self._drop(recording.id)
        for id, (_, until) in list(self._tombstones.items()):
            if now < until:
                # The others were made later.
                break
            self._tombstones.pop(id, None)
        for recording in self._lonely(now):
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
                if not (self._open or self._finished or self._tombstones):
                    self._is_sweeping = False
                    return
