"""Knows that this process is about to stop, and what that means for its streams by now."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable

#: Seconds in which a stream may end with its next event, before it ends wherever it is.
LAST_EVENT = 2.0
#: Seconds for the last words to a client that takes them slowly.
FAREWELL = 1.0


class Phase(enum.IntEnum):
    """How far the stopping has come."""

    SERVING = 0
    STOPPING = 1  #: open streams go on, and what comes on open connections is served
    ENDING = 2  #: each stream ends as soon as an event has ended, and no other begins
    OVER = 3  #: each stream ends now
    LATE = 4  #: who has not taken its last words by now is left


def _never() -> bool:
    return False


class Drain:
    """The end of one process; until `begin_when` is called there is none."""

    def __init__(self) -> None:
        self._is_stopping: Callable[[], bool] = _never
        self._grace = 0.0
        self._since: float | None = None

    def begin_when(self, is_stopping: Callable[[], bool], *, grace: float) -> None:
        """Name what tells that the process is to stop.

        :param is_stopping: asked again and again, so it must be cheap; once true, it stays.
        :param grace: seconds from then on by which all streams have ended.
        """
        self._is_stopping = is_stopping
        self._grace = max(0.0, grace)

    def phase(self) -> Phase:
        """Return how far it has come."""
        if self._since is None:
            if not self._is_stopping():
                return Phase.SERVING
            self._since = time.monotonic()
        left = self._since + self._grace - time.monotonic()
        if left > LAST_EVENT:
            return Phase.STOPPING
        if left > 0:
            return Phase.ENDING
        return Phase.OVER if left > -FAREWELL else Phase.LATE
