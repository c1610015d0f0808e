"""Wakes the readers of channels."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import gevent

#: Seconds in which bells are rung before other work has its turn.
RING_SLICE = 0.002


class Reader(Protocol):
    """What can be woken."""

    def ring(self) -> None:
        """Wake who waits for it; never waits itself."""


class Bells:
    """Wakes readers outside the publisher's request, a slice of them at a time."""

    def __init__(self) -> None:
        self._waiting: dict[Reader, None] = {}
        self._lock = threading.Lock()
        self._is_ringing = False
        self._loop: Any = None

    def use_loop(self) -> None:
        """Ring in the current event loop from now on, whatever thread publishes."""
        if self._loop is None:
            self._loop = gevent.get_hub().loop

    def ring(self, readers: Iterable[Reader]) -> None:
        """Have readers woken soon."""
        with self._lock:
            self._waiting.update(dict.fromkeys(readers))
            if self._is_ringing or not self._waiting:
                return
            self._is_ringing = True
        if self._loop is not None:
            self._loop.run_callback_threadsafe(gevent.spawn, self._run, gevent.sleep)
        else:
            threading.Thread(target=self._run, args=(time.sleep,), name="sse-bells", daemon=True).start()

    def _run(self, give_way: Callable[[float], object]) -> None:
        while self._ring_slice():
            give_way(0)

    def _ring_slice(self) -> bool:
        """Wake readers for a short while; return whether some are left."""
        until = time.monotonic() + RING_SLICE
        while time.monotonic() < until:
            with self._lock:
                if not self._waiting:
                    self._is_ringing = False
                    return False
                reader, _ = self._waiting.popitem()
            reader.ring()
        return True
