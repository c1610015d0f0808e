"""The requests adapter: connects to the checked address; `iter_content` yields bytes as they arrive.

requests and urllib3 keep their work (pools, TLS, the request's bytes, the head's fields). What is ours sits at three
places below them: how a connection is made (`Dialer`), how a head is read (`_Wire`, bounded), and how a body is read
(`RawBody`: one piece for each read of the socket, because urllib3 gives one for each chunk, or holds all back).
"""

from __future__ import annotations

import email.errors
import functools
import http.client
import itertools
import socket
import ssl
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import certifi
import gevent
import requests
from gevent import socket as gevent_socket
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection

from ..protocol.framing import ChunkedDecoder, Framing, MalformedChunk, parse_framing
from ..protocol.target import Target
from .dial import Dialer
from .watch import Stage, current, is_gone

#: Bytes of heads, 1xx ones included, before the final head must be whole.
MAX_HEAD = 64 * 1024
#: Bytes asked of the socket at a time: of a body, and of a head, whose lines are cut off one by one.
READ_SIZE = 64 * 1024
HEAD_READ_SIZE = 8 * 1024

#: What email's parser says of a head that it could not make out whole.
HEAD_DEFECTS = (
    email.errors.FirstHeaderLineIsContinuationDefect,
    email.errors.MisplacedEnvelopeHeaderDefect,
    email.errors.MissingHeaderBodySeparatorDefect,
)
#: Reads of a body after which others have their turn: where there is always something to read, nothing ever waits.
TURN = 16


class StaleConnection(Exception):
    """A kept connection was closed by the upstream before it gave anything back.

    :param nothing_sent: whether not even the first byte of the request went out.
    """

    def __init__(self, *, nothing_sent: bool) -> None:
        super().__init__("the upstream had closed a kept connection")
        self.nothing_sent = nothing_sent


class TruncatedBody(Exception):
    """The upstream's body ended, or went wrong, before its framing said so."""


class _Wire:
    """A connection, as http.client reads a head from it: bounded, and with what was read too much in plain sight."""

    def __init__(self, connection: socket.socket) -> None:
        # http.client closes its socket early when the answer is the last one; this keeps it open for the body.
        self._file = connection.makefile("rb", buffering=0)
        self.connection = connection
        self.buffer = b""
        self.received = 0

    def readline(self, limit: int = -1) -> bytes:
        while not (end := self.buffer.find(b"\n") + 1):
            if self.received >= MAX_HEAD:
                raise http.client.HTTPException("the head is too large")
            piece = self.connection.recv(HEAD_READ_SIZE)
            if not piece:
                if self.received:
                    # http.client would take what there is for the whole head.
                    raise http.client.HTTPException("the head is truncated")
                return b""
            self.received += len(piece)
            self.buffer += piece
        line, self.buffer = self.buffer[:end], self.buffer[end:]
        return line

    def flush(self) -> None:
        """Do nothing; http.client calls it before it closes."""

    def close(self) -> None:
        self._file.close()


