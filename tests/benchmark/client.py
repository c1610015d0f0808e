"""The benchmark's client: opens a load's streams, compares every byte, notes when each event was whole."""

from __future__ import annotations

import bisect
import itertools
import json
import selectors
import socket
import time
from array import array
from dataclasses import dataclass, field

from .load import Load, events_of
from .meter import Meter

#: Seconds after which a load that has not ended is wrong.
PATIENCE = 60.0
#: What goes up with each request, as an LLM would be asked.
PROMPT = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "Hello " * 30}]})


@dataclass(frozen=True, kw_only=True)
class Door:
    """Where streams are asked for: a relay, or the upstream itself.

    :param port: where to connect.
    :param upstream: the upstream's port.
    :param pid: the relay's process; None where there is none.
    :param passcode: what the relay wants to see; "" asks the upstream itself.
    """

    name: str
    port: int
    upstream: int
    pid: int | None = None
    passcode: str = ""

    def request(self, path: str) -> bytes:
        """Return the request for a path of the upstream."""
        body = PROMPT
        if self.passcode:
            call = {"targetUrl": f"http://127.0.0.1:{self.upstream}{path}", "passcode": self.passcode}
            body = json.dumps({**call, "header": {"Content-Type": "application/json"}, "body": PROMPT})
            path = "/forward-sse"
        lines = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", "Connection: close"]
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", body]).encode()


@dataclass(kw_only=True)
class Result:
    """What a load has shown. CPU time and memory are None where the system does not show them."""

    #: What was wrong first; "" if every byte came once and in order.
    wrong: str = ""
    #: Events that arrived.
    events: int = 0
    #: Seconds of CPU time of the relay, and the events that it passed on in that time.
    cpu: float | None = None
    cpu_events: int = 0
    #: Bytes that the relay grew by until all streams were open.
    memory: int | None = None
    #: Seconds from the start of each connection to the first event.
    first: list[float] = field(default_factory=list)
    #: time.monotonic() at which each event of each stream was whole.
    arrivals: dict[int, array[float]] = field(default_factory=dict)
    #: Seconds of it, and seconds of CPU time of the client.
    elapsed: float = 0.0
    own_cpu: float = 0.0


class _Wrong(Exception):
    """A response is not what it has to be."""


class _Reader:
    """One stream: whether it is what was asked for, and when its events came."""

    def __init__(self, door: Door, load: Load, stream: int) -> None:
        events = events_of(stream, load.events)
        self._body = b"".join(events)
        self._ends = list(itertools.accumulate(map(len, events)))
        self._rest = b""
        self._position = 0
        self._has_head = False
        self.stream = stream
        self.arrivals = array("d")
        self.is_whole = False
        self._request = door.request(load.path(stream))
        self._port = door.port

    def open(self) -> socket.socket:
        self.started = time.monotonic()
        sock = socket.create_connection(("127.0.0.1", self._port), PATIENCE)
        sock.sendall(self._request)
        sock.setblocking(False)
        return sock

    def feed(self, data: bytes, now: float) -> None:
        """Take what a read has brought.

        :raises _Wrong: if it is not what has to come next.
        """
        if not data:
            raise _Wrong(f"ended after {self._position} of {len(self._body)} bytes")
        data = self._rest + data
        if not self._has_head:
            head, end, rest = data.partition(b"\r\n\r\n")
            if not end:
                self._rest = data
                return
            _check_head(head)
            self._has_head, data = True, rest
        self._rest = data[self._decode(data) :]
        self.arrivals.extend([now] * (bisect.bisect_right(self._ends, self._position) - len(self.arrivals)))

    def _decode(self, data: bytes) -> int:
        """Compare the chunks that are whole, and return where they end."""
        position = 0
        while (line_end := data.find(b"\r\n", position)) >= 0:
            size = int(data[position:line_end], 16)
            start, end = line_end + 2, line_end + 2 + size
            if len(data) < end + 2:
                break
            if not self._body.startswith(data[start:end], self._position):
                raise _Wrong(f"other bytes than the upstream's from {self._position} on")
            self._position += size
            position = end + 2
            if not size:
                if self._position < len(self._body) or position < len(data):
                    raise _Wrong(f"{self._position} of {len(self._body)} bytes")
                self.is_whole = True
        return position


