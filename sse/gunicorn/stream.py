"""A stream on its way to a client: in a greenlet while it may have to wait for somebody else, in the hub otherwise."""

from __future__ import annotations

from collections.abc import Generator
from datetime import datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gevent
from gunicorn.http.wsgi import Response

from ..relay.stream.pump import Pump
from .socket import Client

if TYPE_CHECKING:
    from .worker import StreamWorker

#: What WSGI tells an app of a request.
Environ = dict[str, Any]

#: RFC 9112, section 7.1: "last-chunk = 1*("0") [ chunk-ext ] CRLF", and an empty trailer section.
LAST_CHUNK = b"0\r\n\r\n"


class Stream:
    """An answer whose body is a pump; it stands for its greenlet in the pool while it has none.

    :param worker: takes the connection back when all has been sent.
    :param client: the connection.
    :param pump: the body, which does not wait itself.
    :param descriptor: what becomes readable when there is something to pass on.
    :param response: gunicorn's, which writes the head.
    """

    __slots__ = (
        "_descriptor",
        "_environ",
        "_error",
        "_has_ended",
        "_io",
        "_is_chunked",
        "_pieces",
        "_pump",
        "_response",
        "_rest",
        "_sent",
        "_started",
        "_worker",
        "client",
        "is_last",
    )

    def __init__(
        self, worker: StreamWorker, client: Client, pump: Pump, descriptor: int, response: Response, environ: Environ
    ) -> None:
        self.client = client
        #: Whether the connection is to be closed behind this answer.
        self.is_last: bool = response.should_close()
        self._worker = worker
        self._pump = pump
        self._pieces: Generator[bytes, None, None] = iter(pump)
        self._is_chunked: bool = response.chunked
        self._descriptor = descriptor
        self._io: Any = None
        #: Bytes of the body, and whether they are all.
        self._sent = 0
        self._has_ended = False
        #: What is left of a piece that did not fit, and what went wrong; both are seen to in a greenlet.
        self._rest = b""
        self._error: BaseException | None = None
        self._response: Response | None = response
        self._environ: Environ | None = environ
        self._started = datetime.now()

    def run(self) -> bool:
        """Send what there is, in a greenlet; return whether that was all, or else the stream needs no greenlet now."""
        try:
            is_done = self._send()
        except BaseException:
            self._end()
            raise
        if is_done:
            self._end()
        return is_done

    def _send(self) -> bool:
        data = self._begin() if self._io is None else self._go_on()
        while not self._has_ended:
            self._deliver(data + self._gather())
            if not (self._has_ended or self._pump.is_ending):
                self._leave()
                return False
            data = b""
        return True

    def _begin(self) -> bytes:
        """Return the head, which goes out with what came along with the upstream's."""
        assert self._response is not None
        # The first piece is empty, and stands for it.
        next(self._pieces)
        parts: list[bytes] = []
        self._response.sock = SimpleNamespace(sendall=parts.append)
        self._response.send_headers()
        return b"".join(parts)

    def _go_on(self) -> bytes:
        """See to what could not be done without waiting."""
        if isinstance(self._error, gevent.GreenletExit):
            # As if it had hit the pump where it waits.
            self._pieces.throw(self._error)
        if self._error is not None:
            raise self._error
        rest, self._rest = self._rest, b""
        self._deliver(rest)
        return b""

    def _deliver(self, data: bytes) -> None:
        rest = data[self.client.send_now(data) :]
        if rest:
            with self._pump.sending():
                self.client.sendall(rest)

    def _gather(self) -> bytes:
        """Return what there is to pass on now, framed: what was read at once is sent at once."""
        frames = []
        for piece in self._pieces:
            if piece:
                self._sent += len(piece)
                frames.append(b"%X\r\n%b\r\n" % (len(piece), piece) if self._is_chunked else piece)
            if not piece or self._pump.is_ending:
                return b"".join(frames)
        self._has_ended = True
        if self._is_chunked:
            frames.append(LAST_CHUNK)
        return b"".join(frames)

    def _end(self) -> None:
        if self._response is not None:
            self._response.sent = self._sent
            self._worker.log.access(self._response, self._response.req, self._environ, datetime.now() - self._started)
        self._pump.close()

    def _leave(self) -> None:
        """Let the current greenlet end: the hub calls when there is something to read."""
        if not self._worker.tells_of_requests:
            # A stream may be open for hours, and needs nothing of these.
            self._response = self._environ = None
        self.client.is_kept = True
        self.client.server.connections.discard(gevent.getcurrent())
        self.client.server.connections.add(self)
        self._io = gevent.get_hub().loop.io(self._descriptor, 1)
        self._io.start(self.step)

    def step(self) -> None:
        """Pass on what has come; called by the hub, so nothing in here may wait."""
        try:
            self._rest = self._gather()
            if not (self._has_ended or self._pump.is_ending):
                if self._rest:
                    self._rest = self._rest[self.client.send_now(self._rest) :]
                if not self._rest:
                    return
        except BaseException as error:
            self._error = error
        self._return()

    def _return(self) -> None:
        """Go on in a greenlet; called by the hub."""
        connections = self.client.server.connections
        if self not in connections:
            # It was to be killed, and something came just then.
            return
        self._io.close()
        connections.discard(self)
        greenlet = gevent.Greenlet(self._worker.resume, self)
        connections.add(greenlet)
        # At once, not when its turn comes: what a stream gives back is there before another request is read.
        greenlet.switch()

    def kill(self, exception: type[BaseException], block: bool = False) -> None:
        """End the stream where it is; the pool's way to say that the process stops now."""
        self._error = exception()
        gevent.get_hub().loop.run_callback(self._return)
