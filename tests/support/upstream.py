"""An upstream for tests: a TCP server that sends, byte for byte, what a test has it send, and sees what came.

It knows no more HTTP than is needed to read a request (RFC 9112), so that it can break every rule in its answers.
"""

from __future__ import annotations

import atexit
import functools
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from types import TracebackType
from typing import Self

import trustme

#: What a test does with one connection; the connection is closed when it returns.
Script = Callable[["Connection"], object]

#: Seconds after which a script or a test that waits has failed; only ever reached by a defect.
PATIENCE = 10.0

EVENT_STREAM = "Content-Type: text/event-stream"
LAST_CHUNK = b"0\r\n\r\n"


def head(status: int = 200, *fields: str, version: str = "HTTP/1.1") -> bytes:
    """Return the head of a response; each field is a line such as `Content-Type: text/event-stream`."""
    lines = [f"{version} {status} {HTTPStatus(status).phrase}", *fields]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1")


def chunk(data: bytes) -> bytes:
    """Return one chunk of a chunked body; `b""` gives no byte, for an empty chunk would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def respond(
    *pieces: bytes, status: int = 200, fields: Sequence[str] = (EVENT_STREAM,), framing: str = "chunked"
) -> Script:
    """Return a script that gives every request of a connection the same complete response.

    :param pieces: of the body, each sent with a call of its own and, when chunked, as a chunk of its own.
    :param framing: `chunked`, `length` (Content-Length), `close` (until the connection ends) or `http/1.0`.
    """
    body = b"".join(pieces)
    line = {"chunked": ["Transfer-Encoding: chunked"], "length": [f"Content-Length: {len(body)}"]}.get(framing, [])
    response_head = head(status, *fields, *line, version="HTTP/1.0" if framing == "http/1.0" else "HTTP/1.1")

    def script(connection: Connection) -> None:
        while True:
            connection.read_request()
            connection.send(response_head)
            for piece in pieces:
                connection.send(chunk(piece) if framing == "chunked" else piece)
            if framing == "chunked":
                connection.send(LAST_CHUNK)
            if framing in ("close", "http/1.0"):
                return

    return script


def in_turn(*scripts: Script) -> Script:
    """Return a script that gives the first connection to the first of `scripts`, and so on; the last one stays."""
    return lambda connection: scripts[min(connection.index, len(scripts) - 1)](connection)


class PeerClosed(ConnectionError):
    """The other side has left; a script that is ended by it has not failed."""


class _Stopped(Exception):
    """The test is over; a script that is ended by it has not failed."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request as it was on the wire; `head` holds its first line and fields, with the blank line."""

    method: str
    target: str
    fields: list[tuple[str, str]]
    body: bytes
    head: bytes
    #: Index of the connection that brought it.
    connection: int
    #: time.monotonic() at which it was complete.
    at: float

    def values(self, name: str) -> list[str]:
        """Return the values of all fields of that name."""
        return [value for known, value in self.fields if known.lower() == name.lower()]

    def field(self, name: str) -> str | None:
        """Return the one value of a field, or None; two of a name are an AssertionError."""
        values = self.values(name)
        assert len(values) < 2, f"{name} came {len(values)} times"
        return values[0] if values else None


