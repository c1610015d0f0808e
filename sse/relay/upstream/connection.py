"""Connections to upstreams below urllib3's: made by the `Dialer`, their heads read within bounds."""

from __future__ import annotations

import functools
import http.client
import itertools
import socket
import ssl
import time
from collections.abc import Callable, Collection
from typing import Any

import gevent
from gevent import socket as gevent_socket
from urllib3 import HTTPHeaderDict
from urllib3.connection import HTTPConnection, HTTPSConnection

from ...protocol.http1.head import Head, encode_fields, find_head_end, parse_head
from ..exchange import Stage, current
from .dial import Dialer, no_socket

Fields = Collection[tuple[str, str]]

#: Bytes of heads, 1xx ones included, before the final head must be whole.
MAX_HEAD = 64 * 1024
#: Bytes asked of the socket at a time for a head.
HEAD_READ_SIZE = 8 * 1024
#: Flags of a read that neither takes nor waits; an int, for the names' own type takes a microsecond to join them.
_LOOK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
#: Reads after which others have their turn: where there is always something to read, nothing ever waits.
TURN = 16


class StaleConnection(Exception):
    """A kept connection was closed by the upstream before it gave anything back.

    :param nothing_sent: whether not even the first byte of the request went out.
    """

    def __init__(self, *, nothing_sent: bool) -> None:
        super().__init__("the upstream had closed a kept connection")
        self.nothing_sent = nothing_sent


class Answer:
    """What http.client takes for its response: reads the head, and leaves the body and the socket to who reads that.

    Its own, and urllib3's around it, hold 9 kB for as long as the stream is open. What http.client's has besides is for
    those who look at every answer in the process (Sentry and the like).
    """

    # The last one takes nothing until somebody notes something there.
    __slots__ = ("_closed", "buffer", "connection", "head", "received", "recv", "wait", "__dict__")

    #: http.client would close the socket as soon as it has read a head that says close, and the body is yet to come.
    will_close = False
    #: It says nothing that the status does not say.
    reason = ""
    #: Nobody is to wait for a body that is read through this.
    chunked = False
    length = None
    head: Head

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.wait, self.recv = _reading(connection)
        #: What was read too much.
        self.buffer = b""
        self.received = 0
        self._closed = False

    def begin(self) -> None:
        """Read the final head.

        :raises ValueError: it is malformed.
        """
        # RFC 9110, section 15.2: "A client MUST be able to parse one or more 1xx responses received prior to a final
        # response". After a 101 the connection speaks something else.
        while (head := self._read_head()).status < 200 and head.status != 101:
            pass
        self.head = head

    def _read_head(self) -> Head:
        searched = 0
        while not self.buffer or not (end := find_head_end(self.buffer, searched)):
            # The end is three bytes long at most.
            searched = max(len(self.buffer) - 2, 0)
            if self.received >= MAX_HEAD:
                raise http.client.HTTPException("the head is too large")
            self._receive()
        data, self.buffer = self.buffer[:end], self.buffer[end:]
        return parse_head(data)

    def _receive(self) -> None:
        try:
            self.wait()
            piece = self.recv(HEAD_READ_SIZE)
        except BlockingIOError:
            return
        if not piece and self.received:
            raise http.client.HTTPException("the head is truncated")
        if not piece:
            raise http.client.RemoteDisconnected("the upstream closed the connection")
        self.received += len(piece)
        self.buffer += piece

    @property
    def status(self) -> int:
        return self.head.status

    @property
    def version(self) -> int:
        return 10 + self.head.minor

    @property
    def headers(self) -> HTTPHeaderDict:
        """The fields; http.client calls them `msg` too."""
        return HTTPHeaderDict(self.head.fields)

    msg = headers

    def getheaders(self) -> list[tuple[str, str]]:
        """Return the fields."""
        return list(self.head.fields)

    def getheader(self, name: str, default: str | None = None) -> str | None:
        """Return the value of a field."""
        value: str | None = self.headers.get(name, default)
        return value

    def isclosed(self) -> bool:
        """Tell whether the connection was let go of."""
        return self._closed

    def close(self) -> None:
        """Take note that the connection was let go of."""
        self._closed = True


def _reading(connection: Any) -> tuple[Callable[[], object], Callable[[int], bytes]]:
    """Return what waits until a read will give something, or does nothing where reading itself waits, and a read.

    gevent's `recv` first tries, fails and only then waits; to wait first saves that, a fifth of an event's cost,
    and gives the other greenlets their turn before every read.
    """
    if type(connection) is not gevent_socket.socket:
        return take_turns(), connection.recv
    hub = gevent.get_hub()
    # Below gevent's socket is the system's, whose read never waits.
    return functools.partial(hub.wait, hub.loop.io(connection.fileno(), 1)), connection._sock.recv


