"""Many readers of one channel, in one process, and what the server takes for them."""

from __future__ import annotations

import selectors
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from .meter import Meter, proportional

#: Seconds in which all readers must have an event.
PATIENCE = 10.0
#: Of these, seconds until another one is published for readers that the server has let in since.
AGAIN = 0.5
#: Share of a CPU below which a server has nothing left to do, and seconds in which that is measured.
QUIET, QUIET_TIME = 0.03, 0.15
#: Readers that connect at once.
CONNECTING = 50


class Wrong(Exception):
    """Not every reader has had what was published."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where a channel is read and published to, and what runs for it.

    :param pid: the server; its children are counted too.
    :param store: the store's process, if it has one.
    """

    name: str
    port: int
    pid: int
    store: int | None = None

    def cpu(self) -> tuple[float, float]:
        """Return seconds of CPU time that the server and its store have taken."""
        return Meter(self.pid).cpu() or 0.0, Meter(self.store).cpu() or 0.0

    def memory(self) -> tuple[int, int]:
        """Return bytes of memory that the server and its store have for themselves."""
        return proportional(self.pid), 0 if self.store is None else proportional(self.store)

    def settle(self) -> None:
        """Return when neither has anything left to do."""
        until = time.monotonic() + PATIENCE
        before = sum(self.cpu())
        while time.monotonic() < until:
            time.sleep(QUIET_TIME)
            now = sum(self.cpu())
            if now - before < QUIET * QUIET_TIME:
                return
            before = now


@dataclass(kw_only=True)
class Taken:
    """What one round has taken: each is the server's and its store's.

    :param cpu: seconds for each event and reader.
    :param delays: seconds from publishing an event until the last reader had it.
    :param memory: bytes for each silent reader.
    """

    cpu: tuple[float, float]
    delays: list[float] = field(default_factory=list)
    memory: tuple[float, float]


class Audience:
    """Readers of a server's channel, gone when the block ends."""

    def __init__(self, server: Server, readers: int) -> None:
        self._server = server
        self._selector = selectors.DefaultSelector()
        self._readers: dict[socket.socket, bytes] = {}
        self._published = 0
        for number in range(readers):
            self._connect()
            if (number + 1) % CONNECTING == 0:
                # A server that has a thousand connections to accept at once refuses some.
                self._read(0.02)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for reader in self._readers:
            self._selector.unregister(reader)
            reader.close()
        # A server that notices only when it writes that a reader has gone; the first write may still be taken.
        for _ in range(3):
            self._publish().close()
            time.sleep(0.1)
        self._selector.close()
        self._server.settle()

    def _connect(self) -> None:
        reader = socket.create_connection(("127.0.0.1", self._server.port), PATIENCE)
        reader.sendall(b"GET /read HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n")
        reader.setblocking(False)
        self._readers[reader] = b""
        self._selector.register(reader, selectors.EVENT_READ)

    def _mark(self) -> bytes:
        return b"event-%06d." % self._published

    def _publish(self) -> socket.socket:
        self._published += 1
        body = self._mark() + b"x" * 100
        sender = socket.create_connection(("127.0.0.1", self._server.port), PATIENCE)
        head = b"POST /publish HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: text/plain\r\n"
        sender.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        return sender

    def _read(self, timeout: float, waiting: set[socket.socket] | None = None, mark: bytes = b"\0") -> None:
        """Read what is there, and take who has had the event out of those that wait for it."""
        for key, _ in self._selector.select(timeout):
            reader: Any = key.fileobj
            with suppress(BlockingIOError):
                data = reader.recv(65536)
                if not data:
                    raise Wrong(f"a reader's stream has ended after {self._readers[reader]!r}")
                if not self._readers[reader] and not data.startswith(b"HTTP/1.1 200"):
                    raise Wrong(f"a reader was answered {data[:30]!r}")
                had = self._readers[reader] + data
                self._readers[reader] = had[-200:]
                if waiting is not None and mark in had:
                    waiting.discard(reader)

    def deliver(self, patience: float = PATIENCE) -> float | None:
        """Publish an event, and return the seconds until the last reader had it; None if one has not."""
        begun = time.monotonic()
        waiting = set(self._readers)
        with self._publish() as sender:
            while waiting:
                left = begun + patience - time.monotonic()
                if left <= 0:
                    return None
                self._read(left, waiting, self._mark())
            taken = time.monotonic() - begun
            sender.settimeout(PATIENCE)
            status = sender.recv(4096).split(b" ", 2)[1:2]
        if status not in ([b"200"], [b"201"], [b"202"]):
            raise Wrong(f"publishing was answered with {status}")
        return taken

    def wait_ready(self) -> None:
        """Return when every reader gets what is published; some servers send nothing before, not even a head."""
        until = time.monotonic() + 3 * PATIENCE
        while self.deliver(AGAIN) is None:
            if time.monotonic() > until:
                raise Wrong("not every reader was let in")


def attend(server: Server, readers: int, events: int, empty: tuple[int, int]) -> Taken:
    """Read with so many readers, one event after the other.

    :param empty: what memory was taken without readers.
    :raises Wrong: if a reader has not had an event.
    """
    with Audience(server, readers) as audience:
        audience.wait_ready()
        server.settle()
        own, store = (after - before for after, before in zip(server.memory(), empty, strict=True))
        before = server.cpu()
        delays = [audience.deliver() for _ in range(events)]
        server.settle()
        cpu = [(now - then) / readers / events for now, then in zip(server.cpu(), before, strict=True)]
    if None in delays:
        raise Wrong(f"not every reader had an event after {PATIENCE:.0f} s")
    times = [delay for delay in delays if delay is not None]
    return Taken(cpu=(cpu[0], cpu[1]), delays=times, memory=(own / readers, store / readers))