class _Head(http.client.HTTPResponse):
    """http.client's reader of heads, over a `_Wire`."""

    def __init__(self, connection: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(connection, *args, **kwargs)
        self.fp.close()
        self.wire = _Wire(connection)
        self.fp = self.wire  # type: ignore[assignment]  # it reads lines and closes, no more is asked of it

    def _read_status(self) -> tuple[str, int, str]:
        # RFC 9110, section 15.2: "A client MUST be able to parse one or more 1xx responses received prior to a final
        # response"; http.client skips 100 alone.
        version, status, reason = super()._read_status()  # type: ignore[misc]
        if 101 < status < 200:
            status = http.client.CONTINUE
        return version, status, reason

    def begin(self) -> None:
        super().begin()
        # What email's parser could not make out would be dropped in silence, and two readers would differ.
        # What it says of a multipart type is of the body, which it never sees.
        if any(isinstance(defect, HEAD_DEFECTS) for defect in self.msg.defects):
            raise http.client.HTTPException("the head is malformed")


class _Relayed:
    """What our connections do differently, whether plain or with TLS; mixed into urllib3's."""

    dialer: Dialer
    sock: socket.socket | None
    head: _Head | None = None
    _is_kept = False
    _sent = False
    _handle: socket.socket | None = None

    def _new_conn(self) -> socket.socket:
        connection = self.dialer.dial(self.host, self.port)  # type: ignore[attr-defined]
        watch = current.get()
        if watch is not None and isinstance(self, HTTPSConnection):
            # TLS takes over the descriptor before it greets, which may last; this one leads to the same connection.
            self._handle = connection.dup()
            watch.attach(self._handle)
        return connection

    def connect(self) -> None:
        self._is_kept = False
        try:
            super().connect()  # type: ignore[misc]
            self._note()
        finally:
            if self._handle is not None:
                self._handle.close()
                self._handle = None

    def request(self, *args: Any, **kwargs: Any) -> None:
        self.head = None
        self._sent = False
        if self._is_kept:
            self._note()
        super().request(*args, **kwargs)  # type: ignore[misc]

    def _note(self) -> None:
        """Let the watch look after this connection from now on."""
        if isinstance(self.sock, ssl.SSLSocket):
            # RFC 9112, section 9.8: without a closure alert, an end of the connection is no end of the body.
            self.sock.suppress_ragged_eofs = False  # type: ignore[attr-defined]  # the hints leave it out
        watch = current.get()
        if watch is not None and self.sock is not None:
            watch.attach(self.sock)
            watch.enter(Stage.HEAD)

    def keep(self) -> None:
        """Take note that the connection goes back to its pool."""
        self._is_kept = True

    @property
    def is_connected(self) -> bool:
        # Bytes that wait on an idle connection would be taken for the answer to the next request.
        return self.sock is not None and not is_gone(self.sock) and not _has_input(self.sock)

    def send(self, data: Any) -> None:
        try:
            super().send(data)  # type: ignore[misc]
        except OSError as error:
            if self._is_kept and not self._sent:
                raise StaleConnection(nothing_sent=True) from error
            raise
        self._sent = True

    def response_class(self, connection: socket.socket, *args: Any, **kwargs: Any) -> _Head:
        self.head = _Head(connection, *args, **kwargs)
        return self.head

    def getresponse(self) -> Any:
        try:
            return super().getresponse()  # type: ignore[misc]
        except (ConnectionError, ssl.SSLEOFError) as error:
            if self._is_kept and self.head is not None and not self.head.wire.received:
                raise StaleConnection(nothing_sent=False) from error
            raise


def _has_input(connection: socket.socket) -> bool:
    plain = getattr(connection, "_sock", connection)
    if isinstance(connection, ssl.SSLSocket):
        return connection.pending() > 0
    try:
        return bool(plain.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False
    except OSError:
        return True


def _take_turns() -> Callable[[], None]:
    """Return what lets others run once in `TURN` calls."""
    turns = itertools.cycle([False] * (TURN - 1) + [True])

    def wait() -> None:
        if next(turns):
            time.sleep(0)

    return wait


class RawBody:
    """What `requests.Response.raw` is here: `stream()` yields what one read of the socket brought, at once.

    It yields b"" when a read was given a time-out and nothing came; the caller may then read on.
    """

    def __init__(self, response: Any, *, method: str) -> None:
        self._response = response
        self._connection: Any = response.connection
        self._head: _Head = self._connection.head
        self._wire = self._head.wire
        self.headers = response.headers
        self.status: int = response.status
        self.reason: str = response.reason
        self._watch = current.get()
        try:
            self._framing: Framing = parse_framing(self.headers.items(), method=method, status=self.status)
        except ValueError:
            self._release(reusable=False)
            raise
        if self._framing.kind == "none" or (self._framing.kind == "length" and not self._framing.length):
            # After a 101 the connection speaks something else.
            self._release(reusable=not self._wire.buffer and self.status >= 200)

    def settimeout(self, seconds: float | None) -> None:
        """Set how long a read waits before it yields b""; None is for ever."""
        self._wire.connection.settimeout(seconds)

    def stream(self, amt: int | None = None, decode_content: bool | None = None) -> Iterator[bytes]:
        """Yield the body's bytes as they come, still encoded, and keep the connection if it ended as it should.

        :param amt: ignored, as is decode_content; they are requests' arguments.
        :raises TruncatedBody: if it did not; what came before has been yielded.
        """
        del amt, decode_content
        if self._head.isclosed():
            return
        reusable = False
        try:
            if self._framing.kind == "chunked":
                reusable = yield from self._chunked()
            elif self._framing.kind == "length":
                reusable = yield from self._counted(self._framing.length)
            else:
                yield from self._reads()
        finally:
            self._release(reusable=reusable)

    def _reads(self) -> Iterator[bytes]:
        """Yield each read of the socket, b"" for one that timed out, until the upstream closes."""
        piece, self._wire.buffer = self._wire.buffer, b""
        if piece:
            yield piece
        recv = self._wire.connection.recv
        wait = self._waiter() or _take_turns()
        while True:
            try:
                wait()
                piece = recv(READ_SIZE)
            except TimeoutError:
                yield b""
                continue
            except (OSError, ValueError) as error:
                # ValueError is what TLS says of a connection that was shut down under it.
                raise TruncatedBody("the connection broke") from error
            if not piece:
                return
            yield piece

    def _waiter(self) -> Callable[[], object] | None:
        """Return what waits until a read will give something, None where reading itself has to wait.

        gevent's `recv` first tries, fails and only then waits; to wait first saves that, a fifth of an event's cost,
        and gives the other greenlets their turn before every read.
        """
        connection = self._wire.connection
        if not isinstance(connection, gevent_socket.socket) or isinstance(connection, ssl.SSLSocket):
            return None
        if connection.gettimeout() is not None:
            return None
        hub = gevent.get_hub()
        return functools.partial(hub.wait, hub.loop.io(connection.fileno(), 1))

    def _chunked(self) -> Generator[bytes, None, bool]:
        decoder = ChunkedDecoder()
        for data in self._reads():
            try:
                piece = decoder.feed(data) if data else data
            except MalformedChunk as error:
                if error.payload:
                    yield error.payload
                raise TruncatedBody("a chunk is malformed") from error
            # A read that brought only a part of a chunk's frame is no silence, and nothing to pass on.
            if piece or not data:
                yield piece
            if decoder.finished:
                return not decoder.rest
        raise TruncatedBody("the last chunk is missing")

    def _counted(self, length: int) -> Generator[bytes, None, bool]:
        for data in self._reads():
            yield data[:length]
            length -= len(data)
            if length <= 0:
                return length == 0
        raise TruncatedBody("the body is shorter than its Content-Length")

    def _may_persist(self) -> bool:
        # RFC 9112, section 9.3: HTTP/1.0 keeps a connection only if both sides say so, and 6.1 wants it closed after
        # a Transfer-Encoding there; few speak it, so none of theirs is kept.
        return not self._head.will_close and self._head.version > 10

    def close(self) -> None:
        """Let go of the upstream; a body that was not read to its end takes the connection with it."""
        self._release(reusable=False)

    def release_conn(self) -> None:
        """Do nothing: `close()` and the end of `stream()` have done it. requests calls it."""

    def _release(self, *, reusable: bool) -> None:
        if self._head.isclosed():
            return
        self._head.close()
        if reusable and self._framing.reusable and self._may_persist():
            self.settimeout(None)
            if self._watch is not None:
                self._watch.detach()
            self._connection.keep()
        else:
            self._connection.close()
        self._response.release_conn()


class RelayAdapter(HTTPAdapter):
    """Sends requests whose `target` was parsed and matched, over connections that were judged.

    Called without a Session: no cookies, no redirects, no netrc, no proxies of the environment, no hooks.

    :param dialer: makes the connections.
    :param pool_size: most connections kept for one host.
    :param ca_file: PEM file of further authorities, or "".
    """

    def __init__(self, dialer: Dialer, *, pool_size: int, ca_file: str = "") -> None:
        self._dialer = dialer
        # One context for all connections: requests reads the authorities anew for each, 20 ms of CPU every time.
        self._tls = ssl.create_default_context(cafile=certifi.where())
        if ca_file:
            self._tls.load_verify_locations(cafile=ca_file)
        super().__init__(pool_connections=64, pool_maxsize=pool_size)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any) -> None:
        dialer_of_this = self._dialer

        class PlainConnection(_Relayed, HTTPConnection):  # type: ignore[misc]
            dialer = dialer_of_this

        class TLSConnection(_Relayed, HTTPSConnection):  # type: ignore[misc]
            dialer = dialer_of_this

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = PlainConnection

        class TLSPool(HTTPSConnectionPool):
            ConnectionCls = TLSConnection

        self.poolmanager = PoolManager(
            num_pools=connections, maxsize=maxsize, block=block, ssl_context=self._tls, retries=False
        )
        self.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": TLSPool}

    def get_connection_with_tls_context(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the pool of the request's target, as it was parsed: no second parser is asked."""
        target: Target = request.target
        return self.poolmanager.connection_from_host(target.host, target.port, target.scheme)

    def cert_verify(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the shared context verifies, and naming a file here would load it again."""

    def request_url(self, request: Any, proxies: Any) -> str:
        target: Target = request.target
        return target.request_target

    def build_response(self, req: Any, resp: Any) -> requests.Response:
        response = requests.Response()
        response.status_code = resp.status
        response.request = req
        response.raw = RawBody(resp, method=req.method)
        return response
