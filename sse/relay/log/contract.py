"""What a log does, whatever store it is in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..stream.end import EndReason
from .base import Claim, Header, Snapshot
from .ring import Reader, Recording


class Log(Protocol):
    """All recordings of a store."""

    def create(self, id: str, header: Header, cancel: Callable[[EndReason], None]) -> Recording | None:
        """Begin a recording, None if there is no room for it.

        :param cancel: stops the recorder, for a reason; called from anywhere, never waits.
        """

    def finish(self, recording: Recording, reason: EndReason) -> None:
        """End a recording after its last byte was appended; never waits."""

    def attend(self, recording: Recording) -> Reader:
        """Return a reader for the client whose request is recorded, from the first byte on; to be closed."""

    def look(self, id: str) -> Snapshot:
        """Return the state of a recording.

        :raises NotKept, Expired, Unavailable: if there is none to read.
        """

    def read(self, id: str, offset: int, limit: int) -> bytes:
        """Return up to `limit` bytes that are there from a position on.

        :raises Trimmed, NotKept, Expired, Unavailable: if they are not.
        """

    def follow(self, id: str, snapshot: Snapshot, offset: int) -> Reader:
        """Return a reader, to be closed.

        :raises TooManyReaders, NotKept, Unavailable: if there can be none.
        """

    def stop(self, id: str, *, erase: bool) -> None:
        """End a recording as `EndReason.STOPPED` if it is open, and erase it if that is wanted; again is no error.

        :raises Unavailable: if the store cannot be reached.
        """

    def claim(self, key: str, claim: Claim, *, instead_of: Claim | None = None) -> Claim:
        """Return the claim that the key has now: the one given, if there was none or `instead_of`.

        :raises Unavailable: if the store cannot be reached.
        """

    def is_alive(self, claim: Claim) -> bool:
        """Return whether the process that made a claim still runs."""

    def release(self, key: str, claim: Claim) -> None:
        """Give up a claim whose recording has not begun."""

    def has_written(self) -> bool:
        """Return whether other processes can read all recordings of this process that have ended."""
