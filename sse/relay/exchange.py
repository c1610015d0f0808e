"""One request and its response: the client's side and the upstream's, each with its stage, deadlines and end reason.

To cancel is to shut sockets down, never to throw into the code that waits on them: a blocked read or write then ends
as if the peer had closed, in a greenlet and in a thread alike, and the blocked code looks at `Side.reason` for why. So
no time-out can go off in other code, and a read costs no timer.
"""

from __future__ import annotations

import enum
import math
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import gevent
from gevent import socket as gevent_socket

from ..protocol.boundary import Boundary
from . import tcp
from .drain import Phase
from .stream.end import EndReason

#: Seconds for the last bytes to a client where SSE_SEND_TIMEOUT sets no limit.
FINAL_WRITE_TIMEOUT = 5.0
#: Bytes a second that a request body must average once it has taken longer than SSE_SEND_TIMEOUT.
MIN_BODY_RATE = 500
#: The `since` of a side that nothing waits for: its deadlines never pass.
STOPPED = math.inf


class Stage(enum.IntEnum):
    """What a side is waited for."""

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


class Cancellable(Protocol):
    """What is waited for: a connection, a source."""

    def cancel(self) -> None:
        """End it, waking what waits for it; never waits itself."""


class Report(Protocol):
    """What is known of an exchange beside its sides."""

    def describe(self) -> dict[str, Any]:
        """Return whose it is, and of what, without secrets."""


class Side:
    """One side of an exchange: its stage and since when, what is waited for, and why that was cancelled."""

    __slots__ = ("_attached", "_lock", "reason", "since", "stage")

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.since = time.monotonic()
        self.reason: EndReason | None = None
        self._attached: Cancellable | None = None
        # Held while a connection is cancelled or released: a kept one is another exchange's in the next moment.
        self._lock = threading.Lock()

    def enter(self, stage: Stage) -> None:
        """Start the clock of a stage."""
        self.stage = stage
        self.since = time.monotonic()

    def stop(self) -> None:
        """Stop the clock: the side is not waited for."""
        self.since = STOPPED

    def attach(self, cancellable: Cancellable) -> None:
        """Set what is cancelled together with this side.

        :raises ConnectionAbortedError: if the side has been cancelled already.
        """
        with self._lock:
            if self.reason is not None:
                raise ConnectionAbortedError
            self._attached = cancellable

    def detach(self) -> None:
        """Forget what was attached; call it before another exchange may get it."""
        with self._lock:
            self._attached = None

    def cancel(self, reason: EndReason) -> None:
        """End the wait for this side; the first reason stays."""
        with self._lock:
            if self.reason is not None:
                return
            self.reason = reason
            if self._attached is not None:
                self._attached.cancel()


class Client(Side):
    """The client's side: its connection, whether it is still there, and whether it takes what is sent.

    :param connection: where the server shows it.
    """

    __slots__ = ("_counted", "_io", "_moved", "_start", "connection", "is_polled")

    def __init__(self, connection: socket.socket | None) -> None:
        super().__init__(Stage.BODY)
        self.connection = connection
        #: Whether only polling shows that the client has left.
        self.is_polled = False
        self._io: Any = None
        # The bytes that were counted last and first in this stage, and when the count last changed.
        self._counted: int | None = None
        self._start: int | None = None
        self._moved = 0.0

    def cancel(self, reason: EndReason) -> None:
        """Shut the client's connection down; a request that has not arrived whole still gets its response."""
        super().cancel(reason)
        self.shut_down(socket.SHUT_RD if self.stage is Stage.BODY else socket.SHUT_RDWR)

    def shut_down(self, how: int = socket.SHUT_RDWR) -> None:
        """Shut the client's connection down, unless the exchange has ended."""
        # Its server may close it in another thread as soon as that is so, and have its number for another client's.
        with self._lock:
            tcp.shut_down(self.connection, how)

    def watch(self, on_gone: Any) -> None:
        """Call `on_gone()` when the client leaves; call this when the request has been read whole."""
        self.since, self.stage = STOPPED, Stage.WRITE
        if self.connection is None:
            return
        if isinstance(self.connection, gevent_socket.socket):
            self._io = gevent.get_hub().loop.io(self.connection.fileno(), 1)
            self._io.start(self._on_readable, on_gone)
        else:
            self.is_polled = True

    def _on_readable(self, on_gone: Any) -> None:
        if self.connection is None or tcp.is_gone(self.connection):
            on_gone()
        else:
            # Data is no hang-up. It stays readable for as long as it is not read, so from now on the client is polled.
            self.is_polled = True
        self._io.stop()

    def is_stuck(self, now: float, limit: float) -> bool:
        """Return whether the peer has acknowledged no byte for so many seconds.

        One write may carry 64 KiB; a client that takes them slowly is slow, not stuck.
        """
        # Once, because another thread sets it to None when the exchange ends.
        if (connection := self.connection) is None:
            return False
        acked = tcp.count(connection, tcp.BYTES_ACKED)
        # A Unix socket counts what its peer has not read.
        self._count(tcp.unsent(connection) if acked is None else acked, now)
        return limit > 0 and now - max(self.since, self._moved) > limit

    def is_starved(self, now: float, limit: float) -> bool:
        """Return whether no byte of the request body has come for so many seconds, or too few after as many."""
        if (connection := self.connection) is None:
            return False
        self._count(tcp.count(connection, tcp.BYTES_RECEIVED), now)
        if not limit or now - self.since <= limit:
            return False
        received = (self._counted or 0) - (self._start or 0)
        return now - max(self.since, self._moved) > limit or received < MIN_BODY_RATE * (now - self.since)

    def _count(self, count: int | None, now: float) -> None:
        if count != self._counted:
            if self._counted is None:
                self._start = count
            self._counted, self._moved = count, now

    def close(self) -> None:
        """Stop watching; the connection may be closed or used for something else from now on."""
        if self._io is not None:
            self._io.close()
            self._io = None
        with self._lock:
            self.connection = None


