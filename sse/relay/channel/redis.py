"""The entries of channels in a Redis that processes share: pub/sub for speed, a stream for truth.

One script numbers an entry, appends it to its channel's stream and publishes it. Each process has one listening
connection. When a channel gets its first reader here, the connection subscribes, waits for the acknowledgement, and
then the history is read: so nothing lies between the two, and what both have is dropped. The history is taken when the
connection has replied to a PING, behind what was published before: so no entry overtakes an older one of another
channel. An entry whose predecessor is not there ends the connection, and a new one reads all histories again.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import StoreUnavailable
from ..redis import SharedStore
from .history import Channel, HistoryLimits, new_epoch
from .hub import Channels, Delivery

log = logging.getLogger("sse")

#: All keys are in one hash slot of a Cluster, because a script numbers and appends at once.
PREFIX = "sse:{channel}:"
#: Seconds of silence after which Redis is sent a PING, and after as many more the connection is replaced.
PING_INTERVAL = 5.0
#: Seconds in which a reader's channels must be there, and between two attempts to connect.
FOLLOW_TIMEOUT, RETRY_INTERVAL = 1.0, 0.5
#: Channels whose histories are read at once.
BATCH = 50

_UNREADABLE = "the channels cannot be read"
#: Sent with the PING behind the reading of histories; one that ends a silence has no data.
_HAVE_READ = b"read"

_COMMON = """
local time = redis.call('TIME')
local now, seconds = tonumber(time[1]), tonumber(ARGV[2])
if redis.call('HSETNX', KEYS[1], 'epoch', ARGV[1]) == 1 then redis.call('HSET', KEYS[1], 'seq', 0) end
redis.call('EXPIRE', KEYS[1], math.max(seconds, 2592000))
local epoch, seq = redis.call('HGET', KEYS[1], 'epoch'), tonumber(redis.call('HGET', KEYS[1], 'seq'))
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - seconds)
-- No entry up to this number is young enough for a history, and every older entry is up to this number.
local floor = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
floor = floor and tonumber(floor) or seq
local function text(number) return string.format('%.0f', number) end
"""

# KEYS: number, marks, log, last. ARGV: epoch, seconds, payload, events, bytes, live channel.
_APPEND = (
    _COMMON
    + """
seq = seq + 1
redis.call('HSET', KEYS[1], 'seq', text(seq))
local mark = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')
if not mark[2] or tonumber(mark[2]) < now then redis.call('ZADD', KEYS[2], now, text(seq - 1)) end
redis.call('EXPIRE', KEYS[2], seconds + 1)
local prev = string.match(redis.call('GET', KEYS[4]) or '', '^' .. epoch .. '%-(.*)$')
if prev then
  redis.call('XTRIM', KEYS[3], 'MINID', text(floor + 1))
else
  -- What is left of another epoch has numbers of its own.
  redis.call('DEL', KEYS[3])
end
redis.call('SET', KEYS[4], epoch .. '-' .. text(seq), 'EX', seconds)
prev = prev or '-'
local last, total = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)[1], #ARGV[3]
if last then total = total + tonumber(last[2][6]) end
redis.call('XADD', KEYS[3], 'MAXLEN', ARGV[4], text(seq) .. '-0',
  'd', ARGV[3], 'p', prev, 't', text(total), 'e', epoch)
redis.call('EXPIRE', KEYS[3], seconds)
while true do
  local first = redis.call('XRANGE', KEYS[3], '-', '+', 'COUNT', 1)[1]
  local kept = total - tonumber(first[2][6]) + #first[2][2]
  if kept <= tonumber(ARGV[5]) or first[1] == text(seq) .. '-0' then break end
  redis.call('XDEL', KEYS[3], first[1])
end
redis.call('PUBLISH', ARGV[6], epoch .. ' ' .. text(seq) .. ' ' .. prev .. ' ' .. ARGV[3])
return {epoch, text(seq)}
"""
)

# KEYS: number, marks, logs. ARGV: epoch, seconds.
_HISTORY = (
    _COMMON
    + """
