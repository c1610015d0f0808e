"""Publish and subscribe: a log for each channel that nobody closes; a reader is a cursor and a bell.

An event is framed once, whatever the number of readers, and nothing is queued for any of them: what a reader is behind
is in the history, and goes out in one piece. All channels share one sequence of numbers, so one last event ID covers
any set of them.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gevent

from ..protocol.event import ServerSentEvent

CHANNEL_NAME = re.compile(r"[A-Za-z0-9._:~/@-]{1,200}")
#: Channels that one reader may read.
MAX_CHANNELS = 16
#: Bytes that one read returns at most, but for a single event that is longer.
READ_SIZE = 64 * 1024
#: Seconds between two marks of which sequence number was reached when.
MARK_INTERVAL = 1.0
#: Seconds in which bells are rung before other work has its turn.
RING_SLICE = 0.002

_EVENT_ID = re.compile(r"([a-z0-9]{4,16})-(0|[1-9][0-9]{0,15})")


class Overtaken(Exception):
    """The history has dropped events that a reader has not had yet."""


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


@dataclass(frozen=True, kw_only=True)
class ChannelInfo:
    """What is known of a channel in this process."""

    #: The id of its last event, "" if it has none in its history.
    last_id: str
    #: Events in its history.
    events: int
    #: Readers that this process serves.
    readers: int


class Feed(Protocol):
    """Where the entries of channels come from and go to: the one process, or a store that processes share."""

    def publish(self, channel: str, payload: bytes) -> str:
        """Append an entry and return its id; `Channels.deliver` is called for it, now or soon.

        :raises StoreUnavailable: if nothing was published.
        """

    def follow(self, channels: Sequence[str]) -> None:
        """Have the histories of channels in this process, and what comes after them, until `unfollow()`.

        :raises StoreUnavailable: if that cannot be.
        """

    def unfollow(self, channel: str) -> None:
        """Take note that a channel has no reader here any more."""


def check_channel(name: str) -> str:
    """Return a channel's name.

    :raises ValueError: if it is none.
    """
    if not isinstance(name, str) or not CHANNEL_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no channel name: 1 to 200 of A-Z a-z 0-9 . _ : ~ / @ -")
    return name


def parse_event_id(text: str) -> tuple[str, int]:
    """Return the epoch and the sequence number of an id.

    :raises ValueError: if it is not one of ours.
    """
    match = _EVENT_ID.fullmatch(text)
    if match is None:
        raise ValueError("the last event ID is not one of this stream's")
    return match[1], int(match[2])


def new_epoch() -> str:
    """Return a name for a sequence of numbers that begins now."""
    return secrets.token_hex(4)


class _Channel:
    """The history of a channel and its readers in this process."""

    __slots__ = ("entries", "last", "readers", "size")

    def __init__(self, last: int) -> None:
        #: (when, entry), the oldest first; `when` by time.monotonic().
        self.entries: deque[tuple[float, Entry]] = deque()
        self.size = 0
        #: The number of the last entry, or at least that.
        self.last = last
        self.readers: set[ChannelReader] = set()

    @property
    def is_closed(self) -> bool:
        return bool(self.entries) and self.entries[-1][1].is_closing

    def append(self, entry: Entry, when: float, limits: HistoryLimits) -> None:
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


class Channels:
    """The channels of one process.

    :param limits: how much of each is kept.
    :param make_feed: returns where entries come from; given this object, whose `deliver` it calls.
    """

    def __init__(self, limits: HistoryLimits, make_feed: Callable[[Channels], Feed] | None = None) -> None:
        self.limits = limits
        self.epoch = ""
        #: The highest number that was seen.
        self.seq = 0
        self.lock = threading.RLock()
        self._channels: dict[str, _Channel] = {}
        #: (when, number): which number had been reached before.
        self._marks: deque[tuple[float, int]] = deque()
        self._swept = time.monotonic()
        self.bells = Bells()
        self._feed: Feed = make_feed(self) if make_feed else _LocalFeed(self)

    def publish(self, channel: str, event: ServerSentEvent) -> str:
        """Publish an event and return its id.

        :raises StoreUnavailable: if it was not published.
        """
        return self._feed.publish(channel, event.encode())

    def close_channel(self, channel: str) -> str:
        """Close a channel: its readers get the rest, and end."""
        return self._feed.publish(channel, b"")

    def info(self, channel: str) -> ChannelInfo:
        """Return what is known of a channel."""
        with self.lock:
            known = self._channels.get(channel)
            if known is None:
                return ChannelInfo(last_id="", events=0, readers=0)
            known.trim(time.monotonic(), self.limits)
            events = [entry for _, entry in known.entries if not entry.is_closing]
            last = self.event_id(events[-1].seq) if events else ""
            return ChannelInfo(last_id=last, events=len(events), readers=len(known.readers))

    def event_id(self, seq: int) -> str:
        """Return the id of a number."""
        return f"{self.epoch}-{seq}"

    def subscribe(self, names: Sequence[str], *, since: str = "", replay: int = 0) -> ChannelReader | None:
        """Return a reader, None if all channels are closed and there is nothing more to read.

        :param since: the last event ID that the client has had, "" for none.
        :param replay: past events that a client without an id gets, at most.
        :raises ValueError: if the id is malformed.
        :raises StoreUnavailable: if the histories cannot be had.
        """
        position = parse_event_id(since) if since else None
        names = list(dict.fromkeys(names))
        self._feed.follow(names)
        with self.lock:
            now = time.monotonic()
            channels = [self._channel(name) for name in names]
            for channel in channels:
                channel.trim(now, self.limits)
            reader = ChannelReader(self, names, channels, self._start(channels, position, replay))
            if reader.is_over:
                self._release(names)
                return None
            for channel in channels:
                channel.readers.add(reader)
        return reader

    def _start(self, channels: Iterable[_Channel], position: tuple[str, int] | None, replay: int) -> int | None:
        """Return the number behind which a reader begins, None if it has missed something."""
        if position is None:
            past = sorted(entry.seq for channel in channels for _, entry in channel.entries if not entry.is_closing)
            wanted = past[-replay:] if replay > 0 else []
            return wanted[0] - 1 if wanted else self.seq
        epoch, seq = position
        if epoch != self.epoch or seq > self.seq or not all(channel.is_whole(seq) for channel in channels):
            return None
        return seq

    def deliver(self, epoch: str, entries: Iterable[tuple[str, int, int, bytes]]) -> None:
        """Take entries (channel, number, number before, bytes without an id), by their numbers; called by the feed."""
        with self.lock:
            if epoch != self.epoch:
                self._begin(epoch)
            now = time.monotonic()
            for name, seq, prev, payload in entries:
                self._mark(now, seq)
                channel = self._channel(name)
                # What a history and the live entries both have comes twice.
                if seq > channel.last or not channel.entries:
                    frame = b"id: %b\n%b" % (self.event_id(seq).encode(), payload or b"\n")
                    channel.append(Entry(seq, prev, frame, not payload), now, self.limits)
                    self.bells.ring(channel.readers)
                self.seq = max(self.seq, seq)
            self._sweep(now)

    def append(self, name: str, payload: bytes) -> str:
        """Append an entry behind all others, and return its id; for a feed that numbers in this process."""
        with self.lock:
            seq = self.seq + 1
            self.deliver(self.epoch, [(name, seq, self._channel(name).last, payload)])
            return self.event_id(seq)

    def _begin(self, epoch: str) -> None:
        """Begin another sequence: what was before is not known any more."""
        self.epoch, self.seq = epoch, 0
        self._marks.clear()
        for channel in self._channels.values():
            channel.entries.clear()
            channel.size = channel.last = 0
            self.bells.ring(channel.readers)

    def _channel(self, name: str) -> _Channel:
        if name not in self._channels:
            self._channels[name] = _Channel(self.floor(time.monotonic()))
        return self._channels[name]

    def floor(self, now: float) -> int:
        """Return a number that no event exceeds that is too old for a history."""
        while self._marks and self._marks[0][0] <= now - self.limits.seconds:
            self._marks.popleft()
        return self._marks[0][1] if self._marks else self.seq

    def _mark(self, now: float, seq: int) -> None:
        if not self._marks or self._marks[-1][0] <= now - MARK_INTERVAL:
            self._marks.append((now, seq - 1))

    def _sweep(self, now: float) -> None:
        """Drop the channels that have neither history nor readers."""
        if now - self._swept < self.limits.seconds:
            return
        self._swept = now
        for name, channel in list(self._channels.items()):
            channel.trim(now, self.limits)
            if not channel.entries and not channel.readers:
                del self._channels[name]

    def leave(self, reader: ChannelReader) -> None:
        """Take a reader out; called by it."""
        with self.lock:
            for name in reader.names:
                self._channel(name).readers.discard(reader)
            self._release(reader.names)

    def _release(self, names: Iterable[str]) -> None:
        for name in names:
            if not self._channel(name).readers:
                self._feed.unfollow(name)


class ChannelReader:
    """What one client reads of its channels: a source of the pump.

    :param channels: those of the names.
    :param start: the number behind which it begins, None if it has missed something.
    """

    __slots__ = (
        "_bell",
        "_channels",
        "_closed",
        "_cursor",
        "_epoch",
        "_has_begun",
        "_hub",
        "_has_ended",
        "_wake",
        "names",
    )

    def __init__(self, hub: Channels, names: Sequence[str], channels: Sequence[_Channel], start: int | None) -> None:
        self.names = names
        self._hub = hub
        self._channels = channels
        self._cursor = start
        self._epoch = hub.epoch
        #: Channels whose closing it has seen.
        self._closed: set[_Channel] = set()
        self._has_begun = False
        self._has_ended = False
        self._wake: Callable[[], None] | None = None
        self._bell: threading.Event | None = None

    @property
    def is_over(self) -> bool:
        """Whether all its channels are closed and there is nothing more to read."""
        start = self._cursor
        if start is None:
            return False
        return all(channel.is_closed and len(channel.after(start)) <= 1 for channel in self._channels)

    def read(self) -> bytes | None:
        """Return the events that have come, None if none have, b"" at the end.

        :raises Overtaken: if the history has dropped some that were not read.
        """
        if self._has_ended:
            return b""
        with self._hub.lock:
            if self._cursor is None or self._epoch != self._hub.epoch:
                return self._reset()
            if not self._has_begun:
                self._has_begun = True
                # WHATWG HTML, section 9.2.6: a block without data sets the last event ID and dispatches nothing, so a
                # reader that has had no event yet can resume as well.
                return b"id: %b\n\n" % self._hub.event_id(self._cursor).encode()
            return self._gather(self._cursor)

    def _reset(self) -> bytes:
        self._has_begun = True
        self._epoch, self._cursor = self._hub.epoch, self._hub.seq
        self._closed.clear()
        data = json.dumps({"channels": list(self.names)}, separators=(",", ":"))
        return ServerSentEvent(id=self._hub.event_id(self._cursor), event="reset", data=data).encode()

    def _gather(self, cursor: int) -> bytes | None:
        found: list[tuple[Entry, _Channel]] = []
        for channel in self._channels:
            if channel.last > cursor:
                if not channel.is_whole(cursor):
                    raise Overtaken(f"the history begins behind {self._hub.event_id(cursor)}")
                found.extend((entry, channel) for entry in channel.after(cursor))
        if len(self._channels) > 1:
            found.sort(key=lambda pair: pair[0].seq)
        return self._take(found)

    def _take(self, found: Iterable[tuple[Entry, _Channel]]) -> bytes | None:
        frames, size = [], 0
        for entry, channel in found:
            if size and size + len(entry.frame) > READ_SIZE:
                break
            self._cursor = entry.seq
            frames.append(entry.frame)
            size += len(entry.frame)
            if not entry.is_closing:
                self._closed.discard(channel)
                continue
            self._closed.add(channel)
            if len(self._closed) == len(self._channels):
                self._has_ended = True
                break
        return frames[0] if len(frames) == 1 else b"".join(frames) or None

    def wait(self, timeout: float | None) -> None:
        """Block until there may be something to read."""
        bell = self._bell = self._bell or threading.Event()
        if not self._has_news():
            bell.wait(timeout)
        bell.clear()

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake()` from the event loop when there may be something to read."""
        self._wake = wake
        self._hub.bells.use_loop()
        if self._has_news():
            wake()
        return self._unsubscribe

    def _unsubscribe(self) -> None:
        self._wake = None

    def _has_news(self) -> bool:
        cursor = self._cursor
        if self._has_ended or not self._has_begun or cursor is None or self._epoch != self._hub.epoch:
            return True
        return any(channel.last > cursor for channel in self._channels)

    def ring(self) -> None:
        """Wake who waits; called by the bells."""
        if self._wake is not None:
            self._wake()
        if self._bell is not None:
            self._bell.set()

    def cancel(self) -> None:
        """End the reader."""
        self._has_ended = True
        self.ring()

    def close(self) -> None:
        """Take the reader out of its channels."""
        self._hub.leave(self)


class Bells:
    """Wakes readers outside the publisher's request, a slice of them at a time."""

    def __init__(self) -> None:
        self._waiting: dict[ChannelReader, None] = {}
        self._lock = threading.Lock()
        self._is_ringing = False
        self._loop: Any = None

    def use_loop(self) -> None:
        """Ring in the current event loop from now on, whatever thread publishes."""
        if self._loop is None:
            self._loop = gevent.get_hub().loop

    def ring(self, readers: Iterable[ChannelReader]) -> None:
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


class _LocalFeed:
    """The entries of one process."""

    def __init__(self, hub: Channels) -> None:
        self._hub = hub
        hub.epoch = new_epoch()

    def publish(self, channel: str, payload: bytes) -> str:
        return self._hub.append(channel, payload)

    def follow(self, channels: Sequence[str]) -> None:
        """Do nothing: the histories are here."""

    def unfollow(self, channel: str) -> None:
        """Do nothing: a history stays."""