class Exchange:
    """A client's request and what is read for it.

    :param connection: the client's, where the server shows it.
    """

    __slots__ = (
        "_ended_by",
        "_limits",
        "boundary",
        "bytes",
        "client",
        "drains_from",
        "end_reason",
        "ends_at_boundary",
        "is_admitted",
        "min_wait",
        "number",
        "report",
        "started",
        "upstream",
    )

    def __init__(self, connection: socket.socket | None, limits: Limits) -> None:
        self.client = Client(connection)
        self.upstream = Side(Stage.OPEN)
        self.upstream.since = STOPPED
        #: Where in its event stream the exchange is, if it is one.
        self.boundary: Boundary | None = None
        #: Bytes of the body that were sent to the client.
        self.bytes = 0
        #: Which one it is in its process; 0 before it is open.
        self.number = 0
        #: Set when it is a stream, or is about to be one.
        self.report: Report | None = None
        #: Whether the stream ends as soon as an event has ended.
        self.ends_at_boundary = False
        #: Why it does.
        self.end_reason = EndReason.DRAINING
        #: Returns whether the client's credential is still valid; None for one that stays valid.
        self.is_admitted: Callable[[], bool] | None = None
        #: The phase of the process's stopping from which on `drain()` is called.
        self.drains_from = Phase.FINISHING
        self.started = self.client.since
        self._limits = limits
        self._ended_by: EndReason | None = None
        #: Seconds for which a read of the upstream passes no deadline.
        self.min_wait = 0.0 if limits.duration else limits.idle or math.inf

    @property
    def reason(self) -> EndReason | None:
        """The first reason for which the exchange was cancelled: what ends the client's side ends the upstream's."""
        return self.upstream.reason

    @property
    def events(self) -> int | None:
        """Events that were sent to the client, None if it gets no event stream."""
        return self.boundary.events if self.boundary is not None else None

    @property
    def state(self) -> str:
        """What is waited for, as `Stage` names it; or that it is about to end."""
        if self.ends_at_boundary or self.reason is not None:
            return "ending"
        return (self.client if self.upstream.since == STOPPED else self.upstream).stage.name.lower()

    def read_recording(self, reader: Cancellable, *, ends_early: bool) -> None:
        """Read a recording from now on; the upstream's side, if it was begun, is a recorder's.

        :param ends_early: whether to end when the process begins to stop, because another one can be read from.
        """
        self.upstream = Side(Stage.READ)
        self.upstream.stop()
        self.upstream.attach(reader)
        self._limits = Limits(send=self._limits.send)
        self.min_wait = math.inf
        if ends_early:
            self.drains_from = Phase.DRAINING

    def begin_attempt(self, limits: Limits) -> EndReason | None:
        """Give the upstream another side, because a time-out ends an attempt and not the exchange.

        :param limits: from now on.
        :return: why the exchange has ended, None if it goes on.
        """
        is_first = self.upstream.since == STOPPED
        self.upstream, self._limits = Side(Stage.OPEN), limits
        # Both may have come at once: that the client has left, and what ended the attempt before.
        connection = self.client.connection if self.client.stage is not Stage.BODY else None
        if not is_first and connection is not None and tcp.is_gone(connection):
            self.lose_client(EndReason.CLIENT_GONE)
        # Looked at last, because another thread sets it before it cancels the upstream's side.
        return self._ended_by

    def watch_client(self) -> None:
        """Notice from now on that the client leaves; call it when the request has been read whole."""
        self.client.watch(partial(self.lose_client, EndReason.CLIENT_GONE))

    def lose_client(self, reason: EndReason) -> None:
        """End the exchange because of its client, whose connection is shut down."""
        self._ended_by = self._ended_by or reason
        self.upstream.cancel(reason)
        self.client.cancel(reason)

    def cancel(self, reason: EndReason) -> None:
        """End the exchange for a reason that the client can still be sent."""
        self._ended_by = self._ended_by or reason
        self.upstream.cancel(reason)
        if self.client.stage is Stage.BODY:
            self.client.cancel(reason)

    def drain(self, phase: Phase) -> None:
        """Do what the stopping of the process means for the exchange by now."""
        if phase is Phase.DRAINING:
            self.cancel(EndReason.DRAINING)
        elif phase is Phase.FINISHING:
            self._end_at_boundary(EndReason.DRAINING)
        elif phase is Phase.CLOSED and self.reason is not None:
            self.client.shut_down()
        elif phase >= Phase.ABORTING:
            self.cancel(EndReason.DRAINING)

    def check_credential(self) -> None:
        """End the stream at its next boundary if the client's credential is valid no more."""
        if self.is_admitted is None or self.upstream.stage is not Stage.READ or self.is_admitted():
            return
        self._end_soon(EndReason.CREDENTIAL_EXPIRED)

    def end(self, reason: EndReason) -> None:
        """End the exchange as soon as an event has ended; at once if there are no events, or it is called again."""
        if self.ends_at_boundary:
            self.cancel(reason)
        else:
            self._end_soon(reason)

    def _end_soon(self, reason: EndReason) -> None:
        if self.boundary is None:
            self.cancel(reason)
        else:
            self._end_at_boundary(reason)

    def _end_at_boundary(self, reason: EndReason) -> None:
        if not self.ends_at_boundary:
            self.ends_at_boundary, self.end_reason = True, reason
        is_read = self.upstream.stage is Stage.READ and self.upstream.since != STOPPED
        if is_read and self.boundary is not None and self.boundary.at_boundary:
            self.cancel(self.end_reason)

    def check(self, now: float) -> None:
        """Cancel the exchange if a deadline has passed or, where only polling shows it, the client has left."""
        if (connection := self.client.connection) is not None:
            self._check_client(connection, now)
        if self.reason is not None:
            return
        # Once, because another thread may begin another attempt.
        upstream = self.upstream
        limit, reason = self._upstream_limit(upstream.stage)
        if limit and now - upstream.since > limit:
            upstream.cancel(reason)
        elif self._limits.duration and upstream.stage is Stage.READ and now - self.started > self._limits.duration:
            self.cancel(EndReason.MAX_DURATION)

    def _check_client(self, connection: socket.socket, now: float) -> None:
        client, limit = self.client, self._limits.send
        if client.stage is Stage.BODY:
            if client.is_starved(now, limit):
                self.cancel(EndReason.SEND_TIMEOUT)
        elif client.since != STOPPED and client.is_stuck(
            now, limit or (FINAL_WRITE_TIMEOUT if self.reason is not None else 0)
        ):
            # Also where the exchange was cancelled for another reason, and the error event is stuck.
            self.lose_client(EndReason.SEND_TIMEOUT)
        elif client.is_polled and tcp.is_gone(connection):
            self.lose_client(EndReason.CLIENT_GONE)

    def _upstream_limit(self, stage: Stage) -> tuple[float, EndReason]:
        if stage is Stage.READ:
            return self._limits.idle, EndReason.IDLE_TIMEOUT
        return self._limits.open if stage is Stage.OPEN else self._limits.head, EndReason.UPSTREAM_TIMEOUT

    def close(self) -> None:
        """Stop watching both sides."""
        self.client.close()
        self.upstream.detach()
