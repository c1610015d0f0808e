"""The reader of what another process records, where threads share it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Self

from sse.relay.log.base import Snapshot, Wake
from sse.relay.log.follow import Deliver, Entry
from sse.relay.log.remote import RemoteReader
from sse.relay.log.store import Keys

from ...support.log import header


class Store:
    """A store that has nothing to fetch, and delivers when the test does."""

    def __init__(self) -> None:
        self.deliver: Callable[[Sequence[Entry]], object] = len

    def fetch(self, keys: Keys, offset: int, limit: int) -> bytes:
        raise AssertionError("nothing must be fetched")

    def follow(self, key: str, last_id: str, deliver: Deliver) -> Wake:
        self.deliver = deliver
        return lambda: None


class ReleasedLock:
    """A lock after whose first release something happens at once, as if another thread had waited for it."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._then: list[Callable[[], None]] = [then]

    def __enter__(self) -> Self:
        self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        if self._then:
            self._then.pop()()


def test_a_last_piece_that_comes_while_it_reads_is_not_lost() -> None:
    """The end was seen, and the bytes before it were not: the reader took what it had for complete."""
    store = Store()
    snapshot = Snapshot(header=header(), start=0, end=0, reason=None)
    reader = RemoteReader(
        Keys.of("id"), snapshot, 0, fetch=store.fetch, follow=store.follow, retry_interval=0.0, on_close=lambda: None
    )
    last: list[Entry] = [(b"4-0", {b"b": b"last"}), (b"4-1", {b"r": b"complete"})]
    reader._lock = ReleasedLock(lambda: _deliver(store, last))  # type: ignore[assignment]  # stands for a lock
    pieces = [reader.read(), reader.read(), reader.read()]
    assert [piece for piece in pieces if piece is not None] == [b"last", b""]


def _deliver(store: Store, entries: list[Entry]) -> None:
    store.deliver(entries)
