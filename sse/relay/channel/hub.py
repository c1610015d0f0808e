"""Publish and subscribe: a log for each channel that stays open; a reader is a cursor and a bell.

An event is framed once, whatever the number of readers, and nothing is queued for any of them: what a reader is behind
is in the history, and goes out in one piece. All channels share one sequence of numbers, so one last event ID covers
any set of them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...protocol.event import ServerSentEvent
from .bell import Bells
from .history import Channel, Entry, HistoryLimits, Numbering, new_epoch, parse_event_id
from .reader import ChannelReader

#: Channels that one reader may read.
MAX_CHANNELS = 16
#: Seconds between two marks of which sequence number was reached when.
MARK_INTERVAL = 1.0


@dataclass(frozen=True, kw_only=True)
class ChannelInfo:
    """What is known of a channel in this process."""

    #: The id of its last event, "" if it has none in its history.
    last_id: str
    #: Events in its history.
    events: int
    #: Readers that this process serves.
    readers: int


#: (channel, number, number before in the channel, bytes without an id); None is a number that is not known any more.
Delivery = tuple[str, int, int | None, bytes]


class Channels:
    """The channels of one process, whose events are in its memory; `RedisChannels` are those of several.

    :param limits: how much of each is kept.
    """

    def __init__(self, limits: HistoryLimits) -> None:
        self.limits = limits
        self.numbering = Numbering()
        self._channels: dict[str, Channel] = {}
        #: (when, number): which number had been reached before.
        self._marks: deque[tuple[float, int]] = deque()
        self._swept = time.monotonic()
        self._bells = Bells()
        self._begin(new_epoch())

    def publish(self, channel: str, event: ServerSentEvent) -> str:
        """Publish an event and return its id.

        :raises StoreUnavailable: if it was not published.
        """
        return self._append(channel, event.encode())

    def close_channel(self, channel: str) -> str:
        """Close a channel: its readers get the rest, and end.

        :raises StoreUnavailable: if it was not closed.
        """
        return self._append(channel, b"")

    def _append(self, name: str, payload: bytes) -> str:
        """Append an entry behind all others, and return its id; b"" closes the channel.

        :raises StoreUnavailable: if nothing was appended.
        """
        with self.numbering.lock:
            seq = self.numbering.seq + 1
            self._deliver(self.numbering.epoch, [(name, seq, self._channel(name).last, payload)])
            return self.numbering.event_id(seq)

    def _follow(self, names: Sequence[str]) -> None:
        """Have the histories of channels here, and what comes behind them, until `_unfollow()`.

        :raises StoreUnavailable: if that cannot be.
        """

    def _unfollow(self, names: Sequence[str]) -> None:
        """Follow some channels for one reader less; the histories that are here alone stay."""

    def info(self, name: str) -> ChannelInfo:
        """Return the state of a channel in this process."""
        with self.numbering.lock:
            channel = self._channels.get(name)
            if channel is None:
                return ChannelInfo(last_id="", events=0, readers=0)
            channel.trim(time.monotonic(), self.limits)
            events = [entry for _, entry in channel.entries if not entry.is_closing]
            last = self.numbering.event_id(events[-1].seq) if events else ""
            return ChannelInfo(last_id=last, events=len(events), readers=len(channel.readers))

    def subscribe(self, names: Sequence[str], *, since: str = "", replay: int = 0) -> ChannelReader | None:
        """Return a reader, None if all channels are closed and there is nothing more to read.

        :param since: the last event ID that the client has had, "" for none.
        :param replay: past events that a client without an id gets, at most.
        :raises ValueError: if the id is malformed.
        :raises StoreUnavailable: if the histories cannot be had.
        """
        position = parse_event_id(since) if since else None
        names = tuple(dict.fromkeys(names))
        self._follow(names)
        with self.numbering.lock:
            channels = {name: self._channel(name) for name in names}
            now = time.monotonic()
            for channel in channels.values():
                channel.trim(now, self.limits)
            start = self._start(channels.values(), position, replay)
            reader = ChannelReader(channels, start, numbering=self.numbering, bells=self._bells, on_close=self._leave)
            if reader.is_over:
                reader.close()
                return None
            for channel in channels.values():
                channel.readers.add(reader)
        return reader

    def _start(self, channels: Iterable[Channel], position: tuple[str, int] | None, replay: int) -> int | None:
        """Return the number behind which a reader begins, None if it has missed something."""
        if position is None:
            past = sorted(entry.seq for channel in channels for _, entry in channel.entries if not entry.is_closing)
            wanted = past[-replay:] if replay > 0 else []
            return wanted[0] - 1 if wanted else self.numbering.seq
        epoch, seq = position
        if epoch != self.numbering.epoch or seq > self.numbering.seq:
            return None
        return seq if all(channel.is_whole(seq) for channel in channels) else None

    def _leave(self, reader: ChannelReader) -> None:
        with self.numbering.lock:
            for name in reader.names:
                if name in self._channels:
                    self._channels[name].readers.discard(reader)
        self._unfollow(reader.names)

    def _deliver(self, epoch: str, entries: Iterable[Delivery]) -> None:
        """Take entries in the order of their numbers."""
        with self.numbering.lock:
            if epoch != self.numbering.epoch:
                self._begin(epoch)
            now = time.monotonic()
            for entry in entries:
                self._take(now, *entry)
            self._sweep(now)

    def _take(self, now: float, name: str, seq: int, prev: int | None, payload: bytes) -> None:
        channel = self._channel(name)
        # What a history and the live entries both have comes twice.
        if seq > channel.last or not channel.entries:
            frame = b"id: %b\n%b" % (self.numbering.event_id(seq).encode(), payload or b"\n")
            before = channel.last if prev is None else prev
            channel.append(Entry(seq, before, frame, not payload), now, self.limits)
            self._bells.ring(channel.readers)
        if not self._marks or self._marks[-1][0] <= now - MARK_INTERVAL:
            self._marks.append((now, seq - 1))
        self.numbering.seq = max(self.numbering.seq, seq)

    def _begin(self, epoch: str) -> None:
        """Begin another sequence of numbers: what was before is not known any more."""
        with self.numbering.lock:
            self.numbering.epoch, self.numbering.seq = epoch, 0
            self._marks.clear()
            for channel in self._channels.values():
                channel.skip(0)
                self._bells.ring(channel.readers)

    def _channel(self, name: str) -> Channel:
        """Return a channel; one that is not known here begins behind what is too old to be kept."""
        if name not in self._channels:
            self._channels[name] = Channel(self._floor(time.monotonic()))
        return self._channels[name]

    def _floor(self, now: float) -> int:
        """Return a number that no event exceeds that is too old for a history."""
        while self._marks and self._marks[0][0] <= now - self.limits.seconds:
            self._marks.popleft()
        return self._marks[0][1] if self._marks else self.numbering.seq

    def _sweep(self, now: float) -> None:
        """Drop the channels that have neither history nor readers."""
        if now - self._swept < self.limits.seconds:
            return
        self._swept = now
        for name, channel in list(self._channels.items()):
            channel.trim(now, self.limits)
            if not channel.entries and not channel.readers:
                self._channels.pop(name, None)
