"""Count requests in moving windows, in this process or in the store that processes share.

They are storages of limits, which Flask-Limiter builds on, with three differences. Counts in memory are dropped when
they are over, without a thread (limits starts one every 10 ms, which copies all of them). All windows of a request are
counted in one round trip. And a clock that is set back locks no client out, although requests that were counted before
then lie in the future.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from limits import RateLimitItem, RateLimitItemPerSecond
from limits.storage import MovingWindowSupport, Storage

from ...relay.redis import SharedStore

#: Keys that are kept in memory whether used or not; beyond twice the used ones, the others are dropped.
KEPT_KEYS = 1000

#: Count in all windows, or in none if one is full. A window is a list of times, the newest first. The times are those
#: of the process, because limits and its tests set them; times more than a window ahead were written before a clock was
#: set back. ARGV: the time, how much is counted (0: nothing), and each window's limit and seconds. Returned: the number
#: of the first full window or 0, and each window's count and oldest time.
_COUNT = """
local now, amount = tonumber(ARGV[1]), tonumber(ARGV[2])
local full, found = 0, {}
for i, key in ipairs(KEYS) do
  local limit, window = tonumber(ARGV[2 * i + 1]), tonumber(ARGV[2 * i + 2])
  local newest = redis.call('LINDEX', key, 0)
  if newest and tonumber(newest) > now + window then redis.call('DEL', key) end
  local oldest = redis.call('LINDEX', key, -1)
  while oldest and tonumber(oldest) < now - window do
    redis.call('RPOP', key)
    oldest = redis.call('LINDEX', key, -1)
  end
  local count = redis.call('LLEN', key)
  if full == 0 and count + math.max(amount, 1) > limit then full = i end
  found[2 * i - 1], found[2 * i] = count, oldest or ARGV[1]
end
if full == 0 and amount > 0 then
  for i, key in ipairs(KEYS) do
    for _ = 1, amount do redis.call('LPUSH', key, ARGV[1]) end
    redis.call('EXPIRE', key, math.ceil(tonumber(ARGV[2 * i + 2])) + 1)
    found[2 * i - 1] = found[2 * i - 1] + amount
  end
