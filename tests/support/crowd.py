"""Many streams at once for little: an upstream and its readers with one thread each, however many there are."""

from __future__ import annotations

import os
import resource
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from ..support.ending import EVENT, STREAM
from .service import PATIENCE, Service
from .upstream import LAST_CHUNK, chunk


class Spring:
    """An upstream that responses every request with an event stream that does not end.

    :param interval: seconds between two events of each stream; 0: one event, then silence.
    """

    def __init__(self, interval: float = 0.0) -> None:
        self._interval = interval
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._listener.setblocking(False)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._wake, self._waker = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._changed = threading.Condition()
        self._open: set[socket.socket] = set()
        self._streaming: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._waker.send(b"!")
        self._thread.join()
        for sock in (*self._open, self._listener, self._wake, self._waker):
            sock.close()
        self._selector.close()

    def _serve(self) -> None:
        due = time.monotonic()
        while True:
            ready = [key.fileobj for key, _ in self._selector.select(self._interval or None)]
            if self._wake in ready:
                return
            with self._changed:
                for sock in ready:
                    assert isinstance(sock, socket.socket)
                    self._accept() if sock is self._listener else self._read(sock)
                self._changed.notify_all()
            if self._interval and time.monotonic() >= due:
                due = time.monotonic() + self._interval
                for sock in self._streaming:
                    _send(sock, chunk(EVENT))

    def _accept(self) -> None:
        try:
            while True:
                sock, _ = self._listener.accept()
                sock.setblocking(False)
                self._selector.register(sock, selectors.EVENT_READ)
                self._open.add(sock)
        except BlockingIOError:
            return

    def _read(self, sock: socket.socket) -> None:
        try:
            request = sock.recv(65536)
        except ConnectionResetError:
            request = b""
        if request:
            # Those of the tests have no body, and fit into one segment.
            assert request.endswith(b"\r\n\r\n"), request
            self._streaming.add(sock)
            _send(sock, STREAM + chunk(EVENT))
            return
        self._selector.unregister(sock)
        self._open.discard(sock)
        self._streaming.discard(sock)
        sock.close()

    @property
    def open(self) -> int:
        """How many connections are open."""
        return len(self._open)

    def wait_open(self, count: int) -> None:
        """Wait until so many connections are open."""
        with self._changed:
            is_so = self._changed.wait_for(lambda: self.open == count, PATIENCE)
            assert is_so, f"{self.open} connections are open, not {count}"


def _send(sock: socket.socket, data: bytes) -> None:
    try:
        sock.send(data)
    except OSError:  # it has gone, which the next read shows
        return


class Reader:
    """One client: what came so far, and whether the connection has ended."""

    def __init__(self, service: Service, target: str) -> None:
        self.sock = socket.create_connection((service.host, service.port), PATIENCE)
        self.sock.sendall(f"GET {target} HTTP/1.1\r\nHost: {service.host}\r\n\r\n".encode())
        self.sock.setblocking(False)
        self.data = b""
        self.has_ended = False

    @property
    def is_streaming(self) -> bool:
        return self.data.startswith(b"HTTP/1.1 200 ") and EVENT in self.data

    @property
    def is_aborted(self) -> bool:
        """Whether it ended as no client can take for a whole response."""
        return self.has_ended and self.is_streaming and not self.data.endswith(LAST_CHUNK)

    @property
    def body(self) -> bytes:
        """The whole chunks of the body, without their framing."""
        found, rest = b"", self.data.partition(b"\r\n\r\n")[2]
        while b"\r\n" in rest:
            size, _, rest = rest.partition(b"\r\n")
            if len(rest) < int(size, 16) + 2:
                break
            found, rest = found + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        return found

    def read(self) -> None:
        """Take what is there."""
        try:
            data = self.sock.recv(65536)
        except ConnectionResetError:
            data = b""
        self.data += data
        self.has_ended = not data


class Crowd:
    """Readers of streams, all open and with their first event when the constructor returns, unless it is refused."""

    def __init__(self, service: Service, count: int, target: str = "/upstream/test/") -> None:
        self._selector = selectors.DefaultSelector()
        self.readers: list[Reader] = []
        for _ in range(count):
            reader = Reader(service, target)
            self.readers.append(reader)
            self._selector.register(reader.sock, selectors.EVENT_READ, reader)
        self.wait(lambda: all(EVENT in reader.data or b"problem+json" in reader.data for reader in self.readers))

    def wait(self, is_so: Callable[[], bool], timeout: float = PATIENCE) -> None:
        """Read until something is so.

        :raises AssertionError: if it does not become so.
        """
        deadline = time.monotonic() + timeout
        while not is_so():
            left = deadline - time.monotonic()
            assert left > 0, f"{self.streaming} stream, {self.ended} have ended"
            for key, _ in self._selector.select(min(left, 0.1)):
                key.data.read()
                if key.data.has_ended:
                    self._selector.unregister(key.fileobj)

    def wait_ended(self, timeout: float = PATIENCE) -> None:
        """Read until every connection has ended."""
        self.wait(lambda: self.ended == len(self.readers), timeout)

    @property
    def ended(self) -> int:
        return sum(reader.has_ended for reader in self.readers)

    @property
    def streaming(self) -> int:
        return sum(reader.is_streaming and not reader.has_ended for reader in self.readers)

    @property
    def aborted(self) -> int:
        return sum(reader.is_aborted for reader in self.readers)

    def leave(self, *, by_reset: bool = False) -> None:
        """Close all connections at once."""
        self._selector.close()
        for reader in self.readers:
            if by_reset:
                reader.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            reader.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


def descriptors(pid: int) -> int:
    """Return how many files and sockets a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def processor_time(pid: int) -> float:
    """Return the seconds of processor time that a process has used."""
    # proc(5): utime and stime are the 14th and 15th field; the second may hold spaces, and ends with a bracket.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def room_for(streams: int) -> Iterator[None]:
    """Raise the number of files that this process may open: one for each end that a test holds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * streams + 1000
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
