"""Watches open exchanges: cuts one when its client leaves or a time runs out.

To cut is to shut the exchange's sockets down, never to throw into the code that waits on them: a blocked read or
write then ends as if the peer had closed, in a greenlet and in a thread alike, and whoever was blocked looks at
`Watch.reason` for why. So no time-out can go off in somebody else's code, and a read costs no timer.
"""

from __future__ import annotations

import enum
import math
import socket
import ssl
import struct
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any, Protocol

import gevent
from gevent import socket as gevent_socket

from ..protocol.boundary import Boundary
from .drain import Drain, Phase

#: Seconds between two looks at the clocks of all exchanges, and so how late a time-out may be.
SWEEP_INTERVAL = 0.25
#: Seconds between two looks at whether a client has got everything before its connection is reset.
DRAIN_INTERVAL = 0.01
#: Seconds for the last words to a client where SSE_SEND_TIMEOUT sets no limit.
LAST_WORDS = 5.0
#: Looks at an empty list before the sweeping thread ends; the next exchange starts another.
IDLE_SWEEPS = 40

#: tcp(7): struct tcp_info begins with the state; ESTABLISHED is 1 in the kernel's list of states.
_TCP_ESTABLISHED = 1
#: Offset and length of tcpi_bytes_acked, a 64-bit count, in struct tcp_info (Linux 4.1 and newer).
_BYTES_ACKED = 120, 8


class EndReason(enum.StrEnum):
    """Why an exchange ended; each has exactly one."""

    COMPLETE = "complete"
    CLIENT_GONE = "client_gone"
    UPSTREAM_TRUNCATED = "upstream_truncated"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    IDLE_TIMEOUT = "idle_timeout"
    SEND_TIMEOUT = "send_timeout"
    MAX_DURATION = "max_duration"
    DRAINING = "draining"
    UPSTREAM_FAILED = "upstream_failed"  #: there was no stream to end: the answer says why
    INTERNAL_ERROR = "internal_error"