def take_turns() -> Callable[[], None]:
    """Return what lets others run once in `TURN` calls."""
    turns = itertools.cycle([False] * (TURN - 1) + [True])

    def wait() -> None:
        if next(turns):
            time.sleep(0)

    return wait


class _Relayed:
    """What our connections do differently, whether plain or with TLS; mixed into urllib3's."""

    # mypy cannot know what a mixin's super() will be; hence the ignores below.
    dialer: Dialer
    sock: socket.socket | None
    _answer: Answer | None = None
    _is_kept = False
    _body = b""
    _handle: socket.socket | None = None

    def _new_conn(self) -> socket.socket:
        connection = self.dialer.dial(self.host, self.port)  # type: ignore[attr-defined]
        watch = current.get()
        if watch is not None and isinstance(self, HTTPSConnection):
            # TLS takes over the descriptor before it greets, which may last; this one leads to the same connection.
            try:
                self._handle = connection.dup()
            except OSError as error:
                connection.close()
                raise no_socket() from error
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

    def request(self, method: str, url: str, body: bytes | None = None, headers: Fields = (), **_: Any) -> None:
        """Send a request, head and body with one write.

        :param headers: all fields that are sent, judged, repeated ones apart.
        :raises StaleConnection: the connection was kept, and is closed.
        """
        self._answer = None
        if self.sock is None:
            self.connect()
        else:
            self._note()
        self.putrequest(method, url, skip_host=True, skip_accept_encoding=True)  # type: ignore[attr-defined]
        # `putheader` would judge and encode each once more.
        self._output(encode_fields(headers))  # type: ignore[attr-defined]
        # http.client sends head and body apart: two calls, two segments, and two reads at the other end.
        self._body = body or b""
        try:
            self.endheaders()  # type: ignore[attr-defined]
        except (BrokenPipeError, ConnectionResetError):
            # Who refuses a request before it has come whole may have answered it.
            pass
        finally:
            self._body = b""

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
        if self.sock is None:
            return False
        try:
            if isinstance(self.sock, ssl.SSLSocket):
                # Only reading tells what TLS holds; what is for TLS itself (a session's ticket) is taken by it.
                self.sock.settimeout(0.0)
                self.sock.recv(1)
            else:
                # Of a closed one it gives b"" at once.
                getattr(self.sock, "_sock", self.sock).recv(1, _LOOK)
        except BlockingIOError:
            return True
        except ssl.SSLWantReadError:
            self.sock.settimeout(None)
            return True
        except (OSError, ValueError):
            return False
        return False

    def send(self, data: bytes) -> None:
        assert self.sock is not None
        data += self._body
        sent = 0
        try:
            # gevent's `sendall` asks the system for its buffer's size first.
            sent = self.sock.send(data)
            if sent < len(data):
                self.sock.sendall(memoryview(data)[sent:])
        except OSError as error:
            # What took a part of it may have answered, which is found out when the answer is read.
            may_have_answered = sent and isinstance(error, BrokenPipeError | ConnectionResetError)
            if self._is_kept and not may_have_answered:
                raise StaleConnection(nothing_sent=not sent) from error
            raise

    def response_class(self, connection: socket.socket, **_: Any) -> Answer:
        self._answer = Answer(connection)
        return self._answer

    def getresponse(self) -> Answer:
        """Return the answer, whose head has come.

        :raises StaleConnection: the connection was kept, and was closed without a byte of an answer.
        """
        try:
            # Past urllib3's, which makes a response of its own of http.client's.
            return super(HTTPConnection, self).getresponse()  # type: ignore[misc, no-any-return]
        except (ConnectionError, ssl.SSLEOFError) as error:
            if self._is_kept and self._answer is not None and not self._answer.received:
                raise StaleConnection(nothing_sent=False) from error
            raise


def connection_classes(dialer: Dialer) -> tuple[type[HTTPConnection], type[HTTPSConnection]]:
    """Return urllib3's connections, plain and with TLS, that a dialer makes."""

    class PlainConnection(_Relayed, HTTPConnection):  # type: ignore[misc]
        pass

    class TLSConnection(_Relayed, HTTPSConnection):  # type: ignore[misc]
        pass

    PlainConnection.dialer = TLSConnection.dialer = dialer
    return PlainConnection, TLSConnection
