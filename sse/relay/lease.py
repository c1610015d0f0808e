"""How many streams may be open: leases, given back on every ending there is."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

from ..errors import AtCapacity, TooManyStreams

#: Seconds after which a refused client may try again: there is no telling when a stream ends, so soon but not at once.
RETRY_AFTER = 1


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

    def take(self, client: str) -> Callable[[], None]:
        """Return what gives the lease back; calling it again does nothing.

        :param client: whose stream it is.
        :raises AtCapacity: if the process has as many as it may have.
        :raises TooManyStreams: if the client has.
        """
        with self._lock:
            if self._total and self._count >= self._total:
                raise AtCapacity(retry_after=RETRY_AFTER)
            if self._per_client and self._open[client] >= self._per_client:
                raise TooManyStreams(retry_after=RETRY_AFTER)
            self._count += 1
            self._open[client] += 1
        given_back = False

        def give_back() -> None:
            nonlocal given_back
            with self._lock:
                if given_back:
                    return
                given_back = True
                self._count -= 1
                self._open[client] -= 1
                if not self._open[client]:
                    del self._open[client]

        return give_back
