"""The benchmark's upstream: a process with one loop that sends what a path asks for, and notes when it did."""

from __future__ import annotations

import functools
import heapq
import itertools
import multiprocessing
import selectors
import socket
import time
from array import array
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Self

from .load import events_of

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
#: Bytes handed to one send; what an upstream writes that is faster than its reader.
BATCH = 16 * 1024

#: When each event of each stream was sent, by time.monotonic().
Times = dict[int, "array[float]"]


@functools.lru_cache(maxsize=5000)
def _wire_of(stream: int, count: int) -> tuple[bytes, Sequence[int]]:
    """Return a whole response, and where on the wire each of its events ends; the last one with the last chunk."""
    chunks = [b"%x\r\n%b\r\n" % (len(event), event) for event in events_of(stream, count)]
    chunks[-1] += b"0\r\n\r\n"
    return b"".join([HEAD, *chunks]), list(itertools.accumulate(map(len, chunks), initial=len(HEAD)))[1:]


class _Exchange:
    """One connection, and the stream that it carries at the moment."""

    def __init__(self, server: _Server, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        self._server = server
        self._sock = sock
        self._input = b""
        self._wire = b""
        self._sent = 0
        # Where on the wire each event ends; how far may be sent now.
        self._ends: Sequence[int] = ()
        self._allowed = 0
        self._rate = self._start = self._phase = 0.0
        self._times = array("d")
        server.selector.register(sock, selectors.EVENT_READ, self._ready)

    def _ready(self) -> None:
        """Send on if something is left to send, else read."""
        if self._sent < self._allowed:
            self._flush()
            return
        try:
            data = self._sock.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._allowed = self._sent = 0
            self._server.selector.unregister(self._sock)
            self._sock.close()
            return
        self._input += data
        head, end, rest = self._input.partition(b"\r\n\r\n")
        if not end:
            return
        fields = head.lower()
        length = int(fields.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if len(rest) >= length:
            self._input = rest[length:]
            self._answer(head.split(b" ", 2)[1].decode())

    def _answer(self, path: str) -> None:
        if path == "/go":
            self._sock.send(b"HTTP/1.1 204 No Content\r\n\r\n")
            self._server.go()
            return
        stream, count, rate = path.strip("/").split("/")
        self._wire, self._ends = _wire_of(int(stream), int(count))
        self._sent, self._rate, self._times = 0, float(rate), array("d")
        # Streams that begin together are not to beat in step: the golden ratio spreads them evenly.
        self._phase = int(stream) * 0.618034 % 1
        self._server.times[int(stream)] = self._times
        if self._rate:
            self._server.held.append(self)
            self.send_next()
        else:
            self._allowed = len(self._wire)
            self._flush()

    def schedule(self, now: float) -> None:
        """Begin to count the time from which the second and further events are due."""
        self._start = now
        self._server.wait_until(self._due(), self)

    def _due(self) -> float:
        return self._start + (len(self._times) - 1 + self._phase) / self._rate

    def send_next(self) -> None:
        """Send the next event, and have the one after it sent when it is due."""
        if not self._wire:
            return
        now = time.monotonic()
        if self._times:
            self._server.lags.append(now - self._due())
        self._allowed = self._ends[len(self._times)]
        self._times.append(now)
        self._flush()
        if 1 < len(self._times) < len(self._ends):
            self._server.wait_until(self._due(), self)

    def _flush(self) -> None:
        try:
            self._sent += self._sock.send(self._wire[self._sent : min(self._allowed, self._sent + BATCH)])
        except BlockingIOError:
            pass
        except OSError:
            # The relay left; reading says so next.
            self._sent, self._allowed, self._wire = 0, 0, b""
        wanted = selectors.EVENT_WRITE if self._sent < self._allowed else selectors.EVENT_READ
        self._server.selector.modify(self._sock, wanted, self._ready)


class _Server:
    def __init__(self, control: Connection) -> None:
        self.selector = selectors.DefaultSelector()
        self.held: list[_Exchange] = []
        self.times: Times = {}
        #: Seconds that events were sent later than they were due.
        self.lags = array("d")
        self._due: list[tuple[float, int, _Exchange]] = []
        self._number = itertools.count()
        self._control = control
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._listener.setblocking(False)
        self.selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self.selector.register(control, selectors.EVENT_READ, self._report)
        control.send(self._listener.getsockname()[1])

    def _accept(self) -> None:
        try:
            while True:
                _Exchange(self, self._listener.accept()[0])
        except BlockingIOError:
            pass

    def _report(self) -> None:
        self._control.recv()
        self._control.send((self.times, self.lags, time.process_time()))
        self.times, self.lags = {}, array("d")

    def go(self) -> None:
        now = time.monotonic()
        for exchange in self.held:
            exchange.schedule(now)
        self.held = []

    def wait_until(self, due: float, exchange: _Exchange) -> None:
        heapq.heappush(self._due, (due, next(self._number), exchange))

    def run(self) -> None:
        while True:
            timeout = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
            for key, _ in self.selector.select(timeout):
                ready: Callable[[], None] = key.data
                ready()
            while self._due and self._due[0][0] <= time.monotonic():
                heapq.heappop(self._due)[2].send_next()


def _serve(control: Connection) -> None:
    try:
        _Server(control).run()
    except (EOFError, KeyboardInterrupt):
        # The benchmark has ended.
        return


class Upstream:
    """The process; it ends with the block."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._control, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self.port: int = self._control.recv()

    def report(self) -> tuple[Times, array[float], float]:
        """Return when events were sent, how late each was, and the seconds of CPU so far; forgets the first two."""
        self._control.send(None)
        report: tuple[Times, array[float], float] = self._control.recv()
        return report

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._control.close()
        self._process.join()