class Connection:
    """One accepted connection.

    A thread of its own reads all the time, so the moment the peer closes is seen also while the script is silent,
    waits, or is stuck in a send.
    """

    def __init__(self, sock: socket.socket, index: int, on_request: Callable[[Request], None]) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        self.index = index
        #: Bytes that a send has handed to the kernel so far.
        self.sent = 0
        #: Bytes that came from the peer so far.
        self.received = 0
        #: time.monotonic() at which the peer's FIN or RST arrived.
        self.closed_at: float | None = None
        #: Whether the peer left by RST.
        self.was_reset = False
        self._sock = sock
        self._on_request = on_request
        self._buffer = bytearray()
        self._changed = threading.Condition()
        # OpenSSL allows one call at a time for a connection, so reads and writes take turns and never block inside.
        self._turn = threading.Lock()
        self._wake, self._waker = socket.socketpair()
        self._stopped = False
        self._closing = threading.Lock()
        #: Set when our side has been closed, and the system knows.
        self.closed = threading.Event()
        self._is_closed = False
        self._reader = threading.Thread(target=self._read_all, daemon=True)
        self._reader.start()

    def _read_all(self) -> None:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while self._wake.fileno() not in (ready := dict(poll.poll())) and ready:
            if not self._read_some():
                self._notify_wake()
                return

    def _read_some(self) -> bool:
        """Take what there is; return whether more may come."""
        while True:
            try:
                with self._turn:
                    data = self._sock.recv(65536)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return True
            except OSError as error:
                self._note_closed(error)
                return False
            if not data:
                self._note_closed(None)
                return False
            with self._changed:
                self.received += len(data)
                self._buffer += data
                self._changed.notify_all()

    def _note_closed(self, error: OSError | None) -> None:
        """Note that the peer has left; whichever of reading and sending meets it first knows when and how."""
        with self._changed:
            if self.closed_at is None:
                self.closed_at = time.monotonic()
                self.was_reset = isinstance(error, ConnectionResetError)
                self._changed.notify_all()

    def _notify_wake(self) -> None:
        try:
            self._waker.send(b"!")
        except OSError:  # closed in the meantime
            pass

    def _wait(self, is_done: Callable[[], bool], timeout: float, what: str) -> None:
        """Wait for something that arrives; the caller holds `_changed`."""
        if not self._changed.wait_for(lambda: is_done() or self._stopped or self._is_closed, timeout):
            raise TimeoutError(f"connection {self.index}: {what} within {timeout} s")
        if is_done():
            return
        if self._stopped:
            raise _Stopped
        raise AssertionError(f"connection {self.index}: {what}: the script has closed it")

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def read(self, count: int, timeout: float = PATIENCE) -> bytes:
        """Return exactly `count` bytes.

        :raises PeerClosed: if the peer leaves before.
        """
        with self._changed:
            self._wait(lambda: len(self._buffer) >= count or self.closed_at is not None, timeout, f"no {count} bytes")
            if len(self._buffer) < count:
                raise PeerClosed(f"the peer left with {len(self._buffer)} of {count} bytes sent")
            return self._take(count)

    def read_until(self, mark: bytes, timeout: float = PATIENCE) -> bytes:
        """Return the bytes up to and including the next `mark`.

        :raises PeerClosed: if the peer leaves before.
        """
        with self._changed:
            self._wait(lambda: mark in self._buffer or self.closed_at is not None, timeout, f"no {mark!r}")
            if mark not in self._buffer:
                raise PeerClosed(f"the peer left before {mark!r}")
            return self._take(self._buffer.index(mark) + len(mark))

    def _read_body(self, request_fields: list[tuple[str, str]]) -> bytes:
        fields = {name.lower(): value for name, value in request_fields}
        if fields.get("transfer-encoding") != "chunked":
            return self.read(int(fields.get("content-length", "0")))
        body = b""
        while size := int(self.read_until(b"\r\n"), 16):
            body += self.read(size)
            assert self.read(2) == b"\r\n", "a chunk is longer than it says"
        assert self.read_until(b"\r\n") == b"\r\n", "a trailer field"
        return body

    def read_request(self, timeout: float = PATIENCE) -> Request:
        """Return the next request, with its body, and note it in `upstream.requests`.

        :raises PeerClosed: if the peer leaves before there is one.
        """
        request_head = self.read_until(b"\r\n\r\n", timeout)
        first, *lines = request_head.decode("latin-1").split("\r\n")[:-2]
        method, target, version = first.split(" ")
        assert version == "HTTP/1.1", first
        fields = [(name, value.strip(" \t")) for name, _, value in (line.partition(":") for line in lines)]
        request = Request(
            method=method,
            target=target,
            fields=fields,
            body=self._read_body(fields),
            head=request_head,
            connection=self.index,
            at=time.monotonic(),
        )
        self._on_request(request)
        return request

    def send(self, data: bytes) -> None:
        """Send all of `data`; blocks while the peer does not read.

        :raises PeerClosed: if the peer has left.
        """
        rest = memoryview(data)
        while rest:
            try:
                with self._turn:
                    sent = self._sock.send(rest[:65536])
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                self._wait_writable()
                continue
            except OSError as error:
                assert not self._is_closed, "the script sends after it has closed"
                self._note_closed(error)
                raise PeerClosed("the peer left while something was sent") from error
            self.sent += sent
            rest = rest[sent:]

    def _wait_writable(self) -> None:
        poll = select.poll()
        poll.register(self._sock, select.POLLOUT)
        poll.register(self._wake, select.POLLIN)
        poll.poll()
        if self._stopped:
            raise _Stopped
        if self.closed_at is not None:
            raise PeerClosed("the peer left without reading everything")

    def send_each(self, data: bytes) -> None:
        """Send `data` one byte per segment."""
        for offset in range(len(data)):
            self.send(data[offset : offset + 1])

    def flood(self, piece: bytes = chunk(b"data: flood\n\n" * 1000)) -> None:
        """Send `piece` again and again, as fast as the peer takes it, until it leaves; `sent` shows how far it got."""
        try:
            while True:
                self.send(piece)
        except PeerClosed:
            return

    def wait_closed(self, timeout: float = PATIENCE) -> float:
        """Wait until the peer has closed, and return the time.monotonic() at which it did.

        :raises TimeoutError: if it does not.
        """
        with self._changed:
            self._wait(lambda: self.closed_at is not None, timeout, "the peer did not close")
            assert self.closed_at is not None
            return self.closed_at

    def wait_for(self, event: threading.Event, timeout: float = PATIENCE) -> None:
        """Wait, in a script, until the test sets `event`.

        :raises TimeoutError: if it does not.
        """
        deadline = time.monotonic() + timeout
        # The event wakes at once; the short slices are only there to notice that the test has ended without setting it.
        while not event.wait(0.1):
            if self._stopped:
                raise _Stopped
            if time.monotonic() > deadline:
                raise TimeoutError(f"connection {self.index}: the test did not set the event within {timeout} s")

    def half_close(self) -> None:
        """Send a FIN and keep reading."""
        self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close with FIN, over TLS after a close_notify."""
        self._close(is_reset=False)

    def reset(self) -> None:
        """Close with RST."""
        self._close(is_reset=True)

    def _close(self, *, is_reset: bool) -> None:
        with self._closing:
            if self._is_closed:
                return
            with self._changed:
                self._is_closed = True
                self._changed.notify_all()
            # A socket that another thread polls is not closed before that poll ends.
            self._notify_wake()
            self._reader.join()
            if is_reset:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif isinstance(self._sock, ssl.SSLSocket):
                self._say_goodbye(self._sock)
            self._sock.close()
            self._wake.close()
            self._waker.close()
            self.closed.set()

    @staticmethod
    def _say_goodbye(sock: ssl.SSLSocket) -> None:
        try:
            sock.unwrap()
        except OSError:  # sent, and the peer's own is not waited for; or the peer has left
            pass

    def stop(self) -> None:
        """Wake whatever waits in the script."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._notify_wake()


