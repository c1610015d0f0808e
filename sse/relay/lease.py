"""How many streams may be open: leases, released at every end of a stream."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from ..errors import AtCapacity, TooManyStreams
from .redis import SharedStore, nothing

#: Seconds after which a refused client may try again: when a stream ends is unknown, so soon but not at once.
RETRY_AFTER = 1
#: Seconds after which a refusal is certain: a client that comes back at once finds its last stream about to end.
SETTLE_TIME = 0.02
#: Seconds after which a lease in the shared store expires if its process does not renew it, for it was killed.
LIFETIME = 30

#: One lease, or one renewal (no limit, then): a client's leases are a sorted set, each with the second of its end.
#: The clock is the store's, for those of several hosts differ; what ends later than any can was taken before it was set
#: back, and would count for as long.
_TAKE = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZREMRANGEBYSCORE', KEYS[1], now + 2 * ARGV[3], '+inf')
local most = tonumber(ARGV[2])
-- It may be there already: what is about to be taken is renewed as well.
local is_new = not redis.call('ZSCORE', KEYS[1], ARGV[1])
if most > 0 and is_new and redis.call('ZCARD', KEYS[1]) >= most then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[3] + 1)
return 1
"""


class Leases:
    """The open streams of one process, in all and of each client.

    :param total: most of them in this process; 0 is no limit.
    :param per_client: most of them for one client; 0 is no limit.
    """

    def __init__(self, *, total: int, per_client: int) -> None:
        self._total = total
        self._per_client = per_client
        self._open: Counter[str] = Counter()
        self._count = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._count

    def take(self, client: str, most: int | None = None) -> Callable[[], None]:
        """Return what gives the lease back; calling it again does nothing.

        :param client: whose stream it is.
        :param most: streams that this client may have; None for what all may.
        :raises AtCapacity: if the process has as many as it may have.
        :raises TooManyStreams: if the client has.
        """
        try:
            return self._take(client, most)
        except (AtCapacity, TooManyStreams):
            time.sleep(SETTLE_TIME)
            return self._take(client, most)

    def _take(self, client: str, most: int | None) -> Callable[[], None]:
        with self._lock:
            if self._total and self._count >= self._total:
                raise AtCapacity(retry_after=RETRY_AFTER)
            most = self._per_client if most is None else most
            if most and self._open[client] >= most:
                raise TooManyStreams(retry_after=RETRY_AFTER)
            self._count += 1
            self._open[client] += 1
        return partial(self._give_back, [client])

    def _give_back(self, clients: list[str]) -> None:
        """Release the lease of the client in the list, and remove it."""
        with self._lock:
            if not clients:
                return
            client = clients.pop()
            self._count -= 1
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]


class SharedLeases(Leases):
    """Leases whose counts for each client are shared by all processes and hosts that use one Redis.

    The process keeps its own counts too: they are the limit in all, and what is left while the store is unavailable.

    :param store: where they are.
    :param kind: of what: leases of two kinds are counted apart.
    :param lifetime: seconds after which the leases of a process that was killed expire.
    :param on_unavailable: called each time the store is needed and unavailable.
    """

    def __init__(
        self,
        store: SharedStore,
        *,
        total: int,
        per_client: int,
        kind: str = "leases",
        lifetime: int = LIFETIME,
        on_unavailable: Callable[[], object] = nothing,
    ) -> None:
        super().__init__(total=total, per_client=per_client)
        self._store = store
        self._kind = kind
        self._lifetime = lifetime
        self._on_unavailable = on_unavailable
        self._held: dict[str, str] = {}
        self._renewing = False

    def _take(self, client: str, most: int | None) -> Callable[[], None]:
        most = self._per_client if most is None else most
        give_back = super()._take(client, most)
        if not most:
            return give_back
        lease, key = uuid.uuid4().hex, f"sse-{self._kind}:{client}"
        self._hold(lease, key)
        if self._run("EVAL", _TAKE, 1, key, lease, most, self._lifetime) == [0]:
            self._held.pop(lease)
            give_back()
            raise TooManyStreams(retry_after=RETRY_AFTER)

        def give_back_both() -> None:
            give_back()
            if self._held.pop(lease, None) is not None:
                self._run("ZREM", key, lease)

        return give_back_both

    def _run(self, *command: Any) -> Any:
        return self._store.run(command, on_unavailable=self._on_unavailable)

    def _call(self, operation: Callable[[Any], Any]) -> Any:
        """Return the result of an operation on the store, None while it is unavailable."""
        return self._store.call(operation, on_unavailable=self._on_unavailable)

    def _hold(self, lease: str, key: str) -> None:
        with self._lock:
            self._held[lease] = key
            if self._renewing:
                return
            self._renewing = True
        threading.Thread(target=self._renew_all, name="sse-leases", daemon=True).start()

    def _renew_all(self) -> None:
        """Renew what is held every third of the lifetime, until nothing is."""
        while True:
            time.sleep(self._lifetime / 3)
            with self._lock:
                held = list(self._held.items())
                if not held:
                    self._renewing = False
                    return
            self._call(partial(self._renew, held))

    def _renew(self, held: list[tuple[str, str]], store: Any) -> None:
        with store.pipeline(transaction=False) as pipeline:
            for lease, key in held:
                # A Cluster's pipeline has no eval().
                pipeline.execute_command("EVAL", _TAKE, 1, key, lease, 0, self._lifetime)
            pipeline.execute()
            # That has taken a lease again that was released meanwhile.
            for lease, key in held:
                if lease not in self._held:
                    pipeline.zrem(key, lease)
            pipeline.execute()


def leases_in(
    store: SharedStore | None,
    *,
    total: int,
    per_client: int,
    kind: str = "leases",
    on_unavailable: Callable[[], object] = nothing,
) -> Leases:
    """Return the leases that are kept in a store, or in this process alone.

    :param kind: of what: leases of two kinds are counted apart.
    :param on_unavailable: called each time the store is needed and unavailable.
    """
    if store is None:
        return Leases(total=total, per_client=per_client)
    return SharedLeases(store, total=total, per_client=per_client, kind=kind, on_unavailable=on_unavailable)