local found = {}
for index = 3, #KEYS do found[index - 2] = redis.call('XRANGE', KEYS[index], text(floor + 1), '+') end
return {epoch, text(seq), text(floor), found}
"""
)


@dataclass(frozen=True, slots=True)
class _Histories:
    """What was read of channels.

    :param floor: no entry up to this number is kept.
    :param logs: the entries of each channel.
    """

    epoch: bytes
    seq: int
    floor: int
    logs: dict[str, Any]


class RedisChannels(Channels):
    """The channels of all processes that share a store.

    :param uri: the value of `SSE_STORAGE_URI`.
    """

    def __init__(self, limits: HistoryLimits, uri: str) -> None:
        super().__init__(limits)
        self._store = SharedStore(
            uri,
            retry_interval=0,
            without="channels resume when it recovers",
            again="channels are read again",
        )
        self._lock = threading.Lock()
        self._name = f"{PREFIX}process:{uuid.uuid4().hex}"
        #: How many readers each channel has here, and what is set when its history has been read.
        self._readers: dict[str, int] = {}
        self._ready: dict[str, threading.Event] = {}
        self._listener: threading.Thread | None = None

    def _append(self, name: str, payload: bytes) -> str:
        """Append an entry for all processes; if that is not known to have been done, it is not repeated."""
        limits = self.limits
        keys = [*_shared_keys(), _log(name), f"{PREFIX}last:{name}"]
        arguments = [new_epoch(), int(limits.seconds), payload, limits.events, limits.bytes, _live(name)]
        epoch, seq = self._call(_script(_APPEND, keys, arguments), "the event was not published")
        return f"{epoch.decode()}-{seq.decode()}"

    def _follow(self, names: Sequence[str]) -> None:
        """Count one more reader of some channels, and wait until their histories are here."""
        with self._lock:
            waits = [self._ready.setdefault(name, threading.Event()) for name in names]
            for name in names:
                self._readers[name] = self._readers.get(name, 0) + 1
            if self._listener is None:
                # Here, not when the app is made: that may be in the master, which forks.
                self._listener = threading.Thread(target=self._listen, name="sse-channels", daemon=True)
                self._listener.start()
        deadline = time.monotonic() + FOLLOW_TIMEOUT
        try:
            if not all(ready.is_set() for ready in waits):
                # The listener alone uses its connection: this wakes it to look at which channels have readers.
                self._call(lambda client: client.publish(self._name, b""), _UNREADABLE)
            if not all(ready.wait(max(deadline - time.monotonic(), 0)) for ready in waits):
                raise StoreUnavailable(_UNREADABLE)
        except StoreUnavailable:
            self._unfollow(names)
            raise

    def _unfollow(self, names: Sequence[str]) -> None:
        """Count one reader less; the listener unsubscribes from what has none when it is woken next."""
        with self._lock:
            for name in names:
                self._readers[name] -= 1

    def _call(self, operation: Callable[[Any], Any], failed: str) -> Any:
        """Return the result of an operation on the store.

        :raises StoreUnavailable: if it was not possible, because of which something failed.
        """
        found = self._store.call(operation)
        if found is None:
            raise StoreUnavailable(failed)
        return found

    def _listen(self) -> None:
        """Keep a connection for as long as the process lives."""
        last_seen = time.monotonic()
        failures: tuple[type[Exception], ...] = (*self._store.errors, OSError, StoreUnavailable)
        while True:
            listener = _Listener(self, is_late=time.monotonic() - last_seen >= self.limits.seconds)
            try:
                listener.run()
            except failures as error:
                log.debug("cannot listen to channels: %s", type(error).__name__)
                last_seen = max(last_seen, listener.last_seen)
            finally:
                listener.close()
            time.sleep(RETRY_INTERVAL)

    # What the listener calls.

    def open_listener(self) -> Any:
        """Return a connection that is subscribed to what wakes this process."""

        def subscribe(client: Any) -> Any:
            connection = client.pubsub()
            connection.subscribe(self._name)
            return connection

        return self._call(subscribe, _UNREADABLE)

    def wanted(self) -> set[str]:
        """Return the channels that have readers, and forget the others."""
        with self._lock:
            for name in [name for name, readers in self._readers.items() if not readers]:
                del self._readers[name], self._ready[name]
                self._channels.pop(name, None)
            return set(self._readers)

    def read(self, names: Sequence[str]) -> _Histories:
        """Read the histories of channels, at least one."""
        logs: dict[str, Any] = {}
        for start in range(0, len(names), BATCH):
            batch = names[start : start + BATCH]
            keys = [*_shared_keys(), *map(_log, batch)]
            script = _script(_HISTORY, keys, [new_epoch(), int(self.limits.seconds)])
            epoch, seq, floor, found = self._call(script, _UNREADABLE)
            logs.update(zip(batch, found, strict=True))
        return _Histories(epoch, int(seq), int(floor), logs)

    def load(self, histories: _Histories, early: Iterable[tuple[str, bytes]], *, is_late: bool) -> None:
        """Take histories, and what was published meanwhile, in the order of the numbers.

        :param is_late: whether more was missed than a history holds.
        :raises StoreUnavailable: if another epoch began meanwhile.
        """
        epoch = histories.epoch
        parsed = [_parse(name, message) for name, message in early]
        if any(its_epoch != epoch.decode() for its_epoch, _ in parsed):
            raise StoreUnavailable("the channels have begun another epoch")
        with self.numbering.lock:
            # Another epoch ends what was known.
            self._deliver(epoch.decode(), ())
            deliveries = [delivery for _, delivery in parsed]
            for name, entries in histories.logs.items():
                self._begin_channel(name, histories.floor, is_late=is_late)
                deliveries += [found for entry in entries if (found := _delivery(name, epoch, *entry))]
            self._deliver(epoch.decode(), sorted(deliveries, key=lambda delivery: delivery[1]))
            self.numbering.seq = max(self.numbering.seq, histories.seq)
        with self._lock:
            for ready in [self._ready[name] for name in histories.logs if name in self._ready]:
                ready.set()

    def _begin_channel(self, name: str, floor: int, *, is_late: bool) -> None:
        """Begin a channel behind the store's oldest entries, if it is new here or more was missed than is kept."""
        with self.numbering.lock:
            known = self._channels.get(name)
            if known is None:
                self._channels[name] = Channel(floor)
            elif is_late and known.last < floor:
                known.skip(floor)
                self._bells.ring(known.readers)

    def take(self, name: str, message: bytes) -> None:
        """Take what was published just now.

        :raises StoreUnavailable: if something was missed before it.
        """
        epoch, delivery = _parse(name, message)
        with self.numbering.lock:
            if epoch == self.numbering.epoch and (delivery[2] or 0) > self._channel(name).last:
                raise StoreUnavailable("an event was missed")
            self._deliver(epoch, [delivery])