def _check_head(head: bytes) -> None:
    if not head.startswith(b"HTTP/1.1 200 "):
        raise _Wrong(f"answered {head.splitlines()[0].decode('latin-1')}")
    if b"transfer-encoding: chunked" not in head.lower():
        raise _Wrong("the response is not chunked, so whether it is whole cannot be seen")


class _Run:
    """One load through one door."""

    def __init__(self, door: Door, load: Load) -> None:
        self._door = door
        self._load = load
        self._meter = Meter(door.pid)
        self._selector = selectors.DefaultSelector()
        self._waiting = [_Reader(door, load, stream) for stream in reversed(range(load.streams))]
        self._silent = load.streams
        self._opened_cpu: float | None = None
        self._opened_events = 0
        self.result = Result()

    def run(self) -> Result:
        result, began, own = self.result, time.monotonic(), time.process_time()
        memory = self._meter.memory()
        self._opened_cpu = self._meter.cpu()
        while self._waiting or self._selector.get_map():
            while self._waiting and len(self._selector.get_map()) < self._load.at_once:
                reader = self._waiting.pop()
                self._selector.register(reader.open(), selectors.EVENT_READ, reader)
            ready = self._selector.select(max(0.0, began + PATIENCE - time.monotonic()))
            # Also where there is always something to read.
            if not ready or time.monotonic() > began + PATIENCE:
                result.wrong = result.wrong or f"{len(self._selector.get_map())} streams did not end"
                break
            for key, _ in ready:
                self._read(key.data, key.fileobj)  # type: ignore[arg-type]  # we registered sockets
            if self._load.rate and not self._silent:
                self._silent = -1
                self._release(memory)
        if not self._load.rate:
            self._stop_clock()
        result.elapsed, result.own_cpu = time.monotonic() - began, time.process_time() - own
        for open_key in list(self._selector.get_map().values()):
            open_key.fileobj.close()  # type: ignore[union-attr]  # we registered sockets
        self._selector.close()
        return result

    def _release(self, memory: int | None) -> None:
        """All streams are open: measure what they hold, start the clock, let the events flow."""
        time.sleep(self._load.settle)
        now = self._meter.memory()
        self.result.memory = None if now is None or memory is None else now - memory
        self._opened_cpu, self._opened_events = self._meter.cpu(), self.result.events
        with socket.create_connection(("127.0.0.1", self._door.upstream), PATIENCE) as sock:
            sock.sendall(b"GET /go HTTP/1.1\r\nConnection: close\r\n\r\n")
            sock.recv(100)

    def _stop_clock(self) -> None:
        """Measure until now, if that was not done before."""
        cpu = self._meter.cpu()
        if self.result.cpu is None and cpu is not None and self._opened_cpu is not None:
            self.result.cpu = cpu - self._opened_cpu
            self.result.cpu_events = self.result.events - self._opened_events

    def _read(self, reader: _Reader, sock: socket.socket) -> None:
        known = len(reader.arrivals)
        try:
            data = sock.recv(256 * 1024)
            now = time.monotonic()
            reader.feed(data, now)
        except BlockingIOError:
            return
        except (_Wrong, OSError, ValueError) as error:
            self.result.wrong = self.result.wrong or f"stream {reader.stream}: {error}"
            self._end(reader, sock)
            return
        self.result.events += len(reader.arrivals) - known
        if not known and reader.arrivals:
            self.result.first.append(now - reader.started)
            self._silent -= 1
        if reader.is_whole:
            self._end(reader, sock)

    def _end(self, reader: _Reader, sock: socket.socket) -> None:
        if self._load.rate:
            # From the first end on there are fewer streams than the load has.
            self._stop_clock()
        self._silent -= not reader.arrivals
        self.result.arrivals[reader.stream] = reader.arrivals
        self._selector.unregister(sock)
        sock.close()


def run(door: Door, load: Load) -> Result:
    """Put a load through a door."""
    return _Run(door, load).run()
