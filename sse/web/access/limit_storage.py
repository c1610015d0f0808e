"""Where the throttle counts, in memory or in a store that processes share: limits' storages, with some wrongs righted.

What is in memory is forgotten when it is over (limits' own copies all of it a hundred times a second for that, in a new
thread each time). A store that is away is stood in for by memory, at once and for all who ask (Flask-Limiter's own
fallback answers 500 to those who were waiting when it found out, and looks whether it is back after up to 32 s). And a
clock that is set back locks nobody out: the calls counted before lie in the future then.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

from limits.storage import MovingWindowSupport, Storage

from ...relay.redis import SharedStore

#: Keys that are kept in memory whether used or not; beyond twice the used ones, the others are dropped.
KEPT_KEYS = 1000


class Memory(Storage, MovingWindowSupport):
    """The counts of one process, for moving windows alone; no clock that can be set is asked."""

    STORAGE_SCHEME = ["sse-memory"]

    def __init__(self, uri: str | None = None, **options: Any) -> None:
        super().__init__(uri, **options)
        #: By key the seconds (time.monotonic()) after which each call is forgotten, the oldest first.
        self.ends: dict[str, deque[float]] = {}
        self._most = KEPT_KEYS
        self._lock = threading.Lock()

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        now = time.monotonic()
        with self._lock:
            if key not in self.ends and len(self.ends) >= self._most:
                self.ends = {key: ends for key, ends in self.ends.items() if ends and ends[-1] > now}
                # So the work stays in proportion to the calls, however many keys are in use.
                self._most = max(KEPT_KEYS, 2 * len(self.ends))
            ends = self._current(key, now)
            if len(ends) + amount > limit:
                return False
            ends.extend([now + expiry] * amount)
            self.ends[key] = ends
            return True

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        now = time.monotonic()
        with self._lock:
            ends = self._current(key, now)
            # limits asks for the time of day at which the window began.
            return time.time() + (ends[0] - now - expiry if ends else 0.0), len(ends)

    def _current(self, key: str, now: float) -> deque[float]:
        ends = self.ends.get(key) or deque()
        while ends and ends[0] <= now:
            ends.popleft()
        return ends

    def check(self) -> bool:
        return True

    def reset(self) -> int | None:
        with self._lock:
            count = len(self.ends)
            self.ends.clear()
        return count

    def clear(self, key: str) -> None:
        with self._lock:
            self.ends.pop(key, None)

    @property
    def base_exceptions(self) -> type[Exception]:
        return ValueError

    def incr(self, key: str, expiry: int, amount: int = 1) -> NoReturn:
        """Raise NotImplementedError, as `get` and `get_expiry` do: they are for fixed windows."""
        raise NotImplementedError

    def get(self, key: str) -> NoReturn:
        raise NotImplementedError

    def get_expiry(self, key: str) -> NoReturn:
        raise NotImplementedError


def _is_ahead(when: float, window: int) -> bool:
    """Tell whether a call was counted so far ahead that the clock has been set back since.

    A window's length is left to the clocks of several hosts, which differ.
    """
    return when > time.time() + window


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
