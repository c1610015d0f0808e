"""Send what many callers have for the shared store at the same time in one round trip."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from .background import run_soon

#: A command and its arguments.
Command = Sequence[Any]


class _Call:
    """Commands of one caller, and the replies when `done` is released; None if the store is unavailable."""

    __slots__ = ("commands", "done", "replies")

    def __init__(self, commands: Sequence[Command]) -> None:
        self.commands = commands
        self.replies: list[Any] | None = None
        self.done = threading.Lock()
        self.done.acquire()


class Batches:
    """Sends commands at once if no others are under way; those that come meanwhile follow together in one batch.

    :param send: is given commands and returns a reply for each, or None for all.
    """

    def __init__(self, send: Callable[[Sequence[Command]], Sequence[Any] | None]) -> None:
        self._send = send
        self._waiting: deque[_Call] = deque()
        #: Held while a batch is under way.
        self._turn = threading.Lock()

    def run(self, commands: Sequence[Command]) -> list[Any] | None:
        """Return the replies to commands, None if the store is unavailable."""
        call = _Call(commands)
        self._waiting.append(call)
        self._send_next()
        call.done.acquire()
        return call.replies

    def _send_next(self) -> None:
        """Send what waits, unless a batch is under way, which then does it."""
        if self._turn.acquire(blocking=False):
            self._send_waiting()

    def _send_waiting(self) -> None:
        """Send one batch, and pass the turn on, whatever becomes of the batch."""
        calls = [self._waiting.popleft() for _ in range(len(self._waiting))]
        try:
            # Another caller may have sent them meanwhile.
            replies = self._send([command for call in calls for command in call.commands]) if calls else None
            if replies is not None:
                rest = iter(replies)
                for call in calls:
                    call.replies = list(islice(rest, len(call.commands)))
        finally:
            self._turn.release()
            for call in calls:
                call.done.release()
            if self._waiting:
                # Elsewhere, so that the caller does not wait for the commands of others.
                run_soon(self._send_next)
