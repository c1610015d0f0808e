"""gunicorn's gevent worker, made for streams: one that waits for its upstream takes no greenlet, and so little memory.

An answer begins in the greenlet of its connection, as any other. When there is nothing to do but wait for the upstream,
the greenlet ends, and from then on the hub itself takes each piece from the body and sends it. What may wait for
something else (a client that is slow, the end of the stream) is done in a greenlet again. Other answers, and
connections with TLS, are left to gunicorn.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator, Iterable
from datetime import datetime
from functools import partial
from types import SimpleNamespace
from typing import Any

import gevent
from gevent import socket
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.config import Config
from gunicorn.glogging import Logger
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
    """A client's connection that sends at once, as mostly it can; gevent's own prepares for what does not fit.

    :param server: what accepted it.
    :param address: its peer's.
    """

    __slots__ = ("address", "is_kept", "server")

    def __init__(self, server: Listener, descriptor: int, address: Any) -> None:
        super().__init__(server.family, socket.SOCK_STREAM, 0, descriptor)
        self.server = server
        self.address = address
        #: Whether its greenlet ended and left it open.
        self.is_kept = False

    def renewed(self) -> Client:
        """Return the connection as one that greenlets close again."""
        return Client(self.server, self.detach(), self.address)

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


class Listener(StreamServer):  # type: ignore[misc]  # gevent leaves its compiled parts untyped
    """Accepts connections.

    :param serve: serves a connection, given its peer's address too.
    :param connections: what it is served in, a greenlet for each.
    """

    def __init__(self, listener: Any, serve: Callable[[Client, Any], None], connections: Pool) -> None:
        super().__init__(listener, handle=serve, spawn=connections)
        self.serve = serve
        self.connections = connections

    def do_read(self) -> tuple[Client, Any] | None:
        """Return the next connection and its peer's address, None if there is none; gevent's hook."""
        try:
            descriptor, address = self.socket._accept()
        except BlockingIOError:
            return None
        return Client(self, descriptor, address), address


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


class Settled:
    """gunicorn's settings, each looked up once: for one request it asks more than thirty times, at two calls each."""

    def __init__(self, cfg: Config) -> None:
        self._cfg = cfg
        self.__dict__.update({name: getattr(cfg, name) for name in (*cfg.settings, "is_ssl")})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cfg, name)


class StreamWorker(GeventWorker):  # type: ignore[misc]  # gunicorn leaves it untyped
    """gunicorn's gevent worker; `worker_class = "sse.worker.StreamWorker"` in gunicorn.conf.py.

    The hook `post_request` is called when a stream has begun to wait, not when it has ended.
    """

    wsgi: Any
    cfg: Any

    def run(self) -> None:
        """Serve until the worker is to stop."""
        # Here, because until now they were the app itself and what may be changed, which hooks want to see.
        self.wsgi = partial(self._answer, self.wsgi)
        self.cfg = Settled(self.cfg)
        # Statsd's logger counts what others leave out.
        self.tells_of_requests = self.log.access_log_enabled or type(self.log).access is not Logger.access
        # What a connection begins with is looked for once more behind a stream, where a client may have written it.
        self._has_prologue = self.cfg.proxy_protocol != "off" or "h2" in self.cfg.http_protocols
        super().run()

    def server_class(self, listener: Any, *, spawn: Pool, **options: Any) -> StreamServer:
        """Return what accepts connections; gunicorn asks for it, and gives pywsgi's options besides."""
        handle = partial(self.handle, listener)
        if "ssl_context" in options:
            server = StreamServer(listener, handle=handle, spawn=spawn, ssl_context=options["ssl_context"])
        else:
            server = Listener(listener, handle, spawn)
        if self.cfg.workers > 1:
            # The others get their share.
            server.max_accept = 1
        return server

    def _answer(self, app: Any, environ: Environ, start_response: Any) -> Iterable[bytes] | Stream:
        """Be the app; where it answers with a pump that nobody needs to be blocked in, return a stream."""
        body: Iterable[bytes] = app(environ, start_response)
        client, response = environ.get("gunicorn.socket"), start_response.__self__
        if not (isinstance(body, Pump) and isinstance(client, Client) and type(response) is Response):
            return body
        # Where somebody has set a length, gunicorn keeps to it.
        if self._has_prologue or response.response_length is not None:
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
            client.server.serve(client, client.address)
        else:
            client.close()
