"""How far the stopping of this process has come, and what that means for its streams."""

from __future__ import annotations

import enum
import time

#: Seconds in which a stream may end with its next event, before it ends wherever it is.
DRAIN_EVENT_WINDOW = 2.0
#: Seconds for sending the error event to a client that reads slowly.
DRAIN_WRITE_WINDOW = 1.0
#: Seconds that a gunicorn worker may take to see that it must stop, and then that nothing is open any more: it looks
#: once a second.
WORKER_POLLS = 2.0


class Phase(enum.IntEnum):
    """How far the stopping has come."""

    SERVING = 0
    DRAINING = 1  #: open streams go on, and requests on open connections are served
    FINISHING = 2  #: each stream ends as soon as an event has ended, and no other begins
    ABORTING = 3  #: each stream ends now
    CLOSED = 4  #: clients that still have unsent data are disconnected


class Drain:
    """The stopping of one process; before `begin()` there is none."""

    def __init__(self) -> None:
        #: When it began (`time.monotonic()`).
        self.began: float | None = None
        self._end: float | None = None

    def begin(self, grace: float) -> None:
        """Begin to stop; a second call changes nothing.

        :param grace: seconds from now on by which all streams have ended.
        """
        if self._end is None:
            self.began = time.monotonic()
            self._end = self.began + max(0.0, grace)

    def phase(self) -> Phase:
        """Return how far it has come by now."""
        if self._end is None:
            return Phase.SERVING
        left = self._end - time.monotonic()
        if left > DRAIN_EVENT_WINDOW:
            return Phase.DRAINING
        if left > 0:
            return Phase.FINISHING
        return Phase.ABORTING if left > -DRAIN_WRITE_WINDOW else Phase.CLOSED
