"""class StreamWorker: gunicorn's gevent worker, which parks streams that wait."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from functools import partial
from typing import Any

from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.workers.ggevent import GeventWorker

from ..compat import gevent as gevent_compat
from ..compat import gunicorn as compat
from ..relay.linger import linger
from ..relay.stream.pump import HANDOVER
from ..relay.upstream.transport import enable_keep_alive
from .balance import Balance
from .head import FIELDS, encode_refusal, separate_fields
from .pool import ConnectionPool
from .request import RequestBody, track_body
from .socket import Listener
from .stream import Connection, Environ, Stream
from .tls import TLSListener


class StreamWorker(GeventWorker):  # type: ignore[misc]  # gunicorn leaves it untyped
    """gunicorn's gevent worker; `worker_class = "sse.gunicorn.StreamWorker"` in gunicorn.conf.py.

    The hook `post_request` is called when a stream has been parked, not when it has ended.
    """

    wsgi: Any
    #: Memory that all workers of a master share, made before they are forked; see `Balance`.
    loads: Any = None

    def run(self) -> None:
        """Serve until the worker is stopped."""
        if found := [*compat.unexpected(), *gevent_compat.unexpected()]:
            self.log.warning("Streams are served by gunicorn's own gevent worker: %s", "; ".join(found))
        else:
            self._connections: dict[Any, Connection] = {}
            self._logs_access = compat.logs_access(self.log)
            # Here, because until now it was the app itself, which hooks want to see.
            state = getattr(self.wsgi, "extensions", {}).get("sse")
            self._shares_refusals = state is not None and bool(state.settings.cors_origins)
            compat.replace_app(self, lambda app: partial(self._call, app))
            # `separate_fields` drops those that are not allowed.
            compat.keep_all_fields(self.cfg)
            compat.keep_settings(self.cfg)
            self.server_class = self._listen
            # What a connection begins with is looked for once more behind a stream, where a client may have written it.
            self._has_prologue = self.cfg.proxy_protocol != "off" or "h2" in self.cfg.http_protocols
        super().run()

    def _listen(self, listener: Any, *, spawn: Pool, **options: Any) -> StreamServer:
        """Return what accepts connections; gunicorn calls it with pywsgi's options besides."""
        if "ssl_context" in options:
            server = TLSListener(listener, partial(self.handle, listener), spawn, options["ssl_context"], self.log)
        else:
            pool = ConnectionPool(spawn.size)
            serve = pool.serve = partial(self._serve, listener, pool)
            server = Listener(listener, handle=serve, spawn=pool)
            if self.cfg.workers > 1 and self.loads is not None:
                slot = self.age % (len(self.loads) // 4)
                server.balance = Balance(self.loads, slot, lambda: pool.size - pool.free_count())
        if self.cfg.workers > 1:
            # The others get their share.
            server.max_accept = 1
        enable_keep_alive(listener)
        return server

    def _serve(self, listener: Any, pool: ConnectionPool, client: Any, address: Any) -> None:
        self._connections[client] = Connection(client, address, pool)
        try:
            self.handle(listener, client, address)
        finally:
            del self._connections[client]

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        """Serve a request; requests that came together on one connection give way to other connections."""
        if self.server_class is None:
            super().handle_request(listener_name, req, sock, addr)
            return
        sock.take_turn()
        separate_fields(req)
        body = track_body(req)
        try:
            super().handle_request(listener_name, req, sock, addr)
        finally:
            if body is not None and body.failed:
                linger(sock)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Respond to a request that cannot be served, such that the response arrives."""
        refusal = encode_refusal(exc, is_shared=self._shares_refusals) if self.server_class is not None else None
        if refusal is None:
            super().handle_error(req, client, addr, exc)
        else:
            self.log.warning("Invalid request from ip=%s: %s", addr[0] if addr else "", exc)
            with contextlib.suppress(OSError):
                client.sendall(refusal)
        if isinstance(exc, Exception):
            linger(client)

    def _call(self, app: Any, environ: Environ, start_response: Any) -> Iterable[bytes]:
        """Call the app; send what it responds, if that is a stream."""
        response = compat.response_of(start_response)
        environ[FIELDS] = response.req.sse_fields
        body: Iterable[bytes] = app(environ, start_response)
        unread = environ["wsgi.input"]
        if isinstance(unread, RequestBody) and not unread.is_whole:
            if unread.failed:
                compat.close_behind(response)
            return body
        stream = self._stream(body, environ, response)
        if stream is None:
            return body
        if not stream.serve():
            raise compat.EndOfConnection
        handled: Iterable[bytes] = compat.ALREADY_HANDLED
        return handled

    def _stream(self, body: Any, environ: Environ, response: Any) -> Stream | None:
        """Return the stream that a body is, None if gunicorn has to iterate it."""
        handover = environ.pop(HANDOVER, None)
        connection = self._connections.get(compat.client_of(environ))
        # Another body is what something between the app and this has made of it.
        if handover is None or handover.body is not body or connection is None or not compat.is_http_1(response):
            return None
        # What has been read of another request would be lost with the greenlet.
        if self._has_prologue or compat.has_read_ahead(response):
            return None
        head = compat.encode_head(response)
        if b"\r\ncontent-length:" in head.lower():
            # gunicorn sends no more than a length that the app has set.
            return None
        logged = (response, environ) if self._logs_access else None
        return Stream(connection, handover.pump, handover.body.close, head, self.log, logged)
