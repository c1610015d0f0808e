"""The real service in a process of its own, and a client that sees what is on the wire."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Self

from .fork import Fork, warm_program

ROOT = Path(__file__).parent.parent.parent

#: Seconds after which something that is waited for has failed; only ever reached by a defect.
PATIENCE = 10.0


class Process:
    """A program under test: its output is kept, and it is gone when the block ends."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self._output = ""
        self._changed = threading.Condition()
        self._is_over = False
        self._process = self._start(command, env, cwd, pass_fds)
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _start(
        self, command: Sequence[str], env: Mapping[str, str] | None, cwd: Path, pass_fds: Sequence[int]
    ) -> subprocess.Popen[bytes] | Fork:
        if env is not None and not pass_fds and (warm := warm_program(command, env, cwd)):
            output, theirs = os.pipe()
            self._output_pipe: IO[bytes] = os.fdopen(output, "rb")
            try:
                with open(os.devnull, "r+") as nothing:
                    return warm.start(command[3:], env, cwd, nothing.fileno(), theirs, theirs)
            except BaseException:
                self._output_pipe.close()
                raise
            finally:
                os.close(theirs)
        # Its own pipe, for tests that run with gevent's threads: to read from any other would hold up all of them.
        process = subprocess.Popen(
            command,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=pass_fds,
        )
        assert process.stdout is not None
        self._output_pipe = process.stdout
        return process

    def _read(self) -> None:
        with self._output_pipe as output:
            for line in output:
                with self._changed:
                    self._output += line.decode(errors="replace")
                    self._changed.notify_all()
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def log(self) -> str:
        """Return what it has written to stdout and stderr so far."""
        return self._output

    def wait_log(self, pattern: str, timeout: float = PATIENCE, *, start: int = 0) -> re.Match[str]:
        """Wait until `pattern` matches somewhere in the output, and return the first match.

        :param start: where to look from, for instance `len(service.log())` of a moment ago.
        :raises AssertionError: if it does not come, or the process ends without it; shows the output.
        """
        wanted = re.compile(pattern, re.MULTILINE)
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or wanted.search(self._output, start), timeout)
            found = wanted.search(self._output, start)
        assert found, f"{pattern!r} is not in the output:\n{self._output[start:]}"
        return found

    def wait_exit(self, timeout: float = PATIENCE) -> int:
        """Return the exit status as soon as it has ended, with all its output read."""
        status = self._process.wait(timeout)
        self._reader.join(timeout)
        return status

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.send_signal(signal.SIGTERM)

    def stop(self, grace: float = PATIENCE, *, number: int = signal.SIGTERM) -> int:
        """Send a signal, after `grace` seconds SIGKILL also to its children, and return the exit status."""
        self._process.send_signal(number)
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            for pid in [*self.children(), self.pid]:
                os.kill(pid, 9)
        return self.wait_exit()

    def kill(self) -> None:
        """Send SIGKILL to it and its children, and return when it has ended."""
        # It first: gunicorn would start others for its children.
        if self._process.poll() is None:
            for pid in [self.pid, *self.children()]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.wait_exit()

    def children(self) -> list[int]:
        """Return the process ids of its children (Linux)."""
        path = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(pid) for pid in path.read_text().split()] if path.exists() else []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def run(
    command: Sequence[str], *, env: Mapping[str, str], cwd: Path = ROOT, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run a command of Flask or gunicorn to its end, and return what it has written."""
    if not (warm := warm_program(command, env, cwd)):
        return subprocess.run(command, env=env, cwd=cwd, timeout=timeout, capture_output=True, text=True)
    with open(os.devnull, "r+") as nothing, TemporaryFile("w+") as output, TemporaryFile("w+") as errors:
        process = warm.start(command[3:], env, cwd, nothing.fileno(), output.fileno(), errors.fileno())
        try:
            status = process.wait(timeout)
        finally:
            process.send_signal(signal.SIGKILL)
        for file in (output, errors):
            file.seek(0)
        return subprocess.CompletedProcess(command, status, output.read(), errors.read())


def environment(settings: Mapping[str, Any], extra: Mapping[str, str]) -> dict[str, str]:
    """Return our environment without what would configure the service, plus `settings` as a deployment sets them."""
    foreign = re.compile(r"FLASK_|GUNICORN_|SSE_|(HOST|PORT|WEB_CONCURRENCY)$|(?i:\w+_proxy$)")
    inherited = {name: value for name, value in os.environ.items() if not foreign.match(name)}
    ours = {f"FLASK_{key}": json.dumps(value) for key, value in settings.items()}
    return {**inherited, "PYTHONUNBUFFERED": "1", **ours, **extra}


class Service(Process):
    """A gunicorn that serves the app, ready to be called when the constructor returns.

    :param args: more arguments for gunicorn, such as `"--workers", "2"`.
    :param app: what gunicorn serves, as `module:name`.
    :param env: more of the environment, as it is.
    :param root: where `app.py` and `gunicorn.conf.py` are.
    :param settings: keys of the configuration, such as `SSE_THROTTLE=""`.
    :raises AssertionError: if it does not start; shows its output.
    """

    host = "127.0.0.1"

    def __init__(
        self,
        *args: str,
        app: str = "app:app",
        env: Mapping[str, str] | None = None,
        root: Path = ROOT,
        **settings: Any,
    ) -> None:
        # With port 0 the kernel chooses, so no process can take the port between the choice and the bind.
        # gunicorn waits for idle connections when it stops, as long as it would have kept them.
        command = [sys.executable, "-m", "gunicorn", app, "-b", f"{self.host}:0", "--keep-alive", "1", *args]
        # The directory of the counts is removed at an end that is no SIGKILL.
        self._leaves_files = bool(settings.get("SSE_METRICS"))
        super().__init__(command, env=environment(settings, env or {}), cwd=root)
        try:
            self.port = int(self.wait_log(r"Listening at: http://127\.0\.0\.1:(\d+)")[1])
            self.url = f"http://{self.host}:{self.port}"
            self._wait_ready()
        except BaseException:
            self.stop(1)
            raise

    def __exit__(self, *_: object) -> None:
        # To end politely takes gunicorn a second or two, and by SIGQUIT a third of one; what tests an end calls stop().
        if self._leaves_files:
            self.stop(number=signal.SIGQUIT)
        else:
            self.kill()

    def _wait_ready(self) -> None:
        """Ask for `/healthz`: the kernel keeps the request until a worker takes it, or all are gone."""
        try:
            with RawClient(self.host, self.port) as client:
                client.request("GET", "/healthz")
                status = client.read_head().status
        except OSError as error:
            raise AssertionError(f"the service did not start ({error!r}):\n{self.log()}") from error
        assert status == 200, f"/healthz gives {status}:\n{self.log()}"

    def worker_pids(self) -> list[int]:
        """Return the process ids of gunicorn's workers."""
        return self.children()

    def rss(self) -> int:
        """Return the bytes of memory that the workers have resident together."""
        statuses = [Path(f"/proc/{pid}/status").read_text() for pid in self.worker_pids()]
        return sum(int(found[1]) * 1024 for text in statuses if (found := re.search(r"VmRSS:\s+(\d+) kB", text)))


def start_refused(*args: str, env: Mapping[str, str] | None = None, root: Path = ROOT, **settings: Any) -> str:
    """Start a service that must not start, and return what it said; the parameters are those of `Service`."""
    command = [sys.executable, "-m", "gunicorn", "app:app", "-b", "127.0.0.1:0", *args]
    with Process(command, env=environment(settings, env or {}), cwd=root) as process:
        assert process.wait_exit() != 0, process.log()
        return process.log()


@dataclass(frozen=True, kw_only=True)
class Head:
    """The head of a response."""

    status: int
    reason: str
    fields: list[tuple[str, str]]

    def values(self, name: str) -> list[str]:
        """Return the values of all fields of that name."""
        return [value for known, value in self.fields if known.lower() == name.lower()]

    def field(self, name: str) -> str | None:
        """Return the one value of a field, or None; two of a name are an AssertionError."""
        values = self.values(name)
        assert len(values) < 2, f"{name} came {len(values)} times"
        return values[0] if values else None


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one chunk of the body held (any read, if the body is not chunked), and when it was whole (monotonic)."""

    data: bytes
    at: float


class RawClient:
    """An HTTP client that hides nothing: every byte, when it came, and how it ended.

    :param timeout: seconds that each wait for bytes may take.
    :param source: the local address that it calls from, such as `127.0.0.2`.
    """

    def __init__(
        self, host: str, port: int, *, timeout: float = PATIENCE, receive_buffer: int | None = None, source: str = ""
    ) -> None:
        self.sock = socket.socket()
        if receive_buffer:
            # Before the connect, for it decides the window that is offered.
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(timeout)
        try:
            if source:
                self.sock.bind((source, 0))
            self.sock.connect((host, port))
        except OSError:
            self.sock.close()
            raise
        self.timeout = timeout
        self.authority = f"{host}:{port}"
        self.head: Head | None = None
        #: The body so far, and the same in its pieces.
        self.body = b""
        self.pieces: list[Piece] = []
        #: How the response ended: None as long as it has not, "complete", or "aborted" (FIN or RST in the middle).
        self.ending: str | None = None
        self._buffer = b""
        self._unread: list[Piece] = []
        self._length: int | None = None
        self._is_chunked = False

    @property
    def is_complete(self) -> bool:
        """Whether the response has ended as its framing promises."""
        return self.ending == "complete"

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.sock.sendall(data)

    def request(
        self, method: str, target: str, fields: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> None:
        """Send a request; its response is read afterwards, from the beginning."""
        self.head, self.body, self.pieces, self.ending, self._unread = None, b"", [], None, []
        length = {} if body is None else {"Content-Length": str(len(body))}
        lines = [f"{name}: {value}" for name, value in {"Host": self.authority, **length, **(fields or {})}.items()]
        request_head = "\r\n".join([f"{method} {target} HTTP/1.1", *lines, "", ""])
        self.method = method
        self.send(request_head.encode("latin-1") + (body or b""))

    def recv_some(self) -> bytes:
        """Return what one read brings, `b""` after a FIN.

        :raises TimeoutError: if nothing comes.
        :raises ConnectionResetError: after an RST.
        """
        return self.sock.recv(65536)

    def read_head(self) -> Head:
        """Return the head of the response, an interim (1xx) one as any other.

        :raises ConnectionError: if the connection ends before it.
        """
        while b"\r\n\r\n" not in self._buffer:
            data = self.recv_some()
            if not data:
                raise ConnectionError(f"the connection ended within the head: {self._buffer!r}")
            self._buffer += data
        text, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = text.decode("latin-1").split("\r\n")
        _, status, reason = first.split(" ", 2)
        fields = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        self.head = Head(status=int(status), reason=reason, fields=fields)
        self._start_body(self.head)
        return self.head

    def _start_body(self, response: Head) -> None:
        self._is_chunked = response.field("Transfer-Encoding") == "chunked"
        length = response.field("Content-Length")
        self._length = int(length) if length is not None else None
        if self.method == "HEAD" or response.status in (204, 304):
            self._is_chunked, self._length = False, 0
        if not self._is_chunked and self._length == 0:
            self.ending = "complete"
        self._decode(time.monotonic())

    def read_piece(self) -> Piece | None:
        """Return the next piece of the body, or None when it has ended: `ending` shows how.

        :raises TimeoutError: if neither comes.
        """
        if self.head is None:
            self.read_head()
        while not self._unread and self.ending is None:
            self._receive()
        return self._unread.pop(0) if self._unread else None

    def _receive(self) -> None:
        try:
            data = self.recv_some()
        except ConnectionResetError:
            self.ending = "aborted"
            return
        self._buffer += data
        if data:
            self._decode(time.monotonic())
        else:
            # RFC 9112 section 6.3: only a body without any framing ends with the connection.
            self.ending = "aborted" if self._is_chunked or self._length is not None else "complete"

    def _decode(self, at: float) -> None:
        if self._is_chunked:
            self._decode_chunks(at)
        elif self.ending is None and self._buffer:
            data, self._buffer = self._buffer, b""
            self._add(data, at)
            if self._length is not None and len(self.body) >= self._length:
                assert len(self.body) == self._length, "more bytes than Content-Length says"
                self.ending = "complete"

    def _decode_chunks(self, at: float) -> None:
        while self.ending is None and b"\r\n" in self._buffer:
            line, _, rest = self._buffer.partition(b"\r\n")
            size = int(line, 16)
            if len(rest) < size + 2:
                return
            assert rest[size : size + 2] == b"\r\n", f"a chunk is longer than it says: {rest[: size + 2]!r}"
            self._buffer = rest[size + 2 :]
            if size:
                self._add(rest[:size], at)
            else:
                self.ending = "complete"

    def _add(self, data: bytes, at: float) -> None:
        piece = Piece(data=data, at=at)
        self.body += data
        self.pieces.append(piece)
        self._unread.append(piece)

    def iter_pieces(self) -> Iterator[Piece]:
        """Yield the pieces of the body until it ends."""
        while piece := self.read_piece():
            yield piece

    def read_until(self, mark: bytes) -> bytes:
        """Return the body so far as soon as it holds `mark`.

        :raises AssertionError: if it ends without.
        """
        while mark not in self.body:
            assert self.read_piece() is not None, f"{self.ending} without {mark!r}: {self.body[-300:]!r}"
        return self.body

    def read_body(self) -> bytes:
        """Return the whole body, however it ends: `ending` shows."""
        for _ in self.iter_pieces():
            pass
        return self.body

    def json(self) -> Any:
        """Return the whole body, which must be complete, as the JSON value it holds."""
        self.read_body()
        assert self.is_complete, self.ending
        return json.loads(self.body)

    def half_close(self) -> None:
        """Send a FIN and keep reading."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        """Close; FIN if everything that came was read, else RST."""
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def call(
    service: Service,
    method: str,
    target: str,
    fields: Mapping[str, str] | None = None,
    body: bytes | None = None,
    **options: Any,
) -> RawClient:
    """Send a request on a connection of its own, and return the client to read the response from; the caller closes.

    :param options: of `RawClient`.
    """
    client = RawClient(service.host, service.port, **options)
    client.request(method, target, fields, body)
    return client


def forward(service: Service, target: str, *, http_fields: Mapping[str, str] | None = None, **fields: Any) -> RawClient:
    """Send `POST /forward-sse` for that target, and return the client to read the response from; the caller closes.

    :param http_fields: fields of the request itself, such as an `Authorization` for the gateway.
    :param fields: of the JSON, such as `method`, `body`, `header`, `passcode`.
    """
    body = json.dumps({"targetUrl": target, **fields}).encode()
    return call(service, "POST", "/forward-sse", {"Content-Type": "application/json", **(http_fields or {})}, body)
