"""Spread connections over workers: a worker that has more than another lets the other accept first.

Without it, the kernel wakes the same worker again and again, and one reaches SSE_MAX_STREAMS, which is its own limit,
while another is idle.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

#: Seconds between two looks at whether another worker has accepted a connection, and how long one waits for that.
PAUSE, MAX_WAIT = 0.004, 0.05
#: Seconds for which connections do not wait, if no other worker has accepted the last one: it is busy, or gone.
IMPATIENCE = 0.1
#: How many more connections than the others' least are no reason to wait: so many, or a tenth more.
SLACK = 2


class Balance:
    """What the workers show each other: how many connections each has open.

    :param loads: memory that the workers share, four bytes each: the number of its connections and one more, or 0 if
        the worker does not serve.
    :param slot: this worker's place in it.
    :param count: returns how many connections this worker has open.
    """

    def __init__(self, loads: Any, slot: int, count: Callable[[], int]) -> None:
        self._loads = memoryview(loads).cast("I")
        self._slot = slot
        self._count = count
        self._looked_at = self._waits_since = self._impatient_until = 0.0

    def enter(self) -> int:
        """Record how many connections this worker has, and return that; it accepts more."""
        mine = self._count()
        self._loads[self._slot] = mine + 1
        return mine

    def must_wait(self) -> bool:
        """Return whether another worker should accept the connection that waits."""
        mine = self.enter()
        others = [load - 1 for slot, load in enumerate(self._loads) if load and slot != self._slot]
        least = min(others, default=mine)
        if mine <= least + max(SLACK, least // 10):
            return False
        now = time.monotonic()
        if now < self._impatient_until:
            return False
        if now > self._looked_at + 2 * PAUSE:
            # Another connection than that of the last look.
            self._waits_since = now
        self._looked_at = now
        if now < self._waits_since + MAX_WAIT:
            return True
        self._impatient_until = now + IMPATIENCE
        return False

    def leave(self) -> None:
        """Record that this worker accepts no connections any more."""
        self._loads[self._slot] = 0
