"""What one client reads of its channels: a source of the pump."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping

import gevent

from ...protocol.event import ServerSentEvent
from ..stream.end import EndReason
from ..stream.source import TruncatedBody
from .bell import Bells
from .history import Channel, Entry, Numbering

#: Bytes that one read returns at most, but for a single event that is longer.
READ_SIZE = 64 * 1024


class Overtaken(TruncatedBody):
    """The history has dropped events that a reader has not had yet."""

    reason = EndReason.TOO_SLOW


class ChannelReader:
    """What one client reads of its channels: a source of the pump.

    :param channels: its channels, by name.
    :param start: the number behind which it begins, None if it has missed something.
    :param on_close: called once, when it is closed.
    """

    __slots__ = (
        "_bell",
        "_bells",
        "_channels",
        "_closed",
        "_cursor",
        "_epoch",
        "_has_begun",
        "_numbering",
        "_on_close",
        "_has_ended",
        "_wake",
        "names",
    )

    def __init__(
        self,
        channels: Mapping[str, Channel],
        start: int | None,
        *,
        numbering: Numbering,
        bells: Bells,
        on_close: Callable[[ChannelReader], None],
    ) -> None:
        self.names = tuple(channels)
        self._channels = tuple(channels.values())
        self._numbering = numbering
        self._bells = bells
        self._on_close: Callable[[ChannelReader], None] | None = on_close
        self._cursor = start
        self._epoch = numbering.epoch
        #: Channels whose closing it has seen.
        self._closed: set[Channel] = set()
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
        with self._numbering.lock:
            if self._cursor is None or self._epoch != self._numbering.epoch:
                return self._reset()
            if not self._has_begun:
                self._has_begun = True
                # WHATWG HTML, section 9.2.6: a block without data sets the last event ID and dispatches nothing, so a
                # reader that has had no event yet can resume as well.
                return b"id: %b\n\n" % self._numbering.event_id(self._cursor).encode()
            return self._gather(self._cursor)

    def _reset(self) -> bytes:
        self._has_begun = True
        self._epoch, self._cursor = self._numbering.epoch, self._numbering.seq
        self._closed.clear()
        data = json.dumps({"channels": list(self.names)}, separators=(",", ":"))
        return ServerSentEvent(id=self._numbering.event_id(self._cursor), event="reset", data=data).encode()

    def _gather(self, cursor: int) -> bytes | None:
        found: list[tuple[Entry, Channel]] = []
        for channel in self._channels:
            if channel.last > cursor:
                if cursor < channel.lost:
                    return self._reset()
                if not channel.is_whole(cursor):
                    raise Overtaken(f"the history begins behind {self._numbering.event_id(cursor)}")
                found.extend((entry, channel) for entry in channel.after(cursor))
        if len(self._channels) > 1:
            found.sort(key=lambda pair: pair[0].seq)
        return self._take(found)

    def _take(self, found: Iterable[tuple[Entry, Channel]]) -> bytes | None:
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
        self._bells.use_loop()
        if self._has_news():
            # Later, because what subscribes is not ready yet.
            gevent.get_hub().loop.run_callback(self.ring)
        return self._unsubscribe

    def _unsubscribe(self) -> None:
        self._wake = None

    def _has_news(self) -> bool:
        cursor = self._cursor
        if self._has_ended or not self._has_begun or cursor is None or self._epoch != self._numbering.epoch:
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
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close(self)
