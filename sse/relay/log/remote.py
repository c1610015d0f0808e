"""Read what another process records, or has recorded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from ...errors import StoreUnavailable
from ..background import run_soon
from ..stream.end import EndReason
from ..stream.source import TruncatedBody
from .base import READ_SIZE, Interrupted, Snapshot, Trimmed, Wake
from .follow import Deliver, Entry
from .ring import Reader
from .store import Keys

#: Bytes of a reader in another process that are read ahead of it.
READ_AHEAD = 256 * 1024


class RemoteReader(Reader):
    """A reader of what another process records, or has recorded.

    :param fetch: returns up to so many bytes of the store from a position on; raises `Trimmed` or `StoreUnavailable`.
    :param follow: calls back with the entries behind a position; returns what ends that.
    :param retry_interval: seconds between two attempts while the store is unavailable.
    """

    def __init__(
        self,
        keys: Keys,
        snapshot: Snapshot,
        offset: int,
        *,
        fetch: Callable[[Keys, int, int], bytes],
        follow: Callable[[str, str, Deliver], Wake],
        retry_interval: float,
        on_close: Wake,
    ) -> None:
        super().__init__(offset, on_close)
        self.header = snapshot.header
        self.keys = keys
        self.generation = snapshot.generation
        self.reason: EndReason | None = snapshot.reason
        #: Position up to which the store has bytes, as far as is known.
        self.known_end = snapshot.end
        #: When there was the last sign of the recorder, and how often there was no trace of the recording.
        self.heard_at = time.monotonic()
        self.misses = 0
        self._fetch_bytes, self._retry_interval = fetch, retry_interval
        self._lock = threading.Lock()
        #: Bytes that were read ahead, and the position behind them.
        self._ready = bytearray()
        self._have = offset
        self._error: Exception | None = None
        self._is_fetching = self._is_closed = False
        self._unfollow = follow(keys.data, f"{snapshot.end}-0", self._deliver) if self.reason is None else None

    def read(self) -> bytes | None:
        if self._is_cancelled:
            raise TruncatedBody("the reader was cancelled")
        # All at one moment: the last bytes and the end may be delivered between two looks.
        with self._lock:
            piece = bytes(self._ready[:READ_SIZE])
            del self._ready[: len(piece)]
            error, reason, is_behind = self._error, self.reason, self._have < self.known_end
        if piece:
            self.offset += len(piece)
            return piece
        if error is not None:
            raise error
        if is_behind:
            self._fetch_soon()
            return None
        if reason is not None and reason is not EndReason.COMPLETE:
            raise Interrupted(reason)
        return None if reason is None else b""

    def _is_ready(self) -> bool:
        if self._ready or self._error or self._is_cancelled:
            return True
        if self._have < self.known_end:
            self._fetch_soon()
            return False
        return self.reason is not None

    def _deliver(self, entries: Sequence[Entry]) -> None:
        """Take what was appended: bytes that follow at once, others only as something to fetch."""
        self.heard_at, self.misses = time.monotonic(), 0
        with self._lock:
            for id_, fields in entries:
                end, piece = int(id_.partition(b"-")[0]), fields.get(b"b", b"")
                if b"r" in fields:
                    self.reason = EndReason(fields[b"r"].decode())
                elif self._have == end - len(piece) and len(self._ready) < READ_AHEAD and not self._is_fetching:
                    self._ready += piece
                    self._have = end
                self.known_end = max(self.known_end, end)
        self.ring()

    def end(self, reason: EndReason, end: int) -> None:
        """End the recording as other processes see it."""
        with self._lock:
            self.reason, self.known_end = reason, end
        self.ring()

    def _fetch_soon(self) -> None:
        # What is delivered while this decides would be fetched, and so read, a second time.
        with self._lock:
            if self._is_fetching:
                return
            self._is_fetching = True
        run_soon(self._fetch)

    def _fetch(self) -> None:
        try:
            data = self._fetch_bytes(self.keys, self._have, READ_AHEAD)
            if not data and self._have < self.known_end:
                # What was there has gone: a flush, an eviction, a failover.
                raise Trimmed(self.known_end)
            with self._lock:
                self._ready += data
                self._have += len(data)
        except Trimmed as error:
            self._error = error
        except StoreUnavailable:
            time.sleep(self._retry_interval)
        self._is_fetching = False
        if not self._is_closed:
            self.ring()

    def close(self) -> None:
        self._is_closed = True
        unfollow, self._unfollow = self._unfollow, None
        if unfollow is not None:
            unfollow()
        super().close()
