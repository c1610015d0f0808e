"""The history of a channel, and the numbers that all channels share."""

from __future__ import annotations

import re
import secrets
import threading
from collections import deque
from dataclasses import dataclass

from .bell import Reader

CHANNEL_NAME = re.compile(r"[A-Za-z0-9._:~/@-]{1,200}")
_EVENT_ID = re.compile(r"([a-z0-9]{4,16})-(0|[1-9][0-9]{0,15})")


@dataclass(frozen=True, kw_only=True)
class HistoryLimits:
    """How much of each channel is kept."""

    events: int = 256
    seconds: float = 300.0
    bytes: int = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """An event of a channel, or its closing.

    :param seq: its number in the sequence of all channels.
    :param prev: that of the entry before it in its channel; at least that, where it is not known any more.
    :param frame: its bytes, the id among them.
    :param is_closing: whether readers end here; the frame is then an id alone, behind which a client comes back.
    """

    seq: int
    prev: int
    frame: bytes
    is_closing: bool = False


class Numbering:
    """The sequence of numbers of all channels in this process, and the lock under which it grows."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.epoch = ""
        #: The highest number that was seen.
        self.seq = 0

    def event_id(self, seq: int) -> str:
        """Return the id of a number."""
        return f"{self.epoch}-{seq}"


def check_channel(name: str) -> str:
    """Return a channel's name.

    :raises ValueError: if it is none.
    """
    if not isinstance(name, str) or not CHANNEL_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no channel name: 1 to 200 of A-Z a-z 0-9 . _ : ~ / @ -")
    return name


def parse_event_id(text: str) -> tuple[str, int]:
    """Return the epoch and the sequence number of an id.

    :raises ValueError: if it is not an ID of this history.
    """
    match = _EVENT_ID.fullmatch(text)
    if match is None:
        raise ValueError("the last event ID is not one of this stream's")
    return match[1], int(match[2])


def new_epoch() -> str:
    """Return a name for a sequence of numbers that begins now."""
    return secrets.token_hex(4)


class Channel:
    """The history of a channel."""

    __slots__ = ("entries", "last", "lost", "readers", "size")

    def __init__(self, last: int) -> None:
        #: (when, entry), the oldest first; `when` by time.monotonic().
        self.entries: deque[tuple[float, Entry]] = deque()
        self.size = 0
        #: The number of the last entry, or at least that.
        self.last = last
        #: The number up to which the store has lost entries that were never here.
        self.lost = 0
        self.readers: set[Reader] = set()

    @property
    def is_closed(self) -> bool:
        """Whether nothing came behind its closing."""
        return bool(self.entries) and self.entries[-1][1].is_closing

    def append(self, entry: Entry, when: float, limits: HistoryLimits) -> None:
        """Append an entry; where others are missing before it, the history begins with it."""
        if entry.prev > self.last:
            self.skip(entry.prev)
        self.entries.append((when, entry))
        self.size += len(entry.frame)
        self.last = entry.seq
        self.trim(when, limits)

    def trim(self, now: float, limits: HistoryLimits) -> None:
        """Drop what is too old, and what is too much; the last entry stays until it is too old."""
        entries = self.entries
        while entries and (
            entries[0][0] < now - limits.seconds
            or (len(entries) > 1 and (len(entries) > limits.events or self.size > limits.bytes))
        ):
            self.size -= len(entries.popleft()[1].frame)

    def skip(self, seq: int) -> None:
        """Forget the history: entries up to a number were lost; 0 if another sequence of numbers begins."""
        self.entries.clear()
        self.size, self.last, self.lost = 0, seq, seq

    def is_whole(self, seq: int) -> bool:
        """Return whether everything behind a number is in the history."""
        return (self.entries[0][1].prev if self.entries else self.last) <= seq

    def after(self, seq: int) -> list[Entry]:
        """Return the entries behind a number, the oldest first."""
        found = []
        for _, entry in reversed(self.entries):
            if entry.seq <= seq:
                break
            found.append(entry)
        return found[::-1]
