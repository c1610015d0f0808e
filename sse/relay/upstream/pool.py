"""Connections that upstreams keep open, for requests to come."""

from __future__ import annotations

import ssl
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping

import certifi

from ...protocol.target.parse import Target
from ..exchange import Side
from .connection import Connection, Key
from .dial import Dialer
from .transport import TLSTransport, Transport

#: Seconds after which an idle connection is not used again: NATs and load balancers drop it silently.
IDLE_LIMIT = 30.0


def tls_context(ca_file: str = "") -> ssl.SSLContext:
    """Return the context that verifies upstreams; one for all, because loading the authorities takes 20 ms of CPU.

    :param ca_file: PEM file of further authorities, or "".
    """
    context = ssl.create_default_context(cafile=certifi.where())
    if ca_file:
        context.load_verify_locations(cafile=ca_file)
    # RFC 9525, section 6.3: a name in the subject's CN is no reference identity any more.
    context.hostname_checks_common_name = False
    # Python 3.11.2, Debian 12's, sets it: a truncated connection would look like one that was closed.
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    return context


class Pool:
    """Opens connections to targets, and keeps those that may carry another exchange.

    :param dialer: makes the connections.
    :param context: verifies upstreams under TLS.
    :param size: most connections kept in all.
    """

    def __init__(self, dialer: Dialer, context: ssl.SSLContext, *, size: int) -> None:
        self._dialer = dialer
        self._context = context
        self._size = size
        #: Those of one target stand in the order in which they became idle.
        self._idle: dict[Key, deque[Connection]] = {}
        self._count = 0
        self._cleaned = time.monotonic()
        # Nothing waits while it is held, so it does not matter whether gevent has patched it.
        self._lock = threading.Lock()
        # An app that is discarded, as a site's tests do with theirs, leaves no socket open.
        weakref.finalize(self, _close_all, self._idle).atexit = False

    def acquire(self, target: Target) -> Connection | None:
        """Return a kept connection to a target that is still open, None if there is none."""
        key = (target.scheme, target.host, target.port)
        while (connection := self._take(key)) is not None:
            # Bytes that wait on an idle connection would be taken for the response to the next request.
            if time.monotonic() - connection.idle_since <= IDLE_LIMIT and connection.transport.is_idle():
                connection.is_reused = True
                return connection
            connection.transport.close()
        return None

    def _take(self, key: Key) -> Connection | None:
        with self._lock:
            kept = self._idle.get(key)
            if not kept:
                return None
            self._count -= 1
            # The last one is the most likely to be open.
            return kept.pop()

    def connect(self, target: Target, side: Side, *, client: str = "") -> Connection:
        """Return a new connection to a target.

        :param client: the name of the client that waits for it.
        :raises SSEError: if there is none; see `Dialer.dial`.
        :raises OSError: if TLS fails, or the side is cancelled.
        """
        transport: Transport = self._dialer.dial(target.host, target.port, side, client=client)
        try:
            if target.scheme == "https":
                transport = secured = TLSTransport(transport.socket, self._context, target.host)
                side.attach(secured)
                secured.handshake()
        except BaseException:
            transport.close()
            raise
        return Connection(transport, (target.scheme, target.host, target.port))

    def release(self, connection: Connection) -> None:
        """Keep a connection whose exchange has ended as it should."""
        connection.transport.rest()
        connection.idle_since = now = time.monotonic()
        with self._lock:
            is_kept = self._count < self._size
            if is_kept:
                self._idle.setdefault(connection.key, deque()).append(connection)
                self._count += 1
            expired = self._remove_expired(now) if now - self._cleaned > IDLE_LIMIT else []
        for closed in expired if is_kept else [*expired, connection]:
            closed.transport.close()

    def _remove_expired(self, now: float) -> list[Connection]:
        self._cleaned = now
        expired = []
        for key, kept in list(self._idle.items()):
            while kept and now - kept[0].idle_since > IDLE_LIMIT:
                expired.append(kept.popleft())
            if not kept:
                del self._idle[key]
        self._count -= len(expired)
        return expired


def _close_all(idle: Mapping[Key, deque[Connection]]) -> None:
    for kept in idle.values():
        for connection in kept:
            connection.transport.close()
