"""gunicorn's gevent worker, made for streams: one that waits for its upstream takes no greenlet, and so little memory.

An answer begins in the greenlet of its connection, as any other. When there is nothing to do but wait for the upstream,
the greenlet ends, and from then on the hub itself takes each piece from the body and sends it. What may wait for
something else (a client that is slow, the end of the stream) is done in a greenlet again. Other answers, and
connections with TLS, are left to gunicorn.
"""

from __future__ import annotations

import errno
from collections.abc import Generator, Iterable
from datetime import datetime
from functools import partial
from typing import Any

import gevent
from gevent import socket
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.http.wsgi import Response
from gunicorn.workers.ggevent import GeventWorker

from .relay.pump import Pump

#: What a client that has left looks like to whoever writes.
GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)

#: What WSGI tells an app of a request.
Environ = dict[str, Any]

#: RFC 9112, section 7.1: "last-chunk = 1*("0") [ chunk-ext ] CRLF", and an empty trailer section.
LAST_CHUNK = b"0\r\n\r\n"


class Client(socket.socket):  # type: ignore[misc]  # gevent leaves its sockets untyped
    """A client's connection that sends at once, as mostly it can; gevent's own prepares for what does not fit."""

    __slots__ = ("address", "is_kept", "listener", "pool")

    def __init__(self, connection: Any, *, listener: Any, pool: Pool, address: Any) -> None:
        super().__init__(connection.family, connection.type, connection.proto, connection.detach())
        self.listener = listener
        #: Where its greenlet is, or what stands for it.
        self.pool = pool
        self.address = address
        #: Whether its greenlet ended and left it open.
        self.is_kept = False

    def renewed(self) -> Client:
        """Return the connection as one that greenlets close again."""
        return Client(self, listener=self.listener, pool=self.pool, address=self.address)

    def send_now(self, data: Any, flags: int = 0) -> int:
        """Send what fits, and return how many bytes that was; never waits."""
        try:
            # The system's socket, which never waits.
            return int(self._sock.send(data, flags))
        except BlockingIOError:
            return 0

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send all, and wait only where the client does not take it."""
        sent = self.send_now(data, flags)
        if sent < len(data):
            super().sendall(memoryview(data).cast("B")[sent:], flags)

    def close(self) -> None:
        """Close it, unless its greenlet ends because none is needed."""
        if not self.is_kept:
            super().close()


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
        #: Bytes of the body.
        self._sent = 0
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
        self._begin_or_go_on()
        for piece in self._pieces:
            if piece:
                self.client.sendall(self._framed(piece))
            elif not self._pump.is_ending:
                self._leave()
                return False
        if self._is_chunked:
            self.client.sendall(LAST_CHUNK)
        return True

    def _begin_or_go_on(self) -> None:
        if self._response is not None and not self._response.headers_sent:
            # The first piece is empty: it stands for the head.
            next(self._pieces)
            self._response.send_headers()
        if isinstance(self._error, gevent.GreenletExit):
            # As if it had hit the pump where it waits.
            self._pieces.throw(self._error)
        if self._error is not None:
            raise self._error
        rest, self._rest = self._rest, b""
        if rest:
            self.client.sendall(rest)

    def _framed(self, piece: bytes) -> bytes:
        self._sent += len(piece)
        return b"%X\r\n%b\r\n" % (len(piece), piece) if self._is_chunked else piece

    def _end(self) -> None:
        if self._response is not None:
            self._response.sent = self._sent
            self._worker.log.access(self._response, self._response.req, self._environ, datetime.now() - self._started)
        self._pump.close()

    def _leave(self) -> None:
        """Let the current greenlet end: the hub calls when there is something to read."""
        if not self._worker.log.access_log_enabled:
            # A stream may be open for hours, and needs nothing of these.
            self._response = self._environ = None
        self.client.is_kept = True
        self.client.pool.discard(gevent.getcurrent())
        self.client.pool.add(self)
        self._io = gevent.get_hub().loop.io(self._descriptor, 1)
        self._io.start(self.step)

    def step(self) -> None:
        """Pass on what has come; called by the hub, so nothing in here may wait."""
        try:
            for piece in self._pieces:
                if not piece:
                    if self._pump.is_ending:
                        break
                    return
                frame = self._framed(piece)
                sent = self.client.send_now(frame)
                if sent < len(frame):
                    self._rest = frame[sent:]
                    break
        except BaseException as error:
            self._error = error
        self._return()

    def _return(self) -> None:
        """Go on in a greenlet; called by the hub."""
        self._io.close()
        self.client.pool.discard(self)
        greenlet = gevent.Greenlet(self._worker.resume, self)
        self.client.pool.add(greenlet)
        # At once, not when its turn comes: what a stream gives back is there before another request is read.
        greenlet.switch()

    def kill(self, exception: type[BaseException], block: bool = False) -> None:
        """End the stream where it is; the pool's way to say that the process stops now."""
        self._error = exception()
        gevent.get_hub().loop.run_callback(self._return)


