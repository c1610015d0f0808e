"""Wait for entries of many Redis streams with one connection and one thread, whatever the number of readers.

In a Cluster there is one of each for every hash tag, because XREAD takes keys of one slot only.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..redis import SharedStore, connect

log = logging.getLogger("sse")

#: An entry's ID and its fields.
Entry = tuple[bytes, dict[bytes, bytes]]
Deliver = Callable[[Sequence[Entry]], None]

#: Milliseconds of one XREAD: so long may a new key wait until it is read.
BLOCK = 100
#: Seconds between two reads at least, so that streams which are busy are read in batches.
READ_INTERVAL = 0.02
#: Entries of one key that one read returns.
COUNT = 64
#: Seconds before the next attempt while the store is unavailable.
RETRY_INTERVAL = 1.0

_TAG = re.compile(r"\{(.+?)\}")


class Follower:
    """Calls back with what is appended to streams.

    :param store: where they are; the connections to it are the follower's own.
    """

    def __init__(self, store: SharedStore) -> None:
        self._store = store
        self._loops: dict[str, _Loop] = {}
        self._lock = threading.Lock()

    def follow(self, key: str, last_id: str, deliver: Deliver) -> Callable[[], None]:
        """Call `deliver` with the entries behind an ID; return what ends that.

        Entries may come twice: another reader of the same key begins further back.

        :param deliver: called from the reading thread; never waits.
        """
        # Keys of different hash tags cannot be read together there.
        tag = _TAG.search(key) if self._store.is_cluster else None
        with self._lock:
            loop = self._loops.setdefault(tag[1] if tag else "", _Loop(self._store))
        return loop.follow(key.encode(), last_id, deliver)

    def close(self) -> None:
        """End the threads and close their connections."""
        for loop in self._loops.values():
            loop.close()


class _Loop:
    """One connection, and the thread that reads from it while there is a key to read."""

    def __init__(self, store: SharedStore) -> None:
        self._store = store
        self._positions: dict[bytes, str] = {}
        self._delivers: dict[bytes, list[Deliver]] = {}
        self._lock = threading.Lock()
        self._is_running = False
        self._thread: threading.Thread | None = None

    def follow(self, key: bytes, last_id: str, deliver: Deliver) -> Callable[[], None]:
        def unfollow() -> None:
            with self._lock:
                delivers = self._delivers.get(key, [])
                if deliver in delivers:
                    delivers.remove(deliver)
                if not delivers:
                    self._delivers.pop(key, None)
                    self._positions.pop(key, None)

        with self._lock:
            self._delivers.setdefault(key, []).append(deliver)
            self._positions[key] = min(self._positions.get(key, last_id), last_id, key=_id)
            if self._is_running:
                return unfollow
            self._is_running = True
        self._thread = threading.Thread(target=self._run, name="sse-follow", daemon=True)
        self._thread.start()
        return unfollow

    def close(self) -> None:
        with self._lock:
            self._positions.clear()
            self._delivers.clear()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        client = None
        while True:
            with self._lock:
                positions = dict(self._positions)
                if not positions:
                    self._is_running = False
                    break
            began = time.monotonic()
            try:
                client = client or connect(self._store.uri, timeout=BLOCK / 1000 + 1, connections=1)
                found = client.xread(positions, count=COUNT, block=BLOCK)
            except self._store.errors as error:
                log.debug("cannot read streams: %s", type(error).__name__)
                time.sleep(RETRY_INTERVAL)
                continue
            self._deliver(found, positions)
            time.sleep(max(0.0, READ_INTERVAL - (time.monotonic() - began)))
        if client is not None:
            client.close()

    def _deliver(self, found: Any, positions: dict[bytes, str]) -> None:
        for key, entries in found.items() if isinstance(found, dict) else found or ():
            with self._lock:
                # Where another reader has begun further back meanwhile, its position stays.
                if self._positions.get(key) == positions[key]:
                    self._positions[key] = entries[-1][0].decode()
                delivers = list(self._delivers.get(key, ()))
            for deliver in delivers:
                deliver(entries)


def _id(text: str) -> tuple[int, int]:
    before, _, behind = text.partition("-")
    return int(before), int(behind)
