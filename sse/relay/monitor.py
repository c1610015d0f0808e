"""Looks at the clocks of all exchanges, in one thread."""

from __future__ import annotations

import itertools
import threading
import time
from operator import attrgetter

from .drain import Drain
from .exchange import STOPPED, Exchange, Stage

#: Seconds between two looks, and so how late a time-out may be.
LOOK_INTERVAL = 0.25
#: Seconds by which a look may be late before the process is taken for one that was stopped (SIGSTOP, a paused machine).
LATE = 1.0
#: Looks at nothing before the thread ends; the next exchange starts another.
IDLE_LOOKS = 40


class Monitor:
    """All open exchanges of one app in this process, watched by one thread (a greenlet where threads are patched).

    :param drain: when they have to end with the process.
    """

    def __init__(self, drain: Drain) -> None:
        self._drain = drain
        self._open: set[Exchange] = set()
        self._lock = threading.Lock()
        self._is_running = False
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._open)

    def add(self, exchange: Exchange) -> None:
        """Begin to look at an exchange's clocks."""
        exchange.number = next(self._numbers)
        with self._lock:
            self._open.add(exchange)
            if self._is_running:
                return
            self._is_running = True
        threading.Thread(target=self._run, name="sse-monitor", daemon=True).start()

    def exchanges(self) -> list[Exchange]:
        """Return all that are open, in the order of their numbers."""
        with self._lock:
            return sorted(self._open, key=attrgetter("number"))

    def discard(self, exchange: Exchange) -> None:
        """Stop looking at an exchange; may be called again."""
        with self._lock:
            self._open.discard(exchange)
        exchange.close()

    def _run(self) -> None:
        idle, was_late, before = 0, False, time.monotonic()
        while True:
            time.sleep(LOOK_INTERVAL)
            with self._lock:
                exchanges = list(self._open)
                idle = 0 if exchanges else idle + 1
                if idle > IDLE_LOOKS:
                    self._is_running = False
                    return
            now = time.monotonic()
            # What has come while the process was stopped waits in the sockets, and is read before the next look.
            was_late, before = not was_late and now - before > LOOK_INTERVAL + LATE, now
            self._look(exchanges, now, check=not was_late)

    def _look(self, exchanges: list[Exchange], now: float, *, check: bool) -> None:
        phase = self._drain.phase()
        for exchange in exchanges:
            # Most wait for their upstream and have not for long; to check each of thousands would take milliseconds.
            upstream, client = exchange.upstream, exchange.client
            if check and (
                upstream.stage is not Stage.READ
                or client.since != STOPPED
                or client.is_polled
                or now - upstream.since > exchange.min_wait
            ):
                exchange.check(now)
            if exchange.is_admitted is not None:
                exchange.check_credential()
            if phase >= exchange.drains_from:
                exchange.drain(phase)
