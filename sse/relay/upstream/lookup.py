"""Looks up host names, in bounds that keep one client's slow names from delaying others'.

getaddrinfo(3) has no time-out and blocks its thread, so each look-up has a thread of its own; gevent's resolver would
share ten of them with the rest of the process.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from functools import cached_property
from typing import Any

import gevent.monkey
from gevent.threadpool import ThreadPool

from ..exchange import Side
from .transport import uses_gevent

#: Look-ups at a time in all; the names of the upstream table, one look-up each, may use them all.
MAX_LOOKUPS = 64
#: Look-ups at a time of names that are not in the upstream table, in all and for one client.
MAX_PUBLIC_LOOKUPS = 32
MAX_CLIENT_LOOKUPS = 4

#: Family and address, as often as a name has some.
Addresses = list[tuple[int, str]]


class LookUpTimeout(Exception):
    """The look-up took too long."""


class _LookUp:
    """One look-up of a name, for all its waiters."""

    def __init__(self, client: str | None) -> None:
        #: The client that is charged for it; None for a name of the upstream table.
        self.client = client
        self.waiters: set[_Waiter] = set()


class _Waiter:
    """Waits for a look-up, until it ends or the exchange is cancelled."""

    def __init__(self) -> None:
        self.result: queue.Queue[Addresses | Exception] = queue.Queue()

    def cancel(self) -> None:
        self.result.put(ConnectionAbortedError())


class Resolver:
    """Looks names up."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, int], _LookUp] = {}

    # Made at the first look-up: one that was made before gevent patched the process would block all of it.
    @cached_property
    def _changed(self) -> threading.Condition:
        return threading.Condition()

    @cached_property
    def _threads(self) -> Any:
        return ThreadPool(MAX_LOOKUPS)

    def look_up(self, host: str, port: int, *, deadline: float, side: Side, client: str | None) -> Addresses:
        """Return the addresses of a name.

        :param deadline: by time.monotonic().
        :param side: its cancelling ends the wait.
        :param client: the client that is charged for it; None for a name of the upstream table, which goes first.
        :raises LookUpTimeout: after the deadline.
        :raises OSError: if the name does not resolve.
        :raises UnicodeError: if it cannot be looked up.
        """
        waiter = _Waiter()
        side.attach(waiter)
        look_up = self._join(host, port, waiter, client, deadline)
        try:
            found = waiter.result.get(timeout=max(deadline - time.monotonic(), 0.001))
        except queue.Empty:
            raise LookUpTimeout from None
        finally:
            side.detach()
            look_up.waiters.discard(waiter)
        if isinstance(found, Exception):
            raise found
        return found

    def _join(self, host: str, port: int, waiter: _Waiter, client: str | None, deadline: float) -> _LookUp:
        """Wait for the look-up of a name that is running, or start one as soon as there may be one more."""
        key = (host, port)
        with self._changed:
            may_go_on = self._changed.wait_for(
                lambda: key in self._running or self._has_room(client), max(deadline - time.monotonic(), 0)
            )
            if not may_go_on:
                raise LookUpTimeout
            is_new = key not in self._running
            look_up = self._running.setdefault(key, _LookUp(client))
            look_up.waiters.add(waiter)
        if is_new:
            threading.Thread(target=self._run, args=(host, port, look_up), name="sse-look-up", daemon=True).start()
        return look_up

    def _has_room(self, client: str | None) -> bool:
        if client is None:
            return len(self._running) < MAX_LOOKUPS
        charged = [look_up.client for look_up in self._running.values() if look_up.client is not None]
        return len(charged) < MAX_PUBLIC_LOOKUPS and charged.count(client) < MAX_CLIENT_LOOKUPS

    def _run(self, host: str, port: int, look_up: _LookUp) -> None:
        found: Addresses | Exception
        try:
            found = self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            found = error
        with self._changed:
            del self._running[host, port]
            waiters = list(look_up.waiters)
            self._changed.notify_all()
        for waiter in waiters:
            waiter.result.put(found)

    def _resolve(self, host: str, port: int) -> Addresses:
        # Under gevent, this thread is a greenlet, and a thread of the pool is one.
        found = self._threads.apply(_get_addresses, (host, port)) if uses_gevent() else _get_addresses(host, port)
        if isinstance(found, Exception):
            raise found
        return [(int(family), str(sockaddr[0])) for family, _, _, _, sockaddr in found]


def _get_addresses(host: str, port: int) -> list[Any] | Exception:
    """Return what getaddrinfo(3) returns, or its error, because gevent prints a traceback of what a pool raises."""
    resolve = gevent.monkey.get_original("socket", "getaddrinfo")
    try:
        return list(resolve(host, port, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError) as error:
        return error