class StreamWorker(GeventWorker):  # type: ignore[misc]  # gunicorn leaves it untyped
    """gunicorn's gevent worker; `worker_class = "sse.worker.StreamWorker"` in gunicorn.conf.py.

    The hook `post_request` is called when a stream has begun to wait, not when it has ended.
    """

    wsgi: Any

    def run(self) -> None:
        """Serve until the worker is to stop."""
        # Here, because until now it was the app itself, which hooks want to see.
        self.wsgi = partial(self._answer, self.wsgi)
        super().run()

    def server_class(self, listener: Any, *, spawn: Pool, **options: Any) -> StreamServer:
        """Return what accepts connections; gunicorn asks for it, and gives pywsgi's options besides."""
        tls = {"ssl_context": options["ssl_context"]} if "ssl_context" in options else {}
        server = StreamServer(listener, handle=partial(self.accept, listener, spawn), spawn=spawn, **tls)
        if self.cfg.workers > 1:
            # The others get their share.
            server.max_accept = 1
        return server

    def accept(self, listener: Any, pool: Pool, connection: Any, address: Any) -> None:
        """Serve a new connection; one with TLS as gunicorn does."""
        if type(connection) is socket.socket:
            connection = Client(connection, listener=listener, pool=pool, address=address)
        self.handle(listener, connection, address)

    def _answer(self, app: Any, environ: Environ, start_response: Any) -> Iterable[bytes] | Stream:
        """Be the app; where it answers with a pump that nobody needs to be blocked in, return a stream."""
        body: Iterable[bytes] = app(environ, start_response)
        client, response = environ.get("gunicorn.socket"), start_response.__self__
        if not (isinstance(body, Pump) and isinstance(client, Client) and type(response) is Response):
            return body
        # What has come of another request would be lost with the greenlet; of this one there is no more, for it has
        # been read whole before the upstream was asked.
        if early := response.req.unreader.take_buffered():
            response.req.unreader.unread(early)
            return body
        descriptor = body.wait_outside()
        return body if descriptor is None else Stream(self, client, body, descriptor, response, environ)

    def is_already_handled(self, respiter: Any) -> bool:
        """Send a stream; gunicorn sends what else there is.

        :raises StopIteration: if no other request is to be read in this greenlet; gunicorn then ends it.
        """
        if not isinstance(respiter, Stream):
            return bool(super().is_already_handled(respiter))
        if not respiter.run() or respiter.is_last:
            raise StopIteration
        return True

    def resume(self, stream: Stream) -> None:
        """Go on with a stream in a new greenlet, and then with its connection."""
        is_whole = False
        try:
            if not stream.run():
                return
            is_whole = True
        except OSError as error:
            if error.errno not in GONE:
                self.log.exception("Socket error processing request.")
        except gevent.GreenletExit:
            pass
        except Exception:
            self.log.exception("Error handling request")
        client = stream.client.renewed()
        if is_whole and not stream.is_last:
            self.handle(client.listener, client, client.address)
        else:
            client.close()