class Stage(enum.IntEnum):
    """What an exchange is waiting for."""

    BODY = 0  #: the client's request body
    OPEN = 1  #: the upstream's connection
    HEAD = 2  #: the upstream's head
    READ = 3  #: the next bytes of the upstream
    WRITE = 4  #: the client, to take what was sent


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long each stage may last, in seconds; 0 is no limit."""

    open: float = 0.0
    head: float = 0.0
    idle: float = 0.0
    send: float = 0.0
    duration: float = 0.0


class Waiting(Protocol):
    """What an exchange waits for: a connection to an upstream, or what can be shut down like one."""

    def shutdown(self, how: int, /) -> None:
        """End it, waking whoever waits for it; never waits itself."""


def is_gone(client: socket.socket) -> bool:
    """Tell whether the peer of a connection has closed it, or its half of it.

    Bytes that it sent before closing may still be unread (a pipelined request, TLS's close_notify), so the state of
    the connection is asked for, not its data. A half-closed connection looks just like one that was left.
    """
    try:
        if client.family != socket.AF_UNIX:
            return client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _TCP_ESTABLISHED
        return _recv_now(client) == b""
    except (AttributeError, OSError):
        # No TCP_INFO on this system: then only reading tells, and only where TLS does not forbid to peek.
        return not isinstance(client, ssl.SSLSocket) and _recv_now(client) == b""


def _recv_now(client: socket.socket) -> bytes | None:
    """Return what a read would give, without taking it; None if it would block."""
    # gevent's socket would wait; the one it wraps answers at once.
    plain = getattr(client, "_sock", client)
    try:
        return bytes(plain.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except (BlockingIOError, TimeoutError):
        return None
    except OSError:
        return b""


def _bytes_acked(client: socket.socket) -> int | None:
    """Return how many bytes the peer has acknowledged so far, or None where the system does not say."""
    try:
        info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, sum(_BYTES_ACKED))
        return int(struct.unpack_from("=Q", info, _BYTES_ACKED[0])[0])
    except (AttributeError, OSError, struct.error):
        return None


def shut_down(connection: Waiting | None, how: int = socket.SHUT_RDWR) -> None:
    """End both directions of a connection, waking whoever is blocked on it."""
    if connection is None:
        return
    # SSLSocket.shutdown() would take the TLS state away from under a blocked read; the class below it does not.
    below: Any = super(ssl.SSLSocket, connection) if isinstance(connection, ssl.SSLSocket) else connection
    try:
        below.shutdown(how)
    except OSError:
        # ENOTCONN, EBADF: it is already closed, which is what was wanted.
        return


def shut_down_client(client: socket.socket | None, how: int = socket.SHUT_RDWR) -> None:
    """End both directions of a client's connection, so that the server sees just what it sees of one that left.

    gevent's own shutdown would raise EBADF in whoever waits, which gunicorn takes for a fault and logs.
    """
    shut_down(getattr(client, "_sock", client), how)


def reset_on_close(client: socket.socket, *, patience: float) -> None:
    """Let the coming close of a connection be a reset, after what was sent has arrived as far as possible.

    :param patience: seconds to wait for that; a reset throws away what is still on its way.
    """
    deadline = time.monotonic() + patience
    while _unsent(client) and time.monotonic() < deadline and not is_gone(client):
        time.sleep(DRAIN_INTERVAL)
    try:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        return


def _unsent(client: socket.socket) -> int:
    """Return how many bytes the peer has not acknowledged yet; 0 where the system does not say."""
    try:
        import fcntl
        import termios

        return int.from_bytes(fcntl.ioctl(client.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (ImportError, OSError, ValueError):
        return 0


#: Held while a socket is shut down or given away: a kept connection is somebody else's in the next moment.
_lock = threading.Lock()


class Watch:
    """What is known of one exchange: its sockets, what it waits for and since when, and why it was cut."""

    __slots__ = (
        "_acked",
        "_io",
        "_limits",
        "_moved",
        "boundary",
        "calm",
        "client",
        "is_ending",
        "polls",
        "reason",
        "since",
        "stage",
        "started",
        "upstream",
    )

    def __init__(self, client: socket.socket | None, limits: Limits) -> None:
        self.client = client
        self.upstream: Waiting | None = None
        self.reason: EndReason | None = None
        #: Where in its event stream the exchange is, if it is one.
        self.boundary: Boundary | None = None
        #: Whether the stream is to end as soon as an event has ended.
        self.is_ending = False
        self.stage = Stage.BODY
        self.started = self.since = time.monotonic()
        self._limits = limits
        #: Seconds in which a wait for the upstream is sure not to be cut.
        self.calm = 0.0 if limits.duration else limits.idle or math.inf
        #: Whether nothing but asking tells that the client has left.
        self.polls = False
        self._io: Any = None
        self._acked: int | None = None
        self._moved = 0.0

    def enter(self, stage: Stage) -> None:
        """Say what the exchange waits for from now on."""
        self.stage = stage
        self.since = time.monotonic()

    def attach(self, upstream: Waiting) -> None:
        """Take note of what the exchange waits for, the upstream's socket.

        :raises ConnectionAbortedError: if the exchange has been cut meanwhile.
        """
        with _lock:
            if self.reason is not None:
                raise ConnectionAbortedError
            self.upstream = upstream

    def detach(self) -> None:
        """Forget the upstream's socket; call it before somebody else may get it."""
        with _lock:
            self.upstream = None

    def watch_client(self) -> None:
        """Notice from now on that the client leaves; call it when the request has been read whole."""
        if self.client is None:
            return
        if isinstance(self.client, gevent_socket.socket):
            self._io = gevent.get_hub().loop.io(self.client.fileno(), 1)
            self._io.start(self._client_readable)
        else:
            self.polls = True

    def _client_readable(self) -> None:
        if self.client is None or is_gone(self.client):
            self.cut(EndReason.CLIENT_GONE)
        else:
            # Data is not a hang-up. It stays readable for as long as nobody reads it, so from here on we ask.
            self.polls = True
        self._io.stop()

    def cut(self, reason: EndReason) -> None:
        """End the exchange for a reason; the first reason stays."""
        with _lock:
            if self.reason is not None:
                return
            self.reason = reason
            shut_down(self.upstream)
        if self.stage is Stage.BODY:
            # A body that never comes can still be answered.
            shut_down_client(self.client, socket.SHUT_RD)
        elif reason in (EndReason.CLIENT_GONE, EndReason.SEND_TIMEOUT):
            shut_down_client(self.client)

    def drain(self, phase: Phase) -> None:
        """Do what the process's stopping means for the exchange by now."""
        if phase is Phase.ENDING:
            self.is_ending = True
            if self.stage is Stage.READ and self.boundary is not None and self.boundary.at_boundary:
                self.cut(EndReason.DRAINING)
        elif phase is Phase.LATE and self.reason is not None:
            shut_down_client(self.client)
        elif phase >= Phase.OVER:
            self.cut(EndReason.DRAINING)

    def check(self, now: float) -> None:
        """Cut the exchange if its time is over or, where nothing else tells, its client gone."""
        client = self.client
        if client is not None and self.stage is Stage.WRITE and self._is_stuck(client, now):
            self.cut(EndReason.SEND_TIMEOUT)
            # What was cut for another reason may be stuck in telling the client so.
            shut_down_client(client)
        elif client is not None and self.polls and is_gone(client):
            self.cut(EndReason.CLIENT_GONE)
        if self.reason is not None:
            return
        limit, reason = self._limit()
        if limit and now - self.since > limit:
            self.cut(reason)
        elif self._limits.duration and self.stage >= Stage.READ and now - self.started > self._limits.duration:
            self.cut(EndReason.MAX_DURATION)

    def _limit(self) -> tuple[float, EndReason]:
        if self.stage is Stage.WRITE:
            return 0, EndReason.SEND_TIMEOUT
        if self.stage is Stage.READ:
            return self._limits.idle, EndReason.IDLE_TIMEOUT
        if self.stage is Stage.BODY:
            return self._limits.send, EndReason.SEND_TIMEOUT
        return self._limits.open if self.stage is Stage.OPEN else self._limits.head, EndReason.UPSTREAM_TIMEOUT

    def _is_stuck(self, client: socket.socket, now: float) -> bool:
        # One write may carry 64 KiB; a client that takes them slowly is slow, not stuck.
        acked = _bytes_acked(client)
        if acked != self._acked:
            self._acked, self._moved = acked, now
        limit = self._limits.send or (LAST_WORDS if self.reason is not None else 0)
        return limit > 0 and now - max(self.since, self._moved) > limit

    def close(self) -> None:
        """Stop watching; both sockets may be closed or used for something else from now on."""
        if self._io is not None:
            self._io.close()
            self._io = None
        self.client = self.upstream = None


class Watches:
    """All open exchanges of one app in this process, swept by one thread (a greenlet where threads are patched).

    :param drain: knows when they have to end with the process.
    """

    def __init__(self, drain: Drain) -> None:
        self._drain = drain
        self._open: set[Watch] = set()
        self._lock = threading.Lock()
        self._sweeping = False

    def __len__(self) -> int:
        return len(self._open)

    def add(self, watch: Watch) -> None:
        """Begin to look after an exchange."""
        with self._lock:
            self._open.add(watch)
            if self._sweeping:
                return
            self._sweeping = True
        threading.Thread(target=self._sweep, name="sse-watch", daemon=True).start()

    def discard(self, watch: Watch) -> None:
        """Stop looking after an exchange; may be called again."""
        with self._lock:
            self._open.discard(watch)
        watch.close()

    def _sweep(self) -> None:
        idle = 0
        while True:
            time.sleep(SWEEP_INTERVAL)
            with self._lock:
                watches = list(self._open)
                idle = 0 if watches else idle + 1
                if idle > IDLE_SWEEPS:
                    self._sweeping = False
                    return
            now, phase = time.monotonic(), self._drain.phase()
            for watch in watches:
                # Most wait for their upstream and have not for long; to ask each of thousands would take milliseconds.
                if watch.stage is not Stage.READ or watch.polls or now - watch.since > watch.calm:
                    watch.check(now)
                if phase > Phase.STOPPING:
                    watch.drain(phase)