end
return {full, unpack(found)}
"""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """How often something may be done.

    :param value: in the words of limits, such as `60 per minute`.
    :param items: the same, the shortest window first.
    :param key: what is counted of a call: `client` or `address`.
    :param scope: what is limited; empty for each endpoint by itself.
    :param counts: False only looks whether one more is allowed.
    """

    value: str
    items: Sequence[RateLimitItem]
    key: Literal["client", "address"]
    scope: str
    counts: bool


@dataclass(kw_only=True, slots=True)
class Check:
    """What to count.

    :param name: who or what is counted, and for what; the windows of one name are kept together.
    :param items: the limits, the shortest window first.
    :param amount: how much is counted; 0 only looks whether one more is allowed.
    """

    name: str
    items: Sequence[RateLimitItem]
    amount: int = 1


@dataclass(kw_only=True, slots=True)
class Window:
    """A limit's window after a check.

    :param reset: when its oldest request is forgotten (time.time()).
    :param remaining: how many more requests are allowed until then.
    """

    item: RateLimitItem
    reset: float
    remaining: int


@dataclass(kw_only=True, slots=True)
class Verdict:
    """The result of a check.

    :param exceeded: the number of the first limit that is exceeded; None if the request is allowed.
    """

    exceeded: int | None
    windows: Sequence[Window]


class Memory(Storage, MovingWindowSupport):
    """The counts of one process, for moving windows alone; it does not read a clock that can be set."""

    def __init__(self, uri: str | None = None, **options: Any) -> None:
        super().__init__(uri, **options)
        #: By key the seconds (time.monotonic()) after which each request is forgotten, the oldest first.
        self.ends: dict[str, deque[float]] = {}
        self._most = KEPT_KEYS
        self._lock = threading.Lock()

    def check_all(self, checks: Sequence[Check]) -> list[Verdict]:
        """Return the result of each check; one that is exceeded counts nothing."""
        return [self._check(check) for check in checks]

    def _check(self, check: Check) -> Verdict:
        now, wall = time.monotonic(), time.time()
        with self._lock:
            if len(self.ends) >= self._most:
                self._drop_unused(now)
            found = [(item, key := _key(check.name, item), self._current(key, now)) for item in check.items]
            needed = max(check.amount, 1)
            exceeding = [n for n, (item, _, ends) in enumerate(found) if len(ends) + needed > item.amount]
            for item, key, ends in found if check.amount and not exceeding else ():
                ends.extend([now + item.get_expiry()] * check.amount)
                self.ends[key] = ends
            windows = [_window(item, len(ends), wall + (ends[0] - now if ends else 0.0)) for item, _, ends in found]
        return Verdict(exceeded=exceeding[0] if exceeding else None, windows=windows)

    def _drop_unused(self, now: float) -> None:
        self.ends = {key: ends for key, ends in self.ends.items() if ends and ends[-1] > now}
        # So the work stays in proportion to the requests, however many keys are in use.
        self._most = max(KEPT_KEYS, 2 * len(self.ends))

    def _current(self, key: str, now: float) -> deque[float]:
        ends = self.ends.get(key) or deque()
        while ends and ends[0] <= now:
            ends.popleft()
        return ends

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Count and return whether it is allowed, for limits' own strategy."""
        [verdict] = self.check_all([Check(name=key, items=[_item(limit, expiry)], amount=amount)])
        return verdict.exceeded is None

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """Return when the window began (time.time()) and how much is in it, for limits' own strategy."""
        [verdict] = self.check_all([Check(name=key, items=[_item(limit, expiry)], amount=0)])
        [window] = verdict.windows
        return window.reset - expiry, limit - window.remaining

    def check(self) -> bool:
        return True

    def reset(self) -> int | None:
        with self._lock:
            count = len(self.ends)
            self.ends.clear()
        return count

    def clear(self, key: str) -> None:
        with self._lock:
            self.ends = {known: ends for known, ends in self.ends.items() if not known.startswith(f"{key}/")}

    @property
    def base_exceptions(self) -> type[Exception]:
        return ValueError

    def incr(self, key: str, expiry: int, amount: int = 1) -> NoReturn:
        """Raise NotImplementedError, as `get` and `get_expiry` do: they are for fixed windows."""
        raise NotImplementedError

    def get(self, key: str) -> NoReturn:
        raise NotImplementedError

    def get_expiry(self, key: str) -> NoReturn:
        raise NotImplementedError


class SharedCounts(Memory):
    """The counts of all processes that share a store; those of this process while it is unavailable.

    :param store: the store.
    :param on_unavailable: called each time it is needed and unavailable.
    """

    def __init__(self, *, store: SharedStore, on_unavailable: Callable[[], object]) -> None:
        super().__init__()
        self._store = store
        self._on_unavailable = on_unavailable

    def check_all(self, checks: Sequence[Check]) -> list[Verdict]:
        replies = self._store.run(*map(_command, checks), on_unavailable=self._on_unavailable)
        if replies is None:
            return super().check_all(checks)
        return [_verdict(check, reply) for check, reply in zip(checks, replies, strict=True)]

    def check(self) -> bool:
        return self._store.is_available()


def _command(check: Check) -> list[Any]:
    # A Cluster keeps keys on one node if what stands between their first braces is the same.
    tag = check.name.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
    keys = [_key(f"sse-throttle:{{{tag}}}", item) for item in check.items]
    limits = [number for item in check.items for number in (item.amount, item.get_expiry())]
    return ["EVAL", _COUNT, len(keys), *keys, repr(time.time()), check.amount, *limits]


def _verdict(check: Check, reply: list[Any]) -> Verdict:
    full, *found = reply
    windows = [
        _window(item, int(count), float(oldest) + item.get_expiry())
        for item, count, oldest in zip(check.items, found[::2], found[1::2], strict=True)
    ]
    return Verdict(exceeded=full - 1 if full else None, windows=windows)


def _window(item: RateLimitItem, count: int, reset: float) -> Window:
    return Window(item=item, reset=reset, remaining=max(item.amount - count, 0))


def _key(name: str, item: RateLimitItem) -> str:
    return f"{name}/{item.amount}/{item.get_expiry()}"


def _item(limit: int, expiry: int) -> RateLimitItem:
    return RateLimitItemPerSecond(limit, expiry)
