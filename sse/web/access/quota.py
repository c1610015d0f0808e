"""Quotas: how many tokens a client may spend in a fixed window."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from limits import RateLimitItem

from ...protocol.usage import Usage
from ...relay.redis import SharedStore, nothing

#: Bytes of a request that are taken for one token where nothing was reported.
BYTES_PER_TOKEN = 4

#: KEYS: the account, the charge. ARGV: seconds of the window, tokens. Returns what is spent, and the seconds left.
_SCRIPT = """
local seconds, now = tonumber(ARGV[1]), tonumber(redis.call('TIME')[1])
local window, spent = redis.call('HGET', KEYS[1], 'window'), redis.call('HGET', KEYS[1], 'spent')
local current = string.format('%.0f', math.floor(now / seconds))
spent = window == current and tonumber(spent) or 0
-- A charge whose reply was lost may come again.
if tonumber(ARGV[2]) > 0 and redis.call('SET', KEYS[2], 1, 'NX', 'EX', 60) then
  spent = spent + tonumber(ARGV[2])
  redis.call('HSET', KEYS[1], 'window', current, 'spent', string.format('%.0f', spent))
  redis.call('EXPIRE', KEYS[1], seconds)
end
return {string.format('%.0f', spent), seconds - now % seconds}
"""


def tokens_of(usage: Usage | None, *, is_complete: bool, is_post: bool, events: int, body: int) -> tuple[int, bool]:
    """Return the tokens that a response is charged with, and whether they are estimated.

    Where an upstream has reported nothing, or a part, for a POST whose response had events, leaving before the last
    one would be free otherwise.

    :param events: those that were sent to the client.
    :param body: bytes of the request's body.
    """
    reported = 0 if usage is None else (usage.input or 0) + (usage.output or 0)
    if (usage is not None and is_complete) or not is_post or not events:
        return reported, False
    return max(reported, events + body // BYTES_PER_TOKEN), True


class Quotas:
    """What clients have spent: in the store that processes share, while it is available, or else in this process.

    :param store: None if there is none.
    :param on_unavailable: called each time the store was not available.
    """

    def __init__(self, store: SharedStore | None = None, *, on_unavailable: Callable[[], object] = nothing) -> None:
        self._store = store
        self._on_unavailable = on_unavailable
        self._lock = threading.Lock()
        #: client -> (window, tokens)
        self._spent: dict[str, tuple[int, int]] = {}
        # The time of day as it was at the start, so that a clock that is set moves no window.
        self._offset = time.time() - time.monotonic()

    def retry_after(self, client: str, quota: RateLimitItem) -> int | None:
        """Return the seconds after which a client that has spent its quota may call again, None if it has not."""
        spent, rest = self._count(client, quota, 0)
        return rest if spent >= quota.amount else None

    def charge(self, client: str, quota: RateLimitItem, tokens: int) -> None:
        """Add what a client has spent; do it before its lease is released, so that a next call sees it."""
        if tokens > 0:
            self._count(client, quota, tokens)

    def _count(self, client: str, quota: RateLimitItem, tokens: int) -> tuple[int, int]:
        """Return what is spent in the current window, and the seconds until the next one."""
        seconds = quota.get_expiry()
        if self._store is not None:
            account = f"sse:{{quota:{client}}}:{seconds}"
            keys, arguments = [account, f"{account}:{uuid.uuid4().hex}"], [seconds, tokens]

            def run(redis: Any) -> Any:
                return redis.eval(_SCRIPT, len(keys), *keys, *arguments)

            result = self._store.call(run, on_unavailable=self._on_unavailable)
            if result is not None:
                return int(result[0]), int(result[1])
        return self._count_here(client, seconds, tokens)

    def _count_here(self, client: str, seconds: int, tokens: int) -> tuple[int, int]:
        now = int(time.monotonic() + self._offset)
        window = now // seconds
        with self._lock:
            known, spent = self._spent.get(client, (window, 0))
            spent = (spent if known == window else 0) + tokens
            if tokens:
                self._spent[client] = window, spent
        return spent, seconds - now % seconds