class _Listener:
    """One listening connection, from its beginning to its failure."""

    def __init__(self, channels: RedisChannels, *, is_late: bool) -> None:
        self._channels = channels
        self._is_late = is_late
        self._connection: Any = None
        self._followed: set[str] = set()
        #: Channels whose subscription is not acknowledged yet, their histories until all before them has come,
        #: and what came meanwhile.
        self._awaited: set[str] = set()
        self._acknowledged: list[str] = []
        self._histories: _Histories | None = None
        self._early: list[tuple[str, bytes]] = []
        self._has_pinged = False
        self._updated = 0.0
        #: When something came last, by time.monotonic().
        self.last_seen = 0.0

    def run(self) -> None:
        """Take what comes until the connection fails."""
        self._connection = self._channels.open_listener()
        while True:
            message = self._connection.get_message(timeout=PING_INTERVAL)
            now = time.monotonic()
            if now - self._updated >= PING_INTERVAL:
                self._update()
            if message is None:
                self._ping()
                continue
            self._has_pinged, self.last_seen = False, now
            self._handle(message["type"], message["channel"], message["data"])

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    def _ping(self) -> None:
        if self._has_pinged:
            raise TimeoutError("no reply to PING")
        self._has_pinged = True
        self._connection.ping()

    def _handle(self, kind: str, channel: bytes | None, data: Any) -> None:
        if kind == "subscribe" and channel is not None:
            self._acknowledge(channel.decode())
        elif kind == "pong" and self._histories is not None and data == _HAVE_READ:
            self._load(self._histories)
        elif kind == "message" and channel is not None:
            name = channel.decode().removeprefix(f"{PREFIX}live:")
            if not data:
                self._update()
            elif name in self._followed:
                if self._awaited or self._histories is not None:
                    self._early.append((name, data))
                else:
                    self._channels.take(name, data)

    def _update(self) -> None:
        """Subscribe to channels that have readers, and unsubscribe from others."""
        self._updated = time.monotonic()
        if self._awaited or self._histories is not None:
            # It is done when these histories are here.
            return
        wanted = self._channels.wanted()
        gone, new = self._followed - wanted, wanted - self._followed
        self._followed = wanted
        if gone:
            self._connection.unsubscribe(*map(_live, gone))
        if new:
            self._awaited |= new
            self._connection.subscribe(*map(_live, new))

    def _acknowledge(self, channel: str) -> None:
        if not channel.startswith(f"{PREFIX}live:"):
            self._update()
            return
        name = channel.removeprefix(f"{PREFIX}live:")
        self._awaited.discard(name)
        self._acknowledged.append(name)
        if not self._awaited:
            self._histories = self._channels.read(self._acknowledged)
            self._connection.ping(_HAVE_READ)

    def _load(self, histories: _Histories) -> None:
        self._channels.load(histories, self._early, is_late=self._is_late)
        self._is_late, self._histories = False, None
        self._acknowledged, self._early = [], []
        self._update()


def _script(text: str, keys: Sequence[str], arguments: Sequence[Any]) -> Callable[[Any], Any]:
    """Return what runs a script with a client."""
    return lambda client: client.register_script(text)(keys=keys, args=arguments)


def _shared_keys() -> list[str]:
    return [f"{PREFIX}number", f"{PREFIX}marks"]


def _log(channel: str) -> str:
    return f"{PREFIX}log:{channel}"


def _live(channel: str) -> str:
    return f"{PREFIX}live:{channel}"


def _delivery(name: str, epoch: bytes, entry_id: bytes, fields: Sequence[bytes]) -> Delivery | None:
    """Return an entry of a stream, None if it is of an epoch that has ended."""
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    if values[b"e"] != epoch:
        return None
    prev = values[b"p"]
    return name, int(entry_id.partition(b"-")[0]), None if prev == b"-" else int(prev), values[b"d"]


def _parse(name: str, message: bytes) -> tuple[str, Delivery]:
    """Return an entry as it was published, and its epoch."""
    epoch, seq, prev, payload = message.split(b" ", 3)
    return epoch.decode(), (name, int(seq), None if prev == b"-" else int(prev), payload)
