"""class StreamWorker: gunicorn's gevent worker, which parks streams that wait."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.workers.ggevent import GeventWorker

from ..compat import gevent as gevent_compat
from ..compat import gunicorn as compat
from ..relay.stream.pump import HANDOVER
from .pool import ConnectionPool
from .stream import Connection, Environ, Stream


class StreamWorker(GeventWorker):  # type: ignore[misc]  # gunicorn leaves it untyped
    """gunicorn's gevent worker; `worker_class = "sse.gunicorn.StreamWorker"` in gunicorn.conf.py.

    The hook `post_request` is called when a stream has been parked, not when it has ended.
    """

    wsgi: Any

    def run(self) -> None:
        """Serve until the worker is to stop."""
        if found := [*compat.unexpected(), *gevent_compat.unexpected()]:
            self.log.warning("Streams are served by gunicorn's own gevent worker: %s", "; ".join(found))
        else:
            self._connections: dict[Any, Connection] = {}
            # Here, because until now it was the app itself, which hooks want to see.
            self.wsgi = partial(self._call, self.wsgi)
            self.server_class = self._listen
            # What a connection begins with is looked for once more behind a stream, where a client may have written it.
            self._has_prologue = self.cfg.proxy_protocol != "off" or "h2" in self.cfg.http_protocols
        super().run()

    def _listen(self, listener: Any, *, spawn: Pool, **options: Any) -> StreamServer:
        """Return what accepts connections; gunicorn calls it with pywsgi's options besides."""
        if "ssl_context" in options:
            handle = partial(self.handle, listener)
            server = StreamServer(listener, handle=handle, spawn=spawn, ssl_context=options["ssl_context"])
        else:
            pool = ConnectionPool(spawn.size)
            server = StreamServer(listener, handle=partial(self._serve, listener, pool), spawn=pool)
        if self.cfg.workers > 1:
            # The others get their share.
            server.max_accept = 1
        return server

    def _serve(self, listener: Any, pool: ConnectionPool, client: Any, address: Any) -> None:
        self._connections[client] = Connection(client, address, pool, partial(self._serve, listener, pool))
        try:
            self.handle(listener, client, address)
        finally:
            del self._connections[client]

    def _call(self, app: Any, environ: Environ, start_response: Any) -> Iterable[bytes]:
        """Call the app; send what it responds, if that is a stream."""
        body: Iterable[bytes] = app(environ, start_response)
        stream = self._stream(body, environ, compat.response_of(start_response))
        if stream is None:
            return body
        if not stream.serve():
            raise compat.EndOfConnection
        handled: Iterable[bytes] = compat.ALREADY_HANDLED
        return handled

    def _stream(self, body: Any, environ: Environ, response: Any) -> Stream | None:
        """Return the stream that a body is, None if gunicorn has to iterate it."""
        handover = environ.pop(HANDOVER, None)
        connection = self._connections.get(environ.get("gunicorn.socket"))
        # Another body is what something between the app and this has made of it.
        if handover is None or handover.body is not body or connection is None or response is None:
            return None
        # What has been read of another request would be lost with the greenlet.
        if self._has_prologue or compat.has_length(response) or compat.has_read_ahead(response):
            return None
        return Stream(connection, handover.pump, handover.body.close, response, environ, self.log)