@functools.cache
def authority() -> tuple[trustme.CA, Path]:
    """Return the tests' own certificate authority, and the PEM file that makes it trusted."""
    ca = trustme.CA()
    directory = Path(mkdtemp(prefix="authority-"))
    atexit.register(rmtree, directory)
    ca.cert_pem.write_to_path(directory / "ca.pem")
    return ca, directory / "ca.pem"


def _server_context(
    names: Sequence[str], expires: datetime | None = None, common_name: str | None = None
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority()[0].issue_cert(*names, not_after=expires, common_name=common_name).configure_cert(context)
    return context


class Upstream:
    """The server: `with Upstream(script) as upstream:` runs `script` in a thread for each connection.

    What goes wrong in a script is raised when the block ends. The script may be exchanged by `upstream.script = ...`.

    :param tls: whether it speaks TLS, with a certificate of the tests' own authority (`ca_file`).
    :param names: what that certificate is for; something else makes it a wrong one.
    :param expires: when that certificate ends.
    :param host: loopback address to listen on.
    :param common_name: of that certificate's subject.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        tls: bool = False,
        names: Sequence[str] = ("127.0.0.1", "localhost"),
        expires: datetime | None = None,
        host: str = "127.0.0.1",
        common_name: str | None = None,
    ) -> None:
        self.script: Script = script or respond()
        self.host = host
        #: All connections accepted so far; one whose TLS handshake failed is only counted in `failed_handshakes`.
        self.connections: list[Connection] = []
        self.requests: list[Request] = []
        self.failed_handshakes = 0
        self._errors: list[BaseException] = []
        self._changed = threading.Condition()
        self._context = _server_context(names, expires, common_name) if tls else None
        self._listener = socket.create_server((host, 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://{host}:{self.port}"
        self._wake, self._waker = socket.socketpair()
        self._acceptor = threading.Thread(target=self._accept_all, daemon=True)
        self._scripts: list[threading.Thread] = []

    @property
    def ca_file(self) -> str:
        """Path of the PEM file of the authority that a client has to trust."""
        return str(authority()[1])

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: TracebackType | None) -> None:
        self.refuse()
        self._wake.close()
        self._waker.close()
        if error is None:
            self.settle()
            return
        try:
            self.settle()
        except BaseException as found:
            error.add_note(f"and in the upstream: {found!r}")

    def refuse(self) -> None:
        """Listen no more: the next connection is refused; open ones stay."""
        if self._acceptor.is_alive():
            self._waker.send(b"!")
            self._acceptor.join()
        self._listener.close()

    def settle(self) -> None:
        """End all connections and scripts, forget what was seen, and raise what went wrong in a script."""
        deadline = time.monotonic() + PATIENCE
        while self._stop_scripts():
            if time.monotonic() > deadline:
                self._errors.append(TimeoutError("a script does not end"))
                break
        with self._changed:
            errors, self._errors = self._errors, []
            self.connections, self.requests, self._scripts, self.failed_handshakes = [], [], [], 0
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise BaseExceptionGroup("in several scripts of the upstream", errors)

    def _stop_scripts(self) -> bool:
        """End the connections there are; return whether a script still runs, perhaps one that begins only now."""
        with self._changed:
            connections, threads = list(self.connections), list(self._scripts)
        for connection in connections:
            connection.stop()
        for thread in threads:
            thread.join(0.2)
        return any(thread.is_alive() for thread in threads)

    def _accept_all(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while self._wake.fileno() not in dict(poll.poll()):
            sock, _ = self._listener.accept()
            thread = threading.Thread(target=self._run, args=(sock,), name="script", daemon=True)
            with self._changed:
                self._scripts.append(thread)
            thread.start()

    def _secure(self, sock: socket.socket) -> socket.socket | None:
        if self._context is None:
            return sock
        sock.settimeout(PATIENCE)
        try:
            return self._context.wrap_socket(sock, server_side=True)
        except OSError:  # wrap_socket has taken the socket and closed it
            with self._changed:
                self.failed_handshakes += 1
                self._changed.notify_all()
            return None

    def _run(self, sock: socket.socket) -> None:
        secured = self._secure(sock)
        if secured is None:
            return
        with self._changed:
            connection = Connection(secured, len(self.connections), self._note)
            self.connections.append(connection)
            self._changed.notify_all()
        try:
            self.script(connection)
        except (PeerClosed, _Stopped):
            pass
        except BaseException as error:  # for settle() to raise in the test
            self._errors.append(error)
        finally:
            connection.close()

    def _note(self, request: Request) -> None:
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()

    def wait_request(self, number: int = 1, timeout: float = PATIENCE) -> Request:
        """Return the request of that number, the first being 1, as soon as it is there.

        :raises TimeoutError: if it does not come.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.requests) >= number, timeout):
                raise TimeoutError(f"{len(self.requests)} of {number} requests within {timeout} s")
            return self.requests[number - 1]

    def wait_connection(self, number: int = 1, timeout: float = PATIENCE) -> Connection:
        """Return the connection of that number, the first being 1, as soon as it is there.

        :raises TimeoutError: if it does not come.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.connections) >= number, timeout):
                raise TimeoutError(f"{len(self.connections)} of {number} connections within {timeout} s")
            return self.connections[number - 1]


class SilentListener:
    """An address on which a connect neither succeeds nor fails: its queue is full and nothing accepts.

    Linux drops the SYN then; `with SilentListener() as silent:` gives `silent.url`.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=0)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._fillers: list[socket.socket] = []

    def __enter__(self) -> Self:
        # One more than the backlog fits; the second one makes sure that it is full.
        for _ in range(2):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", self.port))
            self._fillers.append(filler)
        return self

    def __exit__(self, *_: object) -> None:
        for filler in self._fillers:
            filler.close()
        self._listener.close()
