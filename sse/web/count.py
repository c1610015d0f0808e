"""Where the throttle counts, in memory or in a store that processes share: limits' storages, with three wrongs righted.

What is in memory is forgotten when it is over. A store that is away is stood in for by memory, at once and for all who
ask (Flask-Limiter's own fallback answers 500 to those who were waiting when it found out, and looks whether it is back
after up to 32 s). And a clock that is set back locks nobody out: the calls counted before lie in the future then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from limits.storage import MemoryStorage, MovingWindowSupport

from ..relay.store import SharedStore

#: Keys that are kept in memory whether used or not; beyond twice the used ones, the others are dropped.
KEPT_KEYS = 1000


def _is_ahead(when: float, window: int) -> bool:
    """Tell whether a call was counted so far ahead that the clock has been set back since.

    A window's length is left to the clocks of several hosts, which differ.
    """
    return when > time.time() + window


class Memory(MemoryStorage):
    """The counts of one process."""

    STORAGE_SCHEME = ["sse-memory"]

    def __init__(self, uri: str | None = None, **options: Any) -> None:
        self._most = KEPT_KEYS
        super().__init__(uri, **options)

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        if len(self.events) >= self._most:
            self._forget(time.time())
            # So the work stays in proportion to the calls, however many keys are in use.
            self._most = max(KEPT_KEYS, 2 * len(self.events))
        self._start_over_if_ahead(key, expiry)
        return super().acquire_entry(key, limit, expiry, amount)

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        self._start_over_if_ahead(key, expiry)
        return super().get_moving_window(key, limit, expiry)

    def _start_over_if_ahead(self, key: str, window: int) -> None:
        # The newest is the first.
        entries = self.events.get(key)
        if entries and _is_ahead(entries[0].atime, window):
            self.clear(key)

    def _forget(self, now: float) -> None:
        for key, entries in list(self.events.items()):
            with self.locks[key]:
                if not entries or entries[0].expiry < now:
                    self.clear(key)


class SharedCounts(Memory):
    """The counts of all processes that share a store, and while it is away those of one.

    :param store: the store.
    :param on_absence: called each time it is needed and away.
    """

    STORAGE_SCHEME = ["sse-shared"]

    def __init__(
        self, uri: str | None = None, *, store: SharedStore, on_absence: Callable[[], object], **options: Any
    ) -> None:
        self._store = store
        self._on_absence = on_absence
        super().__init__(uri, **options)

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        shared: MovingWindowSupport = self._store.storage

        def ask() -> bool:
            if shared.acquire_entry(key, limit, expiry, amount):
                return True
            if not _is_ahead(shared.get_moving_window(key, limit, expiry)[0], expiry):
                return False
            self._store.storage.clear(key)
            return shared.acquire_entry(key, limit, expiry, amount)

        answer: bool | None = self._store.ask(ask, on_absence=self._on_absence)
        return super().acquire_entry(key, limit, expiry, amount) if answer is None else answer

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        def ask() -> tuple[float, int]:
            start, count = self._store.storage.get_moving_window(key, limit, expiry)
            if not _is_ahead(start, expiry):
                return start, count
            self._store.storage.clear(key)
            return time.time(), 0

        # Not counted as one more absence: every call that is counted asks for its window besides.
        answer: tuple[float, int] | None = self._store.ask(ask)
        return super().get_moving_window(key, limit, expiry) if answer is None else answer

    def check(self) -> bool:
        return self._store.is_there()
